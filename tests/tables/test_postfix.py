"""Lines of Postfix's tables of regular expressions."""

from __future__ import annotations

import pytest

from smtpd_filters.tables.postfix import Line, divided, filled, pieces


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("/a/ b c", Line("a", negated=False, flags="", text="b c")),
        ("/a/i\tb", Line("a", negated=False, flags="i", text="b")),
        ("! /a/xi   b ", Line("a", negated=True, flags="xi", text="b")),
        ("/a/", Line("a", negated=False, flags="", text="")),
        ("/a\\/b\\.c/ d", Line("a/b\\.c", negated=False, flags="", text="d")),
        ("|a\\|b| c", Line("a\\|b", negated=False, flags="", text="c")),
        ("#a\\\\# c", Line("a\\\\", negated=False, flags="", text="c")),
    ],
)
def test_lines(line: str, found: Line) -> None:
    assert divided(line) == found


@pytest.mark.parametrize("line", ["", "!", "a b", "\\a\\ b", "{a} b"])
def test_no_pattern(line: str) -> None:
    with pytest.raises(ValueError, match="expected /pattern/"):
        divided(line)


@pytest.mark.parametrize("line", ["/a b", "/a\\/", "/"])
def test_no_end(line: str) -> None:
    with pytest.raises(ValueError, match="no / at the end"):
        divided(line)


def test_references() -> None:
    assert pieces("a$1b${2}$(33)$$c") == ["a", 1, "b", 2, 33, "$", "c"]
    assert pieces("") == []
    assert filled(pieces("a$1b$2$$"), {1: b"\xff"}) == "a\udcffb$"


@pytest.mark.parametrize("text", ["$", "$x", "${x}", "$(1", "$1234", "${1234}"])
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(ValueError, match=r"a dollar is followed by the number of a group"):
        pieces(text)
