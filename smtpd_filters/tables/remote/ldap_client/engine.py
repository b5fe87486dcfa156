"""One LDAP connection without I/O, from bytes to messages and their requests.

Invariants
----------
*Bounded*: a message of more than `MESSAGE_MAX` bytes, as its first ones tell, is dropped while it
arrives; one of more than `DROPPED_MAX` ends the connection.
*One fails alone*: an entry that is too large fails its own request. Clients choose the keys.
*Only what was asked*: messages for requests that aren't open are dropped; a notice of disconnection
ends the connection.
"""

from __future__ import annotations

from .ber import BERError, first_integer, size_of
from .messages import Entry, Reference, Result, TooLarge, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes of a message that is read, and of one that is dropped.
MESSAGE_MAX, DROPPED_MAX = 1 << 20, 1 << 26
_NUMBER_MAX = (1 << 31) - 1
_SEQUENCE = 0x30


#: Stands for a message that means nothing to us.
_NOTHING = Reference(0)


class EngineError(Exception):
    """The server has ended the connection, or doesn't speak LDAP; the text is the cause."""


class Engine:
    """The numbers of open requests, and the bytes that are not a whole message yet."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        #: The bytes that are still to come of a message that is dropped.
        self._dropped = 0
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

    @property
    def is_between(self) -> bool:
        """Whether no part of a message has arrived."""
        return not (self._buffer or self._dropped)

    def receive(self, data: bytes) -> Iterator[Entry | Result | Reference | TooLarge]:
        """Yield the messages that are complete with these bytes. Raises EngineError."""
        buffer = self._buffer
        if self._dropped:
            count = min(self._dropped, len(data))
            self._dropped -= count
            data = data[count:]
        buffer += data
        try:
            while buffer:
                message = self._next()
                if message is None:
                    return
                if isinstance(message, Result):
                    if message.number == 0:
                        raise EngineError(f"closes the connection: {message.reason}")
                    if message.number in self._open:
                        self._open.discard(message.number)
                        yield message
                elif message is not _NOTHING and message.number in self._open:
                    yield message
        except BERError as error:
            raise EngineError(f"an invalid message: {error}") from None

    def _next(self) -> Entry | Result | Reference | TooLarge | None:
        """Return the first message, which is removed; None if it isn't complete."""
        buffer = self._buffer
        if buffer[0] != _SEQUENCE:
            raise EngineError("it does not speak LDAP")
        size = size_of(buffer)
        if size is None:
            return None
        message: Entry | Result | Reference | TooLarge | None
        if size > MESSAGE_MAX:
            if size > DROPPED_MAX:
                raise EngineError(f"a message of {size} bytes")
            number = first_integer(buffer)
            if number is None:
                return None
            message = TooLarge(number, f"a message of {size} bytes")
            self._dropped = max(size - len(buffer), 0)
        elif len(buffer) < size:
            return None
        else:
            message = decode(bytes(buffer[:size]))
        del buffer[:size]
        return message or _NOTHING
