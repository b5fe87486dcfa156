"""The requests of filter-limit to its store: the claims of a command, blocks, and leases.

Invariants
----------
*One round trip*: the claims of a command are one request for each subject, and those of several
subjects are made together: as one, unless the store is a cluster.
*Nothing for a refusal*: a command that is refused puts back the tokens and leases it has taken, and
is no part of the networks of a user, or of the past with which a rise is compared, whichever limit
refuses it.
*Blocks are read*: a blocked subject is refused, also if the store takes no writes.
*Leases expire*: a connection is a member of a group that expires after `LEASE` seconds unless it is
renewed, so a process that is killed holds none for longer.
*Bounded*: at most `background` requests are made for which no command waits.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import lru_cache
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_filters.errors import UnavailableError
from smtpd_filters.stores import Add, Count, Get, Join, Leave, Take
from smtpd_filters.stores.operations import MAX_MEMBERS
from smtpd_filters.stores.store import may_be_read

from .rules import NETWORKS, REFUSED, Rule
from .subjects import BLOCK, BREACH, PAST, key

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Coroutine, Iterable, Sequence

    from smtpd_filters.stores import Entry, Store
    from smtpd_filters.stores.operations import Operation

#: Seconds after which a connection that isn't renewed no longer counts, and between renewals.
LEASE = 180.0
RENEWAL = 60.0
#: Seconds for which a breach is not logged again.
BREACH_TTL = 3600.0
#: A block lasts until it is released: ten years, the longest that stores keep anything.
FOREVER = 10 * 365 * 86400.0
#: The days before this one with which a sudden rise is compared, and how many of them must have
#: mail: an account without a past has no rise.
DAYS, DAYS_MIN = 14, 3
DAY = 86400
#: Requests at a time for which no command waits.
MAX_BACKGROUND = 2000
#: Subjects whose past, or whose breaches, are remembered.
REMEMBERED = 10_000
#: Operations of a request (`stores.store.MAX_OPERATIONS`).
AT_ONCE = 32
#: Refused recipients that are counted at a time.
REFUSED_MAX = 16
#: Renewals made at the same time.
RENEWED = 256


class Claim(NamedTuple):
    """A rule, with the amount for this subject, and what a command costs of it.

    `member` is the connection or the network of a rule that counts members. A connection that is
    there already, since a process that has ended had let it in, is `kept` beyond the limit.
    `day` is that of the epoch on which a rise has counted it.
    """

    rule: Rule
    subject: str
    cost: int = 1
    member: str = ""
    kept: bool = False
    day: int = 0

    @property
    def key(self) -> bytes:
        """The key in the store."""
        return _key_of(self.subject, self.rule)

    @property
    def name(self) -> bytes:
        """The member's name in the store."""
        return self.member.encode()


# Each claim needs its key several times, and a client makes the same claims with each message.
@lru_cache(2048)
def _key_of(subject: str, rule: Rule) -> bytes:
    return key(subject, rule.text.encode())


class Breach(NamedTuple):
    """A claim that exceeds its rule."""

    claim: Claim
    #: Seconds until there is room; 0.0 if that is not known.
    wait: float


class Result(NamedTuple):
    """The result of claims."""

    breaches: Sequence[Breach]
    taken: Sequence[Claim]
    #: The blocked subjects, with the reasons.
    blocked: Sequence[tuple[str, str]]

    @property
    def counted(self) -> Sequence[Claim]:
        """What a refused command puts back; a rise counts a command that exceeds it as well."""
        rises = (each.claim for each in self.breaches if each.claim.rule.amount.rise)
        return [*self.taken, *rises]


class Ledger:
    """The limits in a store; `note` takes a text for the log, once for each cause."""

    def __init__(
        self,
        store: Store,
        note: Callable[[str], object],
        *,
        background: int = MAX_BACKGROUND,
        remembered: int = REMEMBERED,
    ) -> None:
        self._store = store
        self._note = note
        self._background = background
        self._remembered = remembered
        #: The leases of each connection, by the key of the group.
        self._held: dict[str, dict[bytes, Claim]] = {}
        #: The highest of the past days by its key, with the day for which it was read.
        self._past: dict[bytes, tuple[int, int]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- decisions ---------------------------------------------------------------------------

    async def take(
        self,
        claims: Iterable[Claim],
        blocks: Iterable[str] = (),
        kept: Container[bytes] = (),
    ) -> Result:
        """Take what a command costs, and look up which subjects are blocked.

        Room under limits with these keys is `kept` for other commands, so that they are exceeded.
        Raises UnavailableError if the store fails and nothing refuses the command.
        """
        wanted = _once({claim.key: claim for claim in claims}.values())
        groups: dict[str, list[Sequence[_Step]]] = {}
        subjects = list(dict.fromkeys(blocks))
        for subject in subjects:
            groups.setdefault(subject, []).append([_Blocked(subject)])
        for claim in wanted:
            groups.setdefault(claim.subject, []).append(self._steps(claim, kept))
            if claim.rule.at_once:  # before it is asked: the session may end meanwhile
                self._held.setdefault(claim.member, {})[claim.key] = claim
        found = _Found()
        try:
            await self._ask_all(
                [batch for group in groups.values() for batch in packed(group)], found
            )
        except UnavailableError as error:
            if wanted and not (found.breaches or found.blocked) and may_be_read(error):
                await self._read_blocks(subjects, found)
            if not (found.breaches or found.blocked):
                self.put_back(found.taken)
                raise
        for breach in found.breaches:
            self._held.get(breach.claim.member, {}).pop(breach.claim.key, None)
        return Result(found.breaches, found.taken, found.blocked)

    async def _read_blocks(self, subjects: Iterable[str], found: _Found) -> None:
        try:
            await self._ask_all(packed([_Blocked(each)] for each in subjects), found)
        except UnavailableError:
            pass  # as the request before

    async def _ask_all(self, batches: Sequence[Sequence[_Step]], found: _Found) -> None:
        if not batches:
            return
        requests = [[step.operation for step in batch] for batch in batches]
        failure = None
        for batch, results in zip(batches, await self._store.ask_together(requests), strict=True):
            if isinstance(results, BaseException):
                failure = results
                continue
            for step, result in zip(batch, results, strict=True):
                step.read(result, found)
        if failure is not None:
            raise failure

    def _steps(self, claim: Claim, kept: Container[bytes]) -> Sequence[_Step]:
        rule = claim.rule
        if rule.amount.rise:
            return self._rise(claim)
        if rule.at_once:
            return [_Member(claim)]
        if rule.counted == NETWORKS:
            here = _Here(claim)
            return [here, _Member(claim, here)]
        if rule.counted == REFUSED:
            # One by one, so that none of them counts for nothing; then see if there is one left.
            each = claim._replace(cost=1)
            counts = [_Counted(each) for _ in range(min(claim.cost, REFUSED_MAX))]
            return [*counts, _Tokens(claim._replace(cost=0))]
        if claim.cost > rule.amount.burst:
            return [_NoRoom(claim)]
        return [_NoRoom(claim) if claim.key in kept else _Tokens(claim)]

    # -- the own past ------------------------------------------------------------------------

    def _rise(self, claim: Claim) -> Sequence[_Step]:
        """Count on this day, and read the past days unless they are known."""
        day = int(time() // DAY)
        claim = claim._replace(day=day)
        known = self._past.get(claim.key)
        past = _Past(claim, None if known is None or known[0] != day else known[1])
        if past.highest is not None:
            return [_Today(past)]
        past.read_by = lambda highest: self._remember(claim.key, day, highest)
        return [*(_Day(past, day - ago) for ago in range(1, DAYS + 1)), _Today(past)]

    def _remember(self, of: bytes, day: int, highest: int) -> None:
        if len(self._past) >= self._remembered:
            self._past.pop(next(iter(self._past)))
        self._past[of] = day, highest

    # -- breaches and blocks -----------------------------------------------------------------

    async def first(self, claim: Claim, *, reason: str = "") -> bool:
        """Note a breach; return whether it is the first for a while. With a reason, block.

        Raises UnavailableError.
        """
        breach = key(claim.subject, BREACH, claim.rule.text.encode())
        if not reason:
            return await self._store.ask(Add(breach, b"1", ttl=BREACH_TTL)) is None
        block = Add(key(claim.subject, BLOCK), reason.encode()[:512], ttl=FOREVER)
        return await self._store.ask(block) is None

    # -- putting back ------------------------------------------------------------------------

    def put_back(self, claims: Iterable[Claim]) -> None:
        """Put back what a refused command has taken, in the background."""
        requests: dict[str, list[Operation[Any]]] = {}
        for claim in claims:
            if claim.rule.at_once:
                self._held.get(claim.member, {}).pop(claim.key, None)
                operation: Operation[Any] = Leave(claim.key, claim.name)
            elif not claim.cost:
                continue
            elif claim.rule.counted == NETWORKS:
                operation = Leave(claim.key, claim.name)
            elif claim.rule.amount.rise:
                operation = _count(claim, -1)
            else:
                operation = _take(claim, -1)
            requests.setdefault(claim.subject, []).append(operation)
        for operations in requests.values():
            self.later(self._store.ask(*operations))

    def leave(self, session: str) -> None:
        """Release the leases of a session that has ended, in the background."""
        for claim in self._held.pop(session, {}).values():
            self.later(self._store.ask(Leave(claim.key, claim.name)))

    async def renew(self) -> None:
        """Renew all leases, also if some fail. Raises UnavailableError."""
        every = [claim for held in self._held.values() for claim in held.values()]
        failure: BaseException | None = None
        for at in range(0, len(every), RENEWED):
            part = every[at : at + RENEWED]
            # A session may have ended meanwhile.
            held = [each for each in part if each.key in self._held.get(each.member, ())]
            asked = (self._store.ask(_join(each)) for each in held)
            for result in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(result, BaseException):
                    failure = result  # of one node of a cluster, say
        if failure is not None:
            raise failure

    def later(self, work: Coroutine[Any, Any, object]) -> None:
        """Do work that no command waits for; log if the store fails."""
        if len(self._tasks) >= self._background:
            work.close()
            self._note("too many requests are pending")
            return
        task = asyncio.get_running_loop().create_task(self._noted(work), name="limit")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _noted(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except UnavailableError as error:
            self._note(str(error))

    async def close(self) -> None:
        """Release all leases, and wait for what is pending."""
        for session in list(self._held):
            self.leave(session)
        if self._tasks:
            await asyncio.wait(self._tasks)


# -- the operations of claims -------------------------------------------------------------------


class _Found:
    """What a command's requests have found so far."""

    def __init__(self) -> None:
        self.breaches: list[Breach] = []
        self.taken: list[Claim] = []
        self.blocked: list[tuple[str, str]] = []

    def settle(self, claim: Claim, *, within: bool, wait: float = 0.0) -> None:
        if within:
            self.taken.append(claim)
        else:
            self.breaches.append(Breach(claim, wait))


class _Step:
    """An operation, and what its result means."""

    operation: Operation[Any]

    def read(self, result: Any, found: _Found) -> None:
        raise NotImplementedError


class _Blocked(_Step):
    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.operation = Get(key(subject, BLOCK))

    def read(self, result: Entry | None, found: _Found) -> None:
        if result is not None:
            found.blocked.append((self.subject, result.value.decode("utf-8", "replace")))


class _Tokens(_Step):
    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.operation = _take(claim, 1)

    def read(self, result: float, found: _Found) -> None:
        found.settle(self.claim, within=not result, wait=result)


class _NoRoom(_Step):
    """A claim that takes nothing: one larger than the bucket, or when its room is kept."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.operation = _take(claim, 0)

    def read(self, result: float, found: _Found) -> None:
        found.settle(self.claim, within=False, wait=result)


class _Counted(_Step):
    """What has happened, and is counted if there is still room."""

    def __init__(self, claim: Claim) -> None:
        self.operation = _take(claim, 1)

    def read(self, result: float, found: _Found) -> None:
        del result, found


class _Here(_Step):
    """Whether a network is in its group already: then a refused command doesn't remove it."""

    def __init__(self, claim: Claim) -> None:
        self.known = False
        self.operation = replace(_join(claim), limit=0)

    def read(self, result: Any, found: _Found) -> None:
        del found
        self.known = result.joined


class _Member(_Step):
    def __init__(self, claim: Claim, here: _Here | None = None) -> None:
        self.claim = claim
        self._here = here
        self.operation = _join(claim)

    def read(self, result: Any, found: _Found) -> None:
        known = self._here is not None and self._here.known
        found.settle(self.claim._replace(cost=0) if known else self.claim, within=result.joined)


class _Past:
    """The highest of the past days, while it is read."""

    def __init__(self, claim: Claim, highest: int | None) -> None:
        self.claim = claim
        self.highest = highest
        self.days: list[int] = []
        self.read_by: Callable[[int], None] | None = None

    def most(self) -> int:
        """Return the highest; 0 if there is too little of a past."""
        if self.highest is None:
            self.highest = max(self.days) if len(self.days) >= DAYS_MIN else 0
            if self.read_by is not None:
                self.read_by(self.highest)
        return self.highest


class _Day(_Step):
    def __init__(self, past: _Past, day: int) -> None:
        self._past = past
        self.operation = Get(_day_key(past.claim, day))

    def read(self, result: Entry | None, found: _Found) -> None:
        del found
        # A day on which each command was refused is 0.
        if result is not None and result.number:
            self._past.days.append(result.number)


class _Today(_Step):
    def __init__(self, past: _Past) -> None:
        self._past = past
        self.operation = _count(past.claim, 1)

    def read(self, result: int, found: _Found) -> None:
        claim = self._past.claim
        amount = claim.rule.amount
        most = self._past.most()
        rises = most > 0 and result >= amount.burst and result > amount.number * most
        found.settle(claim, within=not rises)


def past_key(subject: str, counted: bytes, day: int) -> bytes:
    """Return the key of what a subject has sent on a day."""
    return key(subject, PAST, counted, b"%d" % day)


def _once(claims: Iterable[Claim]) -> list[Claim]:
    """Return the claims; of several rises with one past, only the first costs something."""
    once: list[Claim] = []
    rises: set[tuple[str, str]] = set()
    for claim in claims:
        past = claim.subject, claim.rule.counted
        again = claim.rule.amount.rise and past in rises
        if claim.rule.amount.rise:
            rises.add(past)
        once.append(claim._replace(cost=0) if again else claim)
    return once


def packed(groups: Iterable[Sequence[_Step]]) -> list[list[_Step]]:
    """Pack the steps of claims into requests; those of one claim stay together."""
    batches: list[list[_Step]] = []
    for group in groups:
        if not batches or len(batches[-1]) + len(group) > AT_ONCE:
            batches.append([])
        batches[-1] += group
    return batches


def _take(claim: Claim, sign: int) -> Take:
    amount = claim.rule.amount
    return Take(claim.key, amount.rate, amount.burst, sign * min(claim.cost, amount.burst))


def _count(claim: Claim, sign: int) -> Count:
    return Count(_day_key(claim, claim.day), window=(DAYS + 2) * DAY, by=sign * claim.cost)


def _day_key(claim: Claim, day: int) -> bytes:
    return past_key(claim.subject, claim.rule.counted.encode(), day)


def _join(claim: Claim) -> Join:
    amount = claim.rule.amount
    ttl = LEASE if claim.rule.at_once else amount.period
    limit = MAX_MEMBERS if claim.kept else amount.number
    return Join(claim.key, claim.name, limit, ttl=ttl)
