"""Lines of messages: in memory within one budget for the process, in one file beyond it.

Invariants
----------
Bounded
    All stores of a spool together hold at most `Spool.memory` bytes in memory, and each of them at
    most `Spool.message`, but for the lines appended last.  A line counts with what Python needs
    for it, not with its bytes alone: a megabyte of empty lines takes fifty.
One descriptor
    However many messages are on disk, they are in one unnamed file, in blocks.
Whole or not at all
    After a failure (a full disk) a store only raises `SpoolError` and can only be discarded.

A store begins as a list of lines, for most messages are small and are sent back as they came. A
larger one is packed into a block of bytes, and moves to the file when the budget asks for it.
"""

from __future__ import annotations

import io
import os

#: Bytes that all messages of a process may take in memory.
MEMORY = 32 << 20
#: Bytes that one message may take in memory. Most mail is smaller, and fifty messages that are not
#: take 12 MiB at once. A file costs little more: what is read back soon has not left the page
#: cache.
MESSAGE = 1 << 18
#: Bytes of a header block.  Exim's header_maxsize has this default.
HEADER = 1 << 20
#: Bytes that a line counts beyond its own: about what Python takes for an object in a list.
LINE_COST = 64
#: Bytes that a message counts beyond its lines, wherever these are.
STORE_COST = 1 << 11
#: Bytes that a store may take as a list of lines.
SMALL = 1 << 14
#: Bytes, and lines, that are read back at a time. Reads of 32 to 256 KiB take equally long for each
#: byte; the lines are bounded because each of them costs as much as 50 bytes do.
CHUNK = 1 << 16
ROWS = 2000

#: The unit in which space in the file is taken and given back.
_BLOCK = 1 << 16
#: A file larger than this is closed by a thread: to free gigabytes takes the kernel a while.
LARGE = 64 << 20


class SpoolError(Exception):
    """The message could not be kept, or not be read back; the text says why."""


class Spool:
    """The memory and the file that all messages of a process share.

    ``memory``: bytes of memory for all messages; ``message``: for one of them; ``header``: bytes of
    a header block beyond which the rest of it counts as body.  ``directories``: where the file may
    be, the first that can be written to is taken; by default `directories`.  `large`: bytes of the
    file beyond which a thread closes it.
    """

    def __init__(
        self,
        memory: int = MEMORY,
        message: int = MESSAGE,
        header: int = HEADER,
        directories: tuple[str, ...] = (),
        large: int = LARGE,
    ) -> None:
        self.memory = memory
        self._large = large
        self.message = message
        self.header = header
        self._directories = directories
        #: Bytes held in memory by all stores.
        self.used = 0
        self._fd = -1
        #: Blocks of the file: how many were ever taken, which of them are free again.
        self._end = 0
        self._free: list[int] = []

    @property
    def full(self) -> bool:
        """Whether no further message can be taken, not even on disk."""
        return self.used > self.memory + self.memory // 2

    @property
    def on_disk(self) -> int:
        """Bytes of the file in use."""
        return (self._end - len(self._free)) * _BLOCK

    def allocate(self) -> int:
        """Take a block of the file.  Raises OSError when there is no place for one."""
        if self._fd < 0:
            self._fd = _unnamed_file(self._directories or directories())
        if self._free:
            return self._free.pop()
        self._end += 1
        return self._end - 1

    def release(self, blocks: list[int]) -> None:
        """Give blocks back.  With the last one the file goes."""
        self._free += blocks
        if len(self._free) == self._end and self._fd >= 0:
            fd, size = self._fd, self._end * _BLOCK
            self._fd, self._end = -1, 0
            self._free = []
            _close(fd, in_thread=size > self._large)

    def write(self, block: int, at: int, data: memoryview) -> int:
        """Write at a place within a block; how much was written.  Raises OSError."""
        return os.pwrite(self._fd, data, block * _BLOCK + at)

    def read(self, block: int, at: int, size: int) -> bytes:
        """Read from a place within a block.  Raises OSError."""
        return os.pread(self._fd, size, block * _BLOCK + at)


class Store:
    """The lines of one message in the order in which they came, read back from any place.

    Places are counted in bytes, each line with a line feed behind it (which no line contains).
    """

    __slots__ = ("_blocks", "_cost", "_failure", "_lines", "_memory", "_spool", "size")

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        #: Exactly one of the three holds the content.
        self._lines: list[bytes] | None = []
        self._memory: io.BytesIO | None = None
        self._blocks: list[int] = []
        #: What it counts in the spool's `used`.
        self._cost = 0
        self._charge(STORE_COST)
        self._failure = ""
        self.size = 0

    @property
    def lines(self) -> list[bytes] | None:
        """All lines, as they were appended, as long as the store is small."""
        return self._lines

    def append(self, lines: list[bytes], size: int) -> None:
        """Keep lines; ``size`` is their bytes with a line feed for each.  Raises SpoolError."""
        kept = self._lines
        if kept is None:
            self.append_block(b"\n".join([*lines, b""]))
            return
        kept += lines
        self.size += size
        self._charge(size + LINE_COST * len(lines))
        if self._cost > SMALL or self._spool.used > self._spool.memory:
            self._pack()

    def append_block(self, block: bytes) -> None:
        """Keep whole lines, each with its line feed.  Raises SpoolError."""
        self.check()
        if self._lines is not None:
            self._pack()
        if self._memory is not None:
            self._memory.seek(self.size)
            self._memory.write(block)
            self.size += len(block)
            self._charge(len(block))
            self._move_if_due()
        else:
            self._write(block)

    def check(self) -> None:
        """Raise SpoolError if something has failed, or the store was discarded."""
        if self._failure:
            raise SpoolError(self._failure)

    def read(self, at: int, size: int) -> bytes:
        """At most so many bytes from a place on; empty at the end.  Raises SpoolError."""
        self.check()
        if self._lines is not None:
            self._pack()
        size = min(size, self.size - at)
        if size <= 0:
            return b""
        if self._memory is not None:
            self._memory.seek(at)
            return self._memory.read(size)
        pieces = []
        while size:
            block, offset = divmod(at, _BLOCK)
            piece = self._read(block, offset, min(size, _BLOCK - offset))
            pieces.append(piece)
            at += len(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def rows(self, at: int) -> tuple[list[bytes], int]:
        """Lines from a place on, at most `ROWS` and about `CHUNK` bytes; and the place behind them.

        There are none at the end.  Raises SpoolError.
        """
        block = self.block(at, CHUNK)
        lines = block.split(b"\n", ROWS)
        rest = len(lines.pop())
        return lines, at + len(block) - rest

    def block(self, at: int, size: int) -> bytes:
        """Whole lines from a place on, at most so many bytes unless the first line is longer.

        Empty at the end.  Raises SpoolError.
        """
        block = self.read(at, size)
        cut = block.rfind(b"\n") + 1
        if block and not cut:
            pieces = [block]
            while not cut:
                at += len(block)
                block = self.read(at, size)
                cut = block.find(b"\n") + 1
                pieces.append(block[:cut] if cut else block)
            return b"".join(pieces)
        return block if cut == len(block) else block[:cut]

    def discard(self, reason: str = "the message was discarded") -> None:
        """Give back what it takes.  From then on it raises SpoolError with this reason."""
        self._failure = self._failure or reason
        self._lines = self._memory = None
        self._charge(-self._cost)
        if self._blocks:
            blocks, self._blocks = self._blocks, []
            self._spool.release(blocks)

    # -- from one form to the next -------------------------------------------------------

    def _charge(self, cost: int) -> None:
        self._cost += cost
        self._spool.used += cost

    def _pack(self) -> None:
        """Go on as a block of bytes."""
        lines = self._lines or []
        block = b"\n".join([*lines, b""]) if lines else b""
        self._memory, self._lines = io.BytesIO(block), None
        self._charge(STORE_COST + len(block) - self._cost)
        self._move_if_due()

    def _move_if_due(self) -> None:
        spool = self._spool
        if self.size <= spool.message and spool.used <= spool.memory:
            return
        assert self._memory is not None  # noqa: S101  # it is packed
        block, self._memory, self.size = self._memory.getvalue(), None, 0
        self._charge(STORE_COST - self._cost)
        self._write(block)

    # -- on disk -------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        spool = self._spool
        view = memoryview(data)
        try:
            while view:
                at = self.size % _BLOCK
                if not at:
                    self._blocks.append(spool.allocate())
                done = spool.write(self._blocks[-1], at, view[: _BLOCK - at])
                self.size += done
                view = view[done:]
        except OSError as error:
            raise self._failed(error) from error

    def _read(self, block: int, at: int, size: int) -> bytes:
        try:
            piece = self._spool.read(self._blocks[block], at, size)
        except OSError as error:
            raise self._failed(error) from error
        if not piece:
            raise self._failed(EOFError("it ends too early"))
        return piece

    def _failed(self, error: Exception) -> SpoolError:
        reason = getattr(error, "strerror", None) or str(error)
        self._failure = f"cannot spool the message: {reason}"
        return SpoolError(self._failure)


def directories() -> tuple[str, ...]:
    """Where the file of a spool may be: $TMPDIR if set, else /var/tmp and /tmp.

    /var/tmp comes first because /tmp is memory on many systems (hier(7), file-hierarchy(7)).
    """
    chosen = os.environ.get("TMPDIR")
    return (chosen,) if chosen else ("/var/tmp", "/tmp")  # noqa: S108  # the file has no name


def _unnamed_file(places: tuple[str, ...]) -> int:
    """Make a file that goes with its descriptor.

    The standard library's `tempfile` does the same, but takes longer to load than a filter to
    start, and would have to be found at a time when an upgrade may have replaced it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    failure = OSError(2, "No such file or directory")
    for place in places:
        path = f"{place}/smtpd-filters.{os.urandom(12).hex()}"
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            failure = error
            continue
        os.unlink(path)  # noqa: PTH108  # pathlib costs start-up
        return fd
    raise failure


def _close(fd: int, *, in_thread: bool) -> None:
    if in_thread:
        from _thread import start_new_thread  # built in; `threading` would have to be loaded

        try:
            start_new_thread(os.close, (fd,))
        except RuntimeError:  # no thread can be started
            pass
        else:
            return
    os.close(fd)
