from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import ssl
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.failover.failures import CLOSED
from smtpd_filters.lookups.http import (
    BadReplyError,
    Client,
    Endpoint,
    NotKeptError,
    Request,
    Response,
    intake,
    trust,
)
from smtpd_filters.lookups.http.intake import HEAD, PIECE, Intake
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.lookups.retry import SILENCES
from smtpd_filters.runtime.pace import TURN, Pace, pace
from smtpd_filters.testing.rspamd.stub import BEHAVIOURS, Answer, RspamdStub
from smtpd_filters.testing.server.credentials import certificate
from tests.effort import brief, part
from tests.loading import loaded
from tests.lookups.stream import peer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from smtpd_filters.lookups.http.messages import Body

    Work = Callable[[Client], Awaitable[Any]]

OK = Answer(b"{}")
#: Behaviours by which an answer comes all the same.
ANSWERING = {"", "trickle", "early", "close-after", "stale"}
#: What a failure is called, and how often the server was asked for it.
CAUSES = {
    "drop": ("timeout", 1),
    "stall": ("timeout", 1),
    "close": ("closed the connection, but answers a ping", 2),
    "reset": ("closed the connection, but answers a ping", 2),
    "cut": ("reply cut short", 2),
    "reset-half": ("reply cut short", 2),
    "endless": ("oversized reply", 1),
    "garbage": ("invalid HTTP response", 1),
}


class Said(NamedTuple):
    """A response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def read(response: Response) -> Said:
    """Read a response to its end."""
    return Said(response.status, response.headers, await response.read())


async def read_early(response: Response) -> tuple[int, bytes, bool]:
    """The status, the content, and whether the reply was early."""
    return response.status, await response.read(), response.early


async def read_delimited(response: Response) -> tuple[bytes, bool]:
    """The content, and whether a missing part of it would have been noticed."""
    return await response.read(), response.delimited


def served(*urls: str, work: Work, **settings: Any) -> Any:
    """Run `work` with a client, and close it."""

    async def to_the_end() -> Any:
        client = Client(urls, **{"timeout": 5.0, "deadline": 20.0, **settings})
        try:
            return await work(client)
        finally:
            await client.aclose()
            # What is being closed is closed in the next turn of the loop.
            await asyncio.sleep(0)

    return asyncio.run(to_the_end())


def ask(
    *urls: str,
    body: Body = b"body",
    headers: tuple[tuple[str, str], ...] = (),
    size: int | None = None,
    limit: int = 1 << 16,
    **settings: Any,
) -> Said | Unavailable:
    request = Request("/checkv2", headers, body, size=size, limit=limit)
    said = served(*urls, work=lambda client: client.ask(request, read), **settings)
    assert isinstance(said, Said | Unavailable)
    return said


@pytest.fixture
def stub() -> Iterator[RspamdStub]:
    with RspamdStub(OK) as server:
        yield server


@pytest.fixture
def reserved() -> Iterator[socket.socket]:
    """A port where nobody listens, and which the system gives nobody."""
    with socket.socket() as bound:
        # But for a server of ours: two may be bound where both say so, and one listens.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        yield bound


@pytest.fixture
def refusing(reserved: socket.socket) -> str:
    """The url of that port."""
    return f"http://127.0.0.1:{reserved.getsockname()[1]}"


# -- what is sent and what comes back ------------------------------------------------------


def test_a_reply_is_the_servers(stub: RspamdStub) -> None:
    stub.answer = Answer(b"\x00said", status=503, headers=(("Message-Offset", "12"),))
    said = ask(stub.url, headers=(("IP", "192.0.2.1"), ("Rcpt", "<a@x>"), ("Rcpt", "<b@x>")))
    assert isinstance(said, Said)
    assert (said.status, said.body) == (503, b"\x00said")
    assert said.headers.get("message-offset") == "12"
    (request,) = stub.requests
    assert (request.method, request.path, request.body) == ("POST", "/checkv2", b"body")
    assert request.headers[1:] == (
        ("IP", "192.0.2.1"),
        ("Rcpt", "<a@x>"),
        ("Rcpt", "<b@x>"),
        ("Content-Length", "4"),
    )


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_a_reply_may_come_in_chunks(stub: RspamdStub, size: int, *, chunked: bool) -> None:
    stub.answer = Answer(b"x" * size, chunked=chunked)
    said = ask(stub.url, limit=size)
    assert isinstance(said, Said)
    assert said.body == b"x" * size


@pytest.mark.parametrize("known", [False, True])
def test_a_body_may_be_made_as_it_is_sent(stub: RspamdStub, *, known: bool) -> None:
    chunks = [b"%d" % (n % 10) * 50_000 for n in range(40)]
    said = ask(stub.url, body=lambda: iter(chunks), size=2_000_000 if known else None)
    assert isinstance(said, Said)
    (request,) = stub.requests
    assert request.body == b"".join(chunks)
    assert request.get("Content-Length") == ("2000000" if known else None)
    assert request.get("Transfer-Encoding") == (None if known else "chunked")


def test_a_body_is_read_no_faster_than_it_is_taken() -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1 << 16
            yield bytes(1 << 16)

    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        assert ask(url, body=endless, timeout=0.2) == Unavailable(f"{url} timeout")
    # What the kernel's two buffers take, and a little.
    assert read < 32 << 20


def test_fields_are_sent_as_utf8(stub: RspamdStub) -> None:
    ask(stub.url, headers=(("Helo", "b\u00fccher"),))
    assert "Helo: bücher\r\n".encode() in stub.requests[0].head


def test_a_field_that_is_not_utf8_is_never_sent(stub: RspamdStub) -> None:
    said = ask(stub.url, headers=(("User", "\udcff"),))
    assert said == Unavailable(f"{stub.url} not sent: a header field that is not UTF-8")
    assert stub.asked == 0


@pytest.mark.parametrize("text", ["a\r\nPass: all", "a\nb", "a\rb"])
@pytest.mark.parametrize("where", [0, 1])
def test_a_field_of_more_than_one_line_is_never_sent(
    stub: RspamdStub, text: str, where: int
) -> None:
    field = (text, "x") if where == 0 else ("X", text)
    said = ask(stub.url, headers=(field,))
    assert said == Unavailable(f"{stub.url} not sent: a header field of more than one line")
    assert stub.asked == 0


@pytest.mark.parametrize("limit", [99_999, 100_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_reply_is_read_up_to_its_limit(stub: RspamdStub, limit: int, *, chunked: bool) -> None:
    stub.answer = Answer(b"x" * 100_000, chunked=chunked)
    said = ask(stub.url, limit=limit)
    if limit < 100_000:
        assert said == Unavailable(f"{stub.url} oversized reply")
    else:
        assert isinstance(said, Said)


def test_a_redirection_is_a_reply(stub: RspamdStub) -> None:
    stub.answer = Answer(status=302, headers=(("Location", "http://127.0.0.1:1/"),))
    said = ask(stub.url)
    assert isinstance(said, Said)
    assert said.status == 302


# -- connections ---------------------------------------------------------------------------


def requests(number: int, *, at_once: bool) -> Work:
    async def work(client: Client) -> list[Any]:
        each = [Request("/checkv2", (), b"%d" % n, limit=1 << 16) for n in range(number)]
        if at_once:
            return await asyncio.gather(*(client.ask(one, read) for one in each))
        return [await client.ask(one, read) for one in each]

    return work


def test_connections_are_kept(stub: RspamdStub) -> None:
    said = served(stub.url, work=requests(20, at_once=False))
    assert all(isinstance(each, Said) for each in said)
    assert (stub.asked, stub.connections) == (20, 1)


def test_no_more_connections_than_allowed_are_opened(stub: RspamdStub) -> None:
    stub.answer = Answer(b"{}", delay=0.01)
    said = served(stub.url, work=requests(30, at_once=True), connections=4)
    assert all(isinstance(each, Said) for each in said)
    assert stub.connections == 4
    assert stub.most_at_once == 4
    assert sorted(int(request.body) for request in stub.requests) == list(range(30))


@pytest.mark.parametrize("name", ["rspamd.sock", "with space"])
@pytest.mark.parametrize("prefix", ["", "unix:"])
def test_a_server_may_listen_on_a_socket(tmp_path: Path, name: str, prefix: str) -> None:
    path = tmp_path / name
    with RspamdStub(OK, listen=str(path)) as stub:
        said = served(f"{prefix}{path}", work=requests(5, at_once=False))
        assert all(isinstance(each, Said) for each in said)
        assert (stub.asked, stub.connections) == (5, 1)
        assert stub.requests[0].get("Host") == "localhost"
    said = ask(str(path))
    assert said == Unavailable(f"{path} no such file or directory")


def test_a_reply_that_closes_the_connection_is_followed_by_a_new_one(stub: RspamdStub) -> None:
    stub.answer = Answer(b"{}", headers=(("Connection", "close"),))
    said = served(stub.url, work=requests(3, at_once=False))
    assert all(isinstance(each, Said) for each in said)
    assert stub.connections == 3


@pytest.mark.parametrize("behaviour", ["stale", "close-after"])
def test_a_connection_that_went_stale_costs_nothing(stub: RspamdStub, behaviour: str) -> None:
    stub.answer = Answer(b"{}", behaviour=behaviour)
    said = served(stub.url, work=requests(2, at_once=False))
    assert all(isinstance(each, Said) for each in said)
    assert (stub.asked, stub.connections) == (2, 2)


def test_a_restart_between_two_requests_goes_unnoticed(stub: RspamdStub) -> None:
    async def work(client: Client) -> list[Any]:
        said = await requests(1, at_once=False)(client)
        stub.stop()
        stub.start()
        return [*said, *await requests(1, at_once=False)(client)]

    said = served(stub.url, work=work)
    assert all(isinstance(each, Said) for each in said)
    assert stub.asked == 2


REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%d%d"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"

if TYPE_CHECKING:
    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    With = Callable[[Client], Awaitable[Any]]


async def ended() -> None:
    """End all other tasks, and what they begin, and their transports."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        # Who has just been let in gets his task in the next turn; what is closed is, too.
        for _ in range(3):
            await asyncio.sleep(0)


def numbering(
    writers: list[asyncio.StreamWriter], reply: bytes = REPLY, unasked: bytes = b""
) -> Serve:
    """Serve replies with the numbers of connection and request, and bytes behind each of them."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        number = len(writers)
        for count in range(9):
            await reader.readuntil(b"body")
            writer.write(reply % (number, count) + unasked)

    return serve


def by_hand(
    serve: Serve,
    work: With,
    *further: str,
    scheme: str = "http",
    tls: ssl.SSLContext | None = None,
    **settings: Any,
) -> Any:
    """Run `work` with a client of a server that does what the stub doesn't."""

    complaints: list[dict[str, Any]] = []

    async def to_the_end() -> Any:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, complaint: complaints.append(complaint)
        )

        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            except asyncio.CancelledError:  # of which Python 3.12.1 complains
                writer.transport.abort()
            finally:
                writer.close()

        server = await asyncio.start_server(guarded, "127.0.0.1", 0, ssl=tls)
        url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = Client([url, *further], **{"timeout": 5.0, "deadline": 20.0, **settings})
        try:
            return await work(client)
        finally:
            await client.aclose()
            server.close()
            await ended()
            # A future with an unretrieved exception reports it when it is collected.
            gc.collect(0)

    gc.disable()  # what is made meanwhile stays in the youngest generation
    try:
        said = asyncio.run(to_the_end())
    finally:
        gc.enable()
    assert complaints == []
    return said


@pytest.fixture
def intakes(monkeypatch: pytest.MonkeyPatch) -> list[Intake]:
    """The connection of each exchange."""
    found = []
    begin = Intake.begin

    def noted(self: Intake, *args: Any) -> None:
        found.append(self)
        begin(self, *args)

    monkeypatch.setattr(Intake, "begin", noted)
    return found


@pytest.mark.parametrize("closes", [False, True])
def test_unrequested_data_is_not_the_next_reply(intakes: list[Intake], *, closes: bool) -> None:
    """Proxies say 408 on a connection that has been idle for long."""
    connections = 0
    unasked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        for count in range(9):
            await reader.readuntil(b"body")
            writer.write(REPLY % (number, count))
            await unasked.wait()
            writer.write(TIMED_OUT)
            if closes:
                return

    async def work(client: Client) -> list[bytes]:
        said = []
        for _ in range(3):
            reply = await client.ask(Request("/checkv2", (), b"body"), read)
            assert isinstance(reply, Said)
            said.append(reply.body)
            unasked.set()
            while not intakes[-1].transport.is_closing():  # noqa: ASYNC110  # it is asyncio's
                await asyncio.sleep(0)
            unasked.clear()
        return said

    assert by_hand(serve, work) == [b"10", b"20", b"30"]


@pytest.mark.parametrize("unasked", [REPLY % (0, 0), b"\r\n", b"H", b""])
@pytest.mark.parametrize("turns", [0, 3])
def test_nothing_that_came_since_is_a_reply_to_the_next_request(unasked: bytes, turns: int) -> None:
    """Not even what came after the last turn of the loop, or part of a line."""
    writers: list[asyncio.StreamWriter] = []

    async def work(client: Client) -> list[bytes]:
        said = []
        for _ in range(3):
            reply = await client.ask(Request("/checkv2", (), b"body"), read)
            assert isinstance(reply, Said)
            said.append(reply.body)
            # It is sent at once, and the next request before the loop looks at any socket.
            writers[-1].write(unasked) if unasked else writers[-1].write_eof()
            for _ in range(turns):
                await asyncio.sleep(0)
        return said

    assert by_hand(numbering(writers), work) == [b"10", b"20", b"30"]


@pytest.mark.parametrize("made", [False, True])
def test_nothing_that_came_before_the_first_byte_is_a_reply(
    monkeypatch: pytest.MonkeyPatch, *, made: bool
) -> None:
    """A connection is taken in one turn of the loop, and the request sent in a later one."""
    writers: list[asyncio.StreamWriter] = []
    begin, begun = Intake.begin, []

    def begin_late(self: Intake, *args: Any) -> None:
        begin(self, *args)
        begun.append(self)
        if len(begun) == 2:
            writers[-1].write(REPLY % (0, 0))

    monkeypatch.setattr(Intake, "begin", begin_late)

    async def work(client: Client) -> list[bytes]:
        body: Body = (lambda: iter([b"body"])) if made else b"body"
        request = Request("/checkv2", (), body, size=4)
        said = [await client.ask(request, read) for _ in range(2)]
        return [each.body for each in said if isinstance(each, Said)]

    assert by_hand(numbering(writers), work) == [b"10", b"20"]


@pytest.mark.parametrize("unasked", [REPLY % (0, 0), b"\r\n", b"H", b"HTTP/1.1 100 C\r\n\r\n"])
@pytest.mark.parametrize(
    "reply", [REPLY, CHUNKED + b"2\r\n%d%d\r\n0\r\n\r\n"], ids=["length", "chunked"]
)
def test_nothing_in_the_same_read_is_a_reply_to_the_next_request(
    reply: bytes, unasked: bytes
) -> None:
    said = by_hand(numbering([], reply, unasked), requests_for_body(3))
    assert [each.body for each in said] == [b"10", b"20", b"30"]


def test_a_server_that_speaks_first_is_no_http_server() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(b"220 mx.example.org ESMTP\r\n")
        await reader.read()

    said = by_hand(serve, requests(2, at_once=False))
    assert [each.cause.partition(" ")[2] for each in said] == ["invalid HTTP response"] * 2
    assert connections == 2


@pytest.mark.parametrize("behaviour", ["closes", "reads on", "reads no more"])
@pytest.mark.parametrize("known", [False, True])
def test_a_reply_may_come_before_all_is_sent(behaviour: str, *, known: bool) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        if behaviour == "reads no more":
            await asyncio.Event().wait()
        while behaviour == "reads on" and await reader.read(1 << 16):
            pass

    async def work(client: Client) -> Any:
        chunks = [bytes(1 << 16)] * 400
        size = 400 << 16 if known else None
        request = Request("/checkv2", (), lambda: iter(chunks), size=size)
        return await client.ask(request, read_early)

    assert by_hand(serve, work) == (413, b"no", True)
    assert connections == 1


@pytest.mark.parametrize(
    ("said", "body", "connections"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n{}", b"{}", 3),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"{}", 3),
        (
            (
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
            ),
            b"{}",
            1,
        ),
        (
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"1;a=b\r\n{\r\n1\r\n}\r\n0\r\nX-Trailer: 1\r\n\r\n"
            ),
            b"{}",
            1,
        ),
        (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n{}", b"{}", 1),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", 1),
    ],
    ids=["1.0", "1.0 with a length", "interim", "chunks and a trailer", "no reason", "no content"],
)
def test_forms_of_a_reply(said: bytes, body: bytes, connections: int) -> None:
    made = 0

    async def work(client: Client) -> list[Any]:
        one = Request("/checkv2", (), b"body")
        return [await client.ask(one, read_delimited) for _ in range(3)]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made += 1
        while True:
            await reader.readuntil(b"body")
            writer.write(said)
            if said.startswith(b"HTTP/1.0"):
                return

    delimited = b"Content-Length" in said or b"chunked" in said
    assert by_hand(serve, work) == [(body, delimited)] * 3
    assert made == connections


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}x0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2x\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\n{}"[:30],
        b"{}",
    ],
)
def test_an_incomplete_reply_is_invalid(said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)

    (reply,) = by_hand(serve, requests_for_body(1))
    assert isinstance(reply, Unavailable)


def requests_for_body(number: int) -> Work:
    """Ask so often, with a body by which a server by hand knows the end of a request."""

    async def work(client: Client) -> list[Any]:
        one = Request("/checkv2", (), b"body")
        return [await client.ask(one, read) for _ in range(number)]

    return work


@pytest.mark.parametrize("size", [1 << 16, 1 << 22])
def test_a_connection_is_kept_after_a_large_body(stub: RspamdStub, size: int) -> None:
    async def work(client: Client) -> list[Any]:
        body = [bytes(1 << 16)] * (size >> 16)
        request = Request("/checkv2", (), lambda: iter(body), size=size)
        return [await client.ask(request, read_early) for _ in range(5)]

    assert served(stub.url, work=work) == [(200, b"{}", False)] * 5
    assert (stub.asked, stub.connections) == (5, 1)


# -- failures ------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_failure_is_a_value_with_its_cause(stub: RspamdStub, behaviour: str) -> None:
    stub.answer = Answer(b"{}", behaviour=behaviour)
    said = ask(stub.url, timeout=brief(1) if behaviour in {"drop", "stall"} else 5)
    if behaviour in ANSWERING:
        assert isinstance(said, Said)
        assert stub.asked == 1
    else:
        cause, asked = CAUSES[behaviour]
        assert said == Unavailable(f"{stub.url} {cause}")
        assert stub.asked == asked


@pytest.mark.parametrize("behaviour", sorted(CAUSES))
def test_a_large_body_changes_nothing_of_that(stub: RspamdStub, behaviour: str) -> None:
    stub.answer = Answer(b"{}", behaviour=behaviour)
    cause, asked = CAUSES[behaviour]
    said = ask(
        stub.url,
        body=lambda: iter([bytes(1 << 16)] * 32),
        size=32 << 16,
        timeout=brief(1) if behaviour in {"drop", "stall"} else 5,
    )
    assert said == Unavailable(f"{stub.url} {cause}")
    assert stub.asked == asked


@pytest.mark.parametrize("behaviour", sorted(CAUSES))
def test_the_next_server_is_asked(stub: RspamdStub, behaviour: str) -> None:
    timeout = brief(1) if behaviour in {"drop", "stall"} else 5
    with RspamdStub(Answer(b"{}", behaviour=behaviour)) as broken:
        said = ask(broken.url, stub.url, timeout=timeout)
    assert isinstance(said, Said)
    assert stub.asked == 1


def test_a_server_that_breaks_off_but_answers_a_ping_is_healthy(stub: RspamdStub) -> None:
    """Rspamd closes the connection when a message is larger than its max_message."""
    stub.answer = lambda asked: Answer(b"{}", behaviour="" if asked.body == b"small" else "close")

    async def work(client: Client) -> list[Any]:
        bodies = [b"large"] * 2 * SILENCES + [b"small"]
        said = [await client.ask(Request("/checkv2", (), body), read) for body in bodies]
        assert not client.may_pass(0)
        return said

    with RspamdStub(OK) as other:
        said = served(stub.url, other.url, work=work)
        assert all(isinstance(each, Said) for each in said)
        # Each of the large ones came twice, as for all the client knows the connection was stale.
        assert (stub.asked, other.asked) == (4 * SILENCES + 1, 2 * SILENCES)


def test_a_server_that_breaks_off_and_answers_no_ping_is_dead(stub: RspamdStub) -> None:
    methods = []

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        methods.append(head.partition(b" ")[0])

    async def work(client: Client) -> bool:
        for _ in range(2 * SILENCES):
            said = await client.ask(Request("/checkv2", (), b"body"), read)
            assert isinstance(said, Said)
        return client.may_pass(0)

    assert by_hand(serve, work, stub.url)
    # The request, again, and a ping, which aiohttp itself may repeat, until it is passed over.
    assert methods.count(b"POST") == 2 * SILENCES
    assert methods.count(b"GET") in {SILENCES, 2 * SILENCES}


def test_a_good_reply_comes_with_what_went_wrong_before(stub: RspamdStub, refusing: str) -> None:
    request = Request("/checkv2", (), b"body")

    async def work(client: Client) -> Any:
        return await client.ask(request, read)

    assert isinstance(served(refusing, stub.url, work=work), Said)
    assert request.trouble == f"{refusing} connection refused"
    assert isinstance(served(stub.url, work=work), Said)
    assert request.trouble == ""


def test_no_try_takes_longer_than_its_time(
    stub: RspamdStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.answer = Answer(b"{}", behaviour="cut")
    times = []

    def timeout(seconds: float | None) -> asyncio.Timeout:
        times.append(seconds)
        return asyncio.Timeout(None)

    monkeypatch.setattr(asyncio, "timeout", timeout)
    assert ask(stub.url, timeout=7, deadline=100) == Unavailable(f"{stub.url} reply cut short")
    assert [seconds for seconds in times if seconds is not None] == [7, 7]


def test_all_causes_are_in_the_result(stub: RspamdStub, refusing: str) -> None:
    stub.answer = Answer(behaviour="garbage")
    assert ask(refusing, stub.url) == Unavailable(
        f"{refusing} connection refused, {stub.url} invalid HTTP response"
    )


def test_a_host_that_does_not_exist() -> None:
    # RFC 6761 section 6.4: "invalid" names never exist.
    said = ask("http://rspamd.invalid:11333")
    assert isinstance(said, Unavailable)
    assert said.cause.startswith("http://rspamd.invalid:11333 ")


@pytest.mark.parametrize(
    ("scheme", "certified", "cause"),
    [
        ("https", "by itself", "bad certificate: self-signed certificate"),
        ("https", "for another name", "bad certificate: IP address mismatch"),
        ("https", "", "no TLS: "),
        ("http", "by itself", "closed the connection"),
    ],
)
def test_invalid_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, certified: str, cause: str
) -> None:
    monkeypatch.setattr(trust, "context", trust.context.__wrapped__)  # loads them again
    context = None
    if certified:
        file = tmp_path / "pem"
        file.write_text("".join(certificate()))
        if certified == "for another name":
            monkeypatch.setenv("SSL_CERT_FILE", str(file))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(file)

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    said = by_hand(serve, requests_for_body(1), scheme=scheme, tls=context)
    assert isinstance(said[0], Unavailable)
    assert said[0].cause.partition(" ")[2].startswith(cause)


def test_a_server_that_comes_back_within_the_pause_is_asked_again(refusing: str) -> None:
    stub = RspamdStub(OK, listen=refusing.removeprefix("http://"))

    async def work(client: Client) -> Any:
        asking = asyncio.ensure_future(client.ask(Request("/checkv2", (), b"body"), read))
        # It has been refused by then, and waits.
        for _ in range(20):
            await asyncio.sleep(0)
        stub.start()
        return await asking

    try:
        said = served(refusing, work=work)
    finally:
        stub.stop()
    assert isinstance(said, Said)


def test_an_invalid_reply_is_a_failure(stub: RspamdStub) -> None:
    async def read(said: Response) -> bytes:
        body = await said.read()
        if body == b"{}":
            raise BadReplyError("no verdict")
        return body

    async def work(client: Client) -> Any:
        return await client.ask(Request("/checkv2", (), b"body"), read)

    with RspamdStub(Answer(b"fine")) as other:
        assert served(stub.url, other.url, work=work) == b"fine"
    assert served(stub.url, work=work) == Unavailable(f"{stub.url} no verdict")
    # It has said what it has to say.
    assert stub.asked == 2


def test_a_bug_in_reading_a_reply_is_a_failure_as_well(stub: RspamdStub) -> None:
    async def fail(_: Response) -> float:
        return 1 / 0

    async def work(client: Client) -> Any:
        return await client.ask(Request("/checkv2", (), b"body"), fail)

    said = served(stub.url, work=work)
    assert isinstance(said, Unavailable)
    assert "ZeroDivisionError" in said.cause


def test_a_reply_that_cannot_be_kept_ends_it(stub: RspamdStub) -> None:
    async def fail(_: Response) -> float:
        raise NotKeptError("no space left")

    async def work(client: Client) -> Any:
        return await client.ask(Request("/checkv2", (), b"body"), fail)

    with RspamdStub(OK) as other:
        assert served(stub.url, other.url, work=work) == Unavailable("no space left")
        assert (stub.asked, other.asked) == (1, 0)


@pytest.mark.parametrize("size", [HEAD >> 1, HEAD + 10_000])
def test_interim_responses_have_a_bound(size: int) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"body")
        writer.write(interim * (size // len(interim)) + REPLY % (1, 2))
        await writer.drain()

    (said,) = by_hand(serve, requests_for_body(1))
    if size < HEAD:
        assert isinstance(said, Said)
    else:
        assert isinstance(said, Unavailable)
        assert said.cause.endswith(" oversized response header")


def test_a_reply_waits_for_its_reader(stub: RspamdStub) -> None:
    """It is not held as a whole."""
    stub.answer = Answer(b"x" * (4 << 20))
    most = 0

    async def slowly(response: Response) -> int:
        nonlocal most
        size = 0
        async for piece in response.pieces():
            most = max(most, len(piece))
            size += len(piece)
            for _ in range(50):
                await asyncio.sleep(0)
        return size

    async def work(client: Client) -> Any:
        return await client.ask(Request("/checkv2", (), b"body", limit=8 << 20), slowly)

    assert served(stub.url, work=work) == 4 << 20
    assert most <= intake.HIGH + intake.READ


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What a server needs whose certificate nobody looks at."""
    file = tmp_path / "pem"
    file.write_text("".join(certificate()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    monkeypatch.setattr(trust, "context", lambda: unverified)
    return context


def test_connections_are_kept_over_tls(tls: ssl.SSLContext) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.readuntil(b"body"):
            writer.write(REPLY % (0, connections))

    said = by_hand(serve, requests_for_body(9), scheme="https", tls=tls)
    assert [each.body for each in said] == [b"01"] * 9


async def read_to_the_body(reader: asyncio.StreamReader) -> None:
    """Read a request with the body `body`; end the connection of a ping, which has none."""
    if b"/checkv2" not in await reader.readuntil(b"\r\n\r\n"):
        raise ConnectionError
    await reader.readexactly(len(b"body"))


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "said",
    [
        pytest.param(CHUNKED + b"1\r\nx\r\n" * part(10_000) + b"0\r\n\r\n", id="chunks"),
        pytest.param(b"HTTP/1.1 100 C\r\n\r\n" * part(3000), id="responses"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
            + b"HTTP/1.1 100 C\r\n\r\n" * part(3000),
            id="after the content",
        ),
    ],
)
def test_replies_that_come_at_once_are_parsed_at_a_pace(
    said: bytes, scheme: str, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than two turns' worth of bytes, though 64 connections are readable.

    Each has its end behind the reply, which doesn't overtake what waits.
    """
    turns, waiting = [0], [0]
    parse, update = Intake._parse, Intake.buffer_updated

    def parsed(self: Intake, size: int) -> None:
        turns[-1] += size
        parse(self, size)

    def updated(self: Intake, size: int) -> None:
        update(self, size)
        waiting.append(len(self._unparsed))

    monkeypatch.setattr(Intake, "_parse", parsed)
    monkeypatch.setattr(Intake, "buffer_updated", updated)
    came = []
    all_came = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_to_the_body(reader)
        came.append(writer)
        if len(came) == 64:
            for each in came:
                each.write(said)
            all_came.set()
        await all_came.wait()
        await writer.drain()

    async def work(client: Client) -> list[Any]:
        async def tick() -> None:
            while True:
                turns.append(0)
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        request = Request("/checkv2", (), b"body")
        replies = await asyncio.gather(*(client.ask(request, read) for _ in range(64)))
        ticking.cancel()
        return replies

    patience = {"timeout": 60.0, "deadline": 100.0}
    context = tls if scheme == "https" else None
    replies = by_hand(serve, work, scheme=scheme, tls=context, **patience)
    if said.startswith(CHUNKED):
        assert {reply.body for reply in replies} == {b"x" * part(10_000)}
    assert sum(turns) >= 64 * 1024
    assert max(turns) <= 2 * TURN * 2 + PIECE
    assert 0 < max(waiting) <= 2 * intake.READ


def test_the_end_does_not_wait_for_unread_data(intakes: list[Intake]) -> None:
    """Neither does aiohttp, which waits for the end when it closes its connections."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"body")
        writer.write(b"HTTP/1.1 100 C\r\n\r\n" * 3000)

    async def work(client: Client) -> None:
        asking = asyncio.create_task(client.ask(Request("/checkv2", (), b"body"), read))
        async with asyncio.timeout(20):
            while not (intakes and intakes[-1]._queued):  # noqa: ASYNC110  # it is asyncio's
                await asyncio.sleep(0)
        intakes[-1].transport.close()
        while not intakes[-1]._end:
            pace().renew = lambda: None  # type: ignore[method-assign]
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.sleep(0)
        assert intakes[-1]._end is None

    by_hand(serve, work)


class ClosedTwice(asyncio.Transport):
    """asyncio's transport for TLS after two calls of `close`: it lacks its protocol."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock})

    def _fail(self) -> None:
        raise AttributeError("'NoneType' object has no attribute '_abort'")

    abort = pause_reading = resume_reading = _fail


def test_a_connection_that_was_closed_twice_is_aborted() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            intake = Intake(ClosedTwice(ours), asyncio.Protocol())
            intake._pause()
            intake._resume()
            intake.abort()

    asyncio.run(main())


def test_a_large_reply_is_read_in_pieces_at_a_pace(
    stub: RspamdStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted = []
    admit = Pace.admit

    async def counted(self: Pace, work: int) -> None:
        admitted.append(work)
        await admit(self, work)

    monkeypatch.setattr(Pace, "admit", counted)
    stub.answer = Answer(b"x" * (1 << 20))
    said = ask(stub.url, limit=1 << 20)
    assert isinstance(said, Said)
    assert len(admitted) > 10
    assert max(admitted) < TURN


@pytest.fixture
def elsewhere() -> Iterator[subprocess.Popen[str]]:
    """A server in a process of its own, which has its own descriptors; `url` is the first line."""
    command = [sys.executable, "-m", "smtpd_filters.testing.rspamd.stub", "--log"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        yield server
        server.kill()


@pytest.mark.parametrize("number", [1, 20])
def test_requests_wait_for_descriptors(elsewhere: subprocess.Popen[str], number: int) -> None:
    """Out of descriptors, they wait for one to be given back, and then for its connection."""
    assert elsewhere.stdout is not None
    url = elsewhere.stdout.readline().split()[1]

    async def work(client: Client) -> Any:
        with all_descriptors_taken() as give_back:
            asyncio.get_running_loop().call_later(0.15, give_back)
            return await asyncio.gather(
                *(client.ask(Request("/checkv2", (), b"body"), read) for _ in range(number))
            )

    said = served(url, work=work)
    assert [type(each) for each in said] == [Said] * number
    _, log = elsewhere.communicate(timeout=20)
    assert log.endswith(f"{number} requests over 1 connections\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_request_waits_for_a_descriptor_until_its_deadline(stub: RspamdStub, host: str) -> None:
    url = stub.url.replace("127.0.0.1", host)

    async def work(client: Client) -> Any:
        with all_descriptors_taken():
            return await client.ask(Request("/checkv2", (), b"body"), read)

    # On a busy machine the deadline may come while the name is resolved.
    tries = (served(url, work=work, deadline=seconds) for seconds in (0.25, 1, 4))
    said = next(each for each in tries if each != Unavailable(f"{url} timeout"))
    assert said == Unavailable(f"{url} too many open files")
    assert stub.asked == 0


@contextmanager
def all_descriptors_taken() -> Iterator[Callable[[], None]]:
    """Take every descriptor that the process may have; what is yielded gives one back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield lambda: os.close(taken.pop())
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_body_that_cannot_be_read_ends_it(stub: RspamdStub) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 10
        raise OSError("disk on fire")

    with RspamdStub(OK) as other:
        assert ask(stub.url, other.url, body=broken) == Unavailable("disk on fire")
        assert (stub.asked, other.asked) == (0, 0)
        assert ask(stub.url, other.url, body=broken, size=100) == Unavailable("disk on fire")


@pytest.mark.parametrize("size", [9, 11])
def test_a_body_of_another_size_ends_the_request(stub: RspamdStub, size: int) -> None:
    said = ask(stub.url, body=lambda: iter([b"x" * 10]), size=size, timeout=1)
    assert isinstance(said, Unavailable)
    assert stub.asked <= 1  # what is too long is found out behind it


PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.0 999 \xff\r\n",
        b"Content-Length: 2\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Upgrade: websocket\r\nConnection: upgrade\r\n",
        b"X: " + b"y" * 9000 + b"\r\n",
        b": no name\r\n",
        b"\r\n",
        b"2\r\n{}\r\n",
        b"0\r\n\r\n",
        b"zz\r\n",
        b"{}",
    ]
)


@settings(max_examples=part(60))
@given(st.lists(PIECES | st.binary(max_size=20), max_size=8))
def test_whatever_a_server_sends_comes_to_a_value(pieces: list[bytes]) -> None:
    async def to_the_end() -> Any:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                await reader.readuntil(b"\r\n\r\n")
                writer.writelines(pieces)
            # All of it is on its way: the kernel takes so little at once.
            writer.transport.abort()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = Client([url], timeout=5, deadline=0.1)
        try:
            request = Request("/checkv2", (), b"body", limit=100)
            return await client.ask(request, read)
        finally:
            await client.aclose()
            server.close()
            await ended()

    said = asyncio.run(to_the_end())
    assert isinstance(said, Said | Unavailable)
    if isinstance(said, Said):
        assert len(said.body) <= 100


# -- time ----------------------------------------------------------------------------------


def test_a_time_out_is_not_repeated(stub: RspamdStub) -> None:
    stub.answer = Answer(behaviour="drop")
    assert ask(stub.url, timeout=brief(0.5)) == Unavailable(f"{stub.url} timeout")
    assert stub.asked == 1


def test_it_is_over_at_the_deadline(stub: RspamdStub) -> None:
    stub.answer = Answer(behaviour="drop")
    with RspamdStub(Answer(behaviour="drop")) as other:
        timeout = brief(1)
        said = ask(stub.url, other.url, timeout=timeout, deadline=1.5 * timeout)
    assert said == Unavailable(f"{stub.url} timeout, {other.url} timeout")


def test_a_request_without_a_turn_goes_to_the_next_server(stub: RspamdStub) -> None:
    stub.answer = Answer(behaviour="drop")
    with RspamdStub(OK) as other:
        work = requests(8, at_once=True)
        said = served(stub.url, other.url, work=work, connections=1, timeout=brief(1))
    assert all(isinstance(each, Said) for each in said)
    # The first one had the turn; who waited then found that time was up.
    assert other.asked == 8


def test_a_dead_server_costs_a_few_time_outs(stub: RspamdStub) -> None:
    stub.answer = Answer(behaviour="drop")
    with RspamdStub(OK) as other:
        said = served(stub.url, other.url, work=requests(10, at_once=False), timeout=brief(0.7))
        assert all(isinstance(each, Said) for each in said)
        assert (stub.asked, other.asked) == (3, 10)


def test_a_request_passes_over_a_server_that_fails_meanwhile(stub: RspamdStub) -> None:
    stub.answer = Answer(b"{}", behaviour="cut", delay=0.01)
    with RspamdStub(OK) as other:
        said = served(stub.url, other.url, work=requests(8, at_once=True), connections=1)
    assert all(isinstance(each, Said) for each in said)
    assert (stub.asked, other.asked) == (3, 8)


def test_too_long_a_wait_for_a_turn_is_the_cause(stub: RspamdStub) -> None:
    async def work(client: Client) -> Any:
        await client.hosts[0].turns.acquire()
        return await client.ask(Request("/checkv2", (), b"body"), read)

    said = served(stub.url, work=work, connections=1, timeout=0.02)
    assert said == Unavailable(f"{stub.url} too many pending requests")
    assert stub.asked == 0


def test_a_server_is_not_blamed_for_the_time_that_was_spent_waiting(stub: RspamdStub) -> None:
    stub.answer = Answer(behaviour="drop")

    async def work(client: Client) -> bool:
        turns = client.hosts[0].turns
        for _ in range(SILENCES):
            await turns.acquire()
            asyncio.get_running_loop().call_later(0.1, turns.release)
            said = await client.ask(Request("/checkv2", (), b"body"), read)
            assert isinstance(said, Unavailable)
        return client.may_pass(0)

    urls = stub.url, stub.url
    assert not served(*urls, work=work, connections=1, timeout=0.2, deadline=0.25)


def test_a_dead_server_is_tried_again_by_one_request(stub: RspamdStub) -> None:
    now = 0.0

    async def work(client: Client) -> list[Any]:
        nonlocal now
        await requests(4, at_once=False)(client)
        now = 100.0
        stub.answer = Answer(b"{}", delay=0.02)
        return [*await requests(5, at_once=True)(client)]

    stub.answer = Answer(behaviour="drop")
    with RspamdStub(OK) as other:
        said = served(stub.url, other.url, work=work, timeout=brief(0.7), clock=lambda: now)
        assert all(isinstance(each, Said) for each in said)
        assert stub.asked == 3 + 1
        assert other.asked == 4 + 4


def noting(lines: list[str]) -> Callable[..., None]:
    """Return a log that keeps the events."""
    return lambda event, **_: lines.append(event)


def test_slow_requests_keep_no_others_from_a_server_that_answers_a_ping(stub: RspamdStub) -> None:
    lines: list[str] = []
    stub.answer = Answer(behaviour="drop")
    work = requests(2 * SILENCES, at_once=False)
    said = served(stub.url, work=work, timeout=brief(0.3), note=noting(lines))
    assert said == [Unavailable(f"{stub.url} timeout")] * 2 * SILENCES
    assert lines == []


def test_a_lone_server_that_answers_no_ping_is_not_waited_for() -> None:
    lines: list[str] = []

    async def work() -> tuple[list[Any], int]:
        async with peer.served(peer.hang) as server:
            url = f"http://{server.address.label}"
            client = Client((url,), timeout=brief(0.3), deadline=20.0, note=noting(lines))
            said = await requests(2 * SILENCES, at_once=False)(client)
            await client.aclose()
            return [each.cause.removeprefix(f"{url} ") for each in said], server.accepted

    causes, connections = asyncio.run(work())
    assert causes[:SILENCES] == ["timeout"] * SILENCES
    assert causes[SILENCES:] == ["timeout; not asked again for now"] * SILENCES
    assert lines == ["no longer waited for"]
    assert connections == SILENCES + 1  # the ping


# -- the end -------------------------------------------------------------------------------


def test_a_request_that_is_given_up_leaves_nothing_behind(stub: RspamdStub) -> None:
    stub.answer = Answer(behaviour="drop")

    async def work(client: Client) -> Any:
        asking = asyncio.ensure_future(client.ask(Request("/checkv2", (), b"body"), read))
        while not stub.asked:  # noqa: ASYNC110  # that counts in another thread
            await asyncio.sleep(0.001)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        stub.answer = OK
        return await requests(1, at_once=False)(client)

    (said,) = served(stub.url, work=work, connections=1)
    assert isinstance(said, Said)
    # The connection that waits for the old reply was not used again.
    assert stub.connections == 2


def test_a_closed_client_is_unavailable(stub: RspamdStub) -> None:
    async def work(client: Client) -> Any:
        await client.aclose()
        return await client.ask(Request("/checkv2", (), b"body"), read)

    assert served(stub.url, work=work) == Unavailable(CLOSED)
    assert stub.asked == 0


# -- addresses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("http://localhost:11333", "http://localhost:11333"),
        ("http://127.0.0.1:11333/", "http://127.0.0.1:11333"),
        ("http://[::1]:11333", "http://[::1]:11333"),
        ("http://rspamd", "http://rspamd"),
        ("https://mail.example.org/rspamd/", "https://mail.example.org/rspamd"),
        ("/run/rspamd/worker.sock", "/run/rspamd/worker.sock"),
        ("unix:/run/rspamd/worker.sock", "/run/rspamd/worker.sock"),
    ],
)
def test_addresses(url: str, label: str) -> None:
    assert Endpoint(url).label == label


@pytest.mark.parametrize(
    "url",
    [
        "", "localhost", "localhost:11333", "ftp://localhost", "http://", "http://:11333",
        "http://localhost:0", "http://localhost:99999", "http://localhost:x", "http://[::1",
        "http://user:word@localhost", "http://localhost/?a", "http://localhost/#a",
        "http://localhost?", "http://localhost/a#", "http://local\\host/", "http://local<host>",
        "http://local host", "http://localhost/\n", "http://b\u00fccher", "unix:run",
        "/" + "x" * 107, "/run\0", "http://a,http://b",
    ],
)  # fmt: skip
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError):
        Client([url], timeout=1, deadline=1)


def test_a_path_in_front_is_kept(stub: RspamdStub) -> None:
    ask(f"{stub.url}/rspamd/")
    assert stub.requests[0].path == "/rspamd/checkv2"


def test_importing_it_does_not_import_aiohttp() -> None:
    assert not {"aiohttp", "asyncio"} & loaded("import smtpd_filters.lookups.http")


def test_a_lack_of_aiohttp_is_named() -> None:
    code = (
        "from smtpd_filters.lookups.http import Client\n"
        "from smtpd_filters.errors import ConfigError\n"
        "try: Client(['http://a'], timeout=1, deadline=1)\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", code],
        capture_output=True,
        check=True,
        timeout=60,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout == "aiohttp is needed to ask http://a: No module named 'aiohttp'\n"
