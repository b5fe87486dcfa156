"""Sessions on file: the format, a writer, an anonymiser, redaction of credentials, replay."""

from __future__ import annotations

from .format import Recording

__all__ = ["Recording"]
