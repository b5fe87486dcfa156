"""Zones of the name server: names, records and behaviours, checked when they are set.

Names are kept in lower case and without the final dot. The text of a record is as in a zone file
(RFC 1035 section 5), but that of a TXT record may be unquoted. The package describes the
behaviours.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

Entry = dict[str, Any]

NUMBERS = frozenset({"delay", "ttl"})
#: How a record of each type is written, for errors.
_EXAMPLES = {
    "A": "192.0.2.1",
    "AAAA": "2001:db8::1",
    "CNAME": "host.example.net",
    "MX": "10 mx.example.net",
    "NS": "ns.example.net",
    "PTR": "host.example.net",
}
SWITCHES = frozenset(
    {"servfail", "refused", "drop", "truncate", "no-tcp", "wrong-id", "wrong-name", "wrong-owner"}
    | {"spoof", "malformed", "trailing", "flap"}
)


def host(name: str, *addresses: str) -> dict[str, Entry]:
    """Return the records of a host with matching forward and reverse names: A or AAAA, and PTR."""
    zone: dict[str, Entry] = {}
    for text in addresses:
        address = ipaddress.ip_address(text)
        rdtype = "A" if address.version == 4 else "AAAA"
        zone.setdefault(name, {}).setdefault(rdtype, []).append(text)
        zone[address.reverse_pointer] = {"PTR": [name]}
    return zone


def merge(*zones: Mapping[str, object]) -> dict[str, Entry]:
    """Return the union of zones: records of the same name and type are combined."""
    merged: dict[str, Entry] = {}
    for zone in zones:
        for name, entry in zone.items():
            into = merged.setdefault(key_of(name), {})
            for key, value in _entry(name, entry).items():
                if key.isupper():
                    into[key] = texts(into.get(key, [])) + texts(value)
                else:
                    into[key] = value
    return merged


# RFC 1035 section 4.1: a message over TCP has at most 65,535 bytes, of which the header, the
# question, and EDNS take less than 300; a record has 12 bytes beside its data.
_ROOM, _RECORD = 65_535 - 300, 12


class Zone(dict[str, Entry]):
    """A dict of checked entries by name, in lower case and without the final dot."""

    def __init__(self, zone: Mapping[str, object]) -> None:
        super().__init__()
        self.update(zone)

    def __setitem__(self, name: str, entry: object) -> None:
        checked = _entry(name, entry)
        _check(name, checked)
        super().__setitem__(key_of(name), dict(checked))

    def __delitem__(self, name: str) -> None:
        super().__delitem__(key_of(name))

    def update(  # type: ignore[override]  # only a zone, none of dict.update's other forms
        self, zone: Mapping[str, object]
    ) -> None:
        """Add the names of `zone`, replacing existing ones."""
        for name, entry in zone.items():
            self[name] = entry

    def find(self, name: str) -> Entry | None:
        """Return the entry of `name`, or of the closest wildcard above it, or None."""
        if name in self:
            return self[name]
        rest = name
        while rest:
            _, _, rest = rest.partition(".")
            if (wildcard := f"*.{rest}" if rest else "*") in self:
                return self[wildcard]
        return None


def key_of(name: str) -> str:
    """Return a name in the form of a zone's keys."""
    return name.lower().rstrip(".")


def domain_name(name: str) -> dns.name.Name:
    """Return a name as dnspython's object; "" is the root. Raises DNSException."""
    return dns.name.from_text(name or ".", origin=dns.name.root)


def texts(value: str | list[str] | tuple[str, ...]) -> list[str]:
    """Return the texts of an entry's value, which may be a single text."""
    return [value] if isinstance(value, str) else list(value)


def rrset_of(
    owner: str, rdtype: dns.rdatatype.RdataType, records: list[str], ttl: int
) -> dns.rrset.RRset:
    """Return the texts of records as dnspython's RRset; `ttl` is in seconds."""
    rrset = dns.rrset.RRset(domain_name(owner), dns.rdataclass.IN, rdtype)
    for text in records:
        rrset.add(_rdata(rdtype, text), ttl)
    return rrset


@lru_cache(1 << 12)  # tests make the same zones again and again
def _rdata(rdtype: dns.rdatatype.RdataType, text: str) -> dns.rdata.Rdata:
    if rdtype == dns.rdatatype.TXT and not text.startswith('"'):
        # RFC 1035 section 3.3.14: strings of at most 255 bytes, which are quoted here.
        octets = text.encode("utf-8", "surrogateescape")
        chunks = [octets[at : at + 255] for at in range(0, len(octets), 255)] or [b""]
        text = " ".join('"' + "".join(f"\\{byte:03d}" for byte in chunk) + '"' for chunk in chunks)
    return dns.rdata.from_text(
        dns.rdataclass.IN, rdtype, text, origin=dns.name.root, relativize=False
    )


def _check_size(records: list[dns.rdata.Rdata]) -> None:
    """Raise ValueError if records don't fit into a response, nor one into its 16-bit length."""
    if sum(_RECORD + len(each.to_wire() or b"") for each in records) > _ROOM:
        raise ValueError("more than fits into a response")


def _entry(name: str, entry: object) -> Mapping[str, Any]:
    """Return the entry of a name; raise ValueError if it is not a mapping."""
    if not isinstance(entry, Mapping):
        raise ValueError(  # noqa: TRY004  # as for anything else that can't be served
            f'{name}: expected record types and behaviours, as in {{"A": "192.0.2.1"}}'
        )
    return entry


def _check(name: str, entry: Mapping[str, Any]) -> None:
    """Raise ValueError if the entry is invalid."""
    try:
        domain_name(name)
    except dns.exception.DNSException as exc:
        raise ValueError(f"{name!r} is not a domain name: {exc}") from exc
    for key, value in entry.items():
        try:
            if key in NUMBERS:
                float(value)
            elif key in SWITCHES:
                for rdtype in [] if isinstance(value, bool) else texts(value):
                    dns.rdatatype.from_text(rdtype)
            elif key.isupper():
                kind = dns.rdatatype.from_text(key)
                _check_size([_rdata(kind, text) for text in texts(value)])
            else:
                raise ValueError("neither a record type nor a behaviour")  # noqa: TRY301  # see below
        except (dns.exception.DNSException, ValueError, TypeError) as exc:
            why = str(exc) or type(exc).__name__
            if key in _EXAMPLES:
                why = f"expected {key} as `{_EXAMPLES[key]}`, not {repr(value)[:200]} ({why})"
            raise ValueError(f"{name} {key}: {why}") from exc
