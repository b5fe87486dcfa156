"""A lab: namespaces with a network of loopback and a DNS zone only, and with fresh mounts.

The test process stays outside. It creates sockets inside (a socket stays in the namespace in which
it was created), reads and writes files through `/proc`, and runs commands inside.

Invariants
----------
*Isolation*: no packet, no process, and no write outside the writable folders leaves the lab.
*No leftovers*: closing the lab ends its processes and waits for their end. If the process that
created the lab dies, in whatever way, they end as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, cast

from . import clock
from .backlog import DIAGNOSIS, count_waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from smtpd_filters.testing.dns import DNSServer

    from .holder import Plan

T = TypeVar("T")

CLONE_NEWNET = 0x40000000  # linux/sched.h
IPV6_FREEBIND = 78  # linux/in6.h
HOLDER = Path(__file__).with_name("holder.py")
HOSTNAME = "mx.local.example"
# The documentation networks of RFC 5737 and RFC 3849. All their addresses are local to the lab, so
# that a client can use any of them, like any of 127.0.0.0/8.
NETWORKS = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
HOLDER_TIMEOUT = 30.0  # seconds; it takes milliseconds
EXEC_TIMEOUT = 1.0  # seconds; it takes microseconds, or as long as the disk
ROOM = 2  # pending connections allowed when another one is made
DNS_PORT = 53
# Programs in the lab may look it up. Reverse names of these addresses are left to the test.
LOCALHOST = {"localhost": {"A": "127.0.0.1", "AAAA": "::1"}}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C.UTF-8"}

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The lab, or a program in it, did not start; the text is the reason."""


class Process(NamedTuple):
    """A process inside, with its pid outside."""

    pid: int
    arguments: list[str]


class Lab:
    """A context manager for the namespaces in which servers run and from which clients connect.

    `zone` is the zone of the name server on 127.0.0.1 and ::1 (see `smtpd_filters.testing.dns`); it
    may be changed at any time through `dns.zone`. `root` is the root of the file system. `binds`
    maps paths inside to folders outside, read-only; `exposed` are folders that are made readable
    for everybody inside, at the same path. `beside` is a lab whose network and DNS are shared.

    Raises LabError if the system doesn't permit it.
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
        # Imported here: a replayed demonstration creates no lab and needs no dnspython.
        from smtpd_filters.testing.dns import DNSServer, merge

        served = merge(LOCALHOST, zone or {})
        self.dns: DNSServer = DNSServer(served, listen=listen) if beside is None else beside.dns
        self._plan: Plan = {
            "root": str(root),
            "net": None,
            "hostname": HOSTNAME,
            "etc": {
                "/etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
                # Only the zone resolves names and addresses.
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
            stack.callback(self._kill)
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
        """End every process inside and wait for their end."""
        self._closing.close()
        self.pid = 0

    def path(self, inside: str) -> Path:
        """Return the path outside of a file inside. Absolute symbolic links aren't supported."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in a thread in the lab's network; return or raise its result.

        Threads and sockets that it creates stay in that network.
        """
        outcome: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                _enter_network(self.pid)
                outcome.append(function())
            except BaseException as exc:  # noqa: BLE001  # raised again in the caller's thread
                failure.append(exc)

        # A new thread, since a pooled one would stay in the namespace.
        thread = threading.Thread(target=run, name="lab-call")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def new_socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """Return a new socket in the lab's network."""
        return self.call(lambda: socket.socket(family, kind, protocol))

    def connect(
        self, port: int, *, source: str = "127.0.0.1", to: str | None = None, timeout: float = 60
    ) -> socket.socket:
        """Return a TCP connection inside, by default to the loopback address of that family."""
        sixth = ":" in source
        connection = self.new_socket(socket.AF_INET6 if sixth else socket.AF_INET)
        try:
            connection.settimeout(timeout)
            if sixth:
                # Needed to bind an IPv6 address that is local only by a route, unlike for IPv4.
                connection.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            connection.bind((source, 0))
            with self._connecting:
                self._wait_for_room(port, timeout, sixth=sixth)
                connection.connect((to or ("::1" if sixth else "127.0.0.1"), port))
        except OSError:
            connection.close()
            raise
        return connection

    def _wait_for_room(self, port: int, timeout: float, *, sixth: bool) -> None:
        """Wait until the listeners of this family on this port have accepted connections.

        smtpd listens with a backlog of 5. Beyond that the kernel drops SYNs and retries after
        seconds, so that many clients would measure the kernel's retries and not smtpd.
        """
        deadline = time.monotonic() + timeout
        family = socket.AF_INET6 if sixth else socket.AF_INET
        with self.new_socket(*DIAGNOSIS) as diagnosis:
            while time.monotonic() < deadline and count_waiting(diagnosis, family, port) > ROOM:
                select.select([], [], [], 0.001)

    def command(
        self, arguments: Sequence[str], *, user: tuple[int, int] | None = None
    ) -> list[str]:
        """Return the command line that runs a command inside, as root or as (uid, gid)."""
        nsenter = ["nsenter", f"--target={self.pid}"]
        nsenter += ["--mount", "--net", "--pid", "--uts", "--root", "--wd"]
        if user is not None:
            nsenter += [f"--setuid={user[0]}", f"--setgid={user[1]}"]
        return [*nsenter, "--", *arguments]

    def run(
        self,
        *arguments: str,
        input: bytes = b"",  # noqa: A002  # the name in subprocess.run
        user: tuple[int, int] | None = None,
        timeout: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command inside to its end. Raises CalledProcessError if it fails."""
        return subprocess.run(  # noqa: S603  # running commands is what a lab is for
            self.command(arguments, user=user),
            input=input,
            capture_output=True,
            timeout=timeout,
            check=check,
            env=environment(),
        )

    def spawn(self, *arguments: str, **keywords: Any) -> subprocess.Popen[bytes]:
        """Start a command inside, with keywords of Popen; it ends with the lab at the latest."""
        keywords.setdefault("env", environment())
        keywords.setdefault("stdin", subprocess.DEVNULL)
        process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603  # as in run
            self.command(arguments), **keywords
        )
        self._spawned.append(process)
        return process

    def processes(self) -> list[Process]:
        """Return the processes inside except the holder, with their pids outside."""
        if not self.pid:
            return []
        mine = os.readlink(f"/proc/{self.pid}/ns/pid")  # noqa: PTH115  # no path: "pid:[1]"
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self.pid:
                continue
            with contextlib.suppress(OSError):  # ended, or a zombie
                if os.readlink(entry / "ns/pid") == mine:  # noqa: PTH115  # no path: "pid:[1]"
                    found.append(Process(int(entry.name), _arguments(entry)))
        return sorted(found)

    def _kill(self) -> None:
        """Kill each nsenter: the PID namespace doesn't end before it, and it may have stopped."""
        for process in self._spawned:
            process.kill()

    def _reap(self) -> None:
        """Wait for the spawned processes, which were killed with the PID namespace."""
        for process in self._spawned:
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def family(self, process: subprocess.Popen[bytes]) -> list[Process]:
        """Return the processes that belong to a spawned one, including orphans.

        These are all processes inside that belong to no other spawned one.
        """
        # In this order, a process started in between is in `others` or not listed at all.
        inside = self.processes()
        others = set()
        for other in self._spawned:
            if other is not process:
                others |= descendants(other.pid)
        return [found for found in inside if found.pid not in others]


def environment() -> dict[str, str]:
    """Return the environment of processes inside, with this process's clock."""
    return {**ENVIRONMENT, **clock.variables()}


def send_signal(processes: Iterable[Process], number: int) -> None:
    """Send a signal to processes, in this order.

    nsenter stops itself when its child has stopped. That may come after SIGCONT, so that it stays
    stopped: wait for it with `wait_reaped`.
    """
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def wait_reaped(process: subprocess.Popen[bytes], timeout: float) -> None:
    """Wait for a spawned process, which has ended inside, until its nsenter has reaped it.

    An nsenter that is killed leaves that to the machine's init. Until then the process can be seen
    inside as a zombie, and a daemon that is started again takes it for the one of its pid file.

    Raises subprocess.TimeoutExpired after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        process.send_signal(signal.SIGCONT)  # see `send_signal`
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise
        else:
            return


def wait_ended(processes: Iterable[Process], timeout: float) -> list[Process]:
    """Wait for processes to end; return those still running after `timeout` seconds."""
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


def _arguments(entry: Path) -> list[str]:
    """Return the arguments of the process whose folder in /proc this is."""
    deadline = time.monotonic() + EXEC_TIMEOUT
    # There are none for a moment while the process executes another program.
    while not (line := (entry / "cmdline").read_bytes().rstrip(b"\0")):
        if time.monotonic() > deadline:
            break
        (entry / "ns/pid").readlink()  # fails if the process has ended
        time.sleep(0.0005)
    return os.fsdecode(line).split("\0")


def _enter_network(pid: int) -> None:
    """Move the calling thread into the network of a process."""
    with Path(f"/proc/{pid}/ns/net").open("rb") as namespace:
        if _libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"setns: {os.strerror(number)}")


def _end(holder: subprocess.Popen[bytes]) -> None:
    cast("IO[bytes]", holder.stdin).close()
    try:
        holder.wait(HOLDER_TIMEOUT)
    except subprocess.TimeoutExpired:
        # Another process has inherited the pipe of its input: forked, but never executed.
        holder.kill()
        holder.wait()
    cast("IO[bytes]", holder.stdout).close()


def descendants(pid: int) -> set[int]:
    """Return the pids of a process's descendants."""
    found: set[int] = set()
    new = children(pid)
    while new:
        found.update(new)
        new = [grandchild for child in new for grandchild in children(child)]
    return found


def children(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # proc(5), stat: pid (comm) state ppid; comm may contain anything, even a ).
                _, _, rest = (entry / "stat").read_text("utf-8", "replace").rpartition(")")
                if int(rest.split()[1]) == pid:
                    found.append(int(entry.name))
    return found
