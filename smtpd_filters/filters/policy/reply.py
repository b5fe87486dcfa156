"""The reply of Postfix's policy delegation protocol, parsed without I/O.

A reply is one line `action=TEXT` and an empty line; the connection stays open. As in Postfix, which
reads it with ATTR_FLAG_STRICT, anything else is an error of the server, and ends the connection.

Invariants
----------
*Bounded*: a reply has at most `MAX_REPLY` bytes; one that is longer raises before more is kept.
*In step*: bytes after the empty line raise: the next request would have them as its reply.
"""

from __future__ import annotations

#: Bytes of a reply: a header field to prepend may be long. Postfix's own limit is 2,048
#: (line_length_limit).
MAX_REPLY = 16_384
_PREFIX = b"action="


class ReplyError(Exception):
    """A server's reply is invalid; the text says how, for the log."""


class ReplyParser:
    """The bytes of one reply: `feed` returns the text of its action once it is complete."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    @property
    def begun(self) -> bool:
        """Whether a part of the reply has arrived."""
        return bool(self._data)

    def feed(self, data: bytes) -> str | None:
        """Add bytes; return the text after `action=`, or None if more is to come.

        Raises ReplyError for an invalid reply. The text has no line break; bytes that are not UTF-8
        are surrogate escapes.
        """
        if len(self._data) + len(data) > MAX_REPLY:
            raise ReplyError(f"a reply of more than {MAX_REPLY} bytes")
        self._data += data
        lines = self._data.split(b"\n")
        unfinished = lines.pop()
        action: bytes | None = None
        for at, raw in enumerate(lines):
            line = raw.removesuffix(b"\r")
            if line:
                action = _action(line, action)
                continue
            if action is None:
                raise ReplyError("a reply without an action")
            if unfinished or at + 1 < len(lines):
                raise ReplyError("more than one reply")
            return action.decode("utf-8", "surrogateescape")
        # A part of a line can be invalid as well: don't wait for its end.
        if unfinished and not (unfinished == b"\r" or _fits(unfinished, action)):
            raise ReplyError(f"not an action: {_shown(unfinished)}")
        return None


def _fits(beginning: bytes, action: bytes | None) -> bool:
    """Return whether a line may begin like this."""
    length = len(_PREFIX)
    return action is None and beginning[:length] == _PREFIX[: len(beginning)]


def _action(line: bytes, before: bytes | None) -> bytes:
    if before is not None or not line.startswith(_PREFIX):
        raise ReplyError(f"not an action: {_shown(line)}")
    if b"\0" in line or b"\r" in line:
        raise ReplyError("a control character in an action")
    return line[len(_PREFIX) :]


def _shown(line: bytes) -> str:
    return ascii(line[:60].decode("latin-1"))
