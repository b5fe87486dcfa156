from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters import addresses
from smtpd_filters.lookups.dns import names

if TYPE_CHECKING:
    from pathlib import Path

LABEL = "a" * 63


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mail.Example.ORG", "mail.example.org"),
        ("mail.example.org.", "mail.example.org"),
        ("_dmarc.example.org", "_dmarc.example.org"),
        ("localhost", "localhost"),
        ("4.3.2.1.zen.example", "4.3.2.1.zen.example"),
        ("-odd-.example", "-odd-.example"),
        (LABEL + ".example", LABEL + ".example"),
        (".".join([LABEL] * 3 + ["a" * 61]), ".".join([LABEL] * 3 + ["a" * 61])),
    ],
)
def test_domain(text: str, expected: str) -> None:
    assert names.domain(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "a..b", ".a", "a.example..", "a b.example", "a.example\n", "a\0.example",
        "bücher.example", "\u212a.example", "\udcff.example", "[192.0.2.1]", "a/b.example",
        "a\\.b.example", LABEL + "a.example", ".".join([LABEL] * 3 + ["a" * 62]),
    ],
)  # fmt: skip
def test_no_such_name_can_exist(text: str) -> None:
    with pytest.raises(ValueError, match="not a domain name"):
        names.domain(text)


def test_a_name_that_is_not_of_a_host() -> None:
    for text in ("user+tag=a@b.Example.", "a b.example", "*.example", 'a\\".example'):
        with pytest.raises(ValueError, match="not a domain name"):
            names.domain(text)
        assert names.domain(names.Owner(text)) == text.lower().removesuffix(".")
    for text in ("", ".", "a..b", "a\0.example", "a\n.example", LABEL + "a.b", "\u00fc.example"):
        with pytest.raises(ValueError, match="not a domain name"):
            names.domain(names.Owner(text))


@given(st.text(st.characters(codec=None) | st.sampled_from("a.-_\udc80")))
def test_any_text_is_a_name_or_a_value_error(text: str) -> None:
    try:
        name = names.domain(text)
    except ValueError:
        return
    assert names.domain(name) == name
    assert name.isascii()
    assert 0 < len(name) <= 253


@pytest.mark.parametrize(
    ("address", "canonical", "reverse"),
    [
        ("192.0.2.1", "192.0.2.1", "1.2.0.192.in-addr.arpa"),
        ("::ffff:192.0.2.1", "192.0.2.1", "1.2.0.192.in-addr.arpa"),
        ("2001:DB8:0::1", "2001:db8::1", f"1.{'0.' * 23}8.b.d.0.1.0.0.2.ip6.arpa"),
        ("fe80::1%eth0", "fe80::1", f"1.{'0.' * 28}8.e.f.ip6.arpa"),
    ],
)
def test_addresses(address: str, canonical: str, reverse: str) -> None:
    assert names.canonical(address) == canonical
    assert names.reverse(address) == reverse


def test_reverse_in_a_zone() -> None:
    assert names.reverse("192.0.2.1", zone="list.example") == "1.2.0.192.list.example"
    assert names.reverse("::1", zone="list.example") == f"1.{'0.' * 31}list.example"


@pytest.mark.parametrize("text", ["", "local", "unix:/x", "192.0.2", "192.0.2.1:25", "[::1]"])
def test_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        names.reverse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1", ("127.0.0.1", 53)),
        ("127.0.0.1:5353", ("127.0.0.1", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]", ("::1", 53)),
        ("[::1]:5353", ("::1", 5353)),
        ("fe80::1%lo", ("fe80::1%lo", 53)),
    ],
)
def test_nameserver(text: str, expected: tuple[str, int]) -> None:
    assert names.nameserver(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dns.example", "'dns.example' is not an IP address"),
        ("dns.example:53", "'dns.example' is not an IP address"),
        ("", "'' is not an IP address"),
        ("2001:db8::1%lo", "'2001:db8::1%lo' has an interface, but is not link-local"),
        ("fe80::1%", "'fe80::1%' is not an IP address"),
        ("127.0.0.1:0", "invalid port 0: expected 1 to 65535"),
        ("127.0.0.1:65536", "invalid port 65536: expected 1 to 65535"),
        ("127.0.0.1:x", "'127.0.0.1:x' is not an IP address"),
    ],
)
def test_no_nameserver(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        names.nameserver(text)


def test_resolv_conf(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(
        b"# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.1 \n\xff\n"
        b"nameserver\nnameserver nonsense\nnameserver 2001:db8::1%lo\n nameserver\t::1\n"
        b"nameserver 192.0.2.3 # third\nnameserver 192.0.2.4\n"
    )
    assert names.resolv_conf(str(path)) == [("192.0.2.1", 53), ("::1", 53), ("192.0.2.3", 53)]
    path.write_text("options edns0\n")
    assert names.resolv_conf(str(path)) == [("127.0.0.1", 53)]
    path.unlink()
    assert names.resolv_conf(str(path)) == [("127.0.0.1", 53)]


@pytest.mark.parametrize(
    ("name", "room", "end"),
    [
        ("a.b.example", 11, "a.b.example"),
        ("a.b.example", 10, "b.example"),
        ("a.b.example", 9, "b.example"),
        ("a.b.example", 8, "example"),
        ("a.b.example", 6, ""),
        ("", 9, ""),
        ("x" * 64 + ".b.example", 253, "b.example"),
        ("a.b c.example", 253, "example"),
        ("a..example", 253, "example"),
        ("a.b.exämple", 253, ""),
        ("a.b.", 253, ""),
    ],
)
def test_the_end_of_a_name_that_can_be_asked_for(name: str, room: int, end: str) -> None:
    assert names.ending(name, room) == end


@given(
    st.text("ab-_", min_size=1, max_size=70) | st.text(max_size=5),
    st.lists(st.text("ab", min_size=1, max_size=63), min_size=1, max_size=8),
    st.integers(1, 253),
)
def test_the_end_of_a_name_is_the_longest_that_is_one(
    first: str, others: list[str], room: int
) -> None:
    name = addresses.canonical(".".join([first, *others]))
    end = names.ending(name, room)
    labels = name.split(".")
    possible = [".".join(labels[cut:]) for cut in range(len(labels))]
    valid = [each for each in possible if len(each) <= room and _is_domain(each)]
    assert end == max(valid, key=len, default="")


def _is_domain(text: str) -> bool:
    try:
        return names.domain(text) == text
    except ValueError:
        return False
