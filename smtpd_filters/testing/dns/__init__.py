"""A DNS server on loopback for tests, demonstrations and filter authors.

It is a real server, with UDP, TCP and the wire format. Its zone is a dict of names. An upper-case
key of a name is a record type, a lower-case key a behaviour, which is `True` for every type or a
list of types. A name that isn't in the zone is NXDOMAIN, one with records of other types only is
NODATA; CNAMEs are followed inside the zone.

Invariants
----------
*Checked zones*: an invalid zone raises ValueError with name and type when it is set, so that no
query can find the error.
*Complete log*: `queries` has every question in order, whatever the answer.

Example::

    zone = merge(host("mail.good.example", "127.0.0.9"), {"dead.example": {"drop": True}})
    with DNSServer(zone) as server:
        resolver = Resolver([(server.address, server.port)])

Run as a program, it serves a zone kept in a JSON file until SIGTERM or the end of its input::

    python -m smtpd_filters.testing.dns --listen 127.0.0.1:53 --listen [::1]:53 --zone FILE.json

Behaviours (how a name fails):

=========== ====================================================================================
servfail    SERVFAIL
refused     REFUSED
drop        no answer, ever; a TCP connection stays open
delay       seconds before the answer (a number)
truncate    over UDP an empty answer with the TC bit, so that TCP has to be used
no-tcp      the TCP connection is closed without an answer
wrong-id    the answer has another ID than the question
wrong-name  the answer has another question than the query
wrong-owner the records belong to another name, `unasked.invalid`
spoof       over UDP a forged answer (another ID, 203.0.113.66), then the real one
malformed   the right ID, then bytes that aren't a DNS message
trailing    a right answer with additional bytes at the end
flap        the first question and every second one after it is dropped, the others are answered
ttl         TTL of this name's records in seconds (a number)
=========== ====================================================================================

`zone` checks zones, `authority` answers questions, `server` has the sockets.
"""

from .authority import Authority
from .server import DNSServer
from .zone import Zone, host, merge

__all__ = ["Authority", "DNSServer", "Zone", "host", "merge"]
