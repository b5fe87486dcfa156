"""The package of filter-milter: read `policy` first."""

from __future__ import annotations

from .policy import Milter, main

__all__ = ["Milter", "main"]
