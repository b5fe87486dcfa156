"""A client of SpamAssassin's spamd that sends messages to learn, to forget, or to report (TELL).

Invariants
----------
*Confirmed*: a message counts as learned only if spamd says what it did; otherwise it was known
already, or `Refused` is raised with an exit status of sysexits(3).
*As scanned*: what filters have added to the header is removed, so that spamd learns nothing from
it: smtpd's mark, and a chain's score. spamd removes its own fields, and unpacks a message that it
has attached to a report.
*Bounded*: each wait and each reply has a limit.
"""

from __future__ import annotations

import socket
from time import monotonic

from smtpd_filters.lookups.spamd import MAX_HEAD, ReplyError, ReplyParser, request, safe_user

from .learn_rspamd import DATAERR, NOPERM, TEMPFAIL, Refused, connect_tcp, connect_unix, reaching

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import BinaryIO

    from smtpd_filters.lookups.spamd import Head
    from smtpd_filters.lookups.stream import Address

    from .mailboxes import Mail

#: The fields of TELL for what is to be done, as spamc's -L and -C, and those of the reply that
#: confirm it, with the word that is looked for.
ACTIONS: dict[str, tuple[tuple[tuple[str, str], ...], str, str]] = {
    "ham": ((("Message-class", "ham"), ("Set", "local")), "didset", "local"),
    "spam": ((("Message-class", "spam"), ("Set", "local")), "didset", "local"),
    "forget": ((("Remove", "local"),), "didremove", "local"),
    "report": ((("Message-class", "spam"), ("Set", "local, remote")), "didset", "remote"),
    "revoke": (
        (("Message-class", "ham"), ("Set", "local"), ("Remove", "remote")),
        "didremove",
        "remote",
    ),
}
#: Bytes of a message, above which spamc doesn't send it.
LARGEST = 500 << 10
#: spamd's code for a service that it doesn't offer: EX_UNAVAILABLE of sysexits(3).
UNAVAILABLE = 69
#: Bytes of a header block that are searched.
_HEADER = 1 << 20
_CHUNK = 1 << 16
#: Fields that smtpd and filter-chain add; and a field of spamd by which it finds its own.
_ADDED = (b"x-spam:", b"x-smtpd-filters-score:")
_OWN, _VERSION = b"x-spam-", b"x-spam-checker-version:"
_WHITE = (b" ", b"\t")


class Teller:
    """spamd: its address, and the fields of each request."""

    def __init__(self, address: Address, action: str, *, user: str, timeout: float) -> None:
        """`action` is one of ACTIONS; `timeout` in seconds."""
        self._address = address
        self._fields, self._confirmation, self._word = ACTIONS[action]
        self._remote = self._word == "remote"
        self._user = safe_user(user)
        self._timeout = timeout

    def learn(self, mail: Mail) -> str:
        """Send a message; return the result. Raises Refused, OSError or Gone."""
        file, size = mail.open()
        with file:
            if not size:
                raise Refused("an empty message", DATAERR)
            if size > LARGEST:
                return "skipped"
            head = self._ask(_pieces(file))
        if self._word in head.fields.get(self._confirmation, "").replace(" ", "").split(","):
            return "learned"
        if self._remote:
            raise Refused("no service for reports has accepted the message: see spamd's log")
        return "known"

    def _ask(self, message: Iterable[bytes]) -> Head:
        content = b"".join(message)  # of limited size
        head = request("TELL", len(content), user=self._user, fields=self._fields)
        with reaching(self._address.label, self._timeout), self._connect() as connection:
            try:
                connection.sendall(head + content)
                connection.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass  # spamd replied before the end
            try:
                return _read(connection, monotonic() + self._timeout)
            except ReplyError as error:
                raise _refused(error) from None

    def _connect(self) -> socket.socket:
        address = self._address
        if address.path:
            return connect_unix(address.path, self._timeout)
        return connect_tcp(address.host, address.port, self._timeout)


def _refused(error: ReplyError) -> Refused:
    """Return the error of a message for a reply."""
    text = f"spamd: {error}"
    if error.code == UNAVAILABLE and "allow-tell" in text:
        return Refused("spamd doesn't accept messages to learn: start it with --allow-tell", NOPERM)
    return Refused(text, DATAERR if error.code == DATAERR else TEMPFAIL)


def _read(connection: socket.socket, deadline: float) -> Head:
    """Return the head of a reply, read until the deadline.

    Raises ReplyError, and EOFError if the connection ends without a reply.
    """
    parser = ReplyParser(MAX_HEAD)
    empty = True
    while True:
        connection.settimeout(max(0.001, deadline - monotonic()))
        piece = connection.recv(_CHUNK)
        if not piece:
            break
        empty = False
        parser.feed(piece)
    if empty:
        raise EOFError
    return parser.close()


def _pieces(file: BinaryIO) -> Iterable[bytes]:
    """Yield the message as it was scanned, in pieces."""
    data = b""
    end = -1
    while end < 0 and len(data) < _HEADER and (piece := file.read(_CHUNK)):
        data += piece
        end = _end_of_header(data)
    yield cleaned(data[:end]) + data[end:] if end >= 0 else cleaned(data)
    while piece := file.read(_CHUNK):
        yield piece


def _end_of_header(data: bytes) -> int:
    """Return where the empty line after a header block begins, or -1."""
    if data.startswith((b"\n", b"\r\n")):
        return 0
    ends = [data.find(b"\n" + empty) + 1 for empty in (b"\n", b"\r\n")]
    return min((end for end in ends if end), default=-1)


def cleaned(header: bytes) -> bytes:
    """Return a header block without the fields that filters have added."""
    lines = header.split(b"\n")
    marked = any(line[: len(_VERSION)].lower() == _VERSION for line in lines)
    kept = []
    drops = False
    for line in lines:
        if not line.startswith(_WHITE):
            start = line[:24].lower()
            drops = start.startswith(_ADDED) or (not marked and start.startswith(_OWN))
        if not drops:
            kept.append(line)
    return b"\n".join(kept)
