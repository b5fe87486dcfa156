"""The reply: strict, bounded, and the same whatever the pieces in which it arrives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.filters.policy.reply import MAX_REPLY, ReplyError, ReplyParser
from tests.effort import part

VALID = [
    (b"action=DUNNO\n\n", "DUNNO"),
    (b"action=dunno\r\n\r\n", "dunno"),
    (b"action=\n\n", ""),
    (b"action=PREPEND X-Greylist: a=b\n\n", "PREPEND X-Greylist: a=b"),
    (b"action=550 \xfc\n\n", "550 \udcfc"),
]
INVALID = [
    b"\n",
    b"\r\n",
    b"action DUNNO\n\n",
    b"Action=DUNNO\n\n",
    b"actions=DUNNO\n\n",
    b"220 mail.example.org ESMTP\r\n",
    b"action=DUNNO\naction=REJECT\n\n",
    b"action=DUNNO\nother=x\n\n",
    b"action=DUNNO\n\naction=REJECT\n\n",
    b"action=DUNNO\n\n\n",
    b"action=DUN\0NO\n\n",
    b"action=DUN\rNO\n\n",
    b"action=" + b"x" * MAX_REPLY + b"\n\n",
]


@pytest.mark.parametrize(("data", "text"), VALID)
def test_valid_replies(data: bytes, text: str) -> None:
    assert ReplyParser().feed(data) == text
    parser = ReplyParser()
    *some, last = [parser.feed(data[at : at + 1]) for at in range(len(data))]
    assert (set(some), last) == ({None}, text)


@pytest.mark.parametrize("data", INVALID)
def test_invalid_replies(data: bytes) -> None:
    with pytest.raises(ReplyError):
        ReplyParser().feed(data)


@pytest.mark.parametrize("data", [b"2", b"action-", b"action=x\na", b"\rx", b"action=x\n\ry"])
def test_what_can_only_become_invalid_is_invalid_at_once(data: bytes) -> None:
    with pytest.raises(ReplyError):
        ReplyParser().feed(data)


def test_a_flood_without_an_end_is_not_kept() -> None:
    parser = ReplyParser()
    assert parser.feed(b"action=" + b"x" * (MAX_REPLY - 7)) is None
    with pytest.raises(ReplyError, match="more than"):
        parser.feed(b"x")


@settings(max_examples=part(2000))
@given(
    st.lists(
        st.sampled_from([b"action=", b"action", b"DUNNO", b"\n", b"\r", b"\n\n", b"=", b"\0"])
        | st.binary(max_size=4),
        max_size=12,
    ),
    st.integers(1, 5),
)
def test_pieces_make_no_difference(parts: list[bytes], size: int) -> None:
    data = b"".join(parts)

    def outcome(step: int) -> str | None:
        parser = ReplyParser()
        text: str | None = None
        try:
            for at in range(0, len(data), step):
                if text is not None:  # the client would have stopped
                    return "surplus"
                text = parser.feed(data[at : at + step])
        except ReplyError:
            return "surplus" if text is not None else "invalid"
        return f"action {text}" if text is not None else None

    whole = outcome(max(len(data), 1))
    # Whole, what comes after a reply is an error; in pieces, the reply was complete before.
    assert outcome(size) in ({"invalid", "surplus"} if whole == "invalid" else {whole})
