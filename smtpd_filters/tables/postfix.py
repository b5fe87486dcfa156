r"""Lines of Postfix's tables of regular expressions, regexp_table(5) and pcre_table(5).

/^(.*)@(.*)\.lan$/       $1-${2}.lan@example.org
!/@example\.org$/        postmaster@example.org
if /@example\.com$/
endif
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_REFERENCE = re.compile(r"\$(?:(\d{1,3})(?!\d)|\{(\d{1,3})\}|\((\d{1,3})\)|(\$)|)")
_FLAGS = re.compile(r"\S*")
#: Characters that a backslash makes ordinary: as a delimiter they keep it.
_SPECIAL = frozenset("|.*+?()[]{}^$")


def divided(line: str) -> tuple[str, bool, str, str]:
    """Return the pattern of a line `!/pattern/flags text`, whether it is negated, flags and text.

    Raises ValueError for a line without a pattern in delimiters.
    """
    negated = line.startswith("!")
    body = line.removeprefix("!").lstrip()
    limit = body[:1]
    if not limit or limit.isalnum() or limit in "\\{":
        raise ValueError(f"expected /pattern/ and a text behind it, not {line[:80]!r}")
    end = 1
    while end < len(body) and body[end] != limit:
        end += 2 if body[end] == "\\" else 1
    if end >= len(body):
        raise ValueError(f"no {limit} at the end of the pattern")
    pattern = body[1:end]
    if limit not in _SPECIAL:
        pattern = pattern.replace(f"\\{limit}", limit)
    flags = _FLAGS.match(body, end + 1)
    assert flags  # noqa: S101  # it may be empty
    return pattern, negated, flags[0], body[flags.end() :].strip()


def pieces(text: str) -> list[str | int]:
    """Divide a text at its references to groups, `$1`, `${1}` and `$(1)`; `$$` is a dollar.

    Raises ValueError for any other dollar.
    """
    found: list[str | int] = []
    at = 0
    for match in _REFERENCE.finditer(text):
        found.append(text[at : match.start()])
        number = match[1] or match[2] or match[3]
        if number is not None:
            found.append(int(number))
        elif match[4]:
            found.append("$")
        else:
            raise ValueError("a dollar is followed by the number of a group: $1, ${1}; write $$")
        at = match.end()
    found.append(text[at:])
    return [each for each in found if each != ""]


def filled(parts: Sequence[str | int], groups: Mapping[int, bytes]) -> str:
    """Join the pieces of a text; a group that took no part is empty."""
    return "".join(
        groups.get(each, b"").decode("utf-8", "surrogateescape") if isinstance(each, int) else each
        for each in parts
    )
