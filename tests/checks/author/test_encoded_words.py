"""Encoded words, as lenient mail programs decode them."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.checks.author.encoded_words import _CODECS, decoded, is_in_order, outside


@pytest.mark.parametrize(
    ("text", "readings"),
    [
        ("a b", ["a b"]),
        ("=?utf-8?q?a=40b_c?=", ["a@b c"]),
        ("=?UTF-8?B?YUBi?=", ["a@b"]),
        ("x =?utf-8?q?a?= y", ["x a y"]),
        # The words may belong to what is around them, and may not.
        ("x=?utf-8?q?a?=y", ["xay", "x a y"]),
        ("=?utf-8?q?a?= \t =?utf-8?q?b?=", ["ab", "a b"]),
        ("=?utf-8?q?a?= =?iso-8859-1?q?b?= c", ["ab c", "a b c"]),
        ("=?utf-8?q?a?= - =?utf-8?q?b?=", ["a - b"]),
        ("=?utf-8?q?=C3?= =?utf-8?q?=BC?=", ["ü", "\udcc3 \udcbc"]),  # a letter in two words
        ("=?utf-8*de?q?a?=", ["a"]),
        ("=??q?a?=", ["a"]),
        ("=?utf-8?q?a?b?=", ["a?b", "=?utf-8?q?a?b?="]),
        ("=?utf-8?q?a=?utf-8?q?b?=", ["a=?utf-8?q?b", "=?utf-8?q?ab", "=?utf-8?q?a b"]),
        ("=?utf-8?q?a b?=", ["a b"]),
        ("=?utf-8?q?=?=", [""]),
        ("=?utf-8?q??=", [""]),
        ("=?utf-8?q?\udcfc?=", ["\udcfc"]),
        ("=?utf-8?q?\ud800?=", ["?"]),
        ("=?iso-8859-1?q?=FC?=", ["ü", "\udcfc"]),
        ("=?koi8-r?q?=C1?=", ["а", "\udcc1"]),  # noqa: RUF001  # a Cyrillic letter
        ("=?gb2312?b?o8A=?=", ["＠", "\udca3\udcc0"]),  # noqa: RUF001  # a full-width letter
        ("=?utf-7?q?+AEA-?=", ["@", "+AEA-"]),
        ("=?utf-16?b?AEA=?=", ["@", "\u4000"]),
        ("=?utf-16?b?/v8AQA==?=", ["@", "\ufffe\u4000", "\udcfe\udcff@"]),
        ("=?x-unknown?q?=40?=", ["@"]),
        ("=?cp037?b?fA==?=", ["@", "|"]),
        # base64 with junk, without padding, with padding in the middle
        ("=?utf-8?b?Y!UB*i?=", ["a@b"]),
        ("=?utf-8?b?YQ?=", ["a"]),
        ("=?utf-8?b?YUBiA?=", ["a@b"]),
        ("=?utf-8?b?A?=", [""]),
        ("=?utf-8?b?YQ==QGI=?=", ["a", "a@b"]),
        # none at all
        ("=?utf-8?x?a?=", ["=?utf-8?x?a?="]),
        ("=?utf-8?q?a", ["=?utf-8?q?a"]),
        ("=?=?utf-8?q?a?=", ["=?a", "=? a"]),
        ("a =? b", ["a =? b"]),
    ],
)
def test_decoded(text: str, readings: list[str]) -> None:
    assert {" ".join(each.split()) for each in decoded(text)} == set(readings)


def test_words_of_several_character_sets_are_read_together() -> None:
    wide = b64encode("b.example".encode("utf-16-le")).decode()
    assert "a＠b.example" in decoded(f"=?gbk?q?a=A3=C0?= =?utf-16?b?{wide}?=")  # noqa: RUF001


@pytest.mark.parametrize("charset", sorted(_CODECS))
def test_each_character_set_has_letters(charset: str) -> None:
    [codec, *_] = _CODECS[charset]
    data = b64encode("a@b.example".encode(codec)).decode()
    assert "a@b.example" in decoded(f"=?{charset}?b?{data}?=")


@pytest.mark.parametrize(
    ("name", "in_order"),
    [
        ("a b", True),
        ("=?utf-8?q?a_=40?=", True),
        ("a =?utf-8?b?YQ==?= b", True),
        ('"=?utf-8?q?a?="', True),
        ("(=?utf-8?q?a?=)", True),
        ("=?utf-8?q?a?= <b@c>", True),
        ("=?utf-8?q?a.b?=<b@c>", True),
        ("a=?utf-8?q?b?=", False),
        ("=?utf-8?q?a@b?=", False),
        ("=?utf-8?q?a,b?=", False),
        ("=?utf-8?q?a", True),
    ],
)
def test_encoded_words_are_in_order(name: str, *, in_order: bool) -> None:
    assert is_in_order(name) is in_order


def test_outside() -> None:
    assert outside("a =?utf-8?q?x=40y?= b") == "a   b"
    assert outside("a b") == "a b"


@given(st.text(st.characters(codec=None) | st.sampled_from("=?qbQB utf-8gbk16hz==40")))
@example("=?utf-8?b?====?=")
@example("=?utf-16?b?/v8=?=")
def test_no_text_raises(text: str) -> None:
    assert decoded(text)
    assert decoded(f"=?utf-8?b?{text}?=")
    assert is_in_order(text) in {True, False}
    for charset in ("utf-7", "utf-16", "iso-2022-jp", "hz", "gbk", "big5", "cp037"):
        assert decoded(f"=?{charset}?q?{text}?=")
