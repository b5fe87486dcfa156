from __future__ import annotations

import asyncio
import itertools
import socket
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.lookups.failover.breaker import REST
from smtpd_filters.lookups.failover.failures import CLOSED, OVERSIZED
from smtpd_filters.lookups.happy_eyeballs import connected
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.lookups.retry import SILENCES
from smtpd_filters.lookups.stream import Address, BadReplyError, Client, NotKeptError
from smtpd_filters.lookups.stream.connection import (
    HIGH,
    Connection,
    LostError,
    UnconnectedError,
    connect,
    over,
)
from smtpd_filters.runtime.pace import Pace
from tests.effort import brief, part
from tests.loading import loaded
from tests.lookups.stream.peer import (
    broken,
    close,
    echo,
    flood,
    half,
    hang,
    reset,
    says,
    served,
    until,
)
from tests.lookups.stream.silent import silent_address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.lookups.stream.peer import Script

#: Where nobody listens: a port below those that the system gives.
NOWHERE = Address("127.0.0.1", 1)
MIB = 1 << 20


async def whole_line(connection: Connection) -> bytes:
    """Read up to the end of a line and no further; a line has at most 100 bytes."""
    read = b""
    while not read.endswith(b"\n"):
        if len(read) >= 100:
            raise BadReplyError(OVERSIZED)
        part = await connection.read(1)
        if not part:
            raise LostError
        read += part
    return read


async def line(connection: Connection) -> bytes:
    """Send a line and return the server's."""
    await connection.write(b"hello\n")
    return await whole_line(connection)


async def kept_line(connection: Connection) -> bytes:
    """The same, after which the connection may be used again."""
    said = await line(connection)
    connection.keep()
    return said


async def write_on(connection: Connection) -> None:
    """Write until that fails."""
    while True:
        await connection.write(b"x" * 65536)


def client(*addresses: Address, **given: Any) -> Client:
    return Client(addresses, **{"timeout": 5.0, "deadline": 20.0, **given})


def asked(
    script: Script,
    exchange: Callable[[Connection], Awaitable[Any]] = line,
    *more: Script,
    path: str = "",
    **given: Any,
) -> Any:
    """Return the result of an exchange with a server with this script."""

    async def ask() -> Any:
        async with served(script, *more, path=path) as peer:
            one = client(peer.address, **given)
            said = await one.ask(exchange)
            await one.aclose()
            return said

    return asyncio.run(ask())


def test_a_reply() -> None:
    assert asked(echo) == b"hello\n"


def test_a_reply_over_a_unix_socket(tmp_path: Path) -> None:
    assert asked(echo, path=str(tmp_path / "socket")) == b"hello\n"


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        (hang, "timeout"),
        (close, "closed the connection"),
        (broken, "closed the connection"),
        (half, "reply cut short"),
        (flood, "oversized reply"),
        (says(b"x" * 100 + b"\n"), "oversized reply"),
    ],
)
def test_a_failure_is_a_value_with_its_cause(script: Script, cause: str) -> None:
    said = asked(script, timeout=0.2 if cause == "timeout" else 5.0)
    assert isinstance(said, Unavailable)
    assert said.cause.endswith(f" {cause}")
    assert said.cause.startswith("127.0.0.1:")


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    async def ask() -> Any:
        return await client(NOWHERE, Address(path=str(tmp_path / "socket"))).ask(line)

    assert asyncio.run(ask()) == Unavailable(
        f"127.0.0.1:1 connection refused, {tmp_path}/socket no such file or directory"
    )


def test_a_host_that_does_not_exist() -> None:
    said = asyncio.run(client(Address("host.invalid", 25)).ask(line))
    assert isinstance(said, Unavailable)


def test_a_name_of_a_host() -> None:
    async def ask() -> Any:
        async with served(echo) as peer:
            return await client(Address("localhost", peer.address.port)).ask(line)

    assert asyncio.run(ask()) == b"hello\n"


@pytest.mark.parametrize("script", [hang, close, broken, half, flood])
def test_the_next_server_is_asked(script: Script) -> None:
    seconds = brief(0.5) if script is hang else 5.0

    async def ask() -> tuple[Any, list[str]]:
        trouble: list[str] = []
        async with served(script) as bad, served(echo) as good:
            said = await client(NOWHERE, bad.address, good.address, timeout=seconds).ask(
                line, trouble=trouble
            )
        return said, trouble

    said, trouble = asyncio.run(ask())
    assert said == b"hello\n"
    assert trouble[0].startswith("127.0.0.1:1 connection refused, 127.0.0.1:")


def test_a_request_without_a_reply_is_repeated_once() -> None:
    assert asked(broken, line, echo) == b"hello\n"
    assert asked(close, line, echo) == b"hello\n"


def test_a_server_that_breaks_off_but_answers_a_ping_is_healthy() -> None:
    said = asked(broken, line, broken, echo, ping=ping)
    assert said.cause.endswith("closed the connection, but answers a ping")


def test_a_dead_server_costs_a_few_time_outs() -> None:
    async def ask() -> int:
        async with served(hang) as bad, served(echo) as good:
            one = client(bad.address, good.address, timeout=brief(0.3))
            for _ in range(SILENCES + 3):
                assert await one.ask(line) == b"hello\n"
            return bad.accepted

    assert asyncio.run(ask()) == SILENCES


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def noting(lines: list[str]) -> Callable[..., None]:
    """Return a log that keeps the events."""
    return lambda event, **_: lines.append(event)


async def ping(connection: Connection) -> None:
    """Send a line and read it."""
    await connection.write(b"ping\n")
    await whole_line(connection)


def test_a_lone_dead_server_costs_a_few_time_outs_and_is_tried_again() -> None:
    lines: list[str] = []

    async def ask() -> list[Any]:
        clock = Clock()
        async with served(*[hang] * (SILENCES + 1), echo) as peer:
            one = client(peer.address, timeout=0.1, clock=clock, note=noting(lines))
            said = [await one.ask(line) for _ in range(SILENCES)]
            assert lines == ["no longer waited for"]
            one.timeout = 60.0  # from now on a time-out would fail the test
            said += await asyncio.gather(*[one.ask(line) for _ in range(10)])
            assert peer.accepted == SILENCES
            clock.now = REST
            trial = asyncio.ensure_future(one.ask(line))
            await until(lambda: peer.accepted > SILENCES)
            said += [await one.ask(line)]
            trial.cancel()
            with pytest.raises(asyncio.CancelledError):
                await trial
            assert await one.ask(line) == b"hello\n"
            assert await asyncio.gather(*[one.ask(line) for _ in range(3)]) == [b"hello\n"] * 3
            return said

    said = asyncio.run(ask())
    assert lines == ["no longer waited for", "answers again"]
    causes = {each.cause.partition(" ")[2] for each in said}
    assert causes == {"timeout", "timeout; not asked again for now"}
    assert [each.cause.endswith("for now") for each in said] == [False] * SILENCES + [True] * 11


def test_requests_that_wait_for_their_turn_are_not_sent_in_vain() -> None:
    async def ask() -> tuple[Any, Any]:
        async with served(echo) as peer:
            one = client(peer.address, connections=1)
            turns = one.hosts[0].turns
            await turns.acquire()
            waiting = asyncio.ensure_future(one.ask(line))
            await asyncio.sleep(0)
            one.circuit.silent("silence", 0)
            one.circuit.open()
            trial = asyncio.ensure_future(one.ask(line))
            await asyncio.sleep(0)
            turns.release()
            said = await waiting
            assert peer.accepted == 0
            return said, await trial

    said, trial = asyncio.run(ask())
    assert said == Unavailable("silence; not asked again for now")
    assert trial == b"hello\n"


def test_requests_that_take_a_healthy_server_too_long_keep_no_others_from_it() -> None:
    """Any client can make some."""
    lines: list[str] = []

    async def ask() -> list[Any]:
        scripts = [*[hang] * (SILENCES - 1), hang, echo] * 3
        async with served(*scripts, echo) as peer:
            one = client(peer.address, timeout=brief(0.2), ping=ping, note=noting(lines))
            said = [await one.ask(line) for _ in range(3 * SILENCES)]
            one.timeout = 5.0
            return [*said, await one.ask(line)]

    *said, last = asyncio.run(ask())
    assert all(each.cause.endswith(" timeout") for each in said)
    assert last == b"hello\n"
    assert lines == []


@pytest.mark.parametrize(("ping_time", "opens"), [(0.01, True), (60.0, False)])
def test_a_server_that_works_for_a_ping_has_time_for_it(ping_time: float, *, opens: bool) -> None:
    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        try:
            async with asyncio.timeout(0.1):
                await reader.read()
        except TimeoutError:
            writer.write(line)

    async def ask() -> tuple[bool, Any]:
        async with served(*[hang] * SILENCES, slowly, slowly, slowly) as peer:
            one = client(peer.address, timeout=brief(0.6), ping=ping, ping_time=ping_time)
            for _ in range(SILENCES):
                assert isinstance(await one.ask(line), Unavailable)
            one.timeout = 60.0
            return one.circuit.is_open, await one.ask(line)

    is_open, last = asyncio.run(ask())
    assert is_open is opens
    assert (last == b"hello\n") is not opens


def test_servers_are_pinged_to_the_end_though_the_request_is_over() -> None:
    """Its deadline may be shorter than both."""
    lines: list[str] = []

    async def ask() -> None:
        async with served(hang) as peer:
            one = client(peer.address, timeout=brief(0.2), ping=ping, note=noting(lines))
            for _ in range(SILENCES - 1):
                assert isinstance(await one.ask(line), Unavailable)
            last = asyncio.ensure_future(one.ask(line))
            await until(lambda: peer.accepted > SILENCES)
            last.cancel()
            with pytest.raises(asyncio.CancelledError):
                await last
            await until(lambda: bool(lines))
            await one.aclose()

    asyncio.run(ask())
    assert lines == ["no longer waited for"]


def test_the_end_of_a_client_that_pings() -> None:
    async def ask() -> Any:
        async with served(hang) as peer:
            one = client(peer.address, timeout=brief(0.2), ping=ping)
            for _ in range(SILENCES - 1):
                assert isinstance(await one.ask(line), Unavailable)
            last = asyncio.ensure_future(one.ask(line))
            await until(lambda: peer.accepted > SILENCES)
            await one.aclose()
            return await last

    assert asyncio.run(ask()).cause.endswith(" timeout")


def test_a_trial_begins_with_a_ping() -> None:
    lines: list[str] = []

    async def ask() -> tuple[int, int]:
        clock = Clock()
        async with served(hang) as one, served(hang) as two:
            asked = client(
                one.address, two.address, timeout=0.1, ping=ping, clock=clock, note=noting(lines)
            )
            for _ in range(SILENCES):
                assert isinstance(await asked.ask(line), Unavailable)
            before = one.accepted, two.accepted
            assert lines == ["no longer waited for"]
            clock.now = REST
            said = await asked.ask(line)
            labels = f"{one.address.label}, {two.address.label}"
            assert said == Unavailable(f"{labels} no answer to a ping; not asked again for now")
            return one.accepted - before[0], two.accepted - before[1]

    assert asyncio.run(ask()) == (1, 1)
    assert lines == ["no longer waited for"]


def test_a_trial_that_takes_long_keeps_no_others_from_a_server_that_answers_its_ping() -> None:
    lines: list[str] = []

    async def ask() -> Any:
        clock = Clock()
        scripts = [*[hang] * (SILENCES + 1), echo, hang, echo]  # each with its pings
        async with served(*scripts) as peer:
            one = client(peer.address, timeout=0.1, ping=ping, clock=clock, note=noting(lines))
            for _ in range(SILENCES):
                assert isinstance(await one.ask(line), Unavailable)
            assert lines == ["no longer waited for"]
            one.timeout = 5.0
            clock.now = REST
            trial = asyncio.ensure_future(one.ask(line))
            await until(lambda: peer.accepted == SILENCES + 3)
            said = await one.ask(line)
            trial.cancel()
            with pytest.raises(asyncio.CancelledError):
                await trial
            return said

    assert asyncio.run(ask()) == b"hello\n"
    assert lines == ["no longer waited for", "answers again"]


def test_slow_requests_at_once_keep_no_others_from_a_server_that_answers_meanwhile() -> None:
    """Any client can make some, over several connections."""
    lines: list[str] = []

    async def ask() -> Any:
        async with served(*[hang] * SILENCES, echo) as peer:
            one = client(peer.address, timeout=brief(1.0), note=noting(lines))
            slow = [asyncio.ensure_future(one.ask(line)) for _ in range(SILENCES)]
            await until(lambda: peer.accepted == SILENCES)
            assert await one.ask(line) == b"hello\n"
            for each in await asyncio.gather(*slow):
                assert isinstance(each, Unavailable)
                assert each.cause.endswith(" timeout")
            return await one.ask(line)

    assert asyncio.run(ask()) == b"hello\n"
    assert lines == []


def test_a_server_that_refuses_connections_is_asked_each_time() -> None:
    """So it is used as soon as it is back."""
    lines: list[str] = []

    async def ask() -> Any:
        one = client(NOWHERE, note=noting(lines))
        for _ in range(2 * SILENCES):
            said = await one.ask(line)
            assert said == Unavailable("127.0.0.1:1 connection refused")
        return lines

    assert asyncio.run(ask()) == []


class Soon(Address):
    """An address with less time for a connection."""

    async def connect(self) -> Connection:
        try:
            return over(await connected(self.host, self.port, limit=0.05))
        except OSError as error:
            raise UnconnectedError(error) from None


def test_a_silent_address_is_asked_once() -> None:
    lines: list[str] = []

    async def ask() -> list[Any]:
        with silent_address() as (host, port):
            one = client(Soon(host, port), note=noting(lines))
            return [await one.ask(line) for _ in range(SILENCES + 1)]

    *said, last = [each.cause.partition(" ")[2] for each in asyncio.run(ask())]
    assert said == ["no connection"] * SILENCES
    assert last == "no connection; not asked again for now"
    assert lines == ["no longer waited for"]


def test_it_is_over_at_the_deadline() -> None:
    async def ask() -> Any:
        async with served(hang) as one, served(hang) as two:
            loop = asyncio.get_running_loop()
            started = loop.time()
            said = await client(one.address, two.address, timeout=5, deadline=0.2).ask(line)
            return said, loop.time() - started

    said, took = asyncio.run(ask())
    assert isinstance(said, Unavailable)
    assert took < 4


def test_no_more_connections_than_allowed_are_opened() -> None:
    most = [0]

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = await reader.readline()
        for _ in range(20):
            await asyncio.sleep(0)
            most[0] = max(most[0], peer_of[0].open)
        writer.write(said)

    peer_of: list[Any] = []

    async def ask() -> list[Any]:
        async with served(slow) as peer:
            peer_of.append(peer)
            one = client(peer.address, connections=3)
            return await asyncio.gather(*(one.ask(line) for _ in range(20)))

    assert asyncio.run(ask()) == [b"hello\n"] * 20
    assert 1 <= most[0] <= 3


# -- connections ------------------------------------------------------------------------------


def test_connections_are_closed_unless_they_are_kept() -> None:
    async def ask(exchange: Callable[[Connection], Awaitable[bytes]], idle: float) -> int:
        async with served(echo) as peer:
            one = client(peer.address, idle=idle)
            for _ in range(3):
                assert await one.ask(exchange) == b"hello\n"
            await one.aclose()
            return peer.accepted

    assert asyncio.run(ask(line, 0)) == 3
    assert asyncio.run(ask(line, 60)) == 3
    assert asyncio.run(ask(kept_line, 0)) == 3
    assert asyncio.run(ask(kept_line, 60)) == 1


def test_the_next_servers_connections_are_kept_as_well() -> None:
    async def ask() -> int:
        async with served(half) as bad, served(echo) as good:
            one = client(bad.address, good.address, idle=60)
            for _ in range(3):
                assert await one.ask(kept_line) == b"hello\n"
            await one.aclose()
            return good.accepted

    assert asyncio.run(ask()) == 1


def test_an_unused_connection_is_closed_after_a_time() -> None:
    async def ask() -> int:
        async with served(echo) as peer:
            one = client(peer.address, idle=0.02)
            await one.ask(kept_line)
            await until(lambda: not peer.open)
            await one.ask(kept_line)
            await one.aclose()
            return peer.accepted

    assert asyncio.run(ask()) == 2


def test_a_connection_is_used_for_its_lifetime() -> None:
    async def ask(lifetime: float) -> int:
        async with served(echo) as peer:
            one = client(peer.address, idle=60, lifetime=lifetime)
            for _ in range(3):
                await one.ask(kept_line)
            await one.aclose()
            return peer.accepted

    assert asyncio.run(ask(0)) == 3
    assert asyncio.run(ask(60)) == 1


@pytest.mark.parametrize("unasked", [b"", b"x", b"hello\n"])
def test_a_connection_with_anything_unread_is_not_used_again(unasked: bytes) -> None:
    """The server says more than it was asked for, or nothing more."""

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while said := await reader.readline():
            writer.write(said + unasked)

    async def ask() -> int:
        async with served(twice) as peer:
            one = client(peer.address, idle=60)
            for _ in range(3):
                assert await one.ask(kept_line) == b"hello\n"
            await one.aclose()
            return peer.accepted

    assert asyncio.run(ask()) == (3 if unasked else 1)


def test_a_connection_that_the_server_closed_meanwhile_costs_nothing() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())

    async def ask() -> int:
        async with served(once) as peer:
            one = client(peer.address, idle=60)
            for _ in range(5):
                assert await one.ask(kept_line) == b"hello\n"
            await one.aclose()
            return peer.accepted

    assert asyncio.run(ask()) == 5


def test_kept_connections_that_are_all_stale_cost_one_repeated_request() -> None:
    """The server takes the second request of each connection, and restarts."""

    async def stale(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await reader.readline()
        reset(writer)

    async def ask() -> Any:
        async with served(stale, stale, echo) as peer:
            one = client(peer.address, idle=60)
            await asyncio.gather(one.ask(kept_line), one.ask(kept_line))
            said = await one.ask(kept_line)
            await one.aclose()
            return said

    assert asyncio.run(ask()) == b"hello\n"


def test_an_exchange_that_is_given_up_leaves_nothing_behind() -> None:
    async def ask() -> None:
        async with served(hang) as peer:
            one = client(peer.address, connections=1, idle=60)
            for _ in range(3):
                work = asyncio.ensure_future(one.ask(kept_line))
                await until(lambda: peer.open > 0)
                work.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await work
                await until(lambda: not peer.open)

    asyncio.run(ask())


def test_a_closed_client_is_unavailable() -> None:
    async def ask() -> list[Any]:
        async with served(hang) as peer:
            one = client(peer.address)
            pending = asyncio.ensure_future(one.ask(line))
            await until(lambda: peer.open > 0)
            await one.aclose()
            return [await pending, await one.ask(line)]

    pending, later = asyncio.run(ask())
    assert CLOSED in pending.cause
    assert later == Unavailable(CLOSED)


def test_a_socket_whose_queue_is_full_is_waited_for(tmp_path: Path) -> None:
    """asyncio would take the connection for established."""
    path = str(tmp_path / "socket")

    async def ask() -> Any:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen(0)
            waiting = []
            try:
                for _ in range(64):
                    one = socket.socket(socket.AF_UNIX)
                    waiting.append(one)
                    one.setblocking(False)  # noqa: FBT003  # its only parameter
                    one.connect(path)
            except BlockingIOError:
                pass
            else:  # another system than Linux, or a queue without end
                pytest.skip("the queue of this system doesn't fill")
            asked = asyncio.ensure_future(client(Address(path=path), timeout=10).ask(line))
            await asyncio.sleep(0)
            for one in waiting:
                one.close()
            server.setblocking(False)  # noqa: FBT003  # its only parameter
            loop = asyncio.get_running_loop()
            while True:
                accepted, _ = await loop.sock_accept(server)
                with accepted:
                    if await loop.sock_recv(accepted, 10):
                        await loop.sock_sendall(accepted, b"yes\n")
                        return await asked

    assert asyncio.run(ask()) == b"yes\n"


# -- what an exchange reads and writes ----------------------------------------------------------


def test_the_forms_of_reading() -> None:
    async def read(connection: Connection) -> list[bytes]:
        await connection.write(b"\n")
        return [
            await connection.read(2),
            await connection.read_to_end(100),
            await connection.read(),
        ]

    assert asked(says(b"fghij"), read) == [b"fg", b"hij", b""]


@pytest.mark.parametrize("size", [100, HIGH, 3 * HIGH])
def test_a_read_has_a_limit(size: int) -> None:
    async def to_end(connection: Connection) -> bytes:
        await connection.write(b"\n")
        return await connection.read_to_end(size)

    data = b"x" * (size - 1) + b"\n"
    assert asked(says(data), to_end) == data
    assert isinstance(asked(says(b"x" + data), to_end), Unavailable)


def test_what_is_not_read_is_not_taken_from_the_server() -> None:
    sent = [0]

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        while sent[0] < 64 * MIB:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent[0] += 65536

    async def read(connection: Connection) -> bytes:
        await connection.write(b"\n")
        before = -1
        while sent[0] != before:
            before = sent[0]
            await asyncio.sleep(0.05)
        return await connection.read(1)

    assert asked(pour, read) == b"x"
    assert sent[0] < 32 * MIB


def test_what_is_sent_is_made_no_faster_than_it_is_taken() -> None:
    made = [0]

    async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
        await asyncio.sleep(30)

    def chunks() -> Any:
        for _ in range(1000):
            made[0] += 65536
            yield b"x" * 65536

    async def send(connection: Connection) -> bool:
        return await connection.send(chunks())

    assert isinstance(asked(idle, send, timeout=brief(0.5)), Unavailable)
    assert made[0] < 32 * MIB


@pytest.mark.parametrize("ends", ["close", "reset", "half-close"])
@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_a_reply_may_come_before_all_is_sent(tmp_path: Path, ends: str, over: str) -> None:
    """The server says why it doesn't read on, and closes with bytes of ours unread."""

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"too large\n")
        await writer.drain()
        if ends == "half-close":
            writer.write_eof()
            await reader.read(1000)
        elif ends == "close":
            writer.transport.abort()

    async def send(connection: Connection) -> tuple[bool, bytes]:
        whole = await connection.send(itertools.repeat(b"x" * 65536, 1000))
        return whole, await whole_line(connection)

    path = str(tmp_path / "socket") if over == "unix" else ""
    for _ in range(10):
        assert asked(early, send, path=path) == (False, b"too large\n")


def test_a_reply_to_the_last_chunk_is_not_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply arrives while the client waits for its turn after the last chunk."""

    async def slow(_pace: Pace, _work: int) -> None:
        await asyncio.sleep(0.01)

    async def send(connection: Connection) -> tuple[bool, bytes]:
        whole = await connection.send([b"hello", b"\n"])
        return whole, await whole_line(connection)

    monkeypatch.setattr(Pace, "admit", slow)
    assert asked(echo, send) == (True, b"hello\n")


@pytest.mark.parametrize("way", ["write", "send"])
def test_nothing_is_written_to_a_broken_connection(
    caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """Each write raises, and nothing is logged."""

    async def write(connection: Connection) -> None:
        await connection.write(b"hello\n")
        await until(lambda: connection.ended)
        if way == "send":
            await connection.send([b"x"] * 100)
        for _ in range(100):
            await connection.write(b"x")

    said = asked(broken, write)
    assert isinstance(said, Unavailable)
    assert caplog.records == []


def test_many_small_writes_to_a_connection_that_breaks(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")

    async def write() -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            connection = await connect(Address(path=path))
            server.accept()[0].close()
            assert not await connection.send([b"x"] * 1000)
            connection.abort()
            await asyncio.sleep(0)

    asyncio.run(write())
    assert caplog.records == []


def test_a_failed_write_does_not_lose_what_has_arrived(tmp_path: Path) -> None:
    """The reply is there, but a write that fails is noticed first."""
    path = str(tmp_path / "socket")

    async def write() -> bytes:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            connection = await connect(Address(path=path))
            accepted, _ = server.accept()
            accepted.sendall(b"too large\n")
            accepted.close()
            with pytest.raises(LostError):
                await write_on(connection)
            return await whole_line(connection)

    assert asyncio.run(write()) == b"too large\n"


def test_a_chunk_that_cannot_be_made_ends_it() -> None:
    def chunks() -> Any:
        yield b"x"
        raise OSError("disk on fire")

    async def send(connection: Connection) -> bool:
        return await connection.send(chunks())

    assert asked(hang, send) == Unavailable("disk on fire")


def test_an_exchange_decides_about_the_reply() -> None:
    async def invalid(connection: Connection) -> None:
        await line(connection)
        raise BadReplyError("not what was asked for")

    async def full(connection: Connection) -> None:
        await line(connection)
        raise NotKeptError("no space left")

    async def buggy(connection: Connection) -> None:
        await line(connection)
        raise KeyError("x")

    assert asked(echo, invalid).cause.endswith(" not what was asked for")
    assert asked(echo, full) == Unavailable("no space left")
    assert asked(echo, buggy).cause.endswith(" KeyError: 'x'")


@settings(max_examples=part(50), deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.booleans())
def test_whatever_a_server_sends_comes_to_a_value(pieces: list[bytes], resets: bool) -> None:  # noqa: FBT001  # drawn
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if resets:
            reset(writer)

    said = asked(say)
    sent = b"".join(pieces)
    if isinstance(said, Unavailable):
        assert resets or b"\n" not in sent[:100]
    else:
        assert said == sent[: sent.index(b"\n") + 1]


def test_importing_it_does_not_import_asyncio() -> None:
    assert "asyncio" not in loaded("import smtpd_filters.lookups.stream")


class _Elsewhere:
    """A server that is reached in another way, and allows one connection."""

    label, most = "elsewhere", 1

    def __init__(self, address: Address, *, rest: float = 0.0) -> None:
        self._address = address
        self.rest = rest
        self.connections = 0

    async def connect(self) -> Connection:
        self.connections += 1
        return await connect(self._address)


def test_a_server_that_is_no_address_and_allows_one_connection() -> None:
    async def run() -> None:
        async with served(echo) as peer:
            server = _Elsewhere(peer.address)
            one = Client([server], timeout=20.0, deadline=40.0, idle=60.0)
            said = await asyncio.gather(*(one.ask(kept_line) for _ in range(5)))
            await one.aclose()
            assert said == [b"hello\n"] * 5
            assert server.connections == 1

    asyncio.run(run())


def test_a_server_that_answers_nothing_gets_one_connection_in_a_while() -> None:
    async def run() -> None:
        async with served(close) as peer:
            server = _Elsewhere(peer.address, rest=3600.0)
            one = Client([server], timeout=20.0, deadline=40.0, ping=line)
            said = [await one.ask(line) for _ in range(3)]
            assert server.connections == 3  # the request, the same again, and the ping
            assert (
                said
                == [Unavailable("elsewhere closed the connection; not asked again for now")] * 3
            )
            server.rest = 0.0
            one.hosts[0].unanswered()  # nothing changes
            assert isinstance(await one.ask(line), Unavailable)
            assert server.connections == 3
            await one.aclose()

    asyncio.run(run())


def test_a_server_gets_connections_again_when_it_replies() -> None:
    async def run() -> None:
        async with served(close, close, close, echo) as peer:
            server = _Elsewhere(peer.address, rest=1e-9)
            one = Client([server], timeout=20.0, deadline=40.0, ping=line)
            assert await one.ask(line) == b"hello\n"  # in the second round
            server.rest = 3600.0
            assert [await one.ask(line) for _ in range(3)] == [b"hello\n"] * 3
            assert server.connections == 7
            await one.aclose()

    asyncio.run(run())


def test_a_request_that_a_server_rejects_keeps_no_others_from_it() -> None:
    """A server that answers the ping does not rest, however often a client repeats the request."""

    async def run() -> None:
        async with served(close, close, echo, close, close, echo, echo) as peer:
            server = _Elsewhere(peer.address, rest=3600.0)
            one = Client([server], timeout=20.0, deadline=40.0, ping=line)
            for _ in range(2):
                assert isinstance(await one.ask(line), Unavailable)
            assert await one.ask(line) == b"hello\n"
            await one.aclose()

    asyncio.run(run())
