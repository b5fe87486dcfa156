"""A relay in front of a daemon, which passes its replies on as slowly as a test says."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from tests.e2e.daemon import LOOPBACK, PATIENCE

if TYPE_CHECKING:
    from smtpd_filters.testing.server import Lab


class Relay:
    """A context manager that relays connections from a port of its own to that of a daemon.

    While it is stopped, connections are refused. A daemon that refuses or resets one has the
    connection to the relay closed.
    """

    def __init__(self, lab: Lab, port: int) -> None:
        self._lab, self._to = lab, port
        self._news = threading.Condition()
        self._delay = 0.0
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        #: Pieces of replies that were delayed.
        self.delayed = 0
        self.port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """HOST:PORT in the lab."""
        return f"{LOOPBACK}:{self.port}"

    def delay(self, seconds: float) -> None:
        """Delay each piece of a reply from now on; what waits already goes on."""
        with self._news:
            self._delay = seconds
            self._news.notify_all()

    def start(self) -> None:
        """Listen, after `stop` at the same port."""
        self._listener = listener = self._lab.new_socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, self.port))
        self.port = listener.getsockname()[1]
        listener.listen(128)
        self._spawn(self._accept, listener)

    def stop(self) -> None:
        """Close the listener and all connections."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.delay(0)
        with self._news:
            threads, self._threads = self._threads, []
            for link in self._open:
                with suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(PATIENCE)

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        with self._news:
            self._threads = [each for each in self._threads if each.is_alive()]
            thread.start()
            self._threads.append(thread)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # stopped
            while True:
                link, _ = listener.accept()
                self._spawn(self._connect, link)

    def _connect(self, link: socket.socket) -> None:
        with link, suppress(OSError), self._lab.new_socket() as there:
            there.connect((LOOPBACK, self._to))
            with self._news:
                self._open |= {link, there}
            requests = threading.Thread(target=self._pass, args=(link, there), daemon=True)
            requests.start()
            self._pass(there, link, reply=True)
            # A daemon that has ended its reply has ended the connection.
            with suppress(OSError):
                there.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                link.shutdown(socket.SHUT_RD)
            requests.join(PATIENCE)
            with self._news:
                self._open -= {link, there}

    def _pass(self, source: socket.socket, target: socket.socket, *, reply: bool = False) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if reply and self._delay:
                    self._hold()
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _hold(self) -> None:
        with self._news:
            delay = self._delay
            self.delayed += 1
            self._news.wait_for(lambda: self._delay != delay, delay)
