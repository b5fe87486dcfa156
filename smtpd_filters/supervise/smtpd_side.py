"""The engine's ear for smtpd: lines of messages are processed in blocks, any others one at a time.

Invariants
----------
*Retried*: a line that is not processed for lack of memory is processed again.
*In order*: lines of one session are processed in smtpd's order. Those of different sessions don't
depend on each other.
"""

from __future__ import annotations

from io import BytesIO
from itertools import chain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .transit import Transit

_NONE: Iterator[bytes] = iter(())


class SmtpdSide:
    """Reads what smtpd writes.

    `handle` is called with each line that does not belong to a known message. It returns the key of
    a message that begins with this line, which is then processed in a block (`Transit.blocks`), or
    an empty string.
    """

    def __init__(self, transit: Transit, handle: Callable[[bytes], bytes]) -> None:
        self._transit, self._handle = transit, handle
        #: Lines are left unprocessed, for lack of memory.
        self.stalled = False
        self._partial = bytearray()
        #: Lines to process: those of known messages by key, then one to process again, then others.
        self._gathered: dict[bytes, list[bytes]] = {}
        self._row = b""
        self._rows = _NONE

    def receive(self, data: bytes) -> None:
        """Process bytes of smtpd.

        If memory runs out, the rest is kept (`stalled`), for `resume`. Raise MemoryError only if
        nothing of it was taken.
        """
        if self._partial:
            data = bytes(self._partial) + data
        end = data.rfind(b"\n") + 1
        partial = bytearray(data[end:])
        whole = data[:end]
        rows = list(BytesIO(whole))  # three times as fast as `split`
        every = iter(rows)
        # From here on the input counts as taken.
        self._partial = partial
        self._rows = every
        try:
            if rows and self._transit.known and self._transit.pass_on(rows, whole):
                self._rows = _NONE
            else:
                self._process()
        except MemoryError:
            self.stalled = True

    def resume(self) -> None:
        """Process what was left for lack of memory; to be called before further `receive`."""
        try:
            self._process()
        except MemoryError:
            self.stalled = True

    def _process(self) -> None:
        """Process the lines.  What is kept if it raises MemoryError is kept without allocating."""
        transit, gathered, handle = self._transit, self._gathered, self._handle
        known, key_of = transit.known, transit.key
        rows = chain((self._row,), self._rows) if self._row else self._rows
        self.stalled, self._row = False, b""
        row = b""
        try:
            for row in rows:
                key = key_of(row)
                same = gathered.get(key)
                if same is not None:
                    same.append(row)
                elif key in known:
                    gathered[key] = [row]
                else:
                    if gathered:
                        transit.blocks(gathered)
                    if begun := handle(row):
                        gathered[begun] = [row]
                    key_of = transit.key
            row = b""
            if gathered:
                transit.blocks(gathered)
        except MemoryError:
            self._row = row
            raise
