"""DNS queries in wire format, and the interpretation of their responses.

Invariants
----------
*Strays*: only a response to the question is parsed (same ID, same question). Anything else is a
`Stray`, and the caller keeps listening: a forgery from off the path must not end a look-up.
*Relevant records*: only records that answer the question are used, following a bounded number of
CNAMEs within the response. A server whose answer has only other records is broken.
*Partial*: `response` reads a bounded part of a large answer. If that part has records of the type,
`Found.gap` is set; if it has none, the result is a `Trouble`, never NotFound.
*No exceptions*: no response raises an exception.

dnspython supplies only the numbers and names of types and codes. Strangers choose the names that
are looked up and the records in the response, and dnspython takes 6 ms for a question with a name
of 126 labels, and up to 500 ms for a response (docs/decisions/dns-responses.md).
"""

from __future__ import annotations

import ipaddress
import socket
from os import urandom
from struct import pack
from typing import TYPE_CHECKING, Any

import dns.rcode
import dns.rdatatype

from smtpd_filters.lookups.outcome import MX, NODATA, NXDOMAIN, Found, NotFound, Value
from smtpd_filters.lookups.retry import Failure

from .response import CNAME, IN, MalformedError, Response

if TYPE_CHECKING:
    from collections.abc import Callable

    from .response import Labels, Record

# The largest datagram that passes everywhere without fragments, which can be forged (DNS flag day
# 2020).
UDP_PAYLOAD = 1232
# Unbound follows 11 CNAMEs, BIND 16.
MAX_ALIASES = 16
#: Why a result is incomplete.
PARTIAL = "answer too large to be read whole"

# RFC 1035 section 4.1.1: the length of a header, and its flags, by octet.
_HEADER = 12
_QR, _OPCODE, _TC, _RD = 0x80, 0x78, 0x02, 0x01
_RA = 0x80
# The header of a query after its ID.
_ASK = pack(">2B4H", _RD, 0, 1, 0, 0, 1)
# RFC 6891 section 6.1.2: an OPT record with the size of the datagrams that we accept.
_OPT = b"\0" + pack(">2HIH", dns.rdatatype.OPT, UDP_PAYLOAD, 0, 0)
# The bytes in the labels of a host name, in lower case, and the text form of every byte (RFC 1035
# section 5.1): \X for a special character, \DDD for an unprintable one.
_PLAIN = b"abcdefghijklmnopqrstuvwxyz0123456789-_"
_ESCAPED = tuple(
    ("\\" if chr(byte) in '"().;\\@$' else "") + chr(byte) if 0x20 < byte < 0x7F else f"\\{byte:03}"
    for byte in range(256)
)
# With these codes a server need not repeat the question, which it did not parse.
_UNREAD = frozenset({dns.rcode.FORMERR, dns.rcode.SERVFAIL, dns.rcode.NOTIMP, dns.rcode.REFUSED})


def _address(response: Response, record: Record) -> str:
    return socket.inet_ntop(socket.AF_INET, response.content(record, 4))


def _address6(response: Response, record: Record) -> str:
    # inet_ntop(3) writes ::192.0.2.1, ipaddress ::c000:201; one form, so that they compare.
    return str(ipaddress.IPv6Address(response.content(record, 16)))


def _target(response: Response, record: Record) -> str:
    return _text(response.name(record))


def _exchanger(response: Response, record: Record) -> MX:
    preference = int.from_bytes(response.data[record.at : record.at + 2], "big")
    return MX(preference, _text(response.name(record, 2)))


#: The parser of each record type that can be queried.
_READERS: dict[str, Callable[[Response, Record], object]] = {
    "A": _address,
    "AAAA": _address6,
    "CNAME": _target,
    "MX": _exchanger,
    "NS": _target,
    "PTR": _target,
    # RFC 7208 section 3.3 and RFC 6376 section 3.6.2.2: the strings of one record are concatenated
    # without a separator.
    "TXT": Response.text,
}


class Trouble(Value):
    """An unusable response: the kind of failure, and the cause for the log."""

    __match_args__ = ("failure", "cause")
    __slots__ = __match_args__

    def __init__(self, failure: Failure, cause: str) -> None:
        self.failure = failure
        self.cause = cause


class Stray(Value):
    """A message that is not a response to the question, with the cause for the log."""

    __match_args__ = ("cause",)
    __slots__ = __match_args__

    def __init__(self, cause: str) -> None:
        self.cause = cause


class Question:
    """A question to one server, with its own ID; `wire` is the query in wire format.

    `name` comes from `names.domain`. `work` is the work of parsing responses so far, in the units
    of `response`.

    Raises KeyError for an unsupported record type.
    """

    __slots__ = ("_name", "_rdtype", "_read", "wire", "work")

    def __init__(self, name: str, rdtype: str) -> None:
        self._read = _READERS[rdtype]
        self._rdtype = int(dns.rdatatype.RdataType[rdtype])
        self._name: Labels = tuple(name.encode().split(b"."))
        labels = b"".join([bytes([len(label)]) + label for label in self._name])
        asked = labels + b"\0" + pack(">2H", self._rdtype, IN)
        self.wire = urandom(2) + _ASK + asked + _OPT
        self.work = 0

    def read(self, data: bytes, *, tcp: bool) -> Found[Any] | NotFound | Trouble | Stray:
        """Return the result of a message from the server."""
        if len(data) < _HEADER or data[:2] != self.wire[:2] or not data[2] & _QR:
            return Stray("answer that does not match")
        try:
            response = Response(data)
            if data[2] & _OPCODE or not self._is_repeated(response):
                return Stray("answer that does not match")
            if data[2] & _TC:
                # It may be cut off anywhere after the question (RFC 2181 section 9).
                failure = Failure.BROKEN if tcp else Failure.USE_TCP
                return Trouble(failure, "truncated answer")
            try:
                response.read_records(self._rdtype)
                return self._answer(response)
            finally:
                self.work += response.work
        except MalformedError:
            return Stray("malformed answer")

    def _is_repeated(self, response: Response) -> bool:
        """Return whether the response repeats this question."""
        if response.question is None:
            return response.rcode in _UNREAD
        return response.question == (self._name, self._rdtype, IN)

    def _answer(self, response: Response) -> Found[Any] | NotFound | Trouble:
        if response.rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            cause = dns.rcode.to_text(dns.rcode.Rcode.make(response.rcode))
            return Trouble(Failure.BROKEN, cause)
        owner = self._name
        ttl = float("inf")
        for _ in range(MAX_ALIASES + 1):
            if records := response.records(owner, self._rdtype):
                return self._found(response, records, ttl)
            aliases = response.records(owner, CNAME)
            # A name has one CNAME (RFC 2181 section 10.1); of several, use the last.
            targets = response.contents(aliases[-1:], Response.name)
            if not targets:
                break
            ttl = min(ttl, *(alias.ttl for alias in aliases))
            (owner,) = targets
        else:
            return Trouble(Failure.BROKEN, "CNAME loop")
        return self._missing(response, owner, ttl)

    def _found(self, response: Response, records: list[Record], ttl: float) -> Found[Any] | Trouble:
        if response.rcode == dns.rcode.NXDOMAIN:
            return Trouble(Failure.BROKEN, "NXDOMAIN with records")
        values = response.contents(records, self._read)
        if not values:
            return Trouble(Failure.BROKEN, PARTIAL)
        shown = tuple(sorted(set(values), key=_order))
        ttl = min(ttl, *(record.ttl for record in records))
        return Found(shown, ttl, "" if response.complete else PARTIAL)

    def _missing(self, response: Response, owner: Labels, ttl: float) -> NotFound | Trouble:
        """Return the reason why there is no record; `owner` is the target of the last CNAME."""
        if not response.complete:
            return Trouble(Failure.BROKEN, PARTIAL)
        if response.has_answers and owner == self._name:
            return Trouble(Failure.BROKEN, "answer for another name")
        reason = NXDOMAIN if response.rcode == dns.rcode.NXDOMAIN else NODATA
        for zone, soa in response.soas:
            if zone == owner[len(owner) - len(zone) :]:
                # RFC 2308 section 5: the TTL of a negative answer is the minimum of these two.
                return NotFound(reason, min(ttl, soa.ttl, response.minimum(soa)))
        if reason == NODATA and not response.data[3] & _RA and response.refers:
            # RFC 2308 section 2.2: with NS and without SOA records it is a referral, not NODATA.
            return Trouble(Failure.BROKEN, "referral: not a recursive server")
        return NotFound(reason, 0)


def _text(name: Labels) -> str:
    """Return a name as text without its final dot; the root's is "."."""
    if not b"".join(name).translate(None, _PLAIN):
        return b".".join(name).decode() or "."
    return ".".join(["".join([_ESCAPED[byte] for byte in label]) for label in name])


def _order(record: object) -> tuple[int, object]:
    """Return the sort key of a record: servers rotate records, and outcomes must be comparable."""
    return (record.preference, record.exchange) if isinstance(record, MX) else (0, record)
