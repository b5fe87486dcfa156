"""The order in which a text with directional characters is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.checks.author.display_order import _laid_out, display_orders, is_directed

LRE, RLE, PDF, LRO, RLO = "\u202a", "\u202b", "\u202c", "\u202d", "\u202e"
LRI, RLI, FSI, PDI = "\u2066", "\u2067", "\u2068", "\u2069"
RLM, ALM, ALEF, BET = "\u200f", "\u061c", "\u05d0", "\u05d1"
EXPLICIT = LRE + RLE + PDF + LRO + RLO + LRI + RLI + FSI + PDI
REMOVED = dict.fromkeys(map(ord, EXPLICIT + RLM + ALM))


def shown(text: str, base: int = 0) -> str:
    return _laid_out(text, base).translate(REMOVED)


@pytest.mark.parametrize(
    ("text", "left", "right"),
    [
        # As FriBidi shows it in a paragraph that runs to the right, and in one to the left.
        (f"{RLO}cba", "abc", "abc"),
        (f"x {RLO}cba{PDF} y", "x abc y", "y abc x"),
        (f"a{LRO}b{RLO}dc{PDF}e{PDF}f", "abcdef", "abcdef"),
        (f"{RLO}ed{LRO}bc{PDF}a", "abcde", "abcde"),
        (f"{RLO}cb{RLE}a", "abc", "abc"),
        (f"b@{RLE}a", "b@a", "a@b"),
        (f"c{RLM}@{RLM}a", "c@a", "a@c"),
        (f"c{ALM}@{ALM}a", "c@a", "a@c"),
        (f"{LRI}c{PDI}@{LRI}a{PDI}", "c@a", "a@c"),
        (f"{LRE}c{PDF}@{LRE}a{PDF}", "c@a", "c@a"),
        (f"{RLI}{LRI}c{PDI}@{LRI}a{PDI}{PDI}", "a@c", "a@c"),
        (f"{FSI}{RLM}c{RLM}@{RLM}a{PDI}", "a@c", "a@c"),
        (f"{FSI}{LRI}{ALEF}{PDI}a{RLM}@{RLM}c{PDI}", f"{ALEF}a@c", f"{ALEF}a@c"),
        (f"{FSI}@{PDI}a", "@a", "a@"),
        (f"a{ALEF}{BET}c", f"a{BET}{ALEF}c", f"c{BET}{ALEF}a"),
        (f"{ALEF}1,2 3{BET}", f"{BET}3 1,2{ALEF}", f"{BET}3 1,2{ALEF}"),
        (f"a1,2{ALEF}", f"a1,2{ALEF}", f"{ALEF}a1,2"),
        (f"{ALEF}\u05b0b", f"\u05b0{ALEF}b", f"b\u05b0{ALEF}"),
        # A paragraph ends all.
        (f"{RLO}ba\n{RLO}dc", "ab\ncd", "ab\ncd"),
        (f"{RLO}ba\u2029dc", "ab\u2029dc", "ab\u2029dc"),
        # What closes nothing.
        (f"a{PDF}{PDI}b", "ab", "ab"),
        (f"{RLI}{RLO}b{PDI}{PDF}c", "bc", "cb"),
        (f"{RLO}b{LRI}cd{PDF}{PDI}a", "acdb", "acdb"),
        # Beyond the depth of the algorithm nothing changes.
        (RLE * 61 + f"{RLO}{RLO}{PDF}cba", "abc", "abc"),
        (RLE * 63 + f"{RLO}{RLO}{PDF}cba", "cba", "cba"),
        (RLE * 63 + f"{RLI}{RLO}{PDF}{LRI}{PDI}{PDI}ab", "ab", "ab"),
    ],
)  # fmt: skip
def test_order(text: str, left: str, right: str) -> None:
    assert shown(text) == left
    assert shown(text, 1) == right


def test_a_text_is_shown_as_a_whole_or_in_parts() -> None:
    text = f'"{RLO}b@a" <c@d>'
    assert '"a@b" <c@d>' in display_orders(text)
    assert '">d@c< "a@b' in display_orders(text)
    assert text not in display_orders(text)
    assert display_orders("a@b") == ()


def test_only_some_characters_change_the_order() -> None:
    assert not is_directed("a@b")
    assert not is_directed(f"{ALEF}{PDF}{PDI}\u200e\u202f")
    for mark in (LRE, RLE, LRO, RLO, LRI, RLI, FSI, RLM, ALM):
        assert is_directed(f"a{mark}")


TEXTS = st.text(st.sampled_from(f"ab@. 1,{ALEF}\u05b0\n{RLM}{ALM}{EXPLICIT}"))


@given(TEXTS | st.text(), st.sampled_from([0, 1]))
def test_nothing_is_added_or_lost(text: str, base: int) -> None:
    embeddings = dict.fromkeys(map(ord, EXPLICIT))
    assert sorted(_laid_out(text, base).translate(embeddings)) == sorted(text.translate(embeddings))


@given(st.text(st.sampled_from("ab@.")), st.text(st.sampled_from("ab@.")))
def test_an_override_is_read_backwards(before: str, text: str) -> None:
    assert shown(f"{before}{RLO}{text[::-1]}{PDF}") == before + text
