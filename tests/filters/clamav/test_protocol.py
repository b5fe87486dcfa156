from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.filters.clamav.protocol import ReplyError, framed, is_whole, verdict
from smtpd_filters.scanning.outcomes import LONGEST


def test_a_clean_message() -> None:
    assert verdict(b"stream: OK\0") == ""


@pytest.mark.parametrize(
    ("reply", "name"),
    [
        (b"stream: Win.Test.EICAR_HDB-1 FOUND\0", "Win.Test.EICAR_HDB-1"),
        (b"stream: Own.Test.UNOFFICIAL FOUND\0", "Own.Test.UNOFFICIAL"),
        (b"stream: OK FOUND\0", "OK"),
        (b"stream: Odd name\tof \r \x1b[31m\xe9 FOUND\0", "Odd name of ?[31m?"),
        (b"stream: " + b"x" * 5000 + b" FOUND\0", "x" * LONGEST),
    ],
)
def test_a_signature_that_matched(reply: bytes, name: str) -> None:
    assert verdict(reply) == name


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "reply cut short"),
        (b"stream: OK", "reply cut short"),
        (b"stream: X FOUND", "reply cut short"),
        (b"stream: OK\n", "replied 'stream: OK'"),
        (b"OK\0", "replied 'OK'"),
        (b"stream: OK \0", "replied 'stream: OK'"),
        (b"stream: ok\0", "replied 'stream: ok'"),
        (b"stream:  OK\0", "replied 'stream: OK'"),
        (b"1: stream: OK\0", "replied '1: stream: OK'"),
        (b"stream: OK\0stream: OK\0", "more than one reply"),
        (b"stream: X FOUND\0stream: OK\0", "more than one reply"),
        (b"\nstream: OK\0", "more than one reply"),
        (b"stream:  FOUND\0", "found a signature without a name"),
        (b"stream: \x00", "replied 'stream:'"),
        (b"\0", "replied 'nothing'"),
        (b"UNKNOWN COMMAND\0", "replied 'UNKNOWN COMMAND'"),
        (b"stream: Out of memory ERROR\0", "replied 'stream: Out of memory ERROR'"),
        (b"INSTREAM size limit exceeded. ERROR\0", "clamd's StreamMaxLength is below --max-size"),
        (b"COMMAND READ TIMED OUT\n", "clamd waited longer than its CommandReadTimeout"),
    ],
)  # fmt: skip
def test_anything_else_is_an_error(reply: bytes, reason: str) -> None:
    with pytest.raises(ReplyError) as caught:
        verdict(reply)
    assert str(caught.value) == reason


@given(
    st.binary(max_size=60)
    | st.sampled_from([b"stream: OK\0", b"stream: A.B FOUND\0", b"X ERROR\0"]).flatmap(
        lambda reply: st.tuples(
            st.integers(0, len(reply)), st.binary(max_size=3), st.integers(0, 2)
        ).map(lambda each: reply[: each[0]] + each[1] + reply[each[0] + each[2] :])
    )
)
def test_only_one_reply_is_clean(reply: bytes) -> None:
    try:
        name = verdict(reply)
    except ReplyError as error:
        assert str(error).isprintable()  # noqa: PT017  # either outcome is allowed
        return
    if not name:
        assert reply == b"stream: OK\0"
    else:
        assert name.isascii()
        assert name.isprintable()
        assert is_whole(reply)


@given(st.lists(st.binary(max_size=100)))
def test_a_message_is_framed(chunks: list[bytes]) -> None:
    sent = b"".join(framed(chunks))
    assert sent.startswith(b"zINSTREAM\0")
    at, message = len(b"zINSTREAM\0"), b""
    while size := int.from_bytes(sent[at : at + 4], "big"):
        message += sent[at + 4 : at + 4 + size]
        at += 4 + size
    assert message == b"".join(chunks)
    assert at + 4 == len(sent)
