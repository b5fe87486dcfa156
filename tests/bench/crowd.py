"""The time of a look-up while a crowd has names looked up whose servers never answer.

    python -m tests.bench.crowd [CROWD] [SECONDS]

Prints the number of look-ups of answered names, how many of them failed, and the median, the 95th
percentile and the maximum of their times in seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import socket
import sys
from time import monotonic

from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.lookups.outcome import Found

#: Seconds between two look-ups of answered names.
PAUSE = 0.1
#: The answered names begin with this label, which follows the header and a length.
ANSWERED = b"good"
HEADER, FLAGS = 12, b"\x81\x80\0\1\0\1\0\0\0\0"
ADDRESS = b"\xc0\x0c\0\1\0\1\0\0\0\x05\0\4\x7f\0\0\1"


def serve(sock: socket.socket) -> None:
    """Answer queries for some names with an address, and ignore the others."""
    while True:
        data, peer = sock.recvfrom(600)
        question = data[HEADER:]
        if question[1:].startswith(ANSWERED):
            question = question[: question.index(b"\0") + 5]
            sock.sendto(data[:2] + FLAGS + question + ADDRESS, peer)


async def measure(resolver: Resolver, crowd: int, seconds: float) -> tuple[int, list[float]]:
    """Return how many look-ups failed, and the times of all."""
    end = monotonic() + seconds
    numbers = itertools.count()
    failed = 0
    times: list[float] = []

    async def hostile() -> None:
        while monotonic() < end:
            number = next(numbers)
            await resolver.query(f"dead{number}.zone{number}.example", "A")
            await asyncio.sleep(random.random())  # noqa: S311  # not to arrive together

    async def honest() -> None:
        nonlocal failed
        began = monotonic()
        outcome = await resolver.query(f"good{next(numbers)}.example", "A")
        times.append(monotonic() - began)
        failed += not isinstance(outcome, Found)

    async with asyncio.TaskGroup() as group:
        others = [group.create_task(hostile()) for _ in range(crowd)]
        while monotonic() < end:
            await asyncio.sleep(PAUSE)
            group.create_task(honest())
        for other in others:
            other.cancel()
    return failed, sorted(times)


async def asked(server: tuple[str, int], crowd: int, seconds: float) -> tuple[int, list[float]]:
    """Measure with a resolver that queries this server."""
    async with Resolver([server]) as resolver:
        return await measure(resolver, crowd, seconds)


def main(crowd: int, seconds: float) -> None:
    """Print the figures."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        server = os.fork()
        if not server:
            serve(sock)
        try:
            failed, times = asyncio.run(asked(sock.getsockname(), crowd, seconds))
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
    median, late = times[len(times) // 2], times[len(times) * 95 // 100]
    print(
        f"{crowd} others: {len(times)} look-ups, {failed} failed, "
        f"median {median:.3f}, 95 % {late:.3f}, longest {times[-1]:.3f} s"
    )


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["2000"])[0]), float((sys.argv[2:] or ["12"])[0]))
