"""The benchmark: the cost of our filters, beside Debian's and the least that a filter can do.

    python -m tests.bench.run [--quick] [--check] [--json] [--only PART]...

Contestants take turns within each round, and what is judged are medians over the rounds of ratios
within a round: absolute figures depend on the machine and on what else it does.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters.testing.dns import DNSServer
from tests.bench import compiled
from tests.bench.player import ROOT, MisbehaviourError, Player
from tests.bench.workloads import Lines, Sessions, lines_of, message, sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.bench.lookups import Case, Place

PARTS = (
    "milters",
    *("data_lines", "decisions", "start", "growth", "crowd", "lookups", "chains", "real", "rspamd"),
    *(
        "stalls",
        "supervised",
        "everything",
        "greylist",
        "limits",
        "signatures",
        "tables",
        "scanners",
        "content",
        "journal",
    ),
)
MIB = 1 << 20
# Where the packages of Debian, FreeBSD and OpenBSD put filters.
LIBEXEC = ("/usr/libexec/opensmtpd", "/usr/local/libexec/opensmtpd", "/usr/local/libexec/smtpd")


def our(name: str) -> list[str]:
    """The command of a filter of tests.bench.filters, started as an installed script would be."""
    return [sys.executable, "-c", f"from tests.bench.filters import {name}; {name}()"]


@dataclass
class Target:
    """A figure, and its lower or upper limit."""

    name: str
    value: float
    sense: str
    limit: float

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side of its limit."""
        return self.value >= self.limit if self.sense == ">=" else self.value <= self.limit


@dataclass
class Sizes:
    """The size of each part of the benchmark."""

    rounds: int = 7
    messages: int = 100
    lines: int = 2_000
    sessions: int = 5_000
    starts: int = 15
    # The heap takes its final shape within some ten thousand sessions; it is no leak that is looked
    # for before.
    warm: int = 60_000
    growth: int = 100_000
    crowd_messages: int = 2_000
    crowd_lines: int = 250
    lookups: int = 2_000
    lookups_blocking: int = 60
    lookups_rounds: int = 3
    lookups_warm: int = 60_000
    lookups_growth: int = 100_000
    chained: int = 500
    mails: int = 2_000
    scans: int = 4_000
    # Bytes of a message, the largest that smtpd takes by default; and those of many at once.
    flood: int = 35_000_000
    floods: int = 500_000
    # Entries of a table that is reloaded.
    table: int = 1_000_000
    verified: int = 200
    cold: int = 9
    signed: int = 1_000
    # Bytes of a message, and how many of it.
    content: int = 4 << 20
    contents: int = 10
    # Messages of six verdicts in a journal.
    stories: int = 1_700_000


QUICK = Sizes(
    rounds=3,
    messages=50,
    lines=1_000,
    sessions=2_000,
    starts=5,
    warm=4_000,
    growth=20_000,
    crowd_messages=2_000,
    crowd_lines=100,
    lookups=500,
    lookups_blocking=20,
    lookups_rounds=1,
    lookups_warm=10_000,
    lookups_growth=20_000,
    chained=100,
    mails=500,
    scans=1_000,
    flood=2_000_000,
    floods=50_000,
    table=100_000,
    verified=50,
    signed=100,
    content=1 << 20,
    contents=5,
    stories=30_000,
)


@dataclass
class Report:
    """All results."""

    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def echo() -> list[str] | None:
    """The command of the practical limit, None without a compiler."""
    return [compiled.program("echo")] if compiled.compiler() else None


def senderscore() -> list[str] | None:
    """Debian's filter-senderscore, which then asks every phase and passes everything."""
    found = shutil.which("filter-senderscore", path=os.pathsep.join(LIBEXEC))
    return [found] if found else None


def medians(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The median of each figure of each contestant."""
    return {
        name: {key: statistics.median(r[name][key] for r in rounds) for key in figures}
        for name, figures in rounds[0].items()
    }


def compare(rounds: Sequence[dict[str, dict[str, float]]], one: str, other: str, key: str) -> float:
    """The median over the rounds of one contestant's figure divided by another's."""
    return statistics.median(r[one][key] / r[other][key] for r in rounds)


class Bench:
    """One run of the benchmark: each method plays one part of it and adds to the report."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Determine the contestants."""
        self.sizes: Sizes = QUICK if options.quick else Sizes()
        self.report = Report()
        self.lines_filter: list[str] = options.lines_filter
        self.sessions_filter: list[str] = options.sessions_filter
        self.ready_filter: list[str] = options.ready_filter
        self.others: dict[str, list[str]] = {}
        for name, command, lacking in (
            ("echo", echo(), "a C compiler"),
            ("senderscore", senderscore(), "Debian's opensmtpd-filter-senderscore"),
        ):
            if command:
                self.others[name] = command
            else:
                self.report.left_out.append(f"what is compared with {name}: needs {lacking}")

    def rounds(
        self,
        title: str,
        ours: dict[str, list[str]],
        measure: Callable[[Player], dict[str, float]],
    ) -> list[dict[str, dict[str, float]]]:
        """Play the same to all contestants in turns, each in a new process."""
        contestants = {**ours, **self.others}
        found = []
        for number in range(self.sizes.rounds):
            progress(f"{title}: round {number + 1} of {self.sizes.rounds}")
            figures = {}
            for name, command in contestants.items():
                with Player(command) as player:
                    figures[name] = measure(player)
            found.append(figures)
        for name, median in medians(found).items():
            self.report.figures[f"{title}, {name}"] = median
        return found

    def target(self, name: str, value: float, sense: str, limit: float) -> None:
        """Judge one figure."""
        self.report.targets.append(Target(name, value, sense, limit))

    def data_lines(self) -> None:
        """Measure adding a field to each message and passing its body, 50 sessions in turns."""
        text = message(self.sizes.lines)

        def measure(player: Player) -> dict[str, float]:
            return line_figures(lines_of(player, self.sizes.messages, 50, text))

        found = self.rounds("data-lines", {"ours": self.lines_filter}, measure)
        if "senderscore" in self.others:
            ratio = compare(found, "ours", "senderscore", "lines/s")
            self.target("lines/s, ours : senderscore", ratio, ">=", 10)
        if "echo" in self.others:
            self.target(
                "lines/s, ours : echo", compare(found, "ours", "echo", "lines/s"), ">=", 0.25
            )

    def decisions(self) -> None:
        """Measure sessions with seven decisions and a message of 20 lines, 50 at a time."""
        text = message(12)

        def measure(player: Player) -> dict[str, float]:
            return session_figures(sessions(player, self.sizes.sessions, 50, text))

        # The second one, for information, is not told of messages.
        ours = {"ours": self.sessions_filter, "ours, no data-line": our("decisions")}
        found = self.rounds("sessions", ours, measure)
        if "echo" in self.others:
            for key, sense, limit in (
                ("sessions/s", ">=", 0.7),
                ("CPU µs/session", "<=", 5),
                ("p99 µs", "<=", 2),
            ):
                self.target(
                    f"{key}, ours : echo", compare(found, "ours", "echo", key), sense, limit
                )

    def start(self) -> None:
        """Measure the time until a filter is ready, and its private memory then."""
        commands = {"ours": self.ready_filter, **self.others}
        found = []
        for number in range(self.sizes.starts):
            progress(f"start: round {number + 1} of {self.sizes.starts}")
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", "pass"], check=True, cwd=ROOT)
            figures = {"bare interpreter": {"ready ms": (time.perf_counter() - begin) * 1e3}}
            for name, command in commands.items():
                with Player(command) as player:
                    uss, rss = player.memory()
                    figures[name] = {
                        "ready ms": player.ready * 1e3,
                        "USS MiB": uss / MIB,
                        "RSS MiB": rss / MIB,
                    }
            found.append(figures)
        for name, median in medians(found).items():
            self.report.figures[f"start, {name}"] = median
        ratio = compare(found, "ours", "bare interpreter", "ready ms")
        self.target("ready, ours : the bare interpreter", ratio, "<=", 3)
        own = self.report.figures["start, ours"]["USS MiB"]
        self.target("USS when ready, MiB", own, "<=", 14)

    def growth(self) -> None:
        """Measure the memory after many sessions, compared with that after the first ones."""
        text = message(12)
        with Player(self.sessions_filter) as player:
            before = 0
            # In parts, so that the player's own memory stays small.
            for done in range(0, self.sizes.warm + self.sizes.growth, 2_000):
                progress(f"growth: session {done:,}")
                if done == self.sizes.warm:
                    before = player.anonymous()
                sessions(player, 2_000, 50, text)
            grown = player.anonymous() - before
        self.report.figures["growth, ours"] = {
            "sessions": self.sizes.growth,
            "grown KiB": grown / 1024,
        }
        # The least that can leak per session is an object and a reference to it: 24 bytes.
        self.target("growth, bytes per session", grown / self.sizes.growth, "<=", 4)

    def crowd(self) -> None:
        """Measure the cost of a session and of a line with 10 and with 2,000 sessions at a time."""
        short, long = message(12), message(self.sizes.crowd_lines)
        found = []
        for number in range(self.sizes.rounds):
            progress(f"crowd: round {number + 1} of {self.sizes.rounds}")
            figures: dict[str, dict[str, float]] = {}
            for concurrent in (10, 2_000):
                with Player(self.sessions_filter) as player:
                    run = sessions(player, max(4_000, self.sizes.sessions), concurrent, short)
                    figures[f"sessions at {concurrent:,}"] = session_figures(run)
                with Player(self.lines_filter) as player:
                    lot = lines_of(player, self.sizes.crowd_messages, concurrent, long)
                    figures[f"lines at {concurrent:,}"] = line_figures(lot)
            found.append(figures)
        self.report.figures.update(medians(found))
        for what, key in (("sessions", "CPU µs/session"), ("lines", "CPU ns/line")):
            ratio = compare(found, f"{what} at 2,000", f"{what} at 10", key)
            self.target(f"{key} at 2,000 : at 10 sessions", ratio, "<=", 1.2)

    def lookups(self) -> None:
        """Measure look-ups of clients' reputation; the name server fails for one in ten."""
        from tests.bench import lookups

        text = message(12)
        sizes = self.sizes
        with lookups.Place(self.others.get("senderscore")) as place:
            found = []
            for number in range(sizes.lookups_rounds):
                progress(f"look-ups that fail: round {number + 1} of {sizes.lookups_rounds}")
                runs = lookups.faulty(place, sizes.lookups, sizes.lookups_blocking, number, text)
                found.append({name: session_figures(run) for name, run in runs.items()})
            for name, case in lookups.SESSIONS.items():
                ratio = self._known(place, f"{name}, sessions", case, sizes.sessions)
                self.target(f"{name}, sessions/s, warm cache : off", ratio, ">=", 0.7)
            for name, case in lookups.PHASES.items():
                ratio = self._known(place, f"{name}, one phase", case, 4 * sizes.sessions)
                if least := lookups.LEAST.get(name):
                    self.target(f"{name}, one phase, warm cache : off", ratio, ">=", least)
            grown, filled = lookups.growth(
                place, sizes.lookups_warm, sizes.lookups_growth, progress
            )
        for name, median in medians(found).items():
            self.report.figures[f"one look-up in ten fails, {name}"] = median
        self.report.figures["clients never seen before, ours"] = {
            "clients": sizes.lookups_growth,
            "grown KiB": grown / 1024,
            "KiB at first": filled / 1024,
        }
        if place.alone:
            self.report.left_out.append(f"look-ups compared with senderscore: {place.alone}")
        else:
            ratio = compare(found, "ours", "senderscore", "sessions/s")
            self.target("sessions/s, failing look-ups, ours : senderscore", ratio, ">=", 20)
        # A cache with a bound is full by then. The least that can leak per client is 24 bytes.
        self.target("grown by clients never seen before, KiB", grown / 1024, "<=", 1_024)

    def _known(self, place: Place, title: str, case: Case, count: int) -> float:
        """Report what look-ups cost whose outcomes are known; the rate with them, to that without.

        `count` sessions are played.
        """
        from tests.bench import lookups

        progress(f"look-ups that are known: {title}")
        rounds = []
        for _ in range(self.sizes.rounds):
            runs = lookups.warm(place, count, case, message(12))
            rounds.append({name: session_figures(run) for name, run in runs.items()})
        ratio = compare(rounds, "warm cache", "look-ups off", "sessions/s")
        for name, median in medians(rounds).items():
            if name == "warm cache":
                median[": off"] = ratio
            self.report.figures[f"{title}, {name}"] = median
        return ratio

    def chains(self) -> None:
        """Measure how soon five filters of a chain decide whose look-ups take 30 ms each."""
        from tests.bench import chains

        rounds = []
        for number in range(self.sizes.rounds):
            progress(f"a chain of look-ups: round {number + 1} of {self.sizes.rounds}")
            runs = chains.measure(self.sizes.chained, message(12))
            rounds.append({name: session_figures(run) for name, run in runs.items()})
        for name, median in medians(rounds).items():
            self.report.figures[f"five look-ups of 30 ms, {name}"] = median
        typical = medians(rounds)["Looks"]["p50 µs"] / 1_000
        self.target("five look-ups of 30 ms, p50 ms", typical, "<=", 45)

    def real(self) -> None:
        """Measure messages per second through a real smtpd, with and without filters."""
        from tests.bench import real

        if reason := real.missing():
            self.report.left_out.append(f"messages through a real smtpd: {reason}")
            return
        progress("real smtpd")
        line_up = real.line_ups(self.others.get("senderscore"), echo())
        found = real.measure(line_up, self.sizes.rounds, self.sizes.mails)
        for name, median in medians(found).items():
            median[": no filter"] = compare(found, name, "no filter", "messages/s")
            self.report.figures[f"real smtpd, {name}"] = median
        if real.LIMIT in line_up:
            for name, limit in ((real.SIX, 0.92), (real.SIX_SUPERVISED, 0.85)):
                value = compare(found, name, real.LIMIT, "messages/s")
                self.target(f"real smtpd: messages/s, {name} : limit", value, ">=", limit)

    def milters(self) -> None:
        """Compare filter-milter with filter-rspamd, and with OpenDKIM without a bridge."""
        from tests.bench import milters

        if reason := milters.missing():
            self.report.left_out.append(f"filter-milter: {reason}")
            return
        progress("filter-milter")
        rounds = milters.measure_bridge(self.sizes.rounds, self.sizes.scans)
        for name, median in medians(rounds).items():
            self.report.figures[f"milters, {name}"] = median
        for key in ("CPU µs/message", "CPU µs/MB"):
            value = compare(rounds, "filter-milter", "filter-rspamd", key)
            self.target(f"milters: {key}, filter-milter : filter-rspamd", value, "<=", 1.3)
        held = self.report.figures["milters, 50 x 1 MB"] = milters.measure_memory()
        self.target("milters, 50 x 1 MB: peak RSS MiB", held["peak RSS MiB"], "<=", 64)
        if reason := milters.missing_opendkim():
            self.report.left_out.append(f"filter-milter in front of OpenDKIM: {reason}")
            return
        rounds = milters.measure_opendkim(self.sizes.rounds, 100)
        # The least, since other work on the machine only adds to it.
        best = min((each["OpenDKIM"] for each in rounds), key=lambda found: found["added ms"])
        self.report.figures["milters, OpenDKIM"] = best
        self.target("milters: ms added to OpenDKIM", best["added ms"], "<=", 2)

    def rspamd(self) -> None:
        """Compare filter-rspamd with Debian's, with the same daemon."""
        from tests.bench import rspamd

        if reason := rspamd.missing():
            self.report.left_out.append(f"filter-rspamd: {reason}")
            return
        progress("filter-rspamd")
        limits = {"sessions/s": (">=", 1.0), "p99 µs": ("<=", 0.5)}
        for size in rspamd.SIZES:
            rounds = rspamd.measure_sessions(self.sizes.rounds, self.sizes.scans, size)
            self._beside(f"rspamd, {size}", rounds, limits)
        if reason := rspamd.missing_daemon():
            self.report.left_out.append(f"filter-rspamd in front of Rspamd: {reason}")
        else:
            for size in rspamd.SIZES:
                rounds = rspamd.measure_real(self.sizes.rounds, self.sizes.scans // 10, size)
                self._beside(f"real Rspamd, {size}", rounds, {"sessions/s": (">=", 1.0)})
        rounds = rspamd.measure_memory(min(3, self.sizes.rounds))
        self._beside("rspamd, 50 x 1 MB", rounds, {"peak RSS MiB": ("<=", 1 / 3)})

    def scanners(self) -> None:
        """Compare the bridges to scanners with filter-rspamd, each in front of a stub."""
        from tests.bench import scanners

        if reason := scanners.missing():
            self.report.left_out.append(f"scanners: {reason}")
            return
        progress("scanners")
        rounds = scanners.measure(self.sizes.rounds, self.sizes.scans)
        for name, median in medians(rounds).items():
            self.report.figures[f"bridges, {name}"] = median
            if name != scanners.REFERENCE:
                for key in ("CPU µs/message", "CPU ms/MB"):
                    value = compare(rounds, name, scanners.REFERENCE, key)
                    self.target(f"{name} : {scanners.REFERENCE}: {key}", value, "<=", 1.3)

    def stalls(self) -> None:
        """Measure how long a session waits while one or 200 others send any kind of mail."""
        from tests.bench import rspamd, stalls

        title = f"mailfrom, a table of {self.sizes.table} domains reloaded"
        progress(title)
        found = self.report.figures[title] = stalls.reload(self.sizes.table, 3)
        # The old entries and the new ones, about 100 bytes each, and the filter itself.
        most = 32 + self.sizes.table * 2 * 140 / MIB
        for key, limit in (("longest wait, ms", 250), ("peak RSS MiB", most)):
            self.target(f"tables reloaded in service: {key}", found[key], "<=", limit)
        if reason := rspamd.missing():
            self.report.left_out.append(f"stalls: {reason}")
            return
        with rspamd.Daemon() as daemon, DNSServer(stalls.ZONE) as server:
            nameserver = f"{server.address}:{server.port}"
            for name, (command, most) in stalls.commands(daemon.url, nameserver).items():
                worst: dict[str, float] = {}
                for kind, mail in stalls.KINDS.items():
                    for count, size in ((1, self.sizes.flood), (200, self.sizes.floods)):
                        title = f"{name}, {count} x {kind}"
                        progress(title)
                        found = stalls.measure(command, mail, count, size)
                        self.report.figures[title] = found
                        worst = {key: max(each, worst.get(key, 0)) for key, each in found.items()}
                for key, limit in (("longest wait, ms", 250), ("peak RSS MiB", most)):
                    self.target(f"{name} flooded: {key}", worst[key], "<=", limit)

    def supervised(self) -> None:
        """Measure what filter-supervise costs a filter, and what a second worker is worth."""
        from tests.bench import supervised

        sizes = self.sizes
        lines, runs, workers = [], [], []
        for number in range(sizes.rounds):
            progress(f"supervised: round {number + 1} of {sizes.rounds}")
            messages = supervised.measure_lines(self.lines_filter, sizes.messages, sizes.lines)
            lines.append({name: line_figures(run) for name, run in messages.items()})
            played = supervised.measure_sessions(self.sessions_filter, sizes.sessions)
            runs.append({name: session_figures(run) for name, run in played.items()})
            busy = supervised.measure_workers(our("spends_a_millisecond"), sizes.sessions // 10)
            workers.append({name: session_figures(run) for name, run in busy.items()})
        one, two, alone = supervised.SUPERVISED, supervised.TWO, supervised.ALONE
        for title, found in (("lines", lines), ("sessions", runs), ("1 ms a session", workers)):
            for name, median in medians(found).items():
                self.report.figures[f"{title}, {name}"] = median
        ratios = self.report.figures["sessions/s, in ratios"] = {
            "supervised : alone, 1 ms a session": compare(workers, one, alone, "sessions/s")
        }
        if supervised.COPIED in runs[0]:
            ratios |= {
                "copied : alone": compare(runs, supervised.COPIED, alone, "sessions/s"),
                "supervised : copied": compare(runs, one, supervised.COPIED, "sessions/s"),
            }
        own, _ = supervised.memory(self.sessions_filter)
        for title, value, sense, limit in (
            ("lines/s, supervised : alone", compare(lines, one, alone, "lines/s"), ">=", 0.6),
            ("sessions/s, supervised : alone", compare(runs, one, alone, "sessions/s"), ">=", 0.75),
            ("p99 µs, supervised : alone", compare(runs, one, alone, "p99 µs"), "<=", 2),
            ("sessions/s, two workers : one", compare(workers, two, one, "sessions/s"), ">=", 1.6),
            ("USS of the supervisor, MiB", own / MIB, "<=", 12),
        ):
            self.target(title, value, sense, limit)

    def everything(self) -> None:
        """Measure the memory of all filters in one process."""
        from tests.bench import everything

        progress("all filters in one process")
        found = self.report.figures["all filters in one process"] = everything.measure()
        for kind in "USS", "RSS":
            title = f"{kind} of all filters in one process, MiB"
            self.target(title, found[f"{kind} MiB"], "<=", 60)

    def journal(self) -> None:
        """Measure what a journal costs a chain, what it takes itself, and how long queries take."""
        from tests.bench import journal, real

        if reason := real.missing():
            self.report.left_out.append(f"a chain with a journal: {reason}")
        else:
            for line_up in journal.nothing(), journal.suite():
                self._chain_with_journal(line_up)
        progress("journal: its process")
        own = self.report.figures["journal"] = journal.measure_service(10)
        share = next(value for key, value in own.items() if key.startswith("CPU share"))
        self.target("processor of the journal at 2,000 verdicts/s, %", share, "<=", 5)
        progress("journal: queries")
        queries = self.report.figures["journal, queries"] = journal.measure_queries(
            self.sizes.stories
        )
        for name, limit in (("by sender", 50), ("by recipient", 50), ("30 days of overview", 200)):
            self.target(f"journal: {name}, ms", queries[f"{name}, ms"], "<=", limit)

    def _chain_with_journal(self, line_up: dict[str, dict[str, str]]) -> None:
        """Compare a server with a chain, and one whose chain has a journal."""
        from tests.bench import journal

        without, told = line_up
        progress(f"journal: {told}")
        # Many pairs of turns: the ratio is near 1.
        found, p99 = journal.measure_chain(line_up, 3 * self.sizes.rounds)
        for name, median in medians(found).items():
            self.report.figures[f"real smtpd, {name}"] = {**median, "p99 ms": p99[name]}
        title = f"{told} : without"
        self.target(f"real smtpd: p99 ms, {title}", p99[told] / p99[without], "<=", 1.03)
        for key, sense, limit in (
            ("messages/s", ">=", 0.97),
            (journal.CPU, "<=", 1.1),
            (journal.ALL, "<=", 1.15),
        ):
            ratio = compare(found, told, without, key)
            self.target(f"real smtpd: {key}, {title}", ratio, sense, limit)

    def greylist(self) -> None:
        """Measure filter-greylist by store and number of triplets, and beside postgrey."""
        from tests.bench import greylist

        progress("greylist")
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            sizes = greylist.QUICK if self.sizes is QUICK else greylist.Sizes()
            figures, targets = greylist.measure(sizes, Path(folder))
        for name, values in figures.items():
            self.report.figures[f"greylist, {name}"] = values
        for name, value, sense, limit in targets:
            self.target(f"greylist: {name}", value, sense, limit)

    def limits(self) -> None:
        """Measure filter-limit by store, beside the same chain without it."""
        from tests.bench import limits

        progress("limits")
        count, rounds = (300, 1) if self.sizes is QUICK else (limits.SESSIONS, limits.ROUNDS)
        with tempfile.TemporaryDirectory() as folder:
            figures, share = limits.measure(count, rounds, Path(folder))
        for name, values in figures.items():
            self.report.figures[f"limits, {name}"] = values
        self.target("limits: sessions/s, sqlite : memory", share, ">=", 0.4)

    def tables(self) -> None:
        """Measure look-ups in remote tables, and what loading a list holds up."""
        from tests.bench import tables

        progress("tables")
        sizes = tables.QUICK if self.sizes is QUICK else tables.Sizes()
        for figure in tables.measure(sizes):
            self.target(f"tables: {figure.name}", figure.value, figure.sense, figure.limit)

    def signatures(self) -> None:
        """Measure verification beside dkimpy, signing beside Debian's filter-dkimsign (C)."""
        from tests.bench import authentication, signatures

        sizes = self.sizes
        judged, verified = [], []
        for number in range(sizes.rounds):
            progress(f"signatures: round {number + 1} of {sizes.rounds}")
            judged.append(authentication.measure_messages(sizes.verified))
            verified.append(signatures.measure_verification(2 << 10, sizes.verified))
        for title, found in (("SPF, DKIM, DMARC, 2 KB", judged), ("DKIM, 2 KB", verified)):
            for name, median in medians(found).items():
                self.report.figures[f"{title}, {name}"] = median
        rate = medians(judged)["filter-auth"]["messages/s"]
        self.target("SPF, DKIM, DMARC, 2 KB: messages/s", rate, ">=", 1500)
        times = compare(verified, "ours", "dkimpy", "messages/s")
        self.target("DKIM, 2 KB: messages/s, ours : dkimpy", times, ">=", 5)
        cold = authentication.measure_cold(sizes.cold)
        self.report.figures["SPF, DKIM, DMARC, cold, 30 ms for each answer"] = cold
        chain = cold["ms"] / cold["longest chain ms"]
        self.target("SPF, DKIM, DMARC, cold: ms, ours : longest chain of look-ups", chain, "<=", 2)
        with tempfile.TemporaryDirectory() as folder:
            key = signatures.write_key(Path(folder), 4096)
            rounds = [
                signatures.measure_workers(key, sizes.signed // 3) for _ in range(sizes.rounds)
            ]
            for name, median in medians(rounds).items():
                self.report.figures[f"sign 2 KB, RSA-4096, {name}"] = median
            value = compare(rounds, "two workers", "one worker", "limit, sessions/s")
            self.target("sign 2 KB, RSA-4096: limit, two workers : one", value, ">=", 1.6)
            key = signatures.write_key(Path(folder))
            for title, lines in (("2 KB", 33), ("100 KB", 1640)):
                count = sizes.signed if lines == 33 else sizes.signed // 5
                rounds = [
                    signatures.measure_signing(key, lines, count) for _ in range(sizes.rounds)
                ]
                for name, median in medians(rounds).items():
                    self.report.figures[f"sign {title}, {name}"] = median
                if "C" not in rounds[0]:
                    self.report.left_out.append("signatures: no filter-dkimsign of Debian's")
                    return
                value = compare(rounds, "ours", "C", "sessions/s")
                self.target(f"sign {title}: sessions/s, ours : C", value, ">=", 1)

    def content(self) -> None:
        """Measure filter-content beside the standard library's parser and Postfix's checks."""
        from tests.bench import content

        rounds = []
        for number in range(self.sizes.rounds):
            progress(f"content: round {number + 1} of {self.sizes.rounds}")
            rounds.append(content.measure(self.sizes.content, self.sizes.contents))
        for name, median in medians(rounds).items():
            self.report.figures[f"content, {name}"] = median
        beside = compare(rounds, "ours alone", "email", "ms/MB")
        self.target("content: ms/MB, ours alone : email", beside, "<=", 1)
        if "Postfix's checks" not in rounds[0]:
            self.report.left_out.append("content: no package of Postfix's")

    def _beside(
        self,
        title: str,
        rounds: list[dict[str, dict[str, float]]],
        targets: dict[str, tuple[str, float]],
    ) -> None:
        """Report on a filter of ours and Debian's of the same name."""
        for name, median in medians(rounds).items():
            median[": Debian's"] = compare(rounds, name, "filter-rspamd", next(iter(median)))
            self.report.figures[f"{title}, {name}"] = median
        for key, (sense, limit) in targets.items():
            value = compare(rounds, "ours", "filter-rspamd", key)
            self.target(f"{title}: {key}, ours : Debian's", value, sense, limit)


def session_figures(run: Sessions) -> dict[str, float]:
    """The figures of a run of sessions, by the names they are printed with."""
    return {
        "sessions/s": run.rate,
        "CPU µs/session": run.cost,
        "p50 µs": run.latency(0.5),
        "p99 µs": run.latency(0.99),
    }


def line_figures(run: Lines) -> dict[str, float]:
    """The figures of a run of data-lines, by the names they are printed with."""
    return {"lines/s": run.rate, "CPU ns/line": run.cost}


def progress(text: str) -> None:
    """Show the current step, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def number(value: float) -> str:
    """Format a figure with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(report: Report) -> None:
    """Print the figures, then the targets with a mark for each."""
    for name, figures in report.figures.items():
        columns = "".join(f"{number(value):>12} {key:<15}" for key, value in figures.items())
        print(f"{name:<32}{columns.rstrip()}")
    print()
    for target in report.targets:
        mark = "pass" if target.met else "MISSED"
        print(
            f"{target.name:<38}{number(target.value):>8}  "
            f"target {target.sense} {number(target.limit):<6}{mark}"
        )
    for reason in report.left_out:
        print(f"left out: {reason}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small sizes: a look, not a result")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a target is missed")
    parser.add_argument("--json", action="store_true", help="print figures and targets as JSON")
    parser.add_argument(
        "--only",
        choices=PARTS,
        action="append",
        help="this part alone (may be repeated)",
    )
    for name, default, role in (
        ("lines", our("add_header"), "adds a field and passes the body"),
        ("sessions", our("seven_phases"), "decides in seven phases and adds a field"),
        ("ready", our("seven_phases"), "is started for its start-up time and memory"),
    ):
        parser.add_argument(
            f"--{name}-filter",
            type=str.split,
            default=default,
            metavar="COMMAND",
            help=f"the filter that {role} (default: tests/bench/filters.py's)",
        )
    return parser.parse_args()


def main() -> int:
    """Run the benchmark; the exit status is for --check."""
    options = arguments()
    # As pip does when it installs a package; a start would otherwise compile all of it.
    for folder in ("smtpd_filters", "tests/bench"):
        compileall.compile_dir(ROOT / folder, quiet=1)
    bench = Bench(options)
    try:
        for part in options.only or PARTS:
            getattr(bench, part)()
    except MisbehaviourError as error:
        progress("")
        print(f"a filter misbehaved: {error}", file=sys.stderr)
        return 1
    progress("")
    report = bench.report
    if options.json:
        targets = [{**asdict(target), "met": target.met} for target in report.targets]
        print(json.dumps({**asdict(report), "targets": targets}, indent=2))
    else:
        show(report)
    missed = not all(target.met for target in report.targets)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
