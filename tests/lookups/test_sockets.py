from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from smtpd_filters.lookups.sockets import Sockets


@pytest.mark.parametrize(("limit", "streams"), [(1, 1), (15, 1), (16, 2), (512, 64)])
def test_no_more_are_held_than_may_be(limit: int, streams: int) -> None:
    async def most(sockets: Sockets, *, tcp: bool) -> int:
        held = most = 0

        async def hold() -> None:
            nonlocal held, most
            place = await sockets.places(tcp=tcp).take(again=False)
            assert place is not None  # refused
            held += 1
            most = max(most, held)
            await asyncio.sleep(0)
            held -= 1
            place.release()

        await asyncio.gather(*(hold() for _ in range(2 * limit)))
        return most

    async def main() -> None:
        sockets = Sockets(limit)
        assert await most(sockets, tcp=False) == limit
        assert await most(sockets, tcp=True) == streams

    asyncio.run(main())


async def wait(sockets: Sockets, count: int) -> list[asyncio.Task[None]]:
    waiting = [asyncio.create_task(sockets.freed()) for _ in range(count)]
    await asyncio.sleep(0)
    return waiting


def test_each_that_is_closed_lets_one_try_in_their_order() -> None:
    async def main() -> None:
        sockets = Sockets(1, pause=3600)
        sockets.closed()
        waiting = await wait(sockets, 4)
        waiting[1].cancel()
        await asyncio.wait(waiting[1:2])
        done = []
        for _ in range(3):
            sockets.closed()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            done.append([each.done() for each in waiting])
        assert done == [
            [True, True, False, False],
            [True, True, True, False],
            [True, True, True, True],
        ]

    asyncio.run(main())


def test_one_after_the_other_tries_when_none_is_closed() -> None:
    async def main() -> None:
        waiting = await wait(Sockets(1, pause=0.001), 3)
        waiting[0].cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*waiting)
        await asyncio.gather(*waiting[1:])

    asyncio.run(main())
