"""Filters for OpenSMTPD's smtpd(8), and the framework they are written with.

What an author needs is here: subclass `Filter`, declare its settings with `option`, return
decisions from its handlers, and make ``run(YourFilter)`` the program.
"""

from __future__ import annotations

from . import startup  # noqa: F401  # first of all: see there
from .errors import ConfigError
from .filter import Filter
from .message import Headers, Message
from .program import run
from .protocol.decisions import (
    JUNK,
    PROCEED,
    Answer,
    Decision,
    Disconnect,
    FinalAnswer,
    Junk,
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
    "PROCEED",
    "Answer",
    "ConfigError",
    "Decision",
    "Disconnect",
    "Filter",
    "FinalAnswer",
    "Headers",
    "Junk",
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
