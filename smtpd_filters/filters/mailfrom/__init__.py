"""The package of filter-mailfrom, whose policy is in `policy`."""

from __future__ import annotations

from .policy import Mailfrom, main

__all__ = ["Mailfrom", "main"]
