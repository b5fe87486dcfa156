"""Claims, and the operations of a store by which they are taken and put back.

A claim is one operation or several, its steps; each knows what its result means.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_filters.stores import Count, Get, Join, Leave, Take
from smtpd_filters.stores.operations import MAX_MEMBERS

from .rules import NETWORKS, REFUSED, Rule
from .subjects import BLOCK, PAST, key

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from smtpd_filters.stores import Entry
    from smtpd_filters.stores.operations import Operation

#: Seconds after which a connection that isn't renewed no longer counts.
LEASE = 180.0
#: The days before this one with which a sudden rise is compared, and how many of them must have
#: mail: an account without a past has no rise.
DAYS, DAYS_MIN = 14, 3
DAY = 86400
#: Operations of a request (`stores.store.MAX_OPERATIONS`).
AT_ONCE = 32
#: Refused recipients that are counted at a time.
REFUSED_MAX = 16


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


class Found:
    """What a command's requests have found so far."""

    def __init__(self) -> None:
        self.breaches: list[Breach] = []
        self.taken: list[Claim] = []
        self.blocked: list[tuple[str, str]] = []

    def settle(self, claim: Claim, *, within: bool, wait: float = 0.0) -> None:
        """Add a claim that is taken, or that exceeds its rule for so many seconds."""
        if within:
            self.taken.append(claim)
        else:
            self.breaches.append(Breach(claim, wait))


class Step:
    """An operation, and what its result means."""

    operation: Operation[Any]

    def read(self, result: Any, found: Found) -> None:
        """Add what the result of the operation means."""
        raise NotImplementedError


class _Blocked(Step):
    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.operation = Get(key(subject, BLOCK))

    def read(self, result: Entry | None, found: Found) -> None:
        if result is not None:
            found.blocked.append((self.subject, result.value.decode("utf-8", "replace")))


class _Tokens(Step):
    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.operation = _take(claim, 1)

    def read(self, result: float, found: Found) -> None:
        found.settle(self.claim, within=not result, wait=result)


class _NoRoom(Step):
    """A claim that takes nothing: one larger than the bucket, or when its room is kept."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.operation = _take(claim, 0)

    def read(self, result: float, found: Found) -> None:
        found.settle(self.claim, within=False, wait=result)


class _Counted(Step):
    """What has happened, and is counted if there is still room."""

    def __init__(self, claim: Claim) -> None:
        self.operation = _take(claim, 1)

    def read(self, result: float, found: Found) -> None:
        del result, found


class _Here(Step):
    """Whether a network is in its group already: then a refused command doesn't remove it."""

    def __init__(self, claim: Claim) -> None:
        self.known = False
        self.operation = replace(join(claim), limit=0)

    def read(self, result: Any, found: Found) -> None:
        del found
        self.known = result.joined


class _Member(Step):
    def __init__(self, claim: Claim, here: _Here | None = None) -> None:
        self.claim = claim
        self._here = here
        self.operation = join(claim)

    def read(self, result: Any, found: Found) -> None:
        known = self._here is not None and self._here.known
        found.settle(self.claim._replace(cost=0) if known else self.claim, within=result.joined)


class _Past:
    """The highest of the past days, while it is read."""

    def __init__(self, claim: Claim, highest: int | None, learn: Callable[[int], None]) -> None:
        self.claim = claim
        self._highest = highest
        self._learn = learn
        self.days: list[int] = []

    def most(self) -> int:
        """Return the highest; 0 if there is too little of a past."""
        if self._highest is None:
            self._highest = max(self.days) if len(self.days) >= DAYS_MIN else 0
            self._learn(self._highest)
        return self._highest


class _Day(Step):
    def __init__(self, past: _Past, day: int) -> None:
        self._past = past
        self.operation = Get(_day_key(past.claim, day))

    def read(self, result: Entry | None, found: Found) -> None:
        del found
        # A day on which each command was refused is 0.
        if result is not None and result.number:
            self._past.days.append(result.number)


class _Today(Step):
    def __init__(self, past: _Past) -> None:
        self._past = past
        self.operation = _count(past.claim, 1)

    def read(self, result: int, found: Found) -> None:
        claim = self._past.claim
        amount = claim.rule.amount
        most = self._past.most()
        rises = most > 0 and result >= amount.burst and result > amount.number * most
        found.settle(claim, within=not rises)


def blocked_step(subject: str) -> Step:
    """Return the step that reads whether a subject is blocked."""
    return _Blocked(subject)


def steps_of(claim: Claim, kept: Container[bytes]) -> Sequence[Step]:
    """Return the steps of a claim other than a rise; see `Ledger.take`."""
    rule = claim.rule
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


def rise_steps(claim: Claim, highest: int | None, learn: Callable[[int], None]) -> Sequence[Step]:
    """Return the steps of a rise: they count on this day, and read the past days.

    They are not read if the `highest` of them is known; otherwise `learn` is called with it.
    """
    past = _Past(claim, highest, learn)
    if highest is not None:
        return [_Today(past)]
    return [*(_Day(past, claim.day - ago) for ago in range(1, DAYS + 1)), _Today(past)]


def give_back(claim: Claim) -> Operation[Any] | None:
    """Return the operation that puts back what a claim has taken; None if that is nothing."""
    if claim.rule.at_once:
        return Leave(claim.key, claim.name)
    if not claim.cost:
        return None
    if claim.rule.counted == NETWORKS:
        return Leave(claim.key, claim.name)
    return _count(claim, -1) if claim.rule.amount.rise else _take(claim, -1)


def past_key(subject: str, counted: bytes, day: int) -> bytes:
    """Return the key of what a subject has sent on a day."""
    return key(subject, PAST, counted, b"%d" % day)


def once(claims: Iterable[Claim]) -> list[Claim]:
    """Return the claims; of several rises with one past, only the first costs something."""
    found: list[Claim] = []
    rises: set[tuple[str, str]] = set()
    for claim in claims:
        past = claim.subject, claim.rule.counted
        again = claim.rule.amount.rise and past in rises
        if claim.rule.amount.rise:
            rises.add(past)
        found.append(claim._replace(cost=0) if again else claim)
    return found


def packed(groups: Iterable[Sequence[Step]]) -> list[list[Step]]:
    """Pack the steps of claims into requests; those of one claim stay together."""
    batches: list[list[Step]] = []
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


def join(claim: Claim) -> Join:
    """Return the operation that adds, or renews, the member of a claim."""
    amount = claim.rule.amount
    ttl = LEASE if claim.rule.at_once else amount.period
    limit = MAX_MEMBERS if claim.kept else amount.number
    return Join(claim.key, claim.name, limit, ttl=ttl)
