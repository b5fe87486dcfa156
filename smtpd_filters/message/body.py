"""A new body for a message, written in pieces and kept in the wire form."""

from __future__ import annotations

from smtpd_filters.protocol.long_lines import break_line

from .dots import stuff_block
from .spool import Spool, Store

#: Bytes of a line beyond which it is broken.
_LONGEST = 1 << 16


class Body:
    """A replacement body, written piece by piece; see `Message.new_body`."""

    __slots__ = ("_pieces", "_size", "store")

    def __init__(self, spool: Spool) -> None:
        self.store = Store(spool)
        #: The beginning of an incomplete line.
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Write a piece, split anywhere; lines end in LF or CRLF and are not dot-stuffed.

        Any other CR becomes a space: a program that takes it for a line end would see other lines
        than this one, such as the end of the message. A NUL is left out, as smtpd would end the
        line there. Raises SpoolError if it can't be stored, and TypeError for a text.
        """
        if not isinstance(data, (bytes, bytearray)):
            raise TypeError(f"a body is bytes, not {type(data).__name__}")
        cut = data.rfind(b"\n") + 1
        if not cut:
            self._begin(data)
            return
        block = b"".join([*self._pieces, data[:cut]])
        self._pieces, self._size = [], 0
        self._store(block.replace(b"\r\n", b"\n"))
        self._begin(data[cut:])

    def close(self) -> None:
        """End the last line if it has no line end. Raises SpoolError."""
        if self._size:
            last, self._pieces, self._size = b"".join(self._pieces), [], 0
            self._store(last + b"\n")
        self.store.check()

    def discard(self) -> None:
        """Discard what was written."""
        self._pieces = []
        self.store.discard("the new body was discarded")

    def _begin(self, data: bytes) -> None:
        if not data:
            return
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _LONGEST:
            # smtpd doesn't accept such a line; broken only when sent, it would be one large piece.
            *lines, last = break_line(b"".join(self._pieces), header=False)
            self._pieces, self._size = [last], len(last)
            self._store(b"\n".join([*lines, b""]))

    def _store(self, block: bytes) -> None:
        self.store.append_block(stuff_block(block.replace(b"\r", b" ").replace(b"\0", b"")))
