"""Mail addresses and their domains in one form, however they are written."""

from __future__ import annotations

from .domains import canonical, folded, in_unicode, literal, readings
from .mailbox import Address, path, unquoted

__all__ = [
    "Address",
    "canonical",
    "folded",
    "in_unicode",
    "literal",
    "path",
    "readings",
    "unquoted",
]
