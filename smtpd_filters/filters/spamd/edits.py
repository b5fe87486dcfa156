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

_WHITE = (b" ", b"\t")
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


def _safe(fields: Iterable[Sequence[bytes]]) -> list[bytes]:
    return [line for field in fields for line in safe_field(field)]


def add_fields(headers: Headers, fields: Iterable[Sequence[bytes]]) -> None:
    """Add fields at the top of a header block, in their order."""
    new = _safe(fields)
    if not new:
        return
    lines = headers.lines()
    at = 0
    while at < len(lines) and lines[at].startswith(_WHITE):
        at += 1  # these lines would become part of the last new field
    lines[at:at] = new
    headers.replace_lines(lines)


def replace_subject(headers: Headers, fields: Sequence[Sequence[bytes]]) -> None:
    """Replace the first Subject, or add one at the bottom.

    `fields` are the new Subject and, perhaps, a copy of the old one, to be added at the bottom.
    """
    subject, *more = map(safe_field, fields)
    lines = headers.lines()
    at = end = len(lines)
    for number, line in enumerate(lines):
        if line[:8].lower() == b"subject:":
            at, end = number, number + 1
            while end < len(lines) and lines[end].startswith(_WHITE):
                end += 1
            break
    lines[at:end] = subject
    for field in more:
        lines += field
    headers.replace_lines(lines)


def replace_block(headers: Headers, fields: Iterable[Sequence[bytes]]) -> None:
    """Replace a header block, below smtpd's own Received and what is above it."""
    lines = headers.lines()
    top: list[bytes] = []
    for at, line in enumerate(lines):
        if line[:9].lower() == b"received:":
            end = at + 1
            while end < len(lines) and lines[end].startswith(_WHITE):
                end += 1
            top = lines[:end]
            break
    headers.replace_lines([*top, *_safe(fields)])
