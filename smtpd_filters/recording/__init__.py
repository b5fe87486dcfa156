"""Recordings of sessions: file format, writer, anonymiser, redaction of credentials, and replay."""

from __future__ import annotations

from .format import Recording

__all__ = ["Recording"]
