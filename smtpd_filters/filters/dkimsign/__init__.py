"""The package of filter-dkimsign: read `policy` first."""

from __future__ import annotations

from .policy import Dkimsign, main

__all__ = ["Dkimsign", "main"]
