"""A storm: clients that send mail, while the program of a supervised filter is made to fail."""

from __future__ import annotations

import os
import random
import shlex
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_filters.testing.dns import host, merge
from smtpd_filters.testing.rspamd.stub import CLEAN, Answer, Request, RspamdStub
from smtpd_filters.testing.server import CODE, file_path, filter_command, script_command
from tests.e2e.load import EVERY, PATIENCE, Load, Traffic, content, envelope
from tests.e2e.sending import ALICE, GOOD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smtpd_filters.testing.server import Lab, Smtpd
    from tests.e2e.load import Result

#: What happens to any process of a program, and what else to one of `SCRIPTS`.
STOPS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
MISBEHAVES = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
#: Ours: the script by itself, and what runs another program and misbehaves in its place.
SCRIPT, TAMPERING = f"{CODE}/tests/supervise/misbehaving.py", f"{CODE}/tests/supervise/tampering.py"
SCRIPTS = ("misbehaving.py", "tampering.py")
#: Where Debian's filters are, and where inside, on any server.
LIBEXEC, INSIDE = "/usr/libexec/opensmtpd", "/srv/debian"
#: The port of Rspamd.
PORT = 11333
#: What is refused: a client by its score, and messages by sender and field.
OUTCAST, REFUSED, MARK = "192.0.2.66", "refuse@good.example", b"X-Refuse: yes"
ZONE = merge(
    host("mail.good.example", GOOD, "127.0.0.1"),
    host("mail.outcast.example", OUTCAST),
    {"66.2.0.192.score.senderscore.com": {"A": "127.0.4.1"}},
)
#: Filters of each phase, in one process; the last one asks Rspamd.
CHAIN = f"""\
[chain.all]
filters = ["fcrdns", "helo", "mailfrom", "content", "rspamd"]

[filter.helo]
unknown = "off"

[filter.mailfrom]
domains = "guarded.example"
check-header = true

[filter.content]
header-checks = ["regexp:{file_path("checks")}"]

[filter.rspamd]
url = ["http://127.0.0.1:{PORT}"]
"""
FILES = {"chain.toml": CHAIN, "checks": "/^X-Refuse:/ REJECT refused\n"}
#: Ends a program that uses memory without end, well before the machine has none.
MEMORY = ("--memory-limit", "150M")


def _content(number: int) -> bytes:
    return content(number) if number % EVERY else MARK + b"\n" + content(number)


def _envelope(number: int) -> tuple[str, str]:
    return envelope(number) if number % EVERY else (f"FROM:<{REFUSED}>", f"TO:<{ALICE}>")


MARKED = Traffic(_content, _envelope, source=GOOD, refusal=550)
FROM_OUTCAST = Traffic(source=GOOD, outcast=OUTCAST)


class Stormy(NamedTuple):
    """A program for a storm: its command line, and a part of it that its processes have."""

    command: str
    marker: str
    #: Some of which it refuses.
    traffic: Traffic = MARKED


def _tampered(command: str, marker: str, traffic: Traffic = MARKED) -> Stormy:
    return Stormy(f"{script_command(TAMPERING)} {command}", marker, traffic)


#: The programs: ours, Debian's in Go, a script that returns lines at once or whole messages.
PROGRAMS = {
    "chain": _tampered(
        filter_command("chain", "--config", file_path("chain.toml")), "filter-chain"
    ),
    "rspamd": _tampered(
        f"{INSIDE}/filter-rspamd -url http://127.0.0.1:{PORT}", f"{INSIDE}/filter-rspamd"
    ),
    "senderscore": _tampered(
        f"{INSIDE}/filter-senderscore -blockBelow 50 -blockPhase mail-from",
        f"{INSIDE}/filter-senderscore",
        FROM_OUTCAST,
    ),
    "script": Stormy(script_command(SCRIPT, "--refuse"), "misbehaving"),
    "whole": Stormy(script_command(SCRIPT, "--refuse", "--whole"), "misbehaving"),
}


def supervised(program: Stormy, *flags: str) -> str:
    """Return the command line of filter-supervise for a program."""
    return filter_command("supervise", *MEMORY, *flags, *shlex.split(program.command))


def arguments(command: str) -> dict[str, Any]:
    """Return the arguments of a server with this filter, on which programs find what they use."""
    return {
        "filters": {"stormy": command},
        "binds": {INSIDE: Path(LIBEXEC)},
        "files": FILES,
        "zone": ZONE,
    }


@contextmanager
def rspamd(lab: Lab) -> Iterator[None]:
    """Run an Rspamd that refuses messages with `MARK`."""
    clean, refuse = Answer.of(CLEAN), Answer.of({**CLEAN, "action": "reject", "score": 20.0})

    def answer(request: Request) -> Answer:
        return refuse if MARK in request.body else clean

    stub = RspamdStub(answer, listen=f"127.0.0.1:{PORT}", keep=1)
    lab.call(stub.start)
    try:
        yield
    finally:
        stub.stop()


class Storm(Load):
    """The load of a program's traffic, while its processes, but not their supervisor, fail."""

    def __init__(self, server: Smtpd, program: Stormy, *, seed: int = 1) -> None:
        super().__init__(server, program.traffic)
        self.marker = program.marker
        self._chance = random.Random(seed)  # noqa: S311  # the same storm in every run
        #: When each program fails, by its process.
        self._lives: dict[int, float] = {}

    def blow(self, faults: int, *, clients: int = 20, pause: float = 1.0) -> Result:
        """Cause so many faults under the load of clients; a program lives `pause` s on average."""
        with self.clients(clients):
            self.strike(faults, pause)
            if self.server.alive():
                self.wait(accepted=1, denied=1)  # all is well again
        return self.result

    def reload(self, times: int, *, clients: int = 20) -> Result:
        """Have the programs replaced so often under the load of clients, each time completely."""
        supervisor = next(
            process
            for process in self.server.find("filter-supervise")
            if process.arguments[:2] != ["sh", "-c"]
        )
        with self.clients(clients):
            for _ in range(times):
                lines = len(self.server.log)
                os.kill(supervisor.pid, signal.SIGHUP)
                self.server.wait_for("supervise reload result=ok", since=lines)
        return self.result

    def strike(self, faults: int, pause: float, signals: Sequence[int] = ()) -> None:
        """Cause so many faults; a program lives `pause` s on average.

        With `signals` by these, otherwise in each of the ways in which the programs can fail.
        """
        known, until = -1, 0.0
        while self.result.faults < faults and self.server.alive():
            if self.result.faults > known:
                known, until = self.result.faults, time.monotonic() + 2 * pause + PATIENCE
            assert time.monotonic() < until, f"no program to fail for {PATIENCE:g} s: {self.result}"
            self._over.wait(0.05)
            self._fail(pause, signals)

    def _fail(self, pause: float, signals: Sequence[int]) -> None:
        """Make the programs fail whose time has come: some before they are ready."""
        now = time.monotonic()
        for process in self.server.find(self.marker):
            words = process.arguments
            if "filter-supervise" in " ".join(words) or words[:2] == ["sh", "-c"]:
                continue
            life = self._lives.setdefault(process.pid, now + self._chance.uniform(0, 2 * pause))
            if now < life:
                continue
            try:
                os.kill(process.pid, self._chance.choice(signals or _signals(words)))
            except ProcessLookupError:
                continue
            # One that survives it is hit again.
            self._lives[process.pid] = now + self._chance.uniform(0, 2 * pause)
            self.result.faults += 1


def _signals(words: Sequence[str]) -> Sequence[int]:
    """Return the signals at which a process with this command line fails."""
    return (*STOPS, *MISBEHAVES) if any(name in " ".join(words) for name in SCRIPTS) else STOPS
