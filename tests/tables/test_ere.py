"""Patterns, compared with the system's regcomp(3)."""

from __future__ import annotations

import ctypes
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from smtpd_filters.errors import ConfigError
from smtpd_filters.tables import RegexTable
from tests.tables.classes import CLASSES

REG_EXTENDED, REG_NOSUB = 1, 8  # glibc's values
glibc_only = pytest.mark.skipif(sys.platform != "linux", reason="the flags are glibc's")


def regcomp_matches(pattern: str, key: str) -> bool | None:
    """Match with libc as smtpd does, both in lower case. None if the pattern is invalid."""
    libc = ctypes.CDLL(None)
    compiled = ctypes.create_string_buffer(1024)
    encoded = pattern.lower().encode()
    if libc.regcomp(compiled, encoded, REG_EXTENDED | REG_NOSUB):
        return None
    try:
        return bool(libc.regexec(compiled, key.lower().encode(), 0, None, 0) == 0)
    finally:
        libc.regfree(compiled)


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("b", "abc", True),
        ("^b", "abc", False),
        ("B", "b", True),
        ("b", "B", True),
        ("(?i)^B$", "b", True),
        ("^a.c$", "a\nc", True),
        ("^a.c$", "aéc", False),  # two bytes
        ("^a..c$", "aéc", True),
        ("^a.c$", "a\udcffc", True),
        ("é", "É", True),
        ("É", "e\u0301", True),
        ("e\u0301", "é", True),
        ("e", "é", False),
        ("[é]", "\udca9", True),
        ("a$", "a\n", False),
        (r"a\.c", "abc", False),
        (r"a\.c", "a.c", True),
        (r"\[\*\-\@", "[*-@", True),
        (r"[\.]", "\\", True),
        ("[]a]+$", "]a]", True),
        ("[^]a]", "]a]", False),
        ("[^a]", "\n", True),
        ("[a-]", "-", True),
        ("[--a]", "5", True),
        ("[%--]", "+", True),
        ("[a-c-]", "-", True),
        ("[[.-.]a]", "-", True),
        ("[[.a.]-c]", "b", True),
        ("[[=a=]]", "a", True),
        ("[[:alpha:][:digit:]]{3}", "a1b", True),
        ("[[:ALPHA:]]", "a", True),
        ("[[:alpha:]-]", "-", True),
        ("[[:upper:]]", "a", True),
        ("[^[:space:]]", " \t\n\v\f\r", False),
        ("[[:blank:]]", "\t", True),
        ("[[:blank:]]", "\n", False),
        ("[[:cntrl:]]", "\x7f", True),
        ("[[:punct:]]", "_", True),
        ("[[:punct:]]", "aZ0 ", False),
        ("[[:graph:]]", " ", False),
        ("[[:print:]]", " ", True),
        ("[[:alnum:]_]", "_", True),
        ("[[:xdigit:]]{8}", "DEADBEEF", True),
        ("[[:lower:]]", "A", True),
        ("ab|cd", "xcdx", True),
        ("^(ab|cd)$", "abcd", False),
        ("^(ab|cd)+$", "abcd", True),
        ("(^|[.-])dyn", "dyn", True),
        ("(^|[.-])dyn", "a-dyn", True),
        ("(^|[.-])dyn", "adyn", False),
        ("dyn($|[.-])", "dyn", True),
        ("dyn($|[.-])", "dynx", False),
        ("a^b", "ab", False),
        ("a$b", "ab", False),
        ("(^a)*b", "ab", True),
        ("^(^a)$", "a", True),
        ("^^a$$", "a", True),
        ("(^a?){2}$", "aa", False),
        ("^$", "", True),
        ("^$", "a", False),
        ("^", "a", True),
        ("$", "a", True),
        ("a$|^$", "b", False),
        ("x*", "", True),
        ("x*", "a", True),
        ("(x*$)y*", "zx", True),
        ("^a{2}$", "aa", True),
        ("^a{2}$", "aaa", False),
        ("^a{2,}$", "aaaa", True),
        ("^a{2,}$", "a", False),
        ("^a{0,}$", "", True),
        ("^a{2,4}$", "aaaa", True),
        ("^a{2,4}$", "aaaaa", False),
        ("^a{1,1}$", "a", True),
        ("^a{00001,00002}$", "aa", True),
        ("^a{00001}$", "", False),
        ("^ba{0}b$", "bb", True),
        ("^ba{0,0}b$", "bb", True),
        ("^(a?b){2,3}$", "abb", True),
        ("^(a?b){2,3}$", "ab", False),
        ("^(a|b*)+c$", "abbac", True),
        ("^a?b?c?$", "ac", True),
        ("^a?b?c?$", "ca", False),
        ("(c($|a)){2}", "cc", False),
        ("(c($|a)){2}", "cac", True),
    ],
)
def test_matches(pattern: str, key: str, expected: bool) -> None:  # noqa: FBT001  # a table of cases
    assert RegexTable.of([pattern]).match(key) == (pattern if expected else None)


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - {"word"}))
def test_named_classes_ignore_case(name: str) -> None:
    table = RegexTable.of([f"^[[:{name}:]]$"])
    expected = set(CLASSES["alpha" if name in {"lower", "upper"} else name])
    assert {chr(code) for code in range(128) if table.match(chr(code))} == expected


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"\d+", r"\\d is not defined in POSIX, write [[:digit:]] or [0-9] (at character 2)"),
        (r"\w", "write [[:alnum:]_]"),
        (r"a\s", r"\\s is not defined in POSIX, write [[:space:]]"),
        (r"\b", r"\\b is not defined in POSIX (at"),
        (r"(a)\1", r"\\1 is not defined"),
        (r"\<a", r"\\< is not defined"),
        ("a\\", "nothing after"),
        ("*a", "nothing to repeat before * (at character 1)"),
        ("a|+", "nothing to repeat before +"),
        ("(?:a)", "nothing to repeat before ?"),
        ("{1}", "nothing to repeat before {"),
        ("^*", "an anchor can't be repeated"),
        ("a$+", "an anchor can't be repeated"),
        ("a**", "a repeat of a repeat needs parentheses"),
        ("a+?", "a repeat of a repeat needs parentheses"),
        ("a{2}{3}", "a repeat of a repeat needs parentheses"),
        ("a{", "{ must begin"),
        ("a{x}", "{ must begin"),
        ("a{,3}", "{ must begin"),
        ("a{1,2,3}", "{ must begin"),
        ("a{1", "{ must begin"),
        ("a{3,2}", "a repeat goes from 0 to 255, the smaller number first"),
        ("a{256}", "a repeat goes from 0 to 255"),
        ("a{1,256}", "a repeat goes from 0 to 255"),
        ("a{99999999999}", "a repeat goes from 0 to 255"),
        ("", "empty"),
        ("(?i)", "empty alternative or group"),
        ("a|", "empty alternative or group"),
        ("|a", "empty alternative or group"),
        ("a||b", "empty alternative or group"),
        ("()", "empty alternative or group"),
        ("(a|)", "empty alternative or group"),
        ("(a", "unmatched ("),
        ("a)", "unmatched )"),
        (")", "empty alternative or group"),
        ("[a", "no closing ]"),
        ("[]", "no closing ]"),
        ("[^]", "no closing ]"),
        ("[[:alpha:]", "no closing ]"),
        ("[[:alpha", "no closing :]"),
        ("[[:foo:]]", "unknown character class"),
        ("[[.hyphen.]]", "not a single character"),
        ("[[=ab=]]", "not a single character"),
        ("[z-a]", "a range whose end is before its start"),
        ("[Z-a]", "a range whose end is before its start"),  # lower-cased first
        ("[a-c-e]", "a range can't start at the end of another"),
        ("[a-[:alpha:]]", "a class can't end a range"),
        ("[a-[=b=]]", "a class can't end a range"),
        ("(" * 40 + "a" + ")" * 40, "more than 32 levels of nested groups"),
        ("(" * 1000, "more than 32 levels of nested groups"),
        ("(a{255}){255}", "pattern needs 65025 positions, more than 4096"),
        ("((((a{255}){255}){255}){255}){255}", "more than 4096"),
        ("((a?){50}a{50}){10}", "pattern takes 5"),
    ],
)
def test_refused(pattern: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RegexTable.of([pattern])
    assert str(caught.value).startswith("built-in table: entry 1: ")
    assert reason.replace("\\\\", "\\") in str(caught.value)


atoms = st.sampled_from(["a", "b", "C", ".", "[ab]", "[^a]", "[a-c]", "[[:alpha:]]", r"\."])
anchors = st.sampled_from(["^", "$"])
repeats = st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,3}", "{2,}", "{0}", "{0,}"])


shapes = st.sampled_from(["({0}){2}", "({0})", "({0}|{1})", "{0}{1}", "({3}|{0})", "{0}({3})"])


def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.lists(inner, min_size=2, max_size=2)
    return st.builds(
        lambda shape, pair, repeat, anchor: shape.format(*pair, repeat, anchor),
        shapes, pair, repeats, anchors,
    )  # fmt: skip


def is_misread(pattern: str) -> bool:
    """Whether glibc may take an anchor in a counted repeat for met where it isn't.

    `(c($|a)){2}` is found in "cc", `(c($|a))(c($|a))` isn't.
    """
    return "{" in pattern and any(char in pattern.replace("[^", "[") for char in "^$")


patterns = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "^"]),
    st.recursive(st.builds("{}{}".format, atoms, st.one_of(st.just(""), repeats)), grow),
    st.sampled_from(["", "$"]),
)
keys = st.text("abc.Cd", max_size=9)


@glibc_only
@given(patterns, keys)
def test_same_as_regcomp(pattern: str, key: str) -> None:
    """Every well-defined pattern means what it means to smtpd."""
    assume(len(pattern) < 60)  # glibc takes its time and memory over nested repeats
    assume(not is_misread(pattern))
    expected = regcomp_matches(pattern, key)
    assert expected is not None
    assert (RegexTable.of([pattern]).match(key) is not None) is expected


@glibc_only
@given(st.text("ab.-[]()|*+?{}^$\\1,:=", max_size=12), keys)
def test_nothing_means_something_else(pattern: str, key: str) -> None:
    """A pattern accepted here has the same meaning for regcomp; every other one is rejected."""
    assume(not is_misread(pattern))
    try:
        table = RegexTable.of([pattern])
    except ConfigError:
        return
    assert (table.match(key) is not None) is regcomp_matches(pattern, key)
