"""Five filters of a chain with a look-up each: the time until their decision."""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters.filter import Filter, Registration
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.lookups.outcome import Found
from smtpd_filters.protocol.decisions import JUNK, PROCEED
from smtpd_filters.testing.dns import DNSServer
from tests.bench.lookups import addresses, play
from tests.bench.player import Player

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters import Session
    from smtpd_filters.protocol.decisions import Decision
    from tests.bench.workloads import Sessions

#: Seconds that each answer takes.
DELAY = 0.03
#: Sessions at a time, so few that neither the name server nor the player holds them up.
CONCURRENT = 2
FILTERS = tuple(f"list-{letter}" for letter in "abcde")
ZONE = {f"*.{name}.example": {"A": "192.0.2.1", "delay": DELAY} for name in FILTERS}


class Looks(Filter):
    """Look the client up in a zone of its own when it has a sender."""

    name = "looks"
    dns = Resolver.setting()

    def setup(self) -> Registration:
        return Registration(reports=())

    async def mail_from(self, session: Session, _address: str) -> Decision:
        outcome = await self.dns.query(f"{session.address}.{self.name}.example", "A")
        return PROCEED if isinstance(outcome, Found) else JUNK


class InTurn(Looks):
    """The same without being asked early."""

    name = "in-turn"
    early = False


def declared(kind: str, nameserver: str) -> str:
    """Return a chain file with five filters of a kind."""
    tables = [
        f'[filter.{name}]\nuse = "tests.bench.chains:{kind}"\nnameserver = ["{nameserver}"]\n'
        for name in FILTERS
    ]
    return f"[chain.five]\nfilters = [{', '.join(map(repr, FILTERS))}]\n\n" + "\n".join(tables)


def measure(sessions: int, lines: Sequence[bytes]) -> dict[str, Sessions]:
    """Play sessions of clients never seen before to a chain, and to one that is asked in turn."""
    found = {}
    with DNSServer(ZONE) as server, tempfile.TemporaryDirectory() as folder:
        nameserver = f"{server.address}:{server.port}"
        for kind, first in (("Looks", "10.0.0.0"), ("InTurn", "10.1.0.0")):
            path = Path(folder, f"{kind}.toml")
            path.write_text(declared(kind, nameserver))
            path.chmod(0o600)
            command = [sys.executable, "-m", "smtpd_filters.cli.chain", "--config", str(path)]
            clients = list(itertools.islice(addresses(first), sessions))
            with Player(command) as player:
                found[kind] = play(player, clients, lines, CONCURRENT)
    return found
