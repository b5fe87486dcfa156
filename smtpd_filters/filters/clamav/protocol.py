r"""clamd's protocol without I/O: the commands of this filter, and the parser of replies.

A command is `zNAME\0`, and its reply ends with the same byte. INSTREAM is followed by the message
in chunks, each behind its length in 4 bytes, big-endian, and by an empty chunk. The reference is
clamd(8), and clamd 1.4 itself where the manual is silent.

Invariants
----------
*Nothing is clean by default*: a message is clean only if the whole reply says so, byte for byte;
any other text, and an incomplete one, is an error.
*Safe names*: the name of a signature is printable ASCII of limited length, whatever clamd sent.
"""

from __future__ import annotations

from smtpd_filters.scanning.outcomes import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

INSTREAM = b"zINSTREAM\0"
PING = b"zPING\0"
#: The ends of a reply: of one to a command in this form, and of one about a time-out, which clamd
#: ends with a line feed in any case.
ENDS = (b"\0", b"\n")
#: Bytes of a reply. It has the name of a signature, of a few dozen, or a text of clamd's own.
LONGEST = 2048
_STREAM = b"stream: "
_CLEAN, _FOUND = b"stream: OK", b" FOUND"
#: The texts of errors for which the operator can do something, and what that is.
_HINTS = {
    "INSTREAM size limit exceeded. ERROR": "clamd's StreamMaxLength is below --max-size",
    "COMMAND READ TIMED OUT": "clamd waited longer than its CommandReadTimeout",
}


class ReplyError(Exception):
    """The reply has no verdict; the text is the reason."""


def framed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a message as INSTREAM expects it, behind the command itself."""
    head = INSTREAM
    for chunk in chunks:
        if chunk:
            yield head + len(chunk).to_bytes(4, "big") + chunk
            head = b""
    yield head + bytes(4)


def is_whole(reply: bytes | bytearray) -> bool:
    """Return whether a reply is complete."""
    return reply.endswith(ENDS)


def verdict(reply: bytes) -> str:
    """Return the name of the signature that matched, "" for a clean message.

    Raises ReplyError for any other reply.
    """
    if reply == _CLEAN + b"\0":
        return ""
    text = _text(reply)
    if text.endswith(_FOUND) and text.startswith(_STREAM):
        name = safe(text[len(_STREAM) : -len(_FOUND)])
        if not name:
            raise ReplyError("found a signature without a name")
        return name
    shown = safe(text)
    raise ReplyError(_HINTS.get(shown) or f"replied {shown or 'nothing'!r}")


def _text(reply: bytes) -> bytes:
    """Return a reply without its end; raise ReplyError if it has none, or more follows it."""
    if not is_whole(reply):
        raise ReplyError("reply cut short")
    text = reply[:-1]
    if any(end in text for end in ENDS):
        raise ReplyError("more than one reply")
    return text
