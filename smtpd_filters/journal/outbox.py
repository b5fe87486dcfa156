"""Stories on their way to the journal: several in one datagram while many come.

The first story is sent at once. Those that follow within `spacing` seconds are collected until a
datagram is full or the time is over: each datagram wakes the journal, which costs more than its
story does.
"""

from __future__ import annotations

import sys
from time import monotonic

from .wire import LIMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .sender import Sender

#: Seconds between two datagrams that are not full.
SPACING = 0.1
#: Bytes of a datagram with several stories. Linux takes 200 kB, but older BSDs little more than
#: `LIMIT`.
ROOM = 8000 if sys.platform == "linux" else LIMIT
_NEVER = float("inf")


class Outbox:
    """The stories of a process that are to be sent; `clock` is monotonic."""

    def __init__(
        self,
        sender: Sender,
        clock: Callable[[], float] = monotonic,
        *,
        room: int = ROOM,
        spacing: float = SPACING,
    ) -> None:
        """Send datagrams of `room` bytes, and smaller ones every `spacing` seconds, by `clock`."""
        self.sender = sender
        self._clock, self._room, self._spacing = clock, room, spacing
        self._held: list[bytes] = []
        #: The bytes of the datagram so far, and the losses that its stories report.
        self._size, self._reported = 1, 0
        #: When stories that wait are to be sent, by the clock: infinite if none does.
        self.due = _NEVER
        self._next = 0.0

    @property
    def losses(self) -> int:
        """Stories that were lost, and that no story on its way reports."""
        return self.sender.unreported - self._reported

    def add(self, stories: list[bytes], reported: int = 0) -> None:
        """Send the datagrams of a story, now or soon; the first reports so many losses."""
        for data in stories:
            if self._held and self._size + len(data) + 1 > self._room:
                self.flush()
            self._held.append(data)
            self._size += len(data) + 1
            self._reported += reported
            reported = 0
        if self._clock() >= self._next:
            self.flush()
        else:
            self.due = self._next

    def flush(self) -> None:
        """Send what waits."""
        held, reported = self._held, self._reported
        if not held:
            return
        self.due = self._next = self._clock() + self._spacing  # if there is no memory, then again
        data = held[0] if len(held) == 1 else b"[" + b",".join(held) + b"]"
        self._held, self._size, self._reported = [], 1, 0
        self.due = _NEVER
        if self.sender.send(data, len(held)):
            self.sender.unreported -= reported
