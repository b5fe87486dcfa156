"""A server with filter-limit and a store whose clock a test moves."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from smtpd_filters.filters.limit import Limit
from smtpd_filters.filters.limit.notices import SharedNotices
from smtpd_filters.stores.memory import MemoryStore
from smtpd_filters.testing import Conversation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.stores import Store
    from smtpd_filters.testing import Client


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Server:
    """A conversation with filter-limit."""

    def __init__(self, smtpd: Conversation, clock: Clock) -> None:
        self.smtpd = smtpd
        self.clock = clock
        [self.filter] = smtpd.filters

    def advance(self, seconds: float) -> None:
        self.clock.now += seconds
        self.smtpd.advance(seconds)

    def client(self, address: str = "192.0.2.1", user: str = "", **how: Any) -> Client:
        """Connect a client that greets and authenticates."""
        client = self.smtpd.connect(address=address, **how)
        assert client.greeting.verb == "proceed", client.greeting
        assert client.ehlo("mail.example.com").verb == "proceed"
        if user:
            assert client.auth(user, "secret").verb == "proceed"
        return client

    def settle(self) -> None:
        """Wait for what no command waits for."""
        ledger = vars(self.filter).get("_opened")
        if ledger is not None and ledger._tasks:
            self.smtpd._served._loop.run_until_complete(asyncio.wait(set(ledger._tasks)))

    def send(
        self,
        client: Client,
        sender: str = "a@example.com",
        recipients: int = 1,
        size: int = 100,
    ) -> str:
        """Send a message; return the first refusal, or ""."""
        refused = client.mail_from(sender).reply
        for number in range(recipients):
            if not refused:
                refused = client.rcpt_to(f"r{number}@example.org").reply
        if refused:
            if not client.closed:
                client.rset()
            return refused
        return client.message(b"Subject: x\r\n\r\n" + b"x" * size + b"\r\n").reply

    @property
    def events(self) -> list[str]:
        """The lines of breaches."""
        return [
            line.partition(" limit ")[2]
            for line in self.smtpd.log
            if line.split()[2] in {"breach", "blocked"}
        ]


class Patient(Limit):
    """It waits for the process of its notices as long as a busy machine needs."""

    name = "limit"
    _notices = SharedNotices(patience=120.0)


@contextmanager
def serving(
    *flags: str,
    store: Store | None = None,
    clock: Clock | None = None,
    replaced: bool = True,
    kind: type[Limit] = Patient,
) -> Iterator[Server]:
    """Serve with these flags, and with a store in memory unless that of the flags is to be used."""
    clock = clock or Clock()
    words = ("--store", "memory:", *flags) if replaced else flags
    with Conversation(kind, *words) as smtpd:
        server = Server(smtpd, clock)
        if replaced:
            vars(server.filter)["store"] = store or MemoryStore(clock=clock)
        yield server


def limits(*rules: str) -> list[str]:
    return [word for rule in rules for word in ("--limit", rule)]
