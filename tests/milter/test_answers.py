"""Answers of milters, as bytes and parsed."""

from __future__ import annotations

import pytest

from smtpd_filters.milter import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    InsertHeader,
    MilterError,
    MilterSide,
    NewBody,
    Offer,
    Packets,
    Quarantine,
    ReplyCode,
    Verdict,
)
from smtpd_filters.milter.answers import parse_answer
from smtpd_filters.milter.codec import packet

CASES = [
    (b"c", b"", Verdict(b"c")),
    (b"p", b"", Verdict(b"p")),
    (b"h", b"A\0b\0", AddHeader(b"A", b"b")),
    (b"h", b"A\0\0", AddHeader(b"A", b"")),
    (b"i", b"\0\0\0\1A\0b\n\tc\0", InsertHeader(1, b"A", b"b\n\tc")),
    (b"m", b"\0\0\1\0A\0\0", ChangeHeader(256, b"A", b"")),
    (b"b", b"", NewBody(b"")),
    (b"b", b"a\0b", NewBody(b"a\0b")),
    (b"e", b"<a@b>\0", ChangeSender(b"<a@b>")),
    (b"e", b"<a@b>\0RET=HDRS\0", ChangeSender(b"<a@b>", b"RET=HDRS")),
    (b"+", b"<a@b>\0", AddRecipient(b"<a@b>")),
    (b"2", b"<a@b>\0NOTIFY=NEVER\0", AddRecipient(b"<a@b>", b"NOTIFY=NEVER")),
    (b"-", b"<a@b>\0", DeleteRecipient(b"<a@b>")),
    (b"q", b"why\0", Quarantine(b"why")),
    (b"y", b"550 5.7.1 no\0", ReplyCode(550, "5.7.1", (b"no",))),
    (b"y", b"451 later 100%%\0", ReplyCode(451, "", (b"later 100%",))),
    (b"y", b"550-5.7.1 a\r\n550 5.7.1 b\0", ReplyCode(550, "5.7.1", (b"a", b"b"))),
]


@pytest.mark.parametrize(("command", "payload", "answer"), CASES)
def test_each_answer(command: bytes, payload: bytes, answer: AddHeader) -> None:
    assert parse_answer(command, payload) == answer
    assert answer.encode() == packet(command, payload)


@pytest.mark.parametrize(
    ("payload", "reply"),
    [
        (b"550\0", ReplyCode(550, "", (b"",))),
        (b"550 \0", ReplyCode(550, "", (b"",))),
        (b"550 5.7.1\0", ReplyCode(550, "5.7.1", (b"",))),
        (b"550 5.7.1x\0", ReplyCode(550, "", (b"5.7.1x",))),
        (b"550 4.7.1 x\0", ReplyCode(550, "", (b"x",))),
        (b"550 a%b%%%c\0", ReplyCode(550, "", (b"ab%c",))),
        (b"550-a\n550 b\n\0", ReplyCode(550, "", (b"a", b"b"))),
    ],
)
def test_replies_that_others_write(payload: bytes, reply: ReplyCode) -> None:
    assert parse_answer(b"y", payload) == reply


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (b"c", b"x"),
        (b"y", b"250 ok\0"),
        (b"y", b"350 ok\0"),
        (b"y", b"600 ok\0"),
        (b"y", b"550x\0"),
        (b"y", b"550 a\r\n551 b\0"),
        (b"y", b"550 a\r\nb\0"),
        (b"y", b"550 a\0b\0"),
        (b"y", b"550 a"),
        (b"y", b""),
        (b"y", b"\r\n".join([b"550 a"] * 33) + b"\0"),
        (b"h", b"A\0"),
        (b"h", b"A\0b"),
        (b"h", b"A\0b\0c\0"),
        (b"i", b"\0\0"),
        (b"m", b"\0\0\0\1A\0"),
        (b"e", b""),
        (b"e", b"a\0b\0c\0"),
        (b"+", b"a\0b\0"),
        (b"-", b"a"),
        (b"q", b""),
        (b"z", b"x\0"),
        (b"O", b"x\0"),
        (b"\xff", b""),
    ],
)
def test_invalid_answers(command: bytes, payload: bytes) -> None:
    with pytest.raises(MilterError):
        parse_answer(command, payload)


@pytest.mark.parametrize(
    "stream",
    [
        b"\0\0\0\1C",
        b"\0\0\0\2T\0",
        b"\0\0\0\6Ca\x00X\0\0",
        b"\0\0\0\5Ca\x004\0",
        b"\0\0\0\3Hab",
        b"\0\0\0\3LA\0",
        b"\0\0\0\5DCj\0a",
        b"\0\0\0\6DCi\0a\0" + b"\0\0\0\4DC{\0",
        b"\0\0\0\0",
        b"\0\1\0\1Bx",
    ],
)
def test_a_milter_resets_the_connection_for_invalid_events(stream: bytes) -> None:
    milter = MilterSide()
    milter.receive(Offer().encode())
    with pytest.raises(MilterError):
        milter.receive(stream)


def test_a_packet_of_no_length() -> None:
    packets = Packets(10)
    packets.feed(b"\0\0\0")
    assert packets.next() is None
    packets.feed(b"\0")
    with pytest.raises(MilterError, match="a packet of 0 bytes"):
        packets.next()
