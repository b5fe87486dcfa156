"""The part of the Basic Encoding Rules that LDAP uses (RFC 4511 section 5.1).

Lengths are definite and tags have one byte. Nothing here recurses, and every length is checked
against what contains it, so that hostile bytes can only raise BERError.
"""

from __future__ import annotations

BOOLEAN, INTEGER, OCTETS, ENUMERATED, SEQUENCE, SET = 0x01, 0x02, 0x04, 0x0A, 0x30, 0x31
#: Bytes of a length after its first: 4 GiB.
_LENGTH_MAX = 4
_LONG = 0x80
#: Bytes of an integer: RFC 4511 section 4.1.1 allows 2^31 - 1.
_INTEGER_MAX = 8
_HIGH_TAG = 0x1F


class BERError(Exception):
    """Invalid BER."""


def element(tag: int, *parts: bytes) -> bytes:
    """Encode an element with this content."""
    content = b"".join(parts)
    size = len(content)
    if size < _LONG:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, _LONG | len(length))) + length + content


def octets(value: bytes, tag: int = OCTETS) -> bytes:
    """Encode an OCTET STRING."""
    return element(tag, value)


def integer(value: int, tag: int = INTEGER) -> bytes:
    """Encode an INTEGER or ENUMERATED."""
    return element(tag, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def boolean(*, value: bool, tag: int = BOOLEAN) -> bytes:
    """Encode a BOOLEAN."""
    return element(tag, b"\xff" if value else b"\0")


def size_of(data: bytes | bytearray) -> int | None:
    """Return the size of the element that begins here, or None if its length isn't there yet.

    Raises BERError.
    """
    if len(data) < 2:
        return None
    if data[0] & _HIGH_TAG == _HIGH_TAG:
        raise BERError("a tag of several bytes")
    first = data[1]
    if first < _LONG:
        return 2 + first
    count = first - _LONG
    if not 0 < count <= _LENGTH_MAX:
        raise BERError("a length that is indefinite or too long")
    if len(data) < 2 + count:
        return None
    return 2 + count + int.from_bytes(data[2 : 2 + count], "big")


def first_integer(data: bytes | bytearray) -> int | None:
    """Return the INTEGER that the element begins with, or None if it isn't there yet.

    The size of the element must be there (`size_of`). Raises BERError.
    """
    begin = 2 + (data[1] - _LONG if data[1] >= _LONG else 0)
    end = begin + 2 + _INTEGER_MAX
    if len(data) < end:
        return None
    return Reader(bytes(data[begin:end])).integer()


class Reader:
    """Reads the elements of some bytes in order."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes, begin: int = 0, end: int | None = None) -> None:
        self._data = data
        self._at = begin
        self._end = len(data) if end is None else end

    def __bool__(self) -> bool:
        """Whether there is another element."""
        return self._at < self._end

    @property
    def tag(self) -> int:
        """The tag of the next element; -1 at the end."""
        return self._data[self._at] if self._at < self._end else -1

    def _next(self, tag: int | None) -> tuple[int, int]:
        """Pass over the next element; return where its content begins and ends."""
        at, data = self._at, self._data
        if at + 2 > self._end:
            raise BERError("an element is cut off")
        if tag is not None and data[at] != tag:
            raise BERError(f"tag 0x{data[at]:02x} in place of 0x{tag:02x}")
        if data[at] & _HIGH_TAG == _HIGH_TAG:
            raise BERError("a tag of several bytes")
        length = data[at + 1]
        begin = at + 2
        if length >= _LONG:
            count = length - _LONG
            begin += count
            if not 0 < count <= _LENGTH_MAX or begin > self._end:
                raise BERError("a length that is indefinite, too long or cut off")
            length = int.from_bytes(data[begin - count : begin], "big")
        if begin + length > self._end:
            raise BERError("an element is longer than what contains it")
        self._at = begin + length
        return begin, self._at

    def octets(self, tag: int = OCTETS) -> bytes:
        """Read the content of an element. Raises BERError if it has another tag."""
        begin, end = self._next(tag)
        return self._data[begin:end]

    def integer(self, tag: int = INTEGER) -> int:
        """Read an INTEGER or ENUMERATED."""
        content = self.octets(tag)
        if not 0 < len(content) <= _INTEGER_MAX:
            raise BERError("an integer that is empty or too long")
        return int.from_bytes(content, "big", signed=True)

    def boolean(self) -> bool:
        """Read a BOOLEAN."""
        return self.octets(BOOLEAN) != b"\0"

    def inner(self, tag: int) -> Reader:
        """Return a reader of the elements in the next one."""
        begin, end = self._next(tag)
        return Reader(self._data, begin, end)

    def skip(self) -> None:
        """Pass over the next element."""
        self._next(None)
