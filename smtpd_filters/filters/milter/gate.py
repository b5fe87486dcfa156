"""The admission of sessions to a milter that may be down.

After timeouts in a row sessions fail at once; one from time to time tries
(`failover.breaker.Circuit`). A client can make a command take long, so a ping decides
(`Milter.ping`).
"""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from smtpd_filters.lookups.failover.breaker import Circuit
from smtpd_filters.lookups.failover.pings import Pings
from smtpd_filters.runtime.counters import INVALID, PASSED_OVER, TIMEOUT

if TYPE_CHECKING:
    from types import TracebackType

    from smtpd_filters.lookups.failover.breaker import Note
    from smtpd_filters.lookups.failover.pings import Ping


class FailedError(Exception):
    """A milter has failed; the text is the cause, without details that differ each time.

    `lost` says that it closed a connection, so that a new one may work; `silent` that it has said
    nothing in time. `failure` is how it is counted: one of `counters.FAILURES`.
    """

    def __init__(
        self, cause: str, failure: str = INVALID, *, lost: bool = False, silent: bool = False
    ) -> None:
        super().__init__(cause)
        self.failure = failure
        self.lost = lost
        self.silent = silent


class Gate:
    """A circuit and its pings, at which sessions are admitted."""

    __slots__ = ("circuit", "pings")

    def __init__(self, label: str, note: Note | None, rest: float) -> None:
        self.circuit = Circuit(label, note, rest=rest)
        self.pings = Pings(self.circuit, monotonic)

    def admission(self, ping: Ping | None = None, until: float = inf) -> Admission:
        """Return a context manager that admits a session, which has until then."""
        return Admission(self, ping, until)


class Admission:
    """A context manager that admits a session, or raises FailedError while the circuit is open."""

    __slots__ = ("_circuit", "_is_trial", "_ping", "_pings", "_until")

    def __init__(self, gate: Gate, ping: Ping | None, until: float) -> None:
        self._circuit, self._pings = gate.circuit, gate.pings
        self._ping = ping
        self._until = until
        self._is_trial = gate.circuit.is_open

    async def __aenter__(self) -> None:
        if not self._is_trial:
            return
        circuit, ping = self._circuit, self._ping
        if not circuit.admits(monotonic()):
            raise FailedError(circuit.cause, PASSED_OVER)
        if ping is None:
            return
        try:
            may = await self._pings.begin_trial(ping)
        except BaseException:  # cancelled
            circuit.release()
            raise
        if not may:
            raise FailedError(circuit.cause, TIMEOUT)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, FailedError) and error.silent:
                left = self._until - asyncio.get_running_loop().time()
                await self._pings.silent(str(error), self._ping, left)
        finally:
            if self._is_trial:
                self._circuit.release()
