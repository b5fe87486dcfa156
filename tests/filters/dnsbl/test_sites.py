"""Entries as postscreen writes them: read, written back, matched."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from smtpd_filters.checks.listings import Pattern
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.dnsbl.options import SITES
from smtpd_filters.filters.dnsbl.sites import MAX_WEIGHT, Site, parse
from tests.tables.steps import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

labels = st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9]", fullmatch=True)
zones = st.lists(labels, min_size=2, max_size=5).map(".".join)
numbers = st.integers(0, 255)
#: One octet: as it is written, and the numbers that it covers.
octets = st.one_of(
    numbers.map(lambda number: (str(number), {number})),
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4).map(
        lambda pairs: (
            "[" + ";".join(_range(*sorted(pair)) for pair in pairs) + "]",
            {n for pair in pairs for n in range(min(pair), max(pair) + 1)},
        )
    ),
)
first_octets = octets.filter(lambda octet: 127 in octet[1])
patterns = st.tuples(first_octets, octets, octets, octets)
weights = st.integers(-MAX_WEIGHT, MAX_WEIGHT)


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}..{last}"


def _text(pattern: tuple[tuple[str, set[int]], ...]) -> str:
    return ".".join(text for text, _ in pattern)


@pytest.mark.parametrize(
    ("text", "zone", "weight", "counts", "ignored"),
    [
        ("bl.example", "bl.example", 1, ["127.0.0.2", "127.9.9.9"], []),
        ("BL.Example.", "bl.example", 1, ["127.0.0.2"], []),
        ("bl.example*3", "bl.example", 3, ["127.0.0.2"], []),
        ("bl.example*+3", "bl.example", 3, ["127.0.0.2"], []),
        ("wl.example*-2", "wl.example", -2, ["127.0.0.2"], []),
        ("bl.example=127.0.0.2", "bl.example", 1, ["127.0.0.2"], ["127.0.0.3", "127.0.2.0"]),
        (
            "bl.example=127.0.0.[2..11;14]*3",
            "bl.example",
            3,
            ["127.0.0.2", "127.0.0.7", "127.0.0.11", "127.0.0.14"],
            ["127.0.0.1", "127.0.0.12", "127.0.0.13", "127.0.0.15", "127.0.1.2"],
        ),
        (
            "list.dnswl.example=127.0.[2..15].[2..3]*-4",
            "list.dnswl.example",
            -4,
            ["127.0.2.2", "127.0.15.3"],
            ["127.0.2.1", "127.0.16.2", "127.0.1.2"],
        ),
    ],
)
def test_what_an_entry_says(
    text: str, zone: str, weight: int, counts: list[str], ignored: list[str]
) -> None:
    site = parse(text)
    assert (site.zone, site.weight) == (zone, weight)
    assert [address for address in counts + ignored if site.match(address)] == counts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a domain name"),
        ("=127.0.0.2", "not a domain name"),
        ("a b", "not a domain name"),
        ("zen", "not a domain name"),
        ("2", "not a domain name"),
        ("--helo", "not a domain name"),
        ("-a.example", "not a domain name"),
        ("a.-b.example", "not a domain name"),
        ("bl.example=", "four octets"),
        ("bl.example=127.0.0", "four octets"),
        ("bl.example=127.0.0.2.3", "four octets"),
        ("bl.example=127.0.0.[2", "four octets"),
        ("bl.example=127.0.0.x", "four octets"),
        ("bl.example=127.0.0.2 ", "four octets"),
        ("bl.example=127.0.0.[]", "numbers from 0 to 255"),
        ("bl.example=127.0.0.[2;]", "numbers from 0 to 255"),
        ("bl.example=127.0.0.[11..2]", "numbers from 0 to 255"),
        ("bl.example=127.0.0.[1..256]", "numbers from 0 to 255"),
        ("bl.example=127.0.0.256", "numbers from 0 to 255"),
        ("bl.example=127.0.0.[2,3]", "numbers from 0 to 255"),
        ("bl.example=127.0.0.٣", "four octets"),
        ("bl.example=192.0.2.1", "only answers in 127.0.0.0/8"),
        ("bl.example*", "weight"),
        ("bl.example*x", "weight"),
        ("bl.example*1.5", "weight"),
        ("bl.example*3*4", "weight"),
        ("bl.example*9999999", "weight"),
        ("bl.example*3=127.0.0.2", "weight"),
    ],
)
def test_what_is_no_entry(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)


@given(zones, st.none() | patterns, weights)
def test_reading_and_writing_are_inverse(
    zone: str, pattern: tuple[tuple[str, set[int]], ...] | None, weight: int
) -> None:
    site = Site(zone, Pattern(_text(pattern)) if pattern else None, weight)
    assert parse(str(site)) == site
    assert hash(parse(str(site))) == hash(site)


@given(patterns, st.tuples(numbers, numbers, numbers, numbers))
def test_an_answer_matches_if_each_octet_does(
    pattern: tuple[tuple[str, set[int]], ...], address: tuple[int, ...]
) -> None:
    expected = all(n in covered for n, (_, covered) in zip(address, pattern, strict=True))
    assert Pattern(_text(pattern)).match(".".join(map(str, address))) is expected


@given(patterns, st.text())
def test_what_is_no_address_matches_nothing(
    pattern: tuple[tuple[str, set[int]], ...], text: str
) -> None:
    assume(text.count(".") != 3)
    assert not Pattern(_text(pattern)).match(text)


@given(st.text())
def test_reading_any_text_gives_an_entry_or_a_reason(text: str) -> None:
    try:
        site = parse(text)
    except ValueError:
        return
    assert parse(str(site)) == site


KEY = "k3ykk7zqabcdefghij"


@pytest.mark.parametrize("rest", ["=127.0.0.300", "*x", "=127.0.0.2*", "=10.0.0.1", "!"])
def test_neither_a_reason_nor_a_repr_repeats_the_zone(rest: str, tmp_path: Path) -> None:
    text = f"{KEY}.zen.dq.spamhaus.net{rest}"
    (tmp_path / "lists").write_text(f"bl.example\n{text}\n")
    for spec in (text, f"{{ bl.example, {text} }}", f"file:{tmp_path}/lists"):
        with pytest.raises(ConfigError) as failure:
            SITES.parse(spec)
        assert KEY not in str(failure.value)
    assert KEY not in repr(parse(f"{KEY}.zen.dq.spamhaus.net=127.0.0.[2..11]*3"))


def test_ways_to_give_several(tmp_path: Path) -> None:
    expected = (parse("a.example=127.0.0.[2;4]*2"), parse("b.example*-1"))
    (tmp_path / "lists").write_text(
        "# lists\na.example=127.0.0.[2;4]*2  # twice as much\n\nb.example*-1\n"
    )
    for text in (
        "{ a.example=127.0.0.[2;4]*2, b.example*-1 }",
        "a.example=127.0.0.[2;4]*2, b.example*-1",
        "a.example=127.0.0.[2;4]*2 b.example*-1",
        f"file:{tmp_path}/lists",
    ):
        assert tuple(SITES.parse(text)) == expected
    several = SITES.from_toml(["a.example=127.0.0.[2;4]*2", "b.example*-1"])
    assert tuple(several) == expected
    assert tuple(SITES.from_toml(f"file:{tmp_path}/lists")) == expected
    assert tuple(SITES.parse(SITES.show(several))) == expected
    assert tuple(SITES.parse("a.example=127.0.0.[2;4]*2") + SITES.parse("b.example*-1")) == expected
    for wrong in ([1], 1, [["a.example"]]):
        with pytest.raises(ValueError, match="expected lists"):
            SITES.from_toml(wrong)


def test_a_file_is_read_again_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "lists").write_text("a.example\n")
    sites = SITES.parse(f"file:{tmp_path}/lists") + SITES.parse("c.example")
    told: list[list[str]] = []
    sites.reloaded = lambda: told.append(list(map(str, sites)))
    (tmp_path / "lists").write_text("a.example*2\nb.example\n")
    assert run(sites.reload())
    assert told == [["a.example*2", "b.example", "c.example"]]
    for content, reason in (
        (f"a.example\n\n{KEY}.zen.dq.spamhaus.net*x\n", f"{tmp_path}/lists:3: expected a weight"),
        (f"z.example\n{KEY}\0\n", "NUL"),
    ):
        (tmp_path / "lists").write_text(content)
        with pytest.raises(ConfigError, match=reason) as failure:
            run(sites.reload())
        assert KEY not in str(failure.value)
    assert len(told) == 1
    assert list(map(str, sites)) == told[0]


def test_the_reason_says_which_of_several_it_is() -> None:
    with pytest.raises(ConfigError, match=r'^inline table: entry 2: expected a weight after "\*"'):
        SITES.parse("{ a.example, b.example*x }")
