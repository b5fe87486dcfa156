"""The caching stub resolver that the filters of a process share.

Invariants
----------
*Values*: a look-up returns one of three outcomes (`outcome`) within its deadline and raises no
exception, except for a caller's mistake: TypeError for a name or an address that is not str, and
ValueError for a type of records that is not in `RECORD_TYPES`.
*Once*: a cached outcome is returned without a task (`known`). Concurrent look-ups of the same name
and type share one task, and cancelling one caller does not affect the others.
*Never blocks*: queries and responses are processed at a `pace`. The number of queries in flight is
bounded, and the wait for a place counts against the deadline. Names whose servers don't answer
delay others by half a second at most (`places`).
*Clean close*: nothing is left running after `aclose`.

The parts: `names` validates names, `cache` keeps outcomes, `retry` chooses the next server,
`sockets` and `places` bound the queries in flight, `transport` sends one query to one server,
`message` encodes queries and interprets responses, and `response` parses them within bounds. This
module is the loop around them.

The module is cheap to import. Making a Resolver imports dnspython, at start rather than at the
first mail.
"""

from __future__ import annotations

import time

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.cache import Cache, Lifetimes, size_of
from smtpd_filters.lookups.outcome import INVALID, NODATA, Found, NotFound, Unavailable
from smtpd_filters.lookups.retry import Failure, Plan, Servers
from smtpd_filters.runtime.counters import COUNTERS, LOCAL, TIMEOUT
from smtpd_filters.settings.shared import PoolCloses

from . import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Literal, Self, TypeAlias, overload

    from smtpd_filters.lookups.outcome import MX, Outcome

    from .setting import ResolverSetting, Timing

    TextType: TypeAlias = Literal["A", "AAAA", "CNAME", "NS", "PTR"]  # records are str
    RecordType: TypeAlias = TextType | Literal["MX", "TXT"]

# Each query in flight holds a socket; half the descriptors at most (`_descriptors`).
MAX_IN_FLIGHT = 512
# Look-ups are started ahead of need while fewer than this many times `in_flight` are pending.
AHEAD = 2
# An entry takes about half a KiB (an address of a list): 4 MiB; `cache` bounds larger ones.
CACHE_SIZE = 8192
# The price (`pace`) of a caller's work on an outcome: a decision, say.
RESUME = 100
CLOSED = "the resolver is closed"
RECORD_TYPES = frozenset({"A", "AAAA", "CNAME", "MX", "NS", "PTR", "TXT"})


def check_question(name: object, rdtype: object) -> None:
    """Raise TypeError or ValueError for a mistake of the caller; a name's form isn't checked."""
    if not isinstance(name, str):
        raise TypeError(f"a name must be str, not {type(name).__name__}")
    if rdtype not in RECORD_TYPES:
        raise ValueError(
            f"record type {rdtype!r}: must be one of {', '.join(sorted(RECORD_TYPES))}"
        )


class Resolver:
    """A stub resolver for recursive name servers.

    `nameservers` are pairs of address and port; None takes them from resolv.conf(5). Times are in
    seconds: `timeout` is for one query in the first round (each of the `attempts` rounds over the
    servers doubles it), `deadline` for a whole look-up. `clock` is any steady clock.

    Raises ConfigError if the address of a name server is invalid.
    """

    def __init__(  # noqa: PLR0913  # settings, given by name
        self,
        nameservers: Iterable[tuple[str, int]] | None = None,
        *,
        # The C library waits twice 5 s (resolv.conf(5)). SMTP clients wait five minutes for a reply
        # (RFC 5321 section 4.5.3.2), but each holds a session meanwhile.
        timeout: float = 2,
        deadline: float = 8,
        attempts: int = 2,
        cache_size: int = CACHE_SIZE,
        lifetimes: Lifetimes | None = None,
        in_flight: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        import asyncio

        from smtpd_filters.lookups.places import CROWDED
        from smtpd_filters.lookups.sockets import Sockets
        from smtpd_filters.runtime import pace

        from . import message, transport

        servers = names.resolv_conf() if nameservers is None else list(nameservers)
        if not servers:
            raise ConfigError("no name server given")
        try:
            self._endpoints = [transport.Endpoint(address, port) for address, port in servers]
        except ValueError as exc:
            raise ConfigError(f"name server: {exc}") from exc
        self._asyncio = asyncio
        self._question = message.Question
        self._trouble = message.Trouble
        self._pace = pace.pace
        self._price = transport.SEND
        self._crowded = CROWDED
        self._servers = Servers([endpoint.label for endpoint in self._endpoints])
        self._counts = COUNTERS.of("dns")
        COUNTERS.watch("dns", self._servers)
        self._timeout = timeout
        self._deadline = deadline
        self._attempts = attempts
        self._lifetimes = lifetimes or Lifetimes()
        self._cache: Cache[Outcome[Any]] = Cache(cache_size)
        in_flight = in_flight or _descriptors()
        self._sockets = Sockets(in_flight)
        self._ahead = AHEAD * in_flight
        self._clock = clock
        self._under_way: dict[tuple[str, str], asyncio.Task[Outcome[Any]]] = {}
        self._closed = False

    #: Called with name, type and outcome of each look-up, also of one that was cached.
    observer: Callable[[str, str, Outcome[Any]], None] | None = None

    @property
    def servers(self) -> list[tuple[str, int]]:
        """The addresses and ports of its name servers."""
        return [endpoint.server for endpoint in self._endpoints]

    @staticmethod
    def setting(
        *,
        nameserver: str = "",
        timeout: str | None = "",
        takes: str = "",
        timing: Timing | None = None,
    ) -> ResolverSetting:
        """Declare a resolver, as an attribute of a filter: `dns = Resolver.setting()`.

        This declares the flags `--nameserver` and `--timeout`. The attribute is a resolver that
        filters of the process share if they are configured alike.

        `nameserver` is one more sentence for the help of `--nameserver`. `timeout` replaces the
        help of `--timeout`, or with None leaves that flag to the filter's own `Options`; `takes`
        ends the last sentence of that help, without a full stop (TypeError), with the time of a
        decision that needs several look-ups: "a client, with two, 16 s". `timing` is a
        function of the filter that returns the timeout of a query in the first round and the
        deadline of a look-up, in seconds; by default they are `--timeout` and four times that.
        """
        from .setting import ResolverSetting  # used by filters only

        return ResolverSetting(nameserver=nameserver, timeout=timeout, takes=takes, timing=timing)

    if TYPE_CHECKING:

        @overload
        async def query(self, name: str, rdtype: TextType) -> Outcome[str]: ...
        @overload
        async def query(self, name: str, rdtype: Literal["MX"]) -> Outcome[MX]: ...
        @overload
        async def query(self, name: str, rdtype: Literal["TXT"]) -> Outcome[bytes]: ...

    async def query(self, name: str, rdtype: RecordType) -> Outcome[Any]:
        """Look up the records of one type: MX as MX, TXT as bytes, the others as str.

        Names in records are in lower case without the final dot, addresses in canonical form. An
        invalid `name` is NotFound(INVALID) without a query. Raises TypeError if it is not str, and
        ValueError for another `rdtype` than A, AAAA, CNAME, MX, NS, PTR and TXT.
        """
        return await self._wait(self._begin(name, rdtype))

    if TYPE_CHECKING:

        @overload
        async def query_all(
            self, questions: Sequence[tuple[str, TextType]]
        ) -> list[Outcome[str]]: ...
        @overload
        async def query_all(
            self, questions: Sequence[tuple[str, Literal["MX"]]]
        ) -> list[Outcome[MX]]: ...
        @overload
        async def query_all(
            self, questions: Sequence[tuple[str, Literal["TXT"]]]
        ) -> list[Outcome[bytes]]: ...
        @overload
        async def query_all(
            self, questions: Sequence[tuple[str, RecordType]]
        ) -> list[Outcome[Any]]: ...

    async def query_all(self, questions: Sequence[tuple[str, RecordType]]) -> list[Outcome[Any]]:
        """Look up several names concurrently, and return the outcomes in the same order.

        See `query`. The look-ups start together, as far as there is room, without further tasks.
        The type checker knows the type of the records if all questions are of one type; for
        several types, `start` each look-up and then `query` it.
        """
        begun: list[Outcome[Any] | asyncio.Task[Outcome[Any]]] = []
        outcomes: list[Outcome[Any]] = []
        for number in range(len(questions)):
            while len(begun) < len(questions) and (len(begun) == number or self._has_room):
                begun.append(self._begin(*questions[len(begun)]))
            outcomes.append(await self._wait(begun[number]))
        return outcomes

    if TYPE_CHECKING:

        @overload
        def known(self, name: str, rdtype: TextType) -> Outcome[str] | None: ...
        @overload
        def known(self, name: str, rdtype: Literal["MX"]) -> Outcome[MX] | None: ...
        @overload
        def known(self, name: str, rdtype: Literal["TXT"]) -> Outcome[bytes] | None: ...

    def known(self, name: str, rdtype: RecordType) -> Outcome[Any] | None:
        """Return the outcome of `query` if it is available at once, or None if it is not."""
        now = self._clock()
        # Names in the cache are valid: looking there first mostly avoids the validation.
        known = self._cache.get((name, rdtype), now)
        if known is None:
            check_question(name, rdtype)
            try:
                checked = names.domain(name)
            except ValueError:
                return NotFound(INVALID)
            if checked != name:
                name = checked
                known = self._cache.get((name, rdtype), now)
            if known is None and self._closed:
                return Unavailable(CLOSED)
        if self.observer is not None and known is not None:
            self.observer(name, rdtype, known)
        return known

    def missing(self, names: Iterable[str], rdtype: RecordType) -> bool:
        """Return whether the cache has NotFound for all these names, given in canonical form."""
        keys = [(name, rdtype) for name in names]
        return self._cache.holds(keys, NotFound, self._clock())

    def start(self, name: str, rdtype: RecordType) -> None:
        """Start a look-up ahead of need, unless it is cached or pending.

        Do nothing if too many are pending. Call it in the event loop's thread.
        """
        if self._has_room:
            self._begin(name, rdtype)

    async def addresses(self, name: str) -> Outcome[str]:
        """Look up the IPv4 and IPv6 addresses of a name together.

        The outcome is Found if there are any; `gap` is set if one of the two look-ups was
        unavailable or incomplete.
        """
        four, six = await self.query_all([(name, "A"), (name, "AAAA")])
        match four, six:
            case Found(), Found():
                gap = four.gap or six.gap
                return Found(four.records + six.records, min(four.ttl, six.ttl), gap)
            case (Found(records, ttl), Unavailable(cause)) | (
                Unavailable(cause),
                Found(records, ttl),
            ):
                return Found(records, ttl, cause)
            case (Found() as found, NotFound()) | (NotFound(), Found() as found):
                return found
            case (NotFound(reason) as one, _) | (_, NotFound(reason) as one) if reason != NODATA:
                # RFC 8020 section 2: a name that doesn't exist for one type doesn't for any.
                return one
            case (Unavailable() as one, _) | (_, Unavailable() as one):
                return one
            case NotFound(), NotFound():
                return NotFound(NODATA, min(four.ttl, six.ttl))
        raise AssertionError  # pragma: no cover  # the cases above are exhaustive

    async def ptr(self, address: str) -> Outcome[str]:
        """Look up the names of an IP address; an invalid address is NotFound(INVALID).

        Raises TypeError if it is not str.
        """
        check_question(address, "PTR")
        try:
            name = names.reverse(address)
        except ValueError:
            return NotFound(INVALID)
        return await self.query(name, "PTR")

    async def mx(self, name: str) -> Outcome[MX]:
        """Look up the mail exchangers of a domain, the most preferred first."""
        return await self.query(name, "MX")

    async def txt(self, name: str) -> Outcome[bytes]:
        """Look up texts; the strings of one record are concatenated."""
        return await self.query(name, "TXT")

    async def aclose(self) -> None:
        """Cancel all look-ups; their callers get Unavailable."""
        self._closed = True
        self._cache.clear()
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await self._asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def _has_room(self) -> bool:
        """Whether look-ups may be started ahead of need."""
        return len(self._under_way) < self._ahead

    def _begin(self, name: str, rdtype: RecordType) -> Outcome[Any] | asyncio.Task[Outcome[Any]]:
        known = self.known(name, rdtype)
        if known is not None:
            return known
        key = names.domain(name), rdtype
        return self._under_way.get(key) or self._start(key)

    async def _wait(self, begun: Outcome[Any] | asyncio.Task[Outcome[Any]]) -> Outcome[Any]:
        if not isinstance(begun, self._asyncio.Task):
            return begun
        try:
            outcome = await self._asyncio.shield(begun)
        except self._asyncio.CancelledError:
            this = self._asyncio.current_task()
            if begun.cancelled() and this is not None and not this.cancelling():
                return Unavailable(CLOSED)
            raise
        # Hundreds of sessions may wait for the same answer.
        await self._pace().admit(RESUME)
        return outcome

    def _start(self, key: tuple[str, str]) -> asyncio.Task[Outcome[Any]]:
        loop = self._asyncio.get_running_loop()
        # Not `create_task`: a filter's task factory may raise.
        task = self._asyncio.Task(self._look_up(*key), loop=loop, name=f"look up {key[1]} {key[0]}")
        self._under_way[key] = task
        task.add_done_callback(lambda task: self._ended(key, task))
        return task

    def _ended(self, key: tuple[str, str], task: asyncio.Task[Outcome[Any]]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            # Mark the exception as retrieved, or asyncio would log it if no caller is left.
            task.exception()

    async def _look_up(self, name: str, rdtype: str) -> Outcome[Any]:
        began = self._clock()
        plan = Plan(
            self._servers,
            began,
            attempts=self._attempts,
            timeout=self._timeout,
            deadline=began + self._deadline,
        )
        outcome: Outcome[Any]
        try:
            async with self._asyncio.timeout(self._deadline):
                outcome = await self._follow(plan, name, rdtype)
        except TimeoutError:
            outcome = Unavailable(plan.cause("deadline passed"))
        now = self._clock()
        failure = ""
        if isinstance(outcome, Unavailable):
            failure = LOCAL if outcome.cause == self._crowded else plan.failure or TIMEOUT
        self._counts.ended(now - began, failure)
        lifetime = self._lifetimes.of(outcome)
        if lifetime > 0:
            self._cache.put((name, rdtype), outcome, now + lifetime, size_of(outcome))
        if self.observer is not None:
            self.observer(name, rdtype, outcome)
        return outcome

    async def _follow(self, plan: Plan, name: str, rdtype: str) -> Outcome[Any]:
        """Follow the plan until there is an answer or nothing left to try."""
        again = False
        while True:
            step = plan.next(self._clock())
            if isinstance(step, Unavailable):
                return step
            if step.pause:
                await self._asyncio.sleep(step.pause)
            place = await self._sockets.places(tcp=step.tcp).take(again=again)
            if place is None:
                return Unavailable(self._crowded)
            try:
                await self._pace().admit(self._price)
                # A new question each time, with a new ID (RFC 5452 section 9.2).
                reading = await self._endpoints[step.server].ask(
                    self._question(name, rdtype), tcp=step.tcp, seconds=step.timeout, place=place
                )
            except self._asyncio.CancelledError:
                if place.is_waiting:
                    # The deadline has passed, which is often the end of the query's timeout as
                    # well: which of them comes first must not matter.
                    plan.failed(Failure.SILENT, Failure.SILENT.value, self._clock())
                raise
            finally:
                place.release()
            if not isinstance(reading, self._trouble):
                self._sockets.closed()
                plan.answered()
                return reading
            again = place.evicted or reading.failure is Failure.SILENT
            plan.failed(reading.failure, reading.cause, self._clock())
            if reading.failure is Failure.SHORT and not place.evicted:
                await self._sockets.freed()
            else:
                self._sockets.closed()


class SharedResolver(PoolCloses, Resolver):
    """The resolver of filters, which only the pool closes (`settings.shared`)."""

    resource = "resolver"

    async def __aenter__(self) -> Self:
        await self.aclose()
        return self


def _descriptors() -> int:
    """Return how many queries may be in flight; this leaves half the descriptors to the process."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_IN_FLIGHT
    return max(1, min(MAX_IN_FLIGHT, soft // 2))
