"""The standard streams of the tool, whatever it was started with.

Invariants
----------
*Numbers of their own*: descriptors 0 to 2 are open, so that no file that a verb opens has one of
these numbers, into which another part, or a program that is started, writes text.
*Output names itself*: a failure to write to stdout is an `OutputError`, which can't be mistaken for
one of a file that the verb uses.
*Errors don't fail*: text that can't be written to stderr is dropped, and the exit status is that
of the verb all the same.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import TextIOWrapper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class OutputError(OSError):
    """A failure to write to stdout."""


class _Output(TextIOWrapper):
    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _named(error) from None

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _named(error) from None


class _Errors(TextIOWrapper):
    def write(self, text: str, /) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def prepare(*, descriptors: bool = True) -> None:
    """Have streams as in the invariants; without `descriptors`, closed ones stay closed.

    Streams that a caller has replaced, as tests do, keep their class.
    """
    if descriptors:
        _open_closed()
    if sys.stdout is None:  # closed: no output is wanted
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if type(sys.stdout) is TextIOWrapper:
        sys.stdout = _wrapped(sys.stdout, _Output)
    if type(sys.stderr) is TextIOWrapper:
        sys.stderr = _wrapped(sys.stderr, _Errors)
    if isinstance(sys.stdout, TextIOWrapper):
        # What a sender wrote may have characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Write to stdout; a failure neither ends the verb nor changes its exit status."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        write_nowhere()


def print_json(value: object) -> None:
    """Write a value to stdout as indented JSON."""
    from json import dump  # start-up time

    dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def has_colours() -> bool:
    """Return whether stdout is a terminal with colours, and the user has not declined them."""
    declined = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not declined


def write_nowhere() -> None:
    """Redirect stdout to /dev/null, so that the flush at exit doesn't fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed() -> None:
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)  # noqa: FBT003  # positional-only
    os.close(number)


def _wrapped(stream: TextIOWrapper, cls: type[TextIOWrapper]) -> TextIOWrapper:
    encoding, errors = stream.encoding, stream.errors
    by_line, at_once = stream.line_buffering, stream.write_through
    buffer: Any = stream.detach()
    return cls(buffer, encoding, errors, line_buffering=by_line, write_through=at_once)


def _named(error: OSError) -> OutputError:
    return OutputError(error.errno, f"standard output: {error.strerror}")
