"""SMTP clients inside a lab: smtplib's, and a raw connection."""

from __future__ import annotations

import smtplib
import socket
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .lab import Lab

SMTP_PORT = 25
# The default HELO name of a client.
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
    """smtplib's client, connecting inside the lab, with a TLS context for the lab's server.

    Raises smtplib's exceptions: SMTPConnectError with code and text if the server refuses the
    connection, subclasses of SMTPResponseException for refused commands.
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
        """Start TLS as smtplib does, by default with a context for the lab's server."""
        if not arguments:
            keywords.setdefault("context", self._tls)
        return super().starttls(*arguments, **keywords)


class Connection:
    """A raw connection: the test sends every byte, and the first `reply` reads the banner."""

    def __init__(self, connection: socket.socket, tls: ssl.SSLContext) -> None:
        self.socket = connection
        self._tls = tls
        self._lines = connection.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close without QUIT."""
        self._lines.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send these bytes and nothing else."""
        self.socket.sendall(data)

    def reply(self) -> Reply | None:
        """Return the next reply, or None if the server has closed. Raises TimeoutError."""
        lines = []
        while True:
            try:
                line = self._lines.readline()
            except (BrokenPipeError, ConnectionResetError):  # with TLS, reading may write
                return None
            if not line.endswith(b"\n"):
                return None
            text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
            lines.append(text[4:])
            if text[3:4] != "-":
                return Reply(int(text[:3]), lines)

    def command(self, line: str | bytes) -> Reply | None:
        """Send a line with its line end, and return the reply."""
        encoded = line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line
        try:
            self.send(encoded + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return None
        return self.reply()

    def starttls(self) -> Reply | None:
        """Send STARTTLS, and start TLS if the server accepts it."""
        reply = self.command("STARTTLS")
        if reply is not None and reply.code == 220:  # RFC 3207 section 4
            self._lines.close()
            self.socket = self._tls.wrap_socket(self.socket, server_hostname=HELO)
            self._lines = self.socket.makefile("rb")
        return reply

    def dialogue(self, lines: Iterable[str | bytes]) -> list[Reply]:
        """Read the banner, send the lines, return the replies; stop if the server closes.

        A str is a command: its line end is added and its reply read. Bytes are sent unchanged and
        have no reply (the content of a message).
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
