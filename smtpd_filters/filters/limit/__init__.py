"""The package of filter-limit, whose policy is in `policy`."""

from __future__ import annotations

from .policy import Limit, main

__all__ = ["Limit", "main"]
