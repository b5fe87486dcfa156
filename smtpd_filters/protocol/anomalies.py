"""The listener's interface, and the anomalies of a conversation, collected for the log."""

from __future__ import annotations

from .events import SHOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from .decisions import Decision
    from .events import Report
    from .vocabulary import Phase

    class Listener(Protocol):
        """Receives the events of a conversation.  No method may raise."""

        def configured(self, key: str, value: str) -> None:
            """Handle a line of the handshake; on `ready` call `FilterConnection.register`."""

        def reported(self, report: Report) -> None:
            """Handle a report."""

        def asked(self, phase: Phase, session: bytes, argument: bytes) -> Decision | None:
            """Return the decision on a request, or None to call `FilterConnection.answer` later."""

        def content(self, session: bytes, lines: list[bytes], *, end: bool) -> None:
            """Handle dot-stuffed lines of a message; `end`: the final dot has been received."""


class Remark:
    """An anomaly for the log.

    Its sort is "unexpected" (input of smtpd), "bug" (of this project) or "mail" (a message that
    was changed or refused).
    """

    __slots__ = ("detail", "kind", "session", "sort")

    def __init__(self, sort: str, kind: str, session: bytes = b"", detail: bytes = b"") -> None:
        self.sort, self.kind, self.session, self.detail = sort, kind, session, detail

    def __repr__(self) -> str:
        return f"<{self.sort}: {self.kind} {self.session!r} {self.detail!r}>"


class Remarks:
    """Collects the remarks of a conversation until `take` is called."""

    def __init__(self) -> None:
        #: Remarks since the last call of `take`.
        self.kept: list[Remark] = []

    def take(self) -> list[Remark]:
        """Return the remarks since the last call, and clear them."""
        kept, self.kept = self.kept, []
        return kept

    def unexpected(self, kind: str, session: bytes = b"", detail: bytes = b"") -> None:
        """Record unexpected input of smtpd."""
        self.kept.append(Remark("unexpected", kind, session, detail[:SHOWN]))

    def bug(self, kind: str, session: bytes) -> None:
        """Record a mistake of this project."""
        self.kept.append(Remark("bug", kind, session))

    def mail(self, kind: str, session: bytes, detail: bytes) -> None:
        """Record that a message was changed or refused."""
        self.kept.append(Remark("mail", kind, session, detail))
