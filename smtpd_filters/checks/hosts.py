"""Parsers of the host names and addresses that clients and the DNS supply.

Addresses are pairs of width in bits (32 or 128) and value, as `parse_address` returns them; an
IPv4-mapped IPv6 address is the IPv4 address.
"""

from __future__ import annotations

import re

from smtpd_filters.tables.networks import parse_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Address: TypeAlias = tuple[int, int]

V6 = 128
_LOOPBACK = 127
# RFC 5321 section 4.1.2: sub-domain = Let-dig [Ldh-str], and section 4.5.3.1.2, at most 255 octets;
# RFC 1035 section 2.3.4, 63 a label. The underscore is accepted as in Postfix, since it is common
# in greetings. RFC 3696 section 2: "There is an additional rule that essentially requires that
# top-level domain names not be all-numeric."
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}", re.ASCII)
_NAME_MAX = 253
_MAPPED = "::ffff:"


def read_name(text: str) -> str:
    """Return a host name in lower case without the final dot; "" if it is invalid."""
    name = text.lower().removesuffix(".")
    if text.isascii() and len(name) <= _NAME_MAX and _NAME.fullmatch(name):
        return name
    return ""


def read_address(text: str) -> tuple[Address | None, bool]:
    """Return the address in a text, if any, and whether it is a well-formed address literal.

    RFC 5321 section 4.1.3 has `[192.0.2.1]` and `[IPv6:2001:db8::1]`.
    """
    bracketed = text[:1] == "[" and text[-1:] == "]"
    inner = text[1:-1] if bracketed else text
    tagged = inner[:5].lower() == "ipv6:"
    if set(inner) & set("[]%"):
        return None, False
    try:
        address = parse_address(inner)
    except ValueError:
        return None, False
    six = ":" in (inner[5:] if tagged else inner)
    return address, bracketed and tagged == six


def address_of(text: str | None) -> Address | None:
    """Return the address that smtpd or the DNS has supplied; None if it is invalid."""
    try:
        return parse_address(text or "")
    except ValueError:
        return None


def is_loopback(address: Address) -> bool:
    """Return whether an address is a loopback address.

    RFC 1122 section 3.2.1.3 has 127.0.0.0/8, RFC 4291 section 2.5.3 has ::1.
    """
    width, value = address
    return value == 1 if width == V6 else value >> 24 == _LOOPBACK


def write_address(address: Address) -> str:
    """Return the address in the form of a table's key."""
    width, value = address
    if width == V6:
        return ":".join(f"{value >> shift & 0xFFFF:x}" for shift in range(112, -1, -16))
    return ".".join(str(value >> shift & 0xFF) for shift in range(24, -1, -8))


def unmapped(address: str) -> str:
    """Return the IPv4 address in an IPv4-mapped IPv6 address; any other address unchanged.

    RFC 4291 section 2.5.5.2, in the form in which the system writes it (RFC 5952 section 5).
    """
    return address.removeprefix(_MAPPED) if "." in address else address


def plain_address(address: str) -> str:
    """Return an address as Postfix gives it to other programs.

    It has no zone (fe80::1%em0), and an IPv4-mapped address is the IPv4 address: programs take any
    other for one of IPv6, and all of ::/64 for one client.
    """
    return unmapped(address.partition("%")[0])
