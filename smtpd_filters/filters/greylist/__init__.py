"""The package of filter-greylist, whose policy is in `policy`."""

from __future__ import annotations

from .policy import Greylist, main

__all__ = ["Greylist", "main"]
