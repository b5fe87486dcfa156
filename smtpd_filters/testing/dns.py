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

========== =====================================================================================
servfail   SERVFAIL
refused    REFUSED
drop       no answer, ever; a TCP connection stays open
delay      seconds before the answer (a number)
truncate   over UDP an empty answer with the TC bit, so that TCP has to be used
no-tcp     the TCP connection is closed without an answer
wrong-id   the answer carries another ID than the question
wrong-name the answer repeats another question than the one asked
wrong-owner the records are those of another name, `unasked.invalid`
spoof      over UDP a forged answer (another ID, 203.0.113.66) comes first, then the true one
malformed  bytes that are no DNS message behind the right ID
trailing   a right answer with bytes behind it
flap       the first question and every second one after it is dropped, the others are answered
ttl        TTL of this name's records in seconds (a number)
========== =====================================================================================
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import signal
import socket
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import FrameType, TracebackType

Entry = dict[str, Any]

NUMBERS = frozenset({"delay", "ttl"})
SWITCHES = frozenset(
    {"servfail", "refused", "drop", "truncate", "no-tcp", "wrong-id", "wrong-name", "wrong-owner"}
    | {"spoof", "malformed", "trailing", "flap"}
)

# RFC 6891 section 6.2.5: a requestor without EDNS takes 512 bytes (RFC 1035 section 4.2.1).
PLAIN_UDP_SIZE = 512
# More CNAMEs than any resolver follows (BIND: 16, unbound: 11), so that chains can be too long.
CNAME_BOUND = 32
UNASKED = "unasked.invalid"


def host(name: str, *addresses: str) -> dict[str, Entry]:
    """Return the records of a host whose reverse and forward names agree: A or AAAA, and PTR."""
    zone: dict[str, Entry] = {}
    for text in addresses:
        address = ipaddress.ip_address(text)
        rdtype = "A" if address.version == 4 else "AAAA"
        zone.setdefault(name, {}).setdefault(rdtype, []).append(text)
        zone[address.reverse_pointer] = {"PTR": [name]}
    return zone


def merge(*zones: Mapping[str, Mapping[str, Any]]) -> dict[str, Entry]:
    """Return one zone of several: records of one name and type are put together."""
    merged: dict[str, Entry] = {}
    for zone in zones:
        for name, entry in zone.items():
            into = merged.setdefault(_key(name), {})
            for key, value in entry.items():
                if key.isupper():
                    into[key] = _strings(into.get(key, [])) + _strings(value)
                else:
                    into[key] = value
    return merged


class Zone(dict[str, Entry]):
    """A zone: names, in lower case and without the last dot, to entries that have been checked."""

    def __init__(self, zone: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        self.update(zone)

    def __setitem__(self, name: str, entry: Mapping[str, Any]) -> None:
        _check(name, entry)
        super().__setitem__(_key(name), dict(entry))

    def __delitem__(self, name: str) -> None:
        super().__delitem__(_key(name))

    def update(  # type: ignore[override]  # a zone takes a zone, none of dict.update's other forms
        self, zone: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Add the names of `zone`, replacing those that are there."""
        for name, entry in zone.items():
            self[name] = entry

    def find(self, name: str) -> Entry | None:
        """Return the entry of `name`, else that of the closest wildcard above it, else None."""
        if name in self:
            return self[name]
        rest = name
        while rest:
            _, _, rest = rest.partition(".")
            if (wildcard := f"*.{rest}" if rest else "*") in self:
                return self[wildcard]
        return None


class DNSServer:
    """The server, in a thread of its own while the context is entered.

    `listen` is a list of (address, port); port 0 is a free one, the same for UDP and TCP.
    `ttl` and `negative_ttl` are in seconds; with `negative_ttl` None, negative answers come
    without the SOA that says how long they hold (RFC 2308 section 5).
    """

    def __init__(
        self,
        zone: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        listen: Iterable[tuple[str, int]] = (("127.0.0.1", 0),),
        ttl: int = 300,
        negative_ttl: int | None = 60,
    ) -> None:
        self._zone = Zone(zone or {})
        self._listen = list(listen)
        self.ttl = ttl
        self.negative_ttl = negative_ttl
        self.queries: list[tuple[str, str]] = []
        self.transports: list[str] = []
        self.endpoints: list[tuple[str, int]] = []
        self._asked: Counter[tuple[str, str]] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._bound = threading.Event()
        self._failures: list[BaseException] = []

    @property
    def zone(self) -> Zone:
        """The zone; may be changed or replaced while the server runs."""
        return self._zone

    @zone.setter
    def zone(self, zone: Mapping[str, Mapping[str, Any]]) -> None:
        self._zone = Zone(zone)

    @property
    def address(self) -> str:
        """The first address listened on."""
        return self.endpoints[0][0]

    @property
    def port(self) -> int:
        """The port of the first address listened on."""
        return self.endpoints[0][1]

    def asked(self, name: str, rdtype: str) -> int:
        """Return how often this was asked."""
        return self.queries.count((_key(name), rdtype))

    def __enter__(self) -> Self:
        self._bound.clear()
        self._failures.clear()
        self._thread = threading.Thread(target=self._run, name="dns-server", daemon=True)
        self._thread.start()
        self._bound.wait()
        for failure in self._failures:
            self._thread.join()
            raise failure
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that entered the context
            self._failures.append(exc)
        finally:
            self._bound.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.endpoints = []
        async with contextlib.AsyncExitStack() as stack:
            for address, port in self._listen:
                udp, tcp = _bind(address, port)
                self.endpoints.append((address, udp.getsockname()[1]))
                transport, _ = await self._loop.create_datagram_endpoint(
                    lambda: _Datagrams(self), sock=udp
                )
                stack.callback(transport.close)
                server = await asyncio.start_server(self._connection, sock=tcp)
                stack.callback(server.close)
            self._bound.set()
            await self._stop.wait()
        # What is still owed (delays, dropped TCP connections) is given up.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def datagram(self, wire: bytes, send: Callable[[bytes], None]) -> None:
        """Answer one UDP question, at once or later."""
        for delay, answer in self._answers(wire, tcp=False):
            if delay:
                asyncio.get_running_loop().call_later(delay, send, answer)
            else:
                send(answer)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                wire = await reader.readexactly(length)
                for delay, answer in self._answers(wire, tcp=True):
                    await asyncio.sleep(delay)
                    if not answer:
                        return
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client went, or the server stops: nothing is owed any more
        finally:
            self._tasks.discard(task)
            writer.close()

    def _answers(self, wire: bytes, *, tcp: bool) -> list[tuple[float, bytes]]:
        """Return what to send, each with its delay in seconds; b"" closes the connection."""
        try:
            query = dns.message.from_wire(wire)
            question = query.question[0]
        except (dns.exception.DNSException, IndexError):
            return []
        name = _key(question.name.to_text())
        rdtype = dns.rdatatype.to_text(question.rdtype)
        self.queries.append((name, rdtype))
        self.transports.append("tcp" if tcp else "udp")
        self._asked[name, rdtype] += 1
        entry = self._zone.find(name) or {}

        def behaves(behaviour: str) -> bool:
            setting = entry.get(behaviour, False)
            return setting if isinstance(setting, bool) else rdtype in _strings(setting)

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
            return [(delay, self._forged(query)), (delay, answer)]
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
                dns.rrset.RRset(_name(UNASKED), dns.rdataclass.IN, rdtype),
            ]
        if behaves("wrong-owner"):
            for rrset in response.answer:
                rrset.name = _name(UNASKED)
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
            ttl = int(entry.get("ttl", self.ttl))
            if records := _strings(entry.get(dns.rdatatype.to_text(rdtype), [])):
                response.answer.append(_rrset(owner, rdtype, records, ttl))
                return
            if not (aliases := _strings(entry.get("CNAME", []))):
                break
            response.answer.append(_rrset(owner, dns.rdatatype.CNAME, aliases, ttl))
            owner = _key(aliases[0])
        else:
            return  # a loop: nothing more to say
        if self.negative_ttl is not None:
            # RFC 2308 section 3: the SOA's TTL is the minimum of its MINIMUM and its own TTL.
            soa = f"ns.invalid. hostmaster.invalid. 1 3600 600 86400 {self.negative_ttl}"
            apex = owner.partition(".")[2]
            response.authority.append(_rrset(apex, dns.rdatatype.SOA, [soa], self.negative_ttl))

    def _forged(self, query: dns.message.Message) -> bytes:
        forged = dns.message.make_response(query)
        forged.id ^= 0x5555
        rrset = _rrset(_key(query.question[0].name.to_text()), dns.rdatatype.A, ["203.0.113.66"], 1)
        forged.answer.append(rrset)
        return _encode(forged, query)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DNSServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._server.datagram(data, lambda answer: self._send(answer, addr))

    def _send(self, answer: bytes, addr: tuple[Any, ...]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(answer, addr)


def _bind(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Return a UDP and a listening TCP socket bound to one address and one port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # A port that is free for UDP may be taken for TCP; another one is likely to be free for both.
    for attempts_left in reversed(range(20)):
        udp = socket.socket(family, socket.SOCK_DGRAM)
        tcp = socket.socket(family, socket.SOCK_STREAM)
        try:
            udp.bind((address, port))
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((address, udp.getsockname()[1]))
            tcp.listen(128)
        except OSError:
            udp.close()
            tcp.close()
            if port or not attempts_left:
                raise
        else:
            # A burst of questions must not be lost in the kernel: that would be a flaky test.
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            udp.setblocking(False)  # noqa: FBT003 - the socket module takes no keyword
            tcp.setblocking(False)  # noqa: FBT003
            return udp, tcp
    raise AssertionError  # pragma: no cover - the last attempt raises


def _encode(response: dns.message.Message, udp_query: dns.message.Message | None) -> bytes:
    """Return the wire format, cut to what the asker takes (with TC) where it came over UDP."""
    if udp_query is None:
        return response.to_wire(max_size=65535)
    size = udp_query.payload if udp_query.edns >= 0 else 0
    try:
        return response.to_wire(max_size=max(size, PLAIN_UDP_SIZE))
    except dns.exception.TooBig:
        response.answer.clear()
        response.flags |= dns.flags.TC
        return response.to_wire(max_size=max(size, PLAIN_UDP_SIZE))


def _key(name: str) -> str:
    return name.lower().rstrip(".")


def _name(name: str) -> dns.name.Name:
    return dns.name.from_text(name or ".", origin=dns.name.root)


def _strings(value: str | list[str] | tuple[str, ...]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _rrset(
    owner: str, rdtype: dns.rdatatype.RdataType, records: list[str], ttl: int
) -> dns.rrset.RRset:
    rrset = dns.rrset.RRset(_name(owner), dns.rdataclass.IN, rdtype)
    for text in records:
        rrset.add(_rdata(rdtype, text), ttl)
    return rrset


def _rdata(rdtype: dns.rdatatype.RdataType, text: str) -> dns.rdata.Rdata:
    if rdtype == dns.rdatatype.TXT and not text.startswith('"'):
        # RFC 1035 section 3.3.14: strings of at most 255 bytes; the text is quoted for its author.
        octets = text.encode("utf-8", "surrogateescape")
        chunks = [octets[at : at + 255] for at in range(0, len(octets), 255)] or [b""]
        text = " ".join('"' + "".join(f"\\{byte:03d}" for byte in chunk) + '"' for chunk in chunks)
    return dns.rdata.from_text(
        dns.rdataclass.IN, rdtype, text, origin=dns.name.root, relativize=False
    )


def _check(name: str, entry: Mapping[str, Any]) -> None:
    """Raise ValueError if the entry could not be served."""
    try:
        _name(name)
    except dns.exception.DNSException as exc:
        raise ValueError(f"{name!r} is no domain name: {exc}") from exc
    for key, value in entry.items():
        try:
            if key in NUMBERS:
                float(value)
            elif key in SWITCHES:
                for rdtype in [] if isinstance(value, bool) else _strings(value):
                    dns.rdatatype.from_text(rdtype)
            elif key.isupper():
                for text in _strings(value):
                    _rdata(dns.rdatatype.from_text(key), text)
            else:
                raise ValueError("neither a record type nor a behaviour")  # noqa: TRY301 - named below
        except (dns.exception.DNSException, ValueError, TypeError) as exc:
            raise ValueError(f"{name} {key}: {str(exc) or type(exc).__name__}") from exc


def _endpoint(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    ipaddress.ip_address(address)
    return address, int(port)


def main(arguments: list[str] | None = None) -> int:
    """Serve a zone file until SIGTERM or the end of standard input."""
    parser = argparse.ArgumentParser(
        prog="python -m smtpd_filters.testing.dns", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        type=_endpoint,
        action="append",
        help="where to listen, UDP and TCP; [::1]:53 for IPv6; may be repeated"
        " (default: 127.0.0.1 and a free port)",
    )
    parser.add_argument("--zone", metavar="FILE.json", type=Path, required=True, help="the zone")
    parser.add_argument("--log", action="store_true", help="print each question when it all ends")
    settings = parser.parse_args(arguments)
    try:
        server = DNSServer(
            json.loads(settings.zone.read_text("utf-8")),
            listen=settings.listen or [("127.0.0.1", 0)],
        )
        signal.signal(signal.SIGTERM, _terminated)
        with contextlib.suppress(KeyboardInterrupt), server:
            where = " ".join(f"{address}:{port}" for address, port in server.endpoints)
            sys.stderr.write(f"serving {len(server.zone)} names on {where}\n")
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            while sys.stdin.buffer.read(4096):
                pass
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"{parser.prog}: {settings.zone}: {exc}\n")
        return 2
    if settings.log:
        sys.stderr.writelines(f"{name} {rdtype}\n" for name, rdtype in server.queries)
    return 0


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
