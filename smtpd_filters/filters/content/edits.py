"""Edits of attachments, which are removed with a note in their place, or renamed.

Invariants
----------
*Byte for byte*: outside the header block and content of an edited part the body is copied
unchanged.
*In steps*: a body is copied block by block within the budget of the loop.
*Never less*: a part that can't be edited by itself, since it is in an encoded one, is removed with
the part that it is in.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

from smtpd_filters.mime.names import normalized
from smtpd_filters.runtime.pace import pace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from smtpd_filters.message import Headers, Message
    from smtpd_filters.mime.content import Part

#: Bytes of a body that are copied at a time, and their price in units.
BLOCK, _PRICE = 1 << 16, 300
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:")
_LINE_END = re.compile(rb"\r?\n|\r")
#: The fields of a part that an edit replaces.
_REPLACED = (b"content-type", b"content-disposition")
_REMOVED = (*_REPLACED, b"content-transfer-encoding", b"content-md5", b"content-description")
_LONGEST_NOTE = 900
_SAFE = re.compile(r"[^A-Za-z0-9._ ()@+=,\[\]-]")


class Edit(NamedTuple):
    """An edit of a part: the note in place of its content, or the name that it gets."""

    part: Part
    note: str = ""
    name: str = ""


class _Region(NamedTuple):
    """A piece of the body: its header block, its content, and the edit."""

    start: int
    body: int
    end: int
    edit: Edit


def removal(part: Part, note: str) -> Edit:
    """Return the edit that removes a part, or the one that it is in."""
    name = shown(part)
    while part.end < 0 and part.outer is not None:
        part = part.outer
    return Edit(part, note=note.replace("{name}", name))


def renaming(part: Part, suffix: str, note: str) -> Edit:
    """Return the edit that adds a suffix to the name of a part; see *Never less*."""
    if part.end < 0 or "message" in part.traits:
        return removal(part, note)
    return Edit(part, name=(shown(part) or "attachment") + suffix)


def shown(part: Part) -> str:
    """Return the name of a part for people."""
    return part.names[0] if part.names else part.type or "without a name"


async def apply(message: Message, edits: Iterable[Edit]) -> None:
    """Edit parts of a message. Raises SpoolError."""
    chosen: dict[int, Edit] = {}
    for edit in edits:
        before = chosen.get(edit.part.number)
        # A removal is stricter than a new name.
        if before is None or (before.name and edit.note):
            chosen[edit.part.number] = edit
    if not chosen:
        return
    for edit in chosen.values():
        if edit.part.start < 0:
            await _edit_whole(message, edit)
            return
    regions = sorted(
        _Region(edit.part.start, edit.part.body, edit.part.end, edit)
        for edit in chosen.values()
        if edit.part.end >= edit.part.body >= 0
    )
    await _splice(message, _outermost(regions))


def _outermost(regions: list[_Region]) -> list[_Region]:
    """Return the regions that are in no other one."""
    found: list[_Region] = []
    for each in regions:
        if not found or each.start >= found[-1].end:
            found.append(each)
    return found


class _Span(NamedTuple):
    """The body up to an offset: copied, dropped, or the header block of an edited part."""

    end: int
    copied: bool = True
    header_of: Edit | None = None


def _spans(regions: list[_Region]) -> Iterator[_Span]:
    """Yield the spans of a body, in their order."""
    for each in regions:
        yield _Span(each.start)
        yield _Span(each.body, copied=False, header_of=each.edit)
        yield _Span(each.end, copied=bool(each.edit.name))
    yield _Span(sys.maxsize)


async def _splice(message: Message, regions: list[_Region]) -> None:
    """Copy the body with the edits of regions."""
    new = message.new_body()
    try:
        at = 0
        head = b""
        spans = _spans(regions)
        span = next(spans)
        for block in message.body(BLOCK):
            await pace().admit(_PRICE)
            place = 0
            while place < len(block):
                upto = min(span.end - at, len(block))
                if span.copied:
                    new.write(block[place:upto])
                elif span.header_of is not None:
                    head += block[place:upto]
                place = upto
                if at + place == span.end:
                    if span.header_of is not None and head:
                        new.write(_header(head, span.header_of))
                        new.write(_content(span.header_of))
                        head = b""
                    span = next(spans)
            at += len(block)
    except BaseException:
        new.discard()
        raise
    message.replace_body(new)


async def _edit_whole(message: Message, edit: Edit) -> None:
    """Edit a message whose only content is the part."""
    headers = message.headers
    await pace().admit(_PRICE)
    if edit.name:
        set_fields(headers, _fields(edit))
        return
    for name in _REMOVED:
        headers.remove(name.decode())
    set_fields(headers, _fields(edit))
    message.replace_body(_content(edit))


def set_fields(headers: Headers, fields: Iterable[tuple[str, str]]) -> None:
    """Replace fields of a header block, each by one."""
    for name, value in fields:
        headers.remove(name)
        headers.append(name, value)


def _fields(edit: Edit) -> list[tuple[str, str]]:
    if edit.name:
        return [
            ("Content-Type", "application/octet-stream"),
            ("Content-Disposition", f"attachment; {_parameter(edit.name)}"),
        ]
    return [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Transfer-Encoding", "8bit"),
        ("Content-Disposition", "inline"),
    ]


def _header(head: bytes, edit: Edit) -> bytes:
    """Return the header block of an edited part: its other fields, those of the edit, the end."""
    kept: list[bytes] = []
    dropped = _REPLACED if edit.name else _REMOVED
    keeps = False
    # As the reader does: programs may end a line at a bare carriage return.
    for line in _LINE_END.split(head):
        if not line.startswith((b" ", b"\t")):
            match = _FIELD.match(line)
            keeps = match is not None and match[1].lower() not in dropped
        if keeps:
            kept.append(line)
    new = [f"{name}: {value}".encode() for name, value in _fields(edit)]
    return b"\n".join([*kept, *new, b"", b""])


def _content(edit: Edit) -> bytes:
    if edit.name:
        return b""
    lines = [line[:_LONGEST_NOTE].rstrip() for line in edit.note.splitlines()]
    return "\n".join([*lines, ""]).encode("utf-8", "replace")


def _parameter(name: str) -> str:
    """Return the parameter for a name, in the form of RFC 2231 if it needs that."""
    name = normalized(name)[-100:].encode("utf-8", "replace").decode()
    if not _SAFE.search(name):
        return f'filename="{name}"'
    encoded = "".join(
        chr(byte) if (chr(byte).isalnum() and byte < 128) or byte in b"._-" else f"%{byte:02X}"
        for byte in name.encode()
    )
    return f"filename*=UTF-8''{encoded}"
