"""Filters in order, in one process: a chain of one or more is the policy of an engine.

`chain` has the class, `calls` the calls of handlers that it inherits; `registration` has what is
registered with smtpd, and `lifecycle` what else happens to filters from their start to their end.
"""

from __future__ import annotations

from .chain import Chain
from .lifecycle import close

__all__ = ["Chain", "close"]
