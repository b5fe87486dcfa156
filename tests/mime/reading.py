"""A message given to the scanner as a filter would, and archives to put into one."""

from __future__ import annotations

import base64
import io
import zipfile
from typing import TYPE_CHECKING

from smtpd_filters.mime.limits import BLOCK, MEMBERS, UNPACKED
from smtpd_filters.mime.scanner import Scanner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.mime.content import Content

EXE = b"MZ\x90\x00\x03\x00\x00\x00" + b"\x00" * 56


class Memory:
    """A storage in memory; `kept` counts those that haven't been discarded."""

    kept = 0

    def __init__(self) -> None:
        self._data = io.BytesIO()
        self.size = 0
        Memory.kept += 1

    def write(self, data: bytes) -> None:
        self._data.seek(self.size)
        self.size += self._data.write(data)

    def read(self, at: int, size: int) -> bytes:
        if at < 0:
            return b""
        self._data.seek(at)
        return self._data.read(size)

    def discard(self) -> None:
        Memory.kept -= 1


def blocks(body: bytes, size: int = BLOCK) -> Iterator[bytes]:
    """Cut a body as `Message.body` does: whole lines, longer than `size` only if it is one line."""
    at = 0
    while at < len(body):
        end = body.rfind(b"\n", at, at + size) + 1 or body.find(b"\n", at) + 1 or len(body)
        yield body[at:end]
        at = end


def read(  # noqa: PLR0913  # options, given by name
    message: bytes,
    size: int = BLOCK,
    *,
    keep_fields: bool = False,
    keep_texts: int = 0,
    unpacked: int = UNPACKED,
    members: int = MEMBERS,
) -> Content:
    """Read a whole message, given in blocks of this size."""
    head, _, body = message.partition(b"\n\n")
    if body and not body.endswith(b"\n"):
        body += b"\n"
    scanner = Scanner(head.split(b"\n"), Memory, keep_fields=keep_fields, keep_texts=keep_texts)
    scanner.content.bytes_left, scanner.content.members_left = unpacked, members
    for block in blocks(body, size):
        scanner.feed(block)
        for _ in scanner.work():
            pass
    scanner.close()
    for _ in scanner.work():
        pass
    scanner.discard()
    return scanner.content


def every_name(content: Content) -> set[str]:
    """Return the names of all parts and members."""
    return {
        name
        for part in content.parts
        for names in (part.names, *(member.names for member in part.members))
        for name in names
    }


def zipped(*members: tuple[str, bytes]) -> bytes:
    """Return a zip file with these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


def attached(data: bytes, fields: bytes = b"") -> bytes:
    """Return a message with one attachment in base64, which has these header fields."""
    return mixed(fields + b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(data))


def mixed(*parts: bytes) -> bytes:
    """Return a message with these parts, each with its header block, behind a short text."""
    every = (b"Content-Type: text/plain\n\nhello\n", *parts)
    body = b"".join(b"--frontier\n" + part for part in every)
    head = b"From: a@example.net\nContent-Type: multipart/mixed; boundary=frontier\n\n"
    return head + body + b"--frontier--\n"
