"""Limits of smtpd for the length of lines, and the breaking of lines beyond them.

Invariants
----------
*No hang*: a line of 65,536 bytes or more is never written; after it every session of the server
would hang, with nothing in the log.
*No truncation*: a server that truncates data-lines never gets one that it would truncate.
*Nothing lost*: a header field is folded at white space and unfolds to its old value; any other line
is broken by a line end and a space, as Postfix does (smtp_line_length_limit).
*Only too long*: a line within the server's limit is not changed; a longer one is broken to the
limit of RFC 5322 section 2.1.1, for the next server.
"""

from __future__ import annotations

from .versions import CUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: RFC 5322 section 2.1.1: "Each line of characters MUST be no more than 998 characters".
MAX_LINE = 998
#: Bytes of a line to smtpd, with its line end, that do not hang the server. Measured: 65,535
#: without the line end pass, 65,536 hang it.
MAX_WIRE = 65535
#: Length of what precedes the content: `filter-dataline|`, session, token and two bars.
_HEAD = len(b"filter-dataline|") + 16 + 1 + 16 + 1


def content_limit(*, cuts: bool) -> int:
    """Return how many bytes of a data-line's content a server accepts whole."""
    return CUT if cuts else MAX_WIRE - len(b"\n") - _HEAD


def break_line(line: bytes, *, header: bool) -> list[bytes]:
    """Break a line into pieces of at most `MAX_LINE` bytes, the first of at least one byte.

    `header`: the line is part of a header field, and so may be folded at white space.
    """
    return list(_pieces(line, header=header))


def _pieces(line: bytes, *, header: bool) -> Iterator[bytes]:
    start, lead = 0, b""
    # A fold must be followed by more than the white space at the end of the line.
    last_word = len(line.rstrip(b" \t"))
    while len(line) - start + len(lead) > MAX_LINE:
        end = start + MAX_LINE - len(lead)
        fold = _last_space(line, start, min(end + 1, last_word)) if header else 0
        if fold:
            yield lead + line[start:fold]
            start, lead = fold, b""
        else:
            end = _whole_character(line, start, end)
            yield lead + line[start:end]
            start, lead = end, b" "
    yield lead + line[start:]


def _last_space(line: bytes, start: int, stop: int) -> int:
    """Return where to fold before `stop`: at white space after a word; 0 if there is none.

    A fold preceded by white space alone would make a line of white space alone, which mail readers
    take for the end of the header.
    """
    at = max(line.rfind(b" ", start, stop), line.rfind(b"\t", start, stop))
    if at > start and line[start:at].strip(b" \t") and line[at : at + MAX_LINE].strip(b" \t"):
        return at
    return 0


def _whole_character(line: bytes, start: int, end: int) -> int:
    """Return `end`, moved back if it would split a UTF-8 character."""
    at = end
    while at > end - 3 and at > start + 1 and line[at] & 0xC0 == 0x80:
        at -= 1
    return at if line[at] & 0xC0 == 0xC0 else end
