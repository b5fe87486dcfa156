"""Fates of messages: what becomes of each in a session that was played to a chain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd_filters.recording.verdict import MARK
from smtpd_filters.session import text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.recording.replay import Step
    from smtpd_filters.recording.verdict import Verdict

#: Phases of a session at which a refusal ends what follows.
_GREETING = frozenset({"helo", "ehlo"})


@dataclass(slots=True)
class Fate:
    """What becomes of one message, or of a session without one."""

    #: None for a session without a message.
    sender: str | None = None
    #: The recipients, and for each that was asked about the reply that refuses it, or "".
    addresses: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    #: As in the journal: accepted, junk, deferred, refused, abandoned or none.
    outcome: str = "none"
    #: Where it was refused, and the reply.
    phase: str = ""
    reply: str = ""
    #: The message as it was accepted; None if it doesn't come so far.
    lines: tuple[bytes, ...] | None = None
    marked: bool = False

    def refuse(self, verdict: Verdict) -> None:
        """Note a refusal."""
        self.outcome = "deferred" if verdict.reply.startswith("4") else "refused"
        self.phase, self.reply = verdict.phase, verdict.reply


def fates(steps: Iterable[Step]) -> list[Fate]:
    """Return the fates of the messages of one session, at least one."""
    session = Fate()
    found: list[Fate] = []
    now: Fate | None = None
    for step in steps:
        verdict = step.verdict
        if step.phase == "mail-from":
            now = Fate(text(step.argument), outcome="abandoned", marked=session.marked)
            found.append(now)
            if verdict is None and session.phase:
                now.outcome, now.phase, now.reply = session.outcome, session.phase, session.reply
        if step.phase in _GREETING or step.phase == "rset":
            now = None
        if step.phase == "rcpt-to" and now is not None:
            now.addresses.append(text(step.argument))
        if verdict is None:
            continue
        if now is None:
            _in_session(session, verdict)
        else:
            _in_message(now, step, verdict)
    return found or [session]


def _in_session(session: Fate, verdict: Verdict) -> None:
    session.marked |= verdict.verb == "junk"
    if verdict.refused and (verdict.closes or verdict.phase in _GREETING | {"connect"}):
        session.refuse(verdict)
    elif verdict.phase in _GREETING and session.phase in _GREETING:
        session.outcome, session.phase, session.reply = "none", "", ""


def _in_message(now: Fate, step: Step, verdict: Verdict) -> None:
    now.marked |= verdict.verb == "junk"
    if step.phase == "data-line":
        now.lines = verdict.lines
        now.marked |= _is_marked(verdict.lines or ())
    elif step.phase == "rcpt-to":
        now.replies.append(verdict.reply)
        if all(now.replies):
            now.refuse(verdict)
        else:
            now.outcome, now.phase, now.reply = "abandoned", "", ""
    elif verdict.refused and step.phase in {"mail-from", "data", "commit"}:
        now.refuse(verdict)
        now.lines = None
    elif step.phase == "commit":
        now.outcome = "junk" if now.marked else "accepted"


def _is_marked(lines: Iterable[bytes]) -> bool:
    """Return whether the header of a message has smtpd's mark."""
    for line in lines:
        if not line:
            return False
        if line.lower() == MARK.lower():
            return True
    return False
