"""The output of a process, line by line while it runs."""

from __future__ import annotations

import re
import socket
import threading
import time
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Bytes read at once: more than a process writes to its log at once.
PIECE = 1 << 16
#: struct ucred of unix(7), of which the pid is the first field.
CREDENTIALS = 12
PID = 4


class Output:
    """The lines that a process has written so far, which other threads may wait for.

    `lines` are texts without line ends, with surrogate escapes for invalid UTF-8. `ended` is
    whether the output has ended. Both change while the condition `news` is held; it is notified of
    each line.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.news = threading.Condition()
        self.ended = False
        self._reader: threading.Thread | None = None
        self._file: IO[bytes] | socket.socket | None = None

    def follow(self, file: IO[bytes] | None, name: str) -> None:
        """Read a file to its end in a thread of that name; may be repeated after `close`."""
        assert file is not None  # noqa: S101  # Popen was given PIPE
        self._start(file, file, name)

    def sink(self, name: str) -> socket.socket:
        """Return a socket for the output of several processes; close it once they have it.

        smtpd's processes write to one log, and the C library may write a long line in pieces (glibc
        since 2.37: of 128 bytes). In a pipe the pieces of two lines would be mixed; here each piece
        has the pid of its writer, and lines are reassembled.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._start(ours, _reassemble(ours), name)
        return theirs

    def _start(self, file: IO[bytes] | socket.socket, lines: Iterable[bytes], name: str) -> None:
        self.ended = False
        self._file = file
        self._reader = threading.Thread(target=self._read, args=[lines], name=name)
        self._reader.start()

    def close(self) -> None:
        """Wait for the end of the output, and close the file."""
        reader, self._reader = self._reader, None
        file, self._file = self._file, None
        if reader is not None:
            reader.join()
        if file is not None:
            file.close()

    def wait(self, timeout: float) -> None:
        """Wait until the output has ended, for so many seconds at most."""
        with self.news:
            self.news.wait_for(lambda: self.ended, timeout)

    def find(self, pattern: str, timeout: float, since: int = 0) -> re.Match[str] | None:
        """Wait for a line in which the regular expression matches; return the match or None.

        The timeout is in seconds. Lines before number `since` are ignored.
        """
        expression = re.compile(pattern)
        looked = since
        deadline = time.monotonic() + timeout
        with self.news:
            while True:
                for line in self.lines[looked:]:
                    looked += 1
                    if found := expression.search(line):
                        return found
                left = deadline - time.monotonic()
                if self.ended or left <= 0:
                    return None
                self.news.wait(left)

    def _read(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            with self.news:
                self.lines.append(line.decode("utf-8", "surrogateescape").rstrip("\n"))
                self.news.notify_all()
        with self.news:
            self.ended = True
            self.news.notify_all()


def _reassemble(source: socket.socket) -> Iterator[bytes]:
    """Yield whole lines from the pieces that several processes write."""
    partial: dict[bytes, bytes] = {}
    while True:
        piece, ancillary, _, _ = source.recvmsg(PIECE, socket.CMSG_SPACE(CREDENTIALS))
        if not piece and not ancillary:
            break
        writer = ancillary[0][2][:PID]
        *lines, rest = (partial.pop(writer, b"") + piece).split(b"\n")
        yield from lines
        if rest:
            partial[writer] = rest
    yield from partial.values()
