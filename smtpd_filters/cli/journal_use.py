"""The common part of the verbs that read the journal: its place, times and output."""

from __future__ import annotations

import sys
from time import time
from typing import TYPE_CHECKING

from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.journal.places import DIRECTORY, read_key
from smtpd_filters.journal.query import Journal, TooSlowError
from smtpd_filters.settings import PATH, SECONDS, SWITCH, Settings, choice, option
from smtpd_filters.settings.quoting import printable

from .streams import OutputError, has_colours

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds of the longest time that can be asked for: ten years.
LONGEST = 3660 * 86400
DAY = 86400.0
#: The exit status if a file of the journal can't be read: something may be missing in the answer.
UNREADABLE = 2
_START = "has smtpd-filters journal run, with this --directory?"


class JournalOptions(Settings):
    """Which journal to read."""

    directory = option(PATH, default=DIRECTORY, help="The directory of the journal's files.")
    color = option(
        choice("auto", "always", "never"),
        default="auto",
        help="Whether to use colours; by default on a terminal that has them, unless NO_COLOR is "
        "set.",
    )
    json = option(SWITCH, default=False, help="Print JSON.")


SINCE = SECONDS(low=1, high=LONGEST)


def reading(options: JournalOptions, work: Callable[[Journal], int], *, finds: bool = False) -> int:
    """Call `work` with the journal; return its status, or UNREADABLE if a file was not read.

    Raises ConfigError if there is no journal.

    If it `finds` addresses, it notes that those that are hashed can't be found without the key.
    """
    journal = Journal(options.directory, key=b"")
    try:
        if journal.extent() is None:
            raise ConfigError(f"{printable(options.directory)}: no files of a journal; {_START}")
        journal = Journal(options.directory, key=key_of(options.directory, note=finds))
        status = work(journal)
    except TooSlowError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        if isinstance(error, BrokenPipeError | OutputError):
            raise
        start = f"; {_START}" if isinstance(error, FileNotFoundError) else ""
        text = f"{printable(options.directory)}: {os_reason(error)}{start}"
        raise ConfigError(text) from None
    return UNREADABLE if note_unread(journal) else status


def note_unread(journal: Journal) -> bool:
    """Note on stderr which files the last query could not read; return whether there are any."""
    for path, why in journal.unread.items():
        sys.stderr.write(f"smtpd-filters: {printable(path)}: not read: {printable(why)}\n")
    return bool(journal.unread)


def key_of(directory: str, *, note: bool = False) -> bytes:
    """Return the key with which addresses are hashed; b"" if it is missing or unreadable.

    With `note` an unreadable key is noted on stderr.
    """
    try:
        return read_key(directory)
    except ConfigError as error:  # addresses need not be hashed
        if note:
            sys.stderr.write(
                f"smtpd-filters: {printable(str(error))}: no hashed address is found\n"
            )
        return b""


def since(seconds: float) -> float:
    """Return the time so many seconds ago."""
    return time() - seconds


def in_colour(options: JournalOptions) -> bool:
    """Whether to use colours."""
    if options.color == "auto":
        return has_colours()
    return options.color == "always"
