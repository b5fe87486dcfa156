"""A process that judges triplets beside others: `-m tests.filters.greylist.racer STORE SEED`.

It waits for a line, and judges the triplets of `SENDERS` in an order of its own. Then the same with
no delay, as if it was over: all that have waited pass. It prints how many were new, and the states
of the others.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from typing import TYPE_CHECKING

from smtpd_filters.filters.greylist.triplets import Attempt, Terms, Triplets
from smtpd_filters.stores.setting import STORE, open_store

if TYPE_CHECKING:
    from smtpd_filters.stores import Store

PATIENCE = 60.0
SENDERS = 40
NET, YOU = "192.0.2.0/24", "you@example.net"


def opened(address: str) -> Store:
    values = {
        "store": STORE.parse(address),
        "store_timeout": PATIENCE,
        "store_password_file": None,
        "store_ca_file": None,
        "store_prefix": "test:",
    }
    return open_store(values, sys.stderr.write)


async def main(address: str, seed: str) -> None:
    store = opened(address)
    order = list(range(SENDERS))
    random.Random(seed).shuffle(order)  # noqa: S311  # no secret
    for delay in (1000.0, 0.0):
        triplets = Triplets(store, Terms(delay, 5000, 5000, known_after=5))
        sys.stdin.readline()
        attempts = [Attempt(NET, f"s{number}@example.org", [YOU]) for number in order]
        found = await asyncio.gather(*map(triplets.judge, attempts))
        sys.stdout.write(f"{json.dumps(Counter(each.state for each in found))}\n")
        sys.stdout.flush()
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
