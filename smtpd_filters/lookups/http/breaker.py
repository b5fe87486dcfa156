"""A circuit breaker: servers that failed are passed over, and tried again one request at a time.

1. Closed: a server is asked in its place. `SILENCES` failures in a row open its circuit.
2. Open: for `SET_BACK` seconds it is asked only when all others have failed. So a dead server
   costs a few requests their time-out, and not each of them.
3. Half open: then one request asks it in its place, while all others go on passing it over. Its
   answer closes the circuit; without one it stays open for another `SET_BACK` seconds.

An answer that is an error is an answer: it shows that the server is alive. Where there is but one
server it is asked in any case. Time comes in from outside, in seconds of any steady clock.
"""

from __future__ import annotations

from smtpd_filters.lookups.retry import SET_BACK, SILENCES, Servers


class Breaker(Servers):
    """The servers by their labels; `order` is to be called once for each request."""

    __slots__ = ()

    def order(self, now: float) -> list[int]:
        """Return the servers in the order in which this request should ask them."""
        order = super().order(now)
        if order and self.is_open(order[0]):
            # This request is the trial of the server; the others see it passed over until then.
            self._back_until[order[0]] = now + SET_BACK
        return order

    def is_open(self, server: int) -> bool:
        """Whether the server has failed too often since it last answered."""
        return self._silences[server] >= SILENCES
