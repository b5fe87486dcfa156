"""The domain of a message's author, for the choice of a key.

The first mailbox counts, as for opensmtpd-filter-dkimsign. `smtpd_filters.checks.author` finds all
addresses that any program may show, to judge them, and takes ten times as long.

Invariants
----------
*Total*: any text has a result, in time proportional to its length.
"""

from __future__ import annotations

import re

from smtpd_filters.addresses import canonical

#: Characters of From that are read; smtpd accepts 65,535.
MAX = 1 << 16
_PIECES = re.compile(r'"(?:[^"\\]|\\.)*+"|\\.|[()<>,;:]|[^"\\()<>,;:]++|.', re.DOTALL)


def author_domain(value: str) -> str:
    """Return the domain of the first mailbox in From, in canonical form; "" if it has none."""
    return canonical(_first_address(value[:MAX]).rpartition("@")[2].strip())


def _first_address(value: str) -> str:
    """Return the first text that has an `@` outside of quotes, comments and display names."""
    parts: list[str] = []
    depth = 0
    inside = False
    for piece in _PIECES.findall(value):
        if piece in {"(", ")"}:
            depth = max(0, depth + (1 if piece == "(" else -1))
        elif depth:
            continue
        elif piece == "<":
            # What is before it was a display name.
            inside, parts = True, []
        elif piece in {">", ",", ";", ":"}:
            # A colon ends the name of a group, or a route, which begins with an `@`.
            route = inside and bool(parts) and parts[0].lstrip().startswith("@")
            if piece != ":" and not route and "@" in _unquoted(parts):
                break
            inside, parts = inside and piece in {",", ":"}, []
        else:
            parts.append(piece)
    return _unquoted(parts)


def _unquoted(parts: list[str]) -> str:
    return "".join(part for part in parts if part[0] not in {'"', "\\"})
