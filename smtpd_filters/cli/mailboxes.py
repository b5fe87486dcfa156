"""The reader of messages from files, mbox files, maildirs, directories and pipes.

In an mbox, a separator is a line with the date of RFC 4155 appendix A, or nothing, after `From `;
it is the first line or follows an empty one. A pipe has one message, whatever its first line,
unless `--mbox` is given.

Invariants
----------
*Lazy*: a message is read only when it is opened, and large ones aren't held in memory: there may be
a hundred thousand of them.
*Gone*: a message that has disappeared is not an error, unlike an unreadable one: other programs
move mail in the meantime, and a maildir's file is renamed once its message has been seen.
*No links*: in a directory, links are not followed: they may lead to what its owner must not read,
and root has learned or reported.
*Verbatim*: a message is the content of its file. In an mbox, separators aren't part of a message,
and their quoting is undone (mboxrd: one `>` of `>From `, `>>From ` and so on).
"""

from __future__ import annotations

import errno
import os
import re
import stat

from smtpd_filters.settings.files import open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

#: Bytes of a message from a pipe that are held in memory; a larger one is kept in a file.
MEMORY_LIMIT = 1 << 20
_CHUNK = 1 << 16
# Beyond RFC 4155: no address, no seconds, a time zone before the year (other programs), and "From "
# alone (Thunderbird).
_SEPARATOR = re.compile(
    rb"From (?:\s*|(?:[^\n]*[ \t])?(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[ \t]+"
    rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[ \t]+[0-9]{1,2}[ \t]+"
    rb"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?(?:[ \t]+[A-Za-z0-9+-]{1,6}){0,2}[ \t]+[0-9]{4}\b[^\n]*)\n"
)
_QUOTED = re.compile(rb">+From ")
_EMPTY = (b"\n", b"\r\n")


class Gone(Exception):  # noqa: N818  # not an error
    """The message has disappeared."""


class Mail:
    """A message, by its path or its content, which can be read once."""

    __slots__ = ("_content", "_flags", "_path", "name")

    def __init__(
        self, name: str, *, path: str = "", what: bytes | BinaryIO = b"", flags: int = 0
    ) -> None:
        #: Its name in errors.
        self.name = name
        self._path, self._flags = path, flags
        self._content = what

    def open(self) -> tuple[BinaryIO, int]:
        """Return the message as a file, and its size. Raises Gone or OSError."""
        what = self._content
        if self._path:
            what = _opened(self._path, self._flags)
        elif isinstance(what, bytes):
            from io import BytesIO

            return BytesIO(what), len(what)
        what.seek(0)
        return what, os.fstat(what.fileno()).st_size


def count(names: list[str]) -> int | None:
    """Return the number of messages; None if counting would need reading them."""
    total = 0
    for name in names:
        try:
            if os.path.isdir(name):  # noqa: PTH112
                total += sum(1 for _ in _entries(name))
            elif is_mbox(name):
                return None
            else:
                total += 1
        except OSError:
            total += 1
    return total


def messages(names: list[str]) -> Iterator[Mail | OSError]:
    """Yield the messages of files and directories, and an OSError for each unreadable one."""
    for name in names:
        try:
            if os.path.isdir(name):  # noqa: PTH112
                for path in _entries(name):
                    yield Mail(path, path=path, flags=os.O_NOFOLLOW)
            elif is_mbox(name):
                with open_file(name) as file:
                    yield from split(name, file)
            else:
                yield Mail(name, path=name)
        except OSError as error:
            yield error if error.filename else OSError(error.errno, error.strerror, name)


def piped(file: BinaryIO, *, mbox: bool = False) -> Iterator[Mail]:
    """Yield the message, or the messages of an mbox, from a pipe."""
    if mbox:
        yield from split("stdin", file)
        return
    data = file.read(MEMORY_LIMIT)
    if len(data) < MEMORY_LIMIT:
        if data:
            yield Mail("stdin", what=data)
        return
    from tempfile import TemporaryFile

    with TemporaryFile() as whole:
        whole.write(data)
        while data := file.read(_CHUNK):
            whole.write(data)
        whole.flush()
        yield Mail("stdin", what=whole)


def is_mbox(name: str) -> bool:
    """Return whether a file starts with a separator; raise OSError if it can't be read."""
    if not stat.S_ISREG(os.stat(name).st_mode):  # noqa: PTH116
        # Opening a pipe may block, and data read from it here would be lost.
        raise OSError(errno.EINVAL, "Not a regular file, nor a directory", name)
    with open_file(name) as file:
        return _SEPARATOR.match(file.readline(_CHUNK)) is not None


def split(name: str, file: BinaryIO) -> Iterator[Mail]:
    """Yield the messages of an mbox, named by number; nothing if it has no separator at the top."""
    if not _SEPARATOR.match(file.readline(_CHUNK)):
        return
    number = 1
    growing = _Growing()
    try:
        # Only the first piece of a long line may be a separator.
        starts = True
        empty = b""
        while piece := file.readline(_CHUNK):
            if starts:
                if empty and _SEPARATOR.match(piece):
                    # The empty line before a separator belongs to it.
                    yield Mail(f"{name}:{number}", what=growing.take())
                    number += 1
                    empty = b""
                    continue
                growing.add(empty)
                empty = piece if piece in _EMPTY else b""
                if empty:
                    continue
                if _QUOTED.match(piece):
                    piece = piece[1:]
            growing.add(piece)
            starts = piece.endswith(b"\n")
        yield Mail(f"{name}:{number}", what=growing.take())
    finally:
        growing.close()


class _Growing:
    """A message that is read in pieces, in memory or, if it is large, in a file."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._file: BinaryIO | None = None

    def close(self) -> None:
        """Drop an unfinished message."""
        if self._file is not None:
            self._file.close()

    def add(self, piece: bytes) -> None:
        """Append a piece."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size >= MEMORY_LIMIT:
            if self._file is None:
                from tempfile import TemporaryFile

                self._file = TemporaryFile()  # noqa: SIM115  # closed after take()
            self._write(self._file)

    def take(self) -> bytes | BinaryIO:
        """Return the whole message, and begin the next one."""
        file, self._file = self._file, None
        if file is not None:
            self._write(file)
            file.flush()
            return file
        content = b"".join(self._pieces)
        self._pieces, self._size = [], 0
        return content

    def _write(self, file: BinaryIO) -> None:
        file.writelines(self._pieces)
        self._pieces, self._size = [], 0


def _entries(name: str) -> Iterator[str]:
    """Yield the files of a maildir, or of another directory without its subdirectories."""
    # In this order, a file that is moved from new to cur in the meantime is found.
    folders = [os.path.join(name, part) for part in ("new", "cur")]  # noqa: PTH118
    if all(map(os.path.isdir, folders)):
        places = [each for each in folders if not os.path.islink(each)]  # noqa: PTH114
    else:
        places = [name]
    for directory in places:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
                    yield entry.path


def _opened(path: str, flags: int) -> BinaryIO:
    """Open a file; in a maildir, even after it was renamed for its flags."""
    try:
        return open_file(path, flags)
    except FileNotFoundError:
        pass
    directory, name = os.path.split(path)
    if os.path.basename(directory) not in ("new", "cur"):  # noqa: PTH119
        raise Gone(path)
    unique = name.partition(":")[0]
    cur = os.path.join(os.path.dirname(directory), "cur")  # noqa: PTH118, PTH120
    try:
        with os.scandir(cur) as entries:
            for entry in entries:
                if entry.name.partition(":")[0] == unique:
                    return open_file(entry.path, flags)
    except FileNotFoundError:
        pass
    raise Gone(path)
