"""The checks of a message in transit, from what smtpd sends and what the filter returns."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

# RFC 5322 section 2.2 (and section 4.5 for the blank before the colon).
_FIELD: Final = re.compile(rb"[!-9;-~]+[ \t]*:")


class _Head(Enum):
    """The state of a header block."""

    EMPTY = 0
    OPEN = 1
    OVER = 2
    BROKEN = 3

    def after(self, line: bytes) -> _Head:
        if self not in {_Head.EMPTY, _Head.OPEN}:
            return self
        if not line:
            return _Head.OVER
        if line[0] in b" \t":
            return _Head.BROKEN if self is _Head.EMPTY else self
        return _Head.OPEN if _FIELD.match(line) else _Head.BROKEN


class Message:
    """One message in transit, in both directions."""

    __slots__ = (
        "cr",
        "cut_short",
        "dots",
        "filter_ended",
        "head_in",
        "head_out",
        "nul",
        "smtpd_ended",
        "token",
    )

    def __init__(self, token: bytes) -> None:
        self.token = token
        self.smtpd_ended = False
        self.filter_ended = False
        self.cut_short = False
        self.head_in = _Head.EMPTY
        self.head_out = _Head.EMPTY
        # Whether smtpd sent a CR, a NUL, or an unescaped dot (of a client that doesn't escape): a
        # filter that passes them on doesn't cause the damage.
        self.cr = False
        self.nul = False
        self.dots = False

    def receive(self, line: bytes) -> str | None:
        """Process a line from smtpd; return the rule that it shows to be broken, or None."""
        if line == b".":
            self.smtpd_ended = True
            return None
        if self.filter_ended:
            reported, self.cut_short = self.cut_short, True
            return None if reported else "mail-cut-short"
        if self.head_in is not _Head.OVER:
            self.head_in = self.head_in.after(line)
        if b"\r" in line:
            self.cr = True
        if b"\0" in line:
            self.nul = True
        if line.startswith(b".") and not line.startswith(b".."):
            self.dots = True
        return None

    def send(self, line: bytes) -> str | None:
        """Process a line from the filter; return the rule that it breaks, or None."""
        if line == b".":
            self.filter_ended = True
            return None
        broken = None
        if self.head_out is not _Head.OVER:
            before, self.head_out = self.head_out, self.head_out.after(line)
            if before is not self.head_out is _Head.BROKEN is not self.head_in:
                broken = "mail-head-broken"
        if b"\r" in line and not self.cr:
            broken = "mail-cr"
        if b"\0" in line and not self.nul:
            broken = "mail-nul"
        if line.startswith(b".") and not line.startswith(b"..") and not self.dots:
            broken = "mail-dot-lost"
        return broken
