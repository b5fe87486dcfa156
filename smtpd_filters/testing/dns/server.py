"""The name server: an authority with UDP and TCP sockets on loopback, in its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any, Self, cast

from smtpd_filters.testing.background import catch_up

from .authority import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


class DNSServer(Authority):
    """A context manager that runs the server in a thread.

    `listen` is a list of (address, port); port 0 is a free one, the same for UDP and TCP.
    `negative_ttl` is in seconds, or None; see `Authority`.

    Raises ValueError for an invalid zone, and OSError on entry if it can't listen.
    """

    def __init__(
        self,
        zone: Mapping[str, object] | None = None,
        *,
        listen: Iterable[tuple[str, int]] = (("127.0.0.1", 0),),
        negative_ttl: int | None = 60,
    ) -> None:
        super().__init__(zone, negative_ttl=negative_ttl)
        self._listen = list(listen)
        #: The (address, port) pairs of its sockets, in the order of `listen`.
        self.endpoints: list[tuple[str, int]] = []
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._bound = threading.Event()
        self._failures: list[BaseException] = []

    @property
    def address(self) -> str:
        """The first address."""
        return self.endpoints[0][0]

    @property
    def port(self) -> int:
        """The port of the first address."""
        return self.endpoints[0][1]

    def __enter__(self) -> Self:
        self._bound.clear()
        self._failures.clear()
        self._thread = threading.Thread(target=self._run, name="dns-server", daemon=True)
        self._thread.start()
        self._bound.wait()
        for failure in self._failures:
            self._thread.join()
            raise failure
        return self

    def __exit__(self, *_: object) -> None:
        self.catch_up()
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def catch_up(self) -> None:
        """Wait until pending datagrams are read and pending connections accepted.

        The thread may lag behind the clients.
        """
        if self._loop is None or self._thread in {None, threading.current_thread()}:
            return
        catch_up(self._loop, lambda: self._sockets)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as exc:  # noqa: BLE001  # raised in the thread of the context
            self._failures.append(exc)
        finally:
            self._bound.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.endpoints, self._sockets = [], []
        async with contextlib.AsyncExitStack() as stack:
            for address, port in self._listen:
                udp, tcp = _bind(address, port)
                self.endpoints.append((address, udp.getsockname()[1]))
                self._sockets += (udp, tcp)
                transport, _ = await self._loop.create_datagram_endpoint(
                    lambda: _Datagrams(self), sock=udp
                )
                stack.callback(transport.close)
                server = await asyncio.start_server(self._connection, sock=tcp)
                stack.callback(server.close)
            self._bound.set()
            await self._stop.wait()
        # Cancel pending answers: delays and dropped TCP connections.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def datagram(self, wire: bytes, send: Callable[[bytes], None]) -> None:
        """Answer a UDP question, at once or with its delay."""
        for delay, answer in self.answers(wire, tcp=False):
            if delay:
                asyncio.get_running_loop().call_later(delay, send, answer)
            else:
                send(answer)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                wire = await reader.readexactly(length)
                for delay, answer in self.answers(wire, tcp=True):
                    await asyncio.sleep(delay)
                    if not answer:
                        return
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client disconnected, or the server stops
        finally:
            self._tasks.discard(task)
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DNSServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._server.datagram(data, lambda answer: self._send(answer, addr))

    def _send(self, answer: bytes, addr: tuple[Any, ...]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(answer, addr)


def _bind(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Return a UDP and a listening TCP socket bound to one address and one port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # A port that is free for UDP may be in use for TCP; another one is likely to be free for both.
    for attempts_left in reversed(range(20)):
        udp = socket.socket(family, socket.SOCK_DGRAM)
        tcp = socket.socket(family, socket.SOCK_STREAM)
        try:
            udp.bind((address, port))
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((address, udp.getsockname()[1]))
            tcp.listen(128)
        except OSError:
            udp.close()
            tcp.close()
            if port or not attempts_left:
                raise
        else:
            # A burst of questions lost in the kernel would make a test flaky.
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            udp.setblocking(False)  # noqa: FBT003  # the parameter is positional-only
            tcp.setblocking(False)  # noqa: FBT003
            return udp, tcp
    raise AssertionError  # pragma: no cover  # the last attempt raises
