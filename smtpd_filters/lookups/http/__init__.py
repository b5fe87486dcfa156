"""An HTTP client with fail-over, its connections, and services that are asked in JSON."""

from __future__ import annotations

from smtpd_filters.lookups.failover.failures import BadReplyError, NotKeptError

from .client import Client, SharedClient
from .messages import Endpoint, Request, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .service import Service

__all__ = [
    "BadReplyError",
    "Client",
    "Endpoint",
    "NotKeptError",
    "Request",
    "Response",
    "Service",
    "SharedClient",
]


def __dir__() -> list[str]:
    # pydoc and completion list the names that are imported at first use as well.
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    if name != "Service":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .service import Service  # at first use: start-up time

    return Service
