"""A milter that follows the script of a test, over a real socket.

It speaks by `smtpd_filters.milter.MilterSide`, so that what libmilter would reset the connection
for fails the test. Each connection has a thread of its own.
"""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd_filters.milter import Agreement, MilterError, MilterSide, Verdict
from smtpd_filters.milter import vocabulary as v

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import TypeAlias

    from smtpd_filters.milter import Event

    #: Bytes to write for an event: none for no answer, None to close the connection.
    Script: TypeAlias = Callable[["Event", "Seen"], bytes | None]

#: What the milters of most tests ask for: everything, and to be sent it with its leading space.
PLAIN = Agreement(6, 0x1FF, v.LEADING_SPACE | v.NO_UNKNOWN)
#: Seconds that a connection may be idle.
PATIENCE = 30.0


@dataclass
class Seen:
    """What one connection was sent."""

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
    ) -> None:
        self.agreement = agreement
        self.answers = dict(answers or {})
        self.script = script
        #: The connections in which more than the negotiation was sent, in their order.
        self.connections: list[Seen] = []
        #: What was wrong with the bytes of any connection.
        self.errors: list[str] = []
        #: Whether the end of a message has been answered.
        self.answered = threading.Event()
        self.address = ""
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def seen(self) -> Seen:
        """The only connection."""
        (seen,) = self.connections
        return seen

    def listen(self, path: Path | None = None, port: int = 0) -> None:
        """Listen on a unix socket, or on loopback."""
        if path is not None:
            self._listener = listener = socket.socket(socket.AF_UNIX)
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            path.chmod(0o777)
            self.address = f"unix:{path}"
        else:
            self._listener = listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            self.address = f"inet:{listener.getsockname()[1]}@127.0.0.1"
        listener.listen(128)
        self._start(self._accept, listener)

    def stop(self) -> None:
        """Close everything, as a milter that was killed."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for link in list(self._open):
            with suppress(OSError):  # the other end may have closed it
                link.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._threads.clear()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            self._open.add(link)
            self._start(self._serve, link)

    def _serve(self, link: socket.socket) -> None:
        seen, milter = Seen(), MilterSide()
        link.settimeout(PATIENCE)
        try:
            while data := link.recv(1 << 16):
                for event in milter.receive(data):
                    if not self._take(link, seen, event):
                        return
        except MilterError as error:
            self.errors.append(str(error))
        except OSError:
            pass
        finally:
            self._open.discard(link)
            link.close()

    def _take(self, link: socket.socket, seen: Seen, event: Event) -> bool:
        if event.command == v.QUIT and len(seen.events) == 1:
            return False  # a trial
        seen.events.append(event)
        if event.command == v.NEGOTIATE:
            agreed = self.agreement
            link.sendall(agreed if isinstance(agreed, bytes) else agreed.encode())
            return True
        if seen not in self.connections:
            self.connections.append(seen)
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
    stub = Stub(agreement, answers, script)
    stub.listen(path)
    try:
        yield stub
    finally:
        stub.stop()
    assert not stub.errors
