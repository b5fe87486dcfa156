"""What is asked of an HTTP server, where, and what a try comes to.

The module is cheap to import; `connection`, which sends a request, imports aiohttp.
"""

from __future__ import annotations

import os

from smtpd_filters.lookups.outcome import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

    import aiohttp

    from smtpd_filters.lookups.retry import Failure

    from .connection import Exchange

    #: A body: at once, or a function that gives it in chunks, anew for each try.
    Body = bytes | Callable[[], Iterator[bytes]]

#: Bytes of a reply.
REPLY_LIMIT = 1 << 20
OVERSIZED = "oversized reply"
#: The price of a piece of content (`pace`), and how many of its bytes are one unit more.
_PIECE, _PER_UNIT = 50, 100
CLOSED = "the client is closed"


class BadReplyError(Exception):
    """What a server said is no reply to the question; the text says why."""


class NotKeptError(Exception):
    """A reply can't be kept here, which no other server can help; the text says why."""


class Response:
    """A response: the status, the header fields (names without case), and the content.

    The content is read once, with `read` or `pieces`; a coding of it is not undone.
    """

    __slots__ = ("_content", "_exchange", "_limit", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse, exchange: Exchange, limit: int) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self._content = response.content
        self._exchange = exchange
        self._limit = limit

    @property
    def size(self) -> int | None:
        """The bytes of the content, if the server says so beforehand."""
        # What is no number aiohttp has refused.
        length = self.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None

    async def read(self) -> bytes:
        """Return the content as a whole.  Raises BadReplyError beyond the request's limit."""
        parts = [part async for part in self.pieces()]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the content in pieces as they come, each when `pace` admits the work of reading it.

        Raises BadReplyError beyond the request's limit.
        """
        from smtpd_filters.runtime.pace import pace  # asyncio is loaded by now

        size = self.size
        if size is not None and size > self._limit:
            raise BadReplyError(OVERSIZED)
        admit = pace().admit
        taken = 0
        while part := await self._content.readany():
            self._exchange.taken()
            taken += len(part)
            if taken > self._limit:
                raise BadReplyError(OVERSIZED)
            await admit(_PIECE + len(part) // _PER_UNIT)
            yield part

    def __repr__(self) -> str:
        return f"<response {self.status}>"


class Request:
    """What is asked: a POST of `body` to `path`; a GET if there is no body.

    `size` is the body's in bytes if that is known beforehand; without it the body is sent in HTTP's
    chunks. `limit` is how many bytes a reply may have. When there is a good one, `trouble` says of
    the servers that were asked before why theirs was none.
    """

    __slots__ = ("body", "headers", "limit", "path", "size", "trouble")

    def __init__(
        self,
        path: str,
        headers: Iterable[tuple[str, str]],
        body: Body | None,
        *,
        size: int | None = None,
        limit: int = REPLY_LIMIT,
    ) -> None:
        self.path = path
        self.headers = tuple(headers)
        self.body = body
        self.size = size
        self.limit = limit
        self.trouble = ""


class Trouble(Value):
    """Why a try came to nothing; `final` if no further one can do better."""

    __match_args__ = ("failure", "cause", "final")
    __slots__ = __match_args__

    def __init__(self, failure: Failure, cause: str, *, final: bool = False) -> None:
        self.failure = failure
        self.cause = cause
        self.final = final


class Endpoint:
    """Where a server is: `url` is ``http://HOST[:PORT][/PATH]`` or the path of a unix socket.

    `label` is how it is called in logs. Raises ValueError if it is neither.
    """

    __slots__ = ("base", "host", "label", "path", "socket")

    def __init__(self, url: str) -> None:
        self.socket = self.path = ""
        path = url.removeprefix("unix:")
        if path.startswith("/"):
            if "\0" in path or len(os.fsencode(path)) > 107:
                # unix(7): sun_path is 108 bytes with the final null.
                raise ValueError(f"no path of a socket: {url!r}")
            self.socket = self.label = path
            self.host = "localhost"
            self.base = "http://localhost"
            return
        from urllib.parse import urlsplit  # setup's business, when aiohttp is loaded anyway

        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
            raise ValueError(f"neither http://HOST:PORT nor the path of a socket: {url!r}")
        odd = any(c.isspace() or not c.isprintable() for c in url) or not url.isascii()
        if odd or parts.query or parts.fragment or set("@,") & set(parts.netloc):
            raise ValueError(f"not the address of a server: {url!r}")
        self.host = parts.netloc
        self.path = parts.path.rstrip("/")
        self.base = f"{parts.scheme}://{self.host}"
        self.label = self.base + self.path
