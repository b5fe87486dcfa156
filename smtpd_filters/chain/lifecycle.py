"""The life of a chain's filters beside their handlers: events, background work, reload, end.

Invariants
----------
*Failures are a filter's own*: one that fails is logged, and the others are called all the same.
"""

from __future__ import annotations

from time import monotonic

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.runtime.log import fold_traceback, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from typing import Any

    from smtpd_filters.filter import Filter
    from smtpd_filters.runtime.log import Log
    from smtpd_filters.runtime.watchdog import Watchdog
    from smtpd_filters.session import Session
    from smtpd_filters.settings import Pool
    from smtpd_filters.tables import Table


def notify(watchdog: Watchdog, event: str, filters: Sequence[Filter], session: Session) -> None:
    """Call an event method of filters."""
    for filter_ in filters:
        watchdog.running = monotonic()
        try:
            getattr(filter_, event)(session)
            watchdog.running = 0.0
        except BaseException as error:  # noqa: BLE001  # failures are a filter's own
            watchdog.running = 0.0
            if isinstance(error, UnavailableError):
                filter_.log.failure(event, event, session.id, {}, cause=show(error))
                continue
            text = fold_traceback(error)
            filter_.log.defect(event, session, text)
            filter_.log.failure(event, event, session.id, {}, error=text)


async def refresh(filter_: Filter) -> None:
    """Call a filter's `refresh`, within its interval; never raises."""
    import asyncio  # it is there already where there are coroutines

    limit: asyncio.Timeout | None = None
    try:
        async with asyncio.timeout(max(filter_.refresh_interval, 1)) as limit:
            await filter_.refresh()
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001  # failures are a filter's own
        expected = limit is not None and limit.expired()
        _log_failure(filter_, "refresh", error, expected=expected)


def reload_tables(filters: Iterable[Filter], log: Log) -> Iterator[None]:
    """Reload the tables of filters from their files, a step of bounded work at a time.

    One that can't be read keeps its entries.
    """
    for filter_ in filters:
        values = vars(filter_.settings)
        for name in values:
            value = values[name]
            if getattr(value, "is_file", False):
                yield from reload_table(log, filter_.name, name.replace("_", "-"), value)


def reload_table(log: Log, owner: str, name: str, value: Any) -> Iterator[None]:
    """Reload a table, and log the result."""
    result = yield from _reloaded(value)
    log.event(owner, "reload", table=name, **result)


def _reloaded(value: Any) -> Generator[None, None, dict[str, str]]:
    """Reload one table; return what to log."""
    try:
        changed = yield from value.reload()
        result = {"result": "ok" if changed else "unchanged"}
    except ConfigError as error:
        result = {"error": str(error), "result": "kept"}
    except MemoryError:
        result = {"error": "out of memory", "result": "kept"}
    except BaseException as error:  # noqa: BLE001  # nothing is fatal any more
        result = {"error": fold_traceback(error), "result": "kept"}
    try:
        # An author's own kind of table may have neither.
        files = getattr(value, "files", ())
        if files:
            result = {**result, "file": " ".join(files), "entries": str(value.entries)}
    except MemoryError:
        pass
    return result


async def close(filters: Sequence[Filter], log: Log, further: Iterable[Table] = ()) -> None:
    """Release what filters hold: call their `close`, and close their remote tables and pools.

    `further` are remote tables besides those of the filters.
    """
    for filter_ in filters:
        try:
            await filter_.close()
        except BaseException as error:  # noqa: BLE001  # failures are a filter's own
            _log_failure(filter_, "close", error)
    of_filters: Iterator[Any] = (table for each in filters for table in each.remote_tables())
    for table in (*further, *of_filters):
        await table.remote.aclose()
    for pool in pools_of(filters):
        try:
            await pool.aclose()
        except BaseException as error:  # noqa: BLE001  # nothing is fatal any more
            log.event("smtpd-filters", "close", error=fold_traceback(error))


def pools_of(filters: Iterable[Filter]) -> list[Pool]:
    """Return what filters have opened together."""
    return list({id(each.pool): each.pool for each in filters}.values())


def _log_failure(
    filter_: Filter, what: str, error: BaseException, *, expected: bool = False
) -> None:
    """Log the exception of an event method that belongs to no session."""
    if isinstance(error, UnavailableError):
        filter_.log.event(what, cause=show(error))
        return
    text = fold_traceback(error)
    if not expected:
        filter_.log.defect(what, "", text)
    filter_.log.event(what, error=text)
