"""The replay of a session to a program that takes it over: its reports, and its requests again.

Invariants
----------
*One at a time*: the program gets what follows a request once it has answered that.
*Bounded*: a client that repeats commands meanwhile does not grow what waits.
"""

from __future__ import annotations

from collections import deque

from smtpd_filters.protocol.vocabulary import PHASES_ON_WIRE

from .ledger import ASKED_OF_TRANSACTION, OF_TRANSACTION, REQUEST, RESET, report_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.protocol.vocabulary import Phase

    from .ledger import Session
    from .link import Link


#: Lines that wait beyond which only reports of the transaction are added: smtpd bounds those.
MAX_ROWS = 1000
DISCONNECT = b"link-disconnect"
_ENDS_WITH_TRANSACTION = OF_TRANSACTION | ASKED_OF_TRANSACTION | {RESET}


class Replay:
    """What a program is still to be given of a session before the session goes on with it."""

    __slots__ = ("expected", "link", "phase", "rows", "since")

    def __init__(self, link: Link, rows: Iterable[bytes]) -> None:
        self.link = link
        #: The lines, in order.
        self.rows = deque(rows)
        #: The request that the program is to answer: its phase and time, and its key in
        #: `Link.replaying`.
        self.phase: Phase | None = None
        self.since = 0.0
        self.expected = b""

    def advance(self, session: Session, now: float) -> bool:
        """Give the program the lines up to the next request; return whether it has all of them."""
        link, rows = self.link, self.rows
        try:
            while rows:
                row = rows.popleft()
                if row.startswith(REQUEST):
                    fields = row[:-1].split(b"|", 7)
                    self.expected = b"%b|%b" % (fields[5], fields[6])
                    self.phase, self.since = PHASES_ON_WIRE[fields[4]], now
                    link.replaying[self.expected] = session
                    link.out.append(row)
                    return False
                link.out.append(row)
        except MemoryError:
            link.fault = "no memory for its sessions"  # the line is lost for it
            raise
        return True

    def report(self, subsystem: bytes, name: bytes, row: bytes) -> None:
        """Give the program a report in its turn, if it has registered for it."""
        if name == RESET and self._drop_transaction():
            return
        if name not in self.link.reports.get(subsystem, ()):
            return
        if name == DISCONNECT:
            self.link.out.append(row)
        elif len(self.rows) < MAX_ROWS or name in OF_TRANSACTION or name == RESET:
            self.rows.append(row)

    def _drop_transaction(self) -> bool:
        """Drop what waits of the transaction; return whether the program knows of none."""
        names = [report_name(row) for row in self.rows]
        self.rows = deque(
            row
            for row, name in zip(self.rows, names, strict=True)
            if name not in _ENDS_WITH_TRANSACTION
        )
        # The end of an earlier one, which may have begun, is dropped as well.
        return b"tx-begin" in names and RESET not in names

    def end(self, session: Session) -> None:
        """End it with the session; the program may still answer."""
        if self.expected in self.link.replaying:
            self.link.owe(session.id)
            del self.link.replaying[self.expected]
        self.link.sessions.pop(session.id, None)

    def overdue(self, limit: float) -> str:
        """Return the phase of the open request if it was asked before `limit`, or ""."""
        return self.phase.name if self.phase is not None and self.since < limit else ""


def wanted(link: Link, row: bytes) -> bool:
    """Return whether a program has registered for a report, or for the phase of a request."""
    _, _, _, subsystem, name, _ = row.split(b"|", 5)
    return name in (link.phases if row.startswith(REQUEST) else link.reports.get(subsystem, ()))
