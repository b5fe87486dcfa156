"""User names in the form of vis(3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.protocol.vis import unvis, vis


@pytest.mark.parametrize(
    ("plain", "written"),
    [
        # As OpenSMTPD 6.8, 7.6 and 7.8 wrote them.
        ("jörg".encode(), rb"j\M-C\M-6rg"),
        (b"a b", rb"a\040b"),
        (b"a\nb", rb"a\^Jb"),
        (b"a|b", b"a|b"),
        (b"anna@example.org", b"anna@example.org"),
        (rb"a\b", rb"a\\b"),
        (b"\0\x7f", rb"\^@\^?"),
        (b"\x80\xa0\xff", rb"\M^@\240\M^?"),
    ],
)
def test_names(plain: bytes, written: bytes) -> None:
    assert vis(plain) == written
    assert unvis(written) == plain


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        # What unvis(3) takes beside that, and what is no escape.
        (rb"\n\r\b\a\v\t\f\s\E", b"\n\r\b\a\v\t\f \x1b"),
        (b"a\\\nb\\$c", b"abc"),
        (rb"\1a\12z\101", b"\x01a\nzA"),
        (rb"\x\M+\^a\M-", rb"\x\M+\^a\M-"),
        (b"\\", b"\\"),
        (b"\\M-\xff", b"\\M-\xff"),
    ],
)
def test_other_forms(written: bytes, plain: bytes) -> None:
    assert unvis(written) == plain


@given(st.binary())
def test_decoding_undoes_encoding(plain: bytes) -> None:
    written = vis(plain)
    assert unvis(written) == plain
    assert b"\n" not in written
    assert written.isascii()


@given(st.binary() | st.text("\\M^-C6040nJ", max_size=12).map(str.encode))
def test_decoding_takes_anything(written: bytes) -> None:
    assert len(unvis(written)) <= len(written)
