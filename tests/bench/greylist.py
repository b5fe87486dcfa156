"""The decisions of filter-greylist a second, by store and number of triplets, and beside postgrey.

    python -m tests.bench.greylist [--quick]

Of the decisions, half are about triplets that have passed, a quarter about triplets that wait, and
a quarter about new ones. A client is a network here: SPF is measured in
`tests.bench.authentication`. Contestants take turns within a round, and ratios are medians over the
rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import pwd
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smtpd_filters.filters.greylist.triplets import PASSED, WAITING, triplet_key
from smtpd_filters.stores import Put
from smtpd_filters.stores.setting import STORE, open_store
from tests.bench.player import Player
from tests.bench.workloads import Play, Sessions, Stage, stamp
from tests.stores.redis_server import RedisServer
from tests.stores.redis_server import unavailable as no_redis

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    #: Name, value, sense and limit.
    Target: TypeAlias = tuple[str, float, str, float]

FEW, MANY = 1_000, 1_000_000
#: Triplets of a client; a request writes as many.
EACH = 25
#: One in so many triplets waits.
WAIT = 5
CONCURRENT = 64
DECISIONS = 20_000
ROUNDS = 3
#: Connections to postgrey: Postfix opens one for each of its smtpd processes.
CONNECTIONS = 8
#: The p99 of a store in terms of that of memory: a disk and a thread, or a server and its socket.
P99 = 10.0
POSTGREY = shutil.which("postgrey", path="/usr/sbin:/usr/bin") or ""
_TOKEN = b"|feedfacefeedface|"
_dice = random.Random(7)  # noqa: S311  # the same in every run
_news = iter(range(10**9))


def network_of(number: int) -> str:
    """Return the first octets of a client's network."""
    return f"{11 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def triplet(number: int) -> tuple[str, str, str]:
    """Return address, sender and recipient of a triplet that is there."""
    client, place = divmod(number, EACH)
    return f"{network_of(client)}.7", f"sender{chr(97 + place)}@example.org", "you@example.net"


def drawn(size: int) -> tuple[str, str, str]:
    """Return a triplet of the mix; one in `WAIT` of those there waits."""
    kind = _dice.random()
    if kind < 0.25:
        address, sender, _ = triplet(_dice.randrange(size))
        return address, sender, f"new{next(_news)}@example.net"
    waits = kind < 0.5
    number = _dice.randrange(size // WAIT) * WAIT
    return triplet(number if waits else number + 1 + _dice.randrange(WAIT - 1))


async def fill(address: str, size: int) -> None:
    """Write triplets."""
    values = {
        **dict.fromkeys(("store_password_file", "store_ca_file")),
        "store": STORE.parse(address),
        "store_timeout": 60.0,
        "store_prefix": "smtpd-filters:",
    }
    store = open_store(values, sys.stderr.write)
    requests = []
    for first in range(0, size, EACH):
        puts = []
        for number in range(first, first + EACH):
            place, sender, recipient = triplet(number)
            client = f"{place.rpartition('.')[0]}.0/24"
            value = PASSED if number % WAIT else WAITING
            puts.append(Put(triplet_key(client, sender, recipient), value, 30 * 86400.0))
        requests.append(store.ask(*puts))
        if len(requests) >= 256:
            await asyncio.gather(*requests)
            requests.clear()
    await asyncio.gather(*requests)
    await store.aclose()


# -- the filter --------------------------------------------------------------------------------


class _Answers(Stage):
    """Decisions of which some are refusals."""

    def take(self, line: bytes, now: float) -> None:
        """Continue the session that was answered."""
        play = self.active.get(line[14:30])
        rest = line[31:].partition(b"|")[2]
        if play is None or not rest.startswith((b"proceed", b"reject|451 4.7.1 Greylisted")):
            raise self.player.error(f"unexpected answer {line[:120]!r}")
        self.latencies.append(now - play.asked)
        play.at += 1
        self.ask(play)


def begun(address: str, sender: str, recipient: str) -> Play:
    """Return the events of a session about one recipient."""
    session = b"%016x" % _dice.getrandbits(64)

    def report(name: str, rest: str) -> bytes:
        head = b"report|0.7|" + stamp() + f"|smtp-in|{name}|".encode()
        return head + session + f"|{rest}\n".encode()

    asked = b"filter|0.7|" + stamp() + b"|smtp-in|rcpt-to|" + session + _TOKEN
    events = [
        report("link-connect", f"mail.example.com|pass|{address}:25|198.51.100.25:25"),
        report("tx-begin", "1ef1c203"),
        report("tx-mail", f"1ef1c203|ok|{sender}"),
        asked + recipient.encode() + b"\n",
    ]
    end = b"report|0.7|" + stamp() + b"|smtp-in|link-disconnect|" + session + b"\n"
    return Play(session, [(b"".join(events), "rcpt-to"), (end, None)])


def command(store: str) -> list[str]:
    """Return the command of the filter."""
    start = "from smtpd_filters.filters.greylist import main; main()"
    flags = ["--key", "network", "--store", store, "--store-timeout", "20"]
    return [sys.executable, "-c", start, *flags]


def play(player: Player, triplets: Sequence[tuple[str, str, str]]) -> Sessions:
    """Have decisions made."""
    stage = _Answers(player, [begun(*each) for each in triplets], CONCURRENT)
    cpu, start = player.cpu(), time.perf_counter()
    stage.run()
    seconds, cpu = time.perf_counter() - start, player.cpu() - cpu
    return Sessions(len(triplets), seconds, cpu / 1e9, stage.latencies)


def alone(arguments: tuple[str, int, int, int]) -> float:
    """Have decisions made in a process of its own; return how many a second."""
    store, size, decisions, seed = arguments
    _dice.seed(seed)
    for _ in range(seed * 1_000_000):  # new ones of its own
        next(_news)
    with Player(command(store)) as player:
        play(player, [drawn(size) for _ in range(decisions // 10)])
        return play(player, [drawn(size) for _ in range(decisions)]).rate


# -- postgrey ----------------------------------------------------------------------------------


@contextmanager
def postgrey(folder: Path) -> Iterator[tuple[str, int]]:
    """Start postgrey, whose every decision is on the disk; yield its socket and its process."""
    user = pwd.getpwnam("postgrey")
    os.chown(folder, user.pw_uid, user.pw_gid)
    path = folder / "socket"
    words = [f"--unix={path}", f"--dbdir={folder}", "--user=postgrey", "--delay=300"]
    process = subprocess.Popen(
        [POSTGREY, *words, "--auto-whitelist-clients=0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not path.exists():
            if process.poll() is not None:
                raise RuntimeError("postgrey has not started")
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                pass
        yield str(path), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def policy(path: str, triplets: Sequence[tuple[str, str, str]]) -> float:
    """Ask a policy server; return the seconds."""
    waiting = list(triplets)

    async def ask() -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        while waiting:
            address, sender, recipient = waiting.pop()
            writer.write(
                f"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address={address}\n"
                f"client_name=mail.example.com\nsender={sender}\nrecipient={recipient}\n\n".encode()
            )
            await reader.readuntil(b"\n\n")
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    return time.perf_counter() - start


# -- the measurement ---------------------------------------------------------------------------


@dataclass
class Sizes:
    """The sizes of the parts."""

    decisions: int = DECISIONS
    rounds: int = ROUNDS
    many: int = MANY
    growth: int = 100_000


QUICK = Sizes(decisions=2_000, rounds=1, many=20_000, growth=4_000)


def measure(sizes: Sizes, folder: Path) -> tuple[dict[str, dict[str, float]], list[Target]]:
    """Return the figures of each contestant; and names, values, senses and limits of targets."""
    figures: dict[str, dict[str, float]] = {}
    targets: list[Target] = []
    few, many = f"{FEW:,}", f"{sizes.many:,}"
    with ExitStack() as stack:
        stores = {f"sqlite, {few}": (f"sqlite:{folder}/few", FEW)}
        stores[f"sqlite, {many}"] = (f"sqlite:{folder}/many", sizes.many)
        if not no_redis():
            for name, size in ((few, FEW), (many, sizes.many)):
                server = RedisServer(folder / f"redis-{size}")
                stack.callback(server.stop)
                stores[f"redis, {name}"] = (f"unix://{server.socket}", size)
        for address, size in stores.values():
            asyncio.run(fill(address, size))
        stores["memory"] = ("memory:", FEW)
        players = {
            name: stack.enter_context(Player(command(address)))
            for name, (address, _) in stores.items()
        }
        play(players["memory"], [triplet(number) for number in range(FEW)])
        rounds: list[dict[str, dict[str, float]]] = []
        for _ in range(sizes.rounds):
            found = {}
            for name, player in players.items():
                ran = play(player, [drawn(stores[name][1]) for _ in range(sizes.decisions)])
                found[name] = {
                    "decisions/s": ran.rate,
                    "p99 µs": ran.latency(0.99),
                    "cpu µs": ran.cost,
                }
            rounds.append(found)
        figures = {
            name: {key: statistics.median(each[name][key] for each in rounds) for key in values}
            for name, values in rounds[0].items()
        }

        def compare(key: str, one: str, other: str) -> float:
            return statistics.median(each[one][key] / each[other][key] for each in rounds)

        for kind in ("sqlite", "redis"):
            if f"{kind}, {few}" in figures:
                one, other = f"{kind}, {many}", f"{kind}, {few}"
                ratio = compare("decisions/s", one, other)
                targets.append((f"decisions/s, {one} : {few}", ratio, ">=", 0.7))
                slower = compare("p99 µs", other, "memory")
                targets.append((f"p99 µs, {other} : memory", slower, "<=", P99))
        growth = grown(players[f"sqlite, {many}"], sizes)
        targets.append(("MiB grown, sqlite", growth, "<=", 4))
    twice = doubled(folder, sizes)
    targets.append(("decisions/s, two processes on a file : one", twice, ">=", 1.3))
    if POSTGREY and os.geteuid() == 0:
        ratio = beside_postgrey(folder, sizes, figures)
        targets.append(("decisions/s, sqlite : postgrey", ratio, ">=", 3))
    return figures, targets


def grown(player: Player, sizes: Sizes) -> float:
    """Return the MiB by which the filter has grown in many decisions."""
    before = player.anonymous()
    for _ in range(sizes.growth // sizes.decisions):
        play(player, [drawn(sizes.many) for _ in range(sizes.decisions)])
    return (player.anonymous() - before) / (1 << 20)


def doubled(folder: Path, sizes: Sizes) -> float:
    """Return how many decisions two processes make on one file, in terms of those of one."""
    ratios = []
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for number in range(sizes.rounds):
            jobs = [
                (f"sqlite:{folder}/few", FEW, sizes.decisions, seed + 4 * number + 1)
                for seed in range(3)
            ]
            [one] = pool.map(alone, jobs[:1])
            ratios.append(sum(pool.map(alone, jobs[1:], chunksize=1)) / one)
    return statistics.median(ratios)


def cpu_of(process: int) -> float:
    """Return the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def beside_postgrey(folder: Path, sizes: Sizes, figures: dict[str, dict[str, float]]) -> float:
    """Return the filter's decisions in terms of postgrey's, with the same triplets.

    postgrey waits for the disk at each decision: on a file system in memory the ratio is another.
    """
    place = folder / "postgrey"
    place.mkdir()
    decisions = sizes.decisions // 10  # it is slow
    rates, costs, ratios = [], [], []
    with (
        postgrey(place) as (path, process),
        Player(command(f"sqlite:{folder}/few")) as player,
    ):
        asyncio.run(policy(path, [triplet(number) for number in range(FEW)]))
        for _ in range(sizes.rounds):
            ours = play(player, [drawn(FEW) for _ in range(sizes.decisions)]).rate
            asked = [drawn(FEW) for _ in range(decisions)]
            cpu = cpu_of(process)
            rates.append(decisions / asyncio.run(policy(path, asked)))
            costs.append((cpu_of(process) - cpu) / decisions * 1e6)
            ratios.append(ours / rates[-1])
    figures["postgrey"] = {
        "decisions/s": statistics.median(rates),
        "cpu µs": statistics.median(costs),
    }
    return statistics.median(ratios)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few decisions and triplets")
    sizes = QUICK if parser.parse_args().quick else Sizes()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        figures, targets = measure(sizes, Path(folder))
    for name, values in figures.items():
        shown: Any = ", ".join(f"{key} {value:,.0f}" for key, value in values.items())
        print(f"{name:20} {shown}")
    for name, value, sense, limit in targets:
        print(f"{name}: {value:.2f} ({sense} {limit:g})")


if __name__ == "__main__":
    main()
