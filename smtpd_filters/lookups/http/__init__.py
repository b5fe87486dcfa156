"""An HTTP client with fail-over, its connections, and a circuit breaker for its servers."""

from __future__ import annotations

from .client import Client, SharedClient
from .messages import BadReplyError, Endpoint, NotKeptError, Request, Response

__all__ = [
    "BadReplyError",
    "Client",
    "Endpoint",
    "NotKeptError",
    "Request",
    "Response",
    "SharedClient",
]
