"""The lists and their tests: the points of an answer, and whether a list may be queried.

Invariants
----------
*Tested*: a list that lists the entry that must not be listed lists every address; one that lacks
the entry that must be listed is dead, or refuses us. Neither is queried until a test succeeds.
*Answers about the subject*: an answer that is not about the subject (`listings`) never counts.
*Silent lists are off*: a list that times out is switched off as well, unless all lists do: then the
name server or the network fails, and `--on-error` decides.

RFC 5782 section 5 has the test entries: 127.0.0.2 is always listed and 127.0.0.1 never. In IPv6
they are ::FFFF:7F00:2 and ::FFFF:7F00:1, in lists of names TEST and INVALID.
"""

from __future__ import annotations

import asyncio
from functools import partial

from smtpd_filters.checks import listings, zone_names
from smtpd_filters.checks.zone_names import NAME, V4, V6
from smtpd_filters.lookups.outcome import INVALID, Found, NotFound, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from smtpd_filters.lookups.dns import Resolver
    from smtpd_filters.lookups.outcome import Outcome
    from smtpd_filters.runtime.log import FilterLog
    from smtpd_filters.runtime.probes import Probe

    from .sites import Site

#: The test entries that are listed and that aren't, without the zone. `zone_names.probes` has those
#: of names that are listed.
_LISTED = {V4: "2.0.0.127", V6: "2.0.0.0.0.0.f.7.f.f.f.f" + ".0" * 20}
_UNLISTED = {V4: "1.0.0.127", V6: "1.0.0.0.0.0.f.7.f.f.f.f" + ".0" * 20, NAME: "invalid"}

#: The cause for which a new list is off.
UNTESTED = "it hasn't been tested yet"
_DEAD = "it is dead, refuses this name server, or has no such entry (then see --untested)"
_REBINDING = (
    "which has a text (TXT): the name server removes answers in 127.0.0.0/8 (rebinding "
    "protection); exempt the list there"
)

#: The trouble of a query with an invalid name.
_NOT_ASKED = "not queried: the name is not valid in the DNS"

#: Seconds after which a list that is off is tested again, even without a need.
RECHECK = 300.0
#: Seconds for which a test is recent enough to refuse a client.
FRESH = 300.0
#: The minimum of seconds between two tests because of odd answers.
PAUSE = 60.0
#: The number of timeouts in a row after which a list is tested again.
SILENCES = 10


class Reading:
    """The result of an answer: the points, the matching addresses, or the trouble with it.

    `odd` is whether the answer raises doubts about the list.
    """

    __slots__ = ("answers", "odd", "points", "trouble")

    def __init__(
        self,
        points: int = 0,
        answers: tuple[str, ...] = (),
        *,
        trouble: str = "",
        odd: bool = False,
    ) -> None:
        self.points = points
        self.answers = answers
        self.trouble = trouble
        self.odd = odd


_NOT_LISTED = Reading()


class List:
    """A zone with all entries that the operator has configured for it."""

    __slots__ = ("high", "low", "off", "secrets", "shown", "silences", "sites", "tested", "zone")

    def __init__(self, zone: str, sites: Sequence[Site], keys: tuple[str, ...] = ()) -> None:
        self.zone = zone
        self.sites = sites
        #: The minimum and maximum of points that it can add.
        self.low = sum(site.weight for site in sites if site.weight < 0)
        self.high = sum(site.weight for site in sites if site.weight > 0)
        #: The name without its keys, and the keys.
        self.shown = zone_names.shown(zone, keys)
        self.secrets = zone_names.hidden(zone, keys)
        #: Whether it has test entries.
        self.tested = True
        #: The number of timeouts in a row.
        self.silences = 0
        #: The causes for which it is off, by V4, V6 or NAME.
        self.off: dict[str, str] = {}

    def inherit(self, other: List) -> None:
        """Take over the state of another list of the same zone."""
        self.silences = other.silences
        self.off = other.off

    def switch(self, about: str, cause: str) -> bool:
        """Switch it off because of `cause`, or on if that is ""; return whether to log this."""
        before = self.off.pop(about, "")
        if cause:
            self.off[about] = cause
        return bool(before) != bool(cause) or before == UNTESTED

    def read(self, outcome: Outcome[str], *, trusted: bool = True) -> Reading:
        """Return the reading of an answer; negative weights count for a `trusted` subject only."""
        if isinstance(outcome, Unavailable):
            self.silences += 1
            return Reading(trouble=outcome.cause, odd=self.silences >= SILENCES)
        if isinstance(outcome, NotFound) and outcome.reason == INVALID:
            return Reading(trouble=_NOT_ASKED)
        self.silences = 0
        if isinstance(outcome, NotFound):
            return _NOT_LISTED
        if outcome.gap:
            return Reading(trouble=outcome.gap, odd=True)
        answers, outside, refused = self._sort(outcome.records)
        if refused or (outside and not answers):
            return Reading(trouble=refused or outside, odd=True)
        counting = [site for site in self.sites if trusted or site.weight > 0]
        points, matched = 0, set()
        for site in counting:
            found = [answer for answer in answers if site.match(answer)]
            points += site.weight if found else 0
            matched.update(found)
        return Reading(points, tuple(answer for answer in answers if answer in matched))

    def _sort(self, records: Iterable[str]) -> tuple[list[str], str, str]:
        """Return the listings, the trouble with answers outside 127.0.0.0/8, and with refusals."""
        return listings.sort(self.zone, records, self._is_named)

    def _is_named(self, address: str) -> bool:
        """Return whether a filter of the operator's own names an answer."""
        return any(site.pattern and site.match(address) for site in self.sites)

    async def test(self, about: str, resolver: Resolver) -> tuple[str, bool]:
        """Look up the test entries; return why the list must not be queried, or "".

        The second value is whether the cause is a timeout or another failed look-up.
        """
        listed = [_LISTED[about]] if about in _LISTED else zone_names.probes(self.zone)
        names = [f"{name}.{self.zone}" for name in (_UNLISTED[about], *listed)]
        outcomes = await resolver.query_all([(name, "A") for name in names])
        if all(isinstance(each, NotFound) for each in outcomes):
            texts = await resolver.query_all([(name, "TXT") for name in names])
            # A text for every name is not an entry.
            if not isinstance(texts[0], Found) and any(isinstance(each, Found) for each in texts):
                return f"doesn't list {_shown(about, listed[0])}, {_REBINDING}", False
        return self._judge(about, outcomes[0], outcomes[1:], listed[0])

    def _judge(
        self, about: str, unlisted: Outcome[Any], listed: Sequence[Outcome[Any]], name: str
    ) -> tuple[str, bool]:
        _, outside, refused = self._sort(_records((unlisted, *listed)))
        if refused:
            return refused, False
        if isinstance(unlisted, Found) and self._sort(unlisted.records)[0]:
            what = "127.0.0.1" if about != NAME else "INVALID"
            return f"lists {what}, which must not be listed: it lists everything", False
        if any(isinstance(each, Found) and self._sort(each.records)[0] for each in listed):
            return (unlisted.cause, True) if isinstance(unlisted, Unavailable) else ("", False)
        if outside:
            return outside, False
        for each in listed:
            if isinstance(each, Unavailable):
                return each.cause, True
        return f"doesn't list {_shown(about, name)}, its test entry: {_DEAD}", False


def _shown(about: str, name: str) -> str:
    """Return the test entry as RFC 5782 writes it; `name` is that of a list of names."""
    return {V4: "127.0.0.2", V6: "::FFFF:7F00:2"}.get(about, name.upper())


def _records(outcomes: Iterable[Outcome[Any]]) -> list[str]:
    return [address for each in outcomes if isinstance(each, Found) for address in each.records]


class Watch:
    """The tests of the lists, which switch them off and on and log it.

    `lists` are the lists with the kinds of their subjects, `log` is the filter's.
    """

    def __init__(
        self, lists: Iterable[tuple[List, str]], resolver: Resolver, log: FilterLog
    ) -> None:
        self._lists = _testable(lists)
        self._resolver = resolver
        self._log = log
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._tried = self._last = float("-inf")
        #: Whether the log says that no list answers.
        self._silent = False
        #: Whether all have been tested once.
        self.done = not self._lists

    def replace(self, lists: Iterable[tuple[List, str]]) -> None:
        """Test these from now on; new ones are off until they have been tested."""
        before = {(each.zone, about) for each, about in self._lists}
        self._lists = _testable(lists)
        new = [(each, about) for each, about in self._lists if (each.zone, about) not in before]
        for each, about in new:
            each.switch(about, UNTESTED)
        if new and self._loop is not None:
            self._loop.call_soon(self._start)

    @property
    def fresh(self) -> bool:
        """Whether the last test is recent enough to refuse a client."""
        return not self._lists or asyncio.get_running_loop().time() - self._last < FRESH

    async def test(self, *, remind: bool = False) -> None:
        """Test all lists, or wait for the test in progress.

        With `remind`, lists that are still off are logged again.
        """
        await asyncio.shield(self._start(remind=remind))

    def probes(self) -> Iterator[Probe]:
        """Yield a probe of the test entries of each list.

        Those of IPv6 are not tried: most lists have none.
        """
        from smtpd_filters.runtime.probes import Probe

        async def test(each: List, about: str) -> str:
            return (await each.test(about, self._resolver))[0]

        for each, about in self._lists:
            if about != V6:
                kind = "addresses" if about == V4 else "names"
                yield Probe(f"list {each.shown} of {kind}", partial(test, each, about))

    def suspect(self) -> None:
        """Test again because of an odd answer, unless the last test is only `PAUSE` seconds old."""
        if asyncio.get_running_loop().time() - self._tried >= PAUSE:
            self._start()

    def close(self) -> None:
        """Stop testing."""
        if self._again is not None:
            self._again.cancel()
        if self._running is not None:
            self._running.cancel()

    def _start(self, *, remind: bool = False) -> asyncio.Task[None]:
        task = self._running
        if task is None or task.done():
            task = self._running = asyncio.ensure_future(self._test(remind=remind))
        return task

    async def _test(self, *, remind: bool) -> None:
        self._loop = asyncio.get_running_loop()
        lists: list[tuple[List, str]] = []
        while lists is not self._lists:  # `replace` may be called meanwhile
            lists = self._lists
            off = await self._test_these(lists, remind=remind)
        self.done = True
        if self._again is not None:
            self._again.cancel()
        self._again = self._loop.call_later(RECHECK, self.suspect) if off else None

    async def _test_these(self, lists: Sequence[tuple[List, str]], *, remind: bool) -> bool:
        """Test these lists; return whether any is off, or should be."""
        found = await asyncio.gather(*(each.test(about, self._resolver) for each, about in lists))
        all_silent = all(silent for _, silent in found)
        logged: set[tuple[str, str]] = set()
        for (each, about), (why, silent) in zip(lists, found, strict=True):
            cause = "" if silent and all_silent else why
            changed = each.switch(about, cause)
            # Log once only that a list has no IPv6 addresses.
            notable = changed or (cause and remind and about != V6)
            if notable and (each.zone, about) not in logged:
                logged.add((each.zone, about))
                state = "off" if cause else "on"
                self._log.event("list", zone=each.shown, about=about, switched=state, cause=cause)
        if all_silent and found:
            self._silent = True
            self._log.limited(
                "silent", "no list answers", cause=found[0][0], result="not switched off"
            )
        elif self._silent:
            self._silent = False
            self._log.event("lists answer again")
        self._tried = asyncio.get_running_loop().time()
        if not all_silent:
            self._last = self._tried
        return any(why for why, _ in found)


def _testable(lists: Iterable[tuple[List, str]]) -> list[tuple[List, str]]:
    return [(each, about) for each, about in lists if each.tested]
