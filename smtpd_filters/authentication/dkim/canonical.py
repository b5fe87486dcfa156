"""Canonicalisation of header fields and bodies for DKIM and ARC (RFC 6376 section 3.4).

Invariants
----------
*Linear*: a field or a block of a body takes time proportional to its size, whatever its content.
*Streamed*: a body is hashed block by block, without a copy of the whole; each block is
canonicalised once for each form, however many signatures there are.
*No line ends but LF*: blocks of a body are whole lines that end in LF, the form of
`smtpd_filters.message.Message.body`. A CR inside a line is content.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SIMPLE: Final = "simple"
RELAXED: Final = "relaxed"

#: Empty lines at a time.
_EMPTY = 1 << 14


def simple_field(raw: bytes) -> bytes:
    """Return a field, whose lines are separated by LF, in the simple form, with its CRLF."""
    return raw.replace(b"\n", b"\r\n") + b"\r\n"


def relaxed_field(raw: bytes) -> bytes:
    """Return a field, whose lines are separated by LF, in the relaxed form, with its CRLF."""
    name, _, value = raw.replace(b"\n", b"").partition(b":")
    if b"\t" in value or b"  " in value:
        value = _single_blanks(value)
    return name.rstrip(b" \t").lower() + b":" + value.strip(b" ") + b"\r\n"


def relaxed_fields(fields: Iterable[bytes]) -> bytes:
    """Return header fields in the relaxed form, one after the other, each with its CRLF.

    A few passes over all of them take half the time of one for each field.
    """
    # A line of a field that begins with a colon is its first: others begin with a blank.
    text = b"\n:".join(fields).replace(b"\n ", b" ").replace(b"\n\t", b" ")
    parts = []
    for field in _single_blanks(text).split(b"\n:"):
        name, _, value = field.partition(b":")
        parts.append(name.rstrip(b" ").lower() + b":" + value.strip(b" "))
    parts.append(b"")
    return b"\r\n".join(parts)


#: A header field in each form.
FIELD: Final[dict[str, Callable[[bytes], bytes]]] = {SIMPLE: simple_field, RELAXED: relaxed_field}


def relaxed_lines(block: bytes) -> bytes:
    """Return whole lines of a body that end in LF in the relaxed form; empty lines stay."""
    return _single_blanks(block).replace(b" \n", b"\n")


def _single_blanks(text: bytes) -> bytes:
    """Return a text with each run of blanks and tabs replaced by a blank."""
    if b"\t" in text:
        text = text.replace(b"\t", b" ")
    # The runs are halved in each pass; a regular expression takes ten times as long.
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    return text


class BodyHash:
    """The SHA-256 hash of a body in one form, and of its beginnings of the given `lengths`.

    Lengths are in bytes of the canonical body, as in the tag l= (RFC 6376 section 3.5).
    """

    def __init__(self, form: str, lengths: Iterable[int] = ()) -> None:
        self._relaxed = form == RELAXED
        self._hash = sha256()
        #: Line ends that are part of the body if another line follows.
        self._pending = 0
        #: The lengths not reached yet, the smallest last; and the hashes of those that were.
        self._ahead = sorted(set(lengths), reverse=True) if lengths else []
        self._beginnings: dict[int, bytes] = {}
        #: The bytes of the canonical body so far.
        self.size = 0

    def update(self, block: bytes) -> None:
        """Add whole lines, each with its LF."""
        if self._relaxed:
            block = relaxed_lines(block)
        text = block.rstrip(b"\n")
        if text:
            self._end_lines()
            self._add(text.replace(b"\n", b"\r\n"))
        self._pending += len(block) - len(text)

    def finish(self) -> None:
        """End the body; `digest` is available afterwards."""
        if self.size:
            self._pending = 1
            self._end_lines()
        elif not self._relaxed:
            # RFC 6376 section 3.4.3: an empty body is a CRLF; in the relaxed form it is nothing.
            self._add(b"\r\n")
        self._add(b"")

    def digest(self, length: int | None = None) -> bytes | None:
        """Return the hash of the body, or of its beginning; None if the body is shorter."""
        return self._hash.digest() if length is None else self._beginnings.get(length)

    def _end_lines(self) -> None:
        while self._pending:
            count = min(self._pending, _EMPTY)
            self._pending -= count
            self._add(b"\r\n" * count)

    def _add(self, data: bytes) -> None:
        while self._ahead and self._ahead[-1] <= self.size + len(data):
            length = self._ahead.pop()
            beginning = self._hash.copy()
            beginning.update(data[: length - self.size])
            self._beginnings[length] = beginning.digest()
        self._hash.update(data)
        self.size += len(data)


class BodyHashes:
    """The hashes of one body that its signatures need."""

    def __init__(self, needs: Iterable[tuple[str, int | None]]) -> None:
        """Prepare for pairs of a form and a length, None for the whole body."""
        lengths: dict[str, list[int]] = {}
        for form, length in needs:
            found = lengths.setdefault(form, [])
            if length is not None:
                found.append(length)
        self._hashes = {form: BodyHash(form, given) for form, given in lengths.items()}

    def __bool__(self) -> bool:
        """Whether any is needed."""
        return bool(self._hashes)

    def __getitem__(self, form: str) -> BodyHash:
        return self._hashes[form]

    def update(self, block: bytes) -> None:
        """Add whole lines, each with its LF."""
        for each in self._hashes.values():
            each.update(block)

    def finish(self) -> None:
        """End the body."""
        for each in self._hashes.values():
            each.finish()
