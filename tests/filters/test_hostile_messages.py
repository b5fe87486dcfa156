"""Hostile messages in filters that read headers: the memory and the time of the loop they cost.

A message may cost eight times its size of memory and 50 ms of the loop at a time; a message that is
edited may grow, and then that is its size. Headers have as many fields or lines as are read, and
bodies as many lines as possible for their size.
"""

from __future__ import annotations

import asyncio
import inspect
import tracemalloc
from contextlib import ExitStack, contextmanager
from time import thread_time
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.filters.auth import Auth
from smtpd_filters.filters.clamav import Clamav
from smtpd_filters.filters.content import Content
from smtpd_filters.filters.dkimsign import Dkimsign
from smtpd_filters.filters.mailfrom import Mailfrom
from smtpd_filters.filters.milter import Milter
from smtpd_filters.filters.rewrite import Rewriter
from smtpd_filters.filters.rspamd import Rspamd
from smtpd_filters.filters.spamd import Spamd
from smtpd_filters.testing import Conversation, DNSServer
from tests.authentication.signing import message as message_of
from tests.effort import some
from tests.filters.auth.mail import MESSAGE, PASSES, signed_by, zone
from tests.filters.scripted_peers import peer
from tests.filters.test_dkimsign import pem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from smtpd_filters.filter import Filter
    from smtpd_filters.message import Message
    from smtpd_filters.session import Session

#: Times the size of a message that it may cost, and seconds of the loop at a time.
TIMES, SECONDS = 8, 0.05
#: Messages that may take longer before one doesn't.
ROUNDS = 5
#: Bytes that any message may cost besides: a body is read and hashed that many at a time.
BLOCK = 1 << 16
#: Lines of the largest header that is read: `spool.HEADER` with `spool.LINE_COST` for each.
LINES = 14_000


def many(line: bytes, count: int = LINES) -> bytes:
    """Return a message with a line repeated in its header."""
    return MESSAGE.replace(b"To:", line * count + b"To:", 1)


def body(lines: bytes) -> bytes:
    """Return a signed message with another body."""
    return signed_by("example.org", MESSAGE + lines)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty fields": lambda: many(b"A:\r\n"),
    "tiny fields": lambda: many(b"a:b\r\n"),
    "blanks before colons": lambda: many(b"A :\r\n"),
    "names": lambda: many(b"").replace(
        b"To:", b"".join(b"X%d:\r\n" % number for number in range(LINES)) + b"To:"
    ),
    "more fields than are read": lambda: many(b"a:b\r\n", 100_000),
    "folds of a field": lambda: many(b"").replace(b"To:", b"X: a\r\n" + b" x\r\n" * LINES + b"To:"),
    "folds of no field": lambda: b" x\r\n" * LINES + MESSAGE,
    "folds of From": lambda: many(b"").replace(b"To:", b" x\r\n" * LINES + b"To:"),
    "a long line": lambda: many(b"X: " + b"x" * 60_000 + b"\r\n", 1),
    "a long field": lambda: many(b"X: a" + b"\r\n\t" + b"y " * 450, 1_000),
    "lines without names": lambda: many(b"x\r\n"),
    "From": lambda: many(b"From:\r\n"),
    "From with addresses": lambda: many(b"From: a@b.c\r\n", 13_000),
    "From in disguise": lambda: many(b"Fr\0om: a\r\n", 13_000),
    "From behind CR": lambda: many(b"A: \rFrom:a\r\n", 13_000),
    "To": lambda: many(b"To:\r\n"),
    "To without a domain": lambda: many(b"To:a\r\n"),
    "names in To": lambda: many(b"To: " + b"a," * 20_000 + b"\r\n", 1),
    "Authentication-Results": lambda: many(b"Authentication-Results:\r\n", 11_000),
    "our own results": lambda: many(b"Authentication-Results: mx.example.org\r\n", 10_000),
    "results of others": lambda: many(b"Authentication-Results: mx.example.net; x=y\r\n", 9_000),
    "results in disguise": lambda: many(b"Authentication-Results\0:\r\n", 11_000),
    "DKIM-Signature": lambda: many(b"DKIM-Signature:\r\n", 12_000),
    "signatures": lambda: signed_by("example.org")[: -len(MESSAGE)] * 600 + MESSAGE,
    "a signed header of CR": lambda: signed_by("example.org", many(b"\r" * 900 + b"\n", 280)),
    "ARC-Seal": lambda: many(b"ARC-Seal:\r\n", 13_000),
    "Received": lambda: many(b"Received:\r\n", 13_000),
    "Subject": lambda: many(b"Subject:\r\n", 13_000),
    "empty lines": lambda: body(b"\r\n" * 300_000),
    "lines of a byte": lambda: body(b"x\r\n" * 200_000),
    "lines of two bytes": lambda: body(b"xy\r\n" * 200_000),
    "lines of dots": lambda: body(b"..\r\n" * 200_000),
}
FILTERS: dict[type[Filter], tuple[str, ...]] = {
    Auth: ("--dmarc", "honour", "--scrub-spam"),
    Dkimsign: ("-d", "example.org", "-s", "sel", "-c", "relaxed/relaxed"),
    Mailfrom: ("--domains", "example.com", "--check-header"),
    Content: ("--dangerous", "reject", "--private"),
    Clamav: ("--action", "junk", "--clamd"),
    Milter: ("--milter",),
    Rewriter: ("--canonical", "{ a@b.c = d@example.net }", "--for", "all"),
    Rspamd: ("-url",),
    Spamd: ("--tag", "[SPAM]", "--spamd"),
}
#: Filters whose last flag takes the address of a scripted peer.
ASKING = (Clamav, Milter, Rspamd, Spamd)


class Handler:
    """A filter whose handler of messages is called in its loop, for the client of a session."""

    def __init__(self, smtpd: Conversation) -> None:
        client = smtpd.connect(address=PASSES)
        client.ehlo("mail.example.com")
        client.mail_from("ann@example.org")
        client.rcpt_to("bob@example.net")
        self._filter = smtpd.filters[0]
        self._session: Session = smtpd._served.engine.session(client._session)
        self._loop = smtpd._served._loop

    def handle(self, message: Message) -> int:
        """Judge a message, and read what is sent back; return its bytes."""
        self._loop.run_until_complete(self._judge(message))
        message.release()
        size = 0
        while not message.drained:
            size += sum(len(line) + 1 for line in message.drain())
        return size

    async def _judge(self, message: Message) -> None:
        handler: Any = getattr(self._filter, "message", None)
        if handler is not None:
            decision = handler(self._session, message)
        else:
            decision = self._filter.headers(self._session, message.headers)
        if inspect.isawaitable(decision):
            await decision


@pytest.fixture(scope="module", params=FILTERS, ids=lambda kind: kind.name)
def handler(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Handler]:
    flags = FILTERS[request.param]
    if request.param is Dkimsign:
        key: Path = tmp_path_factory.mktemp("key") / "rsa.key"
        key.write_bytes(pem())
        key.chmod(0o600)
        flags = (*flags, "-k", str(key))
    with ExitStack() as stack:
        if request.param in ASKING:
            flags = (*flags, stack.enter_context(peer(request.param.name)))
        server = stack.enter_context(DNSServer(zone()))
        address = (server.address, server.port)
        smtpd = stack.enter_context(Conversation(request.param, *flags, nameserver=address))
        found = Handler(smtpd)
        made = message_of(MESSAGE)
        found.handle(made)  # loads modules, and what they cache
        made.discard()
        yield found


@contextmanager
def longest_step() -> Iterator[list[float]]:
    """Measure the processor time of each callback of event loops."""
    times = [0.0]
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        begun = thread_time()
        run(handle)
        times.append(thread_time() - begun)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed)
        yield times


@pytest.mark.parametrize("case", some(HOSTILE))
def test_a_hostile_message_costs_little(handler: Handler, case: str) -> None:
    raw = HOSTILE[case]()
    steps: list[float] = []
    # Other processes slow a step down, so some steps may take longer.
    while len(steps) < ROUNDS and min(steps, default=SECONDS) >= SECONDS:
        made = message_of(raw)
        with longest_step() as times:
            handler.handle(made)
        made.discard()
        steps.append(max(times))
    made = message_of(raw)
    tracemalloc.start()
    try:
        edited = handler.handle(made)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = made.stored
    peak += size  # as it came
    made.discard()
    assert peak < TIMES * max(size, edited) + BLOCK
    assert min(steps) < SECONDS
