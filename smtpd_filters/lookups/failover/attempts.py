"""The attempts of one request at the servers: turns, timeouts, and the repeated request.

The invariants named in comments are those of `group`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from smtpd_filters.lookups.retry import Failure

from .failures import BadReplyError, NotKeptError, Trouble

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from smtpd_filters.lookups.retry import Ask

    from .group import Group

T = TypeVar("T")


class Attempts(Generic[T]):
    """The attempts of one request; a subclass makes the exchange with a server.

    `broken` are the exceptions of a broken connection, after which a request may be repeated.
    """

    __slots__ = (
        "_client", "_excluded", "_group", "_passed_over", "_sent_to", "failure", "is_trial",
        "trouble", "until",
    )  # fmt: skip

    broken: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, group: Group, client: str = "") -> None:
        self._group = group
        #: For whom the servers are asked (`Turns`).
        self._client = client
        #: The deadline; and the cause of failure of the servers asked before the one that replied.
        self.until = 0.0
        self.trouble = ""
        #: Whether it is sent although no server answers (`Circuit`).
        self.is_trial = False
        #: How the request is counted if it fails: one of `counters.FAILURES`.
        self.failure = ""
        #: Servers that are not asked again, with the cause; and servers passed over once.
        self._excluded: dict[int, str] = {}
        self._passed_over: set[int] = set()
        #: Servers that the request was sent to. *Repeated once*.
        self._sent_to: set[int] = set()

    def exchange(self, server: int) -> Awaitable[T]:
        """Send the request to a server; return the result of its reply.

        Raises BadReplyError, NotKeptError, and whatever `translate` translates.
        """
        raise NotImplementedError

    def translate(self, error: Exception) -> Trouble:
        """Return why the exchange failed that raised an exception."""
        raise NotImplementedError

    def is_unanswered(self, error: Exception) -> bool:
        """Return whether the server was reached, but sent no part of a reply."""
        raise NotImplementedError

    async def is_healthy(self, server: int) -> bool:
        """Return whether a server answers a request that every healthy one answers."""
        raise NotImplementedError

    async def ask(self, step: Ask) -> T | Trouble:
        """Send the request to the server of a step, unless the server is excluded."""
        server = step.server
        if server in self._excluded:
            return Trouble(Failure.LOCAL, self._excluded[server])
        group = self._group
        if step.pause:
            await asyncio.sleep(step.pause)
        turns, client = group.turns(server), self._client
        has_waited = turns.locked(client)
        if has_waited:
            try:
                async with asyncio.timeout(step.timeout):
                    await turns.acquire(client)
            except TimeoutError:
                return Trouble(Failure.LOCAL, "too many pending requests")
            if server not in self._passed_over and group.may_pass(server):
                # Requests before this one found the server dead.
                turns.release(client)
                self._passed_over.add(server)
                return Trouble(Failure.LOCAL, "passed over")
            if not self.is_trial and group.circuit.is_open:
                turns.release(client)
                return Trouble(Failure.LOCAL, group.circuit.cause, final=True)
        else:
            await turns.acquire(client)
        left = group.left(self.until)
        try:
            result = await self._try(server, min(group.timeout, left))
        finally:
            turns.release(client)
        if not isinstance(result, Trouble) or result.failure is not Failure.SHORT:
            group.shortage.closed()
        if isinstance(result, Trouble) and result.failure is Failure.SILENT:
            if has_waited and left < group.timeout:
                return Trouble(Failure.LOCAL, result.cause)  # Bounded
            self._excluded[server] = result.cause
        return result

    async def _try(self, server: int, seconds: float) -> T | Trouble:
        """Ask a server, with a timeout in seconds; return the result or why it failed."""
        is_new = server not in self._sent_to
        self._sent_to.add(server)
        try:
            async with asyncio.timeout(seconds):
                try:
                    return await self.exchange(server)
                except self.broken as error:
                    if not is_new or not self.is_unanswered(error):
                        raise
                return await self._ask_again(server)
        except TimeoutError:
            return Trouble(Failure.SILENT, "timeout")
        except BadReplyError as error:
            return Trouble(Failure.BROKEN, str(error))
        except NotKeptError as error:
            return Trouble(Failure.LOCAL, str(error), final=True)
        except Exception as error:  # noqa: BLE001  # Never raises
            return self.translate(error)

    async def _ask_again(self, server: int) -> T:
        """Return the result of a reply to the second try (*Repeated once*)."""
        try:
            return await self.exchange(server)
        except self.broken as error:
            if not self.is_unanswered(error) or not await self.is_healthy(server):
                raise
        # The system's error depends on which side was faster: use one text.
        raise BadReplyError("closed the connection, but answers a ping")
