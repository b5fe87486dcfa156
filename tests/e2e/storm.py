"""A storm: clients that send mail, while the program of a supervised filter is made to fail.

Each message has its own number and content. Afterwards every accepted message must have been
delivered once and byte-exact, and every other must have got a 4xx reply or a closed connection of a
client that was refused.
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd_filters.testing.server.layout import MAIL
from tests.e2e.sending import ALICE, SENDER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from smtpd_filters.testing.server import Connection, Reply, Smtpd

#: What happens to a program, by signals: those of `tests/supervise/misbehaving.py` besides.
ENDS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
STOPS = (*ENDS, signal.SIGSTOP)
MISBEHAVES = (*STOPS, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
_NUMBER = re.compile(rb"(?m)^X-Number: ([0-9]+)$")


@dataclass
class Result:
    """What came of a storm."""

    faults: int = 0
    accepted: list[int] = field(default_factory=list)
    refused: int = 0
    #: Replies that a client must not get, and connections that ended without one.
    wrong: list[str] = field(default_factory=list)
    #: Seconds that the slowest reply took, and to what it was one.
    slowest: float = 0.0
    slowest_to: str = ""


class Storm:
    """`marker` is in the command line of the programs that fail, but not of their supervisor."""

    def __init__(
        self, server: Smtpd, marker: str, signals: Sequence[int], *, seed: int = 1
    ) -> None:
        self.server, self.marker, self.signals = server, marker, signals
        self.result = Result()
        self._chance = random.Random(seed)  # noqa: S311  # the same storm in every run
        self._lock = threading.Lock()
        self._over = threading.Event()
        #: When each program fails, by its process.
        self._lives: dict[int, float] = {}
        self._numbers = iter(range(1, 1 << 30))

    def blow(self, faults: int, *, clients: int = 20, pause: float = 1.0) -> Result:
        """Cause so many faults under the load of clients; a program lives `pause` s on average."""
        with self.clients(clients):
            while self.result.faults < faults and self.server.alive():
                self.fail(pause)
                self._over.wait(0.05)
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

    @contextmanager
    def clients(self, count: int) -> Iterator[None]:
        """Have so many clients send mail."""
        with ThreadPoolExecutor(count) as pool:
            loads = [pool.submit(self._load, seed) for seed in range(count)]
            try:
                yield
            finally:
                self._over.set()
            for load in loads:
                load.result()

    def fail(self, pause: float) -> None:
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
                os.kill(process.pid, self._chance.choice(self.signals))
            except ProcessLookupError:
                continue
            # One that survives it is hit again.
            self._lives[process.pid] = now + self._chance.uniform(0, 2 * pause)
            self.result.faults += 1

    # -- clients ---------------------------------------------------------------------------

    def _load(self, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311  # as above
        while not self._over.is_set() and self.server.alive():
            with self.server.connection() as connection:
                refused = self.result.refused
                self._session(connection, chance)
            if self.result.refused > refused:
                self._over.wait(0.05)  # a client that is refused doesn't come back at once

    def _session(self, connection: Connection, chance: random.Random) -> None:
        """Send a few messages, or until something is refused."""
        if not self._expect(self._timed(connection.reply, "the connection"), 220):
            return
        for line in ("EHLO client.example", *[""] * chance.randrange(1, 4)):
            if line:
                if not self._expect(self._command(connection, line), 250):
                    return
            elif not self._message(connection, chance):
                return
        self._command(connection, "QUIT")

    def _message(self, connection: Connection, chance: random.Random) -> bool:
        with self._lock:
            number = next(self._numbers)
        for line, code in (
            (f"MAIL FROM:<{SENDER}>", 250),
            (f"RCPT TO:<{ALICE}>", 250),
            ("DATA", 354),
        ):
            if not self._expect(self._command(connection, line), code):
                return False
        connection.send(content(number).replace(b"\n", b"\r\n"))
        if chance.random() < 0.3:
            time.sleep(chance.random() / 10)
        if self._expect(self._command(connection, "."), 250):
            with self._lock:
                self.result.accepted.append(number)
            return True
        return False

    def _command(self, connection: Connection, line: str) -> Reply | None:
        return self._timed(lambda: connection.command(line), line)

    def _timed(self, ask: Callable[[], Reply | None], line: str) -> Reply | None:
        started = time.monotonic()
        reply = ask()
        took = time.monotonic() - started
        with self._lock:
            if took > self.result.slowest:
                self.result.slowest, self.result.slowest_to = took, line
        return reply

    def _expect(self, reply: Reply | None, code: int) -> bool:
        """Return whether it is this reply; count a temporary refusal, note any other reply."""
        if reply is not None and reply.code == code:
            return True
        with self._lock:
            if reply is not None and 400 <= reply.code < 500:
                self.result.refused += 1
            else:
                self.result.wrong.append(f"{reply} for {code}")
        return False

    # -- afterwards ------------------------------------------------------------------------

    def check(self, *, patience: float = 300) -> None:
        """Raise AssertionError if mail was lost, repeated or altered, or a client got no reply.

        Wait so many seconds at most until all is delivered.
        """
        assert self.server.alive()
        assert self.result.wrong == []
        accepted = self.result.accepted
        delivered: dict[int, bytes] = {}
        self.server.settle(timeout=patience)
        for path in self.server.path(f"{MAIL}/alice").glob("new/*"):
            mail = path.read_bytes()
            found = _NUMBER.search(mail)
            assert found, mail[:500]
            number = int(found[1])
            assert number not in delivered, f"message {number} was delivered twice"
            delivered[number] = mail
        assert sorted(delivered) == sorted(accepted)
        for number, mail_content in delivered.items():
            assert mail_content.endswith(content(number)), f"message {number} was altered"


def content(number: int) -> bytes:
    """Return message `number`: some are short, some long, some have long lines."""
    lines = [
        b"X-Number: %d" % number,
        b"From: someone@good.example",
        b"To: alice@local.example",
        b"Date: Mon, 30 Nov 2026 00:00:00 +0000",
        b"Message-ID: <%d@good.example>" % number,
        b"Subject: storm",
        b"",
    ]
    chance = random.Random(number)  # noqa: S311  # the content follows from the number
    count = chance.choice((1, 30, 30, 3000))
    lines += [b"%d " % number + b"x" * chance.randrange(900) for _ in range(count)]
    return b"\n".join([*lines, b""])
