"""The trial negotiation at start, which tells the phases that a milter can refuse at."""

from __future__ import annotations

import socket
from time import monotonic

from smtpd_filters.milter import Agreement, MilterError, MtaSide

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.lookups.stream.address import Address
    from smtpd_filters.milter import Offer


class NoAgreementError(Exception):
    """A milter can't be reached, or isn't one; the text is the reason."""


def probe(address: Address, offer: Offer, seconds: float) -> Agreement:
    """Negotiate with a milter and hang up, within this time. Raises NoAgreementError.

    This blocks: it is for the time before the filter is ready.
    """
    until = monotonic() + seconds
    try:
        with _connected(address, seconds) as link:
            return _negotiated(link, MtaSide(offer), until)
    except MilterError as error:
        raise NoAgreementError(str(error)) from None
    except OSError as error:
        raise NoAgreementError(error.strerror or str(error) or "timed out") from None


def _connected(address: Address, seconds: float) -> socket.socket:
    if not address.path:
        return socket.create_connection((address.host, address.port), seconds)
    link = socket.socket(socket.AF_UNIX)
    try:
        link.settimeout(seconds)
        link.connect(address.path)
    except BaseException:
        link.close()
        raise
    return link


def _negotiated(link: socket.socket, mta: MtaSide, until: float) -> Agreement:
    link.sendall(mta.negotiate())
    while (answer := mta.answer()) is None:
        link.settimeout(max(until - monotonic(), 0.001))
        data = link.recv(1 << 14)
        if not data:
            raise NoAgreementError("closed the connection")
        mta.receive(data)
    assert isinstance(answer, Agreement)  # noqa: S101  # nothing else answers a negotiation
    link.sendall(mta.quit())
    return answer
