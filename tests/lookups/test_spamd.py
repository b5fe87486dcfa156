"""spamd's protocol: requests, and replies in pieces of any size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.lookups.spamd import MAX_HEAD, MAX_USER, ReplyError, ReplyParser, request

HAM = b"SPAMD/1.1 0 EX_OK\r\nContent-length: 3\r\nSpam: False ; -0.2 / 5.0\r\n\r\nabc"
LIMIT = 100


def parse(data: bytes, piece: int = 1 << 20) -> tuple[ReplyParser, bytes]:
    """Feed a whole reply, in pieces; return the parser and the body."""
    parser = ReplyParser(LIMIT)
    body = b"".join(parser.feed(data[at : at + piece]) for at in range(0, len(data), piece))
    parser.close()
    return parser, body


def test_a_request() -> None:
    assert request("HEADERS", 12) == b"HEADERS SPAMC/1.5\r\nContent-length: 12\r\n\r\n"
    assert request(
        "TELL", 0, user="anna@example.org", compressed=True, fields=[("Set", "local")]
    ) == (
        b"TELL SPAMC/1.5\r\nContent-length: 0\r\nUser: anna@example.org\r\nCompress: zlib\r\n"
        b"Set: local\r\n\r\n"
    )


@given(st.text())
def test_no_user_starts_another_line(user: str) -> None:
    user = user.encode("utf-8", "ignore").decode()
    made = request("CHECK", 1, user=user)
    assert made.count(b"\r") == made.count(b"\n") == made.count(b"\r\n")
    assert made.count(b"\n") in (3, 4)
    assert len(made) < 4 * MAX_USER + 100


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_a_reply(piece: int) -> None:
    parser, body = parse(HAM, piece)
    head = parser.head
    assert head is not None
    assert (head.is_spam, head.score, head.required, head.length) == (False, -0.2, 5.0, 3)
    assert body == b"abc"


@pytest.mark.parametrize(
    ("data", "is_spam"),
    [
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; 1003.3 / 5.0\r\n\r\n", True),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: Yes ; 5.0 / 5.0\r\n\r\n", True),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: No ; 0 / -5\r\n\r\n", False),
        (b"SPAMD/1.1 0 EX_OK\r\nspam:False ; 0 / 5\r\n\r\n", False),
        # TELL: with and without a result.
        (b"SPAMD/1.1 0 EX_OK\r\nDidSet: local\r\n\r\n\r\n", None),
        (b"SPAMD/1.1 0 EX_OK\r\n\r\n\r\n", None),
    ],
)
def test_heads(data: bytes, is_spam: bool | None) -> None:  # noqa: FBT001  # a result
    head = parse(data)[0].head
    assert head is not None
    assert head.is_spam is is_spam


@pytest.mark.parametrize(
    ("data", "cause", "code"),
    [
        (b"", "closed without a reply", None),
        (b"SPAMD/1.", "cut reply", None),
        (b"SPAMD/1.1 0 EX_OK\r\n", "cut reply", None),
        (HAM[:-1], "cut reply", None),
        (HAM + b"d", "more bytes than Content-length", None),
        (b"HTTP/1.1 200 OK\r\n\r\n", "not a reply of spamd", None),
        (b"SPAMD/1.1 OK\r\n\r\n", "not a reply of spamd", None),
        (b"SPAMD/2.0 0 EX_OK\r\n\r\n", "not a reply of spamd", None),
        (b"SPAMD/1.0 76 Bad header line\r\n", "error 76 Bad header line", 76),
        (b"SPAMD/1.0 79 Timeout: (1 second timeout while trying to CHECK)\r\n",
         "error 79 Timeout: (1 second timeout while trying to CHECK)", 79),
        (b"SPAMD/1.0 69\r\n", "error 69", 69),
        (b"SPAMD/1.0 69 \x1b[2J" + b"x" * 300 + b"\r\n", "error 69 ?[2J" + "x" * 196 + "...", 69),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: Maybe ; 1 / 5\r\n\r\n", "invalid Spam", None),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; nan / 5\r\n\r\n", "invalid Spam", None),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; 1e9 / 5\r\n\r\n", "invalid Spam", None),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; 99999999 / 5\r\n\r\n",
         "invalid Spam", None),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: False ; 1 / 5\r\nSpam: True ; 9 / 5\r\n\r\n",
         "a field is given twice", None),
        (b"SPAMD/1.1 0 EX_OK\r\nContent-length: -1\r\n\r\n", "invalid Content-length", None),
        (b"SPAMD/1.1 0 EX_OK\r\nContent-length: 101\r\n\r\n", "oversized reply", None),
        (b"SPAMD/1.1 0 EX_OK\r\n\r\n" + b"x" * 101, "oversized reply", None),
        (b"SPAMD/1.1 0 EX_OK\r\nno field\r\n\r\n", "invalid field", None),
        (b"SPAMD/1.1 0 EX_OK\r\nX: a\nSpam: b\r\n\r\n", "invalid field", None),
        (b"SPAMD/1.1 0 EX_OK\r\nX: " + b"x" * MAX_HEAD, "oversized reply", None),
        (b"SPAMD/1.1 0 " + b"x" * MAX_HEAD, "not a reply of spamd", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_what_cannot_be_used(data: bytes, cause: str, code: int | None, piece: int) -> None:
    with pytest.raises(ReplyError) as raised:
        parse(data, piece)
    assert str(raised.value) == cause
    assert raised.value.code == code


_PARTS = st.sampled_from(
    [b"SPAMD/1.1 0 EX_OK\r\n", b"SPAMD/1.0 76 no\r\n", b"Spam: True ; 5.0 / 5.0\r\n", b"\r\n",
     b"Content-length: 3\r\n", b"DidSet: local\r\n", b"abc", b"\n", b"\r", b":", b"\0", b"\xff"]
)  # fmt: skip


@given(st.lists(_PARTS | st.binary(max_size=8), max_size=12).map(b"".join), st.integers(1, 9))
def test_pieces_make_no_difference(data: bytes, piece: int) -> None:
    results: list[tuple[dict[str, str] | None, int | None, bytes]] = []
    for size in (piece, 1 << 20):
        try:
            parser, body = parse(data, size)
        except ReplyError as error:
            # Which of two faults comes first may depend on the pieces.
            results.append((None, error.code, b""))
        else:
            head = parser.head
            assert head is not None
            assert head.length in (None, len(body))
            assert len(body) <= LIMIT
            results.append((head.fields, 0, body))
    assert results[0] == results[1]
