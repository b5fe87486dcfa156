"""A spool for the lines of messages: in memory up to a budget for the process, then in a file.

A store begins as a list of lines, since most messages are small and are sent back unchanged. A
larger one is packed into a block of bytes, and moved to the file when the budget requires it.

Invariants
----------
*Bounded*: all stores of a spool together hold at most `Spool.memory` bytes in memory, and each of
them at most `Spool.message`, except for the lines appended last. A line counts with the memory that
Python needs for it, not with its bytes alone: a megabyte of empty lines takes fifty.
*One descriptor*: all messages on disk are in one unnamed file, in blocks.
*All or nothing*: after a failure (such as a full disk) a store only raises `SpoolError` and can
only be discarded.
"""

from __future__ import annotations

import io
import os

from smtpd_filters.errors import uncreated

#: Bytes that all messages of a process may use in memory.
MEMORY = 32 << 20
#: Bytes that one message may use in memory. Most mail is smaller; fifty larger messages use 12 MiB
#: at once. The file costs little more: what is read back soon is still in the page cache.
MESSAGE = 1 << 18
#: Bytes of a header block; the default of Exim's header_maxsize.
HEADER = 1 << 20
#: Bytes charged for a line in addition to its own: about the size of a Python object in a list.
LINE_COST = 64
#: Bytes charged for a message in addition to its lines, wherever these are.
STORE_COST = 1 << 11
#: Bytes that a store may use as a list of lines.
SMALL = 1 << 14
#: Bytes, and lines, read back at a time. Reads of 32 to 256 KiB take the same time per byte; lines
#: are bounded because each costs as much as 50 bytes.
CHUNK = 1 << 16
ROWS = 2000

#: The unit in which space in the file is allocated and released.
_BLOCK = 1 << 16
#: A file larger than this is closed by a thread: freeing gigabytes takes the kernel a while.
LARGE = 64 << 20


class SpoolError(Exception):
    """A message can't be stored or read back; the text is the reason."""


class Spool:
    """The memory and the file that all messages of a process share.

    `memory` is the number of bytes in memory for all messages, `message` for a single one; `header`
    the bytes of a header block beyond which the rest of it counts as body. The file is created in
    the first of `directories` that is writable; the default is that of the function `directories`.
    A thread closes a file of more than `large` bytes.
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
        #: The directory of the file, or those of which none was writable.
        self.place = ""
        #: The blocks of the file: the number ever allocated, and those that are free again.
        self._end = 0
        self._free: list[int] = []

    @property
    def full(self) -> bool:
        """Whether no further message can be stored, not even on disk."""
        return self.used > self.memory + self.memory // 2

    @property
    def on_disk(self) -> int:
        """The bytes of the file that are in use."""
        return (self._end - len(self._free)) * _BLOCK

    def allocate(self) -> int:
        """Allocate a block of the file. Raises OSError if there is no space."""
        if self._fd < 0:
            places = self._directories or directories()
            self.place = " ".join(places)
            self._fd, self.place = _unnamed_file(places)
        if self._free:
            return self._free.pop()
        self._end += 1
        return self._end - 1

    def release(self, blocks: list[int]) -> None:
        """Release blocks, and with the last one the file."""
        self._free += blocks
        if len(self._free) == self._end and self._fd >= 0:
            fd, size = self._fd, self._end * _BLOCK
            self._fd, self._end = -1, 0
            self._free = []
            _close(fd, in_thread=size > self._large)

    def write(self, block: int, at: int, data: memoryview) -> int:
        """Write at an offset in a block; return the number of bytes written. Raises OSError."""
        return os.pwrite(self._fd, data, block * _BLOCK + at)

    def read(self, block: int, at: int, size: int) -> bytes:
        """Read from an offset in a block. Raises OSError."""
        return os.pread(self._fd, size, block * _BLOCK + at)


class Store:
    """The lines of one message in their order of arrival, which can be read from any offset.

    Offsets are in bytes, with a line feed after each line (which no line contains).
    """

    __slots__ = ("_blocks", "_cost", "_failure", "_lines", "_memory", "_spool", "size")

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        #: Exactly one of the three holds the content.
        self._lines: list[bytes] | None = []
        self._memory: io.BytesIO | None = None
        self._blocks: list[int] = []
        #: Its share of the spool's `used`.
        self._cost = 0
        self._charge(STORE_COST)
        self._failure = ""
        self.size = 0

    @property
    def lines(self) -> list[bytes] | None:
        """All lines as they were appended, while the store is small; otherwise None."""
        return self._lines

    def append(self, lines: list[bytes], size: int) -> None:
        """Store lines; `size` is their bytes with a line feed for each. Raises SpoolError."""
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
        """Store whole lines, each with its line feed. Raises SpoolError."""
        self.check()
        if self._lines is not None:
            self._pack()
        if self._memory is not None:
            self._memory.seek(self.size)
            self._memory.write(block)
            self.size += len(block)
            self._charge(len(block))
            self._move_if_over_budget()
        else:
            self._write(block)

    def check(self) -> None:
        """Raise SpoolError if the store has failed or was discarded."""
        if self._failure:
            raise SpoolError(self._failure)

    def read(self, at: int, size: int) -> bytes:
        """Return at most `size` bytes from an offset; empty at the end. Raises SpoolError."""
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
        """Return the lines from an offset, at most `ROWS` and about `CHUNK` bytes, and their end.

        At the end of the store there are no lines. Raises SpoolError.
        """
        block = self.block(at, CHUNK)
        lines = block.split(b"\n", ROWS)
        rest = len(lines.pop())
        return lines, at + len(block) - rest

    def block(self, at: int, size: int) -> bytes:
        """Return whole lines from an offset, at most `size` bytes unless the first is longer.

        The result is empty at the end of the store. Raises SpoolError.
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
        """Release memory and blocks; afterwards every use raises SpoolError with this reason."""
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
        """Turn the list of lines into a block of bytes."""
        lines = self._lines or []
        block = b"\n".join([*lines, b""]) if lines else b""
        self._memory, self._lines = io.BytesIO(block), None
        self._charge(STORE_COST + len(block) - self._cost)
        self._move_if_over_budget()

    def _move_if_over_budget(self) -> None:
        spool = self._spool
        if self.size <= spool.message and spool.used <= spool.memory:
            return
        assert self._memory is not None  # noqa: S101  # the caller has packed it
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
            raise self._failed(EOFError("unexpected end of file"))
        return piece

    def _failed(self, error: Exception) -> SpoolError:
        reason = uncreated(error) if isinstance(error, OSError) else str(error)
        self._failure = f"cannot spool the message: {reason} ({self._spool.place})"
        return SpoolError(self._failure)


def directories() -> tuple[str, ...]:
    """Return the directories for a spool's file: $TMPDIR if set, else /var/tmp and /tmp.

    /var/tmp is first because /tmp is in memory on many systems (hier(7), file-hierarchy(7)).
    """
    chosen = os.environ.get("TMPDIR")
    return (chosen,) if chosen else ("/var/tmp", "/tmp")  # noqa: S108  # the file has no name


def _unnamed_file(places: tuple[str, ...]) -> tuple[int, str]:
    """Create an unnamed file, deleted when its descriptor is closed; return that and its place.

    The standard library's `tempfile` does the same, but takes longer to import than a filter takes
    to start, and a late import may find a library that an upgrade has replaced.
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
        return fd, place
    raise failure


def _close(fd: int, *, in_thread: bool) -> None:
    if in_thread:
        from _thread import start_new_thread  # built in; `threading` would have to be loaded

        try:
            start_new_thread(os.close, (fd,))
        except RuntimeError:  # can't start a thread
            pass
        else:
            return
    os.close(fd)
