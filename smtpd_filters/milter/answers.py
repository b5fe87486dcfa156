"""The answers of a milter: final ones, progress, and edits.

They are parsed for an MTA, and encoded for a milter. A refusal's text is that of the milter, as
bytes; it is made safe where a reply is made of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from . import vocabulary as v
from .codec import UINT32, MilterError, cstr, joined, packet, shown, strings

# "550 5.7.1 text" or "550-5.7.1 text"; the enhanced code may be missing.
_LINE = re.compile(
    rb"([45][0-9]{2})([ -]|$)((?:[245]\.[0-9]{1,3}\.[0-9]{1,3}(?= |$))?) ?(.*)", re.DOTALL
)
#: Lines that libmilter allows (smfi_setmlreply).
_LINES = 32


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer without a payload: final, or progress (`p`)."""

    command: bytes

    def encode(self) -> bytes:
        """Return the packet."""
        return packet(self.command)


@dataclass(frozen=True, slots=True)
class ReplyCode:
    """A refusal with a reply: its code, its enhanced code ("" if it has none), its lines."""

    code: int
    enhanced: str
    lines: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Return the packet, with each percent sign doubled as libmilter does."""
        status = f"{self.enhanced} ".encode() if self.enhanced else b""
        last = len(self.lines) - 1
        text = b"\r\n".join(
            b"%d%b%b%b" % (self.code, b" " if at == last else b"-", status, line)
            for at, line in enumerate(self.lines)
        )
        return packet(v.REPLY_CODE, cstr(text.replace(b"%", b"%%")))


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Add a field at the end of the header block."""

    name: bytes
    value: bytes

    def encode(self) -> bytes:
        """Return the packet."""
        return packet(v.ADD_HEADER, joined((self.name, self.value)))


@dataclass(frozen=True, slots=True)
class InsertHeader:
    """Insert a field so that `index` fields are above it."""

    index: int
    name: bytes
    value: bytes

    def encode(self) -> bytes:
        """Return the packet."""
        payload = UINT32.pack(self.index) + joined((self.name, self.value))
        return packet(v.INSERT_HEADER, payload)


@dataclass(frozen=True, slots=True)
class ChangeHeader:
    """Replace the nth field of a name, or delete it if the value is empty."""

    index: int
    name: bytes
    value: bytes

    def encode(self) -> bytes:
        """Return the packet."""
        payload = UINT32.pack(self.index) + joined((self.name, self.value))
        return packet(v.CHANGE_HEADER, payload)


@dataclass(frozen=True, slots=True)
class NewBody:
    """A piece of a new body."""

    data: bytes

    def encode(self) -> bytes:
        """Return the packet."""
        return packet(v.REPLACE_BODY, self.data)


@dataclass(frozen=True, slots=True)
class ChangeSender:
    """Replace the envelope sender; `arguments` are ESMTP parameters."""

    address: bytes
    arguments: bytes = b""

    def encode(self) -> bytes:
        """Return the packet."""
        texts = (self.address, self.arguments) if self.arguments else (self.address,)
        return packet(v.CHANGE_SENDER, joined(texts))


@dataclass(frozen=True, slots=True)
class AddRecipient:
    """Add a recipient; `arguments` are ESMTP parameters."""

    address: bytes
    arguments: bytes = b""

    def encode(self) -> bytes:
        """Return the packet."""
        if self.arguments:
            return packet(v.ADD_RECIPIENT_WITH, joined((self.address, self.arguments)))
        return packet(v.ADD_RECIPIENT, cstr(self.address))


@dataclass(frozen=True, slots=True)
class DeleteRecipient:
    """Drop a recipient."""

    address: bytes

    def encode(self) -> bytes:
        """Return the packet."""
        return packet(v.DELETE_RECIPIENT, cstr(self.address))


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Hold the message; a final answer follows."""

    reason: bytes

    def encode(self) -> bytes:
        """Return the packet."""
        return packet(v.QUARANTINE, cstr(self.reason))


HeaderEdit: TypeAlias = AddHeader | InsertHeader | ChangeHeader
EnvelopeEdit: TypeAlias = ChangeSender | AddRecipient | DeleteRecipient
Edit: TypeAlias = HeaderEdit | EnvelopeEdit | NewBody | Quarantine
Answer: TypeAlias = Verdict | ReplyCode | Edit


#: The answers without a payload: milters say them all the time.
_VERDICTS = {command: Verdict(command) for command in (*v.FINAL, v.PROGRESS)}


def parse_answer(command: bytes, payload: bytes) -> Answer:
    """Return the answer in a packet. Raises MilterError if it is invalid."""
    if verdict := _VERDICTS.get(command):
        if payload:
            raise MilterError(f"{len(payload)} bytes behind {shown(command)}")
        return verdict
    if command == v.REPLACE_BODY:
        return NewBody(payload)
    if command == v.REPLY_CODE:
        return parse_reply(payload)
    if command in v.HEADER_EDITS:
        return _header_edit(command, payload)
    if command == v.QUARANTINE:
        (reason,) = _strings(command, payload, 1, 1)
        return Quarantine(reason)
    return _envelope_edit(command, payload)


def _envelope_edit(command: bytes, payload: bytes) -> EnvelopeEdit:
    if command == v.DELETE_RECIPIENT:
        (address,) = _strings(command, payload, 1, 1)
        return DeleteRecipient(address)
    if command == v.ADD_RECIPIENT:
        (address,) = _strings(command, payload, 1, 1)
        return AddRecipient(address)
    if command not in {v.CHANGE_SENDER, v.ADD_RECIPIENT_WITH}:
        raise MilterError(f"an unknown answer {shown(command)}")
    address, *arguments = _strings(command, payload, 1, 2)
    kind = ChangeSender if command == v.CHANGE_SENDER else AddRecipient
    return kind(address, *arguments)


def _strings(command: bytes, payload: bytes, least: int, most: int) -> list[bytes]:
    texts = strings(payload)
    if not least <= len(texts) <= most:
        raise MilterError(f"an answer {shown(command)} with {len(texts)} strings")
    return texts


def _header_edit(command: bytes, payload: bytes) -> HeaderEdit:
    index = 0
    if command != v.ADD_HEADER:
        if len(payload) < UINT32.size:
            raise MilterError(f"an answer {shown(command)} without its index")
        (index,) = UINT32.unpack_from(payload)
        payload = payload[UINT32.size :]
    name, value = _strings(command, payload, 2, 2)
    if command == v.ADD_HEADER:
        return AddHeader(name, value)
    return (InsertHeader if command == v.INSERT_HEADER else ChangeHeader)(index, name, value)


def parse_reply(payload: bytes) -> ReplyCode:
    """Return the refusal in the payload of a reply code. Raises MilterError if it is invalid.

    Each line must have the same code, from 400 to 599. Two percent signs are one; a single one is
    dropped. The line break is CRLF, or LF alone.
    """
    texts = strings(payload)
    if len(texts) != 1:
        raise MilterError("a null in a reply")
    lines = texts[0].replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    if len(lines) > _LINES:
        raise MilterError(f"a reply of {len(lines)} lines")
    code = enhanced = b""
    found: list[bytes] = []
    for at, line in enumerate(lines):
        match = _LINE.fullmatch(line)
        if match is None or (at and match[1] != code):
            raise MilterError(f"an invalid reply {shown(line)}")
        code = match[1]
        enhanced = enhanced or match[3]
        found.append(_without_percents(match[4]))
    status = enhanced.decode("ascii")
    if status[:1] != chr(code[0]):
        status = ""  # RFC 2034 section 4: the classes of both codes must agree
    return ReplyCode(int(code), status, tuple(found))


def _without_percents(text: bytes) -> bytes:
    return b"%".join(part.replace(b"%", b"") for part in text.split(b"%%"))
