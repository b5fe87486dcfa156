"""The settings in a filter's command that some listeners can't serve.

Only the words of the command are read: `check` warns where a filter with settings for authenticated
users is on listeners on which nobody can authenticate, and where one that requires TLS is on those
without it. Settings in a chain file are not considered.
"""

from __future__ import annotations

import shlex

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_CHAIN, _LIMIT, _MAILFROM, _TLS = "filter-chain", "filter-limit", "filter-mailfrom", "filter-tls"
_SUPERVISE = "filter-supervise"


def programs_named(command: str) -> frozenset[str]:
    """Return the names of files in a command: those of programs, also behind a supervisor."""
    try:
        words = shlex.split(command)
    except ValueError:
        return frozenset()
    return frozenset(word.rpartition("/")[2] for word in words)


def flags_of(command: str) -> frozenset[str]:
    """Return the flags in a command, also those behind a supervisor."""
    try:
        words = shlex.split(command)
    except ValueError:
        return frozenset()
    return frozenset(word.partition("=")[0] for word in words if word.startswith("-"))


def chain_run_by(words: Sequence[str]) -> tuple[str, str] | None:
    """Return the file and the chain that a command of filter-chain names, "" for the default one.

    None if it is another command.
    """
    if not any(word.rpartition("/")[2] == _CHAIN for word in words):
        return None
    file = chain = ""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        spelt, equals, value = word.partition("=")
        if spelt in {"--config", "-f"}:
            file = value if equals else following
        elif spelt == "--chain":
            chain = value if equals else following
    return file, chain


def name_in_journal(command: str) -> str:
    """Return the name that a filter of this package has in the journal, "" if it sends nothing.

    The filters of a filter-chain have their names in its file, and a program that isn't of this
    package has that of its own file.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    if not any(word.partition("=")[0] == "--journal" for word in words):
        return ""
    kinds = [word.rpartition("/")[2] for word in words]
    kinds = [each for each in kinds if each.startswith("filter-") and each != _SUPERVISE]
    if not kinds or kinds[0] == _CHAIN:
        return ""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--filter-name":
            return value if equals else following
    return kinds[0].removeprefix("filter-")


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


def required_tls(command: str) -> list[str]:
    """Return what a filter-tls in the command requires, each as it is written."""
    try:
        words = shlex.split(command)
    except ValueError:
        return []
    if not any(word.rpartition("/")[2] == _TLS for word in words):
        return []
    return [
        value if equals else following
        for word, following in zip(words, [*words, ""][1:], strict=True)
        for flag, equals, value in [word.partition("=")]
        if flag == "--require"
    ]


def _settings(name: str, words: Sequence[str]) -> list[str]:
    found = []
    for word, following in zip(words, [*words, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        value = value if equals else following
        if name == _MAILFROM and flag == "--senders":
            found.append(flag)
        if name == _LIMIT and flag == "--limit" and "user" in value.partition(" ")[0].split("+"):
            found.append(f"{flag} '{value}'")
    return found
