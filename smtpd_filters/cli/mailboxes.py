"""Messages in files: one each, mbox files, maildirs, directories.

The law:
1. A message is read when its turn comes, and large ones aren't held: there may be a hundred
   thousand of them.
2. What can't be read is told apart from what isn't there any more: other programs move mail about
   meanwhile, and a maildir's file has another name as soon as its message has been seen.
3. A message is what stands in the file.  Of an mbox the separators are not part of it, and what the
   separators made necessary is undone (mboxrd: one ``>`` of ``>From ``, ``>>From `` and so on).
"""

from __future__ import annotations

import errno
import os
import re
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

#: What is held of a message that comes from a pipe; the rest goes to a file.
MEMORY_LIMIT = 1 << 20
_CHUNK = 1 << 16
_SEPARATOR = b"From "
_QUOTED = re.compile(rb">+From ")


class Gone(Exception):  # noqa: N818  # it is no error
    """The message isn't there any more."""


class Mail:
    """A message that can be read, once: where it is, or what it is."""

    __slots__ = ("_path", "_what", "name")

    def __init__(self, name: str, *, path: str = "", what: bytes | BinaryIO = b"") -> None:
        #: What it is called in a message to the user.
        self.name = name
        self._path = path
        self._what = what

    def open(self) -> tuple[BinaryIO, int]:
        """The message as a file at its beginning, and its size.  Raises Gone, or OSError."""
        what = self._what
        if self._path:
            what = _opened(self._path)
        elif isinstance(what, bytes):
            from io import BytesIO

            return BytesIO(what), len(what)
        what.seek(0)
        return what, os.fstat(what.fileno()).st_size


def count(names: list[str]) -> int | None:
    """How many messages there are; None if that takes reading them."""
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
    """The messages of files and directories, one after another, and what can't be read."""
    for name in names:
        try:
            if os.path.isdir(name):  # noqa: PTH112
                for path in _entries(name):
                    yield Mail(path, path=path)
            elif is_mbox(name):
                with open(name, "rb") as file:  # noqa: PTH123
                    yield from split(name, file)
            else:
                yield Mail(name, path=name)
        except OSError as error:
            yield error if error.filename else OSError(error.errno, error.strerror, name)


def piped(file: BinaryIO) -> Iterator[Mail]:
    """What comes from a pipe: a message, or an mbox."""
    from io import BytesIO

    data = file.read(MEMORY_LIMIT)
    if not data:
        return
    whole: BinaryIO = BytesIO(data)
    if len(data) == MEMORY_LIMIT:
        from tempfile import TemporaryFile

        whole = TemporaryFile()  # noqa: SIM115  # closed below
        whole.write(data)
        while data := file.read(_CHUNK):
            whole.write(data)
        whole.seek(0)
    with whole:
        if whole.read(len(_SEPARATOR)) == _SEPARATOR:
            whole.seek(0)
            yield from split("stdin", whole)
        else:
            yield Mail("stdin", what=whole.getvalue() if isinstance(whole, BytesIO) else whole)


def is_mbox(name: str) -> bool:
    """Whether a file begins as an mbox does; OSError if it can't be read."""
    with open(name, "rb") as file:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            # What was read of a pipe would be lost.
            raise OSError(errno.EINVAL, "Not a regular file, nor a directory", name)
        return file.read(len(_SEPARATOR)) == _SEPARATOR


def split(name: str, file: BinaryIO) -> Iterator[Mail]:
    """The messages of an mbox, named by their numbers."""
    lines: list[bytes] = []
    number = 0
    blank = True
    for line in file:
        if blank and line.startswith(_SEPARATOR):
            if number:
                yield Mail(f"{name}:{number}", what=_joined(lines))
            number += 1
            lines = []
            continue
        blank = line in (b"\n", b"\r\n")
        lines.append(line[1:] if _QUOTED.match(line) else line)
    if number:
        yield Mail(f"{name}:{number}", what=_joined(lines))


def _joined(lines: list[bytes]) -> bytes:
    # The empty line in front of a separator belongs to it.
    if lines and lines[-1] in (b"\n", b"\r\n"):
        lines.pop()
    return b"".join(lines)


def _entries(name: str) -> Iterator[str]:
    """The files of a maildir, or of another directory; not those of directories below."""
    below = [os.path.join(name, part) for part in ("cur", "new")]  # noqa: PTH118
    for directory in below if all(map(os.path.isdir, below)) else [name]:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_file() and not entry.name.startswith("."):
                    yield entry.path


def _opened(path: str) -> BinaryIO:
    """Open a file; of a maildir also one that has got other flags, or has been seen."""
    try:
        return open(path, "rb")  # noqa: PTH123  # pathlib costs start-up
    except FileNotFoundError:
        pass
    directory, name = os.path.split(path)
    unique = name.partition(":")[0]
    cur = os.path.join(os.path.dirname(directory), "cur")  # noqa: PTH118, PTH120
    try:
        with os.scandir(cur) as entries:
            for entry in entries:
                if entry.name.partition(":")[0] == unique:
                    return open(entry.path, "rb")  # noqa: PTH123
    except FileNotFoundError:
        pass
    raise Gone(path)
