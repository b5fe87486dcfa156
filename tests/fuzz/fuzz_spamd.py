"""No reply of spamd raises anything but `ReplyError`, makes a header invalid, or depends on pieces.

`python -m tests.fuzz spamd` runs it under atheris. The first byte chooses the command, the second
the size of the pieces in which the rest arrives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.filters.spamd.edits import add_fields, replace_block, replace_subject
from smtpd_filters.filters.spamd.reply import MAX_BYTES, MAX_LINES, MAX_SYMBOLS, ReplyReader
from smtpd_filters.lookups.spamd import ReplyError
from smtpd_filters.message import Body, Headers
from smtpd_filters.message.folding import MAX_LINE
from smtpd_filters.message.spool import Spool

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.filters.spamd.reply import Reply

COMMANDS = ("SYMBOLS", "HEADERS", "PROCESS")
#: What was sent: its header, and its size.
SENT = [b"Received: from x", b"\tby y", b"Subject: hello", b"Content-Type: text/plain"]
SIZE = 100
HEAD = b"SPAMD/1.1 0 EX_OK\r\nContent-length: %d\r\nSpam: True ; 7.2 / 5.0\r\n\r\n"


def fuzz(data: bytes) -> None:
    """Parse the bytes as a reply, in pieces and at once, and apply it."""
    kind, size, stream = data[:1], data[1:2], data[2:]
    command = COMMANDS[(kind[0] if kind else 0) % len(COMMANDS)]
    step = (size[0] if size else 0) or len(stream) or 1
    spool = Spool()
    results = [_result(command, stream, each, spool) for each in (step, len(stream) or 1)]
    # Which of several faults is found first depends on the pieces.
    assert results[0] == results[1], results
    assert spool.used == 0


def _result(command: str, stream: bytes, step: int, spool: Spool) -> object:
    """Return what a reply says, and a header after its edits; None for an invalid reply."""
    reader = ReplyReader(command, b"\n".join([b"", *SENT]), SIZE, lambda: Body(spool))
    try:
        for at in range(0, len(stream), step):
            reader.feed(stream[at : at + step])
        reply = reader.close()
    except ReplyError:
        reader.discard()
        return None
    try:
        return _applied(reply)
    finally:
        reply.discard()


def _applied(reply: Reply) -> object:
    assert sum(map(len, reply.fields)) <= MAX_LINES
    assert sum(len(line) for field in reply.fields for line in field) <= MAX_BYTES
    assert len(reply.symbols) <= MAX_SYMBOLS
    headers = Headers(SENT)
    add_fields(headers, reply.fields)
    if reply.subject:
        replace_subject(headers, reply.subject)
    lines = headers.lines()
    if reply.header is not None:
        replace_block(headers, reply.header)
        lines += headers.lines()
    for line in lines:
        assert line.strip(b" \t")
        assert not set(line) & set(b"\0\r\n")
        assert len(line) <= MAX_LINE
        assert line.startswith((b" ", b"\t")) or b":" in line
    body = None if reply.body is None else reply.body.store.read(0, 1 << 20)
    return reply.is_spam, reply.score, reply.symbols, reply.notes, lines, body


def seeds() -> list[bytes]:
    """Return valid inputs: a list, a header block, a new message, and an error."""
    header = (
        b"Return-Path: <a@b>\nX-Spam-Flag: YES\nX-Spam-Status: Yes, score=7.2 tests=A,\n\tB x=y\n"
        b"X-Spam-Report: \n\t* 1\nSubject: [SPAM] x\nX-Spam-Prev-Subject: x\n\n"
    )
    new = b'Subject: x\nX-Spam-Flag: YES\nContent-Type: m/m; boundary="-=1"\n\nbody\r\n.dot\n'
    return [
        b"\0\0" + HEAD % 5 + b"A,B,C",
        b"\1\7" + HEAD % len(header) + header,
        b"\2\0" + HEAD % len(new) + new,
        b"\1\1SPAMD/1.0 79 Timeout: (1 second timeout while trying to CHECK)\r\n",
    ]


def corpus(directory: Path) -> None:
    """Write the seeds."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (directory / f"spamd-{number}").write_bytes(seed)
