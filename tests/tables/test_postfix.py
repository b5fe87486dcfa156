"""Lines of Postfix's tables of regular expressions."""

from __future__ import annotations

import pytest

from smtpd_filters.tables.postfix import divided, filled, pieces


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("/a/ b c", ("a", False, "", "b c")),
        ("/a/i\tb", ("a", False, "i", "b")),
        ("! /a/xi   b ", ("a", True, "xi", "b")),
        ("/a/", ("a", False, "", "")),
        ("/a\\/b\\.c/ d", ("a/b\\.c", False, "", "d")),
        ("|a\\|b| c", ("a\\|b", False, "", "c")),
        ("#a\\\\# c", ("a\\\\", False, "", "c")),
    ],
)
def test_lines(line: str, found: tuple[str, bool, str, str]) -> None:
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
