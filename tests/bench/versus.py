"""This checkout beside another one: what a change costs, as ratios.

    python -m tests.bench.versus OTHER [--rounds N] [--only PART]...

OTHER is the root of another checkout, such as a git worktree of the commit before. Both take turns
within each round, in alternating order; a ratio is the median over the rounds of this checkout's
processor time (or start, or memory) divided by the other's, so that below 1 this one is cheaper.
"""

from __future__ import annotations

import argparse
import compileall
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.player import ROOT, Player
from tests.bench.workloads import lines_of, message, sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SHORT, LONG = message(12), message(2_000)
LINES, SESSIONS, CONCURRENT, CROWD = 50, 3_000, 50, 1_000
FILTERS = {
    "decisions": "from tests.bench.filters import decisions as run; run()",
    "passed": "from tests.bench.filters import seven_phases as run; run()",
    "header": "from tests.bench.filters import add_header as run; run()",
    "four": "from tests.bench.filters import four as run; run()",
    "whole": (
        "from smtpd_filters.program import run\nfrom tests.bench.hops import Whole\nrun(Whole)"
    ),
    "waiting": (
        "from smtpd_filters.program import run\nfrom tests.bench.hops import Waiting\nrun(Waiting)"
    ),
}


def per_line(player: Player) -> float:
    """Nanoseconds of the processor for each line."""
    return lines_of(player, LINES, CONCURRENT, LONG).cost


def per_session(player: Player) -> float:
    """Microseconds of the processor for each session."""
    return sessions(player, SESSIONS, CONCURRENT, SHORT).cost


def per_crowded_session(player: Player) -> float:
    """The same, of many at a time."""
    return sessions(player, SESSIONS, CROWD, SHORT).cost


def start(player: Player) -> float:
    """Milliseconds until it is ready."""
    return player.ready * 1e3


def memory(player: Player) -> float:
    """MiB that are its own when it is ready."""
    return player.memory()[0] / (1 << 20)


PARTS: dict[str, tuple[str, str, Callable[[Player], float]]] = {
    "lines, passed": ("passed", "ns", per_line),
    "lines, header edited": ("header", "ns", per_line),
    "lines, whole message": ("whole", "ns", per_line),
    "sessions, seven decisions": ("decisions", "us", per_session),
    "sessions, and a message": ("passed", "us", per_session),
    "sessions, and a header edited": ("header", "us", per_session),
    "sessions, four filters": ("four", "us", per_session),
    "sessions, a coroutine": ("waiting", "us", per_session),
    "sessions, 1,000 at a time": ("passed", "us", per_crowded_session),
    "start": ("passed", "ms", start),
    "start, asyncio": ("waiting", "ms", start),
    "memory": ("passed", "MiB", memory),
    "memory, asyncio": ("waiting", "MiB", memory),
}


def command(root: Path, name: str) -> list[str]:
    """A filter with the package of that checkout, and the workloads of this one."""
    place = f"import sys; sys.path[:0] = [{str(root)!r}, {str(ROOT)!r}]\n"
    return [sys.executable, "-P", "-c", place + FILTERS[name]]


def compare(trees: Sequence[Path], part: str, rounds: int) -> tuple[list[float], float]:
    """The medians of both, and of their ratio within a round."""
    name, _, measure = PARTS[part]
    found: list[list[float]] = []
    for number in range(rounds):
        figures = {}
        for at in (0, 1) if number % 2 else (1, 0):
            with Player(command(trees[at], name)) as player:
                figures[at] = measure(player)
        found.append([figures[0], figures[1]])
    ratio = statistics.median(here / there for here, there in found)
    return [statistics.median(column) for column in zip(*found, strict=True)], ratio


def main() -> int:
    """Compare them part by part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=PARTS, action="append")
    options = parser.parse_args()
    trees = (ROOT, options.other.resolve())
    for tree in trees:
        for folder in ("smtpd_filters", "tests/bench"):
            compileall.compile_dir(tree / folder, quiet=1)
    print(f"{'':<32}{'here':>10}{'other':>10}        ratio")
    for part in options.only or PARTS:
        (here, there), ratio = compare(trees, part, options.rounds)
        print(f"{part:<32}{here:>10.4g}{there:>10.4g} {PARTS[part][1]:<5}{ratio:>7.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
