"""Pings that tell a server that is slow from one that is dead.

A client can make requests take a healthy server too long. Such requests alone don't open the
circuit of the servers: a ping that is answered keeps it closed, and closes it again. A ping is a
coroutine function that returns whether a server has answered, or None if that is not known, as when
the connection is refused: that costs no time, so that requests may find out themselves.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    from .breaker import Circuit

    Ping: TypeAlias = Callable[[], Awaitable[bool | None]]


class Pings:
    """The pings that decide about a circuit; `clock` is any monotonic clock."""

    __slots__ = ("_check", "_circuit", "_clock")

    def __init__(self, circuit: Circuit, clock: Callable[[], float]) -> None:
        self._circuit = circuit
        self._clock = clock
        #: The ping that decides whether the circuit opens.
        self._check: asyncio.Task[None] | None = None

    async def silent(self, cause: str, ping: Ping | None, seconds: float) -> None:
        """Record a request that no server has answered in time.

        If there were enough, open the circuit, unless a server answers a ping. Wait so many seconds
        for that, which are left to the request.
        """
        circuit = self._circuit
        circuit.silent(cause, self._clock())
        if not circuit.is_due:
            return
        if ping is None:
            circuit.open()
            return
        import asyncio

        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._decide(ping))
        # It goes on if the time has passed, or if this request is cancelled.
        await asyncio.wait([self._check], timeout=max(seconds, 0))

    async def _decide(self, ping: Ping) -> None:
        alive = await ping()
        if alive:
            self._circuit.answered()
        elif alive is not None and self._circuit.is_due:  # others may have had an answer meanwhile
            self._circuit.open()

    async def begin_trial(self, ping: Ping) -> bool:
        """Return whether a request may be sent that is a trial; a ping closes the circuit."""
        circuit = self._circuit
        alive = await ping()
        if alive:
            circuit.answered()
        elif alive is not None:
            circuit.silent(f"{circuit.label} no answer to a ping", self._clock())
            return False
        return True

    async def aclose(self) -> None:
        """End a ping."""
        if self._check is not None:
            import asyncio

            self._check.cancel()
            await asyncio.wait([self._check])
