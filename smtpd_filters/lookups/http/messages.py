"""The messages of the HTTP client: requests, responses, failures and the servers' addresses.

The module is cheap to import; `connection`, which sends requests, imports aiohttp.
"""

from __future__ import annotations

import os

from smtpd_filters.lookups.failover.failures import (
    OVERSIZED,
    BadReplyError,
    declare_host,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

    import aiohttp

    from smtpd_filters.runtime.pace import Pace
    from smtpd_filters.sandbox import Needs

    from .connection import Exchange

    #: A body: bytes, or a function that returns its chunks, called once for each try.
    Body = bytes | Callable[[], Iterator[bytes]]

#: Characters that no host has (RFC 3986 section 3.2.2), and those of user information and of lists.
_NOT_IN_HOSTS = '@,\\"<>^`{|}'
#: Bytes of a reply at most.
REPLY_LIMIT = 1 << 20
#: Units of work (`pace`) for a piece of content, and bytes for one additional unit.
_PIECE, _PER_UNIT = 50, 100


class Response:
    """A response: the status, the header fields (names ignore case), and the content.

    The content can be read once, with `read`, `piece` or `pieces`; it is not decoded.
    """

    __slots__ = (
        "_content", "_exchange", "_limit", "_pace", "_taken", "headers", "size", "status",
    )  # fmt: skip

    def __init__(
        self, response: aiohttp.ClientResponse, exchange: Exchange, limit: int, pace: Pace
    ) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        # aiohttp has rejected invalid numbers.
        length = self.headers.get("Content-Length", "")
        #: The bytes of the content, None without a Content-Length.
        self.size = int(length) if length.isdecimal() else None
        self._content = response.content
        self._exchange = exchange
        self._limit = limit
        self._pace = pace
        self._taken = 0

    @property
    def early(self) -> bool:
        """Whether the server began to reply before the whole request was sent.

        A reply that arrives in the meantime may still count as early or not.
        """
        return self._exchange.early

    @property
    def delimited(self) -> bool:
        """Whether the reply says where its content ends, so that a missing part is noticed."""
        coding = self.headers.get("Transfer-Encoding", "")
        return self.size is not None or coding.lower().endswith("chunked")

    async def read(self) -> bytes:
        """Return the whole content; raise BadReplyError beyond the request's limit."""
        parts = [await self.piece()]
        while part := await self.piece():
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def piece(self) -> bytes:
        """Return the next piece of the content, empty at the end, once `pace` admits its work.

        Raises BadReplyError beyond the request's limit.
        """
        if (self.size or 0) > self._limit:
            raise BadReplyError(OVERSIZED)
        if self._content.at_eof():
            return b""
        part = await self._content.readany()
        if part:
            self._exchange.taken()
            self._taken += len(part)
            if self._taken > self._limit:
                raise BadReplyError(OVERSIZED)
            await self._pace.admit(_PIECE + len(part) // _PER_UNIT)
        return part

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the content as from `piece`."""
        while part := await self.piece():
            yield part

    def __repr__(self) -> str:
        return f"<response {self.status}>"


class Request:
    """A request: a POST of `body` to `path`; a GET without a body.

    `size` is the body's in bytes, if known in advance; otherwise the body is sent in HTTP's chunks.
    `limit` is how many bytes a reply may have. After a valid reply, `trouble` is the cause of
    failure of the servers asked before.
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


class Endpoint:
    """The address of a server: `http[s]://HOST[:PORT][/PATH]`, or the path of a unix socket.

    `label` is its name in logs, `tls` whether it is asked over TLS. Raises ValueError for anything
    else.
    """

    __slots__ = ("_server", "base", "host", "label", "path", "socket", "tls")

    def __init__(self, url: str) -> None:
        self.socket = self.path = ""
        self.tls = False
        self._server: tuple[str, int] | None = None
        path = url.removeprefix("unix:")
        if path.startswith("/"):
            if "\0" in path or len(os.fsencode(path)) > 107:
                # unix(7): sun_path has 108 bytes with the final null.
                raise ValueError(f"invalid path of a socket: {url!r}")
            self.socket = self.label = path
            self.host = "localhost"
            self.base = "http://localhost"
            return
        from urllib.parse import urlsplit  # at start, where aiohttp is loaded as well

        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(
                f"expected http://HOST:PORT, https://HOST or the path of a socket, not {url!r}"
            )
        try:
            port = parts.port
        except ValueError:
            port = 0
        if port == 0:
            raise ValueError(f"the port must be 1 to 65535: {url!r}")
        odd = any(c.isspace() or not c.isprintable() for c in url) or not url.isascii()
        if odd or set("?#") & set(url) or set(_NOT_IN_HOSTS) & set(parts.netloc):
            raise ValueError(f"invalid URL of a server: {url!r}")
        self.host = parts.netloc
        self.path = parts.path.rstrip("/")
        self.base = f"{parts.scheme}://{self.host}"
        self.label = self.base + self.path
        self.tls = parts.scheme == "https"
        self._server = parts.hostname, port or (443 if self.tls else 80)

    def declare(self, needs: Needs) -> None:
        """Declare that a process connects to this server after its start."""
        if self._server is None:
            needs.to_connect_unix(self.socket)
            return
        host, port = self._server
        declare_host(needs, host, port)
