r"""Parameters of Content-Type and Content-Disposition, by all readings of lenient mail programs.

The parser looks for `name =` anywhere in a field, so that a missing semicolon, an open quote or a
comment hides nothing. Each value is read in several ways: quoted and not, up to a semicolon or a
blank, with and without escapes, RFC 2231 continuations joined whatever gaps they have.
"""

from __future__ import annotations

import re
from itertools import pairwise

from smtpd_filters.checks.author.encoded_words import decoded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_VALUE = (
    r"((?:\*\d{0,4}+\*?+)?+)\s*+(?:\([^)]*+\)\s*+)*=\s*+"
    r'("(?:[^"\\]|\\.)*+(?:"|$)|[^;]*+)'
)
_NAMES = re.compile(rf"(?<![\w-])(?:file)?name{_VALUE}", re.IGNORECASE | re.DOTALL)
_BOUNDARIES = re.compile(rf"(?<![\w-])boundary{_VALUE}", re.IGNORECASE | re.DOTALL)
_CHARSETS = re.compile(rf"(?<![\w-])charset{_VALUE}", re.IGNORECASE | re.DOTALL)
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
#: What is before the first word of a field, as in one with an open comment.
_BEFORE_WORD = re.compile(r"\A[^\w.+-]*+")
_MESSAGES = frozenset(
    f"message/{name}" for name in ("rfc822", "global", "news", "external-body", "partial")
)

#: Values of a field that are looked at: as many as `limits.PARAMETERS` characters can hold.
_MOST = 1 << 11
#: Characters behind a quoted value that may belong to it.
_BEHIND = 300
#: Characters of a delimiter. RFC 2046 section 5.1.1 allows 70; programs don't count.
_BOUNDARY_MAX = 1000


def names(field: str) -> list[str]:
    """Return the values of `name` and `filename` in a field, by all readings, undecoded words."""
    return list(dict.fromkeys(_values(_NAMES, field)))


def boundaries(field: str) -> list[str]:
    """Return the values of `boundary` in a field; several if programs would disagree."""
    found: dict[str, None] = {}
    for value in _values(_BOUNDARIES, field):
        if value and len(value) <= _BOUNDARY_MAX:
            found[value] = None
            # Programs written in C see it up to a NUL.
            if "\0" in value:
                found[value.partition("\0")[0]] = None
    return list(found)


def count_boundaries(field: str) -> int:
    """Return how many different boundaries a field declares."""
    found = {match[2].strip().strip('"') for match in _BOUNDARIES.finditer(field) if not match[1]}
    return len(found)


def charset(field: str) -> str:
    """Return the character set that a field declares, in lower case; "" if it declares none."""
    for value in _values(_CHARSETS, field):
        return value.strip().lower()[:64]
    return ""


def media_type(field: str) -> str:
    """Return the type that a Content-Type field declares, in lower case; "" if it is invalid."""
    match = _TYPE.match(field)
    if match is None or not match[2]:
        return ""
    return f"{match[1]}/{match[2]}".lower()[:128]


def is_container(kind: str) -> bool:
    """Return whether a type is that of multiparts or messages."""
    return kind.startswith("multipart/") or kind in _MESSAGES


def disguised_type(field: str) -> str:
    """Return the type of multiparts or messages that a field has against the grammar, or ""."""
    declared = media_type(field)
    if declared.startswith("multipart/"):
        return ""
    text = field.partition(";")[0]
    if _MULTIPART.search(text):
        return "multipart/mixed"
    match = None if is_container(declared) else _MESSAGE.search(text)
    return f"message/{match[1].lower()}" if match else ""


def token(field: str) -> str:
    """Return the first word of a field, in lower case, such as `base64` or `attachment`."""
    match = _TOKEN.match(field)
    return match[1].lower()[:64] if match else ""


def disguised_token(field: str) -> str:
    """Return the first word of a field that doesn't begin with one, such as `(base64`; or ""."""
    return token(_BEFORE_WORD.sub("", field, 1))


def _values(pattern: re.Pattern[str], field: str) -> Iterator[str]:
    segments: list[tuple[int, str, bool]] = []
    for number, match in enumerate(pattern.finditer(field)):
        if number >= _MOST:
            break
        section, value = match[1], match[2]
        if not section:
            yield from _plain(value)
            yield from _behind(value, field[match.end() : match.end() + _BEHIND].partition(";")[0])
            continue
        extended = section.endswith("*")
        digits = section.strip("*")
        if digits:
            segments.append((int(digits), value, extended))
        else:
            for text in _plain(value):
                yield from _extended(text)
    if segments:
        yield from _joined(segments)


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


def _behind(value: str, rest: str) -> Iterator[str]:
    """Yield the reading of programs that end a quoted value at the semicolon, not at the quote."""
    rest = rest.strip()
    if value.startswith('"') and rest and not rest.startswith("("):
        yield (value + rest).replace('"', "").strip()


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
        text = "".join(next(_plain(value)) for _, value, _ in way)
        if any(extended for _, _, extended in way):
            yield from _extended(text)
        else:
            yield text


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
