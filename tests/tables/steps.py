"""Work that is done in steps, done at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def run(steps: Iterator[None]) -> object:
    """Do all steps; the result of a generator."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def refused(action: Callable[[], object]) -> str | None:
    """What is said when an action is refused, if it is."""
    try:
        action()
    except ConfigError as error:
        return str(error)
    return None
