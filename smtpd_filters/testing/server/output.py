"""What a process writes, line by line, while it writes it."""

from __future__ import annotations

import re
import threading
import time
from typing import IO


class Output:
    """The lines that a process has written so far; others may wait for one.

    `lines` has them as text, without their ends; bytes that are no UTF-8 are surrogates. `ended`
    says that no more will come. Both change under `news`, a condition, which is told of each line.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.news = threading.Condition()
        self.ended = False
        self._reader: threading.Thread | None = None
        self._file: IO[bytes] | None = None

    def follow(self, file: IO[bytes] | None, name: str) -> None:
        """Read this file to its end, in a thread of that name; again after `close`."""
        assert file is not None  # noqa: S101 - the starter has made it a pipe
        self.ended = False
        self._file = file
        self._reader = threading.Thread(target=self._read, args=[file], name=name)
        self._reader.start()

    def close(self) -> None:
        """Wait for the end of what the process writes, and close the file."""
        reader, self._reader = self._reader, None
        file, self._file = self._file, None
        if reader is not None:
            reader.join()
        if file is not None:
            file.close()

    def find(self, pattern: str, timeout: float, since: int = 0) -> re.Match[str] | None:
        """Wait for a line in which the regular expression is found; None if there is none in time.

        Lines before number `since` don't count.
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

    def _read(self, file: IO[bytes]) -> None:
        for line in file:
            with self.news:
                self.lines.append(line.decode("utf-8", "surrogateescape").rstrip("\n"))
                self.news.notify_all()
        with self.news:
            self.ended = True
            self.news.notify_all()
