"""Filters for OpenSMTPD's smtpd(8), and the framework they are written with.

What an author needs is here: subclass `Filter`, declare its settings with `option`, return
decisions from its handlers, and make ``run(YourFilter)`` the program.
"""

from __future__ import annotations

from . import startup  # noqa: F401  # first of all: see there
from .errors import ConfigError
from .filter import Filter
from .main import run
from .message import Headers, Message
from .protocol.decisions import (
    JUNK,
    MARKED,
    PROCEED,
    Answer,
    ContentAnswer,
    Decision,
    Disconnect,
    FinalAnswer,
    Junk,
    Marked,
    ParameterAnswer,
    Proceed,
    Reject,
    Rewrite,
    reply,
)
from .session import Session, Transaction
from .settings import Settings, option

__all__ = [
    "JUNK",
    "MARKED",
    "PROCEED",
    "Answer",
    "ConfigError",
    "ContentAnswer",
    "Decision",
    "Disconnect",
    "Filter",
    "FinalAnswer",
    "Headers",
    "Junk",
    "Marked",
    "Message",
    "ParameterAnswer",
    "Proceed",
    "Reject",
    "Rewrite",
    "Session",
    "Settings",
    "Transaction",
    "option",
    "reply",
    "run",
]
