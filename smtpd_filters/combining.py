"""The rules by which the decisions of a chain's filters combine, and where marks are made.

Invariants
----------
*Forged fields go*: when a filter's edits of a message are undone, so is its removal of fields in
its name. If the message passes, `scrub` removes them again. They can't go before the handler is
called: a signature may cover one, and a scanner reads the message as it came.
*Marks go where they belong*: smtpd takes junk at `mail-from`, where there is no transaction yet,
for the whole connection, and it takes only one of junk and rewrite. So a mark may be kept
(`Session.mark`) and made at the next phase that can make it.
"""

from __future__ import annotations

from .guard import FAILED, REFUSALS, Guard
from .protocol.decisions import JUNK, PROCEED, Decision, Junk, Proceed, Rewrite
from .protocol.vocabulary import HANDLERS, PHASES
from .session import bare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .message import Headers, Message
    from .protocol.vocabulary import Phase
    from .session import Session

MAIL_FROM = PHASES["mail-from"]
#: The mark that smtpd itself makes for junk, and by which `maildir junk` sorts.
MARK = ("X-Spam", "Yes")
#: The mark as smtpd and `prepend` write it. `maildir junk` compares the whole line, so that a field
#: which is folded, or has another number of blanks, is not a mark.
MARK_LINES = (b"X-Spam: Yes",)


def otherwise(guards: Sequence[Guard]) -> Decision:
    """Return the strictest fallback of these handlers, for when our own code fails."""
    for guard in guards:
        if guard.fallback.verb in REFUSALS and not guard.dry:
            return guard.fallback
    return PROCEED


def combined(phase: Phase, session: Session, former: Decision, decision: Decision) -> Decision:
    """Combine the decisions of two filters."""
    if type(decision) is Proceed:
        return former
    if {type(decision), type(former)} == {Junk, Rewrite}:
        session.mark = phase.name
        return former if type(former) is Rewrite else decision
    return decision


def marked(phase: Phase, session: Session, decision: Decision) -> Decision:
    """Keep a mark that can't be made at this phase, or make one that was kept."""
    if phase is MAIL_FROM and type(decision) is Junk:
        session.mark = phase.name
        return PROCEED.because(decision.reason)
    if session.mark and session.mark != phase.name and Junk in phase.legal:
        if type(decision) is Proceed:
            decision = JUNK
        if type(decision) is Junk:
            session.mark = ""
    return decision


def may_keep_a_mark(handler: str, guards: Sequence[Guard]) -> bool:
    """Return whether a mark of these handlers may have to be made at a later phase."""
    marking = any(guard.may_mark for guard in guards)
    rewriting = any(Rewrite in guard.legal for guard in guards)
    return marking and (HANDLERS.get(handler) is MAIL_FROM or (rewriting and len(guards) > 1))


def handed_on(phase: Phase, decision: Decision) -> str:
    """Return a rewritten parameter as smtpd would have given it to the next filter."""
    return bare(decision.text) if phase.argument == "address" else decision.text


def changes(edited: Headers | Message, before: Any) -> Callable[[], bool]:
    """Return a function: does a message differ from a snapshot? It never raises."""

    def differs() -> bool:
        try:
            return edited.differs(before)
        except BaseException:  # noqa: BLE001  # as `guard`; `judged` looks again
            return False

    return differs


def judged(
    session: Session, guard: Guard, edited: Headers | Message, before: Any, decision: Decision
) -> tuple[Decision, bool]:
    """Apply a filter's decision on a message; return it, and whether the chain ends there."""
    headers = edited.headers if hasattr(edited, "headers") else edited
    if headers.changed and decision.reason is not FAILED and not _sound(headers):
        decision = guard.defect(session, error="left an invalid header block")
    if decision.reason is FAILED or guard.dry:
        edited.restore(before)
        if decision.verb not in REFUSALS:
            scrub(session, guard, headers)
    if type(decision) is Junk:
        session.mark = guard.phase
    elif decision.verb in REFUSALS:
        # The mark of other filters is of no use for a refused message.
        session.mark = ""
        return decision, True
    return decision, False


def scrub(session: Session, guard: Guard, headers: Headers) -> None:
    """Remove a client's copies of a filter's own fields from a message that it hasn't judged."""
    before = headers.snapshot()
    guard.scrub(session, headers)
    if headers.changed and not _sound(headers):
        headers.restore(before)
        guard.scrub_failed(session, "left an invalid header block")


def _sound(headers: Headers) -> bool:
    """Return whether a header block still consists of lines after a filter has edited it."""
    try:
        text: object = headers.text()
        if not isinstance(text, bytes):  # other types lack methods that are called later
            return False
        # An empty line would end it.
        return text == b"" or (text[:1] == b"\n" != text[-1:] and b"\n\n" not in text)
    except BaseException:  # noqa: BLE001  # failures are a filter's own
        return False


def made_mark(session: Session, headers: Headers) -> Decision:
    """Add the mark that was kept to the header."""
    if session.mark:
        session.mark = ""
        first = next(headers.each(MARK[0]), None)
        if first is None or first.lines != MARK_LINES:
            headers.prepend(*MARK)
    return PROCEED
