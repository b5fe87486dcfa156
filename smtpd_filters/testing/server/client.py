"""SMTP clients inside a lab: smtplib's, and one that says whatever it is told."""

from __future__ import annotations

import smtplib
import socket
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .lab import Lab

SMTP_PORT = 25
# What a client calls itself when the test doesn't care.
HELO = "client.example"


class Reply(NamedTuple):
    """A reply of the server: its code and the text of each of its lines."""

    code: int
    lines: list[str]

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)


class Client(smtplib.SMTP):
    """smtplib's client, connecting inside the lab, whose STARTTLS suits the lab's server.

    Raises what smtplib raises: SMTPConnectError with code and text when the server refuses the
    connection, SMTPResponseException's kinds for refused commands.
    """

    def __init__(  # noqa: PLR0913  # keyword-only, each with a default
        self,
        lab: Lab,
        tls: ssl.SSLContext,
        *,
        source: str = "127.0.0.1",
        port: int = SMTP_PORT,
        to: str | None = None,
        helo: str = HELO,
        timeout: float = 60,
    ) -> None:
        self._lab = lab
        self._tls = tls
        self._from = source
        self._to = to
        super().__init__("the lab", port, local_hostname=helo, timeout=timeout)

    def _get_socket(self, _host: str, port: int, timeout: float) -> socket.socket:
        return self._lab.connect(port, source=self._from, to=self._to, timeout=timeout)

    def starttls(self, *arguments: Any, **keywords: Any) -> tuple[int, bytes]:
        """As smtplib's, with a context for the lab's server unless one is given."""
        if not arguments:
            keywords.setdefault("context", self._tls)
        return super().starttls(*arguments, **keywords)


class Connection:
    """A connection on which every byte is the test's own; the banner is read by the first reply."""

    def __init__(self, connection: socket.socket, tls: ssl.SSLContext) -> None:
        self.socket = connection
        self._tls = tls
        self._lines = connection.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close without a QUIT."""
        self._lines.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send these bytes and nothing else."""
        self.socket.sendall(data)

    def reply(self) -> Reply | None:
        """Return the next reply, None when the server has closed; raises TimeoutError."""
        lines = []
        while True:
            try:
                line = self._lines.readline()
            except (BrokenPipeError, ConnectionResetError):  # TLS may write where it reads
                return None
            if not line.endswith(b"\n"):
                return None
            text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
            lines.append(text[4:])
            if text[3:4] != "-":
                return Reply(int(text[:3]), lines)

    def command(self, line: str | bytes) -> Reply | None:
        """Send a line, its end added, and return the reply."""
        encoded = line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line
        try:
            self.send(encoded + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return None
        return self.reply()

    def starttls(self) -> Reply | None:
        """Say STARTTLS, and shake hands if the server agrees."""
        reply = self.command("STARTTLS")
        if reply is not None and reply.code == 220:  # RFC 3207 section 4
            self._lines.close()
            self.socket = self._tls.wrap_socket(self.socket, server_hostname=HELO)
            self._lines = self.socket.makefile("rb")
        return reply

    def dialogue(self, lines: Iterable[str | bytes]) -> list[Reply]:
        """Read the banner, say the lines, return the replies; stop early if the server closes.

        A str is a command: its line end is added and its reply awaited. Bytes are sent as they are
        and have no reply (the content of a message).
        """
        replies = []
        reply = self.reply()
        remaining = iter(lines)
        while reply is not None:
            replies.append(reply)
            for line in remaining:
                if isinstance(line, str):
                    reply = self.command(line)
                    break
                self.send(line)
            else:
                break
        return replies
