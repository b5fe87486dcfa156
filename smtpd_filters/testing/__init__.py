"""The test kit for authors of filters, with its guide in `smtpd_filters.testing.conversation`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smtpd_filters.oracle import Oracle
    from smtpd_filters.recording.replay import Replay, Step
    from smtpd_filters.recording.verdict import Verdict

    from .client import Client, Delivery
    from .conversation import Conversation, play
    from .dns import DNSServer
    from .http import HTTPStub

__all__ = [
    "Client",
    "Conversation",
    "DNSServer",
    "Delivery",
    "HTTPStub",
    "Oracle",
    "Replay",
    "Step",
    "Verdict",
    "play",
]

_HOME = {
    **dict.fromkeys(("Client", "Delivery"), ".client"),
    **dict.fromkeys(("Conversation", "play"), ".conversation"),
    **dict.fromkeys(("Replay", "Step"), "smtpd_filters.recording.replay"),
    "DNSServer": ".dns",
    "HTTPStub": ".http",
    "Oracle": "smtpd_filters.oracle",
    "Verdict": "smtpd_filters.recording.verdict",
}


def __dir__() -> list[str]:
    # pydoc and completion list the names that are imported at first use as well.
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    # Imported on first use: a test without look-ups needs neither dnspython nor a server's modules.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # on first use

    return getattr(import_module(_HOME[name], __name__), name)
