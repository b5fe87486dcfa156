"""The settings in a filter's command that some listeners can't serve.

Only the words of the command are read: `check` warns where a filter with settings for authenticated
users is on listeners on which nobody can authenticate, and where one that requires TLS is on those
without it. Settings in a chain file are not considered.
"""

from __future__ import annotations

from .commands import flags_in, words_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_CHAIN, _LIMIT, _MAILFROM, _TLS = "filter-chain", "filter-limit", "filter-mailfrom", "filter-tls"
_SUPERVISE = "filter-supervise"


def programs_named(command: str) -> frozenset[str]:
    """Return the names of files in a command: those of programs, also behind a supervisor."""
    return frozenset(word.rpartition("/")[2] for word in words_of(command))


def flags_of(command: str) -> frozenset[str]:
    """Return the flags in a command, also those behind a supervisor."""
    return frozenset(flag for flag, _ in flags_in(words_of(command)))


def chain_run_by(words: Sequence[str]) -> tuple[str, str] | None:
    """Return the file and the chain that a command of filter-chain names, "" for the default one.

    None if it is another command.
    """
    if not any(word.rpartition("/")[2] == _CHAIN for word in words):
        return None
    file = chain = ""
    for flag, value in flags_in(words):
        if flag in {"--config", "-f"}:
            file = value
        elif flag == "--chain":
            chain = value
    return file, chain


def name_in_journal(command: str) -> str:
    """Return the name that a filter of this package has in the journal, "" if it sends nothing.

    The filters of a filter-chain have their names in its file, and a program that isn't of this
    package has that of its own file.
    """
    words = words_of(command)
    flags = list(flags_in(words))
    if not any(flag == "--journal" for flag, _ in flags):
        return ""
    kinds = [word.rpartition("/")[2] for word in words]
    kinds = [each for each in kinds if each.startswith("filter-") and each != _SUPERVISE]
    if not kinds or kinds[0] == _CHAIN:
        return ""
    given = (value for flag, value in flags if flag == "--filter-name")
    return next(given, kinds[0].removeprefix("filter-"))


def for_users(command: str) -> str:
    """Return a setting of the command that has an effect on authenticated users only, or ""."""
    words = words_of(command)
    for at, word in enumerate(words):
        name = word.rpartition("/")[2]
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
        if name == _LIMIT and flag == "--limit" and "user" in value.partition(" ")[0].split("+"):
            found.append(f"{flag} '{value}'")
    return found
