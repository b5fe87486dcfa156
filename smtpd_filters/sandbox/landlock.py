"""Landlock: Linux's limits on files, TCP ports and signals, which a process sets itself.

See landlock(7). The kernel's version of the interface ("ABI") tells what it can limit.
"""

from __future__ import annotations

import os
import stat
import sys

from .needs import LINUX, NULL, PROGRAMS, RESOLVING, around, readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .libc import Libc
    from .needs import Needs

# Numbers of the system calls, the same on all machines.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_GET_VERSION = 1
_PATH_BENEATH, _NET_PORT = 1, 2

# Rights on files and directories, by the version that introduced them.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_DIR, MAKE_REG = 1 << 7, 1 << 8
_ALL_OF_1 = (1 << 13) - 1
_REFER, TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_ABSTRACT_SOCKETS, _SIGNALS = 1 << 0, 1 << 1
_DNS = 53
#: The first versions with TCP ports, and with abstract sockets and signals.
TCP, SCOPES = 4, 6

#: Read what is in a directory.
READ = READ_FILE | READ_DIR
#: Create, change and delete what is in a directory.
WRITE = READ | WRITE_FILE | REMOVE_FILE | _REMOVE_DIR | _MAKE_DIR | MAKE_REG | _REFER | TRUNCATE
#: The rights that a file can have; the others are those of directories.
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | _IOCTL_DEV


def version(libc: Libc) -> int:
    """Return the version of the kernel's interface. Raises OSError if it has none."""
    return libc.call("syscall", _CREATE_RULESET, None, 0, _GET_VERSION)


class Ruleset:
    """What a process may do from `restrict` on; `close` it."""

    def __init__(self, libc: Libc, abi: int, *, abstract_sockets: bool, any_port: bool) -> None:
        """Raise OSError if the kernel refuses it."""
        self._libc = libc
        files = _ALL_OF_1
        for introduced, right in ((2, _REFER), (3, TRUNCATE), (5, _IOCTL_DEV)):
            files |= right if abi >= introduced else 0
        self._files = files
        self._ports = 0 if abi < TCP else _BIND_TCP if any_port else _BIND_TCP | _CONNECT_TCP
        scopes = _SIGNALS if abstract_sockets else _SIGNALS | _ABSTRACT_SOCKETS
        attributes = _quad(files)
        if abi >= TCP:
            attributes += _quad(self._ports)
        if abi >= SCOPES:
            attributes += _quad(scopes)
        self._fd = libc.call("syscall", _CREATE_RULESET, attributes, len(attributes), 0)

    def allow(self, path: str, rights: int) -> None:
        """Allow these rights on a file, or on a directory and what is below; not if it is missing.

        Raises OSError if the kernel refuses the rule.
        """
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                rights &= _OF_FILES
            rule = _quad(rights & self._files) + fd.to_bytes(4, sys.byteorder)
            self._libc.call("syscall", _ADD_RULE, self._fd, _PATH_BENEATH, rule, 0)
        finally:
            os.close(fd)

    def allow_connect(self, port: int) -> None:
        """Allow TCP connections to a port. Raises OSError."""
        self._allow_port(_CONNECT_TCP, port)

    def allow_bind(self, port: int) -> None:
        """Allow listening at a TCP port. Raises OSError."""
        self._allow_port(_BIND_TCP, port)

    def _allow_port(self, right: int, port: int) -> None:
        if self._ports & right:
            rule = _quad(right) + _quad(port)
            self._libc.call("syscall", _ADD_RULE, self._fd, _NET_PORT, rule, 0)

    def restrict(self) -> None:
        """Give up everything else, for this thread and those that it starts. Raises OSError."""
        self._libc.call("syscall", _RESTRICT_SELF, self._fd, 0)

    def close(self) -> None:
        """Close its descriptor."""
        os.close(self._fd)


def _quad(number: int) -> bytes:
    return number.to_bytes(8, sys.byteorder)


def confine(libc: Libc, needs: Needs) -> list[str]:
    """Give up files and ports that are not needed; return what this kernel lacks of that.

    Raises OSError without Landlock.
    """
    abi = version(libc)
    abstract = any(path.startswith("\0") for path in needs.sockets)
    rules = Ruleset(libc, abi, abstract_sockets=abstract, any_port=needs.anywhere)
    try:
        for path, allowed in rights(needs).items():
            rules.allow(path, allowed)
        for port in {port for _, port in needs.tcp} | ({_DNS} if needs.resolves else set()):
            rules.allow_connect(port)
        for port in needs.listening:
            rules.allow_bind(port)
        rules.restrict()
    finally:
        rules.close()
    missing = []
    if abi < TCP and (needs.tcp or needs.listening):
        missing.append("Landlock: no limit on TCP ports before Linux 6.7")
    import _thread  # built in

    if others := _thread._count():  # noqa: SLF001  # no public name
        missing.append(f"Landlock: not for {others} threads that were started during setup")
    return missing


def rights(needs: Needs) -> dict[str, int]:
    """Map paths to Landlock's rights on them."""
    allowed = {NULL: READ_FILE | WRITE_FILE}

    def allow(paths: Iterable[str], right: int) -> None:
        for path in paths:
            allowed[path] = allowed.get(path, 0) | right

    allow(_outermost((*readable(needs), *LINUX)), READ)
    for path in needs.replaced:
        allow(around(path), READ_FILE)
    if needs.resolves:
        allow((*RESOLVING, *around("/etc/resolv.conf")), READ_FILE)
    if needs.runs:
        allow((*PROGRAMS, *needs.programs), READ | EXECUTE)
    allow(needs.write, WRITE)
    return allowed


def _outermost(paths: Iterable[str]) -> Iterator[str]:
    """Yield the paths without those below another one before it: each rule takes time."""
    seen: tuple[str, ...] = ()
    for path in paths:
        if not f"{path}/".startswith(seen):
            seen += (f"{path}/",)
            yield path
