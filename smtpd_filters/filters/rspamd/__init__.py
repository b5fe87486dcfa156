"""The package of filter-rspamd: read `policy` first."""

from __future__ import annotations

from .policy import Rspamd, main

__all__ = ["Rspamd", "main"]
