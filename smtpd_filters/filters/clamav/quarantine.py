"""A directory with copies of refused messages, in the form of a maildir.

Invariants
----------
*Bounded*: the directory has at most `limit` bytes and `MAX_FILES` files; a copy beyond that is not
made. What the operator deletes makes room within `recount` seconds.
*Whole*: a file in `new` is complete; one that could not be written is removed.
*Private*: files and directories are for their owner only, and a name is never that of a file that
exists.
*Never decides*: a copy that fails is logged, and changes no verdict.
"""

from __future__ import annotations

import contextlib
import os
import time
from itertools import islice

from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.message.folding import field_lines
from smtpd_filters.settings.flags import is_check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from smtpd_filters.session import Session

#: Files at most, so that counting them is quick.
MAX_FILES = 10_000
#: Files that are counted at a time, and units of work for each (`runtime.pace`).
_AT_ONCE, _STAT = 100, 8
#: Seconds between two counts of the directory.
RECOUNT = 60.0
#: Recipients that are named in a copy.
_NAMED = 20
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PARTS = ("new", "cur", "tmp")


def _existing(path: str) -> str:
    """Return the directory at a path, or the closest above it that exists: a check makes none."""
    while not os.path.lexists(path):  # pathlib costs start-up
        path = os.path.dirname(path)  # noqa: PTH120  # as above
    return path


class Quarantine:
    """The directory at `path`, of at most `limit` bytes; raise ConfigError if it can't be used.

    Its files are counted again after `recount` seconds.
    """

    def __init__(self, path: str, limit: int, *, recount: float = RECOUNT) -> None:
        self._path = os.path.abspath(path)  # noqa: PTH100  # pathlib costs start-up
        self._limit = limit
        self._recount = recount
        self._serial = 0
        #: The sizes of the copies that are being made, and of those made since the last count.
        self._making: dict[str, int] = {}
        self._made: dict[str, int] = {}
        try:
            for part in _PARTS:
                folder = _existing(self._file(part)) if is_check() else self._file(part)
                # In a check it is there, unless a file is in its place.
                os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103
                if not os.access(folder, os.W_OK | os.X_OK):
                    raise PermissionError(13, "Permission denied")
            if is_check():
                return
            for _ in self._count():
                pass
        except OSError as error:
            raise ConfigError(f"{self._path}: {os_reason(error)}") from None

    @property
    def path(self) -> str:
        """The absolute path."""
        return self._path

    def _file(self, part: str, name: str = "") -> str:
        return os.path.join(self._path, part, name) if name else os.path.join(self._path, part)  # noqa: PTH118

    def _count(self) -> Generator[int, None, None]:
        """Count files and bytes, in steps; yield the work of each (`runtime.pace`).

        Copies of this process are counted with their whole sizes, also if they are made meanwhile.
        """
        self._counted = time.monotonic()
        self._made = {}
        files = size = 0
        for number, each in enumerate(islice(self._entries(), MAX_FILES + 1)):
            if not number % _AT_ONCE:
                yield _AT_ONCE * _STAT
            if each.name in self._making or each.name in self._made:
                continue
            files += 1
            with contextlib.suppress(FileNotFoundError):
                size += each.stat(follow_symlinks=False).st_size
        own = [*self._making.values(), *self._made.values()]
        self._files, self._bytes = files + len(own), size + sum(own)

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        for part in _PARTS:
            with os.scandir(self._file(part)) as found:
                yield from found

    async def keep(self, about: Iterable[bytes], size: int, chunks: Iterator[bytes]) -> str:
        """Write a copy of a message below the lines `about`; return its name, "" without room.

        Raises OSError, and whatever `chunks` raises; nothing is left then.
        """
        from smtpd_filters.runtime.pace import pace, paced  # asyncio is already loaded

        head = b"\n".join([*about, b""])
        size += len(head)
        if time.monotonic() - self._counted >= self._recount:
            await paced(self._count())
        if self._files >= MAX_FILES or self._bytes + size > self._limit:
            return ""
        self._serial += 1
        now = time.time()
        name = f"{int(now)}.M{int(now % 1 * 1e6)}P{os.getpid()}Q{self._serial}.filter-clamav"
        here, there = self._file("tmp", name), self._file("new", name)
        # Before anything is awaited: copies at the same time share the room.
        self._files += 1
        self._bytes += size
        self._making[name] = size
        try:
            number = os.open(here, _FLAGS, 0o600)
            try:
                _write(number, head)
                for chunk in chunks:
                    await pace().admit(20 + len(chunk) // 1000)
                    _write(number, chunk)
            finally:
                os.close(number)
            os.rename(here, there)  # noqa: PTH104  # pathlib costs start-up
        except BaseException:
            self._files -= 1
            self._bytes -= size
            with contextlib.suppress(OSError):
                os.unlink(here)  # noqa: PTH108  # pathlib costs start-up
            raise
        else:
            self._made[name] = size
        finally:
            del self._making[name]
        return name


def _write(number: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]


def about(session: Session, name: str) -> list[bytes]:
    """Return the fields above a copy: the signature's name, the client and the envelope."""
    transaction = session.tx
    sender, recipients = "", [""]
    if transaction is not None:
        sender = transaction.sender or ""
        recipients = list(transaction.recipients)
    named = ", ".join(f"<{each}>" for each in recipients[:_NAMED])
    if len(recipients) > _NAMED:
        named += f" and {len(recipients) - _NAMED} more"
    fields = (
        ("X-Virus-Status", f"Infected ({name})"),
        ("X-Envelope-From", f"<{sender}>"),
        ("X-Envelope-To", named),
        ("X-Client", f"{session.address or 'unknown'} ({session.rdns or 'unknown'})"),
    )
    return [line for key, value in fields for line in field_lines(key, value)]
