"""The words of a filter's command in smtpd.conf, and the flags in them."""

from __future__ import annotations

import shlex

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def words_of(command: str) -> list[str]:
    """Return the words of a command, as the shell splits it; none if it can't be split."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def flags_in(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each flag, also those behind a supervisor, with its value: maybe the next word."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        if flag.startswith("-"):
            yield flag, value if equals else following
