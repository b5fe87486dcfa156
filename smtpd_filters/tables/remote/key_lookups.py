"""Look-ups in a back-end, key by key: cached, joined, bounded, with a deadline and a breaker.

Invariants
----------
*Unavailable is not absent*: only an answer of the source makes a key absent.
*Bounded*: the cache is bounded in entries and memory, and so is the number of pending look-ups.
*Joined*: a key is asked once at a time, however many handlers wait for it.
*Failures end soon*: after `FAILURES` in a row, look-ups fail at once for `REST` seconds; then one
tries again while the others still fail. An error that is the source's answer to a key is no such
failure: clients choose keys.
"""

from __future__ import annotations

import asyncio
from time import monotonic

from smtpd_filters.errors import UnavailableError
from smtpd_filters.lookups.cache import Cache
from smtpd_filters.runtime.counters import (
    COUNTERS,
    INVALID,
    LOCAL,
    PASSED_OVER,
    TIMEOUT,
    UNREACHABLE,
)
from smtpd_filters.tables.source import KEY_MAX

from .backend import AnswerError, BackendError, unexpected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .backend import Backend

#: Answers in the cache, and their memory in bytes.
CACHED = 20_000
MEMORY = 8 << 20
#: Look-ups in flight, at most.
PENDING_MAX = 1000
FAILURES = 3
REST = 2.0
#: How its look-ups are counted (`runtime.counters`).
KIND = "table"
# RFC 3463 section 3.5, X.4.3: "Directory server failure".
STATUS = "4.4.3"
#: Bytes of an entry of the cache without its texts.
_ENTRY = 400


class Answer:
    """An answer: a value, "" for an entry without one, or None; or the cause of a failure.

    `origin` is where it came from: "source", "cache", or "stale" for one whose time has passed.
    """

    __slots__ = ("cause", "fresh_until", "origin", "value")

    def __init__(
        self, value: str | None, fresh_until: float = 0.0, origin: str = "source", cause: str = ""
    ) -> None:
        self.value = value
        self.fresh_until = fresh_until
        self.origin = origin
        self.cause = cause


class Breaker:
    """Decides whether a source that has failed is asked again; without a clock."""

    __slots__ = ("_failures", "_until", "cause")

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0
        #: The cause of the last failure; "" if the last look-up succeeded.
        self.cause = ""

    @property
    def is_open(self) -> bool:
        """Whether a source has failed too often since its last answer."""
        return self._failures >= FAILURES

    def admits(self, now: float) -> bool:
        """Return whether to ask; true for one look-up when the rest is over."""
        if not self.is_open:
            return True
        if now < self._until:
            return False
        self._until = now + REST
        return True

    def succeeded(self) -> None:
        """Note an answer."""
        self._failures = 0
        self.cause = ""

    def failed(self, cause: str, now: float) -> None:
        """Note a failure."""
        self._failures += 1
        self._until = now + REST
        self.cause = cause


class KeyLookups:
    """The look-ups of one table.

    `ttl` is how long an answer is used, `missing` the same for a key without an entry, `stale` how
    long after that an answer is used while the source is unavailable; all in seconds.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        ttl: float = 60.0,
        missing: float = 10.0,
        stale: float = 0.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.backend = backend
        self._ttl, self._missing, self._stale = ttl, missing, stale
        #: The number of look-ups that may be pending.
        self.max_pending = PENDING_MAX
        self._clock = clock
        self._cache: Cache[Answer] = Cache(CACHED, MEMORY)
        self._pending: dict[str, asyncio.Task[Answer]] = {}
        self._breaker = Breaker()
        self._version = backend.version
        self._down = False
        #: Takes a text for the log.
        self.note: Callable[[str], object] | None = None
        COUNTERS.watch(KIND, self)

    def circuits(self) -> Iterator[tuple[str, bool]]:
        """Yield the source's label, and whether look-ups fail at once."""
        yield self.backend.label, self._breaker.is_open

    def cached(self, key: str) -> Answer | None:
        """Return the answer if it is in memory and fresh."""
        now = self._clock()
        answer = self._cache.get(key, now)
        return answer if answer is not None and now < answer.fresh_until else None

    async def look_up(self, key: str) -> str | None:
        """Return the value of a key, or None. Raises UnavailableError."""
        answer = self.cached(key) or await self.ask(key)
        if answer.cause:
            raise UnavailableError(answer.cause, STATUS)
        return answer.value

    async def ask(self, key: str) -> Answer:
        """Return the answer for a key; its `cause` is set if there is none."""
        if not askable(key):
            return Answer(None, origin="invalid key")
        if (known := self.cached(key)) is not None:
            return Answer(known.value, origin="cache")
        task = self._task(key)
        if isinstance(task, str):
            return self._failed(key, task)
        answer = await asyncio.shield(task)
        return self._failed(key, answer.cause) if answer.cause else answer

    def forget(self) -> None:
        """Forget all answers."""
        self._cache.clear()

    def start(self, keys: Iterable[str]) -> None:
        """Start to look up the keys that are not in memory, since they are asked for next."""
        for key in keys:
            if askable(key) and self.cached(key) is None:
                self._task(key)

    def _task(self, key: str) -> asyncio.Task[Answer] | str:
        """Return the pending look-up of a key, or why there is none."""
        if (task := self._pending.get(key)) is not None:
            return task
        if not self._breaker.admits(self._clock()):
            COUNTERS.of(KIND).ended(0.0, PASSED_OVER)
            return self._breaker.cause
        if len(self._pending) >= self.max_pending:
            COUNTERS.of(KIND).ended(0.0, LOCAL)
            return "too many look-ups"
        task = self._pending[key] = asyncio.get_running_loop().create_task(self._ask(key))
        return task

    async def _ask(self, key: str) -> Answer:
        """Ask the source; never raises, except if it is cancelled."""
        backend = self.backend
        began = monotonic()
        failure: str | None = None  # cancelled
        try:
            async with asyncio.timeout(backend.timeout):
                value = await backend.look_up(key)
            failure = ""
        except AnswerError as error:
            failure = INVALID
            self._note_success()
            return Answer(None, cause=str(error))
        except BackendError as error:
            failure = UNREACHABLE
            return self._note_failure(str(error))
        except TimeoutError:
            failure = TIMEOUT
            return self._note_failure(f"no answer within {backend.timeout:g} s")
        except Exception as error:  # noqa: BLE001  # of a library
            failure = INVALID
            return self._note_failure(unexpected(error))
        finally:
            if failure is not None:
                COUNTERS.of(KIND).ended_since(began, failure)
            self._pending.pop(key, None)
        self._note_success()
        if backend.version != self._version:
            self._version = backend.version
            self.forget()
        ttl = self._missing if value is None else self._ttl
        now = self._clock()
        answer = Answer(value, now + ttl)
        size = _ENTRY + len(key) + len(value or "")
        self._cache.put(key, answer, now + ttl + self._stale, size)
        return answer

    def _note_success(self) -> None:
        self._breaker.succeeded()
        if self._down:
            self._down = False
            self._say("answers again")

    def _note_failure(self, cause: str) -> Answer:
        self._breaker.failed(cause, self._clock())
        if not self._down:
            self._down = True
            self._say(f"unavailable: {cause}")
        return Answer(None, cause=cause)

    def _failed(self, key: str, cause: str) -> Answer:
        """Return a stale answer if there is one, else the failure."""
        stale = self._cache.get(key, self._clock())
        if stale is not None:
            return Answer(stale.value, origin="stale")
        return Answer(None, cause=f"{self.backend.label}: {cause}")

    def _say(self, text: str) -> None:
        if self.note is not None:
            self.note(f"{self.backend.label}: {text}")

    async def aclose(self) -> None:
        """End pending look-ups and release the back-end; never raise."""
        pending = list(self._pending.values())
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        self._pending.clear()
        await self.backend.aclose()


def askable(key: str) -> bool:
    """Return whether a source is asked for a key at all: smtpd's rules, and no control characters.

    Keys come from clients. One with a line break would be two requests to a table program.
    """
    if not key or len(key) > KEY_MAX or not key.isprintable():
        return False
    return key.isascii() or len(key.encode("utf-8", "surrogateescape")) <= KEY_MAX
