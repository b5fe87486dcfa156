"""Rows of the decisions of handlers, as `wire` has them."""

from __future__ import annotations

from smtpd_filters.protocol.decisions import (
    PROCEED,
    Decision,
    Disconnect,
    Marked,
    Points,
    Reject,
    Rewrite,
)
from smtpd_filters.runtime.log import EDIT
from smtpd_filters.session import bare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .passed import Source
    from .wire import Row

#: Characters of an address, and of any other text.
MAX_ADDRESS, MAX_TEXT = 320, 200
#: The phase whose argument is a credential, which replies and rewritten arguments may repeat.
CONFIDENTIAL = "auth"
#: Decisions on a message of which an edit is a part, or that make edits vain.
_WITH_OR_WITHOUT_EDITS = frozenset({Disconnect, Marked, Reject})


def decision_row(
    source: Source, decision: Decision, took: float, failure: str, *, edited: bool
) -> Row:
    """Return the row of a decision, but for its time: see `Collector.decided`."""
    flags = ("d" if source.dry else "") + ("f" if failure else "")
    points = 0
    verb, reply = decision.verb, ""
    setting = "--on-error" if failure else ""
    if type(decision) is Points:
        verb, points = "points", decision.thousandths
        flags += "t" if decision.temporary else ""
        setting = setting or ("score" if decision.instead else "")
    elif source.phase != CONFIDENTIAL:
        reply = clip(decision.text)
        if type(decision) is Rewrite:
            reply = clip(bare(decision.text), MAX_ADDRESS)
    if edited and verb == "proceed":
        verb = EDIT
    elif edited and type(decision) not in _WITH_OR_WITHOUT_EDITS:
        flags += "e"
    setting = setting or setting_of(source.settings, decision)
    reason = clip(failure or decision.reason)
    return [
        source.filter, source.phase, verb, 0, int(took * 1e6), 1, 0,
        reason, reply, "", points, flags, setting,
    ]  # fmt: skip


def setting_of(settings: object, decision: Decision) -> str:
    """Return the flag whose value is this decision; "" if none or several have it.

    Of several the one that is given counts, rather than those with their defaults.
    """
    if decision is PROCEED:
        return ""
    found = [
        name
        for name, value in getattr(settings, "__dict__", {}).items()
        if value is not PROCEED
        and (
            value == decision.verb or (isinstance(value, Decision) and value.wire == decision.wire)
        )
    ]
    if len(found) > 1:
        found = [name for name in found if name in getattr(settings, "given", ())]
    return f"--{found[0].replace('_', '-')}" if len(found) == 1 else ""


def clip(text: str, limit: int = MAX_TEXT) -> str:
    """Return a text that is cut to at most so many characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
