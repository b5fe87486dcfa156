"""Helpers that run work which is split into steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def run(steps: Iterator[None]) -> object:
    """Run all steps; return the result of the generator."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def rejection(action: Callable[[], object]) -> str | None:
    """Return the error text of an action, or None if it succeeds."""
    try:
        action()
    except ConfigError as error:
        return str(error)
    return None
