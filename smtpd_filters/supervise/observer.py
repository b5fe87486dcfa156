"""Events of a supervised program for the journal: its answers, and smtpd's reports.

The program's own answers, rather than smtpd's `filter-response` reports, are its verdicts: those
reports have the decision of all filters of a listener together, and no time.
"""

from __future__ import annotations

from time import monotonic

from smtpd_filters.protocol.codec import decode
from smtpd_filters.protocol.events import Report
from smtpd_filters.protocol.versions import NEWEST, dialect, version
from smtpd_filters.protocol.vocabulary import PHASES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.journal.collector import Collector
    from smtpd_filters.protocol.decisions import Decision
    from smtpd_filters.protocol.vocabulary import Phase

    from .ledger import Session

#: The phase whose parameter is a credential.
_CONFIDENTIAL = "auth"
_MAIL_FROM = PHASES["mail-from"]


class _Source:
    """A program at a phase."""

    dry = False
    settings: object = None

    def __init__(self, name: str, phase: str) -> None:
        self.filter, self.phase = name, phase


class Unobserved:
    """In place of an `Observer` without a journal."""

    entries: Sequence[tuple[str, str, str]] = ()
    #: The phases for which `asked` does nothing.
    unasked: Sequence[Phase] = tuple(PHASES.values())

    def reported(self, session: Session, name: bytes, row: bytes) -> None:
        """Do nothing."""

    def asked(self, session: Session, phase: Phase | None, row: bytes) -> None:
        """Do nothing."""

    def passed(self, session: Session, phase: Phase, took: float) -> None:
        """Do nothing."""

    def answered(self, session: Session, phase: Phase, wire: bytes, took: float) -> None:
        """Do nothing."""

    def answered_for(self, session: Session, phase: Phase, decision: Decision, why: str) -> None:
        """Do nothing."""

    def refused(self, session: Session, phase: Phase, wire: bytes, why: str, setting: str) -> None:
        """Do nothing."""

    def closed(self, session: Session) -> None:
        """Do nothing."""

    def beat(self, _sessions: int, _ends: int) -> float | None:
        """Return None: nothing is due."""
        return None

    @property
    def holds(self) -> bool:
        """Return False: nothing waits."""
        return False

    def flush(self) -> None:
        """Do nothing."""


class Observer(Unobserved):
    """Gives the journal what it can know of the program `name`.  No method raises.

    With `by_itself` the program sends its answers to a journal itself, and they are left out here.
    """

    unasked = tuple(phase for phase in PHASES.values() if phase is not _MAIL_FROM)

    def __init__(self, journal: Collector, name: str, *, by_itself: bool = False) -> None:
        self._journal = journal
        self._name = name
        self._by_itself = by_itself
        journal.sparing = by_itself
        self._watched = frozenset(each.encode() for each in journal.watches)
        self._sources: dict[str, _Source] = {}
        #: The reports to register.
        self.entries = [("report", "smtp-in", each) for each in journal.reports]

    def reported(self, session: Session, name: bytes, row: bytes) -> None:
        """Handle a report, as a line with its end."""
        if name not in self._watched or (name == b"protocol-server" and _is_plain(row)):
            return
        _, spoken, _, subsystem, _ = row.split(b"|", 4)
        if subsystem != b"smtp-in":
            return
        report = decode(row[:-1], dialect(version(spoken.decode("latin-1")) or NEWEST))
        if type(report) is Report:
            self._journal.watches[report.name](session, report.values)

    def asked(self, session: Session, phase: Phase | None, row: bytes) -> None:
        """Handle a request, as a line with its end."""
        if phase is _MAIL_FROM:
            self._journal.mail_from(session, row[:-1].split(b"|", 7)[-1])

    def passed(self, session: Session, phase: Phase, took: float) -> None:
        """Handle an answer that lets a command pass, after so many seconds."""
        if self._by_itself:
            return
        source = self._sources.get(phase.name)
        if source is None:
            source = self._sources[phase.name] = _Source(self._name, phase.name)
        self._journal.passed(session, source, monotonic() - took)

    def answered(self, session: Session, phase: Phase, wire: bytes, took: float) -> None:
        """Handle another answer, `VERB` or `VERB|PARAMETER`."""
        if self._by_itself:
            return
        verb, _, parameter = wire.partition(b"|")
        if verb == b"proceed":
            self.passed(session, phase, took)
            return
        hidden = phase.name == _CONFIDENTIAL or verb == b"rewrite"
        reply = "" if hidden else parameter.decode("utf-8", "backslashreplace")
        self._journal.noted(
            session, self._name, phase.name, verb.decode("latin-1"), reply=reply, took=took
        )

    def answered_for(self, session: Session, phase: Phase, decision: Decision, why: str) -> None:
        """Handle an answer in the place of the program."""
        self._journal.noted(
            session,
            self._name,
            phase.name,
            decision.verb,
            reason=why,
            reply=decision.text,
            setting="--on-error",
            flags="f",
        )

    def refused(self, session: Session, phase: Phase, wire: bytes, why: str, setting: str) -> None:
        """Handle the refusal of a message in the place of the program, `VERB|PARAMETER`."""
        verb, _, reply = wire.decode("utf-8", "backslashreplace").partition("|")
        failed = "" if setting else "f"
        self._journal.noted(
            session,
            self._name,
            phase.name,
            verb,
            reason=why,
            reply=reply,
            setting=setting,
            flags=failed,
        )

    def closed(self, session: Session) -> None:
        """Handle the end of a session."""
        self._journal.closed(session)

    def beat(self, sessions: int, ends: int) -> float | None:
        """Send stories and the state that are due; return the seconds until more is."""
        return self._journal.beat(sessions, ends)

    @property
    def holds(self) -> bool:
        """Whether something waits for `beat`, which may be due soon."""
        return self._journal.holds

    def flush(self) -> None:
        """Send all that waits, at the end of the process."""
        self._journal.flush()


def _is_plain(row: bytes) -> bool:
    return row.split(b"|", 6)[-1][:1] in b"23"
