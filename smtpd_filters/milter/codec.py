"""Packets of the milter protocol: a length, a command byte, and its payload.

Invariants
----------
*Bounded*: no more than one packet of the stated limit is kept, and the length is checked before
anything behind it.
*Split anywhere*: the packets don't depend on how the stream is cut into pieces.
"""

from __future__ import annotations

from struct import Struct

from .vocabulary import MAX_PAYLOAD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

UINT32 = Struct(">I")
UINT16 = Struct(">H")
_HEAD = 4
_PRINTABLE = range(0x20, 0x7F)


class MilterError(Exception):
    """The peer broke the protocol, or our own side tried to; the text says how."""


def packet(command: bytes, payload: bytes = b"") -> bytes:
    """Return a packet. Raises MilterError if libmilter would reset the connection for its size."""
    if len(payload) > MAX_PAYLOAD:
        raise MilterError(f"a packet of {len(payload)} bytes, which milters don't take")
    return UINT32.pack(1 + len(payload)) + command + payload


def cstr(text: bytes) -> bytes:
    """Return a null-terminated string. Raises MilterError for a null inside."""
    if b"\0" in text:
        raise MilterError("a null in a string")
    return text + b"\0"


def strings(payload: bytes) -> list[bytes]:
    """Return the null-terminated strings of a payload; raise MilterError if the last isn't."""
    if not payload:
        return []
    if payload[-1:] != b"\0":
        raise MilterError("a string without its end")
    return payload[:-1].split(b"\0")


def joined(texts: Sequence[bytes]) -> bytes:
    """Return strings one behind the other, each with its null. Raises MilterError as `cstr`."""
    if not texts:
        return b""
    whole = b"\0".join(texts) + b"\0"
    if whole.count(b"\0") != len(texts):
        raise MilterError("a null in a string")
    return whole


class Packets:
    """The packets in a stream of bytes; `limit` is the longest of them, in bytes."""

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes of the stream; call `next` until it returns None before the next ones."""
        self._buffer += data

    def next(self) -> tuple[bytes, bytes] | None:
        """Return command and payload of the next packet; None if it isn't complete.

        Raises MilterError for an invalid length; the stream can't be read any further then.
        """
        buffer = self._buffer
        if len(buffer) < _HEAD:
            return None
        (size,) = UINT32.unpack_from(buffer)
        if not 0 < size <= self._limit:
            raise MilterError(_odd_length(bytes(buffer[:_HEAD]), size))
        if len(buffer) < _HEAD + size:
            return None
        command = bytes(buffer[_HEAD : _HEAD + 1])
        payload = bytes(buffer[_HEAD + 1 : _HEAD + size])
        del buffer[: _HEAD + size]
        return command, payload

    @property
    def empty(self) -> bool:
        """Whether no byte of a further packet has arrived."""
        return not self._buffer


def _odd_length(word: bytes, size: int) -> str:
    """Describe a length that no packet has."""
    if all(byte in _PRINTABLE for byte in word):
        return f'not a milter: it sends "{word.decode("ascii")}"'
    return f"a packet of {size} bytes"


def shown(data: bytes) -> str:
    """Return a command or a line for an error: in quotes, printable, of limited length."""
    if len(data) == 1 and not b" " < data < b"\x7f":
        return f"0x{data.hex()}"
    return f'"{repr(data[:60])[2:-1]}"'
