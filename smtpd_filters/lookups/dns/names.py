"""Validation and conversion of names and addresses for DNS queries.

Invariants
----------
*Checked first*: a name from the network is validated before it is looked up; an invalid name cannot
exist in the DNS.
*ValueError only*: for no text do these functions raise anything else.

Name servers are given by address, since resolving their names would need a name server.
"""

from __future__ import annotations

import re

# RFC 1035 section 2.3.4: labels of at most 63 octets, names of at most 255 in wire format, which
# is 253 characters of text. A host name has letters, digits and hyphens (RFC 1123 section 2.1). The
# underscore is accepted as well: names like `_dmarc` need it, and rDNS in the wild has it. Policies
# decide whether a host name may have one.
MAX_NAME = 253
_LABEL = re.compile(r"[a-z0-9_-]{1,63}", re.ASCII)
_NAME = re.compile(rf"{_LABEL.pattern}(?:\.{_LABEL.pattern})*", re.ASCII)
# RFC 2181 section 11: "any binary string whatever can be used as the label of any resource record".
_OWNER = re.compile(r"[ -\-/-~]{1,63}(?:\.[ -\-/-~]{1,63})*", re.ASCII)

# resolv.conf(5): MAXNS name servers are used; if there are none, the one on the local machine.
MAX_NAMESERVERS = 3
DNS_PORT = 53


class Owner(str):
    """A name to be queried although it may not be one of a host: its labels are any printable text.

    SPF has such names: `user+tag.example.org` (RFC 7208 section 7).
    """

    __slots__ = ()


def domain(text: str) -> str:
    """Return the canonical form of a name, in lower case without the final dot.

    Raises ValueError if the name is invalid; that of an `Owner` may have any printable ASCII.
    """
    name = text.lower().removesuffix(".")
    form = _OWNER if isinstance(text, Owner) else _NAME
    if not text.isascii() or len(name) > MAX_NAME or not form.fullmatch(name):
        raise ValueError("not a domain name")
    return name


def ending(name: str, room: int = MAX_NAME) -> str:
    """Return the longest valid suffix of a canonical name, in whole labels.

    It has at most `room` characters, and is "" if the last label is invalid.
    """
    labels = name[-room - 1 :].split(".")
    if len(name) > room:
        del labels[0]  # part of a label, or a label that exceeds `room` by one
    begin = len(labels)
    while begin and _LABEL.fullmatch(labels[begin - 1]):
        begin -= 1
    return ".".join(labels[begin:])


def canonical(address: str) -> str:
    """Return the canonical form of an IP address; that of an IPv4-mapped one is IPv4.

    A zone index (`%em0`) is dropped. Raises ValueError for an invalid address.
    """
    import ipaddress

    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ip).partition("%")[0]
    return str(ip)


def is_valid(name: str) -> bool:
    """Return whether a name from the DNS can be looked up."""
    try:
        domain(name)
    except ValueError:
        return False
    return True


def is_address(text: str) -> bool:
    """Return whether a text is an IP address, not a host name (RFC 1123 section 2.1)."""
    try:
        canonical(text)
    except ValueError:
        return False
    return True


def is_link_local(text: str) -> bool:
    """Return whether a text is a link-local IPv6 address with its interface (`fe80::1%em0`)."""
    import ipaddress

    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return False
    return isinstance(ip, ipaddress.IPv6Address) and bool(ip.scope_id) and ip.is_link_local


def reverse(address: str, *, zone: str | None = None) -> str:
    """Return the name of an address in `in-addr.arpa` or `ip6.arpa`, or in `zone` if given.

    RFC 1035 section 3.5, RFC 3596 section 2.5, RFC 5782 section 2.1. Raises ValueError for an
    invalid address.
    """
    import ipaddress

    pointer = ipaddress.ip_address(canonical(address)).reverse_pointer
    if zone is None:
        return pointer
    return pointer.removesuffix("in-addr.arpa").removesuffix("ip6.arpa") + zone


def nameserver(text: str) -> tuple[str, int]:
    """Return the address and port in `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.

    Raises ValueError with the reason if it is invalid.
    """
    import ipaddress

    address, port = text, DNS_PORT
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::([0-9]{1,5}))?", text)
    with_port = bracketed or re.fullmatch(r"([^:]*):([0-9]{1,5})", text)
    if with_port:
        address = with_port[1]
        port = int(with_port[2] or DNS_PORT)
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise ValueError(f"{address!r} is not an IP address") from None
    if "%" in address and not is_link_local(address):
        raise ValueError(f"{address!r} has an interface, but is not link-local")
    if not 0 < port < 1 << 16:
        raise ValueError(f"invalid port {port}: expected 1 to 65535")
    return address, port


def resolv_conf(path: str = "/etc/resolv.conf") -> list[tuple[str, int]]:
    """Return the name servers of resolv.conf(5); like the C library, never fail."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123  # pathlib is slow to import
            lines = file.readlines()
    except OSError:
        lines = []
    servers = []
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                servers.append(nameserver(words[1]))
            except ValueError:
                continue
    return servers[:MAX_NAMESERVERS] or [("127.0.0.1", DNS_PORT)]
