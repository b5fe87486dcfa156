"""Tags of subjects: once, and nothing else changes."""

from __future__ import annotations

from email import message_from_bytes
from email.header import decode_header, make_header
from email.policy import compat32

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.checks.subject import is_tagged, tag_subject
from smtpd_filters.message import Headers

TAG = "[EXTERN]"


def tagged(*lines: bytes, tag: str = TAG) -> list[bytes]:
    headers = Headers.parse(lines)
    tag_subject(headers, tag)
    return headers.lines()


def shown(lines: list[bytes]) -> str:
    """The subject as a mail program shows it."""
    message = message_from_bytes(b"\n".join(lines) + b"\n\n", policy=compat32)
    return str(make_header(decode_header(message["Subject"])))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([b"Subject: hello"], [b"Subject: [EXTERN] hello"]),
        ([b"SUBJECT:hello  "], [b"SUBJECT: [EXTERN] hello  "]),
        ([b"Subject: [EXTERN] hello"], [b"Subject: [EXTERN] hello"]),
        ([b"Subject: Re: [EXTERN] hello"], [b"Subject: Re: [EXTERN] hello"]),
        ([b"Subject: AW: RE[2]: [EXTERN] x"], [b"Subject: AW: RE[2]: [EXTERN] x"]),
        ([b"Subject: about [EXTERN]"], [b"Subject: [EXTERN] about [EXTERN]"]),
        ([b"Subject:"], [b"Subject: [EXTERN]"]),
        ([b"From: x"], [b"From: x", b"Subject: [EXTERN]"]),
        ([b"Subject:", b" hello"], [b"Subject: [EXTERN]", b" hello"]),
        ([b"Subject: a", b"\tb ", b"To: x"], [b"Subject: [EXTERN] a", b"\tb ", b"To: x"]),
        (
            [b"Subject: =?utf-8?q?f=C3=BCr?="],
            [b"Subject: [EXTERN] =?utf-8?q?f=C3=BCr?="],
        ),
        ([b"Subject: =?utf-8?b?W0VYVEVSTl0geA==?="], [b"Subject: =?utf-8?b?W0VYVEVSTl0geA==?="]),
        ([b"Subject: " + b"x" * 80], [b"Subject: [EXTERN]", b" " + b"x" * 80]),
        ([b"Subject: [EX TERN] a"], [b"Subject: [EXTERN] [EX TERN] a"]),
        # Programs show the first or the last.
        (
            [b"Subject: [EXTERN] a", b"Subject: b", b"To: x", b"subject: c"],
            [b"Subject: [EXTERN] a", b"Subject: b", b"To: x", b"subject: [EXTERN] c"],
        ),
        ([b"Subject: a", b"Subject:"], [b"Subject: [EXTERN] a", b"Subject: [EXTERN]"]),
        # To programs that know its character set, the first is a word in Chinese.
        ([b"Subject: =?utf-16?q?[EXTERN]?="], [b"Subject: [EXTERN] =?utf-16?q?[EXTERN]?="]),
        ([b"Subject: =?ibm037?q?[EXTERN]?="], [b"Subject: [EXTERN] =?ibm037?q?[EXTERN]?="]),
        (
            [b"Subject: =?utf-8?q?[EXT?=", b" =?utf-8?q?ERN]?= a"],
            [b"Subject: =?utf-8?q?[EXT?=", b" =?utf-8?q?ERN]?= a"],
        ),
    ],
)
def test_a_tag(before: list[bytes], after: list[bytes]) -> None:
    assert tagged(*before) == after
    assert tagged(*after) == after


def test_a_tag_beyond_ascii() -> None:
    once = tagged(b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=", tag="[für außen]")
    assert shown(once) == "[für außen] grüße"
    assert tagged(*once, tag="[für außen]") == once
    assert shown(tagged(b"Subject: plain", tag="[für außen]")) == "[für außen] plain"
    answer = b"Subject: =?iso-8859-1?q?Re:_[f=FCr_au=DFen]_x?="
    assert tagged(answer, tag="[für außen]") == [answer]


@pytest.mark.parametrize(
    ("tag", "line"),
    [
        ("a\nb", b"Subject: a b x"),
        ("[x]\r\nBcc: y ", b"Subject: [x] Bcc: y x"),
        ("x" * 500, b"Subject: " + b"x" * 120 + b"\n x"),
        ("", b"Subject: x"),
        (" \n", b"Subject: x"),
    ],
)
def test_any_text_can_be_a_tag(tag: str, line: bytes) -> None:
    """It may be what a service has replied."""
    once = tagged(b"Subject: x", tag=tag)
    assert b"\n".join(once) == line
    assert tagged(*once, tag=tag) == once


def test_the_longest_tag_is_a_line_of_mail() -> None:
    once = tagged(b"Subject: x", tag="\U0001f600" * 5000)
    assert max(map(len, once)) < 998
    assert shown(once) == "\U0001f600" * 120 + " x"


VALUES = st.lists(st.binary(max_size=40).map(lambda each: each.replace(b"\n", b" ")), max_size=4)


@given(VALUES, st.sampled_from([TAG, "[ü]", "***SPAM***"]))
@example([b"=?utf-8?b?", b" W0VYVEVSTl0=?="], TAG)
@example([], TAG)
def test_all_other_bytes_are_kept(values: list[bytes], tag: str) -> None:
    field = [b"Subject:" + b"".join(values[:1]), *(b" " + each for each in values[1:])]
    block = [b"From: x", *field, b"To: y"]
    once = tagged(*block, tag=tag)
    assert tagged(*once, tag=tag) == once
    assert once[0] == b"From: x"
    assert once[-1] == b"To: y"
    words = b" ".join(b"".join(field).removeprefix(b"Subject:").split())
    assert b" ".join(b"".join(once[1:-1]).split()).endswith(words)
    assert is_tagged(Headers.parse(once).get("Subject", ""), tag)
