"""Measurements of filter-limit: sessions a second by the place of its memory.

    python -m tests.bench.limits [--sessions N]

Each session is one MAIL and one RCPT, limited by client, sender and recipient: three requests to
the store. Contestants take turns; the figures are medians, and the ratios are to `memory:`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time

from tests.bench.player import Player
from tests.bench.workloads import message, sessions

RULES = (
    "client messages 1000000/1h",
    "sender messages 1000000/1h",
    "sender recipients 1000000/1h",
    "user messages 1000000/1h",
)
ROUNDS = 5


def command(store: str, rules: tuple[str, ...]) -> list[str]:
    """Return the command of a filter with a store."""
    words = [sys.executable, "-m", "smtpd_filters.filters.limit", "--store", store]
    return [*words, *(f"--limit={rule}" for rule in rules)]


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", type=int, default=3000)
    count = parser.parse_args().sessions
    with tempfile.TemporaryDirectory() as folder:
        places = {
            "memory": "memory:",
            "sqlite": f"sqlite:{folder}/limit.sqlite",
            "one limit, sqlite": f"sqlite:{folder}/one.sqlite",
        }
        found: dict[str, list[float]] = {name: [] for name in places}
        for _ in range(ROUNDS):
            for name, store in places.items():
                rules = RULES[:1] if name.startswith("one") else RULES
                with Player(command(store, rules)) as player:
                    sessions(player, count // 10, 20, message(10))
                    start = time.perf_counter()
                    sessions(player, count, 20, message(10))
                    found[name].append(count / (time.perf_counter() - start))
        for name, rates in found.items():
            ratio = statistics.median(
                rate / base for rate, base in zip(rates, found["memory"], strict=True)
            )
            print(
                f"{name}: {statistics.median(rates):.0f} sessions a second, {ratio:.2f} of memory"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
