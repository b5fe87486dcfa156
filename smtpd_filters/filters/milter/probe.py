"""The trial negotiation at start, which tells the phases that a milter can refuse at."""

from __future__ import annotations

import socket
from time import monotonic

from smtpd_filters.lookups.happy_eyeballs import connected_in
from smtpd_filters.milter import Agreement, MilterError, MtaSide

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.lookups.stream.address import Address
    from smtpd_filters.milter import Offer


class NoAgreementError(Exception):
    """A milter can't be reached, or isn't one; the text is the reason."""


def probe(address: Address, offer: Offer, seconds: float) -> Agreement:
    """Negotiate with a milter and hang up, within this time. Raises NoAgreementError.

    This blocks: it is for the time before the filter is ready. Only the C library, as it resolves a
    name, may take longer.
    """
    until = monotonic() + seconds
    try:
        with _connected(address, until) as link:
            return _negotiated(link, MtaSide(offer), until)
    except MilterError as error:
        raise NoAgreementError(str(error)) from None
    except OSError as error:
        raise NoAgreementError(error.strerror or str(error) or "timed out") from None


def _left(until: float) -> float:
    """Return the seconds that are left. Raises TimeoutError."""
    seconds = until - monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds


def _connected(address: Address, until: float) -> socket.socket:
    """Connect to a unix socket, or to one of a host's addresses. Raises OSError."""
    if not address.path:
        return connected_in(address.host, address.port, _left(until))
    link = socket.socket(socket.AF_UNIX)
    try:
        link.settimeout(_left(until))
        link.connect(address.path)
    except BaseException:
        link.close()
        raise
    return link


def _negotiated(link: socket.socket, mta: MtaSide, until: float) -> Agreement:
    link.sendall(mta.negotiate())
    while (answer := mta.answer()) is None:
        link.settimeout(_left(until))
        data = link.recv(1 << 14)
        if not data:
            raise NoAgreementError("closed the connection")
        mta.receive(data)
    assert isinstance(answer, Agreement)  # noqa: S101  # nothing else answers a negotiation
    link.sendall(mta.quit())
    return answer
