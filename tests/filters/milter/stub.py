"""A milter that follows the script of a test, over a real socket.

It speaks by `smtpd_filters.milter.MilterSide`, so that what libmilter would reset the connection
for fails the test. Each connection has a thread of its own.
"""

from __future__ import annotations

import select
import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from time import monotonic, sleep
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
        self._connections: list[Seen] = []
        #: What was wrong with the bytes of any connection.
        self.errors: list[str] = []
        #: Whether the end of a message has been answered.
        self.answered = threading.Event()
        self.address = ""
        self._listener: socket.socket | None = None
        #: The open connections, each with a lock that its thread has while it reads and answers.
        self._open: dict[socket.socket, threading.Lock] = {}
        self._accepting = threading.Lock()
        self._threads: list[threading.Thread] = []

    @property
    def connections(self) -> list[Seen]:
        """The connections in which more than the negotiation was sent, in their order."""
        self.catch_up()
        return self._connections

    def catch_up(self) -> None:
        """Wait until the threads, which may lag behind the filter, have read what it has written.

        From a script this does nothing.
        """
        if threading.current_thread() in self._threads:
            return
        if (listener := self._listener) is not None:
            _wait_for(self._accepting, lambda: not _is_readable(listener, 0))
        for link, lock in list(self._open.items()):
            _wait_for(lock, partial(self._has_read, link))

    def _has_read(self, link: socket.socket) -> bool:
        return link not in self._open or not _is_readable(link, 0)

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
        self.catch_up()
        if (listener := self._listener) is not None:
            self._listener = None
            with self._accepting:
                listener.shutdown(socket.SHUT_RDWR)
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
        with listener:
            while _is_readable(listener):
                with self._accepting:
                    try:
                        link, _ = listener.accept()
                    except OSError:
                        return
                    self._open[link] = lock = threading.Lock()
                self._start(self._serve, link, lock)

    def _serve(self, link: socket.socket, lock: threading.Lock) -> None:
        seen, milter = Seen(), MilterSide()
        link.settimeout(PATIENCE)
        goes_on = True
        while goes_on:
            goes_on = _is_readable(link, PATIENCE)
            with lock:
                try:
                    goes_on = goes_on and self._read(link, seen, milter)
                except BaseException:
                    goes_on = False
                    raise
                finally:
                    if not goes_on:
                        del self._open[link]
                        link.close()

    def _read(self, link: socket.socket, seen: Seen, milter: MilterSide) -> bool:
        """Read and answer once; return whether the connection stays open."""
        try:
            data = link.recv(1 << 16)
            return bool(data) and all(
                self._take(link, seen, event) for event in milter.receive(data)
            )
        except MilterError as error:
            self.errors.append(str(error))
        except OSError:
            pass
        return False

    def _take(self, link: socket.socket, seen: Seen, event: Event) -> bool:
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


def _wait_for(lock: threading.Lock, condition: Callable[[], bool]) -> None:
    """Wait until a condition is true that a thread with this lock makes so."""
    until = monotonic() + PATIENCE
    while True:
        with lock:
            if condition():
                return
        assert monotonic() < until, "the stub doesn't catch up"
        sleep(0)  # let the thread take the lock


def _is_readable(sock: socket.socket, seconds: float | None = None) -> bool:
    """Wait until there is something to read or to accept; return whether there is."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


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
