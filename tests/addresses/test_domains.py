"""The canonical form of domains, and all readings of one."""

from __future__ import annotations

import re
import socket
import unicodedata

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from smtpd_filters.addresses import canonical, folded, in_unicode, literal, readings
from smtpd_filters.addresses.domains import LABEL_MAX, NAME_MAX, invisible
from tests.loading import loaded

BOOKS = "xn--bcher-kva.example"
ANY = st.text(
    st.characters(codec=None)
    | st.sampled_from("aAß.ςΣ-ü\u0308\u200b\u200d\u3002\uff0e\uff41\udcfc\u00b7*@[]İ\u0345"),
    max_size=40,
)


@pytest.mark.parametrize(
    ("written", "form"),
    [
        ("example.org", "example.org"),
        ("Example.ORG.", "example.org"),
        ("example.org..", "example.org"),
        ("", ""),
        (".", ""),
        ("bücher.example", BOOKS),
        ("BÜCHER.Example", BOOKS),
        ("bu\u0308cher.example", BOOKS),  # decomposed
        ("BU\u0308CHER.EXAMPLE", BOOKS),
        (BOOKS, BOOKS),
        ("XN--BCHER-KVA.EXAMPLE.", BOOKS),
        ("ｂücher.ｅｘａｍｐｌｅ", BOOKS),  # noqa: RUF001  # full-width letters
        ("example．org．", "example.org"),  # noqa: RUF001  # full-width dots
        ("example\u3002org\uff61", "example.org"),
        ("exam\u00adp\u200ble.o\u2060rg", "example.org"),
        ("\u202eexample.org\u200e", "example.org"),
        ("faß.example", "xn--fa-hia.example"),
        ("FAẞ.example", "xn--fa-hia.example"),
        ("βόλος.example", "xn--nxasmm1c.example"),
        ("ΒΌΛΟΣ.example", "xn--nxasmq6b.example"),
        ("bücher.xn--fa-hia.EXAMPLE", "xn--bcher-kva.xn--fa-hia.example"),
        ("xn--.example", "xn--.example"),
        ("a_b-c.example", "a_b-c.example"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:2001:DB8:0:0::1]", "[ipv6:2001:db8::1]"),
        ("[2001:db8::1]", "[ipv6:2001:db8::1]"),
        ("[IPv6:192.0.2.1]", "[192.0.2.1]"),
        ("[::ffff:192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:::FFFF:192.0.2.1]", "[192.0.2.1]"),
        ("[ipv6:0:0:0:0:0:ffff:c000:201]", "[192.0.2.1]"),
        ("[IPv6:::192.0.2.1]", "[ipv6:::c000:201]"),
        ("\uff3b::ffff:192.0.2.1\uff3d", "[192.0.2.1]"),
        ("[IPv6:2001:db8::0.0.0.1]", "[ipv6:2001:db8::1]"),
        ("[IPv6:fe80::1%em0]", "[ipv6:fe80::1%em0]"),
        ("[IPv6:2001:db8::1", "[ipv6:2001:db8::1"),
        ("[IPv6:nonsense]", "[ipv6:nonsense]"),
        ("[IPv6:" + ":" * 80 + "]", "[ipv6:" + ":" * 80 + "]"),
        # no domains: left as they are, but for letter case and dots
        ("a..B", "a..b"),
        ("\udcff.Example.", "\udcff.example"),
        ("Ü" * 60 + ".example", "ü" * 60 + ".example"),
        ("üä" * 29 + ".example", "üä" * 29 + ".example"),
        ("Üx." * 100, "üx." * 99 + "üx"),
        ("Ü" * 2000 + "\u3002", "ü" * 2000),
    ],
)
def test_canonical(written: str, form: str) -> None:
    assert canonical(written) == form


@pytest.mark.parametrize(
    ("written", "form"),
    [
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[IPV6:2001:DB8::1]", "[ipv6:2001:db8::1]"),
        ("[2001:db8::1]", "[ipv6:2001:db8::1]"),
        ("192.0.2.1", ""),
        ("[192.0.2.1", ""),
        ("[192.0.2]", ""),
        ("[192.0.2.01]", ""),
        ("[192.0.2.256]", ""),
        ("[IPv6:1]", ""),
        ("[IPv6:IPv6:::1]", ""),
        ("[fe80::1%em0]", ""),
        ("[x]", ""),
        ("[]", ""),
        ("[", ""),
        ("]", ""),
        ("", ""),
        ("[" + ":" * 80 + "]", ""),
        ("[\u0661.2.3.4]", ""),
        ("[\udcff]", ""),
    ],
)
def test_address_literals(written: str, form: str) -> None:
    assert literal(written) == form
    if form:
        assert canonical(written) == literal(form) == form


def as_smtpd(text: str) -> bytes | None:
    """Return the address that smtpd's `valid_domainpart` reads, in 16 bytes; None if invalid."""
    inner = re.sub(r"(?i)\A\[(?:ipv6:)?", "", text)
    if not text.startswith("[") or "]" not in inner or inner.index("]") != len(inner) - 1:
        return None
    for family in (socket.AF_INET6, socket.AF_INET):
        try:
            packed = socket.inet_pton(family, inner[:-1])
        except (OSError, ValueError):
            continue
        return packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed
    return None


@given(
    st.tuples(
        st.sampled_from(["[", "[IPv6:", "[ipv6:", "", "[IPv6"]),
        st.ip_addresses(v=4).map(str)
        | st.ip_addresses(v=6).map(str)
        | st.ip_addresses(v=6).map(lambda address: address.exploded.upper())
        | st.ip_addresses(v=4).map(lambda address: f"::ffff:{address}")
        | st.ip_addresses(v=4).map(lambda address: f"2001:db8::{address}")
        | st.text("0123456789abcdef:.", max_size=20),
        st.sampled_from(["]", "", "]]"]),
    )
)
def test_an_address_literal_is_what_smtpd_takes_for_one(parts: tuple[str, str, str]) -> None:
    text = "".join(parts)
    packed = as_smtpd(text)
    assert bool(literal(text)) is (packed is not None)
    if packed is not None:
        assert as_smtpd(literal(text)) == packed


@pytest.mark.parametrize(
    ("written", "forms"),
    [
        ("Example.org", ["example.org"]),
        ("bücher.example", [BOOKS]),
        (BOOKS, [BOOKS]),
        # IDNA 2008's first, then IDNA 2003's
        ("faß.example", ["xn--fa-hia.example", "fass.example"]),
        ("βόλος.example", ["xn--nxasmm1c.example", "xn--nxasmq6b.example"]),
        ("a\u200db.example", ["xn--ab-m1t.example", "ab.example"]),
        # an A-label is a different domain than "fass"
        ("xn--fa-hia.example", ["xn--fa-hia.example"]),
        ("fass.example", ["fass.example"]),
        # a byte that isn't UTF-8
        ("b\udcfccher.example", ["b\udcfccher.example", BOOKS]),
        # labels that no registry accepts, and a careless program displays as something else
        ("xn--example-.org", ["xn--example-.org", "example.org"]),
        ("xn--BCHER-2pa.example", ["xn--bcher-2pa.example", BOOKS]),  # BÜCHER
        ("xn--exampleorg-7f99c", ["xn--exampleorg-7f99c", "example.org"]),  # a full-width dot
        ("xn--\u00e9.example", [canonical("xn--\u00e9.example")]),
        ("xn--99999999.example", ["xn--99999999.example"]),
        ("Ü" * 2000, ["ü" * 2000]),
    ],
)  # fmt: skip
def test_readings(written: str, forms: list[str]) -> None:
    assert list(readings(written)) == forms


def test_in_unicode() -> None:
    assert in_unicode("XN--bcher-KVA.example") == "bücher.example"
    assert in_unicode("Example.org") == "Example.org"
    assert in_unicode("bücher.example") == "bücher.example"
    assert in_unicode(f"xn--{'a' * LABEL_MAX}.example") == f"xn--{'a' * LABEL_MAX}.example"
    assert in_unicode("xn--a." * 60) == "xn--a." * 60


def test_letters_are_those_of_uts_46() -> None:
    idna = pytest.importorskip("idna")
    compared = 0
    for point in (*range(0x80, 0x3400), *range(0xA640, 0xAC00), *range(0xF900, 0x10000)):
        label = f"a{chr(point)}a"
        # Skip characters unknown to this Python's Unicode, and `ẞ`, which older versions of UTS #46
        # map as IDNA 2003 does.
        if unicodedata.category(chr(point)) == "Cn" or chr(point) == "ẞ":
            continue
        try:
            expected = idna.encode(label, uts46=True).decode()
        except UnicodeError:  # not allowed in domains
            continue
        compared += 1
        assert canonical(label) == expected, hex(point)
    assert compared > 8_000


@given(ANY)
@example("ẞ\u0345İ")
@example("\u2488.example")
def test_a_form_is_its_own_form(text: str) -> None:
    form = canonical(text)
    assert canonical(form) == form
    assert folded(folded(text)) == folded(text)
    assert readings(text)[0] == form
    assert form == form.rstrip(".")
    assert canonical(invisible(text)) == form


@given(ANY)
def test_case_makes_no_difference(text: str) -> None:
    plain = text.replace("İ", "").replace("ẞ", "").replace("ß", "").replace("ς", "")
    assume(plain.upper().lower() == plain)
    assert canonical(plain.upper()) == canonical(plain)


@given(st.text("abcxn-\u00fc\u4e2d\u0434.", max_size=80))
def test_what_is_converted_can_be_a_domain(text: str) -> None:
    form = canonical(text)
    assume(form.isascii())
    if not text.isascii():
        assert all(len(label) <= LABEL_MAX for label in form.split(".") if "xn--" in label[:4])
    assert len(form) > NAME_MAX or canonical(in_unicode(form)) in readings(form)


def test_ascii_needs_no_tables_of_unicode() -> None:
    code = (
        "from smtpd_filters.addresses import canonical, folded, readings\n"
        "assert canonical('Example.ORG.') == readings('example.org')[0] == 'example.org'\n"
        "assert canonical('XN--BCHER-KVA.example') == 'xn--bcher-kva.example'\n"
        "assert folded('Jane') == 'jane' and canonical('[192.0.2.1]') == '[192.0.2.1]'"
    )
    unneeded = {"unicodedata", "encodings.punycode", "encodings.idna", "stringprep", "ipaddress"}
    assert loaded(code).isdisjoint(unneeded | {"idna"})
