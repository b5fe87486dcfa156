"""The `From:` field, as any reader could understand it."""

from __future__ import annotations

import base64
import sys
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.checks.author.from_field import (
    ADDRESSES_MAX,
    DIRECTED_MAX,
    FROM_MAX,
    INTERNATIONAL_MAX,
    READINGS_MAX,
    SIGNS_MAX,
    WORDS_MAX,
    TooLargeError,
    read_from,
    values_of_from,
)
from smtpd_filters.filters.mailfrom import Mailfrom
from smtpd_filters.main import set_up
from smtpd_filters.message import Headers
from smtpd_filters.runtime.log import Log
from smtpd_filters.session import Session
from tests.effort import some
from tests.filters.executables import at_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType


def listed(candidates: Iterable[object]) -> list[str]:
    return [str(each) for each in candidates]


MAILSPLOIT = "=?utf-8?b?Ym9zc0BleGFtcGxlLm9yZw==?==?utf-8?q?=00?=@example.net"


@pytest.mark.parametrize(
    ("value", "addresses", "shown"),
    [
        ("a@b.example", ["a@b.example"], []),
        ("A B <a@b.example>", ["a@b.example"], []),
        ('"B, A" <a@b.example>, c@d.example', ["a@b.example", "c@d.example"], []),
        ('"x@y.example" <a@b.example>', ["a@b.example"], ["x@y.example"]),
        ('"x\\@y.example" <a@b.example>', ["a@b.example"], ["x@y.example"]),
        ("a@b.example (x@y.example)", ["a@b.example"], ["x@y.example"]),
        ("a@b.example (x (y) x@y.example)", ["a@b.example"], ["x@y.example"]),
        ("<a(<x@y.example>)@b.example>", ["a@b.example"], ["x@y.example", "y.example@b.example"]),
        # names in encoded words, in one or across two
        ("=?utf-8?q?x=40y=2Eexample?= <a@b.example>", ["a@b.example"], ["x@y.example"]),
        ("=?utf-8?q?x=40y?= =?ascii?b?LmV4YW1wbGU?= <a@b.example>",
         ["a@b.example"], ["x@y.example", "x@y"]),
        ("=?utf-7?q?x+AEA-y.example?= <a@b.example>", ["a@b.example"], ["x@y.example"]),
        ("=?utf-16be?b?AHgAQAB5?= <a@b.example>", ["a@b.example"], ["x@y"]),
        ('"=?utf-8?q?x=40y?=" <a@b.example>', ["a@b.example"], ["x@y"]),
        ("=?x-unknown?q?x=40y?= <a@b.example>", ["a@b.example"], ["x@y"]),
        ("=?utf-8?b?!?= <a@b.example>", ["a@b.example"], []),
        ("=?utf-8?b?A?= <a@b.example>", ["a@b.example"], []),
        # groups
        ("Us: a@b.example, C <c@d.example>;", ["a@b.example", "c@d.example"], []),
        ('"x@y.example": a@b.example;', ["a@b.example"], ["x@y.example"]),
        ("x@y.example: a@b.example;", ["x@y.example", "a@b.example"], []),
        ("Nobody:;", [], []),
        # obsolete syntax: routes, and white space and comments everywhere
        ("<@x.example,@y.example:a@b.example>", ["a@b.example"], ["@x.example", "@y.example"]),
        ("<@x.example, ,:a@b.example>", ["a@b.example"], ["@x.example"]),
        ("<, @x.example,, @y.example:a@b.example>",
         ["a@b.example"], ["@x.example", "@y.example"]),
        ("a @ b . example", ["a@b.example"], []),
        ("a(x)@(y)b(z).example", ["a@b.example"], ["x@y"]),
        ('"a b"@c.example', ["a b@c.example"], ["b@c.example"]),
        ('"x@y.example"@c.example', ["x@y.example@c.example"],
         ["x@y.example", "y.example@c.example"]),
        ("a@[IPv6:2001:db8::1]", ["a@[IPv6:2001:db8::1]"], []),
        ("a@[IPv6:192.0.2.1]", ["a@[IPv6:192.0.2.1]"], []),
        ("a@[::ffff:192.0.2.1]", ["a@[::ffff:192.0.2.1]"], []),
        ("a@b.example.", ["a@b.example"], []),
        # no syntax at all: what a lenient reader may see
        ("x@y.example <a@b.example>", ["x@y.example", "a@b.example"], []),
        ("<a@b.example> x@y.example", ["x@y.example", "a@b.example"], []),
        ("<x@y.example> <a@b.example>", ["x@y.example", "a@b.example"], []),
        ("<x@y.example", ["x@y.example"], []),
        # a route is at the beginning only
        ("<x@y.example:a@b.example>", ["x@y.example", "a@b.example"], []),
        ("<x@y.example,:a@b.example>", ["x@y.example", "a@b.example"], []),
        ("<x@y.example:>", ["x@y.example"], []),
        ('"X <x@y.example>', ["x@y.example"], []),
        ("a@b.example (x@y.example", ["a@b.example", "x@y.example"], []),
        ('\\"x@y.example\\" <a@b.example>', ["x@y.example", "a@b.example"], []),
        ("x@y.example@b.example", ["x@y.example", "y.example@b.example"], []),
        ("x@y.example\0@b.example", ["x@y.example", "@b.example", "y.example@b.example"], []),
        (MAILSPLOIT, ["boss@example.org", "@example.net", "example.org@example.net"], []),
        ("=?utf-8?q?x=40y.example=20=3Ca=40b.example=3E?=", ["x@y.example", "a@b.example"], []),
        ("[x@y.example", ["x@y.example"], []),
        ("@@ @, @<@>", [], []),
        ("'x@y.example'", ["'x@y.example"], []),
        # no address but what it shows
        ('"x@y.example"', ["x@y.example", "x@y.example"], ["x@y.example"]),
        ('"x@y.example" <>', ["x@y.example"], ["x@y.example"]),
        # no domain: smtpd gives it the server's
        ("root", ["root"], []),
        ("Root <root>", ["root"], []),
        ('"The Boss" <boss>, a@b.example', ["boss", "a@b.example"], []),
        ("Doe, Jane <a@b.example>", ["a@b.example"], []),
        ('"boss"', ["boss"], []),
        ("", [], []),
        (" , ;<>", [], []),
    ],
)  # fmt: skip
def test_addresses_in_from(value: str, addresses: list[str], shown: list[str]) -> None:
    author = read_from([value])
    assert listed(author.addresses) == addresses
    assert listed(author.shown) == shown


@pytest.mark.parametrize(
    ("value", "addresses", "possible"),
    [
        # A name with an `@` that has no dot at its right is a name.
        ("Bob @ Work <a@b.example>", ["a@b.example"], ["Bob@Work"]),
        ("Bob@Work <a@b.example>", ["a@b.example"], ["Bob@Work"]),
        ("Bob @ Work. Sales <a@b.example>", ["a@b.example"], ["Bob@Work.Sales", "Bob@Work"]),
        ("x@y.example. Sales <a@b.example>", ["x@y.example", "a@b.example"],
         ["x@y.example.Sales", "x@y.example"]),
        ("x@[192.0.2.1] <a@b.example>", ["x@[192.0.2.1]", "a@b.example"], []),
        # Where an address is due, white space belongs to it, and may not.
        ("a@b.example . c", ["a@b.example.c"], ["a@b.example"]),
        ("a@b . c . d", ["a@b.c.d"], ["a@b", "a@b.c"]),
        # Some programs ignore an empty label, others end the address before it.
        ("a@b..example", ["a@b..example"], ["a@b", "a@b.example"]),
        ("a@b.example...", ["a@b.example"], []),
        ("a@b.example... or", ["a@b.example...or"], ["a@b.example", "a@b.example.or"]),
        ("a@b.example...or <c@d.example>", ["a@b.example", "c@d.example"],
         ["a@b.example...or", "a@b.example.or", "a@b.example"]),
        # Bytes that aren't UTF-8: Windows-1252, a blank, nothing
        ("a@b.example\udca0", ["a@b.example\udca0"], ["a@b.example"]),
        ("a@b\udce4c.example", ["a@b\udce4c.example"], ["a@b\xe4c.example", "a@b", "a@bc.example"]),
        ("<a\udcff@b.example>", ["a\udcff@b.example"],
         ["a\xff@b.example", "a@b.example"]),
        # Comments may be dropped together with what they part.
        ("a@b.exam(x)ple", ["a@b.exam"], ["a@b.example"]),
        # Marks
        ("a@b.example'", ["a@b.example"], ["a@b.example'"]),
        ("a@b.example- c", ["a@b.example"], ["a@b.example-"]),
        ("a@b.example_c", ["a@b.example_c"], ["a@b.example"]),
        ("a@_b.example", ["a@_b.example"], ["a@b.example"]),
        ("a@bü.example”", ["a@bü.example"], ["a@bü.example”"]),
        ("a@“bü.example", ["a@bü.example"], ["a@“bü.example"]),
        ("a@bü·l.example·", ["a@bü·l.example"], ["a@bü·l.example·", "a@bü"]),
    ],
)  # fmt: skip
def test_ways_to_read_an_address(value: str, addresses: list[str], possible: list[str]) -> None:
    author = read_from([value])
    assert listed(author.addresses) == addresses
    assert listed(author.possible) == possible


@pytest.mark.parametrize(
    "value",
    [
        '"x@y.example" [S] <a@b.example>',
        '"x@y.example" <a@b.example> x',
        '"x@y.example" <a@b.example> <c@d.example>',
        '"x@y.example" <a@b.example',
        '"x@y.example" " <a@b.example>',
        '"x@y.example" \\a <a@b.example>',
        '"x@y.example" ) <a@b.example>',
        '"x@y.example" ] <a@b.example>',
        '"x@y.example" a@b <c@d.example>',
        '"x@y.example" a@b: c@d.example;',
        'g: "x@y.example": c@d.example;',
        'g: <a@b.example>, "x@y.example" h: c@d.example',
        "z=?utf-8?q?_x=40y.example?= <a@b.example>",
        "=?utf-8?q?x@y.example?= <a@b.example>",
    ],
)
def test_in_a_field_against_the_syntax_a_name_may_be_an_address(value: str) -> None:
    author = read_from([value])
    assert "x@y.example" in listed(author.possible)
    assert "x@y.example" not in listed(author.addresses)


@pytest.mark.parametrize(
    "value",
    [
        '"x@y.example" <a@b.example>',
        "=?utf-8?q?x=40y.example?= <a@b.example>",
        '"=?utf-8?q?x=40y.example?=" (c) <a@b.example>, c@d.example',
        'Us: "x@y.example" Doe <a@b.example>, "c d"@e.example;',
        'Us: "x@y.example" <@c.example:a@b.example>; Them: c@d.example;',
        "a@[192.0.2.1] (x@y.example)",
        '"x@y.example" <@c.example,@d.example:a@b.example>',
        'Doe, "x@y.example" <a@b.example>',
    ],
)
def test_in_a_field_by_the_syntax_a_name_is_a_name(value: str) -> None:
    author = read_from([value])
    assert "x@y.example" in listed(author.shown)
    assert "x@y.example" not in listed([*author.possible, *author.addresses])


@pytest.mark.parametrize(
    ("value", "local_parts"),
    [
        ("boss@x.example", ("boss",)),
        ("'boss@x.example", ("'boss", "boss")),
        ("_jane_@x.example", ("_jane_", "jane")),
        ("o'brien@x.example", ("o'brien",)),
        ("“boss@x.example", ("“boss", "boss")),
        ("a…boss@x.example", ("a…boss", "boss")),
        ("jo\u0308rg@x.example", ("jo\u0308rg",)),
        ('"\'boss"@x.example', ("'boss",)),
        ("@x.example", ("",)),
    ],
)
def test_ways_to_read_a_local_part(value: str, local_parts: tuple[str, ...]) -> None:
    [candidate] = read_from([value]).addresses
    assert candidate.local_parts == local_parts


RTL, END = "\u202e", "\u202c"


@pytest.mark.parametrize(
    "name",
    [
        f"{RTL}gro.elpmaxe@ssob{END}",
        f"{RTL}gro.elpmaxe@ssob",
        f"x {RTL}gro.elpmaxe@ssob{END} y",
        f"boss@{RTL}gro.elpmaxe{END}",
        f"boss@{RTL}gro.elpmaxe",
        f"{RTL}gro.elpmaxe{END}\u202dboss@",
        f"{RTL}gro.\u202dexample{END}@ssob",
        "\u2067\u2066example.org\u2069@\u2066boss\u2069\u2069",
        "example.org\u200f@\u200fboss",
        "boss@exam\nple.org",
        "boss@exam\vple.org",
        "boss@exam\fple.org",
        "boss@exam\rple.org",
        "boss@exam\r\nple.org",
        "boss@exam\x1cple.org",
        "boss@exam\x85ple.org",
        "boss@exam\u2028ple.org",
        "boss@exam\u2029ple.org",
        "bo\x85ss@\x01exam\vple.org",
        f"{RTL}gro.elp\x0bmaxe@ssob",
    ],
    ids=ascii,
)
def test_what_a_program_may_show_of_marks_and_controls(name: str) -> None:
    word = f"=?utf-8?b?{base64.b64encode(name.encode()).decode()}?="
    quoted = name.replace("\r\n", "\r")  # no line break is left in a field
    for value in (f'"{quoted}" <a@b.example>', f"a@b.example ({quoted})", f"{word} <a@b.example>"):
        author = read_from([value])
        assert "a@b.example" in listed(author.addresses)
        assert "boss@example.org" in listed([*author.shown, *author.possible]), ascii(value)
    for value in (quoted, f"<{quoted}>", word, f"<{word}>", f"c@d.example, {quoted}"):
        author = read_from([value])
        assert "boss@example.org" in listed([*author.addresses, *author.possible]), ascii(value)


def test_what_only_some_programs_show_is_no_claim_to_a_foreign_address() -> None:
    for value in (f"Anna{RTL} <a@b.example>", "a@b.exam\vple", f"a@b.example{RTL}"):
        author = read_from([value])
        assert len(author.addresses) == 1, ascii(value)


def test_there_is_a_limit_to_what_is_put_in_order() -> None:
    assert read_from([f"{RTL}a <a@b.example>"]).addresses
    with pytest.raises(TooLargeError, match="directional"):
        read_from([f"{RTL}{'a' * DIRECTED_MAX}@b.example"])


def test_all_fields_count() -> None:
    assert listed(read_from(["a@b", "root", "c@d"]).addresses) == ["a@b", "root", "c@d"]


def test_a_bare_carriage_return_begins_a_line_for_some() -> None:
    headers = Headers(
        [
            b"Subject: x\rFrom: a@b.example",
            b"\tc@d.example\rTo: e@f.example",
            b"From : g@h.example",
            b"X: y\rfrom\t:i@j.example",
        ]
    )
    values = ["g@h.example", " a@b.example\n\tc@d.example", "i@j.example"]
    assert values_of_from(headers) == values
    assert values_of_from(Headers([b"From: a@b.example"])) == ["a@b.example"]


def test_a_name_that_only_some_programs_read_counts() -> None:
    headers = Headers(
        [
            b"X-From: z@b.example",
            b"From\x00: a@b.example,",
            b" c@d.example",
            b"\xef\xbb\xbffr om\t",
            b" : e@f.example",
            b"From someone: Mon Sep 17",
        ]
    )
    assert values_of_from(headers) == [" a@b.example,\n c@d.example", " e@f.example"]


def test_values_of_names_in_one_line_have_a_limit() -> None:
    # Each value goes on behind the next name: together they are the square of the line.
    line = b"X: " + b"\r From:a" * 4000
    values = values_of_from(Headers([line]))
    assert sum(map(len, values)) < FROM_MAX + len(line)
    assert values[0] == "a" + "\r From:a" * 3999
    with pytest.raises(TooLargeError, match="characters"):
        read_from(values)


def test_there_is_a_limit_to_what_is_read() -> None:
    half = " " * (FROM_MAX // 2 - 3) + "a@b"
    assert listed(read_from([half, half]).addresses) == ["a@b"]
    with pytest.raises(TooLargeError, match="characters"):
        read_from([half, half, """ """])
    many = ["".join(f"a{number}@b," for number in range(ADDRESSES_MAX))]
    assert len(read_from(many).addresses) == ADDRESSES_MAX
    with pytest.raises(TooLargeError, match="addresses"):
        read_from([*many, "(a@b)"])
    assert len(read_from(["a@b"] * ADDRESSES_MAX).addresses) == 1
    with pytest.raises(TooLargeError, match="fields"):
        read_from(["a"] * (ADDRESSES_MAX + 1))
    with pytest.raises(TooLargeError, match="encoded words"):
        read_from(["=?utf-8?q?a?= " * (WORDS_MAX + 1)])
    assert not read_from(["=?utf-8?q?a?= " * WORDS_MAX + "<>"]).addresses
    with pytest.raises(TooLargeError, match="addresses"):
        read_from(["@-" * (SIGNS_MAX + 1)])
    with pytest.raises(TooLargeError, match="addresses"):
        read_from(["=?utf-16?b?YQBA?= <a@b>, " * (READINGS_MAX // 8)])
    label = "xn--" + "a" * (INTERNATIONAL_MAX // 4 - 4)
    names = [f"a@{label}{number}" for number in "1234"]
    assert len(read_from(names[:3] * 10).addresses) == 3
    with pytest.raises(TooLargeError, match="internationalised"):
        read_from(names)
    with pytest.raises(TooLargeError, match="internationalised"):
        read_from([f"(a@{'ü' * INTERNATIONAL_MAX}ü)"])


# What is read slowly if anything is: each as long as is read at all.
HOSTILE = (
    '\\"' * 16_000 + "@a",
    '"@a"' * 8000,
    "@a" * 16_000,
    '("' * 16_000,
    "[" * 32_000,
    "[]" * 16_000,
    "=?" * 16_000,
    "(@a" * 10_000,
    "(" * 32_000,
    "(" * 16_000 + ")" * 16_000,
    "(" * 1000 + "boss@example.org" + ")" * 1000,
    "()" * 16_000,
    "<" * 32_000,
    "<>" * 16_000,
    "<a@b>" * 6500,
    "a," * 16_000,
    "a@b:" * 8000,
    " " * 32_000 + "@a",
    ("@" + " " * 100) * 320,
    "a@" + " ." * 16_000,
    "a" * 32_000,
    "a@ . " * 6000,
    "a@a" + ".a " * 10_000,
    "a@" + "a." * 16_000,
    ("a@" + "a." * 62 + ",") * 250,
    ("a@" + "\u00fc . " * 60) * 130,
    ("a@" + "\u0301\u0323" * 100 + ",") * 150,
    "a@" + "\u00ad" * 32_000 + "b.example",
    "a@" + "\udcfc" * 32_000,
    ("\u2026" * 120 + "@b ") * 250,
    ('"' * 100 + "@b ") * 300,
    "\uff20" * 32_000,
    "a\uff20b\uff0ec " * 4600,
    "<" + "@a," * 10_000 + ":x@y>",
    '"' + '\\"' * 16_000,
    "\\" * 32_001,
    "a\x01@b\x02 " * 4600,
    "\x1b$B" * 10_000,
    "=?utf-8?q?=22=5c?=" * 1700,
    ("=?utf-8?q?" + "=40a." * 150 + "?= ") * 30,
    "=?utf-8?q?a?= =?gbk?q?b?= " * 1200,
    "=?utf-16?b?QQ==QQ==?=" * 1500,
    "=?utf-7?q?+AEA-?=" * 1800,
    "=?utf-8?q?aaa" * 2300,
    "?= =?" * 6000,
    "?=" + " " * 32_000,
    "".join(f"a@xn--{'a' * 40}{number}.example," for number in range(560)),
    "".join(f"a@b{number}\u00fc.example," for number in range(1800)),
    *(
        (marks * 2000)[: DIRECTED_MAX // 2]
        for marks in (
            "a@b\u202e",
            "\u202e\u202da@",
            "\u2068@",
            "\u2068a@",
            "\u2067@\u2069",
            "a\u05d0@\u200f",
            "<a@b\u200f>",
            "1\u05d0,@\u202a",
        )
    ),
    "\v" * 16_000 + "a@b\v" * 4000,
)


def judging(**settings: str) -> Mailfrom:
    kinds = Mailfrom.Options.options
    values = {name: kinds[name].kind.parse(value) for name, value in settings.items()}
    policy = Mailfrom(Mailfrom.Options(check_display=True, **values))
    set_up(policy, Log())
    return policy


def stranger() -> Session:
    session = Session(b"1").expect(["username", "server_name"])
    session.apply("link-connect", (b"<unknown>", b"fail", b"192.0.2.1:25", b"198.51.100.25:25"))
    return session


def calls(policy: Mailfrom, value: str) -> int:
    """How many functions are called to judge a field."""
    session, count = stranger(), 0

    def counted(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        at_once(policy._judge_from(session, [value]))
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("value", some(HOSTILE), ids=lambda value: ascii(value)[:16])
def test_no_field_costs_more_than_its_length(value: str) -> None:
    assert len(value) <= FROM_MAX
    policy = judging(
        domains="{ example.org, b\u00fccher.example }", subdomains="true", addresses="@example.com",
        patterns="example",
    )  # fmt: skip
    # A call takes a quarter of a microsecond or so; all that are counted here, some milliseconds.
    assert calls(policy, value) < 6 * FROM_MAX
    assert calls(policy, value[: len(value) // 2]) < 6 * FROM_MAX


PIECES = st.sampled_from(
    ["a", "@", "b.example", "<", ">", '"', "\\", "(", ")", ",", ";", ":", " ", ".", "[", "]",
     "=?utf-8?q?", "=40", "?=", "=?utf-8?b?QA==?=", "=?utf-7?q?+2AA-?=", "\0", "\udcff", "é",
     "=?gbk?q?=A3=C0?=", "=?utf-16?b?", "AEA=", "\uff20", "\u200d", "\u3002", "\x1b$B", "xn--",
     "'", "_", "\u00b7", "ß", "\r", "=?x", "\u0308",
     "\u202e", "\u202c", "\u2068", "\u2069", "\u200f", "\u2029", "\v", "\u05d0"]
)  # fmt: skip
WILD = st.lists(PIECES, max_size=30).map("".join) | st.text(max_size=60)


@given(values=st.lists(WILD, max_size=3))
@example(values=["=?utf-7?q?+2AA-@example.org?="])
@example(values=["\ud800@\ud800.example =?utf-8?q?\ud800?="])
def test_no_field_raises(values: list[str]) -> None:
    policy = judging(
        domains="example.org", addresses="@example.com", patterns="example",
        senders="{ anna = @example.org }",
    )  # fmt: skip
    session = stranger()
    assert at_once(policy._judge_from(session, values)) is None or values
    session.apply("link-auth", (b"pass", b"anna"))
    assert at_once(policy._judge_from(session, values)) is None or values


@given(before=WILD, after=WILD)
@example(before="", after="<.a")
@example(before="", after="<.a>")
def test_an_own_address_in_angle_brackets_is_found_behind_anything(before: str, after: str) -> None:
    # But for what makes a comment or a quoted string of it, or opens brackets before it.
    opens = any(char in before for char in '"\\(<\x1b') or "=?" in before
    try:
        author = read_from([f"{before} <boss@example.org>{after}"])
    except TooLargeError:
        return
    assert "boss@example.org" in listed(author.addresses) or opens


@given(before=WILD, after=WILD)
def test_an_own_address_is_seen_between_anything(before: str, after: str) -> None:
    hides = "=?" in before or "\x1b" in before
    value = f'"{before.replace(chr(34), "")} boss@example.org {after.replace(chr(34), "")}" <a@b>'
    try:
        author = read_from([value])
    except TooLargeError:
        return
    found = listed([*author.addresses, *author.possible, *author.shown])
    assert "boss@example.org" in found or hides


@pytest.mark.parametrize("pieces", [("()",), ("(,)",), ("<>",), (",",), (":",), ("(", ")")])
def test_many_tokens_take_little_memory(pieces: tuple[str, ...]) -> None:
    """Sets of the indexes of those in comments took 160 times the field."""
    length = sum(map(len, pieces))
    value = "".join(piece * (FROM_MAX // length) for piece in pieces)
    read_from([value])
    tracemalloc.start()
    try:
        read_from([value])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * FROM_MAX
