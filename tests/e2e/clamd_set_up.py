"""The real clamd of the end-to-end tests, with a database of one signature: that of EICAR's file.

It listens on a unix socket, and also at a TCP port if one is given, takes 16 MB, and is ready in a
fraction of a second.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

    from smtpd_filters.testing.server import Lab

#: In two halves: other scanners would take this file for the virus.
EICAR = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}" + b"$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
#: What clamd calls it: names from one's own database get the suffix.
NAME = "Own.Test.EICAR.UNOFFICIAL"
#: A pattern that only makes a message suspicious, and its name.
SUSPICIOUS, SUSPICIOUS_NAME = b"this-is-a-suspicious-test", "PUA.Own.Test.UNOFFICIAL"
#: Bytes that the daemon takes of a message.
LIMIT = 25 << 20
#: Seconds that the daemon may take for anything.
PATIENCE = 60.0


def unavailable() -> str:
    """Return what is missing, "" if clamd can be run."""
    if os.geteuid() != 0:
        return "needs root"
    return "" if program() else "needs the package clamav-daemon"


def program() -> str | None:
    """Return the path of clamd."""
    return shutil.which("clamd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class ClamAV:
    """A clamd, started with `with`; `limit` is its StreamMaxLength in bytes, `port` on 127.0.0.1.

    With `lab` it is in the lab's network; its socket is a file outside, to be bound into labs.
    """

    def __init__(self, *, limit: int = LIMIT, port: int = 0, lab: Lab | None = None) -> None:
        self._limit, self.port = limit, port
        # Without another PID namespace, so that the process is clamd itself.
        self._prefix = () if lab is None else ("nsenter", f"--target={lab.pid}", "--net", "--")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="clamd-"))
        try:
            self.folder.chmod(0o755)
            (self.folder / "db").mkdir()
            lines = [(NAME, EICAR), (SUSPICIOUS_NAME, SUSPICIOUS)]
            (self.folder / "db" / "own.ndb").write_text(
                "".join(
                    f"{name.removesuffix('.UNOFFICIAL')}:0:*:{data.hex()}\n" for name, data in lines
                )
            )
            (self.folder / "tmp").mkdir(mode=0o777)
            (self.folder / "sockets").mkdir()
            self._write()
            self.start()
        except BaseException:
            self.stop()
            shutil.rmtree(self.folder)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    @property
    def socket(self) -> Path:
        """The path of its socket, in a directory of its own."""
        return self.folder / "sockets" / "clamd"

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process is not None
        return self._process.pid

    def _write(self) -> None:
        lines = [
            f"LocalSocket {self.socket}",
            "LocalSocketMode 666",
            f"PidFile {self.folder / 'pid'}",
            f"DatabaseDirectory {self.folder / 'db'}",
            f"TemporaryDirectory {self.folder / 'tmp'}",
            f"LogFile {self.folder / 'log'}",
            "User root",
            "Foreground yes",
            "MaxThreads 2",
            f"StreamMaxLength {self._limit}",
            "ReadTimeout 20",
            "CommandReadTimeout 5",
            "SelfCheck 0",
            "LogVerbose yes",
        ]
        if self.port:
            lines += [f"TCPSocket {self.port}", "TCPAddr 127.0.0.1"]
        (self.folder / "clamd.conf").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        """Start the daemon, and wait until it answers."""
        command = program()
        assert command is not None
        self.socket.unlink(missing_ok=True)  # a killed daemon leaves it
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [*self._prefix, command, "-c", self.folder / "clamd.conf"],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        ends = monotonic() + PATIENCE
        while self.ask(b"zPING\0") != b"PONG\0":
            if self._process.poll() is not None or monotonic() > ends:
                raise RuntimeError((self.folder / "output").read_text(errors="replace"))
            _wait_a_moment(self._process)

    def kill(self) -> None:
        """Kill the daemon."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the daemon."""
        os.kill(self.pid, number)

    def stop(self) -> None:
        """End the daemon, whatever its state."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()

    def ask(self, command: bytes) -> bytes:
        """Return its reply to a command; b"" if it doesn't answer."""
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(PATIENCE)
                link.connect(str(self.socket))
                link.sendall(command)
                return link.recv(100)
        except OSError:
            return b""

    @property
    def memory(self) -> int:
        """Its resident memory in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) << 10


def _wait_a_moment(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(0.02)
    except subprocess.TimeoutExpired:
        pass


def attachment(data: bytes = EICAR) -> bytes:
    """Return a body, with the header fields that it needs, of a message with this attachment."""
    encoded = base64.encodebytes(data).replace(b"\n", b"\r\n")
    return (
        b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/plain\r\n\r\nsee attachment\r\n"
        b"--b\r\nContent-Type: application/octet-stream; name=x.com\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n" + encoded + b"--b--\r\n"
    )
