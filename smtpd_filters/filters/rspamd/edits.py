"""The edits of a message for Rspamd's reply, and the decision for smtpd.

The reference is the daemon's own milter: the edits are those that it requests of an MTA, in the
same order. For what smtpd can't do, an option decides about the message, and the log notes it.

`smtpd_filters.scanning.edits` makes the edits and counts their positions.

Invariants
----------
*Refuse first*: no field is edited before it is certain that the message is accepted.
"""

from __future__ import annotations

from smtpd_filters.message.disguise import Name
from smtpd_filters.protocol.decisions import MARKED, PROCEED
from smtpd_filters.scanning.edits import MARK, Edits, may_have
from smtpd_filters.scanning.outcomes import ENVELOPE, refusal

from .reply import Reply, ReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from smtpd_filters.message import Message
    from smtpd_filters.protocol.decisions import Marked, Proceed, Reject

    from .reply import Addition

#: The outcomes of an action.
OUTCOMES = ("accept", "junk", "rewrite", "tempfail", "reject")
#: smtpd can neither hold mail nor drop accepted mail. Mail to be discarded must not be delivered,
#: so it is refused; mail to be quarantined must not be lost, so it is marked.
DEFAULTS = {
    "no action": "accept",
    "greylist": "accept",
    "add header": "junk",
    "rewrite subject": "rewrite",
    "soft reject": "tempfail",
    "reject": "reject",
    "discard": "reject",
    "quarantine": "junk",
}
#: The texts of refusals if the daemon gives none: those of its milter.
REJECTED = "Spam message rejected"
LATER = "Try again later"
#: The fields of RFC 8617 section 4.1, in the order of their creation.
ARC_SET = ("arc-authentication-results", "arc-message-signature", "arc-seal")
#: The field with the action of a message that the daemon wants no action for.
ACTION = "X-Rspamd-Action"
_ACTIONS, _MARKS = Name(ACTION), Name(MARK)
_DESCRIPTIONS = (Name("X-Spam-Status"), Name("X-Spam-Score"))
#: All fields that the filter adds by itself.
FIELDS = (_ACTIONS, _MARKS, *_DESCRIPTIONS)


class Options:
    """The settings for applying replies."""

    __slots__ = ("actions", "envelope", "headers")

    def __init__(
        self,
        *,
        actions: Mapping[str, str] | None = None,
        envelope: str = "log",
        headers: str = "extended",
    ) -> None:
        """Set the options.

        actions: outcomes by actions, each one of OUTCOMES; they override DEFAULTS.
        envelope: what to do if the daemon changes sender or recipients, "log" or "tempfail".
        headers: the fields of a marked message, the mark alone ("minimal") or score and symbols as
        well ("extended").

        Raises ValueError for an invalid outcome.
        """
        self.actions = DEFAULTS | dict(actions or {})
        for name, outcome in self.actions.items():
            if outcome not in OUTCOMES:
                raise ValueError(f"{name}: expected one of {', '.join(OUTCOMES)}, not {outcome!r}")
        self.envelope = envelope
        self.headers = headers


async def apply(reply: Reply, message: Message, options: Options) -> Proceed | Marked | Reject:
    """Apply the daemon's reply to the message; return the decision with its reason.

    Each edit waits for its own share of the pace (`pace`). An unused new body is discarded.

    Raises ReplyError for an unknown action, and SpoolError if a new body can't be stored; no edit
    is sent then.
    """
    try:
        return await _apply(reply, message, options)
    finally:
        if reply.block is not None:
            reply.block.discard()


async def _apply(reply: Reply, message: Message, options: Options) -> Proceed | Marked | Reject:
    outcome = _outcome(reply, options)
    if reply.no_action:
        outcome = "accept"
    if outcome == "reject":
        return refusal(outcome, reply.message or REJECTED).because(reply.summary())
    if outcome == "tempfail":
        return refusal(outcome, reply.message or LATER).because(reply.summary())
    for change in reply.envelope:
        reply.complain(f"not possible: {change}")
    if reply.envelope and options.envelope == "tempfail":
        return ENVELOPE.because(reply.summary())
    if reply.block is not None:
        block, reply.block = reply.block, None
        message.replace_body(block)
    await _edit(reply, message, outcome, options)
    marks = outcome == "junk" or (outcome == "rewrite" and reply.subject is not None)
    return (MARKED if marks else PROCEED).because(reply.summary())


def _outcome(reply: Reply, options: Options) -> str:
    actions = options.actions
    named = reply.on_reject if reply.action == "reject" and reply.on_reject else reply.action
    outcome = actions.get(named) or actions.get(reply.kind)
    if outcome is None:
        raise ReplyError(f"unknown action {reply.action[:80]!r}")
    return outcome


async def _edit(reply: Reply, message: Message, outcome: str, options: Options) -> None:
    headers = message.headers
    adds = reply.additions or reply.dkim or reply.no_action or outcome != "accept"
    if not adds and not may_have(headers, reply.removals):
        return  # the usual case: the block isn't parsed
    edits = Edits(headers, reply.complain)
    added = {addition.name.lower() for addition in reply.additions}
    for name, numbers in reply.removals.items():
        await edits.remove(name, numbers, replaced=name in added)
    for own in _own_fields(reply, outcome, options):
        await edits.remove_foreign(own)
    await edits.settle()
    for addition in _in_arc_order(reply.additions):
        await edits.add(addition.name, addition.value, addition.order)
    for number, signature in enumerate(reply.dkim, 1):
        await edits.add("DKIM-Signature", signature, number)
    if reply.no_action:
        headers.append(ACTION, reply.action)
    elif outcome == "junk":
        message.begin_mark()
        if options.headers == "extended":
            await edits.describe(reply.score or 0.0, reply.required or 0.0, reply.symbols)
        await edits.mark(reply.spam_headers)
    elif outcome == "rewrite" and reply.subject is not None:
        message.begin_mark()
        # The daemon encodes it; it is encoded here if it has not.
        await edits.replace_subject(reply.subject)


def _own_fields(reply: Reply, outcome: str, options: Options) -> tuple[Name, ...]:
    """Return the fields that are about to be added, of which the client may have sent forged ones.

    Of other messages the daemon has these fields removed, if it wants so.
    """
    if reply.no_action:
        return (_ACTIONS,)
    if outcome != "junk":
        return ()
    return (_MARKS, *_DESCRIPTIONS) if options.headers == "extended" else (_MARKS,)


def _in_arc_order(additions: list[Addition]) -> list[Addition]:
    """Sort an ARC set at a single position into the order of creation.

    The seal is then on top and the results at the bottom; some validators accept no other order.
    The daemon intends the same, but up to 3.4 the keys of its objects are unordered.
    """
    at = [number for number, each in enumerate(additions) if each.name.lower() in ARC_SET]
    found = [additions[number] for number in at]
    if sorted(each.name.lower() for each in found) != sorted(ARC_SET):
        return additions
    if len({each.order for each in found}) > 1:
        return additions
    found.sort(key=lambda each: ARC_SET.index(each.name.lower()))
    if found[0].order is None or found[0].order < 0:
        found.reverse()  # of fields added at the bottom, the first is above the others
    ordered = list(additions)
    for number, each in zip(at, found, strict=True):
        ordered[number] = each
    return ordered
