"""The encoded words of a field, as a filter reads them."""

from __future__ import annotations

import asyncio

import pytest

from smtpd_filters import read_words
from smtpd_filters.checks.author.encoded_words import ENCODED


def words(text: str) -> tuple[str, ...]:
    return asyncio.run(read_words(text))


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("", ""),
        ("plain", "plain"),
        ("=?utf-8?q?gr=C3=BCn?=", "grün"),
        ("=?iso-8859-1?Q?gr=FCn?= =?iso-8859-1?Q?_x?=", "grün x"),
        ("=?utf-16?b?/v8AYQ==?=", "a"),
        ("=?no-such?q?a?=", "a"),
        ("=?utf-8?q?=", "=?utf-8?q?="),
        ("=?utf-8?q?=FF?=", "\udcff"),
    ],
)
def test_the_first_is_what_most_programs_show(text: str, first: str) -> None:
    assert words(text)[0] == first


def test_of_a_long_text_the_whole_is_the_last() -> None:
    text = "=?utf-8?q?gr=C3=BCn?=" + "x" * ENCODED + "=?utf-8?q?gr=C3=BCn?="
    first, *_, last = words(text)
    assert first.startswith("grünxxx")
    assert len(first) < ENCODED
    assert last == text
