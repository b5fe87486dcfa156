"""A filter of this package with a mistake in its policy: `intruder.py MODULE:CLASS [FLAGS]`.

At each call of a handler it does the next of `MISDEEDS`, then what it would do otherwise. Those of
Python are refused by the audit hook, those of C (`*_in_c`) by the kernel.
"""

from __future__ import annotations

import ctypes
import functools
import os
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smtpd_filters import run

if TYPE_CHECKING:
    from collections.abc import Callable

#: A file that no filter declares, and the ports of nobody.
ELSEWHERE = os.environ.get("ELSEWHERE", "")
TCP = int(os.environ.get("TCP", "0"))
UDP = int(os.environ.get("UDP", "0"))
_C = ctypes.CDLL(None, use_errno=True)
AF_INET = socket.AF_INET.value


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def reads() -> None:
    Path(ELSEWHERE).read_text()


def reads_in_c() -> None:
    os.close(_check(_C.open(ELSEWHERE.encode(), os.O_RDONLY)))


def writes() -> None:
    with Path(f"{ELSEWHERE}.new").open("w") as file:
        file.write("x")


def writes_in_c() -> None:
    os.close(_check(_C.open(f"{ELSEWHERE}.new".encode(), os.O_WRONLY | os.O_CREAT, 0o600)))


def lists() -> None:
    os.listdir(Path(ELSEWHERE).parent)  # noqa: PTH208  # the system call itself


def renames() -> None:
    Path(ELSEWHERE).replace(f"{ELSEWHERE}.old")
    Path(f"{ELSEWHERE}.old").replace(ELSEWHERE)


def changes_the_mode() -> None:
    Path(ELSEWHERE).chmod(0o644)


def connects() -> None:
    with socket.socket() as sock:
        sock.connect(("127.0.0.1", TCP))


def connects_in_c() -> None:
    fd = _check(_C.socket(AF_INET, 1, 0))
    try:
        address = AF_INET.to_bytes(2, sys.byteorder) + TCP.to_bytes(2, "big") + b"\x7f\0\0\1"
        _check(_C.connect(fd, address + bytes(8), 16))
    finally:
        os.close(fd)


def sends_a_datagram() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("127.0.0.1", UDP))


def connects_to_a_socket_in_c() -> None:
    os.close(_check(_C.socket(socket.AF_UNIX.value, 1, 0)))


def listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()


def executes() -> None:
    subprocess.run(["/bin/true"], check=True)  # its purpose


def executes_in_c() -> None:
    arguments = (ctypes.c_char_p * 2)(b"/nonexistent", None)
    result = _C.execve(b"/nonexistent", arguments, arguments)
    if ctypes.get_errno() != 2:  # it was looked for
        _check(result)


def forks() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def forks_in_c() -> None:
    pid = _check(_C.fork())
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def signals_others() -> None:
    os.kill(os.getppid(), 0)


def changes_user() -> None:
    os.setuid(os.getuid())


#: All of them, in their order.
MISDEEDS: tuple[Callable[[], None], ...] = (
    reads, reads_in_c, writes, writes_in_c, lists, renames, changes_the_mode, connects,
    connects_in_c, sends_a_datagram, connects_to_a_socket_in_c, listens, executes, executes_in_c,
    forks, forks_in_c, signals_others, changes_user,
)  # fmt: skip


def main() -> int:
    module, _, name = sys.argv[1].partition(":")
    cls = getattr(import_module(module), name)
    left = iter(MISDEEDS)

    def with_mistake(handler: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(handler)
        def mistaken(*arguments: Any) -> Any:
            misdeed = next(left, None)
            if misdeed is not None:
                misdeed()
            return handler(*arguments)

        return mistaken

    for handler in cls.handlers:
        setattr(cls, handler, with_mistake(getattr(cls, handler)))
    return run(cls, sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
