"""A service over HTTP that is asked in JSON, with a cache of its answers.

    reputation = Service.setting()
    answer = await self.reputation.ask({"address": session.address})

Invariants
----------
*Unavailable raises*: a request without a usable answer raises UnavailableError, so that the
filter's `--on-error` decides.
*Bounded*: an answer has at most LIMIT bytes, and the cache is bounded in entries and in memory.
*Own copy*: each caller gets an answer of its own, which it may change.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from smtpd_filters.errors import UnavailableError
from smtpd_filters.lookups.cache import MAX_ENTRY, Cache
from smtpd_filters.lookups.failover.failures import BadReplyError
from smtpd_filters.lookups.outcome import Unavailable

from .client import Client
from .messages import Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smtpd_filters.lookups.failover.breaker import Note

    from .setting import OptionalServiceSetting, ServiceSetting

T = TypeVar("T")

HTTP_OK = 200
#: Bytes of an answer at most: parsing it takes 2 ms, in which no other session is served.
LIMIT = 64 << 10
#: Entries of the cache at most, as of a resolver's.
ENTRIES = 8192
#: What a program raises that finds something else in an answer than it expects.
_UNUSABLE = (ValueError, TypeError, LookupError, AttributeError)


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
        self._fields = [("Content-Type", "application/json"), ("Accept", "application/json")]
        if token:
            self._fields.append(("Authorization", f"Bearer {token}"))
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
    async def ask(self, question: object, *, path: str = "") -> Any: ...
    @overload
    async def ask(self, question: object, read: Callable[[Any], T], *, path: str = "") -> T: ...

    async def ask(
        self, question: object, read: Callable[[Any], Any] | None = None, *, path: str = ""
    ) -> Any:
        """POST a question as JSON to the address with `path` appended; return the answer's value.

        An answer has status 200, JSON as content, and at most 64 KiB. It is cached, and used again
        for an equal question; equal ones that are pending at the same time are each sent. `read`
        gets its value and returns what is to be returned. If it raises ValueError, TypeError,
        LookupError or AttributeError, the answer is unusable: it isn't cached, and the next server
        is asked.

        A server that couldn't be reached, gave no answer in time or broke off in one three times in
        a row is passed over for 30 seconds. One that gives another status or an unusable answer is
        alive, and is asked first again: a question must not keep others from being answered. If
        there are several servers, the log has a line `server failed` for one that fails in either
        way, and `answers again` for its next usable answer; at most one of each a minute.

        Raises UnavailableError if no server gave a usable answer in time. Raises TypeError or
        ValueError for a question that JSON can't express, a mistake of the caller.
        """
        data = json.dumps(question, allow_nan=False, sort_keys=True).encode()
        key = path, data
        content = self._kept.get(key, self._clock())
        if content is not None:
            try:
                return _value(content, read)
            except BadReplyError:
                pass  # another `read`, which can't use it
        request = Request(path, self._fields, data, size=len(data), limit=LIMIT)

        async def receive(response: Response) -> tuple[bytes, Any]:
            if response.status != HTTP_OK:
                raise BadReplyError(f"status {response.status}")
            content = await response.read()
            return content, _value(content, read)

        reply = await self._client.ask(request, receive)
        if isinstance(reply, Unavailable):
            raise UnavailableError(reply.cause)
        content, value = reply
        size = len(content) + len(data) + len(path)
        if self._keep and size <= MAX_ENTRY:
            self._kept.put(key, content, self._clock() + self._keep, size + 350)
        return value

    async def aclose(self) -> None:
        """Close the connections; pending and later requests raise UnavailableError."""
        await self._client.aclose()


class SharedService(Service):
    """The service of filters, which only the pool closes (`settings.shared`)."""

    async def aclose(self) -> None:
        """Raise RuntimeError: other filters may use it."""
        raise RuntimeError("a filter can't close its service: the framework does")


def _value(content: bytes, read: Callable[[Any], Any] | None) -> Any:
    """Return the value of an answer's JSON, as `read` returns it; raise BadReplyError."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise BadReplyError("invalid JSON") from None
    try:
        return value if read is None else read(value)
    except _UNUSABLE:
        raise BadReplyError("unusable answer") from None
