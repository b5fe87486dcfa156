"""The settings in a filter's command that some listeners can't serve.

Only the words of the command are read: `check` warns where a filter with settings for authenticated
users is on listeners on which nobody can authenticate, and where one that requires TLS is on those
without it. Settings in a chain file are not considered.
"""

from __future__ import annotations

from .commands import file_name, flags_in, programs_named, words_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_LIMIT, _MAILFROM, _TLS = "filter-limit", "filter-mailfrom", "filter-tls"


def for_users(command: str) -> str:
    """Return a setting of the command that has an effect on authenticated users only, or ""."""
    words = words_of(command)
    for at, word in enumerate(words):
        name = file_name(word)
        if name in (_LIMIT, _MAILFROM):
            return next(iter(_settings(name, words[at + 1 :])), "")
    return ""


def required_tls(command: str) -> list[str]:
    """Return what a filter-tls in the command requires, each as it is written."""
    if _TLS not in programs_named(command):
        return []
    return [value for flag, value in flags_in(words_of(command)) if flag == "--require"]


def _settings(name: str, words: Sequence[str]) -> list[str]:
    found = []
    for flag, value in flags_in(words):
        if name == _MAILFROM and flag == "--senders":
            found.append(flag)
        if name == _LIMIT and flag == "--limit" and _is_for_users(value):
            found.append(f"{flag} '{value}'")
    return found


def _is_for_users(limit: str) -> bool:
    """Return whether a limit is by user; False for an invalid one, which is an error of its own."""
    from smtpd_filters.filters.limit.rules import parse_rule  # start-up time

    try:
        return "user" in parse_rule(limit).subject
    except ValueError:
        return False
