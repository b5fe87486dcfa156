"""The parts of a message for filters: attachments with all their names, types and sizes.

`read_parts` reads a message with `smtpd_filters.mime`, within the budget of the event loop.
"""

from __future__ import annotations

from .part import Member, Part, Parts
from .reader import read_parts
from .words import read_words

__all__ = ["Member", "Part", "Parts", "read_parts", "read_words"]
