"""Encoded words (RFC 2047), as lenient mail programs decode them.

A text can have several readings: a program that doesn't know a character set takes the bytes for
ASCII or UTF-8, or guesses the order of bytes. Whatever some program could show is in one of them.

**Total**: nothing here raises. **Linear**: reading takes time in proportion to the text.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# RFC 2047 section 2. Programs take longer ones than its 75 characters, and white space within.
_HEAD = re.compile(r"=\?([!->@-~]{0,60})\?([bBqQ])\?")
_PADDING = re.compile(rb"=[=\s]*+")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")

#: What the character sets that mail programs know are called in Python, where bytes of ASCII may
#: mean something else, or letters beyond ASCII are no UTF-8. A stranger's name for a character set
#: goes no further than this table: Python would import a module for it.
_CODECS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("utf7", "unicode11utf7", "xunicode20utf7"), ("utf-7",)),
    # RFC 2781 section 4.3: big-endian unless marked; the WHATWG's programs have it the other way.
    **dict.fromkeys(
        ("utf16", "ucs2", "iso10646ucs2", "unicode", "csunicode"), ("utf-16-be", "utf-16-le")
    ),
    "utf16be": ("utf-16-be",),
    "utf16le": ("utf-16-le",),
    **dict.fromkeys(("utf32", "ucs4", "iso10646ucs4"), ("utf-32-be", "utf-32-le")),
    "utf32be": ("utf-32-be",),
    "utf32le": ("utf-32-le",),
    **dict.fromkeys(
        ("iso2022jp", "csiso2022jp", "iso2022jp1", "iso2022jp2", "iso2022jp3", "iso2022jpms"),
        ("iso2022_jp_2",),
    ),
    **dict.fromkeys(("iso2022kr", "csiso2022kr"), ("iso2022_kr",)),
    **dict.fromkeys(
        ("shiftjis", "sjis", "xsjis", "mskanji", "windows31j", "cp932", "csshiftjis"), ("cp932",)
    ),
    **dict.fromkeys(("eucjp", "xeucjp", "cseucpkdfmtjapanese"), ("euc_jp",)),
    **dict.fromkeys(
        ("gb2312", "csgb2312", "gbk", "xgbk", "gb18030", "euccn", "cp936", "windows936"),
        ("gb18030",),
    ),
    **dict.fromkeys(("hz", "hzgb2312"), ("hz",)),
    **dict.fromkeys(("big5", "cnbig5", "xxbig5", "csbig5", "big5hkscs", "cp950"), ("big5hkscs",)),
    **dict.fromkeys(
        ("euckr", "cseuckr", "ksc56011987", "ksc5601", "cp949", "windows949", "uhc"), ("cp949",)
    ),
    **{f"iso8859{part}": (f"iso8859-{part}",) for part in range(1, 17) if part != 12},
    **{f"windows{page}": (f"cp{page}",) for page in range(1250, 1259)},
    **{f"cp{page}": (f"cp{page}",) for page in (*range(1250, 1259), 437, 850, 866)},
    **dict.fromkeys(("latin1", "l1"), ("iso8859-1",)),
    "koi8r": ("koi8-r",),
    "koi8u": ("koi8-u",),
    "macintosh": ("mac-roman",),
    # EBCDIC
    **{f"{brand}{page}": (f"cp{page}",) for brand in ("ibm", "cp") for page in ("037", "500")},
    **{f"{brand}1140": ("cp1140",) for brand in ("ibm", "cp")},
}  # fmt: skip

_WIDE = ("utf16", "utf32", "ucs", "iso10646", "unicode", "csunicode")


def decoded(text: str) -> tuple[str, ...]:
    """Give the readings of a text: as its character sets have it, and as ASCII or UTF-8.

    What isn't UTF-8 is kept as surrogate escapes. A text without encoded words has one reading,
    itself.
    """
    if "=?" not in text:
        return (text,)
    pieces = list(_pieces(text))
    words = [each for each in pieces if isinstance(each, _Word)]
    most = max((len(each.codecs) for each in words), default=0)
    found: dict[str, None] = {}
    for go_on in {any(each.is_padded for each in words), False}:
        for number in (*range(most), -1):
            found["".join(
                each if isinstance(each, str) else each.read(number, go_on=go_on)
                for each in pieces
            )] = None  # fmt: skip
    return tuple(found)


def outside(text: str) -> str:
    """Give a text with a blank in place of its encoded words."""
    if "=?" not in text:
        return text
    return " ".join(each for each in _pieces(text) if isinstance(each, str))


class _Word:
    """Adjacent encoded words of one character set: their bytes belong together.

    Behind padding within base64 some programs go on, others stop: `data` is what has been decoded
    by the former, `stopped` by the latter.
    """

    __slots__ = ("charset", "codecs", "data", "stopped")

    def __init__(self, charset: str) -> None:
        self.charset = charset
        self.codecs = _CODECS.get(charset, ())
        self.data = bytearray()
        self.stopped = bytearray()

    def add(self, encoding: str, text: str) -> None:
        """Add an encoded text."""
        try:
            body = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # a surrogate that stands for no byte
            body = text.encode("utf-8", "replace")
        if encoding in "qQ":
            from binascii import a2b_qp  # only for this

            parts = [a2b_qp(body, header=True)]
        else:
            parts = [_from_base64(part) for part in _PADDING.split(body)]
        self.data += b"".join(parts)
        self.stopped += parts[0]

    @property
    def is_padded(self) -> bool:
        """Whether programs disagree about where it ends."""
        return len(self.data) != len(self.stopped)

    def read(self, number: int, *, go_on: bool) -> str:
        """Decode the bytes by the codec of this number, or the last; -1 is ASCII or UTF-8."""
        data = self.data if go_on else self.stopped
        if number >= 0 and self.codecs:
            codec = self.codecs[min(number, len(self.codecs) - 1)]
            return data.decode(codec, "replace").removeprefix("\ufeff")
        if self.charset.startswith(_WIDE):  # there are zeros between the letters
            data = data.replace(b"\0", b"")
        return data.decode("utf-8", "surrogateescape")


def _pieces(text: str) -> Iterator[str | _Word]:
    """Part a text into words that are encoded, and what is between them."""
    at = begin = 0
    last: _Word | None = None
    while (at := text.find("=?", at)) >= 0:
        head = _HEAD.match(text, at)
        if head is None:
            at += 2
            continue
        end = text.find("?=", head.end())
        if end < 0:
            break  # nor does any other end
        charset = _NOT_IN_NAMES.sub("", head[1].lower().partition("*")[0])  # RFC 2231 section 5
        # RFC 2047 section 6.2: white space between two of them is no part of the text.
        between = text[begin:at]
        if last is None or last.charset != charset or between.strip():
            if last is not None:
                yield last
            if last is None or between.strip():
                yield between
            last = _Word(charset)
        last.add(head[2], text[head.end() : end])
        at = begin = end + 2
    if last is not None:
        yield last
    yield text[begin:]


def _from_base64(text: bytes) -> bytes:
    """Decode what is base64 in a text, padded or not."""
    from binascii import a2b_base64  # only for this

    letters = _NOT_BASE64.sub(b"", text)
    whole = len(letters) - (len(letters) % 4 == 1)
    return a2b_base64(letters[:whole] + b"=" * (-whole % 4))
