"""Groups of regular expressions, compared with those of Python's `re`."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.tables.captures import SIZE_MAX, Captures
from smtpd_filters.tables.ere import parse


def groups(pattern: str, key: str, *, whole: bool = False) -> list[str | None] | None:
    found = Captures(parse(pattern.encode()), whole=whole).match(key.encode())
    if found is None:
        return None
    return [None if end < 0 else key[begin:end] for begin, end in found]


@pytest.mark.parametrize(
    ("pattern", "key", "found"),
    [
        (r"(.*)@(.*)\.lan", "root@a.lan", ["root@a.lan", "root", "a"]),
        (r"(.*)@(.*)\.lan", "root@a.lan.evil", ["root@a.lan", "root", "a"]),
        (r"^(a|b)+$", "abab", ["abab", "b"]),
        (r"(x)?y", "y", ["y", None]),
        (r"(a*)(a*)", "aaa", ["aaa", "aaa", ""]),
        (r"((a)|(b))", "b", ["b", "b", None, "b"]),
        (r"b", "abc", ["b"]),
        (r"(a{2,3})(a?)", "aaaa", ["aaaa", "aaa", "a"]),
        (r"x", "abc", None),
    ],
)
def test_what_groups_have_matched(pattern: str, key: str, found: list[str] | None) -> None:
    assert groups(pattern, key) == found


def test_the_size_grows_with_the_pattern() -> None:
    small, large = (Captures(parse(each), whole=True).size for each in (b"a", b"(a|b)(c|d)"))
    assert 0 < small < large


def test_a_whole_match() -> None:
    assert groups(r"(.*)@(.*)\.lan", "root@a.lan.evil", whole=True) is None
    assert groups("a|ab", "ab", whole=True) == ["ab"]


PATTERNS = st.recursive(
    st.sampled_from(["a", "b", ".", "[ab]", "[^a]"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        inner.map("({})".format),
        st.tuples(inner, inner).map("({0[0]}|{0[1]})".format),
        st.tuples(inner.map("({})".format), st.sampled_from(["*", "+", "?", "{1,2}"])).map("".join),
    ),
    max_leaves=8,
)


@given(pattern=PATTERNS, key=st.text("abc", max_size=12), whole=st.booleans())
@example(pattern="(a|ab)(c|bcd)", key="abcd", whole=True)
def test_matches_are_those_of_re(*, pattern: str, key: str, whole: bool) -> None:
    compiled = re.compile(pattern)
    theirs = compiled.fullmatch(key) if whole else compiled.search(key)
    try:
        ours = groups(pattern, key, whole=whole)
    except ValueError:
        return  # too large
    assert (ours is None) is (theirs is None)
    if ours is not None and theirs is not None:
        assert ours[0] == theirs[0]


def test_it_is_bounded() -> None:
    program = Captures(parse(b"((a*)*)*b"), whole=True)
    assert program.match(b"a" * 320) is None
    with pytest.raises(ValueError, match=f"at most {SIZE_MAX} parts"):
        Captures(parse(b"(a{200})(b{200})"), whole=True)
