"""The kind of setting for the address of an HTTP server.

The invariants are those of `smtpd_filters.settings.kind`.
"""

from __future__ import annotations

from smtpd_filters.settings import Kind

from .messages import Endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.sandbox import Needs


class _Url(Kind[str]):
    metavar = "URL|PATH"
    noun = "http://HOST:PORT or the path of a socket"

    def parse(self, text: str) -> str:
        # Checking it imports a library: see `checked`.
        return text

    def declare(self, value: str, needs: Needs) -> None:
        Endpoint(value).declare(needs)


#: The address of an HTTP server, as for `Endpoint`.
URL = _Url()


def checked(url: str) -> str:
    """Return a server's URL; raise ValueError if it is invalid."""
    Endpoint(url)
    return url
