"""A circuit breaker: failed servers are passed over, and tried again one request at a time.

The state of each server's circuit is one of three:

- Closed: the server is asked in its turn. `SILENCES` failures in a row open its circuit.
- Open: for `SET_BACK` seconds the server is asked only when all others have failed, so that a dead
  server delays a few requests by its timeout, not all of them.
- Half open: after that, one request asks the server in its turn, while all others still pass it
  over. An answer closes the circuit; without one it stays open for another `SET_BACK` seconds.

An error reply is an answer: the server is alive. A single server is always asked. Time is passed
in, in seconds of any monotonic clock.
"""

from __future__ import annotations

from smtpd_filters.lookups.retry import SET_BACK, SILENCES, Servers


class Breaker(Servers):
    """The servers by their labels; call `order` once for each request."""

    __slots__ = ()

    def order(self, now: float) -> list[int]:
        """Return the servers in the order for one request."""
        order = super().order(now)
        if order and self.is_open(order[0]):
            # This request tries the server; other requests pass it over until then.
            self._back_until[order[0]] = now + SET_BACK
        return order

    def is_open(self, server: int) -> bool:
        """Return whether the server has failed too often since its last answer."""
        return self._silences[server] >= SILENCES
