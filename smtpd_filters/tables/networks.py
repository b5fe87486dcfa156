"""Tables of IP addresses and networks, with one look-up per prefix length in the table.

An address is an integer; its notation decides its family. The parser is written here because
importing `ipaddress` or `socket` costs several milliseconds at start.
"""

from __future__ import annotations

from functools import lru_cache
from operator import itemgetter

from .index import Index
from .table import Content, Table, checked_key, lower

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import ClassVar

_V4, _V6 = 32, 128
_MAPPED = 0xFFFF << 32  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2
_LOCAL = "local"
_V4_OCTETS, _OCTET_DIGITS, _OCTET_MAX = 4, 3, 255
_V6_GROUPS, _GROUP_DIGITS = 8, 4


class _Networks(Content):
    __slots__ = ("_found", "_local", "_nets", "_size")
    # Whether an entry may be `local`.
    _has_local: ClassVar[bool] = True

    def __init__(self, size: int) -> None:
        self._size = size
        self._local: str | None = None
        self._found: dict[tuple[int, int], Index] = {}
        # For each family, the longest prefix first: how many bits of an address to drop, and the
        # networks of that prefix length.
        self._nets: dict[int, list[tuple[int, Index]]] = {_V4: [], _V6: []}

    def add(self, text: str) -> int:
        if lower(text) == _LOCAL:
            if not self._has_local:
                raise ValueError("expected an address or network")
            self._local = self._local or text
            return 0
        family, network, prefix = _network(checked_key(text))
        drop = family - prefix
        index = self._found.get((family, drop))
        if index is None:
            index = self._found[family, drop] = Index(self._size)
        index.add(network >> drop, text)
        return 0

    def finish(self) -> Iterator[None]:
        for (family, drop), index in sorted(self._found.items(), key=itemgetter(0)):
            self._nets[family].append((drop, index))
        yield from ()

    def find(self, key: str) -> str | None:
        if key == _LOCAL:
            return self._local
        try:
            family, address = parse_address(key)
        except ValueError:
            return None
        for drop, index in self._nets[family]:
            if (entry := index.get(address >> drop)) is not None:
                return entry
        return None

    def release(self) -> Iterator[None]:
        for index in self._found.values():
            yield from index.release()

    def __len__(self) -> int:
        return sum(map(len, self._found.values())) + bool(self._local)


class _Addresses(_Networks):
    __slots__ = ()
    _has_local = False


class NetworkTable(Table):
    """A list of IPv4 and IPv6 addresses and networks, and the word `local`.

    As in smtpd: `192.0.2.1`, `192.0.2.0/24`, `2001:db8::/32`; an address may be in brackets or
    have `ipv6:` before it; bits after the prefix are ignored (`192.0.2.7/24` is `192.0.2.0/24`);
    trailing zero octets may be omitted before a prefix length (`10/8`); `local` is a client on
    smtpd's socket; `0.0.0.0/0` covers no IPv6 address and `::/0` no IPv4 address.

    Unlike in smtpd, an IPv4-mapped IPv6 address (`::ffff:192.0.2.1`) equals the IPv4 address, in
    keys and in entries, and the zone of a key (`fe80::1%em0`) is ignored.

    `match` returns the entry with the longest prefix.
    """

    __slots__ = ()
    _content: _Networks
    contents: ClassVar[type[_Networks]] = _Networks
    service = "netaddr"


class IPTable(NetworkTable):
    """A list of addresses and networks without `local`, for addresses other than the client's."""

    __slots__ = ()
    contents = _Addresses


# A client's address is parsed at each command, and by each filter of a chain.
@lru_cache(1024)
def parse_address(text: str) -> tuple[int, int]:
    """Parse an address in smtpd's notation; return its width in bits (32 or 128) and its value.

    Brackets and `ipv6:` are optional, a zone is ignored, and an IPv4-mapped address becomes the
    IPv4 address. Raises ValueError if the text isn't an address.
    """
    return _address(text.strip("[]").partition("%")[0] if "%" in text else text)


@lru_cache(1024)
def network_of(address: str, prefix4: int, prefix6: int) -> str:
    """Return the network of an address, `192.0.2.0/24`, by the prefix length for its family.

    Raises ValueError if the text isn't an address.
    """
    family, value = parse_address(address)
    prefix = prefix4 if family == _V4 else prefix6
    value = value >> (family - prefix) << (family - prefix)
    return f"{_shown(family, value)}/{prefix}"


def _shown(family: int, value: int) -> str:
    if family == _V4:
        return ".".join(str(octet) for octet in value.to_bytes(4, "big"))
    groups = [f"{value >> shift & 0xFFFF:x}" for shift in range(112, -1, -16)]
    # RFC 5952 section 4.2: "::" is the first of the longest runs of two or more zeros.
    for length in range(8, 1, -1):
        for at in range(9 - length):
            if groups[at : at + length] == ["0"] * length:
                return f"{':'.join(groups[:at])}::{':'.join(groups[at + length :])}"
    return ":".join(groups)


def _network(text: str) -> tuple[int, int, int]:
    """Return family, network (bits after the prefix included) and prefix length of an entry."""
    if text[0] == "[" and text[-1] == "]":
        text = text[1:-1]  # smtpd also accepts [2001:db8::/32]
    place, slash, digits = text.partition("/")
    if not slash:
        family, address = _address(place)
        return family, address, family
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError("the prefix length isn't a number")
    prefix = int(digits)
    if ":" not in place:
        place += ".0" * (_V4_OCTETS - 1 - place.count("."))
    mapped = ":" in place
    family, address = _address(place)
    if family == _V4 and mapped:
        if prefix < _V6 - _V4:
            raise ValueError("a network of IPv4-mapped addresses has a prefix of 96 or more")
        prefix -= _V6 - _V4
    if prefix > family:
        raise ValueError(f"a prefix length is at most {family}")
    return family, address, prefix


def _address(text: str) -> tuple[int, int]:
    """Return family and value of an address, with or without brackets and `ipv6:`."""
    if text[:1] == "[" and text[-1:] == "]":
        text = text[1:-1]
    if text[:5].lower() == "ipv6:":
        text = text[5:]
    if ":" not in text:
        return _V4, _ipv4(text)
    value = _ipv6(text)
    return (_V4, value - _MAPPED) if value >> _V4 == _MAPPED >> _V4 else (_V6, value)


def _ipv4(text: str) -> int:
    octets = text.split(".")
    if len(octets) != _V4_OCTETS or not text.isascii():
        raise ValueError("not an address or network")
    value = 0
    for octet in octets:
        # inet_pton(3): decimal, without leading zeros.
        padded = octet.startswith("0") and octet != "0"
        if not octet.isdigit() or len(octet) > _OCTET_DIGITS or padded:
            raise ValueError("not an address or network")
        number = int(octet)
        if number > _OCTET_MAX:
            raise ValueError("not an address or network")
        value = value << 8 | number
    return value


def _ipv6(text: str) -> int:
    """Parse the notation of RFC 4291 section 2.2: `::` and an IPv4 ending are allowed."""
    head, gap, tail = text.partition("::")
    before, after = _groups(head, last=not gap), _groups(tail, last=True)
    missing = _V6_GROUPS - len(before) - len(after)
    if (missing < 1) if gap else missing:
        raise ValueError("not an address or network")
    value = 0
    for group in (*before, *(0,) * missing, *after):
        value = value << 16 | group
    return value


def _groups(text: str, *, last: bool) -> list[int]:
    if not text:
        return []
    values: list[int] = []
    groups = text.split(":")
    for number, group in enumerate(groups, 1):
        if last and number == len(groups) and "." in group:
            value = _ipv4(group)
            values += value >> 16, value & 0xFFFF
        elif 0 < len(group) <= _GROUP_DIGITS and not group.strip("0123456789abcdefABCDEF"):
            values.append(int(group, 16))
        else:
            raise ValueError("not an address or network")
    return values
