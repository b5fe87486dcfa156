"""A steady load of numbered messages on a server, and the count of what became of each.

Each message has its own number and content. Afterwards every accepted message must have been
delivered once and unchanged, and every other must have got a 4xx reply, or the refusal that its
traffic expects.
"""

from __future__ import annotations

import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd_filters.supervise.fleet import START
from smtpd_filters.testing.server.layout import MAIL
from tests.e2e.sending import ALICE, SENDER, stuffed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from smtpd_filters.testing.server import Connection, Reply, Smtpd

#: Seconds in which the load must get on. A program that is stopped while it starts is replaced
#: after `START`.
PATIENCE = START + 60.0
_NUMBER = re.compile(rb"(?m)^X-Number: ([0-9]+)$")


def content(number: int) -> bytes:
    """Return message `number`, with LF: some are short, some long, some have long lines."""
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


def envelope(_number: int) -> tuple[str, str]:
    """Return the arguments of MAIL and RCPT for any message."""
    return f"FROM:<{SENDER}>", f"TO:<{ALICE}>"


@dataclass(frozen=True)
class Traffic:
    """What clients send, by the number of the message, and what must become of it.

    content   the message, with LF and a field X-Number; `\\n\\n` ends its header
    envelope  the arguments of MAIL and RCPT; all mail is for ALICE
    source    the clients' address
    refusal   the code with which every `EVERY`th message is to be refused; 0: none is
    outcast   the address of clients all of whose messages are refused with 550; "": there are none
    appended  a regular expression of the fields that may stand below a delivered header
    scanned   a regular expression found in the header of each delivered message
    """

    content: Callable[[int], bytes] = content
    envelope: Callable[[int], tuple[str, str]] = envelope
    source: str = "127.0.0.1"
    refusal: int = 0
    outcast: str = ""
    appended: bytes = b""
    scanned: bytes = b""

    def refused(self, number: int) -> bool:
        """Return whether a message is one that must not be accepted."""
        return bool(self.refusal) and number % EVERY == 0


#: One message in so many is to be refused, if the traffic has any such messages.
EVERY = 3


@dataclass
class Result:
    """What came of a load."""

    faults: int = 0
    accepted: list[int] = field(default_factory=list)
    #: Temporary failures.
    refused: int = 0
    #: Refusals that the traffic expects.
    denied: int = 0
    #: Replies that a client must not get, and connections that ended without one.
    wrong: list[str] = field(default_factory=list)
    #: Seconds that the slowest reply took, and to what it was one.
    slowest: float = 0.0
    slowest_to: str = ""


class Load:
    """Clients that send messages, one after the other, as long as their context lasts."""

    def __init__(self, server: Smtpd, traffic: Traffic | None = None) -> None:
        self.server = server
        self.traffic = traffic or Traffic()
        self.result = Result()
        self._news = threading.Condition()
        self._over = threading.Event()
        self._numbers = iter(range(1, 1 << 30))

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

    def wait(self, *, accepted: int = 0, refused: int = 0, denied: int = 0) -> None:
        """Wait until so many more messages have been accepted, refused for now, and denied."""
        result = self.result

        def counts() -> tuple[int, int, int]:
            return len(result.accepted), result.refused, result.denied

        with self._news:
            pairs = zip(counts(), (accepted, refused, denied), strict=True)
            wanted = [now + more for now, more in pairs]
            came = self._news.wait_for(
                lambda: result.wrong or all(a >= b for a, b in zip(counts(), wanted, strict=True)),
                PATIENCE,
            )
        assert not result.wrong, result.wrong
        assert came, f"not so many in {PATIENCE:g} s: {result}"

    # -- clients ---------------------------------------------------------------------------

    def _load(self, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311  # the same load in every run
        while not self._over.is_set() and self.server.alive():
            outcast = bool(self.traffic.outcast) and chance.random() < 1 / EVERY
            source = self.traffic.outcast if outcast else self.traffic.source
            with self.server.connection(source) as connection:
                refused = self.result.refused
                self._session(connection, chance, outcast=outcast)
            if self.result.refused > refused:
                self._over.wait(0.05)  # a client that is refused doesn't come back at once

    def _session(self, connection: Connection, chance: random.Random, *, outcast: bool) -> None:
        """Send a few messages, or until something is refused."""
        if not self._expect(self._timed(connection.reply, "the connection"), 220):
            return
        if not self._expect(self._command(connection, "EHLO client.example"), 250):
            return
        for _ in range(chance.randrange(1, 4)):
            if not self._message(connection, chance, outcast=outcast):
                return
        self._command(connection, "QUIT")

    def _message(self, connection: Connection, chance: random.Random, *, outcast: bool) -> bool:
        with self._news:
            number = next(self._numbers)
        sender, recipient = self.traffic.envelope(number)
        denial = 550 if outcast else self.traffic.refusal if self.traffic.refused(number) else 0
        for line, code in ((f"MAIL {sender}", 250), (f"RCPT {recipient}", 250), ("DATA", 354)):
            if not self._expect(self._command(connection, line), code, denial):
                return False
        connection.send(stuffed(self.traffic.content(number).replace(b"\n", b"\r\n")))
        if chance.random() < 0.3:
            time.sleep(chance.random() / 10)
        reply = self._command(connection, ".")
        if denial:
            self._expect(reply, denial, denial)
            return False
        if self._expect(reply, 250):
            with self._news:
                self.result.accepted.append(number)
                self._news.notify_all()
            return True
        return False

    def _command(self, connection: Connection, line: str) -> Reply | None:
        return self._timed(lambda: connection.command(line), line)

    def _timed(self, ask: Callable[[], Reply | None], line: str) -> Reply | None:
        started = time.monotonic()
        reply = ask()
        took = time.monotonic() - started
        with self._news:
            if took > self.result.slowest:
                self.result.slowest, self.result.slowest_to = took, line
        return reply

    def _expect(self, reply: Reply | None, code: int, denial: int = 0) -> bool:
        """Return whether it is this reply, and not the denial; count or note any other reply."""
        if reply is not None and reply.code == code != denial:
            return True
        with self._news:
            if reply is not None and reply.code == denial:
                self.result.denied += 1
            elif reply is not None and 400 <= reply.code < 500:
                self.result.refused += 1
            else:
                self.result.wrong.append(f"{reply} for {code}")
            self._news.notify_all()
        return False

    # -- afterwards ------------------------------------------------------------------------

    def check(self, *, patience: float = 300) -> None:
        """Raise AssertionError if mail was lost, repeated or altered, or a client got no reply.

        Wait so many seconds at most until all is delivered.
        """
        assert self.server.alive()
        assert not self.result.wrong, self.result.wrong
        delivered = set()
        self.server.settle(timeout=patience)
        box = self.server.path(f"{MAIL}/alice")
        for path in (*box.glob("new/*"), *box.glob(".Junk/new/*")):
            mail = path.read_bytes()
            found = _NUMBER.search(mail)
            assert found, mail[:500]
            number = int(found[1])
            assert number not in delivered, f"message {number} was delivered twice"
            delivered.add(number)
            self._check_content(number, mail)
        assert sorted(delivered) == sorted(self.result.accepted)

    def _check_content(self, number: int, mail: bytes) -> None:
        head, _, body = self.traffic.content(number).partition(b"\n\n")
        top, _, rest = mail.partition(b"\n\n")
        before, found, after = top.partition(head)
        unchanged = found and rest == body and re.fullmatch(self.traffic.appended, after)
        assert unchanged, f"message {number} was altered: {mail[:1000]!r}"
        fields = before + after
        assert re.search(self.traffic.scanned, fields), f"message {number} is unscanned: {fields!r}"
