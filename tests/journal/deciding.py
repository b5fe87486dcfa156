"""A process that decides: a chain in an engine, whose journal is a list."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters.journal.collector import Collector
from smtpd_filters.journal.outbox import ROOM
from smtpd_filters.journal.wire import LIMIT
from smtpd_filters.runtime.engine import Engine
from smtpd_filters.testing.in_process import Served

from .made import parse_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from smtpd_filters import Filter
    from smtpd_filters.scoring.rules import Rules

    Decide = Callable[..., "Deciding"]

RECORDINGS = Path(__file__).parents[2] / "fixtures" / "protocol"


class Sent:
    """In place of a sender: keeps what is sent."""

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []
        self.dropped = self.unreported = 0
        self.full = False
        #: Has everything sent that waits.
        self.flush: Callable[[], object] = int

    def send(self, data: bytes, stories: int = 1) -> bool:
        assert len(data) <= (LIMIT if stories < 2 else ROOM)
        if self.full:
            self.dropped += stories
            self.unreported += stories
            return False
        self.datagrams.append(data)
        return True

    @property
    def parts(self) -> list[dict[str, Any]]:
        self.flush()
        return [part for data in self.datagrams for part in parse_all(data)]


class Deciding(Served):
    """Filters with a journal."""

    def __init__(self, *filters: Filter, rules: Rules | None = None) -> None:
        super().__init__(filters, (), None, None, rules)
        self.sent = Sent()
        collector = Collector(self.sent, "filter-test", self.log)  # type: ignore[arg-type]
        self.sent.flush = collector.flush
        self.chain.keep_journal(collector)
        self.engine = Engine(self.chain, self.log)
        self.engine.spawn = self._spawn

    def replay(self, name: str, release: str = "7.8.0p1") -> list[dict[str, Any]]:
        """Play smtpd's side of a recording; return what was sent."""
        for line in lines(name, release):
            self.receive(line)
            self.output()
            while self.run():
                self.output()
        return self.sent.parts


def lines(name: str, release: str = "7.8.0p1") -> Iterable[bytes]:
    """Yield what smtpd wrote in a recording."""
    for line in (RECORDINGS / release / f"{name}.session").read_bytes().split(b"\n"):
        if line.startswith(b"< "):
            yield line[2:] + b"\n"
