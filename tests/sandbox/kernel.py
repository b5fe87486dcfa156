"""Kernels for tests of the sandbox: this machine's, and lesser ones."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from smtpd_filters.sandbox import landlock, seccomp
from smtpd_filters.sandbox.libc import Libc

X86_64, ARM64 = (0xC000003E, 0), (0xC00000B7, 1)
#: The numbers of seccomp(2) and of Landlock's three calls.
SECCOMP = (317, 277)
LANDLOCK = range(444, 447)


def complete() -> bool:
    """Whether this kernel has every part, so that `--sandbox strict` starts."""
    try:
        arch, _ = seccomp.machine()
        return bool(arch) and landlock.version(Libc()) >= landlock.TCP
    except (OSError, seccomp.UnknownMachineError):
        return False


STRICT = pytest.mark.skipif(
    not complete(), reason="needs a kernel with seccomp, and Landlock for TCP ports (Linux 6.7)"
)


def without(*numbers: int, error: int = errno.ENOSYS) -> None:
    """Have this process, and what it starts, live on a kernel without these system calls."""
    libc = Libc()
    arch, column = seccomp.machine()
    program = seccomp.Program()
    program.load(4)
    program.jump(0x15, arch, "", "allow")
    program.load(0)
    program.jump_if_any(numbers, "refuse")
    program.result("allow", 0x7FFF0000)
    program.result("refuse", 0x00050000 | error)
    libc.call("prctl", 38, 1, 0, 0, 0)
    seccomp.install(libc, program.assemble(), column)


class FakeLibc:
    """The boundary to a C library that isn't this system's: what it was called with.

    `fails` maps names of functions, or numbers of system calls, to error numbers; `results` to
    their results.
    """

    def __init__(
        self,
        fails: dict[str | int, int] | None = None,
        results: dict[str | int, int] | None = None,
    ) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._fails = fails or {}
        self._results = results or {}

    def call(self, name: str, *arguments: int | bytes | None) -> int:
        self.calls.append((name, *arguments))
        which: Any = arguments[0] if name == "syscall" else name
        if which in self._fails:
            raise OSError(self._fails[which], "no", name)
        return self._results.get(which, 0)

    def address(self, data: bytearray) -> int:
        self.calls.append(("address", bytes(data)))
        return 0x1234_5678_9ABC
