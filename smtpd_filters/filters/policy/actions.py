"""The actions of a policy server, as access(5) of Postfix defines them, without I/O.

`parse` reads the text of a reply; `decide` turns the action into a decision for smtpd.

Invariants
----------
*Nothing is lost silently*: what smtpd can't do is an outcome that the operator has chosen
(`--action`), or a failure, which `--on-error` decides.
*Codes agree*: a reply has an enhanced status code, of its own class (RFC 2034 section 4).
"""

from __future__ import annotations

import re

from smtpd_filters.errors import UnavailableError
from smtpd_filters.protocol.decisions import (
    JUNK,
    PROCEED,
    Disconnect,
    Junk,
    Proceed,
    Reject,
    Rewrite,
    reply,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

#: Actions that accept. OK ends Postfix's list of restrictions; smtpd has none.
ACCEPTING = frozenset({"OK", "DUNNO", "PERMIT", "RELAY", "PREPEND"})
#: Actions that accept, and that the log is to have.
NOTED = frozenset({"WARN", "INFO", "DEFER_IF_REJECT"})
#: Codes of the replies that refuse, by action, with the enhanced status code and the text that
#: they have if the server gives none.
REJECTED = ("5.7.1", "Access denied")
DEFERRED = ("4.7.1", "Try again later")
REFUSING = {
    "REJECT": (554, *REJECTED),
    "DEFER": (450, *DEFERRED),
    "DEFER_IF_PERMIT": (450, *DEFERRED),
}
#: The outcomes of actions that smtpd doesn't have, by `--action`.
OUTCOMES = ("proceed", "junk", "tempfail", "reject", "rewrite", "fail")
DEFAULTS = {
    "HOLD": "junk",
    "DISCARD": "reject",
    "REDIRECT": "rewrite",
    "FILTER": "fail",
    "BCC": "fail",
}
PREPEND = "PREPEND"
# RFC 3463 section 3.6: X.3.5 is "System incorrectly configured", Postfix's code for a policy server
# that fails.
MISCONFIGURED = "4.3.5"
_BLANKS = re.compile(r"[ \t]++")
_CODE = re.compile(r"[45][0-9][0-9]")
_STATUS = re.compile(r"([245])(\.[0-9]{1,3}\.[0-9]{1,3})(?: +|$)")
#: Codes after which the connection is closed: access(5).
_CLOSING = frozenset({421, 521})
#: RFC 5322 section 2.2, without the colon.
_FIELD = re.compile(r"([!-9;-~]{1,120}):[ \t]*(.*)", re.DOTALL)


class Action:
    """An action: its `name` in capitals, and its `text`; a code is the name of its action."""

    __slots__ = ("name", "text")

    def __init__(self, name: str, text: str = "") -> None:
        self.name = name
        self.text = text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Action):
            return NotImplemented
        return (self.name, self.text) == (other.name, other.text)

    def __hash__(self) -> int:
        return hash((self.name, self.text))

    def __repr__(self) -> str:
        return f"Action({self.name!r}, {self.text!r})"

    def __str__(self) -> str:
        return f"{self.name} {self.text}".rstrip()


def parse(text: str) -> Action:
    """Return the action in a reply; names in any letter case. Never raises."""
    word, *rest = _BLANKS.split(text.strip(" \t"), maxsplit=1)
    if word.isascii() and word.isdigit() and not rest:
        # Postfix: "All-numeric result probably means OK - some out-of-band authentication
        # mechanism uses this as time stamp".
        return Action("OK")
    return Action(word.upper(), *rest)


def field(action: Action) -> tuple[str, str] | None:
    """Return the name and the value of the field of a PREPEND, or None if it is not a field."""
    if found := _FIELD.fullmatch(action.text):
        return found[1], found[2].rstrip(" \t")
    return None


def decide(
    action: Action, phase: str, outcomes: Mapping[str, str] = DEFAULTS
) -> Proceed | Junk | Reject | Disconnect | Rewrite:
    """Return the decision of an action at the handler `phase`, with the action as its reason.

    PREPEND is a proceed: the caller adds its field. `outcomes` are those of the actions in
    `DEFAULTS`. Raises UnavailableError for an action that fails, or is not known.
    """
    name = action.name
    if name in ACCEPTING or name in NOTED:
        return PROCEED.because(str(action))
    if name in REFUSING:
        return _refusal(*REFUSING[name], action)
    if _CODE.fullmatch(name):
        return _refusal(int(name), *(REJECTED if name.startswith("5") else DEFERRED), action)
    return _chosen(action, phase, outcomes.get(name, "fail"))


def _chosen(
    action: Action, phase: str, outcome: str
) -> Proceed | Junk | Reject | Disconnect | Rewrite:
    """Return the decision of an action that smtpd doesn't have."""
    match outcome:
        case "proceed":
            return PROCEED.because(str(action))
        case "junk":
            return JUNK.because(str(action))
        case "tempfail" | "reject":
            refusal = REFUSING["DEFER" if outcome == "tempfail" else "REJECT"]
            return _refusal(*refusal, Action(action.name)).because(str(action))
        case "rewrite" if phase == "rcpt_to" and _may_redirect(action.text):
            return Rewrite(f"<{action.text}>").because(str(action))
    known = action.name if action.name in DEFAULTS else ascii(action.name[:40])
    raise UnavailableError(f"action {known} is not possible", MISCONFIGURED)


def _refusal(code: int, enhanced: str, otherwise: str, action: Action) -> Reject | Disconnect:
    """Return a refusal with the text of an action."""
    text = action.text
    if found := _STATUS.match(text):
        # As Postfix does: the class is that of the code.
        enhanced, text = f"{code // 100}{found[2]}", text[found.end() :]
    line = reply(code, enhanced, text or otherwise)
    decision = Disconnect(line) if code in _CLOSING else Reject(line)
    return decision.because(str(action))


def _may_redirect(address: str) -> bool:
    """Return whether a recipient can be replaced by this address, as it stands in a command."""
    local, at, domain = address.rpartition("@")
    return bool(at and local and domain and len(address) <= 320) and not re.search(
        r"[\x00-\x20<>\x7f-\U0010ffff]", address
    )
