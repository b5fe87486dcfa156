"""Why a request to a server failed: exceptions, and the translation of the system's errors.

Causes are texts for the log without details that differ between requests, since the log suppresses
repeated lines.
"""

from __future__ import annotations

import errno
import os
from _socket import gaierror

from smtpd_filters.lookups.outcome import Value
from smtpd_filters.lookups.retry import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.sandbox import Needs

CLOSED = "the client is closed"
OVERSIZED = "oversized reply"
#: Threads in which the C library resolves names of hosts.
RESOLVING = 8
# Failures of this machine, not of the server: no descriptors, which other requests release, and
# no local address.
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_LOCAL = frozenset({errno.EADDRNOTAVAIL})


class BadReplyError(Exception):
    """A server's reply is invalid; the text is the reason."""


class NotKeptError(Exception):
    """A reply can't be stored here, whichever server sends it; the text is the reason."""


class Trouble(Value):
    """Why a try failed; `final` if no other server is to be asked."""

    __match_args__ = ("failure", "cause", "final")
    __slots__ = __match_args__

    def __init__(self, failure: Failure, cause: str, *, final: bool = False) -> None:
        self.failure = failure
        self.cause = cause
        self.final = final


def connect_trouble(why: BaseException) -> Trouble:
    """Translate the error of a failed connect."""
    number = getattr(why, "errno", None)
    if isinstance(why, gaierror):
        # Without a free descriptor resolving a host's name fails, with various errors.
        number = _shortage() or number
    if number in _SHORT:
        return Trouble(Failure.SHORT, os.strerror(number).lower())
    if number is None and isinstance(why, TimeoutError):
        return Trouble(Failure.SILENT, "no connection")
    failure = Failure.LOCAL if number in _LOCAL else Failure.UNREACHABLE
    return Trouble(failure, reason(why, "cannot connect"))


def _shortage() -> int:
    """Return the system's error number for another descriptor; 0 if there is one."""
    try:
        os.close(os.dup(0))
    except OSError as error:
        return error.errno or 0
    return 0


def reason(error: BaseException | None, otherwise: str) -> str:
    """Return the system's text for a failure, in a few words."""
    number = getattr(error, "errno", None)
    if why := getattr(error, "verify_message", None):
        return f"bad certificate: {why}"
    if why := getattr(error, "reason", None):  # an SSLError's errno is not the system's
        return f"no TLS: {why}".lower().replace("_", " ").replace("tls", "TLS")
    if isinstance(number, int) and number > 0:
        return os.strerror(number).lower()
    return getattr(error, "strerror", None) or otherwise


def declare_host(needs: Needs, host: str, port: int) -> None:
    """Declare that a process connects to a host after its start."""
    needs.to_connect(host, port)
    if needs.resolves:
        needs.to_start_threads(RESOLVING)
