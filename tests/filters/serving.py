"""The listener and the connections of stub servers: threads that know what they have yet to read.

A filter may be done with a server, after a time-out for example, before the server's threads have
read what it was sent. `Serving.catch_up` waits for them, so that a test can count requests.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Seconds that a connection may be idle, and that `catch_up` waits.
PATIENCE = 60.0
#: SO_LINGER's value by which a socket sends a reset when it is closed.
_RESET = struct.pack("ii", 1, 0)


class Link(socket.socket):
    """A connection of a stub; only its thread may call `recv`.

    The thread has the lock `busy` while it doesn't wait for something to read.
    """

    def __init__(self, fileno: int, number: int) -> None:
        super().__init__(fileno=fileno)
        #: Its number, counted from 1.
        self.number = number
        self.settimeout(PATIENCE)
        self.busy = threading.Lock()
        #: Whether its thread reads no more, although the connection stays open.
        self.deaf = False

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Wait for bytes and return them; b"" at the end. Raises OSError."""
        with self._idle():
            readable = is_readable(self, PATIENCE)
        if not readable:
            raise TimeoutError
        return super().recv(size, flags)

    def wait_for_end(self) -> None:
        """Read nothing more; wait until the client or `Serving.stop` ends the connection."""
        self.deaf = True
        poll = select.poll()
        poll.register(self, select.POLLHUP | select.POLLERR)
        with self._idle():
            poll.poll(PATIENCE * 1000)

    def reset(self) -> None:
        """Close it with a reset, over TCP."""
        if self.family == socket.AF_INET:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()

    @contextmanager
    def _idle(self) -> Iterator[None]:
        self.busy.release()
        try:
            yield
        finally:
            self.busy.acquire()


class Serving:
    """A listener, and its connections with a thread each, in which `serve` is called.

    It listens on a unix socket, or at a port of loopback: at the same one whenever it is started.
    `new` makes its sockets, as one of another network namespace does.
    """

    def __init__(
        self,
        serve: Callable[[Link], None],
        path: Path | None = None,
        new: Callable[[], socket.socket] = socket.socket,
    ) -> None:
        self._serve = serve
        self._path = path
        self._new = new
        self._accepted = 0
        #: The connections that are open.
        self.links: list[Link] = []
        self._listener: socket.socket | None = None
        self._accepting = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._reserved: socket.socket | None = None
        #: 0 before it listens.
        self.port = 0

    def start(self) -> None:
        """Listen."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self._path))
            self._path.chmod(0o777)
        else:
            if self._reserved is None:
                # No other process gets the port while nothing listens there.
                self._reserved = self._bound()
                self.port = self._reserved.getsockname()[1]
            listener = self._bound()
        listener.listen(1024)
        self._listener = listener
        self._spawn(self._accept, listener)

    def _bound(self) -> socket.socket:
        made = self._new()
        # Two sockets may be bound to one port if both set this and only one listens.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", self.port))
        return made

    def stop(self) -> None:
        """Read what has been sent and end all connections; new ones are refused."""
        self.catch_up()
        if (listener := self._listener) is not None:
            self._listener = None
            with self._accepting:
                listener.shutdown(socket.SHUT_RDWR)
        for link in list(self.links):
            with suppress(OSError):  # the other end may have closed it
                link.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._threads.clear()

    def close(self) -> None:
        """Stop, for good."""
        self.stop()
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    def catch_up(self) -> None:
        """Wait until the threads, which may lag behind the clients, have read what was sent.

        From `serve` this does nothing.
        """
        if threading.current_thread() in self._threads:
            return
        if (listener := self._listener) is not None:
            _wait_for(self._accepting, lambda: not is_readable(listener, 0))
        for link in list(self.links):
            _wait_for(link.busy, lambda link=link: self._has_read(link))  # type: ignore[misc]  # mypy can't infer it

    @property
    def connections(self) -> int:
        """The number of connections so far."""
        self.catch_up()
        return self._accepted

    def _has_read(self, link: Link) -> bool:
        return link not in self.links or link.deaf or not is_readable(link, 0)

    def _spawn(self, function: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while is_readable(listener):
                with self._accepting:
                    try:
                        accepted, _ = listener.accept()
                    except OSError:
                        return
                    self._accepted += 1
                    link = Link(accepted.detach(), self._accepted)
                    link.busy.acquire()
                    self.links.append(link)
                    self._spawn(self._converse, link)

    def _converse(self, link: Link) -> None:
        try:
            with suppress(OSError):
                self._serve(link)
        finally:
            self.links.remove(link)
            link.close()
            link.busy.release()


def _wait_for(lock: threading.Lock, condition: Callable[[], bool]) -> None:
    """Wait until a condition is true that a thread with this lock makes so."""
    until = monotonic() + PATIENCE
    while True:
        assert lock.acquire(timeout=PATIENCE), "the stub doesn't catch up"
        try:
            if condition():
                return
        finally:
            lock.release()
        assert monotonic() < until, "the stub doesn't catch up"
        sleep(0)  # let the thread take the lock


def is_readable(sock: socket.socket, seconds: float | None = None) -> bool:
    """Wait until there is something to read or to accept; return whether there is."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))
