"""Measurements of the figures that docs/decisions gives.

    python -m tests.bench.choices [PART]...

Parts are start, loops, regex, dns, log and mime; all by default. Times are of the processor where
they are short, medians of several runs.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import logging
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.lookups.outcome import Found
from smtpd_filters.runtime.log import Log
from smtpd_filters.tables.automaton import Automaton
from smtpd_filters.tables.ere import parse
from smtpd_filters.tables.patterns import MEMORY
from smtpd_filters.testing.dns import DNSServer
from tests.bench import mime
from tests.bench.player import ROOT, Player
from tests.bench.workloads import message, sessions

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 25
POLL = "import tests.bench.filters, smtpd_filters.runtime.engine, smtpd_filters.runtime.poll_loop"
OWN = """
rows = open("/proc/self/smaps_rollup").read().splitlines()
print(sum(int(row.split()[1]) for row in rows if row.startswith("Private_")))
"""
DATACLASSES = """
from dataclasses import dataclass as _dataclass
for _number in range(20):
    @_dataclass(frozen=True, slots=True)
    class _Row:
        one: int
        two: str
        three: bytes = b""
"""
ORDINARY = "import dataclasses, enum, typing, pathlib"
STARTS = {
    "bare interpreter": "",
    "a plain filter (poll)": POLL,
    "  with dataclasses, enum, typing, pathlib": f"{POLL}\n{ORDINARY}",
    "  and 20 data classes": f"{POLL}\n{ORDINARY}\n{DATACLASSES}",
    "  with logging": f"{POLL}\nimport logging",
    "a filter with coroutines (asyncio)": f"{POLL}\nimport smtpd_filters.runtime.asyncio_loop",
    "  with these four": f"{POLL}\nimport smtpd_filters.runtime.asyncio_loop\n{ORDINARY}",
    "  with our resolver": f"{POLL}\nimport smtpd_filters.runtime.asyncio_loop\n"
    "from smtpd_filters.lookups.dns import Resolver\nResolver([('127.0.0.1', 53)])",
    "  with dns.asyncresolver": f"{POLL}\nimport smtpd_filters.runtime.asyncio_loop\n"
    "from dns.asyncresolver import Resolver\nResolver(configure=False)",
}
#: Patterns that are plain, cubic and exponential for an engine that backtracks, what is matched,
#: and the longest that `re` is given.
PATTERNS: dict[str, tuple[Callable[[int], str], int]] = {
    "dyn(amic)?[.-]": (lambda size: "host" * (size // 4), 1020),
    ".*[0-9].*[0-9].*x": (lambda size: "1" * size, 255),
    "([0-9]+[.-]?)+dyn": (lambda size: "1" * size, 24),
    "(a+)+$": (lambda size: "a" * (size - 1) + "b", 24),
}


def spent(what: Callable[[], object], least: float = 0.02) -> float:
    """Return the CPU seconds of one call."""
    found = []
    for _ in range(3):
        count, start = 0, time.process_time()
        while True:
            what()
            count += 1
            took = time.process_time() - start
            if took > least:
                break
        found.append(took / count)
    return statistics.median(found)


def start() -> None:
    """Measure the cost of importing modules: CPU time, and private memory."""
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in STARTS}
    for _ in range(ROUNDS):
        for name, code in STARTS.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            done = subprocess.run(
                [sys.executable, "-c", code + OWN], check=True, cwd=ROOT, stdout=subprocess.PIPE
            )
            found[name].append((took * 1e3, int(done.stdout)))
    for name, figures in found.items():
        times, sizes = zip(*figures, strict=True)
        print(
            f"{name:<44}{statistics.median(times):>8.1f} ms"
            f"{statistics.median(sizes) / 1024:>8.2f} MiB"
        )


def sandbox() -> None:
    """Measure what `--sandbox` adds to a start, without look-ups and with, and to a session."""
    text = message(12)
    for name, flags in {"rcpt": ["--max-recipients", "9"], "fcrdns": ["--verify"]}.items():
        command = [sys.executable, "-m", f"smtpd_filters.filters.{name}", *flags]
        found: dict[str, list[tuple[float, float, float]]] = {"off": [], "on": []}
        for _ in range(ROUNDS):
            for mode, figures in found.items():
                with Player([*command, "--sandbox", mode]) as player:
                    busy, size = player.cpu() / 1e6, player.memory()[0] / (1 << 20)
                    plain = name == "rcpt"
                    cost = sessions(player, 500, 50, text).cost if plain else 0.0
                    figures.append((busy, size, cost))
        for mode, figures in found.items():
            busy, size, cost = (statistics.median(each) for each in zip(*figures, strict=True))
            least = min(figures)[0]
            print(
                f"{name:<8}{mode:<5}{busy:>7.1f} ms, least {least:.1f}{size:>7.2f} MiB"
                f"{cost:>8.1f} us a session"
            )


def loops() -> None:
    """Measure the same filter on both loops."""
    code = "from tests.bench.filters import {0}; {0}()"
    text = message(12)
    found: dict[str, list[tuple[float, float, float]]] = {"poll": [], "asyncio": []}
    for _ in range(7):
        for name, filter_ in (("poll", "seven_phases"), ("asyncio", "seven_later")):
            with Player([sys.executable, "-c", code.format(filter_)]) as player:
                size = player.memory()[0] / (1 << 20)
                cost = sessions(player, 3_000, 50, text).cost
                found[name].append((player.ready * 1e3, size, cost))
    for name, figures in found.items():
        ready, size, cost = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{name:<10}{ready:>7.1f} ms{size:>7.2f} MiB{cost:>8.1f} us a session")


def regex() -> None:
    """Compare our automaton with `re`: one match of a key of that many bytes."""
    try:
        import re2  # type: ignore[import-not-found]
    except ImportError:
        re2 = None
    for pattern, (key, longest) in PATTERNS.items():
        ours = Automaton()
        ours.add(parse(pattern.encode()))
        ours.finish(MEMORY)
        engines: dict[str, Callable[[bytes], object]] = {
            "ours": ours.match,
            "re": re.compile(pattern.encode()).search,
        }
        if re2:
            engines["re2"] = re2.compile(pattern.encode()).search
        for size in (20, 24, 64, 255, 1020):
            text = key(size).encode()
            columns = [
                f"{name}{spent(partial(match, text)) * 1e6:>12.1f} us"
                for name, match in engines.items()
                if name != "re" or size <= longest
            ]
            print(f"{pattern:<20}{size:>5} bytes  {'  '.join(columns)}")


def dns() -> None:
    """Measure look-ups of uncached names, with a name server on loopback."""
    from dns.asyncresolver import Resolver as Other

    count = 2_000
    zone = {f"n{number}.example": {"A": ["192.0.2.1"]} for number in range(2 * count)}

    async def ours(server: DNSServer) -> float:
        async with Resolver([(server.address, server.port)]) as resolver:
            begin = time.thread_time()
            for at in range(0, count, 20):
                names = [f"n{at + each}.example" for each in range(20)]
                outcomes = await asyncio.gather(*(resolver.query(name, "A") for name in names))
                assert all(isinstance(each, Found) for each in outcomes)
            return time.thread_time() - begin

    async def theirs(server: DNSServer) -> float:
        resolver = Other(configure=False)
        resolver.nameservers, resolver.port = [server.address], server.port
        begin = time.thread_time()
        for at in range(count, 2 * count, 20):
            names = [f"n{at + each}.example" for each in range(20)]
            await asyncio.gather(*(resolver.resolve(name, "A") for name in names))
        return time.thread_time() - begin

    with DNSServer(zone) as server:
        found = [
            (asyncio.run(ours(server)) / count, asyncio.run(theirs(server)) / count)
            for _ in range(5)
        ]
    mine, other = (statistics.median(column) * 1e6 for column in zip(*found, strict=True))
    print(f"a look-up: ours {mine:.0f} us, dns.asyncresolver {other:.0f} us of the processor")


def log() -> None:
    """Compare a line of our log with one of `logging`, and both with a log that isn't read."""
    with open(os.devnull, "w") as null:  # noqa: PTH123  # a descriptor
        ours = Log(fd=null.fileno())
        handler = logging.StreamHandler(null)
        handler.setFormatter(logging.Formatter("%(message)s"))
        theirs = logging.getLogger("bench")
        theirs.addHandler(handler)
        theirs.propagate = False
        line = spent(lambda: ours.event("dyndns", "connect", "7641df9700000001", result="junk"))
        other = spent(
            lambda: theirs.warning("%s %s connect result=%s", "7641df9700000001", "dyndns", "junk")
        )
    print(f"a line: ours {line * 1e6:.1f} us, logging {other * 1e6:.1f} us")
    source, sink = os.pipe()
    full = Log(fd=sink)
    begin = time.perf_counter()
    for _ in range(5_000):
        full.event("dyndns", "connect", "7641df9700000001", result="junk")
    took = time.perf_counter() - begin
    print(f"5,000 lines that nobody reads: ours {took:.2f} s, {full.dropped} of them dropped")
    code = (
        "import logging, sys\nlogging.basicConfig()\n"
        "for _ in range(5000): logging.warning('%s', 'x' * 60)"
    )
    stuck = subprocess.Popen([sys.executable, "-c", code], stderr=sink)
    try:
        stuck.wait(5)
        print("logging: ended")
    except subprocess.TimeoutExpired:
        print("logging: blocked until it was ended, 5 s later")
        stuck.kill()
        stuck.wait()
    os.close(source)
    os.close(sink)


PARTS = {
    "start": start,
    "sandbox": sandbox,
    "loops": loops,
    "regex": regex,
    "dns": dns,
    "log": log,
    "mime": mime.run,
}


def main() -> int:
    """Run the selected measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parts = parser.parse_args().parts or PARTS
    # As pip does when it installs a package; a start would otherwise compile all of it.
    for folder in ("smtpd_filters", "tests/bench"):
        compileall.compile_dir(ROOT / folder, quiet=1)
    for part in parts:
        print(f"-- {part}")
        PARTS[part]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
