"""The parser of spamd's replies to a scan, and the edits of a header block."""

from __future__ import annotations

import re
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.filters.spamd.edits import (
    add_fields,
    replace_block,
    replace_subject,
    safe_field,
)
from smtpd_filters.filters.spamd.reply import (
    MAX_BYTES,
    MAX_LINES,
    MAX_SUBJECT,
    MAX_SYMBOLS,
    MORE_LINES,
    MULTIPLE,
    Reply,
    ReplyReader,
)
from smtpd_filters.lookups.spamd import ReplyError
from smtpd_filters.message import Body, Headers, Message
from smtpd_filters.message.spool import Spool
from tests.filters.spamd import stub
from tests.fuzz import fuzz_spamd

if TYPE_CHECKING:
    from collections.abc import Iterator

SENT = [b"Received: from x", b"\tby y", b"From: bob@example.net", b"Subject: hello"]
STATUS = [line.encode() for line in stub.STATUS.splitlines()]
SPOOL = Spool()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert SPOOL.used == 0


def parse(
    data: bytes,
    command: str = "HEADERS",
    *,
    piece: int = 1 << 20,
    sent: list[bytes] = SENT,
    new: bool = False,
) -> Reply:
    """Feed a reply in pieces; the reply has to be discarded."""
    text = b"\n".join([b"", *sent])
    reader = ReplyReader(command, text, 1000, (lambda: Body(SPOOL)) if new else None)
    try:
        for at in range(0, len(data), piece):
            reader.feed(data[at : at + piece])
        return reader.close()
    except BaseException:
        reader.discard()
        raise


def block(*fields: str, spam: str = stub.SPAM) -> bytes:
    return stub.reply(("".join(f"{each}\n" for each in fields) + "\n").encode(), spam)


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_a_header_block_of_spam(piece: int) -> None:
    made = block(
        "Return-Path: <a@b>", "X-Spam-Flag: YES", stub.STATUS.rstrip(),
        "X-Spam-Report: ", "\t*  1.3 RCVD_ILLEGAL_IP  ", "Subject: [SPAM] hello", "Subject: two",
        "X-Spam-Prev-Subject: hello", "X-Spam-Prev-From: x",
    )  # fmt: skip
    reply = parse(made, piece=piece)
    assert (reply.is_spam, reply.score, reply.required) == (True, 7.2, 5.0)
    assert reply.fields == [
        [b"X-Spam-Flag: YES"],
        STATUS,
        [b"X-Spam-Report: ", b"\t*  1.3 RCVD_ILLEGAL_IP  "],
    ]
    assert reply.subject == [[b"Subject: [SPAM] hello"], [b"X-Spam-Prev-Subject: hello"]]
    assert reply.symbols == ["MISSING_MID", "RCVD_ILLEGAL_IP", "URIBL_BLACK"]
    assert reply.header is None
    assert reply.body is None
    assert reply.notes == []


def test_line_ends_may_be_crlf() -> None:
    lines = ("X-Spam-Flag: YES", "X-Spam-Status: Yes, tests=A,", "\tB", "", "")
    made = stub.reply("\r\n".join(lines).encode(), stub.SPAM)
    reply = parse(made)
    assert reply.fields[0] == [b"X-Spam-Flag: YES"]
    assert reply.symbols == ["A", "B"]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n"])
def test_a_block_may_end_with_the_reply(end: bytes) -> None:
    """That of a message without a body."""
    reply = parse(stub.reply(b"X-Spam-A: b\nX-Spam-Flag: YES" + end, stub.SPAM))
    assert reply.fields == [[b"X-Spam-A: b"], [b"X-Spam-Flag: YES"]]
    assert parse(stub.reply(b"", stub.SPAM)).fields == []


def test_symbols() -> None:
    assert parse(stub.reply(b"A,B_1,C", stub.HAM), "SYMBOLS", piece=1).symbols == ["A", "B_1", "C"]
    assert parse(stub.reply(b"", stub.HAM), "SYMBOLS").symbols == []
    assert parse(stub.reply(b"a b,\x1b,\xff,,OK\r\n", stub.HAM), "SYMBOLS").symbols == ["OK"]
    many = ",".join(f"R{n}" for n in range(MAX_SYMBOLS + 5)).encode()
    assert len(parse(stub.reply(many, stub.HAM), "SYMBOLS").symbols) == MAX_SYMBOLS


@pytest.mark.parametrize(
    ("status", "symbols"),
    [
        ("No, score=0 required=5 tests=none autolearn=no", []),
        ("No, score=0 required=5 tests=A", ["A"]),
        ("No, score=0 tests=A,B autolearn=x tests=C", ["A", "B"]),
        ("No, tests=A,\n\tB,\n\tC autolearn=no", ["A", "B", "C"]),
        ("No, tests=A,\n\tB,", ["A", "B"]),
        ("No, tests=", []),
        ("hidden", []),
    ],
)
def test_symbols_of_a_status(status: str, symbols: list[str]) -> None:
    assert parse(block(f"X-Spam-Status: {status}")).symbols == symbols


@pytest.mark.parametrize(
    ("data", "command", "cause"),
    [
        (stub.reply(b"A,TIME_LIMIT_EXCEEDED,B", stub.HAM), "SYMBOLS", "the scan exceeded"),
        (block("X-Spam-Status: No, tests=A,\n\tTIME_LIMIT_EXCEEDED"), "HEADERS", "the scan exc"),
        (stub.reply(b"\n"), "HEADERS", "no Spam in the reply"),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; 5 / 5\r\n\r\n", "SYMBOLS", "no Content-length in"),
        (stub.reply(b"x" * (4 << 20), stub.SPAM), "PROCESS", "oversized reply"),
        (stub.reply(b"x" * (65 << 10), stub.HAM), "SYMBOLS", "oversized reply"),
    ],
)
def test_what_cannot_be_used(data: bytes, command: str, cause: str) -> None:
    with pytest.raises(ReplyError, match=f"^{cause}"):
        parse(data, command, new=command == "PROCESS")


def test_a_new_message() -> None:
    body = b"report\n\n.dot\n\xff\n"
    head = (
        b'Subject: [SPAM] x\nX-Spam-Flag: YES\nContent-Type: multipart/mixed; boundary="-=_1"\n\n'
    )
    for piece in (1, 5, 1000):
        reply = parse(stub.reply(head + body, stub.SPAM), "PROCESS", piece=piece, new=True)
        assert reply.header == (
            b'\nSubject: [SPAM] x\nX-Spam-Flag: YES\nContent-Type: multipart/mixed; boundary="-=_1"'
        )
        assert reply.body is not None
        assert reply.body.store.read(0, 1000) == b"report\n\n..dot\n\xff\n"
        reply.discard()


def test_a_message_that_is_the_sent_one() -> None:
    """With report_safe 0, and of ham."""
    sent = [*SENT, b"Content-Type: text/plain;", b"\tcharset=utf-8"]
    same = b"X-Spam-Flag: YES\n" + b"\n".join([*sent, b"", b"body", b""])
    other = same.replace(b"utf-8", b"utf-7")
    assert parse(stub.reply(same, stub.SPAM), "PROCESS", sent=sent, new=True).header is None
    assert parse(stub.reply(other, stub.HAM), "PROCESS", sent=sent, new=True).header is None
    reply = parse(stub.reply(other, stub.SPAM), "PROCESS", sent=sent, new=True)
    assert reply.header is not None
    reply.discard()


def test_a_header_block_is_bounded() -> None:
    """The verdict and the fields on top are used; the rest is left out, and not kept."""
    reader = ReplyReader("PROCESS", b"\n".join([b"", *SENT]), 50 << 20, lambda: Body(SPOOL))
    reader.feed(b"SPAMD/1.1 0 EX_OK\r\nContent-length: 9000000\r\nSpam: True ; 9 / 5\r\n\r\n")
    reader.feed(b"X-Spam-Status: Yes, tests=A,B\nSubject: [SPAM]\nX: ")
    left = 9_000_000 - len(b"X-Spam-Status: Yes, tests=A,B\nSubject: [SPAM]\nX: ")
    tracemalloc.start()
    while left:
        size = min(left, 1 << 16)
        reader.feed(b"x" * size)
        left -= size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    reply = reader.close()
    assert (reply.is_spam, reply.score, reply.symbols) == (True, 9.0, ["A", "B"])
    assert (reply.subject, reply.header, reply.body) == ([], None, None)
    assert reply.notes == ["long header left out"]


@pytest.mark.parametrize("rest", [b"\tB\n" * 3, b"\t" + b"B" * 1_020_000 + b"\n"])
def test_a_field_is_not_used_without_its_end(rest: bytes) -> None:
    """Its fields are below the client's long ones in what `report_safe` makes of spam."""
    above = b"From: a\n" + b" b\n" * (MULTIPLE * len(SENT) + MORE_LINES - 4)
    made = above + b"X-Spam-Flag: YES\nX-Spam-Status: Yes, tests=A,\n" + rest + b"\n"
    reply = parse(stub.reply(made, stub.SPAM), piece=1000)
    assert (reply.is_spam, reply.fields, reply.symbols) == (True, [[b"X-Spam-Flag: YES"]], [])
    assert reply.notes == ["header fields left out", "long header left out"]


def test_the_lines_of_a_header_block_are_bounded() -> None:
    most = MULTIPLE * len(SENT) + MORE_LINES
    assert parse(stub.reply(b"a\n" * most + b"\n", stub.SPAM)).notes == []
    for command in ("HEADERS", "PROCESS"):
        reply = parse(stub.reply(b"a\n" * (most + 1) + b"\n", stub.SPAM), command, new=True)
        assert reply.is_spam
        assert reply.header is None
        assert reply.notes == ["long header left out"]


def test_a_content_type_with_a_carriage_return_is_the_same() -> None:
    sent = [*SENT, b"Content-Type: text/plain;\r", b"\tcharset=utf-8\r"]
    same = b"X-Spam-Flag: YES\n" + b"\n".join([*sent, b"", b"body", b""])
    assert parse(stub.reply(same, stub.SPAM), "PROCESS", sent=sent, new=True).header is None


def test_fields_beyond_the_bounds_are_left_out() -> None:
    """A client may have made them: they must not hide the verdict."""
    reply = parse(
        block("X-Spam-Flag: YES", *["X-Spam-A: b"] * (MAX_LINES + 50), f"Subject: {'x' * 20_000}")
    )
    assert reply.is_spam
    assert len(reply.fields) == MAX_LINES
    assert reply.subject == []
    assert reply.notes == ["header fields left out"]
    long = parse(block(f"X-Spam-A: {'x' * 60_000}", f"X-Spam-B: {'y' * 10_000}", "X-Spam-C: short"))
    assert [field[0][:10] for field in long.fields] == [b"X-Spam-A: ", b"X-Spam-C: "]
    assert sum(len(line) for field in long.fields for line in field) < MAX_BYTES
    folded = parse(block("Subject: x", *["\tx"] * MAX_SUBJECT, "X-Spam-A: b"))
    assert (folded.subject, folded.fields) == ([], [[b"X-Spam-A: b"]])
    assert folded.notes == []


@given(
    st.lists(
        st.sampled_from(
            [b"X-Spam-Flag: YES\n", b"Subject: x\n", b"\tfolded\n", b"\n", b"\r\n", b"x\r\n",
             b"X-Spam-Prev-Subject: y\n", b"Content-Type: a\n", b"X-Spam-Status: tests=A,\n"]
        )
        | st.binary(max_size=8),
        max_size=12,
    ).map(b"".join),
    st.integers(1, 9),
    st.sampled_from(["SYMBOLS", "HEADERS", "PROCESS"]),
)  # fmt: skip
def test_any_body_in_any_pieces(body: bytes, piece: int, command: str) -> None:
    results = []
    for size in (piece, 1 << 20):
        try:
            reply = parse(stub.reply(body, stub.SPAM), command, piece=size, new=True)
        except ReplyError as error:
            results.append(str(error))
            continue
        kept = b"" if reply.body is None else reply.body.store.read(0, 1000)
        results.append(repr((reply.fields, reply.subject, reply.symbols, reply.header, kept)))
        reply.discard()
        headers = Headers.parse(SENT)
        add_fields(headers, reply.fields)
        if reply.subject:
            replace_subject(headers, reply.subject)
        check(headers)
        if reply.header is not None:
            replace_block(headers, reply.header)
            check(headers)
    assert results[0] == results[1]


def check(headers: Headers) -> None:
    """A header block consists of fields, each of valid lines."""
    lines = headers.lines()
    assert lines
    assert not lines[0].startswith((b" ", b"\t"))
    for line in lines:
        assert line.strip()
        assert not set(line) & {0, 10, 13}
        assert len(line) <= 998
        assert line.startswith((b" ", b"\t")) or b":" in line


# -- edits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "made"),
    [
        ([b"X-Spam-Report: ", b"\t* 1"], [b"X-Spam-Report: ", b"\t* 1"]),
        ([b"X-Spam-A: " + b"b " * 45], [b"X-Spam-A: " + b"b " * 45]),
        ([b"X-Spam-A: \xc3\xa9"], [b"X-Spam-A: \xc3\xa9"]),
        ([b"X-Spam-A: \x1b[1m"], [b"X-Spam-A: [1m"]),
        ([b"X-Spam-A: b\rc"], [b"X-Spam-A: b c"]),
        ([b"X-Spam-A: b", b"\t"], [b"X-Spam-A: b"]),
        ([b"X-Spam-A", b"\tb"], []),
        ([b"X Spam: A"], []),
        ([b""], []),
    ],
)
def test_a_field_is_valid_or_made_so(field: list[bytes], made: list[bytes]) -> None:
    assert safe_field(field) == made


def test_fields_are_added_on_top_and_subjects_replaced() -> None:
    headers = Headers.parse(SENT)
    add_fields(headers, [[b"X-Spam-Flag: YES"], STATUS])
    assert headers.lines() == [b"X-Spam-Flag: YES", *STATUS, *SENT]
    replace_subject(headers, [[b"Subject: [SPAM]", b" hello"], [b"X-Spam-Prev-Subject: hello"]])
    assert headers.lines()[-3:] == [b"Subject: [SPAM]", b" hello", b"X-Spam-Prev-Subject: hello"]
    none = Headers.parse([b"From: x"])
    replace_subject(none, [[b"Subject: [SPAM]"]])
    assert none.lines() == [b"From: x", b"Subject: [SPAM]"]
    same = Headers.parse(SENT)
    add_fields(same, [])
    assert not same.changed


def test_a_new_block_keeps_what_is_above_the_message() -> None:
    headers = Headers.parse([b"X-Spam: Yes", *SENT])
    replace_block(headers, b"\nReceived: from localhost\nSubject: new")
    assert headers.lines() == [
        b"X-Spam: Yes", *SENT[:2], b"Received: from localhost", b"Subject: new"
    ]  # fmt: skip
    without = Headers.parse([b"From: x"])
    replace_block(without, b"\nSubject: new")
    assert without.lines() == [b"Subject: new"]


def test_bodies_are_of_the_message() -> None:
    message = Message()
    message.feed([b"Subject: x", b"", b"old"])
    message.close()
    reply = parse(stub.wrapped(stub.Request("PROCESS", {}, b"m\n")), "PROCESS", new=True)
    assert reply.body is not None
    message.replace_body(reply.body)
    assert b"".join(message.body()).endswith(b"\n\nm\n\n------------=_6B0DEBFB.11469C7A--\n")
    message.discard()


# -- the fuzzer's target ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", fuzz_spamd.seeds()[:-1])
def test_the_seeds_of_the_fuzzer(seed: bytes) -> None:
    """They are replies that can be used, except for the last one."""
    fuzz_spamd.fuzz(seed)
    command, stream = fuzz_spamd.COMMANDS[seed[0]], seed[2:]
    reply = parse(stream, command, sent=fuzz_spamd.SENT, new=True)
    assert reply.symbols or reply.header
    reply.discard()


@given(st.sampled_from(fuzz_spamd.seeds()), st.data())
def test_changed_replies(seed: bytes, data: st.DataObject) -> None:
    head, _, body = seed.partition(b"\r\n\r\n")
    at = data.draw(st.integers(0, len(body)))
    cut = data.draw(st.integers(at, len(body)))
    other = body[:at] + data.draw(st.binary(max_size=20)) + body[cut:]
    length = b"Content-length: %d" % len(other)
    fuzz_spamd.fuzz(re.sub(rb"Content-length: \d+", length, head) + b"\r\n\r\n" + other)
