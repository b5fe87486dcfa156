"""Records of what filter-limit has counted and whom it blocks, for the verb and the page."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from heapq import nlargest
from typing import TYPE_CHECKING

from smtpd_filters.stores import Delete

from .ledger import FOREVER
from .rules import NETWORKS, parse_rule
from .steps import past_key
from .subjects import BLOCK, BREACH, PAST, SPACE, key, read_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

    from smtpd_filters.stores import Store

    from .rules import Rule


@dataclass(frozen=True)
class Use:
    """How much of a limit a subject has used, or that it is blocked."""

    subject: str
    #: The limit; "" if the subject is blocked.
    limit: str
    used: float
    #: How much there is in all.
    of: float
    #: Seconds until the bucket is full again or the block ends; None if that is not known.
    seconds: float | None
    #: Why it is blocked.
    blocked: str = ""

    @property
    def share(self) -> float:
        """The used part; blocked subjects come first."""
        return float("inf") if self.blocked else self.used / self.of


def key_prefix(subject: str) -> bytes:
    """Return the beginning of the keys of a subject, or of all."""
    return key(subject) + b":" if subject else f"{SPACE}:".encode()


async def uses_of(store: Store, prefix: bytes) -> AsyncIterator[Use]:
    """Iterate over what has been used of all limits."""
    async for each, entry in store.scan(prefix):
        subject, parts = read_key(each)
        if parts[:1] == [BLOCK]:
            reason = entry.value.decode("utf-8", "replace").strip() or "no reason given"
            yield Use(subject, "", 0.0, 0.0, _ends(entry.left), reason)
        elif (rule := _rule(parts)) is not None and rule.amount.period and rule.counted != NETWORKS:
            used = min(entry.left * rule.amount.rate, rule.amount.burst)
            yield Use(subject, rule.text, used, rule.amount.burst, entry.left)
    async for each, members in store.groups(prefix):
        subject, parts = read_key(each)
        if (rule := _rule(parts)) is not None:
            yield Use(subject, rule.text, members, rule.amount.number, None)


async def most_used(store: Store, number: int, at_once: int) -> list[Use]:
    """Return the uses of the largest parts of limits; at most `at_once` are kept meanwhile."""
    top: list[Use] = []
    async for use in uses_of(store, key_prefix("")):
        top.append(use)
        if len(top) >= at_once:
            top = nlargest(number, top, key=_share)
    return nlargest(number, top, key=_share)


def _share(use: Use) -> float:
    return use.share


#: Digits of the number of a day.
_DIGITS = 8


def _ends(left: float) -> float | None:
    return None if left > FOREVER / 2 else left


def _rule(parts: Any) -> Rule | None:
    """Return the rule of a key; None if it is of no rule of this release."""
    if len(parts) != 1 or parts[0] in {BLOCK, BREACH, PAST}:
        return None
    try:
        return parse_rule(parts[0].decode("utf-8", "replace"))
    except ValueError:
        return None


async def forget(store: Store, subject: str) -> bool:
    """Forget what was counted of a subject; return whether there was something."""
    prefix = key_prefix(subject)
    today: dict[bytes, int] = {}
    doomed = [each async for each, _ in store.groups(prefix)]
    async for each, _ in store.scan(prefix):
        _, parts = read_key(each)
        if parts[:1] == [BLOCK]:
            continue
        if parts[:1] == [PAST]:  # the past stays, without this day
            counted, day = parts[1:] if len(parts) == 3 else (b"", b"")
            if day.isdigit() and len(day) <= _DIGITS:
                today[counted] = max(today.get(counted, 0), int(day))
            else:
                store.damaged(each)
        else:
            doomed.append(each)
    doomed += [past_key(subject, counted, day) for counted, day in today.items()]
    return any(await asyncio.gather(*(store.ask(Delete(each)) for each in doomed)))
