"""One LDAP connection without I/O, from bytes to messages and their requests.

Invariants
----------
*Bounded*: a message has at most `MESSAGE_MAX` bytes, which is known from its first six.
*Only what was asked*: messages for requests that aren't open are dropped; a notice of disconnection
ends the connection.
"""

from __future__ import annotations

from .ber import BERError, size_of
from .messages import Entry, Reference, Result, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes of a message.
MESSAGE_MAX = 1 << 20
_NUMBER_MAX = (1 << 31) - 1
_SEQUENCE = 0x30


class EngineError(Exception):
    """The server has ended the connection, or doesn't speak LDAP; the text is the cause."""


class Engine:
    """The numbers of open requests, and the bytes that are not a whole message yet."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._last = 0
        self._open: set[int] = set()

    def number(self) -> int:
        """Return the number of a new request, which is open until its result or `close`."""
        while True:
            self._last = self._last % _NUMBER_MAX + 1
            if self._last not in self._open:
                self._open.add(self._last)
                return self._last

    def unused(self) -> int:
        """Return a number for a request without a response."""
        number = self.number()
        self._open.discard(number)
        return number

    def close(self, number: int) -> None:
        """Drop what still arrives for a request."""
        self._open.discard(number)

    @property
    def pending(self) -> int:
        """The number of bytes that are not a whole message yet."""
        return len(self._buffer)

    def receive(self, data: bytes) -> Iterator[Entry | Result | Reference]:
        """Yield the messages that are complete with these bytes. Raises EngineError."""
        buffer = self._buffer
        buffer += data
        try:
            while buffer:
                if buffer[0] != _SEQUENCE:
                    raise EngineError("it does not speak LDAP")  # see below
                size = size_of(buffer)
                if size is not None and size > MESSAGE_MAX:
                    raise EngineError(f"a message of {size} bytes")
                if size is None or len(buffer) < size:
                    return
                message = decode(bytes(buffer[:size]))
                del buffer[:size]
                if isinstance(message, Result):
                    if message.number == 0:
                        raise EngineError(f"closes the connection: {message.reason}")
                    if message.number in self._open:
                        self._open.discard(message.number)
                        yield message
                elif message is not None and message.number in self._open:
                    yield message
        except BERError as error:
            raise EngineError(f"an invalid message: {error}") from None
