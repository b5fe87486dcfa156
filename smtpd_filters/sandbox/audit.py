"""A hook for the interpreter's audit events: it refuses what was not declared, and says why.

The kernel's own refusals are coarser (a directory, not a file; a port, not a host; nothing for
datagrams) and leave only "Permission denied" in the log. The hook sees what Python code does, so it
protects from a mistake in a policy, on every system. It does not protect from code that wants to
evade it: that is what the kernel's parts are for.
"""

from __future__ import annotations

import os
import sys
from errno import EPERM

from smtpd_filters.errors import SANDBOX

from .needs import packed_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .needs import Needs

    #: Checks the arguments of an event; raises PermissionError.
    Check = Callable[[tuple[Any, ...]], None]

#: Events of changes to the files or directories in their first arguments.
_CHANGES = (
    "os.remove", "os.rename", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr",
)  # fmt: skip
#: The families of IPv4 and IPv6; that of IPv6 on Linux, OpenBSD and FreeBSD.
_INTERNET = frozenset({2, 10, 24, 28})
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def install(needs: Needs, readable: Iterable[str]) -> None:
    """Refuse from now on what is not needed; `readable` is what may be read besides."""
    paths = _Paths(needs, readable)
    checks: dict[str, Check] = {"open": paths.check_open}
    checks |= dict.fromkeys(("os.listdir", "os.scandir"), paths.check_reading)
    checks |= dict.fromkeys(_CHANGES, paths.check_changing)
    hosts = _Hosts(needs)
    for event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        checks[event] = hosts.check
    checks["socket.bind"] = hosts.check_bind
    if not needs.internet:
        checks["socket.__new__"] = _refuse_internet
    if not needs.runs:
        checks["os.fork"] = checks["os.forkpty"] = _refuse_process
        for event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"):
            checks[event] = _refuse_program
    find = checks.get

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        check = find(event)
        if check is not None:
            check(arguments)

    sys.addaudithook(hook)


def _refused(what: str) -> PermissionError:
    return PermissionError(EPERM, f"{SANDBOX}not declared: {what}")


def _refuse_program(arguments: tuple[Any, ...]) -> None:
    raise _refused(f"starting the program {str(arguments[0])[:100]!r}")


def _refuse_process(_arguments: tuple[Any, ...]) -> None:
    raise _refused("a new process")


def _refuse_internet(arguments: tuple[Any, ...]) -> None:
    if arguments[1] in _INTERNET:
        raise _refused("a socket of the Internet")


class _Paths:
    """The check of files: exact where the kernel's rules are for directories."""

    def __init__(self, needs: Needs, readable: Iterable[str]) -> None:
        writable = (*needs.write, os.devnull)
        self._writable = tuple([f"{path}/" for path in writable])
        self._readable = (*[f"{path}/" for path in readable], *self._writable)
        self._files = frozenset(needs.replaced)
        self._resolved = False

    def check_open(self, arguments: tuple[Any, ...]) -> None:
        path, _, flags = arguments
        self._check(path, isinstance(flags, int) and flags & _WRITES != 0)

    def check_reading(self, arguments: tuple[Any, ...]) -> None:
        self._check(arguments[0], writes=False)

    def check_changing(self, arguments: tuple[Any, ...]) -> None:
        for path in arguments[:2]:
            self._check(path, writes=True)

    def _check(self, path: object, writes: bool) -> None:  # noqa: FBT001  # of one caller
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor that is open already, or another argument
        path = os.fsdecode(path)
        if path[:1] != "/":
            return  # perhaps relative to a descriptor: the kernel decides
        if not (self._may(os.path.normpath(path), writes) or self._may_really(path, writes)):
            raise _refused(f"{'writing to' if writes else 'reading'} {path[:200]!r}")

    def _may(self, path: str, writes: bool) -> bool:  # noqa: FBT001  # of one caller
        if writes:
            return f"{path}/".startswith(self._writable)
        return path in self._files or f"{path}/".startswith(self._readable)

    def _may_really(self, path: str, writes: bool) -> bool:  # noqa: FBT001  # as above
        """Do as `_may` for a path with links, some of which may have been changed since."""
        if not self._resolved:
            self._resolved = True
            self._writable = _with_real(self._writable)
            self._readable = _with_real(self._readable)
        real = os.path.realpath(path)
        return self._may(real, writes) or (
            not writes and any(os.path.realpath(each) == real for each in self._files)
        )


def _with_real(paths: Iterable[str]) -> tuple[str, ...]:
    """Return paths, which end in a slash, and their real paths."""
    both = (each for path in paths for each in (path, f"{os.path.realpath(path)}/"))
    return tuple(dict.fromkeys(both))


class _Hosts:
    """The check of connections and datagrams: hosts as well as ports, and unix sockets."""

    def __init__(self, needs: Needs) -> None:
        self._anywhere = needs.anywhere
        #: Hosts and their ports: addresses in binary form, and all as they are declared.
        self._allowed: set[tuple[object, int]] = set()
        #: Ports of hosts that are given by name, and may have any address.
        self._ports: set[int] = set()
        self._listening = frozenset((0, *needs.listening))
        self._sockets = frozenset(needs.sockets)
        for host, port in (*needs.tcp, *needs.udp):
            packed = packed_address(host)
            self._allowed |= {(packed or host.lower(), port), (host, port)}
            if packed is None:
                self._ports.add(port)

    def check(self, arguments: tuple[Any, ...]) -> None:
        address = arguments[1]
        if isinstance(address, tuple):
            host, port = address[0], address[1]
            if self._anywhere or not isinstance(host, str) or port in self._ports:
                return  # or not of the Internet
            if (host, port) in self._allowed:
                return
            if (packed_address(host) or host.lower(), port) not in self._allowed:
                raise _refused(f"connecting to {host[:100]} port {port}")
        elif isinstance(address, str | bytes):
            path = os.fsdecode(address)
            absolute = path if path[:1] == "\0" else os.path.abspath(path)  # noqa: PTH100  # start-up
            if absolute not in self._sockets:
                raise _refused(f"connecting to {path[:100]!r}")

    def check_bind(self, arguments: tuple[Any, ...]) -> None:
        address = arguments[1]
        if not isinstance(address, tuple) or not isinstance(address[0], str):
            return  # not of the Internet
        if address[1] not in self._listening:
            raise _refused(f"listening at port {address[1]}")
