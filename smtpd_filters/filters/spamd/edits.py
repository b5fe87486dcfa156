"""The edits of a message for spamd's reply: its header fields, its Subject and its new message.

Invariants
----------
*Exact*: a field is added byte for byte as spamd has folded it. A line that isn't valid in a header
block is made safe (`smtpd_filters.message.folding`).
*Trace kept*: a new message keeps the fields of earlier filters and smtpd's own Received at its top.
"""

from __future__ import annotations

import re

from smtpd_filters.message.folding import MAX_LINE, field_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smtpd_filters.message import Headers

# In a text of `Headers`: continuation lines at the top, any entry, and fields with their folds.
_STRAY = re.compile(rb"(?:\n[ \t][^\n]*+)*+")
_ENTRY = re.compile(rb"\n([^\n]*+(?:\n[ \t][^\n]*+)*+)")
_SUBJECT = re.compile(rb"\nsubject:[^\n]*+(?:\n[ \t][^\n]*+)*+", re.IGNORECASE)
_RECEIVED = re.compile(rb"\nreceived:[^\n]*+(?:\n[ \t][^\n]*+)*+", re.IGNORECASE)
# RFC 5322 section 2.2: a field's name, and its body; 8-bit characters by RFC 6532.
_NAME = re.compile(rb"([!-9;-~]+):")
_VALID = re.compile(rb"[\t -~\x80-\xff]{1,%d}" % MAX_LINE)


def safe_field(field: Sequence[bytes]) -> list[bytes]:
    """Return a field as it is if its lines are valid, or else made safe; [] if it isn't a field."""
    found = _NAME.match(field[0])
    if found is None or len(found[1]) >= MAX_LINE:
        return []
    if all(map(_VALID.fullmatch, field)) and all(line.strip(b" \t") for line in field):
        return list(field)
    value = b"\n".join([field[0][found.end() :], *field[1:]])
    return field_lines(found[1].decode("ascii"), value)


def _safe(fields: Iterable[Sequence[bytes]]) -> bytes:
    """Return the lines of safe fields, each after a line feed."""
    text = bytearray()
    for field in fields:
        text += b"\n".join([b"", *safe_field(field)])
    return bytes(text)


def add_fields(headers: Headers, fields: Iterable[Sequence[bytes]]) -> None:
    """Add fields at the top of a header block, in their order."""
    new = _safe(fields)
    if not new:
        return
    text = headers.text()
    # Such lines would become part of the last new field.
    stray = _STRAY.match(text)
    at = stray.end() if stray else 0
    headers.replace_text(text[:at] + new + text[at:])


def replace_subject(headers: Headers, fields: Sequence[Sequence[bytes]]) -> None:
    """Replace the first Subject, or add one at the bottom.

    `fields` are the new Subject and, perhaps, a copy of the old one, to be added at the bottom.
    """
    text = headers.text()
    old = _SUBJECT.search(text)
    begin, end = old.span() if old else (len(text), len(text))
    headers.replace_text(text[:begin] + _safe(fields[:1]) + text[end:] + _safe(fields[1:]))


def replace_block(headers: Headers, block: bytes) -> None:
    """Replace a header block, below smtpd's own Received and what is above it.

    `block` has the lines of the new one, each after a line feed.
    """
    text = headers.text()
    own = _RECEIVED.search(text)
    new = _safe(match[1].split(b"\n") for match in _ENTRY.finditer(block))
    headers.replace_text((text[: own.end()] if own else b"") + new)
