"""Values from outside in error messages and in the output of commands: one printable line."""

from __future__ import annotations

from smtpd_filters.runtime.log import escaped

#: Longer values are cut: an error message is one line.
_QUOTED_MAX = 60


def quote(text: str) -> str:
    """Format a value for an error message: in quotes, printable, of limited length."""
    if len(text) > _QUOTED_MAX:
        text = text[:_QUOTED_MAX] + "..."
    return f'"{printable(text)}"'


def printable(text: str) -> str:
    """Escape what would break a log line: line breaks, control characters, bytes not in UTF-8."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else escaped(c) for c in text)
