"""The writer of Authentication-Results."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FIELD = "Authentication-Results"
#: Octets of a value; a longer one is left out: cut, it would name something else.
MAX_VALUE = 400

# RFC 2045 section 5.1, to which RFC 8601 section 2.2 refers: no controls, blanks or tspecials. A
# value that ends with a dot is quoted: that may continue behind a blank in other places.
_TOKEN = re.compile(r"[!#-'*+.0-9A-Z^-~-]*[!#-'*+0-9A-Z^-~-]")
# RFC 8601 section 2.2: pvalue may be [ [ local-part ] "@" ] domain-name. Local parts with "=" or
# "/" are quoted, since not every reader expects these.
_ADDRESS = re.compile(r"[!#-'*+.0-9A-Z^-~-]*@[0-9A-Za-z_.-]*[0-9A-Za-z_-]")
_KEYWORD = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")
_UNPRINTABLE = re.compile("[^ -~]")
_UNPRINTABLE_8BIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SPECIAL = re.compile(r'[\\"]')
_NOT_IN_COMMENT = re.compile(r"[()\\]")


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one method.

    `method` and `result` are keywords of RFC 8601 section 2.7 (ValueError for anything else).
    `properties` are names such as `smtp.mailfrom` with their values, which may be any text.
    `reason` and `comment` may be any text as well, but belong to this program: a comment is not
    the place for what a client sent.
    """

    method: str
    result: str
    properties: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    comment: str = ""

    def __post_init__(self) -> None:
        words = [self.method, self.result]
        for name, _ in self.properties:
            ptype, dot, prop = name.partition(".")
            words += [ptype, prop]
            if not dot:
                raise ValueError(f"a property is written ptype.name, not {name!r}")
        for word in words:
            if not _KEYWORD.fullmatch(word):
                raise ValueError(f"not a keyword: {word!r}")


@dataclass(frozen=True, slots=True)
class Results:
    """The content of a field: the id of the server that checked, and its results."""

    authserv_id: str
    results: tuple[Result, ...] = ()
    version: str = ""


def write(authserv_id: str, results: Iterable[Result], *, utf8: bool = False) -> str:
    """Return the value of a field, folded before each result.

    With `utf8`, for messages that use SMTPUTF8, values may have characters beyond ASCII (RFC 8601
    section 2.2 with RFC 6532); otherwise these are replaced, as control characters always are.
    """
    parts = [_written(result, utf8=utf8) for result in results] or ["none"]
    return ";\n\t".join([value_of(authserv_id, utf8=utf8), *parts])


def _written(result: Result, *, utf8: bool) -> str:
    words = [f"{result.method}={result.result}"]
    if result.comment:
        words.append(f"({_NOT_IN_COMMENT.sub('?', _printable(result.comment, utf8=utf8))})")
    if result.reason:
        words.append(f"reason={_quoted(_printable(result.reason, utf8=utf8))}")
    for name, value in result.properties:
        if len(value.encode("utf-8", "replace")) <= MAX_VALUE:
            words.append(f"{name}={value_of(value, utf8=utf8)}")
    return " ".join(words)


def value_of(text: str, *, utf8: bool = False) -> str:
    """Return any text as a value: as it is if it needs no quotes, otherwise quoted."""
    text = _printable(text, utf8=utf8)
    return text if _TOKEN.fullmatch(text) or _ADDRESS.fullmatch(text) else _quoted(text)


def _printable(text: str, *, utf8: bool) -> str:
    return (_UNPRINTABLE_8BIT if utf8 else _UNPRINTABLE).sub("?", text)


def _quoted(text: str) -> str:
    return '"' + _SPECIAL.sub(lambda match: "\\" + match[0], text) + '"'
