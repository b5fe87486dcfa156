"""A scripted server for one test: each connection is handled by the next of its scripts."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from smtpd_filters.lookups.stream import Address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


#: Turns of the loop from accepting a connection to the first step of its script. asyncio leaks the
#: connection if the server is closed or the task is cancelled in between.
TURNS = 4


class Peer:
    """A server on loopback, or at the path of a socket."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        #: How many connections were accepted, and how many are open.
        self.accepted = self.open = 0
        self.address: Address

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle a connection; the last script is for all further ones."""
        script = self._scripts[min(self.accepted, len(self._scripts) - 1)]
        self.accepted += 1
        self.open += 1
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true, which the server's side makes so."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # nothing else tells
            await asyncio.sleep(0.001)


@asynccontextmanager
async def served(*scripts: Script, path: str = "") -> AsyncIterator[Peer]:
    """Run a server with these scripts."""
    peer = Peer(*scripts)
    if path:
        server = await asyncio.start_unix_server(peer.handle, path)
        peer.address = Address(path=path)
    else:
        server = await asyncio.start_server(peer.handle, "127.0.0.1", 0)
        peer.address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield peer
    finally:
        for _ in range(TURNS):
            await asyncio.sleep(0)
        server.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the client gets a reset instead of an end."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Return each line."""
    while line := await reader.readline():
        writer.write(line)


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
    """Read everything, and say nothing."""
    while await reader.read(1 << 16):
        pass


async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
    """Read a line and close the connection."""
    await reader.readline()


async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read a line and reset the connection."""
    await reader.readline()
    reset(writer)


async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Return half a line."""
    line = await reader.readline()
    writer.write(line[: len(line) // 2])


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Return bytes without end."""
    await reader.readline()
    while not writer.is_closing():
        writer.write(b"x" * 65536)
        await writer.drain()


def says(data: bytes) -> Script:
    """Return a script that reads a line and says this, whatever the line was."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(data)

    return say
