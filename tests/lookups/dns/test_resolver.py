"""The resolver, against a real server that fails on request."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from unittest import mock

import pytest

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.cache import Lifetimes
from smtpd_filters.lookups.dns import Resolver, transport
from smtpd_filters.lookups.dns import resolver as lookups_dns
from smtpd_filters.lookups.dns.message import PARTIAL, Question, Trouble
from smtpd_filters.lookups.dns.resolver import CLOSED
from smtpd_filters.lookups.dns.response import MAX_RECORDS, MAX_WORK
from smtpd_filters.lookups.outcome import (
    INVALID,
    MX,
    NODATA,
    NXDOMAIN,
    Found,
    NotFound,
    Outcome,
    Unavailable,
)
from smtpd_filters.lookups.places import QUEUE, Places
from smtpd_filters.lookups.retry import Failure
from smtpd_filters.lookups.sockets import Sockets
from smtpd_filters.runtime import pace as pacing
from smtpd_filters.testing.dns import DNSServer, host, merge
from tests.effort import brief
from tests.loading import loaded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from smtpd_filters.lookups.dns import RecordType

T = TypeVar("T")

ZONE = merge(
    host("mail.good.example", "127.0.0.9", "2001:db8::9"),
    host("four.example", "127.0.0.4"),
    {
        "mail.good.example": {"MX": ["20 b.example", "10 a.example"], "TXT": "v=spf1 -all"},
        "null.example": {"MX": "0 ."},
        "alias.example": {"CNAME": "four.example"},
        "nowhere.example": {"CNAME": "missing.example"},
        "loop.example": {"CNAME": "loop2.example"},
        "loop2.example": {"CNAME": "loop.example"},
        "many.example": {"A": [f"192.0.2.{n}" for n in range(60)]},
        "huge.example": {"A": [f"10.0.{n // 250}.{n % 250}" for n in range(600)]},
        "servfail.example": {"servfail": True},
        "refused.example": {"refused": True},
        "drop.example": {"drop": True},
        "half.example": {"A": "192.0.2.2", "servfail": ["AAAA"]},
        "half6.example": {"AAAA": "2001:db8::2", "servfail": ["A"]},
        "halfnone.example": {"servfail": ["AAAA"]},
        "twice.example": {"A": "192.0.2.2", "AAAA": "2001:db8::2"},
        "slow.example": {"A": "192.0.2.3", "delay": 0.05},
        "cut.example": {"A": "192.0.2.4", "truncate": True},
        "cut-dead.example": {"A": "192.0.2.4", "truncate": True, "no-tcp": True},
        "cut-bytes.example": {"truncate": True, "trailing": True},
        "id.example": {"A": "192.0.2.5", "wrong-id": True},
        "question.example": {"A": "192.0.2.5", "wrong-name": True},
        "owner.example": {"A": "192.0.2.5", "wrong-owner": True},
        "spoof.example": {"A": "192.0.2.6", "spoof": True},
        "bytes.example": {"malformed": True},
        "flap.example": {"A": "192.0.2.8", "flap": True},
        "ttl.example": {"A": "192.0.2.9", "ttl": 7},
    },
)


#: The system assigns this port to no socket.
NOBODY = ("127.0.0.1", 9)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Iterator[DNSServer]:
    with DNSServer(ZONE) as running:
        yield running


def run(
    servers: DNSServer | list[tuple[str, int]],
    test: Callable[[Resolver], Awaitable[T]],
    **options: Any,
) -> T:
    """Run the test with a resolver, and see that nothing is left of it."""
    nameservers = servers.endpoints if isinstance(servers, DNSServer) else servers
    options.setdefault("timeout", 10)

    async def main() -> T:
        async with Resolver(nameservers, **options) as resolver:
            result = await test(resolver)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(main())


def ask(
    servers: DNSServer | list[tuple[str, int]], name: str, rdtype: RecordType = "A", **options: Any
) -> Outcome[Any]:
    return run(servers, lambda resolver: resolver.query(name, rdtype), **options)


@pytest.mark.parametrize(
    ("name", "rdtype", "expected"),
    [
        ("Mail.GOOD.example.", "A", Found(("127.0.0.9",), 300)),
        ("mail.good.example", "AAAA", Found(("2001:db8::9",), 300)),
        ("mail.good.example", "MX", Found((MX(10, "a.example"), MX(20, "b.example")), 300)),
        ("mail.good.example", "TXT", Found((b"v=spf1 -all",), 300)),
        ("9.0.0.127.in-addr.arpa", "PTR", Found(("mail.good.example",), 300)),
        ("null.example", "MX", Found((MX(0, "."),), 300)),
        ("alias.example", "A", Found(("127.0.0.4",), 300)),
        ("ttl.example", "A", Found(("192.0.2.9",), 7)),
        ("cut.example", "A", Found(("192.0.2.4",), 300)),
        ("spoof.example", "A", Found(("192.0.2.6",), 300)),
        ("slow.example", "A", Found(("192.0.2.3",), 300)),
        ("missing.example", "A", NotFound(NXDOMAIN, 60)),
        ("nowhere.example", "A", NotFound(NXDOMAIN, 60)),
        ("four.example", "AAAA", NotFound(NODATA, 60)),
        ("not a name", "A", NotFound(INVALID)),
        ("a..b", "A", NotFound(INVALID)),
        ("\udcff", "A", NotFound(INVALID)),
    ],
)
def test_outcomes(server: DNSServer, name: str, rdtype: RecordType, expected: Outcome[Any]) -> None:
    assert ask(server, name, rdtype) == expected


@pytest.mark.parametrize(
    ("name", "cause", "timeout"),
    [
        ("servfail.example", "SERVFAIL", 10),
        ("refused.example", "REFUSED", 2),
        ("loop.example", "CNAME loop", 2),
        ("owner.example", "answer for another name", 2),
        ("cut-dead.example", "connection closed", 2),
        ("cut-bytes.example", "malformed answer", 2),
        # These end when the time is up, and not before.
        ("drop.example", "timeout", 0.05),
        ("id.example", "answer that does not match", 1),
        ("question.example", "answer that does not match", 1),
        ("bytes.example", "malformed answer", 1),
    ],
)
def test_unavailable(server: DNSServer, name: str, cause: str, timeout: float) -> None:
    expected = Unavailable(f"127.0.0.1:{server.port} {cause}")
    assert ask(server, name, timeout=brief(timeout), attempts=1) == expected


def test_many_records(server: DNSServer) -> None:
    many = ask(server, "many.example")
    assert isinstance(many, Found)
    assert len(many.records) == 60
    huge = ask(server, "huge.example")
    assert isinstance(huge, Found)
    assert len(huge.records) == MAX_RECORDS
    # The absence of an address isn't proven.
    assert huge.gap == PARTIAL
    assert server.transports == ["udp", "udp", "tcp"]


def test_a_name_that_cannot_exist_is_never_asked_for(server: DNSServer) -> None:
    assert ask(server, "a" * 64) == NotFound(INVALID)
    assert server.queries == []


@pytest.mark.parametrize("rdtype", ["SOA", "ANY", "a", "", None, 5])
def test_an_unknown_record_type_is_a_value_error(server: DNSServer, rdtype: Any) -> None:
    with pytest.raises(ValueError, match="must be one of A, AAAA, CNAME, MX, NS, PTR, TXT"):
        run(server, lambda resolver: resolver.query("x.example", rdtype))


@pytest.mark.parametrize("name", [None, b"x.example", 5, ("x.example",)])
def test_a_name_that_is_not_str_is_a_type_error(server: DNSServer, name: Any) -> None:
    async def test(resolver: Resolver) -> None:
        for look_up in (resolver.mx, resolver.txt, resolver.addresses, resolver.ptr):
            with pytest.raises(TypeError, match="a name must be str, not "):
                await look_up(name)

    run(server, test)


def test_typed_look_ups(server: DNSServer) -> None:
    async def test(resolver: Resolver) -> None:
        assert await resolver.mx("null.example") == Found((MX(0, "."),), 300)
        assert await resolver.txt("mail.good.example") == Found((b"v=spf1 -all",), 300)
        for address in ("127.0.0.9", "::ffff:127.0.0.9", "2001:DB8::9", "2001:db8::9%lo"):
            assert await resolver.ptr(address) == Found(("mail.good.example",), 300)
        assert await resolver.ptr("127.0.0.8") == NotFound(NXDOMAIN, 60)
        for address in ("", "unix:/var/run/smtpd.sock", "127.0.0.9:25"):
            assert await resolver.ptr(address) == NotFound(INVALID)

    run(server, test)


def test_addresses(server: DNSServer) -> None:
    async def test(resolver: Resolver) -> None:
        servfail = f"127.0.0.1:{server.port} SERVFAIL"
        for name, expected in {
            "mail.good.example": Found(("127.0.0.9", "2001:db8::9"), 300),
            "four.example": Found(("127.0.0.4",), 300),
            "half.example": Found(("192.0.2.2",), 300, servfail),
            "twice.example": Found(("192.0.2.2", "2001:db8::2"), 300),
            "half6.example": Found(("2001:db8::2",), 300, servfail),
            "halfnone.example": Unavailable(servfail),
            "servfail.example": Unavailable(servfail),
            "null.example": NotFound(NODATA, 60),
            "missing.example": NotFound(NXDOMAIN, 60),
            "no name": NotFound(INVALID),
        }.items():
            assert await resolver.addresses(name) == expected, name

    run(server, test)


def test_a_silent_server_is_asked_again(server: DNSServer) -> None:
    outcome = ask(server, "flap.example", timeout=brief(0.5))
    assert outcome == Found(("192.0.2.8",), 300)
    assert server.asked("flap.example", "A") == 2


class Began(Clock):
    """A clock that is `ahead` by so many seconds when the look-up begins."""

    def __init__(self, ahead: float) -> None:
        self._ahead = [ahead]

    def __call__(self) -> float:
        return time.monotonic() + (self._ahead.pop() if self._ahead else 0)


@pytest.mark.parametrize("ahead", [100, -0.05], ids=["deadline first", "timeout first"])
def test_the_deadline_ends_it(server: DNSServer, ahead: float) -> None:
    """A busy machine decides which of them comes first: it makes no difference."""
    [(address, port)] = server.endpoints

    async def test(resolver: Resolver) -> Outcome[Any]:
        outcome = await resolver.query("drop.example", "A")
        assert resolver._servers._silences == [1]
        return outcome

    outcome = run(server, test, timeout=60, deadline=brief(1.5), clock=Began(ahead))
    assert outcome == Unavailable(f"{address}:{port} timeout")


def test_the_deadline_before_any_timeout_makes_the_next_server_first(server: DNSServer) -> None:
    """Else no look-up would ever ask it."""

    async def test(resolver: Resolver) -> Outcome[Any]:
        names = (f"{number}.example" for number in range(100))
        while not resolver._servers.is_open(0):  # on a busy machine a query may not be sent in time
            assert isinstance(await resolver.query(next(names), "A"), Unavailable)
        resolver._deadline = 60
        return await resolver.query("four.example", "A")

    with DNSServer({"*": {"drop": True}}) as dead:
        servers = [*dead.endpoints, *server.endpoints]
        assert run(servers, test, timeout=60, deadline=0.05) == Found(("127.0.0.4",), 300)


def test_waiting_for_a_turn_counts_against_the_deadline(server: DNSServer) -> None:
    async def test(resolver: Resolver) -> Outcome[Any]:
        # Somebody has the only one for longer than that.
        assert await resolver._sockets.places(tcp=False).take(again=False)
        return await resolver.query("four.example", "A")

    assert run(server, test, in_flight=1, deadline=0.05) == Unavailable("deadline passed")
    assert server.queries == []


def test_names_that_nobody_answers_for_do_not_delay_others(server: DNSServer) -> None:
    async def test(resolver: Resolver) -> Outcome[Any]:
        # Each is evicted after half a second.
        types: list[Any] = ["A", "AAAA", "CNAME", "MX", "NS", "PTR", "TXT"]
        for each in types:
            resolver.start("drop.example", each)
        await asyncio.sleep(0)
        found = await resolver.query("four.example", "A")
        # An eviction does not count against the server.
        assert resolver._servers._silences == [0]
        return found

    assert isinstance(run(server, test, in_flight=6, timeout=60, deadline=60), Found)


def test_without_a_place_in_the_queue_a_look_up_fails_at_once() -> None:
    async def test(resolver: Resolver) -> list[Outcome[Any]]:
        asked = (resolver.query(f"name{n}.example", "A") for n in range(1 + QUEUE + 2))
        return await asyncio.gather(*asked)

    with DNSServer({"*": {"drop": True}}) as dead:
        outcomes = run(dead, test, in_flight=1, timeout=60, deadline=0.1)
    assert outcomes.count(Unavailable("too many look-ups")) == 2


def test_fail_over(server: DNSServer) -> None:
    good = Found(("127.0.0.4",), 300)
    with DNSServer({"*": {"refused": True}}) as refuses, DNSServer({"*": {"drop": True}}) as dead:
        for bad in (refuses.endpoints[0], dead.endpoints[0], NOBODY):
            servers = [bad, *server.endpoints]
            assert ask(servers, "four.example", timeout=brief(0.5)) == good
        unavailable = ask([*refuses.endpoints, NOBODY], "four.example", attempts=1)
    assert unavailable == Unavailable(
        f"127.0.0.1:{refuses.port} REFUSED, 127.0.0.1:9 connection refused"
    )


def test_a_dead_server_is_asked_last_after_a_while(server: DNSServer) -> None:
    async def test(resolver: Resolver) -> None:
        for n in range(6):
            assert await resolver.query(f"missing{n}.example", "A") == NotFound(NXDOMAIN, 60)

    with DNSServer({"*": {"drop": True}}) as dead:
        run([*dead.endpoints, *server.endpoints], test, timeout=brief(0.5), clock=Clock())
        assert len(dead.queries) == 3


def test_a_server_that_is_being_restarted_is_given_a_moment() -> None:
    assert ask([NOBODY], "four.example") == Unavailable("127.0.0.1:9 connection refused")


def test_ipv6_name_server() -> None:
    with DNSServer(ZONE, listen=[("::1", 0)]) as server:
        assert ask(server, "four.example") == Found(("127.0.0.4",), 300)
        assert ask(server, "cut.example") == Found(("192.0.2.4",), 300)
        assert ask(server, "refused.example") == Unavailable(f"[::1]:{server.port} REFUSED")


def test_concurrent_look_ups_of_one_name_are_one_query(server: DNSServer) -> None:
    async def test(resolver: Resolver) -> None:
        asked = (resolver.query(name, "A") for name in ("slow.example", "SLOW.example.") * 20)
        assert set(await asyncio.gather(*asked)) == {Found(("192.0.2.3",), 300)}

    run(server, test)
    assert server.queries == [("slow.example", "A")]


def test_one_who_stops_waiting_does_not_stop_the_others(server: DNSServer) -> None:
    async def test(resolver: Resolver) -> None:
        first, second = (asyncio.create_task(resolver.query("slow.example", "A")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second == Found(("192.0.2.3",), 300)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await resolver.query("drop.example", "A")

    run(server, test)
    assert server.asked("slow.example", "A") == 1


def test_closing_tells_those_who_wait(server: DNSServer) -> None:
    async def test(resolver: Resolver) -> None:
        waits = asyncio.create_task(resolver.query("drop.example", "A"))
        gone = asyncio.create_task(resolver.query("drop.example", "A"))
        await asyncio.sleep(0)
        gone.cancel()
        await resolver.aclose()
        assert await waits == Unavailable(CLOSED)
        assert gone.cancelled()
        assert await resolver.query("four.example", "A") == Unavailable(CLOSED)

    run(server, test)


def test_what_is_known_is_not_asked_again_until_its_time_is_up(server: DNSServer) -> None:
    clock = Clock()

    async def test(resolver: Resolver) -> None:
        for name, lifetime in (("ttl.example", 7), ("missing.example", 60), ("many.example", 100)):
            await resolver.query(name, "A")
            clock.now += lifetime - 0.1
            await resolver.query(name.upper(), "A")
            assert server.asked(name, "A") == 1
            clock.now += 0.1
            await resolver.query(name, "A")
            assert server.asked(name, "A") == 2

    run(server, test, clock=clock, lifetimes=Lifetimes(ceiling=100))


def test_unavailable_is_kept_for_a_moment_only(server: DNSServer) -> None:
    clock = Clock()

    async def test(resolver: Resolver) -> None:
        for _ in range(3):
            assert isinstance(await resolver.query("servfail.example", "A"), Unavailable)
        assert server.asked("servfail.example", "A") == 1
        server.zone = {"servfail.example": {"A": "192.0.2.1"}}
        clock.now += 1
        assert await resolver.query("servfail.example", "A") == Found(("192.0.2.1",), 300)

    run(server, test, clock=clock)


def test_the_cache_is_bounded(server: DNSServer) -> None:
    async def test(resolver: Resolver) -> None:
        for _ in range(2):
            for n in range(3):
                await resolver.query(f"missing{n}.example", "A")
        assert len(resolver._cache) == 2

    run(server, test, cache_size=2, clock=Clock())
    assert len(server.queries) == 6


def test_negative_answers_that_say_not_for_how_long_are_kept_for_a_moment() -> None:
    clock = Clock()

    async def test(resolver: Resolver) -> None:
        for moment, queries in ((0.0, 1), (4.9, 1), (5.0, 2)):
            clock.now = moment
            assert await resolver.query("missing.example", "A") == NotFound(NXDOMAIN, 0)
            assert len(empty.queries) == queries

    with DNSServer({}, negative_ttl=None) as empty:
        run(empty, test, clock=clock)


def test_what_is_known_to_be_missing(server: DNSServer) -> None:
    async def test(resolver: Resolver) -> None:
        names = ["missing.example", "nowhere.example"]
        await resolver.query(names[0], "A")
        assert not resolver.missing(names, "A")
        await resolver.query(names[1], "A")
        assert resolver.missing(names, "A")
        assert not resolver.missing(names, "AAAA")
        await resolver.query("four.example", "A")
        assert not resolver.missing([*names, "four.example"], "A")
        assert resolver.missing([], "A")

    run(server, test)


def test_what_is_known_is_known_however_it_is_spelt(server: DNSServer) -> None:
    async def test(resolver: Resolver) -> None:
        found = await resolver.query("four.example", "A")
        for spelt in ("four.example", "Four.EXAMPLE", "four.example."):
            assert resolver.known(spelt, "A") is found
        assert resolver.known("four.example", "AAAA") is None
        assert resolver.known(" four.example", "A") == NotFound(INVALID)

    run(server, test)


def test_each_question_has_a_port_of_its_own_drawn_at_random(server: DNSServer) -> None:
    ports: list[int] = []
    original = transport.Endpoint._ask_udp

    async def noting(self: Any, sock: Any, *rest: Any) -> Any:
        result = await original(self, sock, *rest)
        ports.append(sock.getsockname()[1])
        return result

    async def test(resolver: Resolver) -> None:
        for n in range(30):
            await resolver.query(f"missing{n}.example", "A")

    with mock.patch.object(transport.Endpoint, "_ask_udp", noting):
        run(server, test)
    # In order, or close together, they could be guessed.
    assert len(set(ports)) > 25
    assert max(ports) - min(ports) > 1000


class Burst(DNSServer):
    """A server whose answers over UDP arrive behind as many forged ones as end a query."""

    def answers(self, wire: bytes, *, tcp: bool) -> list[tuple[float, bytes]]:
        forged, *rest = super().answers(wire, tcp=tcp)
        return [forged] * (1 if tcp else transport.MAX_STRAYS) + rest


def test_a_burst_of_forgeries_turns_to_tcp() -> None:
    with Burst(ZONE) as server:
        assert ask(server, "spoof.example") == Found(("192.0.2.6",), 300)
        assert server.transports == ["udp", "tcp"]


class Few(socket.socket):
    """Sockets of which the system gives three at a time."""

    left = 3

    def __init__(self, *arguments: Any) -> None:
        if not Few.left:
            raise OSError(errno.EMFILE, "Too many open files")
        super().__init__(*arguments)
        Few.left -= 1

    def close(self) -> None:
        if self.fileno() >= 0:
            Few.left += 1
        super().close()


def test_look_ups_wait_for_descriptors_of_others(server: DNSServer) -> None:
    async def test(resolver: Resolver) -> None:
        # Nothing but a socket that is closed lets the next one try.
        resolver._sockets = Sockets(512, pause=3600)
        with mock.patch.object(socket, "socket", Few):
            asked = (resolver.query(f"missing{n}.example", "A") for n in range(30))
            assert set(await asyncio.gather(*asked)) == {NotFound(NXDOMAIN, 60)}
        assert Few.left == 3
        assert resolver._servers._silences == [0]

    run(server, test, attempts=1, deadline=60)


def test_without_a_descriptor_of_its_own_a_look_up_tries_again(server: DNSServer) -> None:
    class Later(socket.socket):
        tries = 0

        def __init__(self, *arguments: Any) -> None:
            Later.tries += 1
            if Later.tries < 4:
                raise OSError(errno.ENFILE, "Too many open files in system")
            super().__init__(*arguments)

    async def test(resolver: Resolver) -> None:
        with mock.patch.object(socket, "socket", Later):
            assert await resolver.query("four.example", "A") == Found(("127.0.0.4",), 300)

    run(server, test, attempts=1)


def test_out_of_descriptors_until_the_deadline(server: DNSServer) -> None:
    class NoSocket(socket.socket):
        def __init__(self, *_: Any) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

    async def test(resolver: Resolver) -> None:
        with mock.patch.object(socket, "socket", NoSocket):
            outcome = await resolver.query("four.example", "A")
        assert outcome == Unavailable(f"127.0.0.1:{server.port} too many open files")
        assert resolver._servers._silences == [0]

    run(server, test, attempts=1, deadline=0.05)


def test_a_firewall_of_this_machine_is_not_the_servers_fault(server: DNSServer) -> None:
    class Forbidden(socket.socket):
        def send(self, *_: Any) -> int:
            raise OSError(errno.EPERM, "Operation not permitted")

    async def test(resolver: Resolver) -> None:
        with mock.patch.object(socket, "socket", Forbidden):
            outcome = await resolver.query("four.example", "A")
        assert outcome == Unavailable(f"127.0.0.1:{server.port} operation not permitted")
        assert resolver._servers._silences == [0]

    run(server, test, attempts=1)


class Drip(DNSServer):
    """A server that sends each byte of an answer over TCP by itself."""

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        ((_, answer),) = self.answers(wire, tcp=True)
        with contextlib.suppress(ConnectionError):
            for byte in len(answer).to_bytes(2, "big") + answer:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()


def test_an_answer_over_tcp_comes_in_a_bounded_number_of_pieces() -> None:
    async def main(server: DNSServer) -> object:
        place = await Places(1).take(again=False)
        assert place is not None
        endpoint = transport.Endpoint(*server.endpoints[0], pieces=12)
        question = Question("huge.example", "A")
        return await endpoint.ask(question, tcp=True, seconds=60, place=place)

    with Drip(ZONE) as server:
        trouble = asyncio.run(main(server))
    assert trouble == Trouble(Failure.BROKEN, "answer in too many pieces")
    with Drip(ZONE) as server:
        assert ask(server, "cut.example") == Found(("192.0.2.4",), 300)


def test_a_name_server_whose_interface_comes_later(server: DNSServer) -> None:
    looked_for = socket.getaddrinfo
    there = False
    port = server.endpoints[0][1]

    def find(address: str, port: int, **options: Any) -> Any:
        if "%" not in address:
            return looked_for(address, port, **options)
        if not there:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return looked_for("127.0.0.1", port, **options)

    async def test(resolver: Resolver) -> None:
        nonlocal there
        assert resolver.servers == [("fe80::1%later0", port)]
        missing = await resolver.query("four.example", "A")
        assert isinstance(missing, Unavailable)
        assert missing.cause == f"[fe80::1%later0]:{port} no interface later0"
        there = True
        found = await resolver.query("mail.good.example", "A")  # the failure is cached
        assert found == Found(("127.0.0.9",), 300)

    with mock.patch.object(socket, "getaddrinfo", find):
        run([("fe80::1%later0", port)], test)


@pytest.mark.parametrize("interface", ["a" * 70, "a..b"])
def test_a_name_server_whose_interface_cannot_exist(interface: str) -> None:
    """Its name is no label for IDNA, with which Python encodes it."""

    async def test(resolver: Resolver) -> None:
        missing = await resolver.query("four.example", "A")
        assert isinstance(missing, Unavailable)
        assert missing.cause == f"[fe80::1%{interface}]:53 no interface {interface}"

    run([(f"fe80::1%{interface}", 53)], test)


def test_few_streams_at_a_time(server: DNSServer) -> None:
    server.zone.update({f"cut{n}.example": {"A": "192.0.2.4", "truncate": True} for n in range(20)})
    open_ = most = 0
    original = transport.Endpoint._ask_tcp

    async def noting(self: Any, *arguments: Any) -> Any:
        nonlocal open_, most
        open_ += 1
        most = max(most, open_)
        try:
            return await original(self, *arguments)
        finally:
            open_ -= 1

    async def test(resolver: Resolver) -> None:
        asked = (resolver.query(f"cut{n}.example", "A") for n in range(20))
        assert set(await asyncio.gather(*asked)) == {Found(("192.0.2.4",), 300)}

    with mock.patch.object(transport.Endpoint, "_ask_tcp", noting):
        run(server, test, in_flight=16)
    assert most == 2


class Counting(pacing.Pace):
    """Keeps the most work that was admitted between two polls of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.admitted = self.most = self.all = 0

    async def admit(self, work: int) -> None:
        await super().admit(work)
        if not self.admitted:
            asyncio.get_running_loop().call_soon(self._polled)
        self.admitted += work
        self.all += work
        self.most = max(self.most, self.admitted)

    def _polled(self) -> None:
        self.admitted = 0


def test_what_comes_at_once_is_worked_on_in_turns(server: DNSServer) -> None:
    many = [f"10.0.0.{n}" for n in range(200)]
    names = [f"many{n}.example" for n in range(12)]
    server.zone.update({name: {"A": many} for name in names})
    counting = []

    async def test(resolver: Resolver) -> None:
        counting.append(Counting())
        pacing._paces[asyncio.get_running_loop()] = counting[0]
        outcomes = await asyncio.gather(*(resolver.query(name, "A") for name in names))
        assert all(isinstance(each, Found) and each.gap for each in outcomes)

    run(server, test, deadline=60)
    (pace,) = counting
    # Each asks twice, and what comes over TCP is worth as much work as there may be.
    assert pace.all > len(names) * MAX_WORK
    assert pace.most <= 2 * pacing.TURN


def test_sessions_that_wait_for_one_answer_go_on_in_turns(server: DNSServer) -> None:
    sessions = 200

    async def test(resolver: Resolver) -> None:
        pace = pacing._paces[asyncio.get_running_loop()] = Counting()
        asked = (resolver.query("slow.example", "A") for _ in range(sessions))
        assert set(await asyncio.gather(*asked)) == {Found(("192.0.2.3",), 300)}
        assert pace.all >= sessions * lookups_dns.RESUME > 2 * pacing.TURN
        assert pace.most <= 2 * pacing.TURN

    run(server, test)
    assert server.asked("slow.example", "A") == 1


def test_a_bug_reaches_who_asked_and_leaves_nothing(server: DNSServer) -> None:
    def broken(*_: object) -> NoReturn:
        raise KeyError

    async def test(resolver: Resolver) -> None:
        resolver._question = broken  # type: ignore[assignment]
        with pytest.raises(KeyError):
            await resolver.query("four.example", "A")
        assert not resolver._under_way

    run(server, test)


def test_name_servers_are_addresses() -> None:
    with pytest.raises(ConfigError, match=r"name server: 'dns\.example' is not an IP address"):
        Resolver([("dns.example", 53)])
    with pytest.raises(ConfigError, match="no name server given"):
        Resolver([])


def test_name_servers_of_the_system() -> None:
    assert Resolver()._servers.labels


def test_descriptors() -> None:
    import resource

    for soft, expected in ((1024, 512), (128, 64), (1, 1), (resource.RLIM_INFINITY, 512)):
        with mock.patch.object(resource, "getrlimit", return_value=(soft, soft)):
            assert lookups_dns._descriptors() == expected


def test_importing_is_cheap() -> None:
    dear = {"dns", "typing", "asyncio", "ipaddress", "socket", "dataclasses"}
    assert not dear & loaded(
        "import smtpd_filters.lookups.dns.resolver, smtpd_filters.lookups.dns.fcrdns"
    )


def test_what_is_started_is_asked_once_and_joined() -> None:
    async def ask(server: DNSServer) -> None:
        async with Resolver([(server.address, server.port)]) as resolver:
            assert resolver.known("slow.example", "A") is None
            resolver.start("Slow.example.", "A")
            resolver.start("slow.example", "A")
            assert resolver.known("slow.example", "A") is None
            found = await resolver.query("slow.example", "A")
            assert resolver.known("slow.example", "A") == found
            resolver.start("slow.example", "A")
            resolver.start("not a name", "A")
            assert resolver.known("not a name", "A") == NotFound(INVALID)
        assert resolver.known("four.example", "A") == Unavailable(CLOSED)
        resolver.start("four.example", "A")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with DNSServer(ZONE) as server:
        asyncio.run(ask(server))
        assert server.queries == [("slow.example", "A")]


def test_several_look_ups_have_their_order_and_no_tasks_beside_their_own(
    server: DNSServer,
) -> None:
    names = [f"missing{n}.example" for n in range(10)]
    names += ["four.example", "not a name", "slow.example", "four.example"]
    most = 0

    async def test(resolver: Resolver) -> None:
        nonlocal most
        assert await resolver.query_all([]) == []
        asking = asyncio.ensure_future(resolver.query_all([(name, "A") for name in names]))
        while not asking.done():
            most = max(most, len(asyncio.all_tasks()) - 2)
            await asyncio.sleep(0)
        four = Found(("127.0.0.4",), 300)
        others = [four, NotFound(INVALID), Found(("192.0.2.3",), 300), four]
        assert asking.result() == [NotFound(NXDOMAIN, 60)] * 10 + others

    for in_flight, ahead in ((1, 2), (2, 4), (50, 12)):
        most = 0
        server.queries.clear()
        run(server, test, in_flight=in_flight)
        assert most == ahead
        assert len(server.queries) == 12


def test_no_more_is_started_than_can_be_under_way() -> None:
    async def ask(server: DNSServer) -> int:
        async with Resolver([(server.address, server.port)], in_flight=2) as resolver:
            for number in range(100):
                resolver.start(f"{number}.drop.example", "A")
            return len(asyncio.all_tasks()) - 1

    with DNSServer(ZONE) as server:
        assert asyncio.run(ask(server)) == 4
