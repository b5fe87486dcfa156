"""The opening of files, also in directories to which other users may write.

`read_file` reads small files that settings name: secrets, keys, rules, passwords.
"""

from __future__ import annotations

import errno
import os
import stat

from smtpd_filters.errors import ConfigError, unreadable

from .quoting import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from typing import BinaryIO

#: Bytes of a file, unless its reader has a limit of its own.
LARGEST = 1 << 20
#: Errors of a disk that may pass without a change of settings: full, read-only, or faulty.
DISK_FAULTS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


def read_file(
    path: str, limit: int = LARGEST, *, check: Callable[[os.stat_result], None] | None = None
) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises ConfigError, which names the file; `check` may raise one for its owner or mode.
    """
    try:
        with open_file(path) as file:
            if check is not None:
                check(os.fstat(file.fileno()))
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {unreadable(error, path)}") from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{printable(path[:80])}: {error}") from None
    if len(data) > limit:
        raise ConfigError(f"{path}: larger than {limit} bytes")
    return data


def open_file(path: str, flags: int = 0) -> BinaryIO:
    """Open a regular file for reading. Raises OSError, for other kinds of files as well.

    It never waits, as opening a FIFO does for a writer.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | flags)
    try:
        _require_regular(os.fstat(fd), path)
    except OSError:
        os.close(fd)
        raise
    return os.fdopen(fd, "rb")


def open_input(path: str) -> BinaryIO:
    """Open a file or pipe for reading, as a shell's `<(command)` names one. Raises OSError.

    A FIFO that nobody has open for writing is empty: it is not waited for.
    """
    return open(path, "rb", opener=_without_waiting)


def _without_waiting(path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    os.set_blocking(fd, True)
    return fd


def create_file(path: str) -> int:
    """Create a file, in place of any file or link at the path; return its descriptor.

    Raises OSError.
    """
    try:
        os.unlink(path)  # noqa: PTH108  # pathlib costs start-up
    except FileNotFoundError:
        pass
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def replace_file(
    path: str, content: bytes, mode: int = 0o644, like: os.stat_result | None = None
) -> None:
    """Write a file, in one step, in place of any file or link at the path. Raises OSError.

    It gets the mode less the umask, or the owner and the mode that another file has. Until it is
    complete and on the disk, it has a name of its own: no file of another process or of the
    operator is in the way, and after a crash the old file is there.
    """
    own = f".{os.urandom(8).hex()}.new"
    temporary = os.path.join(os.path.dirname(path), own)  # noqa: PTH118, PTH120  # pathlib costs start-up
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(temporary, flags, mode if like is None else 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            if like is not None:
                os.fchown(fd, like.st_uid, like.st_gid)
                os.fchmod(fd, stat.S_IMODE(like.st_mode))
            file.write(content)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)  # noqa: PTH105  # as above
    except BaseException:
        try:
            os.unlink(temporary)  # noqa: PTH108  # as above
        except OSError:
            pass
        raise


def no_directory(path: str) -> str:
    """Return what to do if the directory of a file to create is missing, or ""."""
    folder = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120  # pathlib costs start-up
    return "" if os.path.isdir(folder) else f" (make the directory {folder} first)"  # noqa: PTH112


def check_database(path: str) -> None:
    """Check a database, and the files that SQLite opens beside it; each may be missing.

    Raises OSError if one is not a regular file: SQLite would wait for the writer of a FIFO. They
    aren't opened here, because closing them would release SQLite's locks.
    """
    for end in ("", "-journal", "-wal", "-shm"):
        try:
            status = os.stat(path + end)  # noqa: PTH116  # as above
        except FileNotFoundError:
            continue
        _require_regular(status, path, f"its {end} file is " if end else "")


#: SQLite has a reason of its own for a full disk only.
_UNWRITTEN = {"SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_SHMSIZE"}


def not_written(error: sqlite3.Error) -> str:
    """Return the reason of SQLite's error, "disk I/O error", if it could not write; "" if not."""
    if getattr(error, "sqlite_errorname", "") in _UNWRITTEN:
        return "cannot be written (disk quota, limit of file sizes, faulty disk)"
    return ""


def uncreated_files(directory: str) -> str:
    """Return why no user can create a file in a directory; "" if that is unknown.

    SQLite can't open a database without the files beside it, and doesn't tell why.
    """
    try:
        found = os.statvfs(directory)
    except OSError:
        return ""
    if found.f_flag & os.ST_RDONLY:
        return "read-only"
    return "no free inodes" if found.f_files and not found.f_favail else ""


def _require_regular(status: os.stat_result, path: str, what: str = "") -> None:
    if stat.S_ISDIR(status.st_mode) and not what:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"{what}not a regular file", path)
