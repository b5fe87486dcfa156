"""Filters in order, in one process: a chain of one or more is the policy of an engine."""

from __future__ import annotations

from .chain import Chain, close

__all__ = ["Chain", "close"]
