"""Filters for OpenSMTPD's smtpd(8), and the framework they are written with.

What every author needs is here: subclass `Filter`, declare its settings with `option`, return
decisions from its handlers, and make `run(YourFilter)` the program. What only some filters need is
imported when it is first used.

Further public names are in `settings` (the kinds of options), `tables`, `addresses`,
`checks.exemptions` (`--exempt`), `parts` (`Member`) and `testing` (the test kit).
"""

from __future__ import annotations

from . import startup  # noqa: F401  # first of all: see there
from .errors import ConfigError, UnavailableError
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
    Points,
    Proceed,
    Reject,
    Rewrite,
    reply,
)
from .settings import Settings, option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .checks.author.mailboxes import Mailbox, Mailboxes, read_addresses
    from .checks.subject import tag_subject
    from .filter import Filter, Registration
    from .lookups.dns import Resolver
    from .lookups.http import Service
    from .lookups.outcome import MX, Found, NotFound, Outcome, Unavailable
    from .main import run
    from .message import Headers, Message
    from .own_field import OwnField
    from .parts import Part, Parts, read_parts, read_words
    from .runtime.probes import Probe
    from .sandbox import Needs
    from .session import Session, Transaction
    from .stores import (
        Add,
        Count,
        Delete,
        Entry,
        Get,
        Join,
        Joined,
        Leave,
        Put,
        Replace,
        Store,
        Take,
        join,
        split,
    )

#: Names that only some processes use, and where they are: filter-supervise is no filter itself.
_LAZY = {
    **dict.fromkeys(("Filter", "Registration"), "filter"),
    "Needs": "sandbox",
    "OwnField": "own_field",
    "Resolver": "lookups.dns",
    **dict.fromkeys(("MX", "Found", "NotFound", "Outcome", "Unavailable"), "lookups.outcome"),
    **dict.fromkeys(("Headers", "Message"), "message"),
    **dict.fromkeys(("Mailbox", "Mailboxes", "read_addresses"), "checks.author.mailboxes"),
    **dict.fromkeys(("Part", "Parts", "read_parts", "read_words"), "parts"),
    "Probe": "runtime.probes",
    "Service": "lookups.http",
    **dict.fromkeys(("Session", "Transaction"), "session"),
    **dict.fromkeys(
        (
            *("Add", "Count", "Delete", "Entry", "Get", "Join", "Joined", "Leave", "Put"),
            *("Replace", "Store", "Take", "join", "split"),
        ),
        "stores",
    ),
    "run": "main",
    "tag_subject": "checks.subject",
}


def __dir__() -> list[str]:
    # pydoc and completion list the names that are imported at first use as well.
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "JUNK",
    "MARKED",
    "MX",
    "PROCEED",
    "Add",
    "Answer",
    "ConfigError",
    "ContentAnswer",
    "Count",
    "Decision",
    "Delete",
    "Disconnect",
    "Entry",
    "Filter",
    "FinalAnswer",
    "Found",
    "Get",
    "Headers",
    "Join",
    "Joined",
    "Junk",
    "Leave",
    "Mailbox",
    "Mailboxes",
    "Marked",
    "Message",
    "Needs",
    "NotFound",
    "Outcome",
    "OwnField",
    "ParameterAnswer",
    "Part",
    "Parts",
    "Points",
    "Probe",
    "Proceed",
    "Put",
    "Registration",
    "Reject",
    "Replace",
    "Resolver",
    "Rewrite",
    "Service",
    "Session",
    "Settings",
    "Store",
    "Take",
    "Transaction",
    "Unavailable",
    "UnavailableError",
    "join",
    "option",
    "read_addresses",
    "read_parts",
    "read_words",
    "reply",
    "run",
    "split",
    "tag_subject",
]
