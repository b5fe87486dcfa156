"""Streams in place of stdout and stderr, for what a filter's own code and libraries write.

smtpd stops reading a filter's stderr for good at a line of 64 KiB, and a `print` of a client's text
may have as many: it would block from then on, and the log would be silent.

Invariants
----------
*Bounded*: what is beyond `MAX_LINE` bytes of a line is dropped.
*Never waiting*: what the log has no room for is dropped as well.
"""

from __future__ import annotations

import io
import os
import select
import sys

from .log import MAX_LINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class LogLines(io.RawIOBase):
    """A descriptor of the log, to which lines of at most `MAX_LINE` bytes are written."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        #: Bytes of the current line that were written, or `MAX_LINE` if its rest is to be dropped.
        self._written = 0

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def writable(self) -> bool:
        """Return that it is."""
        return True

    def write(self, data: Any, /) -> int:
        """Write what is *Bounded*, without waiting; return that all was written."""
        data = bytes(data)
        for line in data.splitlines(keepends=True):
            self._write(line)
        return len(data)

    def _write(self, line: bytes) -> None:
        """Write a line, or a part of one that ends the data."""
        end = line[-1:] == b"\n"
        text = line[: MAX_LINE - self._written]
        if end and text[-1:] != b"\n":
            text += b"\n"
        fits = not text or self._put(text)
        self._written = 0 if end else self._written + len(text) if fits else MAX_LINE

    def _put(self, text: bytes) -> bool:
        try:
            # A pipe that is ready takes as many bytes at once, see MAX_LINE.
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            return bool(poll.poll(0)) and os.write(self._fd, text) == len(text)
        except (OSError, MemoryError):
            return False  # the log is closed


class BoundedPrints:
    """The bounded streams as `sys.stdout` and `sys.stderr`, until they are given back.

    A stream stays as it is if it is None, or if the filter's own code has replaced it.
    """

    def __init__(self) -> None:
        self._replaced: dict[str, tuple[Any, Any]] = {}
        for name, fd in (("stdout", 1), ("stderr", 2)):
            old = getattr(sys, name)
            if old is None or old is not getattr(sys, f"__{name}__"):
                continue
            try:
                old.flush()
            except (OSError, ValueError):
                pass  # the log is closed
            new = io.TextIOWrapper(
                io.BufferedWriter(LogLines(fd)),
                encoding="utf-8",
                errors="backslashreplace",
                line_buffering=True,
            )
            self._replaced[name] = old, new
            setattr(sys, name, new)
            _redirect_logging(old, new)

    def give_back(self) -> None:
        """Restore the streams."""
        for name in self._replaced:
            old, new = self._replaced[name]
            new.flush()
            if getattr(sys, name) is new:
                setattr(sys, name, old)
            _redirect_logging(new, old)


def _redirect_logging(old: object, new: object) -> None:
    """Have `logging` write to `new` in place of `old`, which `basicConfig` has chosen."""
    if logging := sys.modules.get("logging"):
        for handler in logging.getLogger().handlers:
            if getattr(handler, "stream", None) is old:
                handler.setStream(new)
