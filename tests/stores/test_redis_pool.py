"""Connections that are replaced: redis-py waits for ever, or fails again and again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis import exceptions

from smtpd_filters.stores.redis_pool import FAILURES, FOREIGN, Pool

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self


class Client:
    """A client of redis-py, or its pool of connections."""

    def __init__(self, behave: Callable[[], Any]) -> None:
        self.behave = behave
        self.is_closed = False
        self.connection_pool = self

    async def execute_command(self, *_: object) -> Any:
        return await self.behave()

    def pipeline(self, *, transaction: bool) -> Pipeline:
        assert not transaction
        return Pipeline(self.behave)

    async def disconnect(self) -> None:
        pass

    async def aclose(self) -> None:
        self.is_closed = True


class Pipeline:
    """Commands of redis-py that are sent together, and the last of which returns its argument."""

    def __init__(self, behave: Callable[[], Any]) -> None:
        self._behave = behave
        self._words: list[tuple[Any, ...]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def execute_command(self, *words: Any) -> None:
        self._words.append(words)

    async def execute(self, *, raise_on_error: bool) -> list[Any]:
        assert not raise_on_error
        try:
            reply = await self._behave()
        except exceptions.ResponseError as error:
            reply = error
        return reply if isinstance(reply, list) else [reply, self._words[-1][-1]]


def made(behave: Callable[[], Any], limit: float = 60.0) -> tuple[Pool, list[Client]]:
    clients: list[Client] = []

    def connect() -> list[Client]:
        clients.append(Client(behave))
        return clients[-1:]

    return Pool(connect, limit), clients


async def failing() -> None:
    raise exceptions.ConnectionError("lost")


async def fails(pool: Pool, kind: type[Exception] = exceptions.ConnectionError) -> None:
    with pytest.raises(kind):
        await pool.command("GET")


def test_a_command_that_never_ends_is_ended_with_its_connection() -> None:
    async def steps() -> None:
        pool, clients = made(asyncio.Event().wait, limit=0.001)
        await fails(pool, TimeoutError)
        await fails(pool, TimeoutError)
        await pool.close()
        assert [client.is_closed for client in clients] == [True] * 3

    asyncio.run(steps())


def test_connections_that_fail_are_replaced() -> None:
    async def steps() -> None:
        pool, clients = made(failing)
        for _ in range(FAILURES - 1):
            await fails(pool)
        assert len(clients) == 1
        await fails(pool)
        assert len(clients) == 2
        await pool.close()
        assert [client.is_closed for client in clients] == [True, True]

    asyncio.run(steps())


def test_an_error_in_reply_is_no_failure() -> None:
    async def rejected() -> None:
        raise exceptions.ResponseError("ERR")

    async def steps() -> None:
        pool, clients = made(failing)
        for _ in range(2 * FAILURES):
            clients[0].behave = failing
            await fails(pool)
            clients[0].behave = rejected
            await fails(pool, exceptions.ResponseError)
        assert len(clients) == 1
        await pool.close()

    asyncio.run(steps())


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ReadOnlyError("You can't write against a read only replica."),
        exceptions.MasterDownError("Link with MASTER is down"),
        exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."),
        exceptions.ResponseError("Error running script: -READONLY You can't write against ..."),
    ],
)
def test_a_command_that_is_no_masters_is_sent_to_another(error: Exception) -> None:
    """Connections to a master that has become a replica may live on, behind a proxy for example."""

    async def refused() -> None:
        raise error

    async def accepted() -> str:
        return "done"

    async def steps() -> None:
        behaviours = iter((refused, accepted))
        clients: list[Client] = []

        def connect() -> list[Client]:
            clients.append(Client(next(behaviours)))
            return clients[-1:]

        pool = Pool(connect, 60.0)
        assert await asyncio.gather(*(pool.command("SET") for _ in range(3))) == ["done"] * 3
        assert len(clients) == 2
        await pool.close()
        assert [client.is_closed for client in clients] == [True, True]

    asyncio.run(steps())


def test_a_server_that_never_takes_writes_is_connected_again_once_a_second() -> None:
    async def refused() -> None:
        raise exceptions.ReadOnlyError("read only")

    async def steps() -> None:
        pool, clients = made(refused)
        for _ in range(2 * FAILURES):
            await fails(pool, exceptions.ReadOnlyError)
        assert len(clients) == 2
        await pool.close()

    asyncio.run(steps())


def test_connections_are_closed_after_their_last_command() -> None:
    async def steps() -> None:
        over = asyncio.Event()
        pool, clients = made(over.wait)
        pending = asyncio.create_task(pool.command("GET"))
        await asyncio.sleep(0)
        clients[0].behave = failing
        for _ in range(FAILURES):
            await fails(pool)
        await pool.close()
        assert [client.is_closed for client in clients] == [False, True]
        over.set()
        assert await pending is True
        await pool.close()
        assert clients[0].is_closed

    asyncio.run(steps())


@pytest.mark.parametrize("reply", [b"OK", 7, None, [], [0], [b"nonce"], [0, None], (0, b"nonce")])
def test_the_reply_to_another_command_is_no_results_of_a_script(reply: object) -> None:
    async def other() -> object:
        return reply

    async def steps() -> None:
        pool, clients = made(other)
        with pytest.raises(exceptions.ConnectionError, match=f"^{FOREIGN}$"):
            await pool.script("EVAL", b"", 0)
        assert len(clients) == 2
        await pool.close()
        assert clients[0].is_closed

    asyncio.run(steps())


def test_results_of_a_script_are_of_one_command() -> None:
    async def steps() -> None:
        pool, clients = made(failing)
        sent: list[bytes] = []

        async def echo(*words: bytes) -> list[object]:
            sent.append(words[-1])
            return [7, words[-1]]

        clients[0].execute_command = echo  # type: ignore[method-assign, assignment]
        assert await pool.script("EVAL", b"", 0) == [7]
        assert await pool.script("EVAL", b"", 0) == [7]
        assert len(set(sent)) == 2
        await pool.close()

    asyncio.run(steps())


@pytest.mark.parametrize(
    "echo",
    [
        b"value",
        None,
        b"PONG",
        exceptions.NoPermissionError("this user has no permissions to run the 'get' command"),
        exceptions.ResponseError("LOADING"),
    ],
)
def test_the_reply_to_another_command_is_not_returned(echo: object) -> None:
    async def other() -> list[object]:
        return [b"other", echo]

    async def steps() -> None:
        pool, clients = made(other)
        await fails(pool)
        assert len(clients) == 2
        await pool.close()

    asyncio.run(steps())


@pytest.mark.parametrize(
    "text",
    [
        "this user has no permissions to run the 'ping' command or its subcommand",
        "User reader has no permissions to run the 'ping' command",
    ],
)
def test_a_user_without_permission_for_ping(text: str) -> None:
    """Redis 6 and 7."""

    async def denied() -> list[object]:
        return [b"value", exceptions.NoPermissionError(text)]

    async def steps() -> None:
        pool, clients = made(denied)
        assert await pool.command("GET") == b"value"
        assert len(clients) == 1
        await pool.close()

    asyncio.run(steps())
