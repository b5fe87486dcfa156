"""A connection over one end of a pair of sockets, of which the test has the other."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.lookups.stream.connection import HIGH, READ, LostError, over

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Self

    from smtpd_filters.lookups.stream.connection import Connection

    Story = Callable[[Connection, socket.socket], Awaitable[None]]

MUCH = b"0123456789abcdef" * (16 * HIGH)


#: SO_LINGER's value by which a socket sends a reset when it is closed.
RESET = struct.pack("ii", 1, 0)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the ends of a connection over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


def played(
    story: Story,
    kind: type[socket.socket] = socket.socket,
    pair: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair,
) -> None:
    """Run a story with a connection over a socket of this kind, and the other end of it."""

    async def play() -> None:
        ours, theirs = pair()
        with kind(fileno=ours.detach()) as sock, theirs:
            sock.setblocking(False)  # noqa: FBT003  # its only parameter
            connection = over(sock)
            try:
                async with asyncio.timeout(20):
                    await story(connection, theirs)
            finally:
                connection.abort()

    asyncio.run(play())


async def read_all(sock: socket.socket) -> bytes:
    """Return everything that arrives up to the end."""

    def read() -> bytes:
        parts = []
        while part := sock.recv(1 << 20):
            parts.append(part)
        return b"".join(parts)

    return await asyncio.to_thread(read)


def test_more_than_the_socket_takes_arrives_before_the_end() -> None:
    async def story(connection: Connection, theirs: socket.socket) -> None:
        writing = asyncio.ensure_future(connection.write(MUCH))
        await asyncio.sleep(0)
        assert not writing.done()
        connection.write_eof()
        assert await read_all(theirs) == MUCH
        await writing
        theirs.sendall(b"thanks")
        assert await connection.read() == b"thanks"

    played(story)


def test_the_end_of_writing_alone() -> None:
    async def story(connection: Connection, theirs: socket.socket) -> None:
        await connection.write(b"hello")
        connection.write_eof()
        assert await read_all(theirs) == b"hello"

    played(story)


def test_last_data_arrives() -> None:
    async def story(connection: Connection, theirs: socket.socket) -> None:
        connection.end(b"bye")
        assert await read_all(theirs) == b"bye"
        with pytest.raises(LostError):
            await connection.write(b"more")

    played(story)


def test_last_data_does_not_wait_for_a_server_that_does_not_read() -> None:
    async def story(connection: Connection, theirs: socket.socket) -> None:
        writing = asyncio.ensure_future(connection.write(MUCH))
        await asyncio.sleep(0)
        connection.end(b"bye")
        assert MUCH.startswith(await read_all(theirs))
        await writing  # what was cut short is said by the next call
        assert await connection.read() == b""

    played(story)


def test_a_server_that_is_gone_ends_a_write() -> None:
    async def story(connection: Connection, theirs: socket.socket) -> None:
        writing = asyncio.ensure_future(connection.write(MUCH))
        await asyncio.sleep(0)
        theirs.close()
        await writing
        connection.write_eof()
        with pytest.raises(LostError):
            await connection.write(b"more")

    played(story)


def test_an_end_without_data_on_a_connection_that_broke() -> None:
    async def story(connection: Connection, theirs: socket.socket) -> None:
        theirs.close()
        connection.end(b"bye")
        connection.end(b"bye")
        connection.acknowledge()
        assert not connection.fresh
        assert await connection.read() == b""

    played(story)


class Short(socket.socket):
    """A socket that has no memory for what arrives."""

    def recv(self, _bufsize: int, _flags: int = 0) -> bytes:
        raise MemoryError


def test_a_lack_of_memory_ends_it() -> None:
    """A piece that could not be kept would be missing in the middle of a reply."""

    async def story(connection: Connection, theirs: socket.socket) -> None:
        theirs.sendall(b"hello")
        with pytest.raises(LostError):
            await connection.read()

    played(story, Short)


class Unkept(bytearray):
    """No memory for the first piece that arrives."""

    def __iadd__(self, data: object) -> Self:
        if b"first" in bytes(data):  # type: ignore[call-overload]
            raise MemoryError
        return super().__iadd__(data)  # type: ignore[arg-type]


def test_nothing_is_read_behind_a_piece_that_could_not_be_kept() -> None:
    async def story(connection: Connection, theirs: socket.socket) -> None:
        connection._data = Unkept()
        theirs.sendall(b"first".ljust(READ) + b"second")
        with pytest.raises(LostError):
            await connection.read()

    played(story)


class Refusing(socket.socket):
    """A socket that can't be watched."""

    def fileno(self) -> int:
        raise OSError("no descriptor")


def test_a_socket_that_cannot_be_watched_is_closed() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        with theirs, Refusing(fileno=ours.detach()) as sock:
            with pytest.raises(OSError, match="no descriptor"):
                over(sock)
            assert theirs.recv(1) == b""

    asyncio.run(run())


@pytest.mark.parametrize("goes_on", [True, False])
def test_data_that_arrived_before_the_end_is_unread(goes_on: bool) -> None:  # noqa: FBT001
    async def story(connection: Connection, theirs: socket.socket) -> None:
        theirs.sendall(b"unasked")
        theirs.shutdown(socket.SHUT_WR) if goes_on else theirs.close()
        assert connection.unread
        assert await connection.read() == b"unasked"
        assert not connection.unread

    played(story)


def test_an_end_alone_is_not_unread() -> None:
    async def story(connection: Connection, theirs: socket.socket) -> None:
        theirs.close()
        assert not connection.unread

    played(story)


class Stuck(bytearray):
    """No memory to leave the rest of what is unsent."""

    def __delitem__(self, _key: object) -> None:
        raise MemoryError


def test_nothing_is_sent_twice_without_memory() -> None:
    async def story(connection: Connection, theirs: socket.socket) -> None:
        connection._unsent = Stuck()
        writing = asyncio.ensure_future(connection.write(MUCH))
        await asyncio.sleep(0)
        assert MUCH.startswith(await read_all(theirs))
        await writing
        with pytest.raises(LostError):
            await connection.write(b"more")

    played(story)


class NoRoom(bytearray):
    """No memory for what is unsent."""

    def __iadd__(self, _data: object) -> Self:
        raise MemoryError


def test_a_write_without_memory_leaves_nothing_watched() -> None:
    async def story(connection: Connection, theirs: socket.socket) -> None:
        number = theirs.fileno()
        connection._unsent = NoRoom()
        with pytest.raises(MemoryError):
            await connection.write(MUCH)
        freed = connection._number
        connection.abort()
        another = os.dup(number)  # the next descriptor gets the number
        assert another == freed
        try:
            assert not asyncio.get_running_loop().remove_writer(another)
        finally:
            os.close(another)

    played(story)


@pytest.mark.parametrize("then", ["reads", "closes"])
def test_a_reply_is_early_as_long_as_anything_is_unsent(then: str) -> None:
    """All chunks are made, but the last of them is still here when the reply arrives."""

    async def story(connection: Connection, theirs: socket.socket) -> None:
        size = 0
        while not connection._unsent:  # the system takes some
            assert await connection.send([b"x" * 1000])
            size += 1000
        early = [connection.early]
        theirs.sendall(b"OK")
        if then == "closes":
            theirs.close()
        assert await connection.read() == b"OK"
        if then == "reads":
            connection.write_eof()
            assert len(await read_all(theirs)) == size
        early.append(connection.early)
        connection.begin()
        early.append(connection.early)
        assert early == [False, True, False]

    played(story)


def test_a_reply_to_all_that_was_sent_is_not_early() -> None:
    async def story(connection: Connection, theirs: socket.socket) -> None:
        assert await connection.send([b"x" * 1000, b"y"])
        theirs.sendall(b"OK")
        assert await connection.read() == b"OK"
        assert not connection.early

    played(story)


def test_a_reply_to_nothing_is_seen_before_a_reset() -> None:
    """It would be treated as the reply to the next request."""

    async def story(connection: Connection, theirs: socket.socket) -> None:
        theirs.send(b"reply")
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        theirs.close()
        assert connection.unread

    played(story, pair=tcp_pair)


def test_a_reset_is_reported_after_a_look_for_data() -> None:
    """The system reports it once."""

    async def story(connection: Connection, theirs: socket.socket) -> None:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        theirs.close()
        assert not connection.unread
        with pytest.raises(LostError) as lost:
            await connection.read()
        assert getattr(lost.value.cause, "errno", None) == errno.ECONNRESET

    played(story, pair=tcp_pair)
