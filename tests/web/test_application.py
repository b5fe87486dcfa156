"""The service of the page, with each release of aiohttp that it may have."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientSession, web

from smtpd_filters.errors import ConfigError
from smtpd_filters.journal.query import Journal
from smtpd_filters.startup import STRAY
from smtpd_filters.web import connections
from smtpd_filters.web.application import Listening, application, serve
from smtpd_filters.web.bounds import DEFAULT, Bounds
from smtpd_filters.web.guard import Access

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


class OldRunner(web.AppRunner):
    """The runner of aiohttp 3.8: what it doesn't know goes to each connection, which fails."""

    def __init__(self, app: web.Application, *, access_log: None, **unknown: Any) -> None:
        assert not unknown
        super().__init__(app, access_log=access_log)


class OldBase:
    """Its base class."""

    def __init__(self, *, handle_signals: bool = False) -> None:
        pass


class OldSite(web.TCPSite):
    """A site of aiohttp 3.8."""

    given: float = 0.0

    def __init__(self, runner: web.AppRunner, host: str, port: int, **more: Any) -> None:
        type(self).given = more["shutdown_timeout"]
        super().__init__(runner, host, port)


@asynccontextmanager
async def served(
    directory: Path,
    listening: Listening = Listening("127.0.0.1", 0),  # noqa: B008  # immutable
    reload: Callable[[], object] = lambda: None,
    bounds: Bounds = DEFAULT,
) -> AsyncIterator[str]:
    """Serve a journal, and have SIGTERM end it; the address."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    access = Access()
    app = application(lambda: Journal(str(directory)), access, bounds=bounds)
    serving = serve(app, [listening], access, ready.set_result, reload, bounds)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(serving)
        yield await ready
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("old", [False, True])
def test_it_answers_until_sigterm(
    *, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        monkeypatch.setattr(web, "AppRunner", OldRunner)
        monkeypatch.setattr(web, "BaseRunner", OldBase)
        monkeypatch.setattr(web, "TCPSite", OldSite)

    async def run() -> None:
        reload = asyncio.Event()
        async with served(tmp_path, reload=reload.set) as address:
            async with ClientSession() as session, session.get(f"http://{address}/") as response:
                assert response.status == 200
            assert asyncio.get_running_loop().get_exception_handler() is not None
            for number in (*STRAY, signal.SIGHUP):
                os.kill(os.getpid(), number)
            await reload.wait()

    before = {number: signal.getsignal(number) for number in STRAY}
    try:
        asyncio.run(run())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert OldSite.given == (2.0 if old else 0.0)


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ",
        (
            b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nSec-Fetch-Site: same-origin\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 9\r\n\r\nform"
        ),
        b"GET /static/page.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ],
    ids=["nothing", "half a header", "half a form", "a response"],
)
def test_a_connection_that_waits_for_nothing_ends(request_: bytes, tmp_path: Path) -> None:
    bounds = Bounds(watch=0.01, idle=0.05, form=0.05)

    async def run() -> None:
        async with served(tmp_path, bounds=bounds) as address:
            host, _, port = address.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(request_)
            with suppress(ConnectionError):
                async with asyncio.timeout(20):
                    while await reader.read(1 << 20):
                        pass
            writer.close()

    asyncio.run(run())


FORM = (
    b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nSec-Fetch-Site: same-origin\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize(
    ("begin", "go_on"),
    [
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"a: b\r\n"),
        (FORM + b"0\r\n", b"a: b\r\n"),
        (FORM + b"1;", b"a=b;"),
        (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
        (b"GET /live/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"),
    ],
    ids=["header", "trailer", "extension of a chunk", "requests", "behind a live feed"],
)
def test_a_connection_that_sends_without_end_ends(
    begin: bytes, go_on: bytes, tmp_path: Path
) -> None:
    bounds = Bounds(watch=1000.0, idle=1000.0, form=1000.0, beat=1000.0, unread=1000.0)

    async def run() -> None:
        async with served(tmp_path, bounds=bounds) as address:
            host, _, port = address.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(begin)
            with suppress(ConnectionError):
                async with asyncio.timeout(20):
                    while not reader.at_eof():
                        writer.write(go_on * 1000)
                        await writer.drain()
                        await asyncio.sleep(0)
            writer.transport.abort()

    asyncio.run(run())


LONG = b"a: " + b"b" * 7000 + b"\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + LONG * 2 + b"\r\n", b"200"),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"a: b\r\n" * 3000, b""),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"a: b\r\n" * 3000 + b"\r\n", b""),
        (FORM + b"20\r\n" + b"a" * 32 + b"\r\n0\r\n\r\n", b"403"),
        (FORM + b"20\r\n" + b"a" * 32 + b"\r\n" * 40_000, b""),
    ],
    ids=["long header", "header behind lines", "too long a header", "form", "too long a form"],
)
@pytest.mark.parametrize("piece", [1 << 20, 1000])
def test_the_size_of_a_request(request_: bytes, status: bytes, piece: int, tmp_path: Path) -> None:
    bounds = Bounds(watch=1000.0, idle=1000.0, form=1000.0)

    async def run() -> None:
        async with served(tmp_path, bounds=bounds) as address:
            host, _, port = address.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            response = b""
            with suppress(ConnectionError):
                async with asyncio.timeout(20):
                    for at in range(0, len(request_), piece):
                        writer.write(request_[at : at + piece])
                        await writer.drain()
                        await asyncio.sleep(0)
                    response = await reader.read()
            writer.transport.abort()
            assert response[9:12] == status

    asyncio.run(run())


def test_a_connection_serves_one_request(tmp_path: Path) -> None:
    request = b"GET /static/page.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

    async def run() -> None:
        async with served(tmp_path) as address:
            for path in (b"/static/page.js", b"/nowhere"):
                host, _, port = address.partition(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(request.replace(b"/static/page.js", path) * 2)
                response = await reader.read()
                assert response.count(b"HTTP/1.1 ") == 1
                assert b"Connection: close\r\n" in response
                writer.close()

    asyncio.run(run())


def test_connections_without_a_descriptor_are_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    failures = connections.Failures(clock=lambda: now[0])
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(failures.handle)
    context = {"message": "m", "exception": OSError(errno.EMFILE, "Too many"), "socket": None}
    for at in range(200):
        now[0] = at / 100
        loop.call_exception_handler(context)
    [line] = caplog.messages
    assert line.startswith("no more connections can be accepted: Too many; ")
    now[0] = connections.REPORTING
    loop.call_exception_handler(context)
    assert caplog.messages == [line, line]
    loop.call_exception_handler({"message": "another", "exception": OSError(errno.EMFILE, "x")})
    assert caplog.messages[2] == "another"
    loop.close()


def test_those_that_wait_longest_end_if_there_are_too_many() -> None:
    known = connections.Connections()
    early, late, busy = range(100), range(100, 1000), range(1000, 1100)
    known._busy.update(busy)
    assert known.useless(early, 1.0) == []
    ended = known.useless([*late, *busy, *early], 2.0)
    assert len(ended) == 1100 - DEFAULT.connections
    assert set(early) <= set(ended)
    assert not set(busy) & set(ended)
    assert set(known.useless([*late, *busy], 2.5)) < set(late)
    known._busy.clear()
    assert known.useless(busy, 2.5 + DEFAULT.idle) == []
    assert known.useless(busy, 3.0 + DEFAULT.idle) == list(busy)
    assert known.useless([], 0.0) == []
    assert not known._since


def test_a_socket_of_another_process_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    access = Access()

    async def run() -> None:
        closed = asyncio.Event()

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()
            await writer.wait_closed()
            closed.set()

        app = application(lambda: Journal(str(tmp_path)), access)
        other = await asyncio.start_unix_server(answer, path)
        async with other:
            with pytest.raises(ConfigError, match="another process serves this socket"):
                await serve(app, [Listening(path=str(path))], access, lambda _text: None)
            assert path.is_socket()
            await closed.wait()

    asyncio.run(run())


def test_a_socket_is_removed_if_it_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    other = socket.socket(socket.AF_UNIX)

    async def run(*, replaced: bool) -> None:
        async with served(tmp_path, Listening(path=str(path))):
            if replaced:
                path.rename(tmp_path / "old")  # which keeps the inode
                other.bind(str(path))

    asyncio.run(run(replaced=False))
    assert not path.exists()
    asyncio.run(run(replaced=True))
    assert path.is_socket()
    other.close()
