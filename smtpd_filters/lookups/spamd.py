"""The protocol of SpamAssassin's spamd, without I/O: the head of a request, and its reply.

The reference is `PROTOCOL` of SpamAssassin 4.0 (spamd/PROTOCOL), and what its spamd does: a
connection has one request, and a reply ends with the connection.

Invariants
----------
*Strict*: a reply is used only if its code is 0, each field in it that matters occurs once and is
well-formed, and its body is as long as announced. Everything else raises `ReplyError`.
*Bounded*: the head of a reply has at most `MAX_HEAD` bytes, and its body at most the caller's
limit; the body isn't kept here.
*One line*: no value ends its line in a request, or starts another field.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: The port of spamd(8p).
PORT = 783
#: Bytes of the head of a reply; spamd's have some 80.
MAX_HEAD = 4096
#: Characters of a daemon's text that are shown.
_SHOWN = 200
#: Bytes of a user's name: RFC 5321 section 4.5.3.1.3 allows 256 for a path.
MAX_USER = 256
#: A bound for scores, beyond which a number is an error: rules of 1000 points exist (GTUBE).
MAX_SCORE = 1_000_000.0

# spamd doesn't look at the version beyond its form; 1.3 and later have several fields in a reply.
_VERSION = "SPAMC/1.5"
_STATUS = re.compile(r"SPAMD/1\.[0-9] ([0-9]{1,4})(?: (.*))?", re.ASCII)
_FIELD = re.compile(r"([A-Za-z][A-Za-z0-9-]*):[ \t]*(.*)", re.ASCII)
_NUMBER = r"(-?[0-9]{1,9}(?:\.[0-9]{1,6})?)"
_SPAM = re.compile(rf"(True|False|Yes|No) ; {_NUMBER} / {_NUMBER}", re.ASCII)
_LENGTH = re.compile(r"[0-9]{1,12}", re.ASCII)
_CONTROL = re.compile("[\x00-\x1f\x7f]")


class ReplyError(Exception):
    """A reply that can't be used: invalid, cut, or an error of the daemon; the text says which.

    Of an invalid reply the text has no details that differ between messages, since the log
    suppresses repeated lines. `code` is spamd's, one of sysexits(3), or None if the reply is
    invalid.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


def request(
    command: str,
    size: int,
    *,
    user: str = "",
    compressed: bool = False,
    fields: Iterable[tuple[str, str]] = (),
) -> bytes:
    """Return the head of a request; the message follows, then the end of the stream.

    command: CHECK, SYMBOLS, HEADERS, PROCESS, TELL and so on.
    size: the bytes that follow, compressed or not. Without it spamd rejects a compressed message.
    user: the user whose preferences and classifier apply, "" for spamd's own.
    compressed: whether the message is compressed by zlib.
    fields: further fields, such as `Message-class` of TELL.
    """
    lines = [f"{command} {_VERSION}", f"Content-length: {size}"]
    if user := safe_user(user):
        lines.append(f"User: {user}")
    if compressed:
        lines.append("Compress: zlib")
    lines += [f"{name}: {value}" for name, value in fields]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def safe_user(user: str) -> str:
    """Return a user's name as the value of a field: one line of limited length."""
    return _CONTROL.sub("?", user)[:MAX_USER].strip(" ")


class Head:
    """The head of a reply without an error."""

    __slots__ = ("fields", "is_spam", "length", "required", "score")

    def __init__(self, fields: dict[str, str]) -> None:
        """Raise ReplyError for an invalid field. The names are in lower case."""
        self.fields = fields
        #: The bytes of the body, if they are announced.
        self.length: int | None = None
        if (length := fields.get("content-length")) is not None:
            if not _LENGTH.fullmatch(length):
                raise ReplyError("invalid Content-length")
            self.length = int(length)
        #: What spamd calls it; None if it hasn't said (TELL). The score and the one from which
        #: spamd calls a message spam.
        self.is_spam: bool | None = None
        self.score = self.required = 0.0
        if (spam := fields.get("spam")) is not None:
            found = _SPAM.fullmatch(spam)
            if found is None:
                raise ReplyError("invalid Spam")
            self.is_spam = found[1] in ("True", "Yes")
            self.score, self.required = float(found[2]), float(found[3])
            if max(abs(self.score), abs(self.required)) > MAX_SCORE:
                raise ReplyError("invalid Spam")


class ReplyParser:
    """A parser of one reply, which is fed as it arrives.

    `feed` returns the bytes of the body, `close` is called at the end of the connection.
    """

    __slots__ = ("_data", "_left", "_limit", "_size", "head")

    def __init__(self, limit: int) -> None:
        """`limit` is how many bytes the body may have."""
        self._limit = limit
        self._data = b""
        #: The size of the body so far.
        self._size = 0
        #: The head, once it is complete.
        self.head: Head | None = None

    def feed(self, data: bytes) -> bytes:
        """Parse the next bytes; return those of the body. Raises ReplyError."""
        if self.head is None:
            self._data += data
            data = self._take_head()
            if self.head is None:
                return b""
        self._size += len(data)
        length = self.head.length
        if self._size > self._limit:
            raise ReplyError("oversized reply")
        if length is not None and self._size > length:
            raise ReplyError("more bytes than Content-length")
        return data

    def close(self) -> Head:
        """Return the head, at the end of the connection. Raises ReplyError for a cut reply."""
        if self.head is None:
            raise ReplyError("cut reply" if self._data else "closed without a reply")
        length = self.head.length
        if length is not None and self._size != length:
            raise ReplyError("cut reply")
        return self.head

    def _take_head(self) -> bytes:
        """Parse the head if it is complete; return what follows it."""
        data = self._data
        status, found, _ = data.partition(b"\n")
        if not found:
            # Not even the first line.
            if len(data) > MAX_HEAD or not _may_begin(data):
                raise ReplyError("not a reply of spamd")
            return b""
        _check_status(_line(status))
        end = data.find(b"\r\n\r\n", len(status) - 1)
        if (end if end >= 0 else len(data)) > MAX_HEAD:
            raise ReplyError("oversized reply")
        if end < 0:
            return b""
        lines = data[:end].split(b"\r\n")[1:]
        self.head = Head(_fields(_line(line) for line in lines))
        length = self.head.length
        if length is not None and length > self._limit:
            raise ReplyError("oversized reply")
        self._data = b""
        return data[end + 4 :]


def _may_begin(data: bytes) -> bool:
    """Return whether bytes may be the beginning of a reply."""
    return data[:8] == b"SPAMD/1."[: len(data)]


def _line(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "replace")


def _check_status(line: str) -> None:
    """Raise ReplyError unless the first line of a reply has the code 0."""
    found = _STATUS.fullmatch(line)
    if found is None:
        raise ReplyError("not a reply of spamd")
    code = int(found[1])
    if code:
        raise ReplyError(f"error {code} {_shown(found[2] or '')}".rstrip(), code)


def _fields(lines: Iterable[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        found = _FIELD.fullmatch(line)
        if found is None or _CONTROL.search(found[2]):
            raise ReplyError("invalid field")
        name = found[1].lower()
        if name in fields:
            raise ReplyError("a field is given twice")
        fields[name] = found[2].rstrip(" \t")
    return fields


def _shown(text: str) -> str:
    """Return a text of the daemon for the log: printable, of limited length."""
    clean = "".join(c if c.isprintable() else "?" for c in text[: _SHOWN + 1])
    return clean if len(clean) <= _SHOWN else clean[:_SHOWN] + "..."
