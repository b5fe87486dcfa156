"""The LDAP client against servers that follow a script."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager

import pytest

from smtpd_filters.errors import ConfigError
from smtpd_filters.tables.remote.backend import AnswerError, BackendError
from smtpd_filters.tables.remote.ldap_client import client as module
from smtpd_filters.tables.remote.ldap_client.ber import element, integer, octets
from smtpd_filters.tables.remote.ldap_client.client import Account, Client, Server
from smtpd_filters.tables.remote.ldap_client.filters import encode
from smtpd_filters.tables.remote.ldap_client.messages import Search
from tests.effort import brief

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from typing import Any

SEARCH = Search("dc=x", encode("(uid=a)"), ["uid"])


def message(number: int, tag: int, *parts: bytes) -> bytes:
    return element(0x30, integer(number), element(tag, *parts))


def done(number: int, tag: int = 0x65, code: int = 0) -> bytes:
    return message(number, tag, integer(code, 0x0A), octets(b""), octets(b""))


def entry(number: int, value: bytes) -> bytes:
    attribute = element(0x30, octets(b"uid"), element(0x31, octets(value)))
    return message(number, 0x64, octets(b""), element(0x30, attribute))


@asynccontextmanager
async def served(
    script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Server]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Server(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


@asynccontextmanager
async def client_of(
    *servers: Server, seconds: float = 5, tls: bool = False
) -> AsyncIterator[Client]:
    context = ssl.create_default_context() if tls else None
    client = Client(servers, Account(), timeout=seconds, context=context, starts_tls=tls)
    try:
        yield client
    finally:
        await client.aclose()


async def failure(client: Client, most: int = 100, room: int = module.ROOM) -> str:
    with pytest.raises(BackendError) as raised:
        await client.search(SEARCH, most, room)
    return str(raised.value)


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "it does not speak LDAP"),
        (b"\x30\x84\x7f\xff\xff\xff", "a message of 2147483653 bytes"),
        (b"\x30\x03\x02\x01", "closed the connection"),
        (done(0, 0x78, 52), "closes the connection: unavailable"),
        (done(1, code=51), "busy"),
        (b"", "closed the connection"),
    ],
)
def test_what_a_broken_server_says_is_a_failure(reply: bytes, cause: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(reply)

    async def main() -> None:
        async with served(script) as server, client_of(server) as client:
            assert cause in await failure(client)

    run(main())


def test_entries_are_bounded_in_number_and_size() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        while True:
            writer.write(entry(1, b"x" * 1000) * 50)
            await writer.drain()

    async def main() -> None:
        for most, room in ((10, 1 << 20), (1 << 20, 5000)):
            async with served(script) as server, client_of(server) as client:
                assert "more entries than a search may have" in await failure(client, most, room)

    run(main())


def test_a_flood_does_not_hold_the_loop() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        while True:
            writer.write(entry(999, b"y") * 1000)
            await writer.drain()

    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        async with served(script) as server, client_of(server, seconds=brief(0.9)) as client:
            beside = asyncio.create_task(other())
            assert "no answer" in await failure(client)
            beside.cancel()
        assert turns > 10

    run(main())


def test_the_next_server_is_asked_if_one_is_silent_and_the_first_one_rests() -> None:
    asked: list[str] = []

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            asked.append("silent")

    async def good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        while await reader.read(1000):
            number += 1
            asked.append("good")
            writer.write(entry(number, b"a") + done(number))

    async def main() -> None:
        async with (
            served(silent) as first,
            served(good) as second,
            client_of(first, second, seconds=brief(1)) as client,
        ):
            for _ in range(5):
                entries, _ = await client.search(SEARCH, 10)
                assert entries[0].values("uid") == ["a"]
            # Before the client says good-bye, which is a request as well.
            assert asked.count("good") == 5
            assert asked.count("silent") <= 6  # of two searches or three: a search and its end

    run(main())


def test_an_idle_connection_that_was_closed_is_replaced_at_once() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(done(1))
        await writer.drain()

    async def main() -> None:
        async with served(once) as server, client_of(server) as client:
            for _ in range(3):
                assert (await client.search(SEARCH, 10))[0] == []

    run(main())


def test_a_silent_connection_is_given_up() -> None:
    accepted = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        silent = accepted == 1
        while await reader.read(1000):
            if not silent:
                writer.write(done(1))

    async def main() -> None:
        async with served(script) as server, client_of(server, seconds=brief(1)) as client:
            assert "no answer" in await failure(client)
            assert (await client.search(SEARCH, 10))[0] == []

    run(main())
    assert accepted == 2


def test_an_entry_that_is_too_large_fails_alone() -> None:
    accepted = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        number = 0
        while await reader.read(1000):
            number += 1
            writer.write(entry(number, b"x" * (3 << 20 if number % 2 else 1)) + done(number))

    async def main() -> None:
        async with served(script) as server, client_of(server) as client:
            for _ in range(5):
                with pytest.raises(AnswerError, match="a message of 3145"):
                    await client.search(SEARCH, 100)
                assert len((await client.search(SEARCH, 100))[0]) == 1
                with pytest.raises(AnswerError, match="a message of 3145"):
                    await client.pages(SEARCH, 10, 100, 5)
                with pytest.raises(AnswerError, match="more entries than a search may have"):
                    await client.search(SEARCH, 0)

    run(main())
    assert accepted == 1


@pytest.mark.parametrize("more", [b"\x30", element(0x30, integer(1), b"x" * (2 << 20))[:20]])
def test_nothing_may_follow_the_answer_to_start_tls(more: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(done(1, 0x78) + more)

    async def main() -> None:
        async with served(script) as server, client_of(server, tls=True) as client:
            assert "StartTLS: more than a response before TLS" in await failure(client)

    run(main())


def test_a_refused_start_tls_sends_nothing_else() -> None:
    received = b""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        received += await reader.read(1000)
        writer.write(done(1, 0x78, 2))
        received += await reader.read(1000)

    async def main() -> None:
        async with served(script) as server, client_of(server, tls=True) as client:
            assert "StartTLS: protocol error" in await failure(client)

    run(main())
    assert b"uid" not in received


@pytest.mark.parametrize(
    "text",
    ["ldapi://relative", "http://x", "ldap://", "ldap://a:b", "ldap://h:99999", "ldap://a b"],
)
def test_urls_that_are_invalid(text: str) -> None:
    with pytest.raises(ConfigError):
        Server(text)


def test_urls() -> None:
    for text, host, port in (
        ("ldap.example.org", "ldap.example.org", 389),
        ("ldap://ldap.example.org/", "ldap.example.org", 389),
        ("ldaps://ldap.example.org", "ldap.example.org", 636),
        ("ldaps://[2001:db8::1]:1636/", "2001:db8::1", 1636),
    ):
        server = Server(text)
        assert (server.host, server.port) == (host, port)
    assert Server("ldapi://%2Frun%2Fslapd%2Fldapi/").path == "/run/slapd/ldapi"
