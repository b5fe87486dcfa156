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
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_filters.errors import UnavailableError
from smtpd_filters.stores import Add, Leave
from smtpd_filters.stores.store import may_be_read

from .steps import (
    DAY,
    Breach,
    Claim,
    Found,
    blocked_step,
    give_back,
    join,
    once,
    packed,
    rise_steps,
    steps_of,
)
from .subjects import BLOCK, BREACH, key

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Coroutine, Iterable, Sequence

    from smtpd_filters.stores import Store
    from smtpd_filters.stores.operations import Operation

    from .steps import Step

#: Seconds between renewals of a connection's lease.
RENEWAL = 60.0
#: Seconds for which a breach is not logged again.
BREACH_TTL = 3600.0
#: A block lasts until it is released: ten years, the longest that stores keep anything.
FOREVER = 10 * 365 * 86400.0
#: Requests at a time for which no command waits.
MAX_BACKGROUND = 2000
#: Subjects whose past, or whose breaches, are remembered.
REMEMBERED = 10_000
#: Renewals made at the same time.
RENEWED = 256


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
        wanted = once({claim.key: claim for claim in claims}.values())
        groups: dict[str, list[Sequence[Step]]] = {}
        subjects = list(dict.fromkeys(blocks))
        for subject in subjects:
            groups.setdefault(subject, []).append([blocked_step(subject)])
        for claim in wanted:
            groups.setdefault(claim.subject, []).append(self._steps(claim, kept))
            if claim.rule.at_once:  # before it is asked: the session may end meanwhile
                self._held.setdefault(claim.member, {})[claim.key] = claim
        found = Found()
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

    async def _read_blocks(self, subjects: Iterable[str], found: Found) -> None:
        try:
            await self._ask_all(packed([blocked_step(each)] for each in subjects), found)
        except UnavailableError:
            pass  # as the request before

    async def _ask_all(self, batches: Sequence[Sequence[Step]], found: Found) -> None:
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

    # -- the own past ------------------------------------------------------------------------

    def _steps(self, claim: Claim, kept: Container[bytes]) -> Sequence[Step]:
        """Return the steps of a claim; a rise reads the past days unless they are known."""
        if not claim.rule.amount.rise:
            return steps_of(claim, kept)
        day = int(time() // DAY)
        known = self._past.get(claim.key)
        highest = None if known is None or known[0] != day else known[1]
        learn = partial(self._remember, claim.key, day)
        return rise_steps(claim._replace(day=day), highest, learn)

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
            if (operation := give_back(claim)) is not None:
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
            asked = (self._store.ask(join(each)) for each in held)
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
