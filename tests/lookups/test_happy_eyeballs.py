from __future__ import annotations

import asyncio
import errno
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.lookups import happy_eyeballs
from smtpd_filters.lookups.happy_eyeballs import connected_in, interleaved
from tests.lookups.stream.silent import names, silent_address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

V4, V6 = socket.AF_INET, socket.AF_INET6


#: A test that waited for a silent address would take as long as `limit`.
connected = partial(happy_eyeballs.connected, delay=0.01, limit=60.0)


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server at 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def run(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Run it; fail if it leaves a task behind."""

    async def whole() -> Any:
        async with asyncio.timeout(30):
            result = await ask()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(whole())


@pytest.mark.parametrize("silent_first", [True, False])
def test_a_silent_address_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
    port: int,
    silent_first: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    async def ask() -> Any:
        with await connected("mail.example", port) as sock:
            return sock.getpeername()[0]

    with silent_address(port) as silent:
        hosts = [silent, "127.0.0.1"] if silent_first else ["127.0.0.1", silent]
        names(monkeypatch, *hosts, port=port)
        assert run(ask) == "127.0.0.1"


def test_a_refused_address_is_followed_by_the_next_at_once(
    monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    names(monkeypatch, "::1", "127.0.0.9", "127.0.0.1", port=port)

    async def ask() -> Any:
        with await connected("mail.example", port, delay=60.0) as sock:
            return sock.getpeername()[0]

    assert run(ask) == "127.0.0.1"


def test_the_cause_is_not_that_of_a_silent_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cause(*hosts: Any, port: int) -> BaseException:
        names(monkeypatch, *hosts, port=port)
        with pytest.raises(OSError) as caught:  # noqa: PT011  # which one is looked at below
            await connected("mail.example", port, limit=0.05)
        return caught.value

    async def ask() -> None:
        with silent_address() as silent:
            port = silent[1]
            refused = await cause(silent, "127.0.0.9", port=port)
            assert isinstance(refused, ConnectionRefusedError)
            assert (refused.errno, refused.strerror) == (errno.ECONNREFUSED, "Connection refused")
            assert isinstance(await cause(silent, port=port), TimeoutError)

    run(ask)


def test_a_host_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, port=1)
    with pytest.raises(ConnectionError, match="no address"):
        run(lambda: connected("mail.example", 1))


def test_a_lack_of_descriptors_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits for one then, instead of failing."""
    names(monkeypatch, "127.0.0.1", "127.0.0.2", port=1)

    class Short(socket.socket):
        def __init__(self, family: int = -1, kind: int = -1, *rest: Any, **more: Any) -> None:
            if family == V4 and not rest and not more:
                raise OSError(errno.EMFILE, "Too many open files")
            super().__init__(family, kind, *rest, **more)

    async def ask() -> int | None:
        monkeypatch.setattr(socket, "socket", Short)
        try:
            await connected("mail.example", 1)
        except OSError as error:
            return error.errno
        finally:
            monkeypatch.undo()
        return None

    assert run(ask) == errno.EMFILE


def test_a_cancelled_caller_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        with silent_address() as silent:
            names(monkeypatch, silent, silent, "127.0.0.9", port=silent[1])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await connected("mail.example", silent[1])

    run(ask)


def test_the_address_that_is_too_late_is_closed(port: int) -> None:
    async def ask() -> None:
        connect = happy_eyeballs._connect
        both = [asyncio.create_task(connect(V4, ("127.0.0.1", port), 60.0)) for _ in range(2)]
        await asyncio.wait(both)
        won = await happy_eyeballs._winner(both, None)
        assert won is not None
        (late,) = both
        await happy_eyeballs._drop(both)
        assert late.result().fileno() == -1
        won.close()

    run(ask)


def test_an_address_starts_no_thread(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """A sandbox may allow none if there is no name to be resolved."""

    def refuse(*_: object) -> None:
        raise AssertionError("a thread")

    async def ask() -> str:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with await connected("127.0.0.1", port) as sock:
            return str(sock.getpeername()[0])

    assert run(ask) == "127.0.0.1"


def test_families_take_turns_and_the_first_stays_first() -> None:
    places = [(V6, "a"), (V6, "b"), (V6, "a"), (V4, "c"), (V6, "d"), (V4, "e")]
    ordered = [(V6, "a"), (V4, "c"), (V6, "b"), (V4, "e"), (V6, "d")]
    assert interleaved(places) == ordered
    assert interleaved([]) == []


def test_a_blocking_caller(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    with silent_address(port) as silent:
        names(monkeypatch, silent, "127.0.0.1", port=port)
        with connected_in("mail.example", port, 20.0) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"
            assert sock.gettimeout() == 20.0


@pytest.mark.parametrize("codes", [[errno.EINPROGRESS, errno.EALREADY], [0], [errno.EISCONN]])
def test_a_system_that_establishes_connections_sooner_or_later(
    monkeypatch: pytest.MonkeyPatch, port: int, codes: list[int]
) -> None:
    connect_ex = socket.socket.connect_ex

    def answer(sock: socket.socket, place: Any) -> int:
        code = left.pop(0)
        if code not in {errno.EINPROGRESS, errno.EALREADY}:
            sock.settimeout(60)
            assert connect_ex(sock, place) == 0
            sock.settimeout(0)
        return code

    async def ask() -> Any:
        with await connected("127.0.0.1", port) as sock:
            return sock.getpeername()[1]

    left = list(codes)
    monkeypatch.setattr(socket.socket, "connect_ex", answer)
    assert run(ask) == port
    assert left == []


def test_a_connection_that_is_established_between_two_calls(
    monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    connect_ex = socket.socket.connect_ex

    def answer(sock: socket.socket, place: Any) -> int:
        sock.settimeout(60)
        while connect_ex(sock, place) != errno.EISCONN:  # Linux says so at the second call
            pass
        sock.settimeout(0)
        return errno.EALREADY

    async def ask() -> Any:
        with await connected("127.0.0.1", port) as sock:
            return sock.getpeername()[1]

    monkeypatch.setattr(socket.socket, "connect_ex", answer)
    assert run(ask) == port
