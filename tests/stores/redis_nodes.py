"""Nodes of a cluster that a test scripts: they die, hang, move slots and name each other."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

SLOTS = 16384
#: The reply to a `Get` of nothing.
NOTHING = b"*2\r\n$-1\r\n:0\r\n"


def saying(reply: bytes | None) -> Callable[[Sequence[bytes], Sequence[bytes]], bytes | None]:
    """Return a function for `Node.reply`."""
    return lambda *_: reply


def with_nonce(reply: bytes, command: bytes) -> bytes:
    """Return a reply with the nonce of a command: its last result, or the reply to a PING."""
    nonce = command.removesuffix(b"\r\n").rpartition(b"\r\n")[2]
    echo = b"$%d\r\n%b\r\n" % (len(nonce), nonce)
    if b"PING" in command:
        return reply + echo
    if not reply.startswith(b"*"):
        return reply
    count, _, results = reply[1:].partition(b"\r\n")
    return b"*%d\r\n%b" % (int(count) + 1, results + echo)


@asynccontextmanager
async def answering(reply_to: Callable[[bytes, int], bytes | None]) -> AsyncIterator[int]:
    """A server whose replies a test makes; yields its port.

    `reply_to` gets what a client has sent, and the port. It returns what the client gets, or None
    for an OK to each command.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        while data := await reader.read(65_536):
            reply = reply_to(data, port)
            writer.write(b"+OK\r\n" * data.count(b"*") if reply is None else reply)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]


class Node:
    """A node that replies to CLUSTER SLOTS with `slots`, and to EVALSHA with what `reply` returns.

    `reply` gets the command and the one before on its connection. A nonce is added to what it
    returns, and `more` follows once. None is silence, which all other commands get as well, such as
    COMMAND.
    """

    def __init__(self) -> None:
        self.port = 0
        self.slots = b""
        self.reply: Callable[[Sequence[bytes], Sequence[bytes]], bytes | None] = saying(NOTHING)
        self.more = b""
        self.hangs = False
        #: The commands that it got, but for those of handshakes.
        self.commands: list[Sequence[bytes]] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._served: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections, and break those that are open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._served)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        self._served.add(task)
        task.add_done_callback(self._served.discard)
        self._writers.add(writer)
        before: Sequence[bytes] = ()
        try:
            while command := await _command(reader):
                if (reply := self._answer(command, before)) is not None:
                    writer.write(reply)
                before = command
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    @property
    def connections(self) -> int:
        return len(self._writers)

    def _answer(self, command: Sequence[bytes], before: Sequence[bytes]) -> bytes | None:
        if self.hangs:
            return None
        if command[0] == b"PING":
            return with_nonce(b"", b"PING\r\n" + command[1])
        if command[0] != b"CLIENT":
            self.commands.append(command)
        if command[0] == b"CLUSTER":
            return self.slots
        if command[0] in {b"ASKING", b"CLIENT"}:
            return b"+OK\r\n"
        if not command[0].startswith(b"EVAL") or (reply := self.reply(command, before)) is None:
            return None
        more, self.more = self.more, b""
        return with_nonce(reply, command[-1]) + more


async def _command(reader: asyncio.StreamReader) -> Sequence[bytes]:
    line = await reader.readline()
    words = []
    try:
        for _ in range(int(line[1:] or b"0")):
            length = int((await reader.readline())[1:])
            words.append((await reader.readexactly(length + 2))[:-2])
    except asyncio.IncompleteReadError:
        return ()
    return words


def layout(*nodes: Node) -> bytes:
    """Return a reply to CLUSTER SLOTS: each node has an equal share, but for the last slots."""
    share = SLOTS // len(nodes)
    ranges = [
        b"*3\r\n:%d\r\n:%d\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n"
        % (number * share, (number + 1) * share - 1, node.port)
        for number, node in enumerate(nodes)
    ]
    return b"*%d\r\n" % len(ranges) + b"".join(ranges)


@asynccontextmanager
async def nodes(count: int) -> AsyncIterator[list[Node]]:
    """Start nodes with equal shares of the slots."""
    found = [Node() for _ in range(count)]
    try:
        for node in found:
            await node.start()
        for node in found:
            node.slots = layout(*found)
        yield found
    finally:
        for node in found:
            await node.stop()
