"""A recorded session, adapted to the decisions of another filter.

It models smtpd: which phases a session reaches after a refusal, and which reports smtpd sends in
place of the recorded ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from smtpd_filters.protocol.events import Line, Result
from smtpd_filters.recording.verdict import (
    MARK,
    RESPONSE_NAMES,
    Verdict,
    failure,
    message_verdict,
    response,
    verdict,
    wire,
)

if TYPE_CHECKING:
    from smtpd_filters.protocol.events import Report

    #: A report's name and values.
    NamedValues = tuple[str, tuple[bytes, ...]]


@dataclass(slots=True, eq=False)
class Step:
    """The next output of smtpd, and whether it requires an answer.

    `phase` is that of a request, "data-line" for the end of a message, and empty if there is
    nothing to decide. `data` is empty if there is nothing to write.
    """

    #: The session's id.
    session: bytes
    phase: str = ""
    #: The parameter of the request.
    argument: bytes = b""
    data: bytes = b""
    #: The verdict in the recording; None where it has none.
    recorded: Verdict | None = None
    #: None until the filter has answered; it stays None if the phase isn't reached.
    verdict: Verdict | None = None
    #: Whether the filter's answer is pending.
    waiting: bool = False

    @property
    def differs(self) -> bool:
        """Whether the filter's verdict differs from the recorded one; False if there is none."""
        return bool(self.phase) and self.recorded is not None and self.verdict != self.recorded


#: Where a session is stuck after a refusal at this phase.
_STUCK_AFTER = {"helo": "greeting", "ehlo": "greeting", "mail-from": "mail-from", "data": "data"}
#: The phases that smtpd doesn't reach while a session is stuck.
_STUCK: dict[str, frozenset[str]] = {
    "": frozenset(),
    "greeting": frozenset({"auth", "mail-from", "rcpt-to", "data", "data-line", "commit"}),
    "mail-from": frozenset({"rcpt-to", "data", "data-line", "commit"}),
    "data": frozenset({"data-line", "commit"}),
}
#: The phases that free a stuck session.
_FREES = {
    "helo": ("greeting",),
    "ehlo": ("greeting",),
    "mail-from": ("mail-from", "data"),
    "data": ("data",),
}
#: The phases whose refusal suppresses a report.
_REFUSED_BY = {
    "link-identify": ("helo", "ehlo"),
    "link-tls": ("starttls",),
    "link-auth": ("auth",),
}
#: A greeting replaces the other one.
_REPLACES = {"helo": ("ehlo",), "ehlo": ("helo",)}


class Course:
    """The state of a recorded session during the replay."""

    def __init__(self, session: bytes) -> None:
        self.session = session
        #: Whether the connection is closed.
        self.gone = False
        #: Where the session is stuck, a key of `_STUCK`: "" if it isn't.
        self.stuck = ""
        #: The transaction's message id; empty outside a transaction.
        self.msgid = b""
        #: The verdicts that later reports depend on, by phase.
        self.last: dict[str, Verdict] = {}
        #: The number of accepted recipients of the transaction.
        self.recipients = 0
        #: Junk decisions: "now" (this filter) or "then" (recorded), and whether they apply to the
        #: transaction only.
        self.junk: set[tuple[str, bool]] = set()
        #: The step whose answer is next.
        self.step = Step(session)
        #: The lines of the message so far, as smtpd sent them and as the filter returned them.
        self.sent: list[bytes] = []
        self.returned: list[bytes] = []

    def take(self, answer: Result | Line) -> None:
        """Process an answer of the filter."""
        step = self.step
        if isinstance(answer, Result):
            if step.waiting and step.phase != "data-line":
                step.verdict = verdict(step.phase, step.argument, answer)
                step.waiting = False
        elif answer.line != b".":
            self.returned.append(answer.line)
        elif step.waiting and step.phase == "data-line":
            step.verdict = message_verdict(self.sent, self.returned)
            step.waiting = False

    def reaches(self, phase: str) -> bool:
        """Whether the session reaches this phase."""
        if self.gone:
            return False
        if self.stuck in _FREES.get(phase, ()):
            self.stuck = ""
        if phase == "data" and "rcpt-to" in self.last and not self.recipients:
            self.stuck = "data"  # no recipient was accepted
            return False
        return phase not in _STUCK[self.stuck]

    def apply_verdict(self, step: Step) -> bool:
        """Apply a verdict; return whether smtpd closes the connection, unlike in the recording."""
        decided = step.verdict
        if decided is None:
            return False
        in_transaction = bool(self.msgid)
        for when, one in (("now", decided), ("then", step.recorded)):
            if one is not None and one.verb == "junk":
                self.junk.add((when, in_transaction))
        phase = step.phase
        for former in _REPLACES.get(phase, ()):
            self.last.pop(former, None)
        self.last[phase] = decided
        if not decided.refused:
            self.recipients += phase == "rcpt-to"
            return False
        if decided.closes:
            return step.recorded is None or not step.recorded.closes
        self.stuck = _STUCK_AFTER.get(phase, self.stuck)
        return False

    def marked(self, lines: list[bytes]) -> list[bytes]:
        """Return lines of a message with or without smtpd's junk mark, as decided now."""
        lines = list(lines)
        if not self.sent:
            whose = {when for when, _ in self.junk}
            if lines[:1] == [MARK]:
                if whose == {"then"}:
                    del lines[0]
            elif "now" in whose:
                lines.insert(0, MARK)
        self.sent += lines
        return lines

    def adapt(self, report: Report) -> list[NamedValues]:
        """Return the reports that smtpd sends now in place of a recorded one."""
        name, values = report.name, report.values
        if name.startswith("tx-"):
            return self._adapt_transaction(name, values)
        if name == "filter-response":
            return self._response(values)
        if any(self._refused(phase) for phase in _REFUSED_BY.get(name, ())):
            return []
        if name == "link-identify" and (rewritten := self._rewritten()):
            return [(name, (values[0], rewritten))]
        if name == "link-disconnect":
            self.gone = True
        return [(name, values)]

    def _adapt_transaction(self, name: str, values: tuple[bytes, ...]) -> list[NamedValues]:
        if self.stuck in {"greeting", "mail-from"}:
            return []
        if name == "tx-begin":
            self.msgid, self.recipients = values[0], 0
            self.last.pop("rcpt-to", None)
        elif name == "tx-reset":
            self._reset()
        elif name == "tx-commit":
            return self._committed(values)
        elif name in {"tx-envelope", "tx-rcpt"} and self._refused("rcpt-to"):
            if name == "tx-envelope":
                return []
            values = (values[0], self._failure("rcpt-to"), values[2])
        elif name == "tx-data" and self.stuck == "data":
            if not self._refused("data"):
                return []
            values = (values[0], self._failure("data"))
        return [(name, values)]

    def _committed(self, values: tuple[bytes, ...]) -> list[NamedValues]:
        rolled_back = ("tx-rollback", (self.msgid,))
        if self._refused("commit"):
            return [("tx-data", (self.msgid, self._failure("commit"))), rolled_back]
        return [rolled_back] if self.stuck == "data" else [("tx-commit", values)]

    def _reset(self) -> None:
        """End the transaction."""
        self.msgid, self.recipients, self.stuck = b"", 0, ""
        self.sent, self.returned = [], []
        self.junk = {(when, within) for when, within in self.junk if not within}
        for phase in ("rcpt-to", "data", "commit"):
            self.last.pop(phase, None)

    def _response(self, values: tuple[bytes, ...]) -> list[NamedValues]:
        for phase, last in self.last.items():
            if RESPONSE_NAMES.get(phase, phase).encode() == values[0]:
                return [("filter-response", response(phase, last))] if last.asked else []
        return [("filter-response", values)]

    def closing_reports(self, phase: str, argument: bytes) -> list[NamedValues]:
        """Return the reports with which smtpd closes a connection after a decision."""
        self.gone = True
        reports: list[NamedValues] = []
        if self.msgid:
            result = self._failure(phase)
            if phase == "rcpt-to":
                reports.append(("tx-rcpt", (self.msgid, result, argument)))
            elif phase in {"data", "commit"}:
                reports.append(("tx-data", (self.msgid, result)))
            reports += [("tx-rollback", (self.msgid,)), ("tx-reset", (self.msgid,))]
        return [*reports, ("link-disconnect", ())]

    def _refused(self, phase: str) -> bool:
        return phase in self.last and self.last[phase].refused

    def _failure(self, phase: str) -> bytes:
        return failure(self.last[phase])

    def _rewritten(self) -> bytes:
        for phase in ("ehlo", "helo"):
            if phase in self.last and self.last[phase].verb == "rewrite":
                return wire(self.last[phase].parameter)
        return b""
