"""Responses as dnspython parses them, which tests compare with our own parser.

The two share no code. This one has no bounds, so it is for small messages.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from smtpd_filters.lookups.dns.message import MAX_ALIASES, Stray, Trouble
from smtpd_filters.lookups.outcome import MX, NODATA, NXDOMAIN, Found, NotFound
from smtpd_filters.lookups.retry import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    import dns.name
    import dns.rrset

NO_MATCH = Stray("answer that does not match")


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


_CONVERTERS: dict[str, Callable[[Any], object]] = {
    "A": lambda rdata: str(rdata.address),
    "AAAA": lambda rdata: str(ipaddress.IPv6Address(rdata.address)),
    "CNAME": lambda rdata: _text(rdata.target),
    "MX": lambda rdata: MX(rdata.preference, _text(rdata.exchange)),
    "NS": lambda rdata: _text(rdata.target),
    "PTR": lambda rdata: _text(rdata.target),
    "TXT": lambda rdata: b"".join(rdata.strings),
}


def read(query: bytes, data: bytes, *, tcp: bool) -> Found[Any] | NotFound | Trouble | Stray:
    """Return what `data` says to the question in `query`."""
    asked = dns.message.from_wire(query)
    if len(data) < 12 or data[:2] != query[:2] or not data[2] & 0x80:
        return NO_MATCH
    truncated = bool(data[2] & 0x02)
    try:
        response = dns.message.from_wire(data, question_only=truncated, ignore_trailing=truncated)
    except (dns.exception.DNSException, ValueError):
        return Stray("malformed answer")
    if not asked.is_response(response):
        return NO_MATCH
    if truncated:
        return Trouble(Failure.BROKEN if tcp else Failure.USE_TCP, "truncated answer")
    rcode = response.rcode()
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return Trouble(Failure.BROKEN, dns.rcode.to_text(rcode))
    return _answer(asked, response)


def _answer(
    asked: dns.message.Message, response: dns.message.Message
) -> Found[Any] | NotFound | Trouble:
    question = asked.question[0]
    missing = response.rcode() == dns.rcode.NXDOMAIN
    sets = {
        (each.name, each.rdtype): each
        for each in response.answer
        if each.rdclass == dns.rdataclass.IN
    }
    owner, ttl = question.name, float("inf")
    for _ in range(MAX_ALIASES + 1):
        if (records := sets.get((owner, question.rdtype))) is not None:
            found = _found(records, ttl)
            return Trouble(Failure.BROKEN, "NXDOMAIN with records") if missing else found
        if (aliases := sets.get((owner, dns.rdatatype.CNAME))) is None:
            break
        ttl = min(ttl, aliases.ttl)
        owner = aliases[0].target
    else:
        return Trouble(Failure.BROKEN, "CNAME loop")
    if sets and owner == question.name:
        return Trouble(Failure.BROKEN, "answer for another name")
    return _missing(response, owner, NXDOMAIN if missing else NODATA, ttl)


def _found(records: dns.rrset.RRset, ttl: float) -> Found[Any]:
    convert = _CONVERTERS[dns.rdatatype.to_text(records.rdtype)]
    shown = sorted((convert(each) for each in records), key=_order)
    return Found(tuple(shown), min(ttl, records.ttl))


def _missing(
    response: dns.message.Message, owner: dns.name.Name, reason: str, ttl: float
) -> NotFound | Trouble:
    authority = [each for each in response.authority if each.rdclass == dns.rdataclass.IN]
    for each in authority:
        if each.rdtype == dns.rdatatype.SOA and owner.is_subdomain(each.name):
            return NotFound(reason, min(ttl, each.ttl, each[0].minimum))
    refers = any(each.rdtype == dns.rdatatype.NS for each in authority)
    if reason == NODATA and refers and not response.flags & dns.flags.RA:
        return Trouble(Failure.BROKEN, "referral: not a recursive server")
    return NotFound(reason, 0)


def _order(record: object) -> tuple[int, object]:
    return (record.preference, record.exchange) if isinstance(record, MX) else (0, record)
