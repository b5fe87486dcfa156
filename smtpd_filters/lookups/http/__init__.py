"""An HTTP client with fail-over, and its connections."""

from __future__ import annotations

from smtpd_filters.lookups.failover.failures import BadReplyError, NotKeptError

from .client import Client, SharedClient
from .messages import Endpoint, Request, Response

__all__ = [
    "BadReplyError",
    "Client",
    "Endpoint",
    "NotKeptError",
    "Request",
    "Response",
    "SharedClient",
]
