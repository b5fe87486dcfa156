"""Lines that are too long: smtpd's limits, and how such a line is broken.

Law
---
1. No line of 65,536 bytes or more is ever written: every session of the server hangs from
   then on, and nothing is logged.
2. A server that cuts data-lines is never given one to cut.
3. Nothing is lost.  A header field is folded at white space, and unfolds to what it was; any
   other line is broken by a line end and a space, as Postfix does (smtp_line_length_limit).
4. A line within the server's limit is not touched; one beyond it ends up within the limit of
   RFC 5322, 2.1.1, for those who get the message next.
"""

from __future__ import annotations

from .versions import CUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: RFC 5322, 2.1.1: "Each line of characters MUST be no more than 998 characters".
MAX_LINE = 998
#: Bytes of a line to smtpd, with its line end, that do not hang the server.  Measured: 65,535
#: without the line end are fine, 65,536 are not.
MAX_WIRE = 65535
#: What stands before the content: ``filter-dataline|``, session, token and two bars.
_HEAD = len(b"filter-dataline|") + 16 + 1 + 16 + 1


def content_limit(*, cuts: bool) -> int:
    """Bytes of a data-line's content that a server takes and keeps."""
    return CUT if cuts else MAX_WIRE - len(b"\n") - _HEAD


def break_line(line: bytes, *, header: bool) -> list[bytes]:
    """Break a line into pieces of at most `MAX_LINE` bytes; the first is at least one byte.

    ``header`` says whether it is part of a header field and so may be folded at white space.
    """
    return list(_pieces(line, header=header))


def _pieces(line: bytes, *, header: bool) -> Iterator[bytes]:
    start, lead = 0, b""
    # Behind a fold there must be more than the white space at the end.
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
    """Where to fold before ``stop``: at white space behind a word; 0 when there is no such place.

    A fold in front of which there is only white space would make a line of white space only,
    which readers of mail take for the end of the header.
    """
    at = max(line.rfind(b" ", start, stop), line.rfind(b"\t", start, stop))
    if at > start and line[start:at].strip(b" \t") and line[at : at + MAX_LINE].strip(b" \t"):
        return at
    return 0


def _whole_character(line: bytes, start: int, end: int) -> int:
    """Step back from ``end`` when it would cut a UTF-8 character in two."""
    at = end
    while at > end - 3 and at > start + 1 and line[at] & 0xC0 == 0x80:
        at -= 1
    return at if line[at] & 0xC0 == 0xC0 else end
