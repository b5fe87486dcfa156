"""The settings in a filter's command that concern authenticated users only.

Only the words of the command are read: `check` warns where such a filter is on listeners on which
nobody can authenticate. Settings in a chain file are not considered.
"""

from __future__ import annotations

import shlex

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_LIMIT, _MAILFROM = "filter-limit", "filter-mailfrom"


def programs_named(command: str) -> frozenset[str]:
    """Return the names of files in a command: those of programs, also behind a supervisor."""
    try:
        words = shlex.split(command)
    except ValueError:
        return frozenset()
    return frozenset(word.rpartition("/")[2] for word in words)


def for_users(command: str) -> str:
    """Return a setting of the command that has an effect on authenticated users only, or ""."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    for at, word in enumerate(words):
        name = word.rpartition("/")[2]
        if name in (_LIMIT, _MAILFROM):
            return next(iter(_settings(name, words[at + 1 :])), "")
    return ""


def _settings(name: str, words: Sequence[str]) -> list[str]:
    found = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        value = value if equals else following
        if name == _MAILFROM and flag == "--senders":
            found.append(flag)
        if name == _LIMIT and flag == "--limit" and "user" in value.partition(" ")[0].split("+"):
            found.append(f"{flag} '{value}'")
    return found
