"""The needs of a process after its start: those that its filters declare, and Python's own."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    #: A host, by name or address, and a port.
    Destination: TypeAlias = tuple[str, int]

#: Bytes of memory for what the framework itself bounds: 32,768 sessions, the caches and queues of
#: look-ups, spooled messages and their edited copies; with room.
MEMORY = 768 << 20
#: Bytes of memory per byte of a table's file. An entry takes about 100 bytes beside its text, two
#: contents exist during a reload, and the file may grow.
PER_TABLE_BYTE = 64
#: Descriptors of the framework, and of a policy that leaks none.
DESCRIPTORS = 256
#: Bytes of address space that a thread reserves: its stack, and an arena of the C library.
THREAD = 80 << 20

#: Directories and files of installed software, readable for everybody. Modules, codecs and shared
#: libraries are loaded from them when they are first used.
SYSTEM = (
    "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share", "/usr/local/lib", "/usr/local/share",
    "/lib", "/lib64", "/nix/store", "/gnu/store", "/etc/ld.so.cache", "/var/run/ld.so.hints",
    "/etc/localtime", "/etc/zoneinfo", "/etc/ssl/openssl.cnf",
)  # fmt: skip
#: The system's directories of programs.
PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store", "/gnu/store")
#: Trusted certificates, for connections with TLS.
CERTIFICATES = (
    "/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/pki", "/etc/ca-certificates",
    "/usr/local/etc/ssl/cert.pem", "/usr/local/share/certs",
)  # fmt: skip
#: What describes this process and this machine on Linux.
LINUX = (
    "/proc/self", "/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/sys/devices/system/cpu",
    "/dev/urandom",
)  # fmt: skip
#: What the C library reads to resolve names. These files are replaced as a whole, and so, where
#: rules are for a file and not for its name, only rules for their directories last.
RESOLVING = (
    "/etc", "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager", "/run/connman",
)  # fmt: skip
#: The same where rules are for names.
RESOLVING_FILES = (
    "/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/services", "/etc/protocols",
)  # fmt: skip
NULL = os.devnull


class Needs:
    """What a process needs after its start; the filters of one process add to the same object.

    Paths are absolute; a relative one is relative to the working directory at start. What a process
    opened before, and what Python itself needs, need not be declared.
    """

    __slots__ = (
        "anywhere", "descriptors", "listening", "memory", "programs", "read", "receives",
        "replaced", "runs", "sockets", "tcp", "threads", "udp", "write",
    )  # fmt: skip

    def __init__(self) -> None:
        #: Files and directories that are read, with all that is below them.
        self.read: list[str] = []
        #: Files that are read again after they were replaced.
        self.replaced: list[str] = []
        #: Directories in which files are created, written and deleted.
        self.write: list[str] = []
        #: Servers that are connected to.
        self.tcp: list[Destination] = []
        #: Hosts that datagrams are sent to.
        self.udp: list[Destination] = []
        #: Whether servers are connected to that are known only later.
        self.anywhere = False
        #: Paths of unix sockets that are connected to.
        self.sockets: list[str] = []
        #: Ports of listening TCP sockets.
        self.listening: list[int] = []
        #: Whether programs are started.
        self.runs = False
        #: Whether another process sends it descriptors.
        self.receives = False
        #: The paths of programs outside of the system's directories.
        self.programs: list[str] = []
        #: Bytes of memory.
        self.memory = MEMORY
        #: Open descriptors.
        self.descriptors = DESCRIPTORS
        #: Threads.
        self.threads = 2

    def to_read(self, path: str) -> None:
        """Read a file, or the files of a directory and those below it."""
        self.read.append(_absolute(path))

    def to_reload(self, path: str) -> None:
        """Read a file again, even if it was replaced by renaming another.

        The kernel can't express this: it allows all files of the file's directory.
        """
        path = _absolute(path)
        self.replaced.append(path)
        try:
            self.memory += PER_TABLE_BYTE * os.stat(path).st_size  # noqa: PTH116  # pathlib costs start-up
        except OSError:
            pass

    def to_write(self, directory: str) -> None:
        """Create, read, write, rename and delete files and directories in a directory."""
        self.write.append(_absolute(directory))

    def to_connect(self, host: str, port: int, *, udp: bool = False) -> None:
        """Connect to a port of a host by TCP, or send it datagrams.

        A host that is given by name may have any address. The C library resolves such a name with
        files in /etc, which the kernel then allows to read.
        """
        (self.udp if udp else self.tcp).append((host, port))

    def to_connect_anywhere(self) -> None:
        """Connect to servers that are known only later, as those of a cluster: to any, by TCP."""
        self.anywhere = True

    def to_connect_unix(self, path: str) -> None:
        """Connect to a unix socket."""
        self.sockets.append(path if path.startswith("\0") else _absolute(path))

    def to_listen(self, port: int) -> None:
        """Accept TCP connections at a port; 0 stands for a free port that the kernel chooses."""
        self.listening.append(port)

    def to_run(self, *programs: str) -> None:
        """Start programs: those in the system's directories, and those with the given paths.

        They run in the same sandbox: what they need must be declared as well.
        """
        self.runs = True
        self.programs += map(_absolute, programs)

    def to_receive_descriptors(self) -> None:
        """Receive descriptors from another process, over a socket that was opened before."""
        self.receives = True

    def to_allocate(self, size: int) -> None:
        """Allocate so many bytes of memory beside 768 MiB.

        All together is limited to three quarters of the machine's memory.
        """
        self.memory += size

    def to_open(self, descriptors: int) -> None:
        """Open so many files or sockets at a time beside 256."""
        self.descriptors += descriptors

    def to_start_threads(self, count: int) -> None:
        """Have so many threads at a time beside two; each reserves 80 MiB of address space."""
        self.threads += count

    @property
    def resolves(self) -> bool:
        """Whether the C library resolves names of hosts."""
        return self.anywhere or any(
            packed_address(host) is None for host, _ in (*self.tcp, *self.udp)
        )

    @property
    def internet(self) -> bool:
        """Whether it needs sockets of the Internet."""
        return bool(self.tcp or self.udp or self.listening or self.anywhere)


def packed_address(host: str) -> bytes | None:
    """Return an IP address in binary form, an IPv4-mapped one as IPv4; None for a name."""
    import _socket  # only for filters with connections

    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            packed = _socket.inet_pton(family, host.partition("%")[0])
        except (OSError, ValueError):
            continue
        return packed.removeprefix(b"\0" * 10 + b"\xff\xff") if len(packed) > 4 else packed
    return None


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # pathlib costs start-up


def readable(needs: Needs) -> Iterator[str]:
    """Yield what remains readable, with all that is below it."""
    yield from SYSTEM
    yield from of_python()
    yield from needs.read
    if needs.tcp or needs.anywhere:
        yield from of_certificates()
    if needs.resolves:
        yield from RESOLVING_FILES
    if needs.runs:
        yield from (*PROGRAMS, *needs.programs)


def of_python() -> Iterator[str]:
    """Yield where this interpreter finds modules and its libraries."""
    for path in sys.path:
        # "" is the working directory, which is smtpd's.
        if path and os.path.abspath(path) != "/":  # noqa: PTH100  # pathlib costs start-up
            yield os.path.abspath(path)  # noqa: PTH100
    yield os.path.join(sys.base_prefix, "lib")  # noqa: PTH118
    yield from sys.modules[__name__.partition(".")[0]].__path__


def of_certificates() -> Iterator[str]:
    """Yield where trusted certificates are."""
    yield from CERTIFICATES
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        yield from os.environ.get(name, "").split(":") if os.environ.get(name) else ()


def around(path: str) -> Iterator[str]:
    """Yield the directories in which a file may be replaced: that of its name, and its real one."""
    for each in dict.fromkeys((path, os.path.realpath(path))):
        directory = os.path.dirname(each)  # noqa: PTH120  # pathlib costs start-up
        # A file in the root directory can't be replaced, or everything could be read.
        yield each if directory == "/" else directory
