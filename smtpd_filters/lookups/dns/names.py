"""Names and addresses on their way into a query.

1. A name from the network is checked before it is asked for; what fails was never in the DNS.
2. Checking raises nothing but ValueError, whatever the text holds.
3. Name servers are given as addresses: finding a name server by name would need a name server.
"""

from __future__ import annotations

import re

# RFC 1035 section 2.3.4: labels of at most 63 octets, names of at most 255 in wire format, which
# is 253 characters of text. Letters, digits and hyphens are a host name's (RFC 1123 section 2.1).
# The underscore is let through: `_dmarc` and the like need it, and rDNS in the wild has it. Whether
# a host may be called so is a policy's question, not the resolver's.
MAX_NAME = 253
_LABEL = re.compile(r"[a-z0-9_-]{1,63}", re.ASCII)
_NAME = re.compile(rf"{_LABEL.pattern}(?:\.{_LABEL.pattern})*", re.ASCII)

# resolv.conf(5): MAXNS name servers are used; without any, the one on the local machine.
MAX_NAMESERVERS = 3
DNS_PORT = 53


def domain(text: str) -> str:
    """Return the name as it is asked for: lower case, without the final dot.

    Raises ValueError if there can be no such name.
    """
    name = text.lower().removesuffix(".")
    if not text.isascii() or len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise ValueError("not a domain name")
    return name


def ending(name: str, room: int = MAX_NAME) -> str:
    """Return the longest end of a canonical name, in whole labels, that the DNS can have.

    It has at most `room` characters; "" if not even the last label can be in the DNS.
    """
    labels = name[-room - 1 :].split(".")
    if len(name) > room:
        del labels[0]  # part of a label, or one character too many
    begin = len(labels)
    while begin and _LABEL.fullmatch(labels[begin - 1]):
        begin -= 1
    return ".".join(labels[begin:])


def canonical(address: str) -> str:
    """Return an IP address in its one canonical form; an IPv4-mapped one as IPv4.

    A zone index (`%em0`) is dropped. Raises ValueError if it is no IP address.
    """
    import ipaddress

    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ip).partition("%")[0]
    return str(ip)


def reverse(address: str, *, zone: str | None = None) -> str:
    """Return the name under which an address is looked up: RFC 1035 section 3.5, RFC 3596.

    With `zone`, the name in that zone instead of `in-addr.arpa` or `ip6.arpa` (RFC 5782).
    Raises ValueError if it is no IP address.
    """
    import ipaddress

    pointer = ipaddress.ip_address(canonical(address)).reverse_pointer
    if zone is None:
        return pointer
    return pointer.removesuffix("in-addr.arpa").removesuffix("ip6.arpa") + zone


def nameserver(text: str) -> tuple[str, int]:
    """Return address and port of `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.

    Raises ValueError with the reason.
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
    if not 0 < port < 1 << 16:
        raise ValueError(f"no port {port}")
    return address, port


def resolv_conf(path: str = "/etc/resolv.conf") -> list[tuple[str, int]]:
    """Return the name servers of resolv.conf(5); like the C library's, it never fails."""
    servers = []
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123 - pathlib is slow to import
            for line in lines:
                match line.split():
                    case ["nameserver", address, *_]:
                        try:
                            servers.append(nameserver(address))
                        except ValueError:
                            continue
                    case _:
                        pass
    except OSError:
        pass
    return servers[:MAX_NAMESERVERS] or [("127.0.0.1", DNS_PORT)]
