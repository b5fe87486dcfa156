"""The interface of back-ends of remote tables, and their failures.

Invariants
----------
*Unavailable is not absent*: `look_up` returns None only if the source has stated that it has no
entry. A timeout, an error, a missing base or an answer that can't be read is a BackendError.
"""

from __future__ import annotations

from asyncio import sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from smtpd_filters.sandbox import Needs

#: Entries of a list that is loaded, at most: about 200 MB.
LIST_MAX = 1_000_000
#: Characters of a value that is looked up, at most: as of a line in a file (`source.LINE_MAX`).
VALUE_MAX = 1 << 15
#: Rows or entries of one look-up that are read, where one of them counts: table-ldap's limit.
ROWS_MAX = 100
#: The seconds that a look-up may take, by default. A list may take `LIST_FACTOR` times as long.
TIMEOUT = 2.0
LIST_FACTOR = 10


#: Entries that are handled in one step of the loop.
SOME = 1000


class BackendError(Exception):
    """A source can't be asked now; the text is the cause, without the key."""


class AnswerError(BackendError):
    """The source has answered, with an error: it is alive, and other keys may be fine.

    A client can choose keys that the source has errors for, so they don't count as failures of it.
    """


def unexpected(error: Exception) -> str:
    """Return the cause of a failure other than a BackendError.

    Libraries and we ourselves raise many kinds for what a strange server answers. None of them may
    end a refresh, or make a key absent.
    """
    if isinstance(error, OSError | MemoryError):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"[:200]


class Backend:
    """A source of entries; used within one event loop.

    `timeout` is in seconds, of one look-up. `joined` tells whether several values of a key are one
    value, joined by commas, as of smtpd's aliases.
    """

    #: Its label for the log: the specification of the table.
    label = ""
    timeout = TIMEOUT
    #: Whether it can look up a key, and list all entries.
    by_key = True
    lists = True
    #: The number of the content that the last answer came from: answers of another one are stale.
    version = 0

    async def look_up(self, key: str) -> str | None:
        """Return the value of a key, "" for an entry without one; None if there is no entry.

        Raises BackendError.
        """
        raise NotImplementedError

    async def entries(self, seconds: float) -> list[tuple[str, str]]:
        """Return all entries and their values, "" in a list, within some seconds.

        Raises BackendError.
        """
        raise NotImplementedError

    async def mistakes(self) -> list[str]:
        """Return what the source itself calls wrong about the configuration, for an operator.

        Raises BackendError.
        """
        return []

    def declare(self, needs: Needs) -> None:
        """Declare what it needs after the start."""

    async def aclose(self) -> None:
        """Release everything; never raise. It can be used again, in another event loop."""


async def release(rows: list[Any]) -> None:
    """Empty a list in steps, since freeing a million entries at once holds the loop."""
    while rows:
        del rows[-SOME:]
        await sleep(0)


def value_of(values: Sequence[str], *, joined: bool) -> str | None:
    """Return the value of an entry with these values; None without any.

    Raises BackendError for one that no table can have.
    """
    if not values:
        return None
    value = ", ".join(values) if joined else values[0]
    if len(value) > VALUE_MAX:
        raise AnswerError(f"a value longer than {VALUE_MAX} characters")
    if not value.isprintable() and any(char < " " and char != "\t" for char in value):
        raise AnswerError("a value with control characters")
    return value
