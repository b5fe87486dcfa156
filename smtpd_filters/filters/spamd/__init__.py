"""The package of filter-spamd: read `policy` first."""

from __future__ import annotations

from .policy import Spamd, main

__all__ = ["Spamd", "main"]
