"""Storage for the decoded archives of a message: a part of the spool of all messages."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.message import Message


class Storage:
    """Bytes in the spool, as `smtpd_filters.mime` needs them. Raises SpoolError."""

    __slots__ = ("_body", "_store")

    def __init__(self, message: Message) -> None:
        # The spool is only reached by a body, whose store takes any bytes in blocks.
        self._body = message.new_body()
        self._store = self._body.store

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self._store.size

    def write(self, data: bytes) -> None:
        """Append bytes."""
        if data:
            self._store.append_block(data)

    def read(self, at: int, size: int) -> bytes:
        """Return at most `size` bytes from an offset; empty at the end or for an invalid one."""
        return self._store.read(at, size) if 0 <= at < self._store.size else b""

    def discard(self) -> None:
        """Release the bytes."""
        self._body.discard()
