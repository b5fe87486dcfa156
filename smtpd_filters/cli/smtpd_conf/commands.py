"""The words of a filter's command in smtpd.conf: programs, flags and their values."""

from __future__ import annotations

import shlex

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CHAIN, _SUPERVISE = "filter-chain", "filter-supervise"


def words_of(command: str) -> list[str]:
    """Return the words of a command, as the shell splits it; none if it can't be split."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def file_name(word: str) -> str:
    """Return a word without directories: the name of a program, if it is one."""
    return word.rpartition("/")[2]


def flags_in(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each flag, also those behind a supervisor, with its value: maybe the next word."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        if flag.startswith("-"):
            yield flag, value if equals else following


def programs_named(command: str) -> frozenset[str]:
    """Return the names of files in a command: those of programs, also behind a supervisor."""
    return frozenset(map(file_name, words_of(command)))


def flags_of(command: str) -> frozenset[str]:
    """Return the flags in a command, also those behind a supervisor."""
    return frozenset(flag for flag, _ in flags_in(words_of(command)))


def chain_run_by(words: Sequence[str]) -> tuple[str, str] | None:
    """Return the file and the chain that a command of filter-chain names, "" for the default one.

    None if it is another command.
    """
    if _CHAIN not in map(file_name, words):
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
    names = map(file_name, words)
    kinds = [each for each in names if each.startswith("filter-") and each != _SUPERVISE]
    if not kinds or kinds[0] == _CHAIN:
        return ""
    given = (value for flag, value in flags if flag == "--filter-name")
    return next(given, kinds[0].removeprefix("filter-"))
