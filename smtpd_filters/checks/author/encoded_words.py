"""A decoder of encoded words (RFC 2047) that covers all readings by lenient mail programs.

A text can have several readings: a program that doesn't know a character set assumes ASCII or
UTF-8, or guesses the byte order.

Invariants
----------
*Complete*: all that some program may display is in one of the readings.
*Total*: no text raises an exception.
*Linear*: the time is proportional to the length of the text.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Literal

# RFC 2047 section 2. Programs accept longer words than its 75 characters, and white space within.
_HEAD = re.compile(r"=\?([!->@-~]{0,60})\?([bBqQ])\?")
_PADDING = re.compile(rb"=[=\s]*+")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")
_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")
# RFC 2047 section 5 (3) allows letters, digits and "!*+-/=_" only; programs accept everything but
# these, which are special in an address. The second set may precede or follow a word.
_NOT_IN_NAMES = re.compile(r"[\x00-\x20\x7f()<>@,;:\\\"\[\]?]")
#: Characters of a text whose encoded words `readings` decodes: programs show a line of it. A run of
#: blanks counts as one, since it is shown as one.
ENCODED = 1 << 12
_BLANKS = re.compile(r"\s+")
#: Units of work for a text with encoded words, and for each of its characters.
_WORK, _WORK_EACH = 50, 3
_APART = frozenset(' \t\r\n()<>,;:"')

#: Python's codecs for the character sets of mail programs in which ASCII bytes may have another
#: meaning, or letters beyond ASCII are not UTF-8. A stranger's name for a character set is looked
#: up in this table only, since Python would import a module for it.
_CODECS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("utf7", "unicode11utf7", "xunicode20utf7"), ("utf-7",)),
    # RFC 2781 section 4.3: big-endian unless marked; little-endian in the WHATWG's programs.
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


def codecs_of(charset: str) -> tuple[str, ...]:
    """Return Python's codecs for a character set: one, or two if programs disagree.

    ASCII, UTF-8 and unknown names have none.
    """
    return _CODECS.get(_bare(charset), ())


def _bare(charset: str) -> str:
    """Return the name of a character set without its language (RFC 2231 section 5) and marks."""
    return _NOT_ALPHANUMERIC.sub("", charset.lower().partition("*")[0])


def decoded(text: str) -> tuple[str, ...]:
    """Return the readings of a text: in its character sets, and as ASCII or UTF-8.

    Bytes that aren't UTF-8 become surrogate escapes. Some readings have blanks around the encoded
    words, since some programs end an address there. A text without encoded words has one reading,
    itself.
    """
    if "=?" not in text:
        return (text,)
    found = dict.fromkeys(_readings(list(_pieces(text, strict=False))))
    if _may_differ(text):
        found.update(dict.fromkeys(_readings(list(_pieces(text, strict=True)))))
    return tuple(found)


def readings(text: str) -> Generator[int, None, tuple[str, ...]]:
    """Return what `decoded` does; of a long text only for its beginning, and the text as well.

    Yields units of work (`runtime.pace`).
    """
    if "=?" not in text:
        return (text,)
    begun = text if len(text) <= ENCODED else _BLANKS.sub(" ", text)[:ENCODED]
    yield _WORK + _WORK_EACH * len(begun)
    return tuple(dict.fromkeys((*decoded(begun), *(() if begun == text else (text,)))))


def outside(text: str) -> str:
    """Return a text with a blank in place of its encoded words."""
    if "=?" not in text:
        return text
    return " ".join(each for each in _pieces(text, strict=False) if isinstance(each, str))


def is_in_order(text: str) -> bool:
    """Return whether all programs find the same encoded words in a name.

    By RFC 2047 section 5 (3), each is separate from other words, and has no character that is
    special in an address.
    """
    if "=?" not in text:
        return True
    around = f" {text} "
    return all(
        around[begin - 1] in _APART
        and around[end] in _APART
        and not _NOT_IN_NAMES.search(around[head.end() : end - 2])
        for begin, head, end in _words(around, strict=False)
    )


def _readings(pieces: list[str | _Word]) -> Iterator[str]:
    words = [each for each in pieces if isinstance(each, _Word)]
    most = max((len(each.codecs) for each in words), default=0)
    for data in ("whole", "begun") if any(each.is_padded for each in words) else ("whole",):
        for number in (*range(most), -1):
            for between in ("", " "):
                yield between.join(
                    each if isinstance(each, str) else each.read(number, data, between)
                    for each in pieces
                )


def _may_differ(text: str) -> bool:
    """Return whether an encoded word contains a question mark, where strict programs end it."""
    return any(text.find("?", head.end()) < end - 2 for _, head, end in _words(text, strict=False))


class _Word:
    """Adjacent encoded words of one character set, whose bytes may belong together.

    At padding within base64 some programs continue, and others stop: `whole` is what the former
    decode of each word, `begun` what the latter decode.
    """

    __slots__ = ("begun", "charset", "codecs", "whole")

    def __init__(self, charset: str) -> None:
        self.charset = charset
        self.codecs = _CODECS.get(charset, ())
        self.whole: list[bytes] = []
        self.begun: list[bytes] = []

    def add(self, encoding: str, text: str) -> None:
        """Add an encoded text."""
        try:
            body = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # a surrogate that stands for no byte
            body = text.encode("utf-8", "replace")
        if encoding in "qQ":
            from binascii import a2b_qp  # rarely needed

            parts = [a2b_qp(body, header=True)]
        else:
            parts = [_from_base64(part) for part in _PADDING.split(body)]
        self.whole.append(b"".join(parts))
        self.begun.append(parts[0])

    @property
    def is_padded(self) -> bool:
        """Whether programs disagree about the end of a word."""
        return self.whole != self.begun

    def read(self, number: int, data: Literal["whole", "begun"], between: str) -> str:
        """Decode the bytes with the codec of this index, or the last; -1 is ASCII or UTF-8."""
        words: list[bytes] = getattr(self, data)
        if not between:
            words = [b"".join(words)]
        if number >= 0 and self.codecs:
            codec = self.codecs[min(number, len(self.codecs) - 1)]
            read = [each.decode(codec, "replace").removeprefix("\ufeff") for each in words]
        else:
            if self.charset.startswith(_WIDE):  # with zeros between the letters
                words = [each.replace(b"\0", b"") for each in words]
            read = [each.decode("utf-8", "surrogateescape") for each in words]
        return between.join(read)


def _words(text: str, *, strict: bool) -> Iterator[tuple[int, re.Match[str], int]]:
    """Find encoded words; yield the start, head and end of each.

    By RFC 2047 section 2 they contain no question mark; many programs look for "?=" only.
    """
    at = 0
    while (at := text.find("=?", at)) >= 0:
        begin, at = at, at + 2
        if head := _HEAD.match(text, begin):
            end = text.find("?" if strict else "?=", head.end())
            if end < 0:
                return  # no further word ends either
            if text.startswith("?=", end):
                at = end + 2
                yield begin, head, at


def _pieces(text: str, *, strict: bool) -> Iterator[str | _Word]:
    """Split a text into encoded words and the text between them."""
    behind = 0
    last: _Word | None = None
    for begin, head, end in _words(text, strict=strict):
        charset = _bare(head[1])
        # RFC 2047 section 6.2: white space between two of them is not part of the text.
        between = text[behind:begin]
        if last is None or last.charset != charset or between.strip():
            if last is not None:
                yield last
            if last is None or between.strip():
                yield between
            last = _Word(charset)
        last.add(head[2], text[head.end() : end - 2])
        behind = end
    if last is not None:
        yield last
    yield text[behind:]


def _from_base64(text: bytes) -> bytes:
    """Decode the base64 in a text, padded or not."""
    from binascii import a2b_base64  # rarely needed

    letters = _NOT_BASE64.sub(b"", text)
    whole = len(letters) - (len(letters) % 4 == 1)
    return a2b_base64(letters[:whole] + b"=" * (-whole % 4))
