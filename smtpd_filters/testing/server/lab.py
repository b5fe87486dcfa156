"""Namespaces of one's own: a network with nothing but loopback and a DNS zone, and fresh mounts.

The law:

1. Nothing gets out: no packet, no file outside the folders that are listed as writable, no process.
2. Everything goes with the lab: closing it ends its processes and returns when they have ended.
   So does the death of the process that made it, however it dies.
3. The test process stays outside. It makes sockets inside (a socket stays in the namespace in which
   it was made), reads and writes files through `/proc`, and runs commands inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, cast

from . import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from smtpd_filters.testing.dns import DNSServer

    from .holder import Plan

T = TypeVar("T")

CLONE_NEWNET = 0x40000000  # linux/sched.h
IPV6_FREEBIND = 78  # linux/in6.h
HOLDER = Path(__file__).with_name("holder.py")
HOSTNAME = "mx.local.example"
# RFC 5737 and RFC 3849: the networks of documentation. All their addresses are the lab's own, so
# that a client can come from any of them, as from any of 127.0.0.0/8.
NETWORKS = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
TCP_LISTEN = "0A"  # include/net/tcp_states.h, as /proc/net/tcp writes it
HOLDER_TIMEOUT = 30.0  # seconds; it takes milliseconds
ROOM = 2  # connections that may wait when another one is made
DNS_PORT = 53
# Programs beside the server may look for it; that these addresses have a name is the test's to say.
LOCALHOST = {"localhost": {"A": "127.0.0.1", "AAAA": "::1"}}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C.UTF-8"}

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The lab, or what was to run in it, did not come up; str() says why."""


class Process(NamedTuple):
    """A process inside, as this side sees it."""

    pid: int
    arguments: list[str]


class Lab:
    """Namespaces in which servers run and from which clients connect; a context manager.

    `zone` is what the name server on 127.0.0.1 and ::1 answers (see `smtpd_filters.testing.dns`);
    it may be changed at any time, through `dns.zone`. `root` is the file system: this system's, or
    the folder of another's. `binds` maps folders of this side to where they are seen, read-only,
    inside; `exposed` are folders that everybody inside must be able to read where they are.
    `beside` is a lab whose network (and DNS) is shared instead of making one.

    Raises LabError when the system does not let us.
    """

    def __init__(  # noqa: PLR0913  # keyword-only, each with a default
        self,
        zone: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        root: str | Path = "/",
        binds: Mapping[str, Path] | None = None,
        exposed: Iterable[Path] = (),
        directories: Mapping[str, int] | None = None,
        beside: Lab | None = None,
    ) -> None:
        if beside is not None and zone is not None:
            raise ValueError("a lab beside another uses the other's zone")
        self._beside = beside
        listen = [("127.0.0.1", DNS_PORT)]
        if Path("/proc/net/if_inet6").exists():
            listen.append(("::1", DNS_PORT))
        # Who only asks what a lab would be, as a replayed demonstration, needs no dnspython.
        from smtpd_filters.testing.dns import DNSServer, merge

        served = merge(LOCALHOST, zone or {})
        self.dns: DNSServer = DNSServer(served, listen=listen) if beside is None else beside.dns
        self._plan: Plan = {
            "root": str(root),
            "net": None,
            "hostname": HOSTNAME,
            "etc": {
                "/etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
                # Nothing but the zone decides what a name or an address means.
                "?/etc/hosts": "",
                "?/etc/mailname": f"{HOSTNAME}\n",
            },
            "binds": [(str(path), inside) for inside, path in (binds or {}).items()],
            "exposed": [str(path) for path in exposed],
            "directories": {"/srv/lab": 0o755, "/srv/lab/etc": 0o755, **(directories or {})},
            "networks": list(NETWORKS),
        }
        self._closing = contextlib.ExitStack()
        self._connecting = threading.Lock()
        self._spawned: list[subprocess.Popen[bytes]] = []
        self.pid = 0

    def __enter__(self) -> Self:
        if self._beside is not None:
            self._plan["net"] = self._beside.pid
        with contextlib.ExitStack() as stack:
            holder = subprocess.Popen(  # noqa: S603  # our own interpreter, our own file
                [sys.executable, "-I", "-S", str(HOLDER), json.dumps(self._plan)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # a terminal's interrupt is for the test process alone
            )
            stack.callback(self._reap)
            stack.callback(_end, holder)
            stdout = cast("IO[bytes]", holder.stdout)
            answer = json.loads(stdout.readline() or '{"error": "the holder died"}')
            if "error" in answer:
                raise LabError(f"no namespaces: {answer['error']}")
            self.pid = answer["pid"]
            if self._beside is None:
                self.call(self.dns.__enter__)
                stack.callback(self.dns.__exit__, None, None, None)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process inside and wait until they have ended."""
        self._closing.close()
        self.pid = 0

    def path(self, inside: str) -> Path:
        """Return where this side finds a file of the lab's. Absolute symbolic links mislead it."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in a thread that is in the lab's network; return or raise what it does.

        Threads that it starts are in that network too, and so is every socket made there, for good.
        """
        outcome: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                _enter_network(self.pid)
                outcome.append(function())
            except BaseException as exc:  # noqa: BLE001  # raised again in the caller's thread
                failure.append(exc)

        # A thread of its own: a pooled one would stay behind in the namespace.
        thread = threading.Thread(target=run, name="lab-call")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def new_socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
    ) -> socket.socket:
        """Return a new socket of the lab's network."""
        return self.call(lambda: socket.socket(family, kind))

    def connect(
        self, port: int, *, source: str = "127.0.0.1", to: str | None = None, timeout: float = 60
    ) -> socket.socket:
        """Return a TCP connection inside; by default to the loopback address of source's family."""
        sixth = ":" in source
        connection = self.new_socket(socket.AF_INET6 if sixth else socket.AF_INET)
        try:
            connection.settimeout(timeout)
            if sixth:
                # Unlike IPv4's, an address that is ours by a route only may not be bound otherwise.
                connection.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            connection.bind((source, 0))
            with self._connecting:
                self._wait_for_room(port, timeout)
                connection.connect((to or ("::1" if sixth else "127.0.0.1"), port))
        except OSError:
            connection.close()
            raise
        return connection

    def _wait_for_room(self, port: int, timeout: float) -> None:
        """Wait until the listeners on this port have accepted what is pending.

        smtpd listens with a backlog of 5. Beyond that the kernel drops what makes a connection, and
        tries again after seconds: a crowd of clients would test the kernel's patience, not smtpd.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._pending(port) > ROOM:
            select.select([], [], [], 0.001)

    def _pending(self, port: int) -> int:
        """Return how many connections wait to be accepted on this port."""
        most = 0
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(FileNotFoundError):
                lines = Path(f"/proc/{self.pid}/net/{table}").read_text("ascii").splitlines()[1:]
                # proc(5): sl local remote st tx_queue:rx_queue ...; of a listener, rx_queue is the
                # number of connections it has not accepted.
                for _, local, _, state, queues, *_ in map(str.split, lines):
                    if state == TCP_LISTEN and int(local.rpartition(":")[2], 16) == port:
                        most = max(most, int(queues.partition(":")[2], 16))
        return most

    def command(
        self, arguments: Sequence[str], *, user: tuple[int, int] | None = None
    ) -> list[str]:
        """Return the command line that runs another one inside, as root or as (uid, gid)."""
        nsenter = ["nsenter", f"--target={self.pid}"]
        nsenter += ["--mount", "--net", "--pid", "--uts", "--root", "--wd"]
        if user is not None:
            nsenter += [f"--setuid={user[0]}", f"--setgid={user[1]}"]
        return [*nsenter, "--", *arguments]

    def run(
        self,
        *arguments: str,
        input: bytes = b"",  # noqa: A002  # as subprocess.run calls it
        user: tuple[int, int] | None = None,
        timeout: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command inside to its end; raises CalledProcessError if it fails."""
        return subprocess.run(  # noqa: S603  # running commands is what a lab is for
            self.command(arguments, user=user),
            input=input,
            capture_output=True,
            timeout=timeout,
            check=check,
            env=environment(),
        )

    def spawn(self, *arguments: str, **keywords: Any) -> subprocess.Popen[bytes]:
        """Start a command inside; keywords as for Popen. It ends with the lab at the latest."""
        keywords.setdefault("env", environment())
        keywords.setdefault("stdin", subprocess.DEVNULL)
        process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603  # as in run
            self.command(arguments), **keywords
        )
        self._spawned.append(process)
        return process

    def processes(self) -> list[Process]:
        """Return what runs inside, the holder itself left out, with this side's numbers."""
        if not self.pid:
            return []
        mine = os.readlink(f"/proc/{self.pid}/ns/pid")  # noqa: PTH115  # no path: "pid:[1]"
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self.pid:
                continue
            with contextlib.suppress(OSError):  # it has ended, or is a zombie
                if os.readlink(entry / "ns/pid") == mine:  # noqa: PTH115  # no path: "pid:[1]"
                    line = (entry / "cmdline").read_bytes().rstrip(b"\0")
                    found.append(Process(int(entry.name), os.fsdecode(line).split("\0")))
        return sorted(found)

    def _reap(self) -> None:
        """Take leave of what spawn started; it has been killed with the PID namespace."""
        for process in self._spawned:
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def family(self, process: subprocess.Popen[bytes]) -> list[Process]:
        """Return what belongs to a spawned process: all inside that belongs to no other one.

        So orphans count too.
        """
        # In this order: what is started meanwhile is another one's or not listed at all.
        inside = self.processes()
        others = set()
        for other in self._spawned:
            if other is not process:
                others |= descendants(other.pid)
        return [found for found in inside if found.pid not in others]


def environment() -> dict[str, str]:
    """Return the environment of what runs inside; its clock is this process's."""
    return {**ENVIRONMENT, **clock.variables()}


def wait_ended(processes: Iterable[Process], timeout: float) -> list[Process]:
    """Wait until these have ended; return those that have not, after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    running = []
    for process in processes:
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        # pidfd_open(2): readable when the process has ended.
        left = max(0, deadline - time.monotonic())
        if not select.select([descriptor], [], [], left)[0]:
            running.append(process)
        os.close(descriptor)
    return running


def _enter_network(pid: int) -> None:
    """Take the calling thread into the network of a process."""
    with Path(f"/proc/{pid}/ns/net").open("rb") as namespace:
        if _libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"setns: {os.strerror(number)}")


def _end(holder: subprocess.Popen[bytes]) -> None:
    cast("IO[bytes]", holder.stdin).close()
    try:
        holder.wait(HOLDER_TIMEOUT)
    except subprocess.TimeoutExpired:
        # Somebody else has our end of its input: a process forked off and never executed.
        holder.kill()
        holder.wait()
    cast("IO[bytes]", holder.stdout).close()


def descendants(pid: int) -> set[int]:
    """Return the numbers of a process's children and of theirs."""
    found: set[int] = set()
    new = children(pid)
    while new:
        found.update(new)
        new = [grandchild for child in new for grandchild in children(child)]
    return found


def children(pid: int) -> list[int]:
    """Return the numbers of a process's children."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # proc(5), stat: pid (comm) state ppid; comm may hold anything, also a ).
                _, _, rest = (entry / "stat").read_text("utf-8", "replace").rpartition(")")
                if int(rest.split()[1]) == pid:
                    found.append(int(entry.name))
    return found
