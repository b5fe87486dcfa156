"""The package of filter-policy, whose policy is in `policy`."""

from __future__ import annotations

from .policy import Policy, main

__all__ = ["Policy", "main"]
