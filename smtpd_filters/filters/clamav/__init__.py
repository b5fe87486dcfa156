"""The package of filter-clamav: read `policy` first."""

from __future__ import annotations

from .policy import Clamav, main

__all__ = ["Clamav", "main"]
