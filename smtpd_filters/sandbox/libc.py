"""Calls of functions of the C library.

`_ctypes`, the part of the standard library's ctypes that is written in C, is enough; the part in
Python alone would take most of the time that the sandbox may cost (docs/decisions/sandbox.md).
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Libc:
    """The C library of the process."""

    def __init__(self) -> None:
        """Raise OSError or ImportError if the interpreter can't call it."""
        import _ctypes

        class Function(_ctypes.CFuncPtr):
            _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO

        class Char(_ctypes._SimpleCData):  # type: ignore[type-arg]  # noqa: SLF001  # no public name
            _type_ = "c"

        self._ctypes: Any = _ctypes
        self._function: Any = Function
        self._char: Any = Char
        self._process: Any = self._ctypes.dlopen(None, 0)
        self._found: dict[str, Callable[..., int]] = {}

    def call(self, name: str, *arguments: int | bytes | None) -> int:
        """Call a function that returns an int, or a long that fits; return its result.

        An argument is a whole number of at most 31 bits, for an int or a long (with six arguments
        at most libffi extends them), a pointer to bytes, or the null pointer (None). Raises OSError
        if the result is -1 or the function is missing.
        """
        function = self._found.get(name) or self._find(name)
        result = function(*arguments)
        if result == -1:
            number: int = self._ctypes.get_errno()
            raise OSError(number, os.strerror(number), name)
        return result

    def _find(self, name: str) -> Callable[..., int]:
        try:
            address = self._ctypes.dlsym(self._process, name)
        except OSError:
            raise OSError(errno.ENOSYS, "no such function", name) from None
        function: Callable[..., int] = self._function(address)
        self._found[name] = function
        return function

    def address(self, data: bytearray) -> int:
        """Return where data is in memory, as long as it lives and keeps its size."""
        address: int = self._ctypes.addressof(self._char.from_buffer(data))
        return address
