"""The evidence about a message, and the tasks that collect it.

Invariants
----------
*Ahead of need*: SPF is evaluated from HELO and MAIL FROM on, while the message arrives; keys and
policies are looked up side by side.
*One deadline*: results that are missing when a message's time is over are temperror. What is known
by then counts: a policy, of which a slow look-up may not rob a message.
*Nothing left*: the tasks of a session end with it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from smtpd_filters.authentication import dmarc, spf
from smtpd_filters.authentication.dkim.arc import NO_CHAIN
from smtpd_filters.authentication.dkim.arithmetic import MissingError, arithmetic
from smtpd_filters.authentication.dkim.driver import Verified, verify
from smtpd_filters.authentication.dkim.signatures import LATE
from smtpd_filters.authentication.inquiry import at_once, settle
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.runtime.pace import pace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from smtpd_filters.authentication.inquiry import Engine, Known
    from smtpd_filters.lookups.dns import Resolver
    from smtpd_filters.message import Message

    from .authors import Authors

T = TypeVar("T")

TEMPERROR = "temperror"


def load() -> str:
    """Import what evaluates now: an upgrade may replace it while the filter runs.

    Return why signatures of Ed25519 can't be verified, or "". Raises ImportError.
    """
    spf.load()
    try:
        arithmetic().ed25519_verify(bytes(32))
    except MissingError as error:
        return str(error)
    except ValueError:  # not every library accepts this key
        pass
    return ""


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

    @property
    def failed(self) -> bool:
        """Whether all results that depend on look-ups of domains are unknown."""
        found: list[spf.Verdict | dmarc.Verdict] = [*self.verdicts]
        found += filter(None, (self.mail, self.helo))
        return bool(found) and all(each.result == TEMPERROR for each in found)

    def identifiers(self) -> list[dmarc.Identifier]:
        """Return what DMARC compares with the author's domain."""
        found = [
            dmarc.Identifier("dkim", each.domain, each.result) for each in self.verified.signatures
        ]
        if self.mail is not None:
            found.append(dmarc.Identifier("spf", self.mail.domain, self.mail.result))
        return found


#: The price of a step of an engine that pauses (`runtime.pace`): some milliseconds.
_STEP = 4000


async def _pause() -> None:
    await pace().admit(_STEP)


class Work(Generic[T]):
    """An engine at work: its result if the cache has all answers, or a task."""

    __slots__ = ("_result", "task")

    def __init__(self, engine: Engine[T], dns: Resolver) -> None:
        self.task: asyncio.Task[T] | None = None
        self._result: T | None
        self._result, questions = at_once(engine, dns)
        if questions is not None:
            loop = asyncio.get_running_loop()
            self.task = loop.create_task(settle(engine, dns, questions, _pause), name="look up")

    def result(self, otherwise: Callable[[], T]) -> T:
        """Return the result, or another if it is not there."""
        task = self.task
        if task is None:
            result: Any = self._result
            found: T = result
            return found
        return task.result() if task.done() and not task.cancelled() else otherwise()

    def cancel(self) -> None:
        """End the task; the result is not needed."""
        if self.task is not None:
            self.task.cancel()


class Envelope:
    """The evaluations of SPF for one session."""

    __slots__ = (
        "_asked", "_dns", "_explain", "_receiver", "address", "helo", "identity", "mail", "sender",
    )  # fmt: skip

    def __init__(
        self, dns: Resolver, address: str, receiver: str, *, explain: bool = False
    ) -> None:
        self._dns = dns
        self._explain = explain
        self._receiver = receiver
        self.address = address
        self.identity = ""
        self.helo: Work[spf.Verdict] | None = None
        self.sender = ""
        self.mail: Work[spf.Verdict] | None = None
        #: Whether smtpd has asked about the sender of the next message.
        self._asked = False

    def greeted(self, identity: str) -> None:
        """Begin with the name in the client's greeting."""
        if self.helo is not None:
            if self.identity == identity:
                return
            self.helo.cancel()
        self.identity = identity
        self.helo = self._begin("")

    def sent_from(self, identity: str, sender: str) -> None:
        """Begin with the sender of a message."""
        self._asked = True
        self.greeted(identity)
        if self.mail is not None:
            self.mail.cancel()
        self.sender = sender
        self.mail = self._begin(sender) if sender else None

    def received(self, identity: str, sender: str) -> None:
        """Note that a message of a sender has arrived.

        smtpd doesn't ask about its MAIL if a filter before this one marks or rewrites it.
        """
        if not self._asked:
            self.sent_from(identity, sender)
        self._asked = False

    def _begin(self, sender: str) -> Work[spf.Verdict]:
        engine = spf.check(
            self.address,
            self.identity,
            sender,
            now=time(),
            receiver=self._receiver,
            explain=self._explain,
            cached=self._dns.known,
        )
        return Work(engine, self._dns)

    @property
    def works(self) -> list[Work[spf.Verdict]]:
        """The evaluations."""
        return [each for each in (self.helo, self.mail) if each is not None]

    def cancel(self) -> None:
        """End the evaluations; their results are not needed."""
        for each in self.works:
            each.cancel()

    def results(self, evidence: Evidence) -> None:
        """Add the verdicts; those that are missing are temperror."""
        if self.helo is None:
            return
        evidence.helo = self.helo.result(_late_spf(self.identity))
        evidence.null = self.mail is None
        evidence.mail = evidence.helo
        if self.mail is not None:
            evidence.mail = self.mail.result(_late_spf(self.sender.rpartition("@")[2]))


def _late_spf(domain: str) -> Callable[[], spf.Verdict]:
    return lambda: spf.Verdict(TEMPERROR, domain, problem=LATE)


def _by_now(engine: Engine[T], dns: Resolver) -> Callable[[], T]:
    """Return a function that returns an engine's result by the answers that are there."""

    def result() -> T:
        known: Known = dns.known
        try:
            questions = next(engine)
            while True:
                questions = engine.send(
                    [known(*question) or Unavailable(LATE) for question in questions]
                )
        except StopIteration as end:
            found: T = end.value
            return found

    return result


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
    verifying = loop.create_task(verify(message, dns, authors=authors.domains, seconds=seconds))
    discovering = [Work(dmarc.discover(each), dns) for each in authors.domains]
    aligning: list[Work[dmarc.Verdict]] = []
    try:
        works = envelope.works if isinstance(envelope, Envelope) else []
        await _wait([*_tasks(works), *_tasks(discovering)], ends - loop.time())
        evidence.verified = await verifying
        if isinstance(envelope, Envelope):
            envelope.results(evidence)
        else:
            evidence.mail = envelope
        policies = [
            each.result(_by_now(dmarc.discover(domain), dns))
            for each, domain in zip(discovering, authors.domains, strict=True)
        ]
        found = evidence.identifiers()
        aligning = [Work(dmarc.align(each, found), dns) for each in policies]
        await _wait(_tasks(aligning), ends - loop.time())
        evidence.verdicts = tuple(
            each.result(_by_now(dmarc.align(policy, found), dns))
            for each, policy in zip(aligning, policies, strict=True)
        )
    finally:
        await _end([verifying, *_tasks(discovering), *_tasks(aligning)])
    return evidence


def _tasks(works: Iterable[Work[Any]]) -> list[asyncio.Task[Any]]:
    return [each.task for each in works if each.task is not None]


async def _wait(tasks: Collection[asyncio.Task[Any]], seconds: float) -> None:
    pending = [task for task in tasks if not task.done()]
    if pending:
        await asyncio.wait(pending, timeout=max(0.0, seconds))


async def _end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they have ended: one of them reads the message."""
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)
