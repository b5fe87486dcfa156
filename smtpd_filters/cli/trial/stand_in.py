"""A filter that repeats the verdicts which the journal has of another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smtpd_filters.filter import Filter, Registration
from smtpd_filters.protocol.decisions import (
    JUNK,
    MAX_POINTS,
    PROCEED,
    Decision,
    Disconnect,
    Points,
    Reject,
)
from smtpd_filters.protocol.vocabulary import HANDLERS
from smtpd_filters.runtime.log import EDIT
from smtpd_filters.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smtpd_filters.message import Headers, Message
    from smtpd_filters.session import Session

    Row = list[Any]

#: Phases of a message, whose verdicts belong to one transaction.
_OF_MESSAGE = frozenset({"rcpt-to", "data", "headers", "message", "commit"})
_UNKNOWN = "550 5.7.1 Refused"


class StandIn(Filter):
    """Repeat what a filter has decided about each session."""

    name = "stand-in"
    points = (-MAX_POINTS, MAX_POINTS)
    settings: Settings

    def __init__(
        self,
        name: str,
        verdicts: dict[str, list[Row]],
        phases: Sequence[str],
        bounds: tuple[float, float],
        missing: Callable[[str], object],
    ) -> None:
        """Take the rows of `past` by session, and a function that notes what they lack."""
        super().__init__()
        self.name = name
        self._verdicts = verdicts
        self._phases = frozenset(phases)
        self._bounds = bounds
        self._missing = missing
        #: By session, phase and message: how many rows are used.
        self._used: dict[tuple[str, str, str], int] = {}

    def setup(self) -> Registration:
        """Register the phases at which the journal has verdicts."""
        phases = {name: phase.name for name, phase in HANDLERS.items()}
        return Registration(
            {name for name in self.handlers if phases.get(name, name) in self._phases},
            points=self._bounds,
        )

    def _repeat(self, session: Session, phase: str, address: str | None = None) -> Decision:
        """Return the verdict at a phase; to proceed, and a note, if the journal has none."""
        rows = [row for row in self._verdicts.get(session.id, ()) if row[1] == phase]
        msgid = session.tx.msgid if phase in _OF_MESSAGE and session.tx is not None else ""
        if any(row[0] == msgid for row in rows):
            rows = [row for row in rows if row[0] == msgid]
        if address is None:
            times = [row for row in rows for _ in range(max(row[8], 1))]
            at = self._used.get((session.id, phase, msgid), 0)
            self._used[session.id, phase, msgid] = at + 1
            rows = times[min(at, len(times) - 1) :][:1]
        else:
            about = [row for row in rows if row[2] == address]
            rows = about or [row for row in rows if not row[2]]
        if not rows:
            self._missing(f"{self.name} at {phase}")
            return PROCEED
        return self._decision(rows[0])

    def _decision(self, row: Row) -> Decision:
        _, phase, _, verb, reply, reason, thousandths, flags, _ = row
        if verb == "points":
            given = Points(thousandths / 1000, temporary="t" in flags)
            return given.because(reason)
        if verb == "junk":
            return JUNK.because(reason)
        if verb in {"reject", "disconnect"}:
            kind = Reject if verb == "reject" else Disconnect
            try:
                return kind(reply).because(reason)
            except ValueError:  # the journal has shortened it
                return kind(_UNKNOWN).because(reason)
        if verb not in {"proceed", EDIT}:
            self._missing(f"{self.name} at {phase}: {verb}")
        return PROCEED

    def connect(self, session: Session) -> Decision:
        """Repeat the verdict on the client."""
        return self._repeat(session, "connect")

    def helo(self, session: Session, identity: str) -> Decision:  # noqa: ARG002  # as recorded
        """Repeat the verdict on the greeting."""
        return self._repeat(session, "helo")

    def ehlo(self, session: Session, identity: str) -> Decision:  # noqa: ARG002  # as recorded
        """Repeat the verdict on the greeting."""
        return self._repeat(session, "ehlo")

    def starttls(self, session: Session) -> Decision:
        """Repeat the verdict on the wish for TLS."""
        return self._repeat(session, "starttls")

    def auth(self, session: Session, credentials: str) -> Decision:  # noqa: ARG002  # masked
        """Repeat the verdict on the log-in."""
        return self._repeat(session, "auth")

    def mail_from(self, session: Session, address: str) -> Decision:
        """Repeat the verdict on the sender."""
        return self._repeat(session, "mail-from", address)

    def rcpt_to(self, session: Session, address: str) -> Decision:
        """Repeat the verdict on the recipient."""
        return self._repeat(session, "rcpt-to", address)

    def data(self, session: Session) -> Decision:
        """Repeat the verdict before the message."""
        return self._repeat(session, "data")

    def headers(self, session: Session, headers: Headers) -> Decision:  # noqa: ARG002  # as recorded
        """Repeat the verdict on the header."""
        return self._repeat(session, "headers")

    def message(self, session: Session, message: Message) -> Decision:  # noqa: ARG002  # as recorded
        """Repeat the verdict on the message."""
        return self._repeat(session, "message")
