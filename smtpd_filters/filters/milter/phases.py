"""The phases that are registered: those at which one of the milters can refuse."""

from __future__ import annotations

from smtpd_filters.milter import vocabulary as v

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.milter import Agreement


def wanted(
    agreements: Iterable[Agreement | None], *, first: str, recipients: str, marks: bool
) -> set[str]:
    """Return the handlers that these milters need.

    An agreement is None for a milter that was not reached: it may need everything. `first` is the
    first phase at which milters are asked, `recipients` which of them (`--recipients`), and `marks`
    whether the message has to be marked when a milter fails.
    """
    phases: set[str] = set()
    for agreed in agreements:
        answered = {event for event in v.OMITTED if agreed is None or agreed.answers(event)}
        phases |= _before_mail(answered, first)
        if answered & {v.CONNECT, v.HELO, v.MAIL}:
            phases.add("mail_from")
        if v.RCPT in answered:
            phases.add("rcpt_to" if recipients == "asked" else "data")
        if v.DATA in answered:
            phases.add("data")
        phases.add("message" if marks or _needs_message(agreed) else "commit")
    if "message" in phases:
        phases.discard("commit")
    return phases


def _before_mail(answered: set[bytes], first: str) -> set[str]:
    if first == "connect" and v.CONNECT in answered:
        greeting = {"helo", "ehlo"} if v.HELO in answered else set()
        return {"connect"} | greeting
    if first != "mail-from" and answered & {v.CONNECT, v.HELO}:
        return {"helo", "ehlo"}
    return set()


def _needs_message(agreed: Agreement | None) -> bool:
    # What it wants of the envelope is logged, or refuses the message, with its other edits.
    if agreed is None or agreed.actions & (v.EDITS | v.ENVELOPE):
        return True
    return agreed.wants(v.HEADER) or agreed.wants(v.BODY)
