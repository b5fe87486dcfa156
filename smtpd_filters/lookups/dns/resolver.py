"""One resolver for all filters of a process.

1. A look-up has one of three outcomes (`outcome`), within its deadline, and raises nothing.
2. What is known is answered from memory, without a task (`known`); what is being asked is asked
   once, whoever waits for it, and one that stops waiting doesn't stop the others. What will be
   needed can be asked for ahead (`start`).
3. Nothing blocks the event loop: questions and answers are worked on at a `pace`. The number of
   questions under way is bounded, and to wait for a turn counts against the deadline.
4. When a resolver has been closed, nothing of it is left running.

Who does what: `names` checks what is asked for, `cache` knows what is known and for how long,
`retry` decides which server is asked next, `sockets` how many are asked at once, `transport` asks
one server one question, `message` makes bytes of a question and sense of an answer, `response`
reads those within bounds. Here is the loop around them.

The module is cheap to import; making a Resolver imports dnspython, so that the first mail doesn't.
"""

from __future__ import annotations

import time

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.cache import Cache, Lifetimes, size_of
from smtpd_filters.lookups.outcome import INVALID, NODATA, Found, NotFound, Unavailable
from smtpd_filters.lookups.retry import Failure, Plan, Servers

from . import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Literal, Self, TypeAlias, overload

    from smtpd_filters.lookups.dns.setting import ResolverSetting, Timing
    from smtpd_filters.lookups.outcome import MX, Outcome

    TextType: TypeAlias = Literal["A", "AAAA", "CNAME", "NS", "PTR"]  # records are str
    RecordType: TypeAlias = TextType | Literal["MX", "TXT"]

# Each question under way holds a socket: as many as half the descriptors, at the most.
MAX_IN_FLIGHT = 512
# Look-ups begun ahead may be as many again as can be under way; beyond, they wait to be needed.
AHEAD = 2
# An entry takes about half a KiB (an address of a list): 4 MiB; `cache` bounds larger ones.
CACHE_SIZE = 8192
# The price of what a caller does with an outcome (`pace`): a decision, say.
RESUME = 100
CLOSED = "the resolver is closed"


class Resolver:
    """Asks name servers.

    `nameservers` are (address, port); None takes them from resolv.conf(5). Times are in seconds:
    `timeout` for one question in the first round (each of the `attempts` rounds over the servers
    doubles it), `deadline` for a look-up altogether. `clock` is any steady clock.

    Raises ConfigError if a name server is not given as an address.
    """

    def __init__(  # noqa: PLR0913 - settings, given by name
        self,
        nameservers: Iterable[tuple[str, int]] | None = None,
        *,
        # The C library waits 5 s, twice (resolv.conf(5)); smtpd's clients wait five minutes for a
        # reply (RFC 5321 section 4.5.3.2), but each of them holds a session meanwhile.
        timeout: float = 2,
        deadline: float = 8,
        attempts: int = 2,
        cache_size: int = CACHE_SIZE,
        lifetimes: Lifetimes | None = None,
        in_flight: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        import asyncio

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
        self._servers = Servers([endpoint.label for endpoint in self._endpoints])
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

    @staticmethod
    def setting(
        *,
        nameserver: str = "",
        timeout: str | None = "",
        takes: str = "",
        timing: Timing | None = None,
    ) -> ResolverSetting:
        """Declare a resolver, as an attribute of a filter: `dns = Resolver.setting()`.

        The filter gets the flags `--nameserver` and `--timeout`; its attribute is a resolver that
        all filters of the process share which are configured alike. `nameserver` is a further
        sentence for the help of that flag; `takes` ends the help of `--timeout`: how long a
        decision takes that needs several look-ups; `timeout` replaces that help, and None leaves
        that flag to the filter's own `Options`. `timing` is a function of the filter that returns
        the seconds for a question in the first round and for a look-up altogether, by default
        `--timeout` and four times as long.
        """
        from smtpd_filters.lookups.dns.setting import ResolverSetting  # for filters alone

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

        Names come in lower case without the final dot, addresses in their canonical form. A name
        that can't exist is NotFound(INVALID) without being asked for.
        """
        return await self._wait(self._begin(name, rdtype))

    async def query_all(self, questions: Sequence[tuple[str, RecordType]]) -> list[Outcome[Any]]:
        """Return the outcome of each of these look-ups, in their order; see `query`.

        They are begun at once, as far as there is room for them, and take no tasks but their own.
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
        """Return the result of `query` if it is known, or None if `query` would wait."""
        now = self._clock()
        # What is in the cache has been checked: to look there first spares the check mostly.
        known = self._cache.get((name, rdtype), now)
        if known is None:
            try:
                checked = names.domain(name)
            except ValueError:
                return NotFound(INVALID)
            if checked != name:
                known = self._cache.get((checked, rdtype), now)
            if known is None and self._closed:
                return Unavailable(CLOSED)
        return known

    def missing(self, names: Iterable[str], rdtype: RecordType) -> bool:
        """Whether all of these are known not to be found; they are spelt as outcomes have them."""
        keys = [(name, rdtype) for name in names]
        return self._cache.holds(keys, NotFound, self._clock())

    def start(self, name: str, rdtype: RecordType) -> None:
        """Begin a look-up that will be needed, unless it is known or under way; nobody waits.

        Nothing happens when there is too much under way. Called in the event loop's thread.
        """
        if self._has_room:
            self._begin(name, rdtype)

    async def addresses(self, name: str) -> Outcome[str]:
        """Look up IPv4 and IPv6 addresses of a name together.

        Found if there are any; if one of the two look-ups was unavailable or incomplete, `gap`
        says why.
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
                # RFC 8020: what doesn't exist for one type doesn't for any.
                return one
            case (Unavailable() as one, _) | (_, Unavailable() as one):
                return one
            case NotFound(), NotFound():
                return NotFound(NODATA, min(four.ttl, six.ttl))
        raise AssertionError  # pragma: no cover - the cases above are all there are

    async def ptr(self, address: str) -> Outcome[str]:
        """Look up the names of an IP address, in lower case; NotFound(INVALID) if it is none."""
        try:
            name = names.reverse(address)
        except ValueError:
            return NotFound(INVALID)
        return await self.query(name, "PTR")

    async def mx(self, name: str) -> Outcome[MX]:
        """Look up the mail exchangers of a domain, the most preferred first."""
        return await self.query(name, "MX")

    async def txt(self, name: str) -> Outcome[bytes]:
        """Look up texts; the strings of one record are put together."""
        return await self.query(name, "TXT")

    async def aclose(self) -> None:
        """Stop: those who wait are told Unavailable, and nothing is left running."""
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
        """Whether look-ups may be begun that nobody waits for yet."""
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
        # One answer may be what hundreds of sessions wait for.
        await self._pace().admit(RESUME)
        return outcome

    def _start(self, key: tuple[str, str]) -> asyncio.Task[Outcome[Any]]:
        task = self._asyncio.create_task(self._look_up(*key), name=f"look up {key[1]} {key[0]}")
        self._under_way[key] = task
        task.add_done_callback(lambda task: self._ended(key, task))
        return task

    def _ended(self, key: tuple[str, str], task: asyncio.Task[Outcome[Any]]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            # Those who wait get it; if nobody does any more, asyncio need not complain.
            task.exception()

    async def _look_up(self, name: str, rdtype: str) -> Outcome[Any]:
        now = self._clock()
        plan = Plan(
            self._servers,
            now,
            attempts=self._attempts,
            timeout=self._timeout,
            deadline=now + self._deadline,
        )
        outcome: Outcome[Any]
        try:
            async with self._asyncio.timeout(self._deadline):
                outcome = await self._follow(plan, name, rdtype)
        except TimeoutError:
            outcome = Unavailable(plan.cause("deadline passed"))
        now = self._clock()
        lifetime = self._lifetimes.of(outcome)
        if lifetime > 0:
            self._cache.put((name, rdtype), outcome, now + lifetime, size_of(outcome))
        return outcome

    async def _follow(self, plan: Plan, name: str, rdtype: str) -> Outcome[Any]:
        """Do what the plan says until there is an answer or nothing left to do."""
        while True:
            step = plan.next(self._clock())
            if isinstance(step, Unavailable):
                return step
            if step.pause:
                await self._asyncio.sleep(step.pause)
            async with self._sockets.place(tcp=step.tcp):
                await self._pace().admit(self._price)
                # A new question each time, with a new ID (RFC 5452 section 9.2).
                said = await self._endpoints[step.server].ask(
                    self._question(name, rdtype), tcp=step.tcp, seconds=step.timeout
                )
            if not isinstance(said, self._trouble):
                self._sockets.closed()
                plan.answered()
                return said
            plan.failed(said.failure, said.cause, self._clock())
            if said.failure is Failure.SHORT:
                await self._sockets.freed()
            else:
                self._sockets.closed()


def _descriptors() -> int:
    """Return how many questions may be under way without starving smtpd's own descriptors."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_IN_FLIGHT
    return max(1, min(MAX_IN_FLIGHT, soft // 2))
