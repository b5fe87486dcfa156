"""Network tables, compared with the standard library."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.errors import ConfigError
from smtpd_filters.tables import IPTable, NetworkTable
from smtpd_filters.tables.networks import network_of, parse_address
from tests.loading import loaded

type_v4 = st.ip_addresses(v=4)
type_v6 = st.ip_addresses(v=6)
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.0/24", "192.0.2.255"),
        ("192.0.2.77/24", "192.0.2.1"),
        ("127.0.0.7/31", "127.0.0.6"),
        ("127.0.1/24", "127.0.1.9"),
        ("10/8", "10.255.0.1"),
        ("192.0.2.0/00024", "192.0.2.9"),
        ("0.0.0.0/0", "203.0.113.9"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("::1", "[::1]"),
        ("ipv6:::1", "[::1]"),
        ("IPv6:::1", "::1"),
        ("[IPv6:::1]", "[ipv6:::1]"),
        ("[2001:db8::]/32", "2001:db8:1::1"),
        ("[2001:db8::/32]", "2001:DB8:1::1"),
        ("2001:db8::/32", "[2001:0db8:0:0:0:0:0:1]"),
        ("::/0", "2001:db8::1"),
        ("fe80::/10", "[fe80::1%em0]"),
        ("fe80::/10", "fe80::1%em0"),
        ("192.0.2.0/24", "::ffff:192.0.2.1"),
        ("192.0.2.0/24", "[::FFFF:c000:201]"),
        ("::ffff:192.0.2.0/120", "192.0.2.1"),
        ("::ffff:0:0/96", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("local", "local"),
        ("Local", "local"),
    ],
)
def test_covered(entry: str, key: str) -> None:
    assert NetworkTable.of([entry]).match(key) == entry


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ("192.0.2.1", "192.0.2.2"),
        ("127.0.0.7/31", "127.0.0.8"),
        ("0.0.0.0/0", "::1"),
        ("0.0.0.0/0", "::"),
        ("::/0", "192.0.2.1"),
        ("::/0", "::ffff:192.0.2.1"),
        ("::/0", "local"),
        ("0.0.0.0/0", "local"),
        ("::1", "local"),
        ("local", "127.0.0.1"),
        ("0.0.0.0/0", "<unknown>"),
        ("0.0.0.0/0", ""),
        ("::/0", ""),
        ("::/0", "[]"),
        ("0.0.0.0/0", "192.0.2.1:25"),
        ("0.0.0.0/0", "192.0.2"),
        ("0.0.0.0/0", "192.0.2.\N{ARABIC-INDIC DIGIT ONE}"),
        ("::/0", "unix:/var/run/smtpd.sock"),
    ],
)
def test_not_covered(entry: str, key: str) -> None:
    assert NetworkTable.of([entry]).match(key) is None


@pytest.mark.parametrize(
    "entry",
    [
        "mail.example.org", "192.0.2", "192.0.2.256", "192.0.2.01", "192.0.2.1000", "1.2.3.4.5",
        "192.0.2.1/", "192.0.2.1/33", "192.0.2.1/-1", "192.0.2.1/+1", "192.0.2.1/x", "/24",
        "192.0.2.1/24/24", "192.0.2.1/\N{SUPERSCRIPT TWO}", "1.2.3.4.5/8", "1./8", "::1/129",
        ":::", "1::2::3", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7:8::", "1:", ":1",
        "::12345", "::g", "1.2.3.4::", "::1.2.3.4:1", "::1.2.3", "fe80::1%em0", "[::1", "::1]",
        "[192.0.2.1", "192.0.2.1]",
        "::ffff:192.0.2.1/95", "192.0.2.0/255.255.255.0", "192.0.2.1 x",
        "::1/" + "9" * 5000,
    ],
)  # fmt: skip
def test_refused(entry: str) -> None:
    if len(entry) <= 1023:
        for parse in ipaddress.ip_network, ipaddress.ip_interface:
            if "/255" not in entry and "%" not in entry and "ffff" not in entry:
                with pytest.raises(ValueError):  # noqa: PT011  # the library words it
                    parse(entry)
    with pytest.raises(ConfigError, match=r"^built-in table: entry 1: "):
        NetworkTable.of([entry])


def test_longest_prefix_first() -> None:
    table = NetworkTable(
        "{ 10/8, 10.1.0.0/16, 10.1.1.1, 10.1.1.1, ::/0, 10.0.0.9/8, local, LOCAL }"
    )
    assert table.match("10.1.1.1") == "10.1.1.1"
    assert table.match("10.1.1.2") == "10.1.0.0/16"
    assert table.match("10.2.1.1") == "10/8"
    assert len(table) == 5


def covers(network: Network, address: Address) -> bool:
    return network.version == address.version and address in network


prefixed = st.one_of(
    st.tuples(type_v4, st.integers(0, 32)), st.tuples(type_v6, st.integers(0, 128))
)


def mapped(address: Address) -> bool:
    return isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None


@given(st.lists(prefixed, max_size=8), st.lists(st.ip_addresses(), max_size=4), st.data())
def test_same_as_ipaddress(
    nets: list[tuple[Address, int]], extra: list[Address], data: st.DataObject
) -> None:
    nets = [(address, bits) for address, bits in nets if not mapped(address)]
    networks = [ipaddress.ip_network(f"{address}/{bits}", strict=False) for address, bits in nets]
    table = NetworkTable.of([f"{address}/{bits}" for address, bits in nets])
    assert len(table) == len(set(networks))
    keys = [key for key in extra if not mapped(key)]
    for network in networks:  # keys near a network, not only anywhere
        span = network.num_addresses
        offset = data.draw(st.integers(-1, span))
        value = int(network.network_address) + offset
        if 0 <= value < 1 << network.max_prefixlen:
            key = type(network.network_address)(value)
            keys += [] if mapped(key) else [key]
    for key in keys:
        expected = max((n.prefixlen for n in networks if covers(n, key)), default=None)
        found = table.match(str(key))
        assert (None if found is None else int(found.rpartition("/")[2])) == expected
        assert table.match(f"[{key.exploded}]") == found


@given(st.text("0123456789abcdefABCDEF:.[]/%ipv", max_size=45))
@example("1:2:3:4:5:6:7::")
@example("::2:3:4:5:6:7:8")
@example("::")
def test_same_syntax_as_ipaddress(text: str) -> None:
    if text.startswith(("[", "ip", "IP")) or "%" in text or "/" in text:
        return
    try:
        ipaddress.ip_address(text)
        valid = True
    except ValueError:
        valid = False
    assert (text in NetworkTable("{ 0.0.0.0/0, ::/0 }")) is valid


def test_parse_address() -> None:
    assert parse_address("192.0.2.1") == (32, 0xC0000201)
    assert parse_address("[::ffff:192.0.2.1]") == (32, 0xC0000201)
    assert parse_address("[fe80::1%em0]") == (128, 0xFE80 << 112 | 1)
    for text in "", "local", "192.0.2.0/24", "[::1]:25":
        with pytest.raises(ValueError, match="not an address"):
            parse_address(text)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("[::ffff:192.0.2.77]", "192.0.2.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1::/48"),
        ("::1", "::/48"),
    ],
)
def test_network_of(address: str, network: str) -> None:
    assert network_of(address, 24, 48) == network
    assert address in NetworkTable(network)


#: IPv4 addresses in IPv6, which are written as such.
MAPPED = ipaddress.IPv6Network("::ffff:0.0.0.0/96")


@given(st.ip_addresses(v=6).filter(lambda each: each not in MAPPED), st.integers(0, 128))
@example(ipaddress.IPv6Address("1:0:0:2:0:0:0:3"), 128)
@example(ipaddress.IPv6Address("1:0:0:2:3:0:0:4"), 128)
@example(ipaddress.IPv6Address("1:0:2:3:4:5:6:7"), 128)
@example(ipaddress.IPv6Address("1:2:3:4:5:6::"), 128)
def test_networks_are_written_as_the_standard_library_does(
    address: ipaddress.IPv6Address, prefix: int
) -> None:
    network = ipaddress.IPv6Network((address, prefix), strict=False)
    assert network_of(str(address), 32, prefix) == str(network)


def test_network_of_no_address() -> None:
    with pytest.raises(ValueError, match="not an address"):
        network_of("local", 24, 48)


def test_large_table() -> None:
    table = NetworkTable.of([f"10.{n >> 8 & 255}.{n & 255}.0/24" for n in range(1 << 16)])
    assert len(table) == 1 << 16
    assert table.match("10.77.5.9") == "10.77.5.0/24"
    # One look-up for the one prefix length, whatever the number of entries.
    assert len(table._content._nets[32]) == 1


def test_import_is_light() -> None:
    heavy = "dataclasses inspect typing asyncio socket ipaddress pathlib logging json subprocess"
    code = (
        "import smtpd_filters.tables as t;"
        "t.NetworkTable('{ 10/8, ::1 }').match('::1');"
        "t.RegexTable('{ ^a.*b }').match('axb')"
    )
    assert loaded(code).isdisjoint(heavy.split())


def test_ip_tables_reject_local() -> None:
    assert IPTable("{ 10/8, ::1 }").match("10.1.2.3") == "10/8"
    with pytest.raises(ConfigError, match="expected an address or network"):
        IPTable("{ 10/8, LOCAL }")


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("[2001:DB8::7%em0]", "2001:db8::/64"),
    ],
)
def test_the_network_of_an_address(address: str, network: str) -> None:
    assert network_of(address, 24, 64) == network
    assert NetworkTable.of([network]).match(address) == network
    assert network_of(address, 32, 128).rpartition("/")[2] in {"32", "128"}
    assert network_of(address, 0, 0) in {"0.0.0.0/0", "::/0"}
    with pytest.raises(ValueError, match="not an address"):
        network_of(f"x{address}", 24, 64)
