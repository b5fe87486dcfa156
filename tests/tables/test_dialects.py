"""The dialects of regular expressions in Postfix's tables, compared with Python's `re`."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.tables.automaton import Automaton
from smtpd_filters.tables.captures import Captures
from smtpd_filters.tables.dialects import compiled
from smtpd_filters.tables.ere import POSITIONS_MAX
from tests.effort import part
from tests.tables.classes import CLASSES


def matches(
    pattern: str,
    key: str,
    *,
    perl: bool = True,
    ignore_case: bool = True,
    dot_all: bool = True,
) -> bool:
    node = compiled(pattern.encode(), perl=perl, ignore_case=ignore_case, dot_all=dot_all)
    automaton = Automaton()
    automaton.add(node)
    automaton.finish(50)
    return automaton.match(key.encode()) is not None


ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "(a)", "(a|b)", "(?:ab)", "(a*)", r"\w"])
REPEATS = st.sampled_from(["", "*", "+", "?", "*?", "+?", "{1,2}"])
PATTERNS = st.lists(st.tuples(ATOMS, REPEATS), min_size=1, max_size=5).map(
    lambda parts: "".join(map("".join, parts))
)


@settings(max_examples=part(400), deadline=None)
@given(pattern=PATTERNS, key=st.text("abAB\n", max_size=12))
def test_perl_s_dialect_means_what_re_does(pattern: str, key: str) -> None:
    expected = re.search(pattern.encode(), key.encode(), re.IGNORECASE | re.DOTALL)
    assert matches(pattern, key) is bool(expected)
    if expected and "*)" not in pattern:  # an empty repeat keeps other groups in `re`
        found = Captures(compiled(pattern.encode(), perl=True, ignore_case=True)).match(
            key.encode()
        )
        assert found == [expected.span(each) for each in range(len(expected.groups()) + 1)]


SINGLE = [
    r"^\d$", r"^\D$", r"^\w$", r"^\W$", r"^\s$", r"^\S$", r"^\h$", r"^\H$", r"^\N$",
    r"^\t$", r"^\n$", r"^\r$", r"^\f$", r"^\e$", r"^\a$", r"^\x41$", r"\Ax\z", r"\Ax\Z",
    r"^[\d]$", r"^[^\d]$", r"^[\da]$", r"^[^\wa]$", r"^[\t\x41]$", r"^[[:alpha:]\d]$",
    r"^[]a\d]$", r"^[\]]$", r"^\.$", r"^{$", r"^}$", r"^a{,$", r"^a{1$", r"^(|a)$",
    r"^[^a]$", r"^[[:upper:]]$", r"^a{2}$",
    r"^[\d^]$", r"^[\d^a]$", r"^[^^\d]$", r"^[a\d\-z]$", r"^[+\d\-.]$", r"^[a-c\-_]$",
]  # fmt: skip
#: What re spells otherwise.
SPELT = {
    r"\h": r"[ \t]",
    r"\H": r"[^ \t]",
    r"\N": r"[^\n]",
    r"\e": r"\x1b",
    r"\z": r"\Z",
    "[[:alpha:]": "[a-z",
    "[[:upper:]]": "[a-z]",
    r"\s": r"[\t-\r ]",
    r"\S": r"[^\t-\r ]",
}


@pytest.mark.parametrize("pattern", SINGLE)
def test_sets_and_characters(pattern: str) -> None:
    spelt = pattern
    for ours, theirs in SPELT.items():
        spelt = spelt.replace(ours, theirs)
    expression = re.compile(spelt.encode().replace(b"\\Z", b"$(?!\n)"), re.IGNORECASE | re.DOTALL)
    for code in range(128):
        key = chr(code)
        found = expression.search(key.encode())
        if key == "\n" and "$" in spelt:
            found = expression.fullmatch(key.encode())  # re's dollar matches before a line's end
        assert matches(pattern, key) is bool(found), (pattern, key)


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        (r"^[\w-.]$", "a-.", ","),
        (r"^[a\d-z]$", "a5-z", "b"),
        (r"^[+\d-.]$", "+5-.", ","),
        (r"^[a-c-_]$", "abc-_", "d]"),
        (r"^[0-9-+]$", "09-+", ",*"),
        (r"^[[:digit:]-x]$", "5-x", "w"),
    ],
)
def test_a_hyphen_behind_a_set_or_a_range_is_one(pattern: str, inside: str, outside: str) -> None:
    assert all(matches(pattern, each) for each in inside)
    assert not any(matches(pattern, each) for each in outside)


@pytest.mark.parametrize("pattern", ["^a*?(?:b)$", "^a+?(b)$", "^a??b$"])
def test_a_short_repeat_matches_the_same(pattern: str) -> None:
    assert matches(pattern, "ab")
    assert not matches(pattern, "abb")


def test_flags() -> None:
    assert matches("a.b", "A\nB")
    assert not matches("a.b", "A\nb", ignore_case=False)
    assert not matches("a.b", "a\nb", dot_all=False)
    assert matches("(?i)a", "A", ignore_case=False)
    assert not matches("[^a]", "A")
    assert matches("[^a]", "A", ignore_case=False)
    assert matches(r"[\da]", "A")
    assert not matches(r"[\da]", "A", ignore_case=False)


@pytest.mark.parametrize("perl", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_named_classes(name: str, *, perl: bool) -> None:
    automaton = Automaton()
    automaton.add(compiled(b"[[:%b:]]" % name.encode(), perl=perl, ignore_case=False))
    automaton.finish(50)
    members = {chr(code) for code in range(256) if automaton.match(bytes([code])) is not None}
    assert members == set(CLASSES[name])


def test_posix() -> None:
    assert matches("^[[:digit:]]{2}$", "12", perl=False)
    assert matches("a*b", "AAB", perl=False)
    assert not matches("[^a]", "A", perl=False)


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        (r"\bx", "word boundary"),
        (r"[\b]", "word boundary"),
        (r"[a-\d]", "a class can't end a range"),
        (r"[a", "no closing ]"),
        (r"[\d", "no closing ]"),
        (r"(?=x)", "(?= is not supported"),
        (r"(?<!x)y", "(?< is not supported"),
        (r"(*FAIL)", "(*F is not supported"),
        (r"(a)\1", "back-reference"),
        (r"a++", "possessive"),
        (r"a(?i)b", "(?i) is supported at the beginning only"),
        (r"\xg", "two hexadecimal digits"),
        (r"\y", r"\y is not supported"),
        ("\\", r"\ is not supported"),
        ("a)", "unmatched )"),
        ("a" * (POSITIONS_MAX + 1), "positions, more than"),
    ],
)
def test_what_is_not_supported(pattern: str, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        compiled(pattern.encode(), perl=True, ignore_case=True)
