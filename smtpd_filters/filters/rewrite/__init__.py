"""The package of filter-rewrite, whose policy is in `policy`."""

from __future__ import annotations

from .policy import Rewriter, main

__all__ = ["Rewriter", "main"]
