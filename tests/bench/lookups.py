"""The cost of look-ups: both filter-senderscore, and our filters that query the DNS.

The one in use asks the name server of resolv.conf. So it runs in a network of its own, in which
ours is, too, and sees a resolv.conf of its own. Where that can't be had, ours runs alone.

Of look-ups whose outcomes are known it is looked what they cost in whole sessions, with a message
that passes through the filter, and at the one phase at which most of them are needed, where there
is next to nothing beside them.
"""

from __future__ import annotations

import itertools
import shlex
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from smtpd_filters.testing.dns import DNSServer
from smtpd_filters.testing.server import Lab, LabError
from tests.bench.player import Player
from tests.bench.workloads import Score, Sessions, data_lines, perform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Self

# The address determines the result of a look-up: 10.0.0.0/16 is answered in 20 ms, 10.1.0.0/16
# never, and all other clients at once.
SLOWLY, NEVER = 0.02, 5.0
LISTS = tuple(f"{letter}.lists.example" for letter in "abcd")
LISTED = {"A": "127.0.0.2", "ttl": 3600}
ZONE: dict[str, dict[str, Any]] = {
    # Lists that have nobody but their entry for testing (RFC 5782 section 5).
    **{f"2.0.0.127.{name}": LISTED for name in LISTS},
    # What clients call themselves, and where senders and recipients are.
    "*.example.net": {"A": "192.0.2.1", "MX": "10 mx.example.com", "ttl": 3600},
    "mx.example.com": {"A": "192.0.2.1", "ttl": 3600},
    "*.0.10.score.senderscore.com": {"A": "127.0.4.97", "delay": SLOWLY},
    "*.1.10.score.senderscore.com": {"drop": True},
    "*.score.senderscore.com": {"A": "127.0.4.97", "ttl": 3600},
}
# One look-up in ten.
LOST = 10
# Both give up after 5 s. Ours asks a second time after a third of that, and waits twice as long.
RESOLV_CONF = f"nameserver 127.0.0.1\nsearch .\noptions timeout:{NEVER:.0f} attempts:1\n"
PATIENCE = f"{NEVER / 3:.3f}"
# No client is refused, but each might be, and every message is marked.
FLAGS = ("-blockBelow", "20", "-junkBelow", "40", "-scoreHeader")
BLOCKING = ("-blockBelow", "20")
ASK_LISTS = tuple(flag for name in LISTS for flag in ("--client", name))
# The client of the dialogue, and where it, the sender and the recipient are.
ANYBODY = b"[2001:db8::9]"
DOMAINS = (b"example.net", b"example.org")
CONCURRENT = 50


class Case(NamedTuple):
    """A filter, its flags when it looks something up, and those with which it doesn't.

    The flags of the name server are added to the first, and to the others where they `take` them.
    """

    filter: str
    on: tuple[str, ...]
    off: tuple[str, ...]
    take: bool = False


def _senderscore(*flags: str) -> Case:
    # All are allowed, which is a score as well: it is written in the header, too.
    return Case("senderscore", flags, (*flags, "-allowlist", "{ 0.0.0.0/0 }"), take=True)


def _dnsbl(*flags: str) -> Case:
    return Case("dnsbl", flags, (*flags, "--allow", "{ 0.0.0.0/0 }"), take=True)


#: In whole sessions.
SESSIONS = {
    "senderscore": _senderscore(*FLAGS),
    "dnsbl, 4 lists": _dnsbl(*ASK_LISTS, "--header"),
}
#: At one phase.
PHASES = {
    "senderscore": _senderscore(*BLOCKING),
    "dnsbl, 4 lists": _dnsbl(*ASK_LISTS),
    "helo": Case("helo", ("--unknown", "reject"), ("--unknown", "off")),
    "sender": Case(
        "sender",
        ("--bad-networks", "{ 10.0.0.0/8 }"),
        ("--unknown", "off", "--null-mx", "off", "--bad-mx", "off"),
    ),
    "rcpt": Case(
        "rcpt", ("--domains", "example.com", "--unknown-domain", "reject"), ("--non-fqdn", "reject")
    ),
}
#: What the rate at one phase is to be, to that without look-ups. Of those that ask several
#: questions it is for information: they are nearly all that there is to do.
LEAST = {"senderscore": 0.7}


class Place:
    """A name server, and filters that query it; a context manager.

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
        """Return the command of our filter-senderscore."""
        return self.command("senderscore", *flags, *self.asking, "--timeout", PATIENCE)

    @property
    def asking(self) -> tuple[str, str]:
        """Return the flags with which our filters query the name server."""
        return "--nameserver", f"{self.dns.address}:{self.dns.port}"

    def command(self, filter_: str, *flags: str) -> list[str]:
        """Return the command of a filter of ours."""
        return [*self._network, sys.executable, "-m", f"smtpd_filters.filters.{filter_}", *flags]

    def theirs(self, *flags: str) -> list[str]:
        """Return the command of Debian's filter-senderscore."""
        command = shlex.join([*(self._senderscore or ()), *flags])
        mount = shlex.join(["mount", "--bind", str(self._resolv_conf), "/etc/resolv.conf"])
        return [*self._network, "unshare", "-m", "--", "sh", "-c", f"{mount} && exec {command}"]


def addresses(start: str) -> Iterable[str]:
    """Return IPv4 addresses from this one on."""
    first = int.from_bytes(bytes(map(int, start.split("."))), "big")
    return (".".join(map(str, number.to_bytes(4, "big"))) for number in itertools.count(first))


def mixed(count: int, number: int) -> list[str]:
    """Return clients, a tenth with failing look-ups; others for each `number`, up to 31."""
    found, lost = addresses(f"10.0.{8 * number}.0"), addresses(f"10.1.{8 * number}.0")
    return [next(iter(found if at % LOST else lost)) for at in range(count)]


def of_client(text: bytes, client: str) -> bytes:
    """Return a part of the dialogue for a client, with names of its own that don't exist."""
    name = client.replace(".", "-").encode()
    text = text.replace(ANYBODY, client.encode()).replace(b"|pass|", b"|fail|")
    for domain in DOMAINS:
        text = text.replace(domain, name + b".example.net")
    return text


def play(
    player: Player, clients: Sequence[str], lines: Sequence[bytes], concurrent: int = CONCURRENT
) -> Sessions:
    """Play a session for each client, `concurrent` at a time, with a message of `lines`."""
    score = Score(player)
    plays = [score.play() for _ in clients]
    for each, client in zip(plays, clients, strict=True):
        each.steps = [
            (
                of_client(text, client)
                + (b"".join(data_lines(each.session, lines)) if phase == "data-line" else b""),
                phase,
            )
            for text, phase in each.steps
        ]
    return perform(player, plays, concurrent, lines)


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


def warm(place: Place, count: int, case: Case, lines: Sequence[bytes]) -> dict[str, Sessions]:
    """Sessions of clients of whom all is known, and of the same ones if nothing is looked up."""
    known = list(itertools.islice(addresses("10.2.0.0"), min(count, 1_000)))
    clients = [known[at % len(known)] for at in range(count)]
    found = {}
    with Player(place.command(case.filter, *case.on, *place.asking)) as player:
        play(player, known, lines)
        place.dns.queries.clear()
        found["warm cache"] = play(player, clients, lines)
        if place.dns.queries:
            raise player.error(f"{len(place.dns.queries)} look-ups of what was known")
    off = (*case.off, *place.asking) if case.take else case.off
    with Player(place.command(case.filter, *off)) as player:
        play(player, known, lines)
        found["look-ups off"] = play(player, clients, lines)
    return found


def growth(
    place: Place, before: int, count: int, progress: Callable[[str], None]
) -> tuple[float, float]:
    """Measure the memory for `count` clients that never return, and for those before them."""
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
