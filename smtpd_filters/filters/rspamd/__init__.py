"""filter-rspamd; its policy is in `policy`."""

from __future__ import annotations

from .policy import Rspamd, main

__all__ = ["Rspamd", "main"]
