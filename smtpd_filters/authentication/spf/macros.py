"""The macros of SPF (RFC 7208 section 7), in linear time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable

# RFC 7208 section 7.1; letters and "r" are case-insensitive (RFC 5234 section 2.3).
_MACRO = re.compile(r"%(?:([%_-])|\{([A-Za-z])([0-9]*+)([rR]?)([.\-+,/_=]*+)\}|)")
_SIMPLE = {"%": "%", "_": " ", "-": "%20"}
# RFC 7208 section 7.1: toplabel = ( *alphanum ALPHA *alphanum ) / ( 1*alphanum "-" ... alphanum )
_TOP = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z-]*[0-9A-Za-z])?")
#: Octets of a domain name as text. RFC 7208 section 7.3: longer ones are truncated on the left.
_NAME_MAX = 253


class MacroError(ValueError):
    """Invalid syntax of a macro."""


def expand(text: str, value_of: Callable[[str], str]) -> str:
    """Return a text with its macros expanded; `value_of` returns the value of a small letter.

    Raises MacroError for invalid syntax, and what `value_of` raises.
    """

    def replaced(match: re.Match[str]) -> str:
        simple, letter, digits, reverse, delimiters = match.groups()
        if simple:
            return _SIMPLE[simple]
        if not letter:
            raise MacroError("invalid macro")
        value = _transformed(
            value_of(letter.lower()), digits, delimiters or ".", reverse=bool(reverse)
        )
        # RFC 7208 section 7.3: "Uppercase macros ... are URL escaped".
        return quote(value, "~") if letter.isupper() else value

    return _MACRO.sub(replaced, text)


def _transformed(value: str, digits: str, delimiters: str, *, reverse: bool) -> str:
    """Split a value at its delimiters, reverse and cut the parts, and join them with dots."""
    if not digits and not reverse and delimiters == ".":
        return value
    parts = re.split(f"[{re.escape(delimiters)}]", value)
    if reverse:
        parts.reverse()
    if digits:
        # RFC 7208 section 7.1: "The DIGIT ... MUST be nonzero". Leading zeros are allowed.
        number = int(digits[-4:]) if digits[:-4].strip("0") == "" else len(parts)
        if not number:
            raise MacroError("invalid macro: 0 parts")
        parts = parts[-number:]
    return ".".join(parts)


def is_domain_spec(text: str) -> bool:
    """Return whether a text has the end of a domain-spec: a macro or a top label.

    RFC 7208 section 7.1: `domain-end = ( "." toplabel [ "." ] ) / macro-expand`.
    """
    end = 0
    for match in _MACRO.finditer(text):
        end = match.end()
        if match[0] == "%":
            return False
    rest = text[end:]
    if not rest:
        return end > 0
    _, dot, top = rest.removesuffix(".").rpartition(".")
    return bool(dot) and _TOP.fullmatch(top) is not None and not top.isdigit()


def truncated(name: str) -> str:
    """Return a name without a final dot, and without its leftmost labels if it is too long."""
    name = name.removesuffix(".")
    if len(name) <= _NAME_MAX:
        return name
    dot = name.find(".", len(name) - _NAME_MAX - 1)
    return name[dot + 1 :] if dot >= 0 else name
