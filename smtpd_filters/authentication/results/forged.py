"""Recognition of fields from outside that claim to be our own.

RFC 8601 section 5: a field with our own id that did not come from a trusted server MUST be removed,
as well as one of a version that we don't know. Readers differ in what they accept, so a
field claims our id if it does so in any reading: case, comments, quotes, a final dot, U-labels, a
suffix after a slash, control characters and bytes that aren't UTF-8, which readers drop or take for
blanks. A field that is not well-formed claims our id if it contains the id anywhere.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from smtpd_filters.addresses import readings
from smtpd_filters.addresses.domains import PREFIX
from smtpd_filters.message.disguise import Name

from .reader import end_of_comment, parse
from .writer import FIELD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from smtpd_filters.message import Headers

# The id of a well-formed field: a token or a quoted string.
_ID = re.compile(r'"(?:[^"\\]|\\.)*+"|[^\s"();=\\]++', re.DOTALL)
_SPACE = re.compile(r"\s*+")
_VERSION = re.compile(r"[0-9]++")
_SEPARATOR = re.compile(r"[\s\x00-\x20\x7f();\"<>,=?/:@\[\]\\'`|&{}*+!#$%^~]+")
# An id that an operator chooses needs none of what separates the parts of a field.
_WORD = re.compile(r"""[^\s\x00-\x20\x7f-\x9f"();<>,\\]+""")
_PAIR = re.compile(r"\\(.)", re.DOTALL)
_COMMENT = re.compile(r"\([^()]*+\)")
#: Characters of all these fields that are examined, 20 ms at most. Honest mail has a few KiB.
MAX_EXAMINED = 1 << 14
#: Words with A-labels or characters beyond ASCII that are converted; an honest field has a few.
MAX_INTERNATIONAL = 64
#: Comments within each other that are removed to see what is left.
MAX_DEPTH = 8
_TRIMMED = ".-_"
_ENCODED = "=?"
# What some readers drop, as many C programs do NUL.
_UNREADABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\udc80-\udcff]")
_NAME = Name(FIELD)


class _TooManyError(ValueError):
    """More words to convert than an honest field has."""


def is_name(authserv_id: str) -> bool:
    """Return whether a text can be an id: one word, so that fields that claim it are recognised."""
    return _WORD.fullmatch(authserv_id) is not None and bool(_name_in(authserv_id))


def _name_in(authserv_id: str) -> str:
    """Return an id without its suffix, as in "mx.example.org/job" (RFC 8601 section 2.5)."""
    return next(filter(None, _SEPARATOR.split(authserv_id)), "").strip(_TRIMMED)


def claims(value: str, authserv_id: str) -> bool:
    """Return whether some reader may take a field's value for one with our id.

    `value` may be folded. A version that is not 1 counts as a claim.
    """
    own = {*readings(_name_in(authserv_id))}
    head, version = _head(value)
    if version not in {"", "1"}:
        return True
    if head is not None and _is_malformed_with(value, own):
        head = None
    text = (value if head is None else head).replace("\r", "").replace("\n", "")
    if _ENCODED in text:
        return True  # RFC 2047 section 5 allows no encoded word here, but some readers decode it
    try:
        return any(name in own for form in _forms(text) for name in _names(form))
    except _TooManyError:
        return True


def remove_forged(headers: Headers, authserv_id: str) -> int:
    """Remove the fields that claim our id; return their number.

    Beyond `MAX_EXAMINED` characters, names included, all fields are removed. So is a field in which
    a bare CR is followed by an Authentication-Results field: to some readers CR ends a line. And so
    is a field whose name is ours only without characters that a name can't have.
    """
    claiming, first = [], 0
    budget = MAX_EXAMINED
    for number, value in enumerate(headers.values(FIELD), 1):
        budget -= len(FIELD) + len(value)
        if budget < 0:
            first = number
            break
        if claims(value, authserv_id):
            claiming.append(number)
    removed = headers.remove(FIELD, range(first, sys.maxsize)) if first else 0
    removed += headers.remove(FIELD, claiming) if claiming else 0
    return removed + _NAME.remove_disguised(headers)


def _head(value: str) -> tuple[str | None, str]:
    """Return what precedes the first result, and the version, if the field is well-formed.

    The head is None if it isn't, or if readers may disagree where it ends.
    """
    try:
        at = _skip(value, 0)
        match = _ID.match(value, at)
        if match is None:
            return None, ""
        at = _skip(value, match.end())
        version = _VERSION.match(value, at)
        if version:
            at = _skip(value, version.end())
    except ValueError:
        return None, ""
    if value[at : at + 1] not in {"", ";"}:
        return None, ""
    return value[:at], version[0] if version else ""


def _is_malformed_with(value: str, names: Iterable[str]) -> bool:
    """Return whether a field is not well-formed behind its id, and has one of these names."""
    lower = value.lower()
    return any(name in lower for name in names if name) and parse(value) is None


def _skip(value: str, at: int) -> int:
    """Return where white space and comments end; raise ValueError if a comment is ambiguous."""
    while True:
        match = _SPACE.match(value, at)
        at = match.end() if match else at
        if value[at : at + 1] != "(":
            return at
        end = end_of_comment(value, at + 1)
        if '"' in value[at:end]:
            raise ValueError("a quote in a comment")
        at = end


def _forms(text: str) -> Iterator[str]:
    """Yield the readings of a text: as it is, without backslashes, quotes, and comments."""
    plain = _PAIR.sub(r"\1", text) if "\\" in text else text
    bare = plain.replace('"', "")
    yield from (text, plain, bare)
    if _UNREADABLE.search(bare):
        yield _UNREADABLE.sub(" ", bare)
        bare = _UNREADABLE.sub("", bare)
        yield bare
    for _ in range(MAX_DEPTH):
        if "(" not in bare:
            break
        bare = _COMMENT.sub("", bare)
    # RFC 5322 section 4.4: obs-domain has white space around its dots.
    yield from (bare, ".".join(map(str.strip, bare.split("."))))


def _names(text: str) -> Iterator[str]:
    """Yield the canonical forms of the words of a text."""
    international = 0
    for word in _SEPARATOR.split(text):
        name = word.strip(_TRIMMED)
        if name.isascii() and PREFIX not in name.lower():
            yield name.lower()
            continue
        international += 1
        if international > MAX_INTERNATIONAL:
            raise _TooManyError
        yield from readings(name)
