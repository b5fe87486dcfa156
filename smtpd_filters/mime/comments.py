"""Comments of structured fields (RFC 5322 section 3.2.2), by all readings of mail programs.

By the standard they nest and have quoted pairs. Programs differ in both, and some know none.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import product

from .limits import COMMENTS

#: What comes before a comment: quoted strings and any other text.
_BEFORE = re.compile(r'(?:[^("]++|"(?:[^"\\]|\\.)*+(?:"|$))*', re.DOTALL)
#: What comes before a parenthesis in a comment, without quoted pairs and with them.
_WITHIN = (re.compile(r"[^()]*+"), re.compile(r"(?:[^()\\]|\\.)*+", re.DOTALL))


# The fields of a part are read several times, for types, parameters and names.
@lru_cache(maxsize=16)
def readings(field: str) -> tuple[str, ...]:
    """Return the different readings of a field: as it is, and without its comments.

    A field with more comments than `limits.COMMENTS` has only the first of these.
    """
    if "(" not in field or has_too_many(field):
        return (field,)
    found = {field: None}
    for nest, pairs in product((True, False), repeat=2):
        found[_without(field, nest=nest, pairs=pairs)] = None
    return tuple(found)


def has_too_many(field: str) -> bool:
    """Return whether a field may have too many comments to be read in all ways."""
    return field.count("(") > COMMENTS


def _without(field: str, *, nest: bool, pairs: bool) -> str:
    """Return a field without comments, which nest and have quoted pairs or not.

    A comment without an end is none; those in it are.
    """
    opened: list[int] = []
    spans: list[tuple[int, int]] = []
    at = 0
    while True:
        match = (_WITHIN[pairs] if opened else _BEFORE).match(field, at)
        at = match.end() if match else at
        mark = field[at : at + 1]
        if mark == "(" and (nest or not opened):
            opened.append(at)
        elif mark == ")":
            begin = opened.pop()
            while spans and spans[-1][0] > begin:
                spans.pop()
            spans.append((begin, at + 1))
        elif mark != "(":
            break  # the end, or a backslash there
        at += 1
    kept, at = [], 0
    for begin, end in spans:
        kept.append(field[at:begin])
        at = end
    return "".join((*kept, field[at:]))
