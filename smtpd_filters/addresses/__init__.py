"""Parsing of mail addresses, and the canonical form of their domains."""

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
