r"""Parameters of Content-Type and Content-Disposition, by all readings of lenient mail programs.

The parser looks for `name =` anywhere in a field, also in values that aren't quoted, with comments
and without, so that a missing semicolon, an open quote or a comment hides nothing. Each value is
read in several ways: quoted and not, up to a semicolon or a blank, with and without escapes, RFC
2231 continuations joined whatever gaps they have.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from smtpd_filters.checks.author.encoded_words import decoded

from .comments import readings
from .limits import PARAMETERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_VALUE = (
    r"((?:\*\d{0,4}+\*?+)?+)\s*+(?:\([^)]{0,200}+\)\s*+)*=\s*+"
    r'("(?:[^"\\]|\\.)*+(?:"|$)|[^;]*+)'
)
_NAMES = re.compile(rf"(?<![\w-])(?:file)?name{_VALUE}", re.IGNORECASE | re.DOTALL)
_BOUNDARIES = re.compile(rf"(?<![\w-])boundary{_VALUE}", re.IGNORECASE | re.DOTALL)
_CHARSETS = re.compile(rf"(?<![\w-])charset{_VALUE}", re.IGNORECASE | re.DOTALL)
#: The beginning of such a parameter; comments in it that all programs read the same are no matter.
_SIGN = re.compile(
    r"(?<![\w-])(?:(?:file)?name|boundary|charset)(?:\*\d{0,4}+\*?+)?"
    r"\s*+(?:\([^();\\]{0,200}+\)\s*+)*=",
    re.IGNORECASE,
)
#: A value with quotes within it, to the programs for which a semicolon in them doesn't end it.
_TOGGLED = re.compile(r'(?:[^;"]++|"[^"]*+")*')
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_TYPE = re.compile(
    r"\s*+(?:\([^)]*+\)\s*+)*\"?([!#-&*-.0-9A-Z^-~]++)(?:\s*+/\s*+([!#-&*-.0-9A-Z^-~]++))?",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\s*+(?:\([^)]*+\)\s*+)*\"?([\w.+-]++)")
#: Types of multiparts and messages that aren't so by the grammar; programs look for them anywhere.
_MULTIPART = re.compile(r"multipart\s*+/", re.IGNORECASE)
_MESSAGE = re.compile(
    r"(?<![\w.+-])message\s*+/\s*+(rfc822|global|news|external-body|partial)(?![\w.+-])",
    re.IGNORECASE,
)
_WORD = re.compile(r"[\w.+-]++")
_MESSAGES = frozenset(
    f"message/{name}" for name in ("rfc822", "global", "news", "external-body", "partial")
)

#: Characters of values of a field that are looked at, by all readings and with values in values.
#: With a comment or two there are twice as many readings.
_ROOM = PARAMETERS * 4
#: Characters behind a quoted value that may belong to it.
_BEHIND = 300
#: Blanks between a semicolon in quotes and a parameter.
_BLANKS = 50
#: Characters of a delimiter. RFC 2046 section 5.1.1 allows 70; programs don't count.
_BOUNDARY_MAX = 1000


class Values(NamedTuple):
    """The values of a parameter by all readings, and whether all could be read."""

    values: list[str]
    complete: bool


def names(field: str) -> Values:
    """Return the values of `name` and `filename` in a field, by all readings, undecoded words."""
    return _values(_NAMES, field)


def boundaries(field: str) -> Values:
    """Return the values of `boundary` in a field; several if programs would disagree."""
    values, complete = _values(_BOUNDARIES, field)
    found: dict[str, None] = {}
    for value in values:
        if value and len(value) <= _BOUNDARY_MAX:
            found[value] = None
            # Programs written in C see it up to a NUL.
            if "\0" in value:
                found[value.partition("\0")[0]] = None
    return Values(list(found), complete)


def count_boundaries(field: str) -> int:
    """Return how many different boundaries a field declares, by the reading with most of them."""
    room = _Room()
    return max(
        len({each[2].strip().strip('"') for each in room.matches(_BOUNDARIES, text) if not each[1]})
        for text in readings(field)
    )


def is_behind_comment(field: str) -> bool:
    """Return whether a parameter's name is separated from its value by a comment.

    Comments that all programs read the same don't count.
    """
    if "(" not in field:
        return False
    plain, *others = (len(_SIGN.findall(text)) for text in readings(field))
    return any(each > plain for each in others)


def charsets(field: str) -> list[str]:
    """Return the character sets that a field declares, by all readings, in lower case."""
    found = (each.strip().lower()[:64] for each in _values(_CHARSETS, field).values)
    return [each for each in found if each]


def media_type(field: str) -> str:
    """Return the type that a Content-Type field declares, in lower case; "" if it is invalid."""
    match = _TYPE.match(field)
    if match is None or not match[2]:
        return ""
    return f"{match[1]}/{match[2]}".lower()[:128]


def is_container(kind: str) -> bool:
    """Return whether a type is that of multiparts or messages."""
    return kind.startswith("multipart/") or kind in _MESSAGES


class Types(NamedTuple):
    """The types that a field declares by all readings, and what is odd about it, or "".

    `certain` is whether all programs read its type and parameters the same, comments or not.
    """

    types: tuple[str, ...]
    odd: str
    certain: bool


def media_types(field: str) -> Types:
    """Return the types that a Content-Type field declares, also against the grammar.

    Multiparts and messages are looked for anywhere before a semicolon, or behind one that may be in
    a comment.
    """
    heads, every = _readings_of_head(field, media_type)
    found = [each for each in every if each]
    if len(every) > 1 or ("(" in heads[0] and not found):
        heads.append(field)
    odd = "comment in a type" if len(every) > 1 else ""
    container = next(filter(is_container, found), "")
    if container and odd:
        odd = _invalid(container)
    if not any(each.startswith("multipart/") for each in found):
        hidden = "multipart/mixed" if any(map(_MULTIPART.search, heads)) else ""
        if not hidden and not container:
            match = next(filter(None, map(_MESSAGE.search, heads)), None)
            hidden = f"message/{match[1].lower()}" if match else ""
        if hidden:
            found.append(hidden)
            odd = _invalid(hidden)
    return Types(tuple(found), odd, not odd and len(readings(field)) == 1)


def _invalid(container: str) -> str:
    return f"{container.partition('/')[0]} of an invalid type"


def _readings_of_head(field: str, read: Callable[[str], str]) -> tuple[list[str], list[str]]:
    """Return what is before a semicolon, by all readings, and what is read of each and of fields.

    What is read may be "", and has no repeats.
    """
    if "(" not in field:
        head = field.partition(";")[0]
        return [head], [read(head)]
    texts = readings(field)
    heads = list(dict.fromkeys(each.partition(";")[0] for each in texts))
    return heads, list(dict.fromkeys(map(read, (*heads, *texts))))


def token(field: str) -> str:
    """Return the first word of a field, in lower case, such as `base64` or `attachment`."""
    match = _TOKEN.match(field)
    return match[1].lower()[:64] if match else ""


def tokens(field: str) -> list[str]:
    """Return the first word of a field by all readings; several, or "", if programs disagree."""
    return _readings_of_head(field, token)[1]


def words(field: str) -> list[str]:
    """Return all words of a field, in lower case."""
    return _WORD.findall(field.lower())


class _Room:
    """What is left of the characters of values that are looked at."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = _ROOM

    def matches(self, pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
        """Yield the parameters in a text and in values, unless there is no room for the latter."""
        at = end = end_quoted = 0
        while match := pattern.search(text, at):
            start = match.start()
            before = text[max(start - _BLANKS, 0) : start]
            if start < end:
                found = before[-1] != "?"  # as in encoded words
            else:
                found = start >= end_quoted or before.rstrip()[-1:] == ";"
            if found:
                yield match
            value = match[2]
            self.left -= len(value)
            at = match.end()
            if self.left < 0:
                continue
            if not value.startswith('"'):
                end, at = match.end(), match.start(2)
            elif ";" in value:  # the end of it, for programs that don't know quotes
                end_quoted, at = match.end(), match.start(2) + value.index(";")


def _values(pattern: re.Pattern[str], field: str) -> Values:
    room = _Room()
    found: dict[str, None] = {}
    for text in readings(field):
        segments: list[tuple[int, str, bool]] = []
        for match in room.matches(pattern, text):
            section, value = match[1], match[2]
            extended = section.endswith("*")
            digits = section.strip("*")
            if digits:
                segments.append((int(digits), value, extended))
            elif section:
                for each in _plain(value):
                    found.update(dict.fromkeys(_extended(each)))
            else:
                found.update(dict.fromkeys(_plain(value)))
                found.update(dict.fromkeys(_behind(value, text, match)))
        if segments:
            found.update(dict.fromkeys(_joined(segments)))
    return Values(list(found), room.left >= 0)


def _plain(value: str) -> Iterator[str]:
    """Yield the readings of a value that isn't extended."""
    value = value.strip()
    if value.startswith('"'):
        closed = len(value) > 1 and value.endswith('"')
        inner = value[1:-1] if closed else value[1:]
        yield _ESCAPE.sub(r"\1", inner)
        if "\\" in inner:
            yield inner
        if not closed:
            yield inner.partition(";")[0].strip()
        return
    yield value
    word = value.split(None, 1)
    if len(word) > 1:
        yield word[0]
    if value.startswith("'"):
        yield value.strip("'")
    if "(" in value:
        yield value.partition("(")[0].strip()


def _behind(value: str, text: str, match: re.Match[str]) -> Iterator[str]:
    """Yield readings of a value with quotes that end elsewhere: at a semicolon, or behind one.

    Some programs end a quoted value at the semicolon, not at the quote; to others quotes within a
    value are quotes.
    """
    if value.startswith('"'):
        rest = text[match.end() : match.end() + _BEHIND].partition(";")[0].strip()
        if rest and not rest.startswith("("):
            yield (value + rest).replace('"', "").strip()
    elif '"' in value:
        at = match.start(2)
        toggled = _TOGGLED.match(text[at : at + len(value) + _BEHIND])
        if toggled and len(toggled[0]) > len(value):
            yield toggled[0].replace('"', "").strip()


def _joined(segments: list[tuple[int, str, bool]]) -> Iterator[str]:
    """Yield the readings of continuations: by number and as written, up to a gap and beyond."""
    ordered = sorted(segments, key=lambda each: each[0])
    contiguous = ordered[:1]
    for before, each in pairwise(ordered):
        if each[0] != before[0] + 1:
            break
        contiguous.append(each)
    ways = [ordered]
    if len(contiguous) < len(ordered):
        ways.append(contiguous)
    if ordered != segments:
        ways.append(segments)
    for way in ways:
        texts = ["".join(next(_plain(value)) for _, value, _ in way)]
        short = "".join(_without_parameter(value) for _, value, _ in way)
        if short != texts[0]:
            texts.append(short)
        for text in texts:
            if any(extended for _, _, extended in way):
                yield from _extended(text)
            else:
                yield text


def _without_parameter(value: str) -> str:
    """Return a value up to a blank if a parameter is behind it, with no semicolon between."""
    whole = next(_plain(value))
    if value.startswith('"'):
        return whole
    word, _, rest = whole.partition(" ")
    return word if "=" in rest else whole


def _extended(text: str) -> Iterator[str]:
    """Yield the readings of an RFC 2231 value: `charset'language'percent-encoded`."""
    name, tick, rest = text.partition("'")
    _, second, encoded = rest.partition("'")
    if not (tick and second):
        name, encoded = "utf-8", text
    data = _PERCENT.sub(
        lambda match: bytes([int(match[1], 16)]), encoded.encode("utf-8", "surrogateescape")
    )
    if data.isascii() and "utf" not in name.lower()[:4]:
        yield data.decode("ascii")
    elif name.lower() in {"utf-8", "utf8", ""}:
        yield data.decode("utf-8", "surrogateescape")
        return
    # Through the decoder of encoded words, which knows how programs read character sets.
    word = "".join(f"={byte:02X}" for byte in data)
    safe = re.sub(r"[^A-Za-z0-9._-]", "", name)[:40]
    yield from decoded(f"=?{safe}?Q?{word}?=")


def unfolded(value: bytes) -> str:
    """Decode a raw field: line breaks become nothing, bytes that aren't UTF-8 surrogate escapes."""
    return value.replace(b"\n", b"").decode("utf-8", "surrogateescape")


def first(values: Iterable[str]) -> str:
    """Return the first of some values that isn't empty, or ""."""
    return next((each for each in values if each), "")
