"""Questions as bytes, and what the bytes that come back say: the only module that knows dnspython.

1. Only an answer to the question is read: same ID, same question, a response. Anything else is
   stray, and whoever listens goes on listening: off-path forgeries must not end a look-up.
2. Only records for what was asked are taken, following CNAMEs inside the answer up to a bound. A
   server whose answer holds only other things is broken.
3. The number of records read is bounded before any of them is.
4. dnspython's exceptions end here; nothing that a server sends raises.

It is imported when the first resolver is made, not before: dnspython takes 25 ms to load.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.MX
import dns.rdtypes.ANY.NS
import dns.rdtypes.ANY.PTR
import dns.rdtypes.ANY.SOA
import dns.rdtypes.ANY.TXT
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA

from smtpd_filters.lookups.outcome import MX, NODATA, NXDOMAIN, Found, NotFound, Value
from smtpd_filters.lookups.retry import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    import dns.rrset

# What fits through everywhere without fragments, which can be forged (DNS flag day 2020).
UDP_PAYLOAD = 1232
# More than any honest set that a mail filter reads; of larger ones (PTR sets of hosting companies)
# the first are taken. Reading 4,000 records would hold up every other session for 50 ms.
MAX_RECORDS = 256
MAX_OTHER_RECORDS = 64
# Unbound follows 11 CNAMEs, BIND 16.
MAX_ALIASES = 16

# RFC 1035 section 4.1.1.
_HEADER = 12
_QR = 0x80
_TC = 0x02

# What raises where bytes are no message; ValueError is what dnspython lets through in places.
_MALFORMED = (dns.exception.DNSException, ValueError)

# How the records of each type that is asked for are shown. Names lose their case and final dot.
_CONVERTERS: dict[str, Callable[[Any], object]] = {
    "A": lambda rdata: str(rdata.address),
    # dnspython writes ::192.0.2.1, ipaddress ::c000:201; one form, so that they can be compared.
    "AAAA": lambda rdata: str(ipaddress.IPv6Address(rdata.address)),
    "CNAME": lambda rdata: _text(rdata.target),
    "MX": lambda rdata: MX(rdata.preference, _text(rdata.exchange)),
    "NS": lambda rdata: _text(rdata.target),
    "PTR": lambda rdata: _text(rdata.target),
    # RFC 7208 section 3.3 and RFC 6376 section 3.6.2.2: the strings of one record are put together
    # without anything between them.
    "TXT": lambda rdata: b"".join(rdata.strings),
}


class Trouble(Value):
    """An answer that is none: what kind of failure it is, and the cause for the log."""

    __match_args__ = ("failure", "cause")
    __slots__ = __match_args__

    def __init__(self, failure: Failure, cause: str) -> None:
        self.failure = failure
        self.cause = cause


class Stray(Value):
    """Bytes that are no answer to the question, and why."""

    __match_args__ = ("cause",)
    __slots__ = __match_args__

    def __init__(self, cause: str) -> None:
        self.cause = cause


class Question:
    """One question to one server, with an ID of its own; `wire` is what is sent.

    Raises KeyError for a record type that nobody here can read.
    """

    __slots__ = ("_convert", "_query", "wire")

    def __init__(self, name: str, rdtype: str) -> None:
        self._convert = _CONVERTERS[rdtype]
        # Names come without a final dot, and are absolute.
        self._query = dns.message.make_query(f"{name}.", rdtype, use_edns=0, payload=UDP_PAYLOAD)
        self.wire = self._query.to_wire()

    def read(self, data: bytes, *, tcp: bool) -> Found[Any] | NotFound | Trouble | Stray:
        """Return what these bytes from a server say."""
        if len(data) < _HEADER or data[:2] != self.wire[:2] or not data[2] & _QR:
            return Stray("answer that does not match")
        truncated = bool(data[2] & _TC)
        cut = _cut(data)
        try:
            response = dns.message.from_wire(
                cut,
                # A message may be cut off anywhere (RFC 2181 section 9).
                question_only=truncated,
                ignore_trailing=truncated or cut is not data,
            )
        except _MALFORMED:
            return Stray("malformed answer")
        if not self._query.is_response(response):
            return Stray("answer that does not match")
        if truncated:
            failure = Failure.BROKEN if tcp else Failure.USE_TCP
            return Trouble(failure, "truncated answer")
        return self._answer(response)

    def _answer(self, response: dns.message.Message) -> Found[Any] | NotFound | Trouble:
        rcode = response.rcode()
        if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            return Trouble(Failure.BROKEN, dns.rcode.to_text(rcode))
        question = self._query.question[0]
        sets = {
            (rrset.name, rrset.rdtype): rrset
            for rrset in response.answer
            if rrset.rdclass == dns.rdataclass.IN
        }
        owner = question.name
        ttl = float("inf")
        for _ in range(MAX_ALIASES + 1):
            if (records := sets.get((owner, question.rdtype))) is not None:
                if rcode == dns.rcode.NXDOMAIN:
                    return Trouble(Failure.BROKEN, "NXDOMAIN with records")
                shown = sorted((self._convert(rdata) for rdata in records), key=_order)
                return Found(tuple(shown), min(ttl, records.ttl))
            if (aliases := sets.get((owner, dns.rdatatype.CNAME))) is None:
                break
            ttl = min(ttl, aliases.ttl)
            owner = aliases[0].target
        else:
            return Trouble(Failure.BROKEN, "CNAME loop")
        if sets and owner == question.name:
            return Trouble(Failure.BROKEN, "answer for another name")
        reason = NXDOMAIN if rcode == dns.rcode.NXDOMAIN else NODATA
        return self._negative(response, owner, reason, ttl)

    def _negative(
        self, response: dns.message.Message, owner: dns.name.Name, reason: str, ttl: float
    ) -> NotFound | Trouble:
        for rrset in response.authority:
            if rrset.rdtype == dns.rdatatype.SOA and owner.is_subdomain(rrset.name):
                # RFC 2308 section 5: the TTL of a negative answer is the minimum of these.
                return NotFound(reason, min(ttl, rrset.ttl, rrset[0].minimum))
        if (
            reason == NODATA
            and not response.flags & dns.flags.RA
            and any(rrset.rdtype == dns.rdatatype.NS for rrset in response.authority)
        ):
            # RFC 2308 section 2.2: without a SOA, but with NS records, it is a referral, no NODATA.
            return Trouble(Failure.BROKEN, "referral: not a recursive server")
        return NotFound(reason, 0)


def _cut(data: bytes) -> bytes:
    """Return the message with at most as many records announced as we are willing to read."""
    answers, authority, additional = (
        int.from_bytes(data[at : at + 2], "big") for at in range(6, _HEADER, 2)
    )
    if answers > MAX_RECORDS:
        answers, authority, additional = MAX_RECORDS, 0, 0
    elif authority + additional > MAX_OTHER_RECORDS:
        authority, additional = min(authority, MAX_OTHER_RECORDS), 0
    else:
        return data
    counts = b"".join(count.to_bytes(2, "big") for count in (answers, authority, additional))
    return data[:6] + counts + data[_HEADER:]


def _text(name: dns.name.Name) -> str:
    """Return a name as ASCII text; bytes that have no business in it come as escapes."""
    return name.to_text(omit_final_dot=True).lower()


def _order(record: object) -> tuple[int, object]:
    """Servers rotate their records; one order for all makes outcomes comparable."""
    return (record.preference, record.exchange) if isinstance(record, MX) else (0, record)
