"""The package of filter-tls, whose policy is in `policy`."""

from __future__ import annotations

from .policy import Tls, main

__all__ = ["Tls", "main"]
