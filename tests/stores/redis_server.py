"""Servers of Redis or Valkey for a test, on sockets and ports of their own."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Valkey where it is installed: continuous integration has Redis on Debian 12, Valkey on Debian 13.
PROGRAM = shutil.which("valkey-server") or shutil.which("redis-server") or ""
#: Seconds for a server to start; the machine may be busy.
PATIENCE = 60.0
#: Ports for servers; Linux gives those from 32,768 on to who asks for any.
PORTS = range(12_000, 22_000)


def unavailable() -> str:
    """Return why no server can be started here, or ""."""
    return "" if PROGRAM else "neither valkey-server nor redis-server is installed"


def free_ports(count: int) -> list[int]:
    """Return TCP ports that are free, as are those 10,000 above: a cluster's node uses both.

    The kernel gives none of them to connections, nor to servers that name no port: nothing else
    takes one before the server does.
    """
    found: list[int] = []
    while len(found) < count:
        port = PORTS.start + secrets.randbelow(len(PORTS))
        with socket.socket() as own, socket.socket() as of_the_bus, contextlib.suppress(OSError):
            own.bind(("127.0.0.1", port))
            of_the_bus.bind(("127.0.0.1", port + 10_000))
            if port not in found:
                found.append(port)
    return found


def free_port() -> int:
    """Return a TCP port that is free."""
    return free_ports(1)[0]


class RedisServer:
    """A server with its files in a folder, on a unix socket, and on a TCP port unless it is 0.

    With a `configuration` it is a sentinel.
    """

    def __init__(
        self, folder: Path, *more: str, port: int = 0, configuration: Path | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.port = port
        self._more = more
        self._configuration = configuration
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [PROGRAM, *self._arguments()], stdout=log, stderr=subprocess.STDOUT
            )
        until = time.monotonic() + PATIENCE
        while not self._answers():
            try:
                self.process.wait(0.02)
            except subprocess.TimeoutExpired:
                if time.monotonic() < until:
                    continue
            self.stop()
            raise RuntimeError((self.folder / "log").read_text()[-2000:])
        return self.process

    def _arguments(self) -> Sequence[str]:
        if self._configuration is not None:
            return (
                *(str(self._configuration), "--sentinel", "--port", str(self.port)),
                *("--bind", "127.0.0.1", "--unixsocket", str(self.socket)),
                *("--dir", str(self.folder)),
            )
        return (
            *("--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)),
            *("--dir", str(self.folder), "--save", "", "--daemonize", "no", *self._more),
        )

    def command(self, *words: str) -> bytes:
        """Return the beginning of the server's reply to a command; raise OSError without one."""
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(2 * PATIENCE)  # more than a WAIT takes
            peer.connect(str(self.socket))
            peer.sendall(" ".join(words).encode() + b"\r\n")
            return peer.recv(4096)

    def _answers(self) -> bool:
        try:
            return self.command("PING").startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def stop(self) -> None:
        """Kill the server."""
        self.process.kill()
        self.process.wait()


def wait_for(server: RedisServer, command: str, text: bytes) -> None:
    """Wait until a text is in the server's reply to a command."""
    until = time.monotonic() + PATIENCE
    found = b""
    while text not in found:
        assert time.monotonic() < until
        # A sentinel that promotes a server ends its connections.
        with contextlib.suppress(ConnectionError):
            found = server.command(command)


# -- several servers --------------------------------------------------------------------------


def sentinel(folder: Path, port: int, spare: int, watching: int) -> tuple[RedisServer, ...]:
    """Start a master, a replica and a sentinel, which names the master "mymaster"."""
    quickly = ("--repl-diskless-sync-delay", "0")
    master = RedisServer(folder / "master", *quickly, port=port)
    of = ("--replicaof", "127.0.0.1", str(port))
    replica = RedisServer(folder / "replica", *of, *quickly, port=spare)
    configuration = folder / "sentinel.conf"
    configuration.write_text(
        f"sentinel monitor mymaster 127.0.0.1 {port} 1\n"
        "sentinel down-after-milliseconds mymaster 500\n"
        "sentinel failover-timeout mymaster 2000\n"
    )
    watcher = RedisServer(folder / "sentinel", port=watching, configuration=configuration)
    return master, replica, watcher


def watched(master: RedisServer, replica: RedisServer, watcher: RedisServer) -> None:
    """Wait until the sentinel knows the replica, and may promote it: it has synchronised."""
    wait_for(replica, "INFO replication", b"master_link_status:up")
    known = b"name=mymaster,status=ok,address=127.0.0.1:%d,slaves=1" % master.port
    wait_for(watcher, "INFO sentinel", known)


def cluster(folder: Path, ports: Sequence[int]) -> list[RedisServer]:
    """Start the nodes of a cluster, which `join_cluster` makes of them."""
    flags = (
        *("--cluster-enabled", "yes", "--cluster-node-timeout", "1000"),
        *("--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0"),
    )
    return [RedisServer(folder / str(port), *flags, port=port) for port in ports]


def join_cluster(nodes: Sequence[RedisServer]) -> None:
    """Join masters, the first half, and replicas, and wait until the cluster is up."""
    hosts = [f"127.0.0.1:{node.port}" for node in nodes]
    subprocess.run(
        ["redis-cli", "--cluster", "create", *hosts, "--cluster-replicas", "1", "--cluster-yes"],  # noqa: S607
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    until = time.monotonic() + PATIENCE
    while not all(map(_is_up, nodes)):
        assert time.monotonic() < until


def _is_up(node: RedisServer) -> bool:
    """Return whether a node is in its cluster; a replica that never synchronised isn't promoted."""
    replication = node.command("INFO", "replication")
    return b"cluster_state:ok" in node.command("CLUSTER", "INFO") and (
        b"connected_slaves:1" in replication or b"master_link_status:up" in replication
    )
