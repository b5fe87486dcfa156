"""A DNS server on loopback for tests, demonstrations and filter authors.

It is a real server: UDP and TCP, wire format, one zone given as a dict. The law:

1. What the zone holds is answered; a name it doesn't hold is NXDOMAIN; a name that it holds with
   other types only is NODATA. CNAMEs are followed inside the zone.
2. An upper-case key of a name is a record type, a lower-case key is a behaviour. A behaviour is
   `True` for every type asked, or a list of the types it holds for.
3. A zone that can't be served is refused when it is given (ValueError naming name and type), never
   found out by a query.
4. `queries` is what was asked, in order, whatever was answered.

Example::

    zone = merge(host("mail.good.example", "127.0.0.9"), {"dead.example": {"drop": True}})
    with DNSServer(zone) as server:
        resolver = Resolver([(server.address, server.port)])

Run as a program, it serves a zone kept in a JSON file until SIGTERM or the end of its input::

    python -m smtpd_filters.testing.dns --listen 127.0.0.1:53 --listen [::1]:53 --zone FILE.json

Behaviours (how a name fails; for tests of whoever asks):

=========== ====================================================================================
servfail    SERVFAIL
refused     REFUSED
drop        no answer, ever; a TCP connection stays open
delay       seconds before the answer (a number)
truncate    over UDP an empty answer with the TC bit, so that TCP has to be used
no-tcp      the TCP connection is closed without an answer
wrong-id    the answer carries another ID than the question
wrong-name  the answer repeats another question than the one asked
wrong-owner the records are those of another name, `unasked.invalid`
spoof       over UDP a forged answer (another ID, 203.0.113.66) comes first, then the true one
malformed   bytes that are no DNS message behind the right ID
trailing    a right answer with bytes behind it
flap        the first question and every second one after it is dropped, the others are answered
ttl         TTL of this name's records in seconds (a number)
=========== ====================================================================================

Inside: `zone` is what may be served, `authority` what a question is answered, `server` the sockets.
"""

from .authority import Authority
from .server import DNSServer
from .zone import Zone, host, merge

__all__ = ["Authority", "DNSServer", "Zone", "host", "merge"]
