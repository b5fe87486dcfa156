"""Mail addresses and their domains in one form, however they are written."""

from __future__ import annotations

from smtpd_filters.addresses.domains import canonical, folded, in_unicode, literal, readings
from smtpd_filters.addresses.mailbox import Address, path, unquoted

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
