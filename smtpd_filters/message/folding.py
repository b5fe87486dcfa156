r"""How a name and a value become the lines of one header field.

The law:
1. Any value gives exactly one field: no line of it but the first can be taken for the start of a
   field, and none is empty or only white space, which would end the block for some reader.
2. No control character but TAB gets through. Where one stood, a space stands.
3. A fold goes in front of white space and takes none away, so that unfolding gives the value back
   (RFC 5322 section 2.2.3); only a run of white space that no line could hold shrinks to one.
   Tokens are not broken, unless one is too long for any line: then each piece but the last fills
   a line, cut between UTF-8 characters, and unfolding shows a space at each cut.
4. A value never raises: it comes from outside. A name does: it is the author's.

How it works. `field_lines` is the one door. A value that brings line breaks followed by white
space is folded already, by somebody who may have signed it so: its lines are kept as they are up
to the 998 bytes a line may have. Any other value is folded here at 78 columns.
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

# RFC 5322 section 2.2: printable US-ASCII except colon.
_NAME = re.compile(r"[!-9;-~]+")
_FOLD = re.compile(rb"\r?\n(?=[ \t])")
# C0, DEL, and the C1 controls as UTF-8 writes them (U+0085 is a line end to many programs). 0xC2
# only ever leads a character in UTF-8, so nothing else is hit.
_CONTROL = re.compile(rb"\r\n|[\x00-\x08\n-\x1f\x7f]|\xc2[\x80-\x9f]")
_WORD = re.compile(rb"[ \t]+[^ \t]+")

# RFC 2047 section 2: an encoded-word is at most 75 characters and its line at most 76, of which
# "Subject: =?utf-8?B?" and "?=" take 21; 39 bytes are 52 in base64.
_ENCODED_BYTES = 39


def field_lines(name: str, value: str | bytes) -> list[bytes]:
    """The raw lines of a field, folded and safe.

    Raises ValueError for a name that RFC 5322 does not allow; never for a value.
    """
    if not _NAME.fullmatch(name) or len(name) >= MAX_LINE:
        raise ValueError(f"not a header field name: {name[:80]!r}")
    head = name.encode("ascii") + b":"
    first, *rest = _safe_lines(_to_bytes(value))
    # No trailing space behind a bare name: in transit it may get lost, and a signature with it.
    line = head + b" " + first if first else head
    if not rest:
        return [line] if len(line) <= FOLD_AT else list(_fold(line, len(head), FOLD_AT))
    lines = list(_fold(line, len(head), MAX_LINE))
    for line in rest:
        lines += _fold(line, 0, MAX_LINE)
    return lines


def encoded_word(text: str) -> str:
    """A text for a field that people read (RFC 2047), such as a new Subject.

    ASCII is returned as it is, unless it looks encoded; anything else as encoded-words of UTF-8 in
    base64, separated by spaces. Control characters become spaces first: a line break would come
    out again in whatever decodes the words.
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
        # Lone surrogates that stand for no byte.
        value = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", value)
        return value.encode("utf-8", "surrogateescape")


def _safe_lines(value: bytes) -> list[bytes]:
    """The value's own folds as lines, each behind the first beginning with white space.

    The first may be empty, the others hold more than white space.
    """
    if not _CONTROL.search(value):
        return [value.strip(b" \t")]
    first, *rest = (_CONTROL.sub(b" ", line) for line in _FOLD.split(value))
    rest = [line for line in rest if line.strip(b" \t")]
    if not rest:
        return [first.strip(b" \t")]
    rest[-1] = rest[-1].rstrip(b" \t")
    first = first.lstrip(b" \t")
    return [first, *rest]


def _fold(line: bytes, head: int, width: int) -> Iterator[bytes]:
    """Break a line in front of white space, so that each piece has at most `width` bytes.

    The first `head` bytes (a field's name and colon) are kept together. A token too long for the
    width gets a line of its own; one too long for any line is broken.
    """
    if len(line) <= width:
        yield line
        return
    piece = line[:head]
    # White space at the end would be searched through again from each of its characters.
    for match in _WORD.finditer(line.rstrip(b" \t"), head):
        word = match[0]
        if len(word) > width:
            # It may be the white space that is long: one character of it is enough to fold at.
            word = word[:1] + word.lstrip(b" \t")
        # A token that is too long anyway may as well follow the name.
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
    """Move a cut back to where a UTF-8 character starts, if there is one near."""
    for at in range(cut, cut - 4, -1):
        if line[at] & 0xC0 != 0x80:  # RFC 3629: 10xxxxxx continues a character
            return at
    return cut
