"""A service over HTTP that is asked in JSON, with a cache of its answers.

    reputation = Service.setting()
    answer = await self.reputation.ask({"address": session.address})
    answer = await self.reputation.get("address", session.address)

Invariants
----------
*Own resource*: text of a client in a path or a query can't change which resource is asked about. A
segment is encoded as a whole, and is not sent if a server could take it for more, less or none.
*Unavailable raises*: a request without a usable answer raises UnavailableError, so that the
filter's `--on-error` decides.
*Bounded*: an answer has at most LIMIT bytes, a path with its query TARGET, and the cache is bounded
in entries and in memory.
*Paced*: answers are parsed at the pace of all look-ups (`pace`), however many arrive at once.
*Own copy*: each caller gets an answer of its own, which it may change.
"""

from __future__ import annotations

import re
import time
from codecs import BOM_UTF8
from json import JSONDecoder, dumps
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, overload
from urllib.parse import quote, urlencode

from smtpd_filters.errors import UnavailableError
from smtpd_filters.lookups.cache import MAX_ENTRY, Cache
from smtpd_filters.lookups.failover.failures import BadReplyError
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.runtime.pace import pace
from smtpd_filters.settings.shared import PoolCloses

from .client import Client
from .messages import Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from smtpd_filters.lookups.failover.breaker import Note

    from .setting import OptionalServiceSetting, ServiceSetting

T = TypeVar("T")
M = TypeVar("M")

HTTP_OK, HTTP_NOT_FOUND = 200, 404
#: The statuses of a server that has taken a notice.
_TAKEN = range(200, 300)
#: Bytes of an answer at most: parsing it takes 3 ms, in which no other session is served.
LIMIT = 64 << 10
#: Bytes of an answer for a unit of work (`pace`), and those that are too few to count.
_PER_UNIT, _FEW = 20, 500
#: Bytes of a path with its query at most: RFC 9112 section 3 recommends that servers support
#: "request-line lengths of 8000 octets". Encoding more could take long.
TARGET = 8000
#: Entries of the cache at most, as of a resolver's.
ENTRIES = 8192
#: What a program raises that finds something else in an answer than it expects.
_UNUSABLE = (
    ValueError, TypeError, LookupError, AttributeError,
    ArithmeticError,  # such as int(1e999)
    RecursionError,
)  # fmt: skip
#: What is kept of an answer with status 404: no JSON.
_MISSING = b""
#: The default of `missing`.
_FAILURE = object()
#: What is sent as it is besides letters, digits and "_.-~". Others are for servers to interpret:
#: "+" can be a blank, and ";" begins a parameter.
_PLAIN = "@:"
#: The error handler by which a byte that isn't UTF-8 is sent as itself.
_BYTES = "surrogateescape"
#: Parts of a path that servers remove, also if encoded (RFC 3986 section 6.2.2, nginx's
#: merge_slashes); some decode slashes before, or take backslashes for such.
_SLASHES = re.compile(r"[/\\]")
_SHORTENED = frozenset({"", ".", ".."})
#: What ends a segment for some servers, also if encoded: nginx decodes a semicolon and passes it on
#: as such, and servlets take the rest for parameters; C takes a NUL for the end.
_ENDS = re.compile(r"[;\0]")


class Service:
    """An HTTP service that answers in JSON, which `Service.setting` opens for a filter."""

    def __init__(  # noqa: PLR0913  # one for each limit
        self,
        urls: Sequence[str],
        *,
        timeout: float,
        deadline: float,
        keep: float = 0.0,
        token: str = "",
        connections: int,
        clock: Callable[[], float] = time.monotonic,
        note: Note | None = None,
    ) -> None:
        """See `Client`; answers are kept for `keep` seconds by `clock`.

        Raises ConfigError for an invalid URL.
        """
        self._client = Client(
            urls,
            timeout=timeout,
            deadline=deadline,
            connections=connections,
            note=note,
            watch=note,
        )
        self._fields = [("Accept", "application/json")]
        if token:
            self._fields.append(("Authorization", f"Bearer {token}"))
        self._post_fields = [("Content-Type", "application/json"), *self._fields]
        self._keep = keep
        self._clock = clock
        self._kept: Cache[bytes] = Cache(ENTRIES)

    @overload
    @staticmethod
    def setting(
        flag: str = ..., *, keep: float = ..., required: Literal[True] = ...
    ) -> ServiceSetting: ...
    @overload
    @staticmethod
    def setting(
        flag: str = ..., *, keep: float = ..., required: Literal[False]
    ) -> OptionalServiceSetting: ...

    @staticmethod
    def setting(
        flag: str = "service", *, keep: float = 60.0, required: bool = True
    ) -> ServiceSetting:
        """Declare a service, as an attribute of a filter: `reputation = Service.setting()`.

        This declares the flags `--service`, which the operator must give, `--service-timeout`,
        `--service-keep`, whose default is `keep` in seconds, and `--service-token-file`. The
        attribute is a service that filters of the process share, with its cache, if they are
        configured alike. A filter with two services gives them different flags: with
        `setting("reputation")` they are `--reputation`, `--reputation-timeout` and so on.
        With `required=False` the operator may leave out the first flag; the attribute is then None.
        """
        from .setting import OptionalServiceSetting, ServiceSetting  # used by filters only

        if not required:
            return OptionalServiceSetting(flag, keep=keep)
        return ServiceSetting(flag, keep=keep)

    @overload
    async def ask(self, question: object, *, path: tuple[str, ...] = ()) -> Any: ...
    @overload
    async def ask(
        self, question: object, read: Callable[[Any], T], *, path: tuple[str, ...] = ()
    ) -> T: ...

    async def ask(
        self,
        question: object,
        read: Callable[[Any], Any] | None = None,
        *,
        path: tuple[str, ...] = (),
    ) -> Any:
        """POST a question as JSON to the address with `path` appended; return the answer's value.

        The segments of `path` are as for `get`. An answer has status 200, JSON as content, and at
        most 64 KiB. It is cached, and used again for an equal question; equal ones that are pending
        at the same time are each sent. `read` gets its value and returns what is to be returned. If
        it raises ValueError, TypeError, LookupError, AttributeError, ArithmeticError or
        RecursionError, the answer is unusable: it isn't cached, and the next server is asked.

        A server that couldn't be reached, gave no answer in time or broke off in one three times in
        a row is passed over for 30 seconds. One that gives another status or an unusable answer is
        alive, and is asked first again: a question must not keep others from being answered. If
        there are several servers, the log has a line `server failed` for one that fails in either
        way, and `answers again` for its next usable answer; at most one of each a minute.

        Raises UnavailableError if no server gave a usable answer in time, and for a segment that
        can't be sent. Raises TypeError or ValueError for a question that JSON can't express, a
        mistake of the caller.
        """
        data = dumps(question, allow_nan=False, sort_keys=True).encode()
        return await self._value(_target(path), data, read)

    @overload
    async def get(
        self, *path: str, query: Mapping[str, str] | None = ..., missing: object = ...
    ) -> Any: ...
    @overload
    async def get(
        self, *path: str, query: Mapping[str, str] | None = ..., read: Callable[[Any], T]
    ) -> T: ...
    @overload
    async def get(
        self,
        *path: str,
        query: Mapping[str, str] | None = ...,
        read: Callable[[Any], T],
        missing: M,
    ) -> T | M: ...

    async def get(
        self,
        *path: str,
        query: Mapping[str, str] | None = None,
        read: Callable[[Any], Any] | None = None,
        missing: object = _FAILURE,
    ) -> Any:
        """GET the address with `path` and `query` appended; return the answer's value.

        `get("quota", "a/b@example.org")` asks for `/quota/a%2Fb@example.org`: each segment of the
        path, and each name and value of the query, is percent-encoded as a whole (RFC 3986), from
        UTF-8, and a byte of the client that isn't UTF-8 as this byte. So it may hold text of a
        client. Answers, `read` and failing servers are as with `ask`.

        `missing` is the result if the server answers with status 404, since it doesn't know what it
        is asked about; that is cached as well. Without `missing` this status is a failure too.

        Raises UnavailableError if no server gave a usable answer in time; and, without asking, for
        a path that some servers decode and then shorten, to that of another resource: with a
        segment that is empty, `.` or `..`, has such a part between slashes or backslashes, or has a
        semicolon or a NUL. So it does for more than 8,000 bytes of path and query, and for a
        surrogate that stands for no byte.
        """
        return await self._value(_target(path, query or {}), None, read, missing)

    async def tell(self, notice: object, *, path: tuple[str, ...] = ()) -> None:
        """POST a notice as JSON to the address with `path` appended, as for a web hook.

        The segments of `path` are as for `get`. Any status from 200 to 299 will do, and the content
        of the reply isn't used. Nothing is cached: each notice is sent, by turns to each server
        until one has taken it, so that one that answers too late may have it as well.

        Raises UnavailableError, TypeError and ValueError as `ask`. Catch the first if the decision
        doesn't depend on the notice.
        """
        data = dumps(notice, allow_nan=False, sort_keys=True).encode()
        request = Request(_target(path), self._post_fields, data, size=len(data), limit=LIMIT)

        async def receive(response: Response) -> bool:
            if response.status not in _TAKEN:
                raise BadReplyError(f"status {response.status}")
            return True

        reply = await self._client.ask(request, receive)
        if isinstance(reply, Unavailable):
            raise UnavailableError(reply.cause)

    async def _value(
        self,
        path: str,
        body: bytes | None,
        read: Callable[[Any], Any] | None,
        missing: object = _FAILURE,
    ) -> Any:
        """Return the value of the answer, from the cache or a server, as `read` returns it."""
        key = path, body
        content = self._kept.get(key, self._clock())
        if content == _MISSING and missing is not _FAILURE:
            return missing
        if content is not None:
            try:
                return await _parsed(content, read)
            except BadReplyError:
                pass  # another `read`, or no `missing`: it can't be used
        if body is None:
            request = Request(path, self._fields, None, limit=LIMIT)
        else:
            request = Request(path, self._post_fields, body, size=len(body), limit=LIMIT)

        async def receive(response: Response) -> tuple[bytes, Any]:
            if response.status == HTTP_NOT_FOUND and missing is not _FAILURE:
                await response.read()
                return _MISSING, missing
            if response.status != HTTP_OK:
                raise BadReplyError(f"status {response.status}")
            content = await response.read()
            return content, await _parsed(content, read)

        reply = await self._client.ask(request, receive)
        if isinstance(reply, Unavailable):
            raise UnavailableError(reply.cause)
        content, value = reply
        size = len(content) + len(body or b"") + len(path)
        if self._keep and size <= MAX_ENTRY:
            self._kept.put(key, content, self._clock() + self._keep, size + 350)
        return value

    async def aclose(self) -> None:
        """Close the connections; pending and later requests raise UnavailableError."""
        await self._client.aclose()


class SharedService(PoolCloses, Service):
    """The service of filters, which only the pool closes (`settings.shared`)."""

    resource = "service"


def _target(segments: Sequence[str], query: Mapping[str, str] | None = None) -> str:
    """Return the path of segments with a query, each encoded as a whole.

    Raises UnavailableError if it can't be sent.
    """
    if isinstance(segments, str):
        raise TypeError(f"path: expected a tuple of segments, not {segments!r}")
    query = query or {}
    size = sum(map(len, segments)) + sum(len(name) + len(str(query[name])) for name in query)
    if size > TARGET:
        raise UnavailableError(_LONG)
    for segment in segments:
        if not _SHORTENED.isdisjoint(_SLASHES.split(segment)):
            raise UnavailableError("not asked: a segment of the path is empty or dots")
        if _ENDS.search(segment):
            raise UnavailableError("not asked: a segment of the path has a semicolon or a NUL")
    try:
        target = "".join(f"/{quote(segment, _PLAIN, errors=_BYTES)}" for segment in segments)
        if query:
            target += f"?{urlencode(query, quote_via=quote, safe=_PLAIN, errors=_BYTES)}"
    except UnicodeEncodeError:
        raise UnavailableError("not asked: a lone surrogate") from None
    if len(target) > TARGET:
        raise UnavailableError(_LONG)
    return target


async def _parsed(content: bytes, read: Callable[[Any], Any] | None) -> Any:
    """Return the value of an answer's JSON, as `read` returns it; raise BadReplyError."""
    if len(content) > _FEW:
        await pace().admit(len(content) // _PER_UNIT)
    try:
        value = _JSON.decode(content.removeprefix(BOM_UTF8).decode())
    except (ValueError, RecursionError):
        raise BadReplyError("invalid JSON") from None
    try:
        return value if read is None else read(value)
    except _UNUSABLE:
        raise BadReplyError("unusable answer") from None


def _refuse(name: str) -> NoReturn:
    """Refuse NaN and infinity, which compare as no number does and aren't JSON (RFC 8259)."""
    raise ValueError(name)


_JSON = JSONDecoder(parse_constant=_refuse)
_LONG = f"not asked: more than {TARGET} bytes of path and query"
