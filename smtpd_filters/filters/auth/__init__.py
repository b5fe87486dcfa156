"""The package of filter-auth, whose policy is in `policy`."""

from __future__ import annotations

from .policy import Auth, main

__all__ = ["Auth", "main"]
