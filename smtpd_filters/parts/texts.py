"""The texts of a part: its content, decoded in the character sets that mail programs may choose.

Invariants
----------
*Union*: where programs disagree about the character set, there is a text for each reading.
*Total*: no content and no name of a character set raises an exception.
*In steps*: each generator yields units of work (`runtime.pace`), at most some thousand at once.
*Linear*: the time is proportional to the length of the text.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, getincrementaldecoder
from string import ascii_letters

from smtpd_filters.addresses.domains import invisible
from smtpd_filters.checks.author.encoded_words import codecs_of

from .markup import without_markup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from smtpd_filters.mime.content import Part

#: Bytes that are decoded in a step, and characters that are searched in one.
PIECE = 1 << 12
#: Bytes that are decoded in a unit of work, where most are invalid, and characters searched in one.
_DECODED, _SEARCHED = 8, 64
#: Characters of all readings, and of what is shown of them, for each byte that is kept.
READINGS = 8
#: By these bytes at the beginning programs recognise a character set, whatever is declared.
_MARKS = ((BOM_UTF8, "utf-8"), (BOM_UTF16_LE, "utf-16-le"), (BOM_UTF16_BE, "utf-16-be"))
#: As mail programs and browsers read it (WHATWG, Encoding).
_SUPERSETS = {"iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874"}
#: What HTML declares itself, in its beginning (WHATWG, HTML, section "prescan").
_META = re.compile(rb"(?i)<meta\b[^>]{0,500}?charset\s{0,9}=\s{0,9}[\"']?([a-z0-9_.:-]{1,40})")
_PRESCAN = 1024
_BASE64 = ascii_letters.encode() + b"0123456789+/"


class Texts:
    """The texts of a message's parts; `left` is the number of characters that may still follow."""

    __slots__ = ("cut", "left")

    def __init__(self, kept: int) -> None:
        self.left = kept * READINGS
        #: Whether a reading is missing for that.
        self.cut = False

    def of(self, part: Part) -> Generator[int, None, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Return the texts of a part, and what programs show of each."""
        data = b"".join(part.kept)
        part.kept = []
        if not data:
            return (), ()
        found: dict[str, None] = {}
        declared = ["html" in each for each in part.types]
        is_html = part.kind in {"html", "svg", "hta"} or any(declared)
        for codec in _codecs(part.charsets, data, is_html=is_html):
            self._add((yield from _decoded(data, codec)), found)
        shown: dict[str, None] = {}
        for text in found:
            for seen in (yield from without_markup(text)) if is_html else ():
                self._add((yield from _visible(seen)), shown)
            if not (declared and all(declared)):
                self._add((yield from _visible(text)), shown)
        return tuple(found), tuple(shown)

    def _add(self, text: str, found: dict[str, None]) -> None:
        """Add a reading if it is another one, and there is room."""
        if text in found:
            return
        if len(text) > self.left:
            self.cut = True
            return
        self.left -= len(text)
        found[text] = None


def _codecs(charsets: tuple[str, ...], data: bytes, *, is_html: bool) -> list[str]:
    """Return the codecs in which programs may read a text, without repeats."""
    found = [codec for mark, codec in _MARKS if data.startswith(mark)]
    if is_html and not charsets and (meta := _META.search(data, 0, _PRESCAN)):
        charsets = (meta[1].decode("ascii"),)
    for charset in charsets:
        found += codecs_of(charset)
    found = [_SUPERSETS.get(codec, codec) for codec in found]
    # Others are read as UTF-8, by programs that don't know the character set as well.
    if _is_utf_8(data):
        found.append("utf-8")
    elif not found:
        found += ("utf-8", "cp1252")
    return list(dict.fromkeys(found))


def _is_utf_8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decoded(data: bytes, codec: str) -> Generator[int, None, str]:
    """Decode a text; what can't be decoded becomes U+FFFD."""
    decoder = getincrementaldecoder(codec)("replace")
    found = []
    rest = b""
    for at in range(0, len(data), PIECE):
        yield PIECE // _DECODED
        piece = data[at : at + PIECE]
        last = at + PIECE >= len(data)
        if codec == "utf-7" and not last:
            piece, rest = _at_shift(rest + piece)
        elif rest:
            piece = rest + piece
        try:
            found.append(decoder.decode(piece, last or codec == "utf-7"))
        except UnicodeError:  # escape sequences that it can't keep
            decoder.reset()
            found.append(piece.decode("latin-1"))
    return "".join(found).removeprefix("\ufeff")


def _at_shift(piece: bytes) -> tuple[bytes, bytes]:
    """Cut a piece of UTF-7 between two characters; return what is to begin the next one.

    Python's decoder would keep a shifted text of any length, and read it again with each piece.
    """
    tail = piece[len(piece.rstrip(_BASE64)) :]
    shift = tail.find(b"+")
    if shift < 0:
        return piece, b""
    # RFC 2152: eight letters are three characters.
    whole = (len(tail) - shift - 1) // 8 * 8
    end = len(piece) - len(tail) + shift + (1 + whole if whole else 0)
    return piece[:end], b"+" + piece[end:].removeprefix(b"" if whole else b"+")


def _visible(text: str) -> Generator[int, None, str]:
    """Return a text without invisible characters."""
    if text.isascii():
        return text
    found = []
    for at in range(0, len(text), PIECE):
        yield PIECE // _SEARCHED
        found.append(invisible(text[at : at + PIECE]))
    # Joiners shape the letters of some scripts, but between others they are nothing.
    return "".join(found).replace("\u200c", "").replace("\u200d", "")
