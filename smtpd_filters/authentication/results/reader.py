"""A parser of Authentication-Results, strict about what it believes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .writer import Result, Results

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Characters of a field that is parsed. A sender can make our own have half of them.
MAX_FIELD = 1 << 15
# RFC 8601 section 2.2. "@" is a token of its own in [ [ local-part ] "@" ] domain-name; "/" stands
# before a version.
_TOKENS = re.compile(
    r'(?P<space>[ \t\r\n]++)|"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<special>[;=])'
    r'|(?P<word>[^ \t\r\n"();=\\]++)|(?P<open>\()',
    re.DOTALL,
)
_COMMENT = re.compile(r"[^()\\]++|\\.|(\()|(\))", re.DOTALL)
_PAIR = re.compile(r"\\(.)", re.DOTALL)
_VERSION = re.compile("[0-9]+")
_JOINTS = ("/", ".")
_EQUALS = ("special", "=")
_PROPERTY = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+)", re.IGNORECASE)


class _InvalidError(ValueError):
    """The field is not one of RFC 8601."""


def parse(value: str) -> Results | None:
    """Return the content of a field, with keywords in lower case; None if it is invalid.

    Comments are dropped. A trailing semicolon is accepted.
    """
    if len(value) > MAX_FIELD:
        return None
    try:
        return _Parser(value).results()
    except ValueError:
        return None


class _Parser:
    """The parts of a field between semicolons, each a list of tokens."""

    def __init__(self, value: str) -> None:
        parts: list[list[tuple[str, str]]] = [[]]
        for kind, text in _tokens(value):
            if (kind, text) == ("special", ";"):
                parts.append([])
            else:
                _append(parts[-1], kind, text)
        if len(parts) > 1 and not parts[-1]:
            del parts[-1]
        self._head, *self._parts = parts

    def results(self) -> Results:
        if not 1 <= len(self._head) <= 2:
            raise _InvalidError
        kinds = {kind for kind, _ in self._head}
        authserv_id, version = [*(text for _, text in self._head), ""][:2]
        if not kinds <= {"word", "quoted"} or (version and not _VERSION.fullmatch(version)):
            raise _InvalidError
        if self._parts == [[("word", "none")]]:
            return Results(authserv_id, (), version)
        return Results(authserv_id, tuple(map(_result, self._parts)), version)


def _result(tokens: list[tuple[str, str]]) -> Result:
    """Parse `method=result`, an optional reason, and properties."""
    assigned = []
    for at in range(0, len(tokens), 3):
        left, equals, right = [*tokens[at : at + 3], ("", ""), ("", "")][:3]
        if left[0] != "word" or equals != _EQUALS or right[0] not in {"word", "quoted"}:
            raise _InvalidError
        assigned.append((left[1].lower(), right[1]))
    if not assigned:
        raise _InvalidError
    (method, result), *rest = assigned
    reason = ""
    if rest and rest[0][0] == "reason":
        reason = rest.pop(0)[1]
    keyword, slash, version = method.partition("/")
    if slash and not _VERSION.fullmatch(version):
        raise _InvalidError
    if not all(_PROPERTY.fullmatch(name) for name, _ in rest):
        raise _InvalidError
    return Result(keyword, result.lower(), tuple(rest), reason)


def _append(part: list[tuple[str, str]], kind: str, text: str) -> None:
    """Append a token; RFC 8601 section 2.2 allows comments around "/" and "." of names."""
    if part and kind == part[-1][0] == "word" and _EQUALS not in part[-2:]:
        last = part[-1][1]
        if text in _JOINTS or last.endswith(_JOINTS):
            text = last + text
            del part[-1]
    part.append((kind, text))


def _tokens(value: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each token, without blanks and comments."""
    at = 0
    while at < len(value):
        match = _TOKENS.match(value, at)
        if match is None:
            raise _InvalidError
        at = match.end()
        kind = match.lastgroup or ""
        if kind == "open":
            at = end_of_comment(value, at)
        elif kind == "quoted":
            yield kind, _PAIR.sub(r"\1", re.sub("\r?\n", "", match["quoted"]))
        elif kind != "space":
            yield kind, match[kind]


def end_of_comment(value: str, at: int) -> int:
    """Return where the comment ends that was opened before `at`; ValueError if it doesn't."""
    depth = 1
    for match in _COMMENT.finditer(value, at):
        depth += bool(match[1]) - bool(match[2])
        if not depth:
            return match.end()
    raise _InvalidError
