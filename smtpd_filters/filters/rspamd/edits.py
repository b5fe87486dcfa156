"""The edits of a message for Rspamd's reply, and the decision for smtpd.

The reference is the daemon's own milter: the edits are those that it requests of an MTA, in the
same order. For what smtpd can't do, an option decides about the message, and the log notes it.

Positions of added fields count from smtpd's own Received field: for a milter, the MTA's own field
is number 0, and 1 is the top of the message as the client sent it. smtpd passes that field to its
filters, below the mark of an earlier filter. So positions from 1 on are counted after it, and 0 is
the very top. For removals the daemon, which is sent the same lines, counts over all of them.

Invariants
----------
*Refuse first*: no field is edited before it is certain that the message is accepted.
*Header block intact*: whatever a name or a value contains, the header block stays valid: a field
with an invalid name is left out and noted, and a value is escaped
(`smtpd_filters.message.folding`).
*Earlier mark kept*: smtpd's mark for an earlier filter stays, unless a field from the daemon
replaces it.
"""

from __future__ import annotations

from smtpd_filters.message.folding import encoded_word
from smtpd_filters.protocol.decisions import MARKED, PROCEED, Reject
from smtpd_filters.protocol.decisions import reply as smtp_reply

from .reply import Reply, ReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from smtpd_filters.message import Field, Headers, Message
    from smtpd_filters.protocol.decisions import Marked, Proceed

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
#: The field with which smtpd marks a message, and by which mail.maildir(8) finds junk.
MARK = "X-Spam"
#: The fields of RFC 8617 section 4.1, in the order of their creation.
ARC_SET = ("arc-authentication-results", "arc-message-signature", "arc-seal")


#: Units of work for an edit (`pace`), and how many lines of the block, and characters of a value,
#: are one additional unit.
_EDIT, _LINES_PER_UNIT, _FOLDED_PER_UNIT = 20, 4, 4
#: Up to so many names to be removed, the block is searched for each; above, a set is faster.
_FEW = 4


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
        text = reply.message or REJECTED
        return Reject(smtp_reply(554, "5.7.1", text)).because(reply.summary())
    if outcome == "tempfail":
        text = reply.message or LATER
        return Reject(smtp_reply(451, "4.7.1", text)).because(reply.summary())
    for change in reply.envelope:
        reply.complain(f"not possible: {change}")
    if reply.envelope and options.envelope == "tempfail":
        # RFC 3463 section 3.4: X.3.5 is "System incorrectly configured".
        text = "The envelope of this message cannot be changed"
        return Reject(smtp_reply(451, "4.3.5", text)).because(reply.summary())
    if reply.block is not None:
        block, reply.block = reply.block, None
        message.replace_body(block)
    await _edit(reply, message.headers, outcome, options)
    marks = outcome == "junk" or (outcome == "rewrite" and reply.subject is not None)
    return (MARKED if marks else PROCEED).because(reply.summary())


def _outcome(reply: Reply, options: Options) -> str:
    actions = options.actions
    named = reply.on_reject if reply.action == "reject" and reply.on_reject else reply.action
    outcome = actions.get(named) or actions.get(reply.kind)
    if outcome is None:
        raise ReplyError(f"unknown action {reply.action[:80]!r}")
    return outcome


async def _edit(reply: Reply, headers: Headers, outcome: str, options: Options) -> None:
    adds = reply.additions or reply.dkim or reply.no_action or outcome != "accept"
    if not adds and not _may_have(headers, reply.removals):
        return  # the usual case: the block isn't parsed
    budget = _Budget(headers)
    await budget.spend()
    top = _Top(headers)
    for name, numbers in reply.removals.items():
        await budget.spend()
        _remove(reply, headers, top, name, numbers)
    top.settle()
    original = set(headers)
    for addition in _in_arc_order(reply.additions):
        name, value, order = addition.name, addition.value, addition.order
        await budget.spend(value)
        if order is None or order == -1:
            _try(reply, name, lambda: headers.append(name, value))  # noqa: B023  # called at once
        else:
            place = top.place(order)
            _try(reply, name, lambda: headers.insert(place, name, value))  # noqa: B023
    for number, signature in enumerate(reply.dkim, 1):
        await budget.spend(signature)
        headers.insert(top.place(number), "DKIM-Signature", signature)
    if reply.no_action:
        headers.append("X-Rspamd-Action", reply.action)
    elif outcome == "junk":
        await _mark(reply, headers, options, own=set(headers) - original, budget=budget)
    elif outcome == "rewrite" and reply.subject is not None:
        await budget.spend(reply.subject)
        # The daemon encodes it; encode it here if it has not.
        subject = reply.subject if reply.subject.isascii() else encoded_word(reply.subject)
        headers.replace("Subject", subject, add=True)


class _Budget:
    """The work of the edits of a header block (`pace`): each walks through it and folds a value."""

    __slots__ = ("_admit", "_walk")

    def __init__(self, headers: Headers) -> None:
        from smtpd_filters.runtime.pace import pace  # asyncio is already loaded

        self._admit = pace().admit
        self._walk = _EDIT + len(headers.lines()) // _LINES_PER_UNIT

    async def spend(self, value: str = "") -> None:
        """Wait until the pace admits the next edit."""
        await self._admit(self._walk + len(value) // _FOLDED_PER_UNIT)


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


def _may_have(headers: Headers, names: Collection[str]) -> bool:
    """Return whether a line may begin with one of these lower-case names, by the faster way."""
    if len(names) <= _FEW:
        block = b"\n".join([b"", *headers.lines()]).lower()
        return any(b"\n" + name.encode("utf-8", "replace") in block for name in names)
    present = {line.partition(b":")[0].rstrip().lower() for line in headers.lines()}
    return not present.isdisjoint(name.encode("utf-8", "replace") for name in names)


class _Top:
    """The top of the message, from which positions are counted."""

    __slots__ = ("_above", "_headers", "marks")

    def __init__(self, headers: Headers) -> None:
        self._headers = headers
        above = []
        for field in headers:
            above.append(field)
            if field.key == "received":
                break
        else:
            above = []
        self._above = above
        #: The number of fields that are an earlier filter's mark.
        self.marks = sum(field.key == MARK.lower() for field in above)

    def settle(self) -> None:
        """Update the top after the removals."""
        here = set(self._headers)
        self._above = [field for field in self._above if field in here]

    def place(self, order: int) -> int:
        """Return the position in the block for a milter's order."""
        if order < 0:
            # -2 is above the last field; a position above the top is the top.
            return max(len(self._headers) + order + 1, 0)
        return len(self._above) + order - 1 if order else 0


def _remove(reply: Reply, headers: Headers, top: _Top, name: str, numbers: list[int]) -> None:
    replaced = any(addition.name.lower() == name for addition in reply.additions)
    if name != MARK.lower() or not top.marks or replaced:
        headers.remove(name, numbers)
        return
    count = len(headers.get_all(name))
    chosen = set(range(1, count + 1)) if 0 in numbers else set()
    chosen.update(number if number > 0 else count + 1 + number for number in numbers if number)
    removable = [number for number in chosen if number > top.marks]
    if removable:
        headers.remove(name, removable)


async def _mark(
    reply: Reply, headers: Headers, options: Options, own: set[Field], budget: _Budget
) -> None:
    """Mark the message; `own` are the fields added by the daemon, which stay."""
    if options.headers == "extended":
        await budget.spend()
        _describe(reply, headers, own)
    made = []
    for name, value in reply.spam_headers:
        await budget.spend(value)
        made.append(_add_on_top(reply, headers, own, name or MARK, value))
    if not any(made):
        await budget.spend()
        _add_on_top(reply, headers, own, MARK, "Yes")


def _add_on_top(reply: Reply, headers: Headers, own: set[Field], name: str, value: str) -> bool:
    """Add a field at the top, unless the daemon has added the same; remove others of its name."""
    key = name.lower()
    present = any(field.key == key and field.value.lower() == value.lower() for field in own)
    if not present and not _try(reply, name, lambda: headers.prepend(name, value)):
        return False
    _remove_others(headers, own, name, kept=0 if present else 1)
    return True


def _remove_others(headers: Headers, own: set[Field], name: str, kept: int = 0) -> None:
    """Remove the fields of a name, except for the first `kept` ones and the daemon's."""
    named = headers.fields(name)
    numbers = [number for number, field in enumerate(named, 1) if field not in own]
    headers.remove(name, numbers[kept:])


def _describe(reply: Reply, headers: Headers, own: set[Field]) -> None:
    """Add score and symbols, in the format of the earlier filter-rspamd."""
    score, required = reply.score or 0.0, reply.required or 0.0
    tests = ", ".join(f"{name}={weight:.3f}" for name, weight in sorted(reply.symbols))
    status = f"Yes, score={score:.3f} required={required:.3f} tests=[{tests}]"
    for name, value in (
        ("X-Spam-Status", status),
        ("X-Spam-Score", f"{score:g} / {required:g}"),
    ):
        if any(field.key == name.lower() for field in own):
            _remove_others(headers, own, name)
        else:
            _add_on_top(reply, headers, own, name, value)


def _try(reply: Reply, name: str, edit: Callable[[], None]) -> bool:
    try:
        edit()
    except ValueError:
        reply.complain(f"not a header's name: {name[:80]!r}")
        return False
    return True
