"""Measurements of filter-limit: sessions a second by the place of its memory.

    python -m tests.bench.limits [--sessions N] [--rounds N]

Each session is one MAIL and one RCPT, limited by client, sender and recipient: three requests to
the store. The limits are the last filter of a chain, and the figures are beside those of the same
chain without it. Contestants take turns within a round, and ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters.filter import Filter, Registration
from smtpd_filters.protocol.decisions import PROCEED
from tests.bench.player import Player
from tests.bench.workloads import message, sessions
from tests.stores.redis_server import RedisServer
from tests.stores.redis_server import unavailable as no_redis

if TYPE_CHECKING:
    from smtpd_filters import Session
    from smtpd_filters.protocol.decisions import Decision

RULES = (
    "client messages 1000000/1h",
    "sender messages 1000000/1h",
    "recipient recipients 1000000/1h",
    "user messages 1000000/1h",
)
CONCURRENT = 20
SESSIONS, ROUNDS = 3000, 5
WITHOUT = "without"


class Passing(Filter):
    """Accept the commands that are limited."""

    name = "passing"

    def setup(self) -> Registration:
        return Registration(reports={"tx-begin"})

    def mail_from(self, _session: Session, _address: str) -> Decision:
        return PROCEED

    def rcpt_to(self, _session: Session, _address: str) -> Decision:
        return PROCEED


def declared(store: str) -> str:
    """Return a chain file; with a store the limits are its last filter."""
    limit = f"[filter.limit]\nlimit = {[*RULES]}\nstore = '{store}'\n" if store else ""
    names = ["passing", *(["limit"] if store else [])]
    passing = '[filter.passing]\nuse = "tests.bench.limits:Passing"\n'
    return f"[chain.limited]\nfilters = {names}\n\n{passing}{limit}"


def measure(count: int, rounds: int, folder: Path) -> tuple[dict[str, dict[str, float]], float]:
    """Return the figures of each contestant, and the median share of memory's rate with SQLite."""
    stores = {
        WITHOUT: "",
        "memory": "memory:",
        "sqlite": f"sqlite:{folder}/limit.sqlite",
    }
    lines = message(10)
    found: list[dict[str, dict[str, float]]] = []
    with ExitStack() as stack:
        if not no_redis():
            server = RedisServer(folder / "redis")
            stack.callback(server.stop)
            stores["redis"] = f"unix://{server.socket}"
        players = {}
        for name, store in stores.items():
            path = folder / f"{name}.toml"
            path.write_text(declared(store))
            path.chmod(0o600)
            command = [sys.executable, "-m", "smtpd_filters.cli.chain", "--config", str(path)]
            players[name] = stack.enter_context(Player(command))
            sessions(players[name], count // 10, CONCURRENT, lines)
        for _ in range(rounds):
            ran = {
                name: sessions(player, count, CONCURRENT, lines) for name, player in players.items()
            }
            found.append(
                {
                    name: {
                        "sessions/s": each.rate,
                        "p99 µs": each.latency(0.99),
                        "cpu µs": each.cost,
                        "of the rate without": each.rate / ran[WITHOUT].rate,
                    }
                    for name, each in ran.items()
                }
            )
    figures = {
        name: {key: statistics.median(each[name][key] for each in found) for key in values}
        for name, values in found[0].items()
    }
    share = statistics.median(
        each["sqlite"]["sessions/s"] / each["memory"]["sessions/s"] for each in found
    )
    return figures, share


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures, share = measure(arguments.sessions, arguments.rounds, Path(folder))
    for name, values in figures.items():
        shown = ", ".join(f"{key} {value:,.2f}" for key, value in values.items())
        print(f"{name:10} {shown}")
    print(f"sessions/s, sqlite : memory {share:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
