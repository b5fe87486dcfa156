"""What look-ups cost: filter-senderscore, ours and the one in use, behind one name server.

The one in use asks the name server of resolv.conf. So it runs in a network of its own, in which
ours is, too, and sees a resolv.conf of its own. Where that can't be had, ours runs alone.
"""

from __future__ import annotations

import itertools
import shlex
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters.testing.dns import DNSServer
from smtpd_filters.testing.server import Lab, LabError
from tests.bench.player import Player
from tests.bench.workloads import Score, Sessions, Stage, check_message, data_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Self

# What a look-up comes to is in the address: 10.0.0.0/16 is answered in 20 ms, 10.1.0.0/16 never,
# and all other clients at once.
SLOWLY, NEVER = 0.02, 5.0
ZONE: dict[str, dict[str, Any]] = {
    "*.0.10.score.senderscore.com": {"A": "127.0.4.97", "delay": SLOWLY},
    "*.1.10.score.senderscore.com": {"drop": True},
    "*.score.senderscore.com": {"A": "127.0.4.97", "ttl": 3600},
}
# One look-up in ten.
LOST = 10
# Both give up after 5 s. Ours asks a second time after a third of that, and waits twice as long.
RESOLV_CONF = f"nameserver 127.0.0.1\nsearch .\noptions timeout:{NEVER:.0f} attempts:1\n"
PATIENCE = f"{NEVER / 3:.3f}"
# Nobody is refused, but everybody might be, and every message is marked.
FLAGS = ("-blockBelow", "20", "-junkBelow", "40", "-scoreHeader")
BLOCKING = ("-blockBelow", "20")
# The client of the dialogue.
ANYBODY = b"[2001:db8::9]"
CONCURRENT = 50


class Place:
    """A name server, and filters that ask it; a context manager.

    `alone` says why the filter in use can't take part, if it can't.
    """

    def __init__(self, senderscore: Sequence[str] | None) -> None:
        """`senderscore` is the command of the filter in use."""
        self._senderscore = senderscore
        self._stack = ExitStack()
        self._network: list[str] = []
        self.alone = "" if senderscore else "needs Debian's opensmtpd-filter-senderscore"
        self.dns: DNSServer

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            try:
                lab = stack.enter_context(Lab(ZONE))
            except (LabError, OSError) as error:
                self.alone = self.alone or f"needs a network of its own: {error}"
                self.dns = stack.enter_context(DNSServer(ZONE))
            else:
                self.dns = lab.dns
                # No PID namespace: what is measured is the process that is started.
                self._network = ["nsenter", f"--net=/proc/{lab.pid}/ns/net", "--"]
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._resolv_conf = folder / "resolv.conf"
            self._resolv_conf.write_text(RESOLV_CONF)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ours(self, *flags: str) -> list[str]:
        """The command of ours."""
        nameserver = f"{self.dns.address}:{self.dns.port}"
        command = [sys.executable, "-m", "smtpd_filters.filters.senderscore", *flags]
        return [*self._network, *command, "--nameserver", nameserver, "--timeout", PATIENCE]

    def theirs(self, *flags: str) -> list[str]:
        """The command of the filter in use."""
        command = shlex.join([*(self._senderscore or ()), *flags])
        mount = shlex.join(["mount", "--bind", str(self._resolv_conf), "/etc/resolv.conf"])
        return [*self._network, "unshare", "-m", "--", "sh", "-c", f"{mount} && exec {command}"]


def addresses(start: str) -> Iterable[str]:
    """IPv4 addresses from this one on."""
    first = int.from_bytes(bytes(map(int, start.split("."))), "big")
    return (".".join(map(str, number.to_bytes(4, "big"))) for number in itertools.count(first))


def mixed(count: int, number: int) -> list[str]:
    """Clients of whom one in ten is looked up in vain; others for each `number`, up to 31."""
    found, lost = addresses(f"10.0.{8 * number}.0"), addresses(f"10.1.{8 * number}.0")
    return [next(iter(found if at % LOST else lost)) for at in range(count)]


def play(player: Player, clients: Sequence[str], lines: Sequence[bytes]) -> Sessions:
    """Play a session for each client, 50 of them at a time, with a message of `lines`."""
    score = Score(player)
    plays = [score.play() for _ in clients]
    for each, client in zip(plays, clients, strict=True):
        each.steps = [
            (
                text.replace(ANYBODY, client.encode())
                + (b"".join(data_lines(each.session, lines)) if phase == "data-line" else b""),
                phase,
            )
            for text, phase in each.steps
        ]
    # They are taken from the end.
    stage = Stage(player, plays[::-1], CONCURRENT)
    cpu, start = player.cpu(), time.perf_counter()
    stage.run()
    seconds, cpu = time.perf_counter() - start, player.cpu() - cpu
    if "data-line" in player.phases:
        for each in plays:
            check_message(player, each.returned, lines)
    return Sessions(len(clients), seconds, cpu / 1e9, stage.latencies)


def faulty(
    place: Place, count: int, blocking: int, number: int, lines: Sequence[bytes]
) -> dict[str, Sessions]:
    """Sessions of clients that nobody has seen before, of whom one in ten is looked up in vain.

    `blocking` of them are enough for a filter that does one thing at a time.
    """
    contestants = {"ours": (place.ours(*FLAGS), count)}
    if not place.alone:
        contestants["senderscore"] = (place.theirs(*FLAGS), blocking)
    found = {}
    for name, (command, size) in contestants.items():
        with Player(command) as player:
            found[name] = play(player, mixed(size, number), lines)
    return found


def warm(
    place: Place, count: int, flags: Sequence[str], lines: Sequence[bytes]
) -> dict[str, Sessions]:
    """Sessions of clients whose scores are known, and of the same ones if none is looked up.

    All of them are allowed then, which is a score as well: it is written in the header, too.
    """
    known = list(itertools.islice(addresses("10.2.0.0"), 1_000))
    clients = [known[at % len(known)] for at in range(count)]
    allowed = ("-allowlist", "{ 0.0.0.0/0 }")
    found = {}
    for name, more in (("warm cache", ()), ("look-ups off", allowed)):
        with Player(place.ours(*flags, *more)) as player:
            play(player, known, lines)
            place.dns.queries.clear()
            found[name] = play(player, clients, lines)
            if place.dns.queries:
                raise player.error(f"{len(place.dns.queries)} look-ups of what was known")
    return found


def growth(
    place: Place, before: int, count: int, progress: Callable[[str], None]
) -> tuple[float, float]:
    """Clients one never sees again: bytes that `count` of them take, and those before them."""
    clients = addresses("10.128.0.0")
    with Player(place.ours(*BLOCKING)) as player:
        began = grown = player.anonymous()
        for done in range(0, before + count, 2_000):
            progress(f"look-ups: client {done:,}")
            if done == before:
                grown = player.anonymous()
            play(player, list(itertools.islice(clients, 2_000)), [])
            place.dns.queries.clear()
            place.dns.transports.clear()
        return player.anonymous() - grown, grown - began
