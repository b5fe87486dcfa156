"""The header fields that servers have added, and their messages, without I/O.

Invariants
----------
*Bounded*: a message gets at most `MAX_FIELDS` fields of `MAX_BYTES` in all, and those of all
sessions together have at most `MAX_KEPT` bytes, whatever servers say.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    #: Its name and its value.
    Field: TypeAlias = tuple[str, str]

#: Of a message: Postfix has no limit; a message rarely gets more than one of each server.
MAX_FIELDS, MAX_BYTES = 50, 32 << 10
#: Of all sessions of a process.
MAX_KEPT = 16 << 20
#: Bytes of memory of a field beside its text.
_COST = 250


class Kept:
    """The bytes of the fields of all sessions."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0


class Messages:
    """The messages of a session, and the fields to add to the current one."""

    __slots__ = ("_fields", "_kept", "_of_session", "_tx", "number")

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        #: The number of the current message, 0 before the first.
        self.number = 0
        #: Its transaction; None between MAIL and the next command.
        self._tx: object | None = None
        #: Fields to add to this message, and to each message of the session.
        self._fields: list[Field] = []
        self._of_session: list[Field] = []

    @property
    def fields(self) -> list[Field]:
        """The fields to add to the current message, the first one on top."""
        return [*self._of_session, *self._fields]

    def begin(self, tx: object | None = None) -> None:
        """Begin a message, whose transaction may not be known yet."""
        self.number += 1
        self._tx = tx
        self._fields = self._dropped(self._fields)

    def enter(self, tx: object) -> None:
        """Note the transaction of a command after MAIL; it may be that of a new message."""
        if self._tx is None and self.number:
            self._tx = tx
        elif self._tx is not tx:
            self.begin(tx)

    def add(self, field: Field, *, to_session: bool = False) -> bool:
        """Keep a field, the same one once; return False if there is no room for it."""
        every = self.fields
        if field in every:
            return True
        cost = _cost(field)
        size = cost + sum(map(_cost, every))
        if len(every) >= MAX_FIELDS or size > MAX_BYTES or self._kept.size + cost > MAX_KEPT:
            return False
        self._kept.size += cost
        (self._of_session if to_session else self._fields).append(field)
        return True

    def release(self) -> None:
        """Drop all fields: the session has ended."""
        self._fields = self._dropped(self._fields)
        self._of_session = self._dropped(self._of_session)

    def _dropped(self, fields: list[Field]) -> list[Field]:
        self._kept.size -= sum(map(_cost, fields))
        return []


def _cost(field: Field) -> int:
    return len(field[0]) + len(field[1]) + _COST
