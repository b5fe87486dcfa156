"""The evidence about a message, and the tasks that collect it.

Invariants
----------
*Ahead of need*: SPF is evaluated from HELO and MAIL FROM on, while the message arrives; keys and
policies are looked up side by side.
*One deadline*: results that are missing when a message's time is over are temperror.
*Nothing left*: the tasks of a session end with it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import time
from typing import TYPE_CHECKING, TypeVar

from smtpd_filters.authentication import dmarc, spf
from smtpd_filters.authentication.dkim.arc import NO_CHAIN
from smtpd_filters.authentication.dkim.driver import Verified, verify
from smtpd_filters.authentication.dkim.signatures import Signature
from smtpd_filters.authentication.inquiry import settle

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Iterable
    from typing import Any

    from smtpd_filters.lookups.dns import Resolver
    from smtpd_filters.message import Message

    from .authors import Authors

T = TypeVar("T")

TEMPERROR = "temperror"
LATE = "not done in time"


@dataclass(slots=True)
class Evidence:
    """The results for one message.

    `helo` and `mail` are those of SPF; with the null sender, `mail` is that of HELO, and `null` is
    set. `verdicts` are those of DMARC, one for each domain of an author.
    """

    authors: Authors
    helo: spf.Verdict | None = None
    mail: spf.Verdict | None = None
    null: bool = False
    verified: Verified = field(default_factory=lambda: Verified((), 0, NO_CHAIN))
    verdicts: tuple[dmarc.Verdict, ...] = ()

    def identifiers(self) -> list[dmarc.Identifier]:
        """Return what DMARC compares with the author's domain."""
        found = [
            dmarc.Identifier("dkim", each.domain, each.result) for each in self.verified.signatures
        ]
        if self.mail is not None:
            found.append(dmarc.Identifier("spf", self.mail.domain, self.mail.result))
        return found


class Envelope:
    """The evaluations of SPF for one session, as tasks."""

    __slots__ = ("_dns", "_receiver", "address", "helo", "mail", "sender")

    def __init__(self, dns: Resolver, address: str, receiver: str) -> None:
        self._dns = dns
        self._receiver = receiver
        self.address = address
        self.helo: tuple[str, asyncio.Task[spf.Verdict]] | None = None
        self.mail: asyncio.Task[spf.Verdict] | None = None
        self.sender = ""

    def greeted(self, identity: str) -> None:
        """Begin with the name in the client's greeting."""
        if self.helo is not None:
            if self.helo[0] == identity:
                return
            self.helo[1].cancel()
        self.helo = identity, self._begin(identity, "")

    def sent_from(self, identity: str, sender: str) -> None:
        """Begin with the sender of a message."""
        self.greeted(identity)
        if self.mail is not None:
            self.mail.cancel()
        self.sender = sender
        self.mail = self._begin(identity, sender) if sender else None

    def _begin(self, identity: str, sender: str) -> asyncio.Task[spf.Verdict]:
        engine = spf.check(self.address, identity, sender, now=time(), receiver=self._receiver)
        return asyncio.get_running_loop().create_task(
            settle(engine, self._dns), name="evaluate SPF"
        )

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Return the tasks."""
        helo = [] if self.helo is None else [self.helo[1]]
        return helo if self.mail is None else [*helo, self.mail]

    def cancel(self) -> None:
        """End the tasks; their results are not needed."""
        for task in self.tasks():
            task.cancel()

    def results(self, evidence: Evidence) -> None:
        """Add the verdicts; those that are missing are temperror."""
        if self.helo is None:
            return
        evidence.helo = _verdict(self.helo[1], self.helo[0])
        evidence.null = self.mail is None
        evidence.mail = (
            evidence.helo
            if self.mail is None
            else _verdict(self.mail, self.sender.rpartition("@")[2])
        )


def _verdict(task: asyncio.Task[spf.Verdict], domain: str) -> spf.Verdict:
    if task.done() and not task.cancelled():
        return task.result()
    return spf.Verdict(TEMPERROR, domain, problem=LATE)


async def collect(
    message: Message,
    authors: Authors,
    envelope: Envelope | spf.Verdict | None,
    dns: Resolver,
    seconds: float,
) -> Evidence:
    """Return the evidence for a message, within these seconds. Raises SpoolError.

    `envelope` is a verdict if SPF could not be evaluated, and None for a client without an address.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    evidence = Evidence(authors)
    verifying = loop.create_task(verify(message, dns, authors=authors.domains))
    discovering = _all(settle(dmarc.discover(each), dns) for each in authors.domains)
    own: list[asyncio.Task[Any]] = [verifying, *discovering]
    try:
        tasks = envelope.tasks() if isinstance(envelope, Envelope) else []
        await _wait([*own, *tasks], ends - loop.time())
        evidence.verified = _done(verifying, Verified((_late(),), 0, NO_CHAIN))
        if isinstance(envelope, Envelope):
            envelope.results(evidence)
        else:
            evidence.mail = envelope
        policies = [
            _done(task, dmarc.Policy(domain, failure=LATE))
            for task, domain in zip(discovering, authors.domains, strict=True)
        ]
        found = evidence.identifiers()
        aligning = _all(settle(dmarc.align(each, found), dns) for each in policies)
        own += aligning
        await _wait(aligning, ends - loop.time())
        evidence.verdicts = tuple(
            _done(task, dmarc.Verdict(TEMPERROR, policy, problem=LATE))
            for task, policy in zip(aligning, policies, strict=True)
        )
    finally:
        await _end(own)
    return evidence


def _late() -> Signature:
    return Signature(TEMPERROR, reason=LATE)


def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[asyncio.Task[T]]:
    loop = asyncio.get_running_loop()
    return [loop.create_task(each) for each in work]


def _done(task: asyncio.Task[T], otherwise: T) -> T:
    """Return the result of a task, or another if it is not done."""
    return task.result() if task.done() else otherwise


async def _wait(tasks: Collection[asyncio.Task[Any]], seconds: float) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=max(0.0, seconds))


async def _end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they have ended: one of them reads the message."""
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)
