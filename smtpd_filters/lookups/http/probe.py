"""A ping of an HTTP server, for the probes of `smtpd-filters check`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.lookups.outcome import Unavailable

    from .messages import Response


async def ping(url: str, seconds: float) -> int | Unavailable:
    """Ask a server for /ping; return the status of its reply."""
    from .attempts import PING
    from .client import Client

    client = Client((url,), timeout=seconds, deadline=seconds)
    try:
        return await client.ask(PING, _status)
    finally:
        await client.aclose()


async def _status(response: Response) -> int:
    await response.read()
    return response.status
