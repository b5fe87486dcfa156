r"""Encoding of a name and a value as the lines of one header field.

`field_lines` does it. A value with line breaks before white space is already folded, perhaps by
a program that has signed it: its lines are kept, up to the 998 bytes that a line may have. Any
other value is folded here at 78 columns.

Invariants
----------
*One field*: every value results in exactly one field. None of its lines but the first can be parsed
as the start of a field, and none is empty or only white space, which some parsers take for the end
of the block.
*No control characters*: each of them except TAB is replaced by a space.
*Reversible folds*: a fold is inserted before white space and removes none, so that unfolding
returns the value (RFC 5322 section 2.2.3); only a run of white space too long for a line shrinks to
one character. A token is broken only if it is too long for any line: then each piece but the last
fills a line, cut between UTF-8 characters, and unfolding has a space at each cut.
*Safe values*: a value never raises, since it comes from outside. An invalid name raises, since it
is the author's.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# RFC 5322 section 2.1.1: a line MUST be no more than 998 and SHOULD be no more than 78 characters,
# without its CRLF.
MAX_LINE = 998
FOLD_AT = 78

# RFC 5322 section 2.2: printable US-ASCII except the colon.
_NAME = re.compile(r"[!-9;-~]+")
# Finding an optional CR before it takes seven times as long.
_FOLD = re.compile(rb"\n(?=[ \t])")
# C0, DEL, and the C1 controls in UTF-8 (U+0085 is a line end to many programs). In UTF-8, 0xC2 is
# always the first byte of a character, so nothing else matches.
_CONTROL = re.compile(rb"\r\n|[\x00-\x08\n-\x1f\x7f]|\xc2[\x80-\x9f]")
#: The controls of a single byte, and the first byte of the others.
_CONTROLS = bytes({*range(0x20), 0x7F} - {ord("\t")})
_C1 = b"\xc2"
_WORD = re.compile(rb"[ \t]+[^ \t]+")

# RFC 2047 section 2: an encoded-word has at most 75 characters and its line at most 76, of which
# "Subject: =?utf-8?B?" and "?=" take 21; 39 bytes are 52 characters in base64.
_ENCODED_BYTES = 39


def field_lines(name: str, value: str | bytes) -> list[bytes]:
    """Return the raw lines of a field, folded and made safe.

    Raises ValueError for a name that RFC 5322 doesn't allow; never for a value.
    """
    if not _NAME.fullmatch(name) or len(name) >= MAX_LINE:
        raise ValueError(f"invalid header field name: {name[:80]!r}")
    head = name.encode("ascii") + b":"
    first, *rest = _safe_lines(_to_bytes(value))
    # No trailing space after a bare name: losing it in transit would break a signature.
    line = head + b" " + first if first else head
    if not rest:
        return [line] if len(line) <= FOLD_AT else list(_fold(line, len(head), FOLD_AT))
    if len(line) <= MAX_LINE and max(map(len, rest)) <= MAX_LINE:
        return [line, *rest]
    lines = list(_fold(line, len(head), MAX_LINE))
    for line in rest:
        lines += _fold(line, 0, MAX_LINE)
    return lines


def encoded_word(text: str) -> str:
    """Return a text encoded for a field of human-readable text, such as Subject (RFC 2047).

    ASCII is returned unchanged unless it looks encoded; any other text becomes encoded-words of
    UTF-8 in base64, separated by spaces. Control characters become spaces first: decoding the words
    would otherwise restore a line break.
    """
    text = re.sub("[\x00-\x1f\x7f-\x9f]+", " ", text)
    if text.isascii() and "=?" not in text:
        return text
    from binascii import b2a_base64

    words = []
    word = b""
    for character in text:
        # RFC 2047 section 5: a multi-octet character may not be split across encoded-words.
        encoded = character.encode("utf-8", "replace")
        if len(word) + len(encoded) > _ENCODED_BYTES:
            words.append(word)
            word = b""
        word += encoded
    words.append(word)
    return " ".join(f"=?utf-8?B?{b2a_base64(word, newline=False).decode()}?=" for word in words)


def _to_bytes(value: str | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # Lone surrogates that aren't escaped bytes.
        value = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", value)
        return value.encode("utf-8", "surrogateescape")


def _safe_lines(value: bytes) -> list[bytes]:
    """Split a value at its own folds; each line after the first begins with white space.

    The first line may be empty, the others contain more than white space.
    """
    text = value.replace(b"\r\n\t", b"\n\t").replace(b"\r\n ", b"\n ")
    lines = _FOLD.split(text)
    # A search by the regular expression takes ten times as long.
    if _C1 in text or len(text.translate(None, _CONTROLS)) + len(lines) - 1 < len(text):
        lines = [_CONTROL.sub(b" ", line) for line in lines]
    first, *rest = lines
    rest = [line for line in rest if not line.isspace()]
    if not rest:
        return [first.strip(b" \t")]
    rest[-1] = rest[-1].rstrip(b" \t")
    first = first.lstrip(b" \t")
    return [first, *rest]


def _fold(line: bytes, head: int, width: int) -> Iterator[bytes]:
    """Break a line before white space, into pieces of at most `width` bytes.

    The first `head` bytes (a field's name and colon) stay together. A token longer than the width
    gets a line of its own; one too long for any line is broken.
    """
    if len(line) <= width:
        yield line
        return
    piece = line[:head]
    # Trailing white space would be searched again from each of its characters.
    for match in _WORD.finditer(line.rstrip(b" \t"), head):
        word = match[0]
        if len(word) > width:
            # If its white space makes it long, one character of that is enough for the fold.
            word = word[:1] + word.lstrip(b" \t")
        # A token that is too long in any case may follow the name.
        room = MAX_LINE if len(word) > width and len(piece) == head else width
        if len(piece) + len(word) <= room:
            piece += word
            continue
        if piece:
            yield piece
        while len(word) > MAX_LINE:
            cut = _character_start(word, MAX_LINE)
            yield word[:cut]
            word = b" " + word[cut:]
        piece = word
    yield piece


def _character_start(line: bytes, cut: int) -> int:
    """Move a cut back to the start of a UTF-8 character, if there is one near."""
    for at in range(cut, cut - 4, -1):
        if line[at] & 0xC0 != 0x80:  # RFC 3629: 10xxxxxx continues a character
            return at
    return cut
