"""A client of Rspamd's controller that sends messages to learn.

No HTTP library is loaded: that would take longer than learning a message. Requests are HTTP/1.0,
which is enough: the controller closes each connection after a reply, whatever the request asks for.

Invariants
----------
*Confirmed*: a message counts as learned or skipped only if the controller confirms that; otherwise
`Refused` is raised with an exit status of sysexits(3).
*Bounded*: each wait and each reply has a limit.
"""

from __future__ import annotations

import re
import socket
from contextlib import contextmanager
from time import monotonic

from smtpd_filters.errors import ConfigError
from smtpd_filters.sandbox.needs import packed_address
from smtpd_filters.settings.quoting import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from .mailboxes import Mail

# sysexits(3).
DATAERR, TEMPFAIL, NOPERM = 65, 75, 77
#: The controller's default port.
PORT = 11334
#: Characters of a reply that are shown.
_SHOWN = 150
#: Bytes of a reply that are read.
_REPLY = 1 << 16
_URL = re.compile(
    r"http(?P<tls>s?)://(?P<authority>(?P<host>\[[^]/@]+\]|[^]\[:/@?#]+)(?::(?P<port>[0-9]{1,5}))?)"
    r"(?P<below>/[^?#]*)?",
    re.ASCII,
)
# The status may have one digit: see `NO_REDIS`.
_HEAD = re.compile(rb"HTTP/1\.[0-9] ([0-9]{1,3})\b ?([^\0\r\n]*)[^\0]*?\r?\n\r?\n")
#: Added to the misleading reply of a controller without its Redis: version 3.4 replies 404 and
#: "already learned" if the socket of its Redis is missing, and status 1 if nothing listens there;
#: version 4.1 replies 500 and "cannot upload script from file: bayes_learn.lua to any server".
NO_REDIS = "rspamd probably can't reach its Redis: see its log"
_WITHOUT_REDIS = re.compile("already learned|redis|cannot upload script", re.IGNORECASE)
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r?\n", re.IGNORECASE)


class Refused(Exception):  # noqa: N818  # of one message
    """A message wasn't learned; the text is the cause, `status` the exit status."""

    def __init__(self, cause: str, status: int = TEMPFAIL) -> None:
        super().__init__(cause)
        self.status = status


class Unreachable(Refused):
    """The controller didn't reply."""


class Controller:
    """Rspamd's controller: its address, and the fields of each request."""

    def __init__(self, url: str, kind: str, *, password: str, user: str, timeout: float) -> None:
        """Raise ConfigError for an invalid URL. The other values have no control characters."""
        self._timeout = timeout
        self._url = url
        self._path = url.removeprefix("unix:") if url.startswith(("/", "unix:/")) else ""
        self._tls = url.startswith("https://")
        authority, self._host, self._port, below = _endpoint(url)
        fields = {"Host": authority, "Password": password, "Deliver-To": user}
        lines = [f"POST {below}/learn{kind} HTTP/1.0", "Connection: close"]
        for name, value in fields.items():
            if value:
                lines.append(f"{name}: {value}")
        self._head = "\r\n".join([*lines, "Content-Length: "]).encode("utf-8", "surrogateescape")

    def learn(self, mail: Mail) -> str:
        """Send a message to learn; return the result. Raises Refused, OSError or Gone."""
        file, size = mail.open()
        with file:
            if not size:
                raise Refused("an empty message", DATAERR)
            status, content = self._ask(file, size)
        text = printable(content.decode("utf-8", "replace"))[:_SHOWN]
        if status == 200:
            if b'"success":true' not in content.replace(b" ", b""):
                raise Refused(f"not an rspamd controller: {text}")
            return "learned"
        if status == 208:
            return "known"
        if status == 204:
            # The message has too few words, or the classifier's result is certain already.
            return "skipped"
        cause = f"status {status}: {text}"
        if status in (401, 403):
            raise Refused(f"wrong password ({cause})", NOPERM)
        if _WITHOUT_REDIS.search(text):
            cause = f"{cause}; {NO_REDIS}"
        raise Refused(cause, DATAERR if status in (400, 413) else TEMPFAIL)

    def _ask(self, file: BinaryIO, size: int) -> tuple[int, bytes]:
        with reaching(self._url, self._timeout), self._connect() as connection:
            try:
                connection.sendall(self._head + b"%d\r\n\r\n" % size)
                sent = connection.sendfile(file, count=size)
            except (BrokenPipeError, ConnectionResetError):
                # The controller replied before the end: wrong password, or too large.
                sent = size
            if sent != size:
                raise Refused("the file was truncated meanwhile")
            return _read(connection, monotonic() + self._timeout)

    def _connect(self) -> socket.socket:
        if self._path:
            return connect_unix(self._path, self._timeout)
        connection = connect_tcp(self._host, self._port, self._timeout)
        if self._tls:
            import ssl

            context = ssl.create_default_context()
            try:
                return context.wrap_socket(connection, server_hostname=self._host)
            except BaseException:
                connection.close()
                raise
        return connection


@contextmanager
def reaching(daemon: str, timeout: float) -> Iterator[None]:
    """Raise Unreachable, which names the daemon, for OSError and EOFError; `timeout` in seconds."""
    try:
        yield
    except TimeoutError:
        raise Unreachable(f"{daemon}: no reply within {timeout:g} s") from None
    except OSError as error:
        raise Unreachable(f"{daemon}: {error.strerror or error}") from None
    except EOFError:
        raise Unreachable(f"{daemon}: connection closed without a reply") from None


def connect_tcp(host: str, port: int, timeout: float) -> socket.socket:
    """Return a connection to a host; `timeout` in seconds is for connecting and for each wait."""
    if packed_address(host) is not None:
        return socket.create_connection((host, port), timeout)
    from smtpd_filters.lookups.happy_eyeballs import connected_in  # imports asyncio

    return connected_in(host, port, timeout)


def connect_unix(path: str, timeout: float) -> socket.socket:
    """Return a connection to a unix socket; `timeout` in seconds is for each wait."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    try:
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _endpoint(url: str) -> tuple[str, str, int, str]:
    """Return a URL's authority, host, port and path prefix; raise ConfigError if it is invalid."""
    message = f"-url: expected http://HOST:PORT or the path of a socket, not {url[:80]!r}"
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ConfigError(
            "-url: a password here could be read by others: write it to the file of --password-file"
        )
    if not url.isprintable() or " " in url:
        raise ConfigError(message)
    if url.startswith(("/", "unix:/")):
        return "localhost", "", 0, ""
    found = _URL.fullmatch(url)
    if found is None or int(found["port"] or PORT) >= 1 << 16:
        raise ConfigError(message)
    port = int(found["port"] or (443 if found["tls"] else PORT))
    host = found["host"].strip("[]")
    try:
        # As the resolver does later: RFC 1035 section 2.3.4, a label has 1 to 63 octets.
        host.encode("idna")
    except UnicodeError:
        raise ConfigError(message) from None
    return found["authority"], host, port, (found["below"] or "").rstrip("/")


def _read(connection: socket.socket, deadline: float) -> tuple[int, bytes]:
    """Return the status and the content of a reply, read until the deadline.

    Raises EOFError if the connection ends without a reply.
    """

    def receive() -> bytes:
        connection.settimeout(max(0.001, deadline - monotonic()))
        return connection.recv(_REPLY)

    data = b""
    found = None
    while found is None:
        piece = receive()
        data += piece
        found = _HEAD.match(data)
        if found is None and (not piece or len(data) >= _REPLY):
            if not data:
                raise EOFError
            raise Refused("invalid HTTP response")
    status = int(found[1])
    content = data[found.end() :]
    length = _LENGTH.search(found[0])
    # RFC 9110 section 15.3.5: a 204 has no content, whatever length the controller gives.
    size = 0 if status == 204 else min(int(length[1]) if length else _REPLY, _REPLY)
    while len(content) < size and (piece := receive()):
        content += piece
    # Without content, use the reason phrase.
    return status, content[:size] or found[2]
