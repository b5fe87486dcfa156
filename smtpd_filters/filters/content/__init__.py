"""The package of filter-content, whose policy is in `policy`."""

from __future__ import annotations

from .policy import Content, main

__all__ = ["Content", "main"]
