"""A comparison of this checkout with another one: the cost of a change, as ratios.

    python -m tests.bench.versus OTHER [--rounds N] [--only PART]...

OTHER is the root of another checkout, such as a git worktree of the commit before. Both take turns
within each round, in alternating order; a ratio is the median over the rounds of this checkout's
processor time (or start, or memory) divided by the other's, so that below 1 this one is cheaper.
The last column has the ratio of the lowest figures, the better one on a busy machine: other
processes only add to a figure.
"""

from __future__ import annotations

import argparse
import compileall
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.player import ROOT, MisbehaviourError, Player
from tests.bench.workloads import lines_of, message, sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SHORT, LONG = message(12), message(2_000)
LINES, SESSIONS, CONCURRENT, CROWD = 50, 3_000, 50, 1_000


def per_line(player: Player) -> float:
    """Measure CPU nanoseconds per line."""
    return lines_of(player, LINES, CONCURRENT, LONG).cost


def per_session(player: Player) -> float:
    """Measure CPU microseconds per session."""
    return sessions(player, SESSIONS, CONCURRENT, SHORT).cost


def per_crowded_session(player: Player) -> float:
    """Measure CPU microseconds per session, with many sessions at a time."""
    return sessions(player, SESSIONS, CROWD, SHORT).cost


def start(player: Player) -> float:
    """Measure the milliseconds until a filter is ready."""
    return player.ready * 1e3


def memory(player: Player) -> float:
    """Measure the private memory of a ready filter, in MiB."""
    return player.memory()[0] / (1 << 20)


PARTS: dict[str, tuple[str, str, Callable[[Player], float]]] = {
    "lines, passed": ("seven_phases", "ns", per_line),
    "lines, header edited": ("add_header", "ns", per_line),
    "lines, whole message": ("whole", "ns", per_line),
    "sessions, seven decisions": ("decisions", "us", per_session),
    "sessions, and a message": ("seven_phases", "us", per_session),
    "sessions, and a header edited": ("add_header", "us", per_session),
    "sessions, four filters": ("four", "us", per_session),
    "sessions, a coroutine": ("waiting", "us", per_session),
    "sessions, 1,000 at a time": ("seven_phases", "us", per_crowded_session),
    "start": ("seven_phases", "ms", start),
    "start, asyncio": ("waiting", "ms", start),
    "memory": ("seven_phases", "MiB", memory),
    "memory, asyncio": ("waiting", "MiB", memory),
}


def command(root: Path, name: str) -> list[str]:
    """A filter of that checkout's own `tests.bench.filters`."""
    place = f"import sys; sys.path.insert(0, {str(root)!r})"
    return [
        sys.executable,
        "-P",
        "-c",
        f"{place}; from tests.bench.filters import {name}; {name}()",
    ]


def compare(trees: Sequence[Path], part: str, rounds: int) -> tuple[list[float], float, float]:
    """Return the medians of both, the median of their ratio in a round, and that of the lowest."""
    name, _, measure = PARTS[part]
    found: list[list[float]] = []
    for number in range(rounds):
        figures = {}
        for at in (0, 1) if number % 2 else (1, 0):
            with Player(command(trees[at], name)) as player:
                figures[at] = measure(player)
        found.append([figures[0], figures[1]])
    ratio = statistics.median(here / there for here, there in found)
    columns = list(zip(*found, strict=True))
    lowest = min(columns[0]) / min(columns[1])
    return [statistics.median(column) for column in columns], ratio, lowest


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
    print(f"{'':<32}{'here':>10}{'other':>10}        ratio  lowest")
    for part in options.only or PARTS:
        try:
            (here, there), ratio, lowest = compare(trees, part, options.rounds)
        except MisbehaviourError:  # it has no such filter
            print(f"{part:<32} left out")
            continue
        figures = f"{here:>10.4g}{there:>10.4g} {PARTS[part][1]:<5}{ratio:>7.3f}{lowest:>8.3f}"
        print(f"{part:<32}{figures}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
