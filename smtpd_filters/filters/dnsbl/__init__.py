"""The package of filter-dnsbl, whose policy is in `policy`."""

from __future__ import annotations

from .policy import Dnsbl, main

__all__ = ["Dnsbl", "main"]
