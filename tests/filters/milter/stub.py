"""A milter that follows the script of a test, over a real socket.

It speaks by `smtpd_filters.milter.MilterSide`, so that what libmilter would reset the connection
for fails the test. Each connection has a thread of its own.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd_filters.milter import Agreement, MilterError, MilterSide, Verdict
from smtpd_filters.milter import vocabulary as v
from tests.filters.serving import Serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import TypeAlias

    from smtpd_filters.milter import Event
    from tests.filters.serving import Link

    #: Bytes to write for an event: none for no answer, None to close the connection.
    Script: TypeAlias = Callable[["Event", "Seen"], bytes | None]

#: What the milters of most tests ask for: everything, and to be sent it with its leading space.
PLAIN = Agreement(6, 0x1FF, v.LEADING_SPACE | v.NO_UNKNOWN)


@dataclass
class Seen:
    """What one connection was sent."""

    link: Link
    events: list[Event] = field(default_factory=list)

    @property
    def commands(self) -> bytes:
        """The commands, one byte each, without the negotiation."""
        return b"".join(event.command for event in self.events[1:])

    def fields(self, command: bytes) -> list[tuple[bytes, ...]]:
        """Return the fields of all events of a kind."""
        return [event.fields for event in self.events if event.command == command]

    @property
    def body(self) -> bytes:
        """All pieces of bodies."""
        return b"".join(piece for pieces in self.fields(v.BODY) for piece in pieces)


class Stub:
    """A milter; `script` or `answers` say what it answers, by default `c` to everything."""

    def __init__(
        self,
        agreement: Agreement | bytes = PLAIN,
        answers: Mapping[bytes, bytes | None] | None = None,
        script: Script | None = None,
        path: Path | None = None,
    ) -> None:
        self.agreement = agreement
        self.answers = dict(answers or {})
        self.script = script
        self._path = path
        self._connections: list[Seen] = []
        #: What was wrong with the bytes of any connection.
        self.errors: list[str] = []
        #: Whether the end of a message has been answered.
        self.answered = threading.Event()
        self.address = ""
        self._serving = Serving(self._serve, path)

    @property
    def connections(self) -> list[Seen]:
        """The connections in which more than the negotiation was sent, in their order."""
        self._serving.catch_up()
        return self._connections

    @property
    def seen(self) -> Seen:
        """The only connection."""
        (seen,) = self.connections
        return seen

    def start(self) -> None:
        """Listen; after `stop` at the same place."""
        self._serving.start()
        path, port = self._path, self._serving.port
        self.address = f"unix:{path}" if path is not None else f"inet:{port}@127.0.0.1"

    def stop(self) -> None:
        """Close everything, as a milter that was killed."""
        self._serving.stop()

    def close(self) -> None:
        """Stop, for good."""
        self._serving.close()

    def _serve(self, link: Link) -> None:
        seen, milter = Seen(link), MilterSide()
        try:
            while (data := link.recv(1 << 16)) and all(
                self._take(link, seen, event) for event in milter.receive(data)
            ):
                pass
        except MilterError as error:
            self.errors.append(str(error))

    def _take(self, link: Link, seen: Seen, event: Event) -> bool:
        if event.command == v.QUIT and len(seen.events) == 1:
            return False  # a trial
        seen.events.append(event)
        if event.command == v.NEGOTIATE:
            agreed = self.agreement
            link.sendall(agreed if isinstance(agreed, bytes) else agreed.encode())
            return True
        if seen not in self._connections:
            self._connections.append(seen)
        answer = self._answer(event, seen)
        if answer is None or event.command == v.QUIT:
            return False
        if answer:
            link.sendall(answer)
        if event.command == v.END_OF_BODY:
            self.answered.set()
        return True

    def _answer(self, event: Event, seen: Seen) -> bytes | None:
        if self.script is not None:
            return self.script(event, seen)
        if event.command in self.answers:
            return self.answers[event.command]
        return self.usual(event)

    def usual(self, event: Event) -> bytes:
        """Return `c`, unless the event has no answer."""
        if event.command in {v.ABORT, v.QUIT}:
            return b""
        agreed = self.agreement
        assert isinstance(agreed, Agreement)
        if event.command != v.END_OF_BODY and not agreed.answers(event.command):
            return b""
        return Verdict(v.CONTINUE).encode()


@contextmanager
def milter(
    agreement: Agreement | bytes = PLAIN,
    answers: Mapping[bytes, bytes | None] | None = None,
    script: Script | None = None,
    path: Path | None = None,
) -> Iterator[Stub]:
    """Run a milter."""
    stub = Stub(agreement, answers, script, path)
    stub.start()
    try:
        yield stub
    finally:
        stub.close()
    assert not stub.errors
