"""The journal: its cost to a chain under a real smtpd, its own cost, and the time of queries."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from smtpd_filters.journal.archive import Archive
from smtpd_filters.journal.outbox import Outbox
from smtpd_filters.journal.privacy import Privacy
from smtpd_filters.journal.query import Journal
from smtpd_filters.journal.records import Search
from smtpd_filters.journal.sender import Sender
from smtpd_filters.journal.wire import encode
from smtpd_filters.runtime.log import Log
from smtpd_filters.testing.dns import host, merge
from smtpd_filters.testing.server import DOMAIN, Smtpd, file_path, filter_command
from tests.bench import real
from tests.bench.filters import SOCKET
from tests.journal.made import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Six filters that do nothing in each of seven phases, and six that an operator may have.
WITHOUT, WITH = "six in one process", "six with a journal"
REAL_WITHOUT, REAL_WITH = "six of the suite", "six of the suite with a journal"
_CHAIN = f"""\
[chain.all]
filters = ["fcrdns", "dnsbl", "helo", "sender", "rcpt", "auth"]

[filter.fcrdns]
verify = true

[filter.dnsbl]
client = ["bl.example"]

[filter.rcpt]
domains = "{DOMAIN}"
"""
_FILE = "chain.toml"
#: Verdicts of a message, and the rate at which they come, in one second.
VERDICTS, RATE = 6, 2000
DAYS = 30
#: Seconds of load before a turn is measured: longer than the journal holds stories, and as long as
#: it takes to write those of the turn before.
LEAD = 2.0
#: Seconds that are measured, and messages between two looks at the clock.
TURN, LOAD = 2.0, 200
CPU, ALL = "CPU ms/message", "CPU ms/message with the journal's"
NOON = 1796040000.0
TICKS = 100.0
_FILTERS = ("fcrdns", "dnsbl", "helo", "sender", "rcpt", "rspamd")


class Process:
    """A journal's process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "socket"
        self.days = folder / "days"
        code = "import sys; from smtpd_filters.cli import main; sys.exit(main())"
        flags = ["--directory", str(self.days), "--socket", str(self.path), "--free", "1M"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, "journal", *flags], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        assert "ready" in self._process.stderr.readline()
        self.path.chmod(0o666)  # for the user of a server's root

    def cpu(self) -> float:
        """Return the seconds of processor time that it has taken."""
        return cpu(self._process.pid)

    def end(self) -> int:
        """End it; return the number of stories that it has stored."""
        self._process.terminate()
        self._process.communicate(timeout=120)
        return sum(Journal(str(self.days)).overview(0, time.time()).outcomes.values())


def cpu(pid: int) -> float:
    """Return the seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def running() -> Iterator[Process]:
    """Run a journal in a directory of its own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        process = Process(Path(folder))
        try:
            yield process
        finally:
            process.end()


def nothing() -> dict[str, dict[str, str]]:
    """The filters of a server with six that do nothing, and of one with a journal."""
    return {WITHOUT: {"six": real.our("six")}, WITH: {"six": real.our("six_told")}}


def suite() -> dict[str, dict[str, str]]:
    """The same with six of the suite."""
    words = ["chain", "--config", file_path(_FILE)]
    return {
        REAL_WITHOUT: {"six": filter_command(*words)},
        REAL_WITH: {"six": filter_command(*words, "--journal", SOCKET)},
    }


def measure_chain(
    line_up: dict[str, dict[str, str]], pairs: int
) -> tuple[list[dict[str, dict[str, float]]], dict[str, float]]:
    """Load a server with a chain of six, and one whose chain has a journal, in turns.

    Return the figures of each pair of turns, and the p99 of all messages in milliseconds. `CPU` is
    the processor time of the server and its filter, `ALL` that with the journal's, in milliseconds
    a message. The journal writes a story a second or two after it has ended, so each turn begins
    with `LEAD` seconds that don't count: then the journal does its work for the server that causes
    it. What else the machine does meets both servers of a pair; rates still depend on it, processor
    times hardly.
    """
    zone = merge(
        host("mail.sender.example", real.CLIENT),
        {"sender.example": {"MX": ["10 mail.sender.example"]}},
    )
    found = []
    with running() as journal:
        servers: dict[str, Smtpd] = {}
        try:
            for name, filters in line_up.items():
                servers[name] = Smtpd(
                    filters=filters,
                    zone=zone,
                    files={_FILE: _CHAIN},
                    declarations=real.MANY,
                    arguments=["-B", "queue=ram"],
                    binds={SOCKET.rpartition("/")[0]: journal.path.parent},
                )
                servers[name].__enter__()  # left below
                servers[name].lab.run("/usr/sbin/smtpctl", "pause", "mda")
                real.load(servers[name], real.CONNECTIONS)
            times: dict[str, list[float]] = {name: [] for name in servers}
            for number in range(pairs):
                figures = {}
                # The order is ABBA, BAAB.
                for name in sorted(servers, reverse=number % 4 in {1, 2}):
                    server = servers[name]
                    _load(server, LEAD)
                    own, its = _of_all(server), journal.cpu()
                    took: list[float] = []
                    figures[name] = {"messages/s": _load(server, TURN, took)}
                    own, its = _of_all(server) - own, journal.cpu() - its
                    figures[name][CPU] = own / len(took) * 1000
                    figures[name][ALL] = (own + its) / len(took) * 1000
                    times[name] += took
                found.append(figures)
        finally:
            for server in servers.values():
                server.__exit__(None, None, None)
    return found, {name: quantiles(of, n=100)[98] * 1000 for name, of in times.items()}


def _load(server: Smtpd, seconds: float, times: list[float] | None = None) -> float:
    """Send messages for so many seconds; return messages per second."""
    start, number = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < seconds:
        real.load(server, LOAD, times)
        number += LOAD
    return number / taken


def _of_all(server: Smtpd) -> float:
    """Return the seconds of processor time that a server and its filters have taken."""
    return sum(cpu(process.pid) for process in server.lab.processes())


def story(number: int, chance: random.Random, at: float = NOON) -> bytes:
    """Return a datagram with the story of a message."""
    refused = chance.random() < 0.5
    rows: list[list[Any]] = [
        ["connect", 0, "fcrdns", 120, "helo", 30],
        ["mail-from", 20, "sender", 45],
        ["rcpt-to", 40, "rcpt", 25],
    ]
    client = f"192.{chance.randrange(8)}.{chance.randrange(256)}.{chance.randrange(256)}"
    if refused:
        reason = f"{client} is listed in zen.example (127.0.0.{chance.randrange(2, 12)})"
        rows.append(["dnsbl", "rcpt-to", "reject", 45, 9000, 1, 0, reason, "550 5.7.1 Listed"])
    else:
        rows.append(["rcpt-to", 45, "dnsbl", 9000])
    rows.append(["rspamd", "message", "points", 300, 80_000, 1, 0, "BAYES_HAM", "", "", -1500])
    head = {
        "v": 1, "k": "tx", "p": "filter-chain", "s": f"{number:016x}", "m": f"{number:08x}",
        "t": int(at * 1000), "d": 400, "e": "rollback" if refused else "commit",
        "c": [f"{client}:33174", f"mail{number % 5000}.example.net", "pass", "198.51.100.1:25"],
        "h": ["EHLO", f"mail{number % 5000}.example.net"], "z": 5000,
        "l": "TLSv1.3:TLS_AES_256_GCM_SHA384:256",
        "f": f"user{int(chance.paretovariate(0.5)) % 200_000}@domain{number % 3000}.example",
        "r": [[f"person{int(chance.paretovariate(0.7)) % 2000}@our.example", 2 if refused else 0]],
        "a": ["550 5.7.1 Listed"] if refused else [],
    }  # fmt: skip
    [data] = encode(head, rows)
    return data


def measure_service(seconds: float) -> dict[str, float]:
    """Send verdicts at `RATE`, then as many as are taken; return rates and processor time."""
    chance = random.Random(1)  # noqa: S311  # made up
    some = [story(number, chance, time.time()) for number in range(20_000)]
    with running() as journal:
        sender = Sender(str(journal.path), Log())
        outbox = Outbox(sender)  # as in a filter
        pause = VERDICTS / RATE
        before, start = journal.cpu(), time.perf_counter()
        sent = 0
        while (now := time.perf_counter() - start) < seconds:
            while sent * pause < now:
                outbox.add([some[sent % len(some)]])
                sent += 1
            if time.monotonic() >= outbox.due:
                outbox.flush()
            time.sleep(pause)
        outbox.flush()
        time.sleep(1.5)
        share = (journal.cpu() - before) / seconds
        lost = sender.dropped
        before, start = journal.cpu(), time.perf_counter()
        for number, data in enumerate(some):
            outbox.add([data])
            if number % 100 == 99:
                time.sleep(0.005)
        outbox.flush()
        burst = time.perf_counter() - start
        time.sleep(3)
        spent = journal.cpu() - before
        taken = len(some) - (sender.dropped - lost)
        sender.close()
    return {
        f"CPU share at {RATE} verdicts/s, %": share * 100,
        f"lost at {RATE} verdicts/s": lost,
        "CPU µs/verdict": spent / taken / VERDICTS * 1e6,
        "verdicts/s in a burst": taken * VERDICTS / burst,
    }


def measure_queries(stories: int) -> dict[str, float]:
    """Store so many stories in 30 days, and ask; return milliseconds of each query."""
    chance = random.Random(2)  # noqa: S311  # made up
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(
            folder, Privacy("plain"), days=DAYS + 2, size=1 << 40, floor=0, subjects=False,
            note=print,
        )  # fmt: skip
        start = time.process_time()
        number = 0
        for day in range(DAYS):
            for _ in range(stories // DAYS // 500 or 1):
                at = NOON + day * 86400 + chance.random() * 43_000
                batch = []
                for _ in range(min(500, stories // DAYS)):
                    number += 1
                    part = parse(story(number, chance, at))
                    batch.append({**part, "p": [part["p"]]})
                archive.write(batch, at)
        writing = (time.process_time() - start) / number / VERDICTS * 1e6
        archive.close()
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        journal = Journal(folder)
        until = NOON + DAYS * 86400
        rare = journal.search(Search(limit=1))[0]
        recipient = rare.recipients[0][0]
        queries: dict[str, Callable[[], object]] = {
            "by sender": lambda: journal.search(Search(text=rare.sender)),
            "by recipient": lambda: journal.search(Search(text=recipient)),
            "by client": lambda: journal.search(Search(text=rare.client)),
            "by session": lambda: journal.search(Search(text=rare.session)),
            "nobody": lambda: journal.search(Search(text="nobody@nowhere.example")),
            "part of an address": lambda: journal.search(Search(text="user12345")),
            "newest deferred": lambda: journal.search(Search(outcomes=frozenset({"deferred"}))),
            "30 days of overview": lambda: journal.overview(NOON, until),
            "30 days of senders": lambda: journal.rankings("senders", NOON, until),
        }
        figures = {"verdicts": float(number * VERDICTS), "MB": size / 1e6}
        figures["CPU µs/verdict, made and stored"] = writing
        for name, query in queries.items():
            times = []
            for _ in range(5):
                start = time.perf_counter()
                query()
                times.append(time.perf_counter() - start)
            figures[f"{name}, ms"] = sorted(times)[2] * 1000
        return figures
