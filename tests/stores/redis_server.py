"""Redis servers of a test, on sockets and ports of their own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROGRAM = shutil.which("redis-server") or ""
#: Seconds for a server to start; the machine may be busy.
PATIENCE = 60.0


def unavailable() -> str:
    """Return why no server can be started here, or ""."""
    return "" if PROGRAM else "redis-server is not installed"


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
