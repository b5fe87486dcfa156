"""No bytes from a milter raise anything but `MilterError`, or are held beyond the limits.

The first byte chooses the stage at which the rest of the input arrives, the second the size of its
pieces.
"""

from __future__ import annotations

from smtpd_filters.message.folding import field_lines
from smtpd_filters.milter import (
    AddHeader,
    AddRecipient,
    Agreement,
    ChangeHeader,
    EditedHeaders,
    InsertHeader,
    Limits,
    MilterError,
    MtaSide,
    NewBody,
    Quarantine,
    ReplyCode,
    Verdict,
)
from smtpd_filters.milter import vocabulary as v

LIMITS = Limits(packet=1 << 12, edits=50, edited=1 << 12, body=1 << 12, pieces=50, progress=50)
#: The most answers to one event.
MOST = LIMITS.edits + LIMITS.pieces + LIMITS.progress + 1


def fuzz(data: bytes) -> None:
    """Give the bytes to a side that waits for an answer."""
    stage, size, stream = data[:1], data[1:2], data[2:]
    mta = _at(stage[0] if stage else 0)
    step = (size[0] if size else 0) or len(stream) or 1
    headers = EditedHeaders(b"\nReceived: x\nA: b", field_lines)
    count = 0
    try:
        for at in range(0, len(stream), step):
            mta.receive(stream[at : at + step])
            while (answer := mta.answer()) is not None:
                count += 1
                assert count <= MOST
                if isinstance(answer, AddHeader | InsertHeader | ChangeHeader):
                    _edit(headers, answer)
    except MilterError:
        assert not mta.quit()
    for line in headers.text().split(b"\n")[1:]:
        assert line.strip()
        assert b"\n" not in line


def seeds() -> list[bytes]:
    """Return valid inputs: a negotiation, an answer to a recipient, and all kinds at the end."""
    reply = ReplyCode(550, "5.7.1", (b"no", b"never"))
    edits = (
        AddHeader(b"A", b"b\n\tc"),
        InsertHeader(0, b"A", b"b"),
        ChangeHeader(1, b"A", b""),
        NewBody(b"x\r\n"),
        AddRecipient(b"<a@b>", b"NOTIFY=NEVER"),
        Quarantine(b"why"),
        Verdict(v.PROGRESS),
        Verdict(v.ACCEPT),
    )
    lists = {v.CONNECT: (b"j", b"{x}")}
    return [
        b"\0\0" + Agreement(6, 0x1FF, 0, lists).encode(),
        b"\1\3" + reply.encode(),
        b"\2\0" + b"".join(edit.encode() for edit in edits),
    ]


def _edit(headers: EditedHeaders, edit: AddHeader | InsertHeader | ChangeHeader) -> None:
    try:
        headers.apply(edit, leading_space=True)
    except ValueError:
        pass


def _at(stage: int) -> MtaSide:
    """Return a side that waits: for a negotiation, a recipient, or the end of a message."""
    mta = MtaSide(limits=LIMITS)
    mta.negotiate()
    if stage % 4 == 0:
        return mta
    mta.receive(Agreement(6, 0x1FF, v.NR_MAIL).encode())
    mta.answer()
    mta.mail(b"<>")
    mta.rcpt(b"<a@b>")
    if stage % 4 == 1:
        return mta
    mta.receive(Verdict(v.CONTINUE).encode())
    mta.answer()
    mta.end_of_body()
    return mta
