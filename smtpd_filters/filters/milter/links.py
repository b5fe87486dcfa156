"""Connections to one milter: each belongs to a session, and is kept over its messages.

Invariants
----------
*In step*: an event is written only when nothing is unread, and its answer is read only after it
was written. A milter that breaks the protocol, or an exchange that is cancelled, ends its
connection.
*Bounded*: at most so many connections are open, which the clients of the mail server share
(`failover.turns`). When another is needed, an idle one is closed: that of the same client, or the
one that has been so for longest. Its session opens another when it needs one.
*Short of descriptors*: a lack of descriptors on this machine doesn't count as a failure of the
milter; a session waits for one, as long as for a connection.
*Not waited for*: after timeouts in a row sessions don't wait for a connection, or for an answer to
a command (`gate`). A timeout for the content of a message says nothing about the milter.
*In time*: a report of progress restarts the time for an answer, and nothing else does. No exchange
goes on after the time until which its session may ask the milter (`Dialogue.at`).
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING

from smtpd_filters.lookups.failover.breaker import REST
from smtpd_filters.lookups.failover.failures import connect_trouble, reason
from smtpd_filters.lookups.failover.turns import Turns
from smtpd_filters.lookups.retry import COUNTED, Failure
from smtpd_filters.lookups.sockets import PAUSE
from smtpd_filters.lookups.stream.connection import (
    Connection,
    LostError,
    UnconnectedError,
    connect,
)
from smtpd_filters.milter import Agreement, MilterError, MtaSide, ReplyCode, Verdict
from smtpd_filters.milter import vocabulary as v
from smtpd_filters.runtime.counters import (
    COUNTERS,
    LOCAL,
    TIMEOUT,
    UNREACHABLE,
)
from smtpd_filters.runtime.pace import pace

from .gate import FailedError, Gate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from smtpd_filters.lookups.failover.breaker import Note
    from smtpd_filters.lookups.stream.address import Address
    from smtpd_filters.milter import Edit, Offer

#: Units of work (`pace`) for a report of progress.
_PROGRESS = 5
#: The commands, in their order.
_COMMANDS = (v.CONNECT, v.HELO, v.MAIL, v.RCPT, v.DATA)
#: How exchanges with milters are counted (`runtime.counters`).
KIND = "milter"
#: Bytes of events without an answer that are written together.
TOGETHER = 1 << 16
#: The cause when a milter ends a connection.
CLOSED = "closed the connection"
#: When a session may ask no longer.
NO_TIME = "within --deadline"


def now() -> float:
    """Return the time by the clock of the loop."""
    return asyncio.get_running_loop().time()


def _left(until: float) -> float:
    """Return the seconds until a time by the loop's clock. Raises TimeoutError."""
    seconds = until - now()
    if seconds <= 0:
        raise TimeoutError
    return seconds


class Links:
    """The connections to one milter, `limit` at most; `seconds` are for connecting.

    `note` logs that the milter is no longer waited for, and that it answers again; meanwhile it is
    tried every `rest` seconds.
    """

    def __init__(  # noqa: PLR0913  # keyword-only: one for each limit
        self,
        address: Address,
        offer: Offer,
        *,
        limit: int,
        seconds: float,
        note: Note | None = None,
        rest: float = REST,
    ) -> None:
        self._address = address
        #: For connections, and for answers to commands. A milter may negotiate and then hang.
        self._connecting = Gate(address.label, note, rest)
        self.at_commands = Gate(address.label, note, rest)
        self.commands = self.at_commands.circuit
        #: The command whose answer was missing last: one to an earlier command is no answer.
        self.missed_last = v.CONNECT
        self._offer = offer
        self._seconds = seconds
        self._turns = Turns(limit)
        #: The idle connections, the one that is so for longest first.
        self._idle: dict[Link, None] = {}
        COUNTERS.watch(KIND, self)

    def circuits(self) -> Iterator[tuple[str, bool]]:
        """Yield the milter's label, and whether it is no longer waited for."""
        yield self.commands.label, self._connecting.circuit.is_open or self.commands.is_open

    async def open(self, client: str | None, limit: float = inf) -> Link:
        """Return a new connection for a client that has negotiated, until `limit`.

        Without a client it is for a ping, which doesn't wait while others have all connections.
        Raises FailedError.
        """
        async with self._connecting.admission():
            link = await self._open(client, limit)
            self._connecting.circuit.answered()
            return link

    async def _open(self, client: str | None, limit: float) -> Link:
        # Without `asyncio.timeout` around all of it, which costs as much as the negotiation.
        until = min(now() + self._seconds, limit)
        waited = True  # for something else than the milter
        try:
            waited = await self._turn(until, client)
            try:
                while (connection := await self._connect(until)) is None:
                    waited = True
                    await asyncio.sleep(min(PAUSE, _left(until)))
            except BaseException:
                self._release(client)
                raise
            return await self._negotiated(connection, until, client)
        except TimeoutError:
            after = f"after {self._seconds:g} s" if until < limit else NO_TIME
            failure = LOCAL if waited else TIMEOUT
            silent = not waited and until < limit
            raise FailedError(f"no connection {after}", failure, silent=silent) from None
        except UnconnectedError as error:
            kind = connect_trouble(error.cause).failure
            cause, silent = reason(error.cause, "cannot connect"), kind is Failure.SILENT
            raise FailedError(cause, COUNTED[kind], silent=silent) from None

    async def _negotiated(self, connection: Connection, until: float, client: str | None) -> Link:
        """Return a connection after the negotiation. Raises FailedError and TimeoutError."""
        link = Link(self, connection, MtaSide(self._offer), client)
        try:
            await link.negotiate(_left(until))
        except BaseException as error:
            link.abort()
            if isinstance(error, FailedError) and error.silent:
                raise TimeoutError from None
            raise
        return link

    def missed(self, event: bytes, answers: int) -> bool:
        """Note an answer that did not come in time; return whether the milter seems to hang.

        It does if the event was a command, and if it has not answered other sessions meanwhile.
        `answers` are those of `commands` when the event was sent.
        """
        if event not in _COMMANDS:
            return False
        self.missed_last = event
        return self.commands.answers == answers

    def answered(self, event: bytes) -> None:
        """Note an answer to an event."""
        if event not in _COMMANDS or _COMMANDS.index(event) >= _COMMANDS.index(self.missed_last):
            self.commands.answered()

    async def _connect(self, until: float) -> Connection | None:
        """Return a new connection; without a descriptor close an idle one, and return None.

        Raises UnconnectedError and TimeoutError.
        """
        try:
            return await connect(self._address, _left(until))
        except UnconnectedError as error:
            _left(until)
            if connect_trouble(error.cause).failure is not Failure.SHORT:
                raise
        if self._idle:
            next(iter(self._idle)).close()
        return None

    async def ping(self) -> str:
        """Negotiate over a connection of its own; return why that fails, or ""."""
        try:
            (await self.open(None)).close()
        except FailedError as error:
            return str(error)
        return ""

    async def _turn(self, until: float, client: str | None) -> bool:
        """Wait until a client may have another connection; return whether it took time.

        Raises TimeoutError.
        """
        if client is None:
            return False
        turns = self._turns
        while turns.locked(client) and self._idle:
            own = next((link for link in self._idle if link.client == client), None)
            if own is None and not turns.one_short(client):
                break
            (own or next(iter(self._idle))).close()
        if not turns.locked(client):
            await turns.acquire(client)  # at once
            return False
        async with asyncio.timeout_at(until):
            await turns.acquire(client)
        return True

    def rest(self, link: Link) -> None:
        """Note that a connection is idle."""
        self._idle[link] = None
        if link.client is not None and self._turns.wanted(link.client):
            link.close()

    def resting(self, link: Link) -> bool:
        """Whether a connection is idle."""
        return link in self._idle

    def use(self, link: Link) -> None:
        """Note that a connection is in use."""
        self._idle.pop(link, None)

    def closed(self, link: Link) -> None:
        """Note that a connection has been closed."""
        self._idle.pop(link, None)
        self._release(link.client)

    def _release(self, client: str | None) -> None:
        if client is not None:
            self._turns.release(client)

    async def aclose(self) -> None:
        """Close the idle connections; those in use are closed by their sessions."""
        await self.at_commands.pings.aclose()
        for link in list(self._idle):
            link.close()


class Link:
    """One connection to a milter, and the state of the protocol on it."""

    __slots__ = (
        "_connection", "_ended", "_limit", "_links", "_pending", "_size", "_timer", "answers",
        "asked", "client", "closed", "mta",
    )  # fmt: skip

    def __init__(
        self, links: Links, connection: Connection, mta: MtaSide, client: str | None
    ) -> None:
        self._links = links
        #: The client of its session (`Turns`), None for a ping.
        self.client = client
        self._connection = connection
        self.mta = mta
        #: How many events it was sent for an answer.
        self.asked = 0
        self.closed = False
        #: How many answers to commands its milter had given when the last event was sent.
        self.answers = 0
        #: Whether the session has ended.
        self._ended = False
        self._timer = _Timer(connection.abort)
        #: The time after which exchanges don't go on.
        self._limit = inf
        #: Events without an answer that are still to be written.
        self._pending: list[bytes] = []
        self._size = 0

    async def negotiate(self, seconds: float) -> None:
        """Negotiate. Raises FailedError."""
        await self.tell(self.mta.negotiate(), seconds)

    def keep(self, sent: bytes) -> None:
        """Keep an event without an answer until another one is sent."""
        if sent:
            self._pending.append(sent)
            self._size += len(sent)

    def put(self, sent: bytes) -> bool:
        """Keep an event if it has no answer, and not too much is kept; return whether it was."""
        size = self._size + len(sent)
        if self.mta.waiting or size > TOGETHER:
            return False
        if sent:
            self._pending.append(sent)
            self._size = size
        return True

    async def tell(
        self,
        sent: bytes,
        seconds: float,
        edit: Callable[[Edit], Awaitable[None]] | None = None,
    ) -> Verdict | ReplyCode | None:
        """Send an event with those kept; return its answer, None if it has none.

        `edit` is called with each edit. Raises FailedError.
        """
        if self._pending:
            sent = b"".join([*self._pending, sent])
            self._pending, self._size = [], 0
        self.answers = self._links.commands.answers
        self.asked += self.mta.waiting
        timer, answer = self._timer, None
        timer.start(seconds, self._limit)
        try:
            answer = await self._exchange(sent, edit)
        except FailedError:
            if not timer.overdue:
                raise
        finally:
            timer.stop()
        if timer.overdue:
            after = NO_TIME if timer.limited else f"after {seconds:g} s"
            raise FailedError(f"no answer {after}", TIMEOUT, silent=not timer.limited)
        return answer

    async def flush(self, seconds: float) -> None:
        """Send the events that are kept. Raises FailedError."""
        if self._pending:
            await self.tell(b"", seconds)

    async def _exchange(
        self, sent: bytes, edit: Callable[[Edit], Awaitable[None]] | None
    ) -> Verdict | ReplyCode | None:
        try:
            self._check_unread()
            await self._connection.write(sent)
            return await self._answer(edit) if self.mta.waiting else None
        except MilterError as error:
            raise FailedError(str(error)) from None
        except LostError as error:
            cause = CLOSED
            # Which of these it is depends on which side was faster: use one text.
            if not isinstance(error.cause, ConnectionError):
                cause = reason(error.cause, CLOSED)
            raise FailedError(cause, UNREACHABLE, lost=True) from None

    async def _answer(
        self, edit: Callable[[Edit], Awaitable[None]] | None
    ) -> Verdict | ReplyCode | None:
        """Return the answer that ends an event. Raises MilterError and LostError."""
        mta, connection = self.mta, self._connection
        event = mta.due
        mta.receive(await self._more())
        while True:
            while (answer := mta.answer()) is None:
                connection.acknowledge()  # the milter may wait for that with its next packet
                mta.receive(await self._more())
            if isinstance(answer, Agreement):
                return None
            if isinstance(answer, Verdict) and answer.command == v.PROGRESS:
                self._timer.restart()
                await pace().admit(_PROGRESS)  # many may have come at once
            elif isinstance(answer, Verdict | ReplyCode):
                self._links.answered(event)
                return answer
            elif edit is not None:
                await edit(answer)

    async def _more(self) -> bytes:
        data = await self._connection.read()
        if not data:
            raise LostError
        return data

    def _check_unread(self) -> None:
        """Raise MilterError if the milter has written something without being asked."""
        if self._connection.unread:
            raise MilterError("an answer to nothing")

    # -- its life --------------------------------------------------------------------------

    def use(self, limit: float = inf) -> None:
        """Begin exchanges, which don't go on after `limit`."""
        self._limit = limit
        self._links.use(self)
        if self.mta.done:
            self._connection.acknowledge()  # for an answer too much to come before the next event

    def rest(self) -> None:
        """End exchanges."""
        if self._ended:
            self.close()
        elif not self.closed:
            self._links.rest(self)

    def end(self) -> None:
        """Note the end of the session: close the connection, or let its exchange do so."""
        self._ended = True
        if self._links.resting(self):
            self.close()

    def abort(self) -> None:
        """Close the connection at once."""
        if not self.closed:
            self.closed = True
            self._timer.cancel()
            self._connection.abort()
            self._links.closed(self)

    def close(self) -> None:
        """Close the connection, with QUIT if nothing is due."""
        if not self.closed:
            self.closed = True
            self._timer.cancel()
            self._connection.end(b"".join([*self._pending, self.mta.quit()]))
            self._links.closed(self)


class _Timer:
    """The time for each of several answers: if one takes longer, `end` is called.

    `asyncio.timeout` for each of them would cost as much as the rest of an exchange.
    """

    __slots__ = ("_end", "_handle", "_limit", "_loop", "_seconds", "_until", "limited", "overdue")

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._seconds = self._limit = self._until = 0.0
        #: Whether an answer has taken longer, and whether that was its time until the limit.
        self.overdue = self.limited = False

    def start(self, seconds: float, limit: float) -> None:
        """Begin to wait for an answer, but not after `limit`."""
        self._seconds, self._limit = seconds, limit
        self.restart()

    def restart(self) -> None:
        """Wait as long again."""
        self._until = until = min(self._loop.time() + self._seconds, self._limit)
        handle = self._handle
        if handle is None or handle.when() > until:
            self.cancel()
            self._handle = self._loop.call_at(until, self._due)

    def stop(self) -> None:
        """Wait no longer."""
        self._until = 0.0

    def cancel(self) -> None:
        """Drop the timer of the loop."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _due(self) -> None:
        self._handle = None
        if not self._until:
            return
        if self._loop.time() < self._until:
            self._handle = self._loop.call_at(self._until, self._due)
        else:
            self.overdue, self.limited = True, self._until == self._limit
            self._end()
