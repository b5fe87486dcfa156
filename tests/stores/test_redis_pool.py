"""Connections that are replaced: redis-py waits for ever, or fails again and again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis import exceptions

from smtpd_filters.stores.redis_pool import FAILURES, Pool

if TYPE_CHECKING:
    from collections.abc import Callable


class Client:
    """A client of redis-py, or its pool of connections."""

    def __init__(self, behave: Callable[[], Any]) -> None:
        self.behave = behave
        self.is_closed = False
        self.connection_pool = self

    async def execute_command(self, *_: object) -> Any:
        return await self.behave()

    async def disconnect(self) -> None:
        pass

    async def aclose(self) -> None:
        self.is_closed = True


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
