"""A daemon of Debian's for the end-to-end tests, in the network of a lab, with files of its own.

    with Lab(ZONE) as lab, Daemon(lab, ["opendkim", "-x", f"{FILES}/conf"], {"conf": X}) as daemon:
        command = filter_command("milter", "--milter", daemon.address)

It sees the files of the lab's machine, so that names resolve in the lab's zone, and ends with the
context or with this process, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from smtpd_filters.testing.server.lab import (
    PATH,
    Lab,
    LabError,
    send_signal,
    wait_ended,
    wait_reaped,
)
from smtpd_filters.testing.server.output import Output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LOOPBACK = "127.0.0.1"
#: Seconds that a daemon may take for anything.
PATIENCE = 60.0
#: Where its files are, as it sees them.
FILES = "/srv/daemon"
#: Where it may write.
STATE = "/srv/state"


def unavailable(*programs: str) -> str | None:
    """Return in one line why these programs can't run here, or None if they can."""
    if os.geteuid() != 0:
        return "root is required"
    for program in programs:
        if shutil.which(program, path=PATH) is None:
            return f"no {program} (install the package)"
    return None


class Daemon:
    """A context manager that runs a daemon.

    lab        the lab in whose network it listens
    arguments  its command line; PORT stands for its port, as in the contents of `files`
    files      name -> content; it sees them in FILES
    port       the port; by default a free one
    root       the root of its file system

    Raises LabError with the log if it doesn't start.
    """

    def __init__(
        self,
        lab: Lab,
        arguments: Sequence[str],
        files: Mapping[str, str] | None = None,
        *,
        port: int = 0,
        root: str | Path = "/",
    ) -> None:
        self._lab = lab
        self._root = root
        self._arguments = arguments
        self._files = dict(files or {})
        self._output = Output()
        self.log = self._output.lines
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = contextlib.ExitStack()
        self.port = port

    @property
    def address(self) -> str:
        """Its address in the notation of milters."""
        return f"inet:{self.port}@{LOOPBACK}"

    def __enter__(self) -> Self:
        if self._root == "/" and (reason := unavailable(self._arguments[0])):
            raise LabError(reason)
        with contextlib.ExitStack() as stack:
            directory = Path(tempfile.mkdtemp(prefix="daemon-"))
            stack.callback(shutil.rmtree, directory)
            directory.chmod(0o755)
            inside = Lab(
                root=self._root,
                beside=self._lab,
                binds={FILES: directory},
                directories={STATE: 0o1777},
            )
            #: The lab of the daemon's processes and files.
            self.inside = stack.enter_context(inside)
            stack.callback(self.kill)
            kept = stack.enter_context(self._lab.new_socket())
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind((LOOPBACK, self.port))
            self.port = kept.getsockname()[1]
            for name, content in self._files.items():
                path = directory / name
                path.write_text(self._filled(content))
                path.chmod(0o600 if name.endswith("key") else 0o644)
            self.start()
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _filled(self, text: str) -> str:
        return text.replace("PORT", str(self.port))

    def start(self) -> None:
        """Start it, after `kill` at the same address, and wait until it accepts connections."""
        self._process = self.inside.spawn(
            *map(self._filled, self._arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._output.follow(self._process.stdout, "daemon-log")
        until = PATIENCE
        while True:
            with self._lab.new_socket() as link:
                link.settimeout(PATIENCE)
                if not link.connect_ex((LOOPBACK, self.port)):
                    return
            until -= 0.02
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)
                raise self._failure("has ended")
            if until < 0:
                raise self._failure("does not listen")

    def _failure(self, what: str) -> LabError:
        return LabError(f"{self._arguments[0]} {what}\n" + "\n".join(self.log[-50:]))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        send_signal(self.inside.processes(), number)

    def kill(self) -> None:
        """Kill it."""
        mine = self.inside.processes()
        self.signal(signal.SIGKILL)
        wait_ended(mine, PATIENCE)
        if self._process is not None:
            wait_reaped(self._process, PATIENCE)
            self._output.close()
            self._process = None
