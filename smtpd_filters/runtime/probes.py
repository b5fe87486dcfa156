"""Probes: questions to the services that filters depend on, for `smtpd-filters check --online`.

A filter that is started with the environment of `check --online` serves no sessions: it asks its
services once, in its sandbox and with its user's rights, and writes each result as a line of JSON.

Invariants
----------
*Ends*: every probe has a time limit, and all are asked side by side; so has the end of the filters.
*Told*: a mistake in a filter's own probes is a fault, and keeps no other from being asked.
*One each*: filters of a process that ask the same service alike have one probe.
"""

from __future__ import annotations

from functools import partial
from stat import S_ISSOCK, S_IWGRP
from typing import NamedTuple

from smtpd_filters.errors import UnavailableError

from .channel import CLOSING
from .log import MAX_TEXT, fold_traceback, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
    from typing import Any

#: The start of a line with a result, which is followed by JSON.
MARK = "smtpd-filters-probe "
#: Seconds for the answer to a probe.
TIMEOUT = 10.0
_GROUP = (
    "smtpd gives a filter the primary group of its user alone: add the socket's group to the "
    'filter\'s line in smtpd.conf (proc-exec "..." group NAME), or have it listen on a port'
)


class Probe(NamedTuple):
    """A question to a service.

    `subject` names the service, as in "name server 192.0.2.53"; an address at its end isn't
    repeated in a fault. `ask` is a coroutine function that returns "", or why the service can't be
    used. UnavailableError is such a fault too, with its text; any other exception or result is a
    bug, shown with its traceback. It has 10 seconds.
    """

    subject: str
    ask: Callable[[], Awaitable[str]]


class Answer(NamedTuple):
    """The result of a probe: the fault is "" if the service answers as it should."""

    subject: str
    seconds: float
    fault: str

    def line(self) -> str:
        """Return it as a line for the process that reads the results."""
        from json import dumps

        return f"{MARK}{dumps(self._asdict())}"

    @classmethod
    def parse(cls, line: str) -> Answer | None:
        """Parse a line; None if it isn't a result."""
        from json import loads

        if not line.startswith(MARK):
            return None
        try:
            found = loads(line[len(MARK) :])
            return cls(str(found["subject"]), float(found["seconds"]), str(found["fault"]))
        except (ValueError, TypeError, LookupError, RecursionError):
            return None


def own(name: str, probes: Callable[[], Iterable[object]]) -> Iterator[Probe]:
    """Yield the probes of a filter's own code; one that fails if they can't be used."""
    try:
        found = [_checked(each) for each in probes()]
    except Exception as error:  # noqa: BLE001  # of a filter's own code
        found = [Probe(f"probes of {name}", partial(_failed, fold_traceback(error)))]
    yield from found


def _checked(probe: object) -> Probe:
    if not isinstance(probe, Probe):
        raise TypeError(f"expected a Probe, not {probe!r}")
    subject: object = probe.subject
    if not isinstance(subject, str):
        raise TypeError(f"expected a text as the subject, not {subject!r}")
    return probe


async def _failed(why: str) -> str:
    return why


async def end(closing: Coroutine[Any, Any, None], *, seconds: float = CLOSING) -> None:
    """Close filters; what isn't done after `seconds` is cancelled at the end of the loop."""
    from asyncio import ensure_future, wait

    await wait({ensure_future(closing)}, timeout=seconds)


async def ask(probes: Iterable[Probe], seconds: float = TIMEOUT) -> list[Answer]:
    """Ask all side by side; return the answers in the order of the probes, one for each subject."""
    from asyncio import gather

    return list(await gather(*(_ask(each, seconds) for each in _distinct(probes))))


def _distinct(probes: Iterable[Probe]) -> Iterator[Probe]:
    seen: set[str] = set()
    for each in probes:
        if each.subject not in seen:
            seen.add(each.subject)
            yield each


async def _ask(probe: Probe, seconds: float) -> Answer:
    from asyncio import current_task, timeout
    from time import monotonic

    began = monotonic()
    try:
        async with timeout(seconds):
            fault = await probe.ask()
        _check(fault)
    except TimeoutError:
        fault = f"no answer within {seconds:g} s"
    except UnavailableError as error:
        fault = show(error) or "unavailable"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of a filter's own code
        task = current_task()
        if task is not None and task.cancelling():
            raise
        fault = fold_traceback(error)
    return Answer(probe.subject, monotonic() - began, _advised(probe.subject, fault)[:MAX_TEXT])


def _check(fault: object) -> None:
    if not isinstance(fault, str):
        raise TypeError(f'a probe returns "" or why the service can\'t be used, not {fault!r}')


def _advised(subject: str, fault: str) -> str:
    """Return a fault without the address that the subject has, and with what to do about it."""
    address = subject.rpartition(" ")[2]
    fault = fault.removeprefix(f"{address} ").removeprefix(f"{address}: ")
    ending = fault.casefold()
    unreachable = ending.endswith(("connection refused", "no such file or directory"))
    denied = address.startswith("/") and ending.endswith("permission denied")
    if not (unreachable or denied):
        return fault
    mode = _mode(address)
    if mode is not None and not S_ISSOCK(mode):
        advice = "it is no socket: remove it, and restart the server that should listen there"
    elif unreachable:
        advice = "does it run, and listen there?"
    elif mode is not None and not mode & S_IWGRP:
        allowed = f"{mode & 0o777:04o}"
        advice = f"the socket has mode {allowed}: have its server let its group write to it"
    else:
        advice = _GROUP
    return f"{fault}; {advice}"


def _mode(path: str) -> int | None:
    """Return the type and mode of a file; None for no path, or if they can't be read."""
    from pathlib import Path

    try:
        return Path(path).stat().st_mode if path.startswith("/") else None
    except (OSError, ValueError):  # its directory can't be searched, say
        return None
