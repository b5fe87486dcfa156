"""The answers of the name server, from the zone's records and the behaviours of a name.

It has no sockets and no clock: wire format in, wire format out, each answer with its delay.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from .zone import Zone, domain_name, key_of, rrset_of, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# RFC 6891 section 6.2.5: a requestor without EDNS accepts 512 bytes (RFC 1035 section 4.2.1).
PLAIN_UDP_SIZE = 512
# More CNAMEs than any resolver follows (BIND: 16, unbound: 11), to allow chains that are too long.
CNAME_BOUND = 32
UNASKED = "unasked.invalid"
#: TTL in seconds of the records of a name without its own `ttl`.
TTL = 300


class Authority:
    """A zone that answers questions and records them.

    `negative_ttl` is in seconds; with None, negative answers have no SOA, and so no TTL (RFC 2308
    section 5).
    """

    def __init__(
        self,
        zone: Mapping[str, object] | None = None,
        *,
        negative_ttl: int | None = 60,
    ) -> None:
        """Raise ValueError with the name and type of an invalid entry."""
        self._zone = Zone(zone or {})
        self.negative_ttl = negative_ttl
        self._queries: list[tuple[str, str]] = []
        #: The transport of each question, "udp" or "tcp", in order.
        self.transports: list[str] = []
        # Separate from `queries`, which a test may clear: `flap` continues to alternate.
        self._asked: Counter[tuple[str, str]] = Counter()

    @property
    def zone(self) -> Zone:
        """The zone; may be changed or replaced at any time."""
        return self._zone

    @zone.setter
    def zone(self, zone: Mapping[str, object]) -> None:
        self._zone = Zone(zone)

    @property
    def queries(self) -> list[tuple[str, str]]:
        """The (name, type) of each question so far, in order."""
        self.catch_up()
        return self._queries

    def catch_up(self) -> None:
        """Process pending questions; for subclasses that receive them in the background."""

    def asked(self, name: str, rdtype: str) -> int:
        """Return the number of these questions."""
        return self.queries.count((key_of(name), rdtype))

    def answers(self, wire: bytes, *, tcp: bool) -> list[tuple[float, bytes]]:
        """Return the answers, each with its delay in seconds; b"" closes the connection."""
        try:
            query = dns.message.from_wire(wire)
            question = query.question[0]
        except (dns.exception.DNSException, IndexError):
            return []
        name = key_of(question.name.to_text())
        rdtype = dns.rdatatype.to_text(question.rdtype)
        self._queries.append((name, rdtype))
        self.transports.append("tcp" if tcp else "udp")
        self._asked[name, rdtype] += 1
        entry = self._zone.find(name) or {}

        def behaves(behaviour: str) -> bool:
            setting = entry.get(behaviour, False)
            return setting if isinstance(setting, bool) else rdtype in texts(setting)

        if behaves("drop") or (behaves("flap") and self._asked[name, rdtype] % 2):
            return []
        if tcp and behaves("no-tcp"):
            return [(0, b"")]
        response = self._response(query, name, question.rdtype, behaves)
        delay = float(entry.get("delay", 0))
        if behaves("malformed"):
            return [(delay, wire[:2] + b"\x81\x80\xff\xff\xff\xffmalformed")]
        if not tcp and behaves("truncate"):
            response.answer.clear()
            response.flags |= dns.flags.TC
        answer = _encode(response, None if tcp else query)
        if behaves("trailing"):
            answer += b"trailing"
        if not tcp and behaves("spoof"):
            return [(delay, _forged(query)), (delay, answer)]
        return [(delay, answer)]

    def _response(
        self,
        query: dns.message.Message,
        name: str,
        rdtype: dns.rdatatype.RdataType,
        behaves: Callable[[str], bool],
    ) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA | dns.flags.AA
        if behaves("servfail"):
            response.set_rcode(dns.rcode.SERVFAIL)
        elif behaves("refused"):
            response.set_rcode(dns.rcode.REFUSED)
        else:
            self._fill(response, name, rdtype)
        if behaves("wrong-id"):
            response.id ^= 0x5555
        if behaves("wrong-name"):
            response.question = [
                dns.rrset.RRset(domain_name(UNASKED), dns.rdataclass.IN, rdtype),
            ]
        if behaves("wrong-owner"):
            for rrset in response.answer:
                rrset.name = domain_name(UNASKED)
        return response

    def _fill(
        self, response: dns.message.Message, name: str, rdtype: dns.rdatatype.RdataType
    ) -> None:
        """Put the zone's records into the response, following CNAMEs (RFC 1034 section 4.3.2)."""
        seen: set[str] = set()
        owner = name
        while owner not in seen and len(seen) < CNAME_BOUND:
            seen.add(owner)
            entry = self._zone.find(owner)
            if entry is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
                break
            ttl = int(entry.get("ttl", TTL))
            if records := texts(entry.get(dns.rdatatype.to_text(rdtype), [])):
                response.answer.append(rrset_of(owner, rdtype, records, ttl))
                return
            if not (aliases := texts(entry.get("CNAME", []))):
                break
            response.answer.append(rrset_of(owner, dns.rdatatype.CNAME, aliases, ttl))
            owner = key_of(aliases[0])
        else:
            return  # a loop of CNAMEs
        if self.negative_ttl is not None:
            # RFC 2308 section 3: the SOA's TTL is the minimum of its MINIMUM and its own TTL.
            soa = f"ns.invalid. hostmaster.invalid. 1 3600 600 86400 {self.negative_ttl}"
            apex = owner.partition(".")[2]
            response.authority.append(rrset_of(apex, dns.rdatatype.SOA, [soa], self.negative_ttl))


def _forged(query: dns.message.Message) -> bytes:
    forged = dns.message.make_response(query)
    forged.id ^= 0x5555
    rrset = rrset_of(key_of(query.question[0].name.to_text()), dns.rdatatype.A, ["203.0.113.66"], 1)
    forged.answer.append(rrset)
    return _encode(forged, query)


def _encode(response: dns.message.Message, udp_query: dns.message.Message | None) -> bytes:
    """Return the wire format, truncated for UDP (with TC) to the size that the query allows."""
    if udp_query is None:
        return response.to_wire(max_size=65535)
    size = udp_query.payload if udp_query.edns >= 0 else 0
    try:
        return response.to_wire(max_size=max(size, PLAIN_UDP_SIZE))
    except dns.exception.TooBig:
        response.answer.clear()
        response.flags |= dns.flags.TC
        return response.to_wire(max_size=max(size, PLAIN_UDP_SIZE))
