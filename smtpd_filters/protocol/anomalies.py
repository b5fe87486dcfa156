"""What a conversation has to tell besides its answers: to who decides, and to who logs."""

from __future__ import annotations

from .events import SHOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from .decisions import Decision
    from .events import Report
    from .vocabulary import Phase

    class Listener(Protocol):
        """Who looks at what smtpd says.  None of its methods raises."""

        def configured(self, key: str, value: str) -> None:
            """A line of the hand-shake; `FilterConnection.register` answers ``ready``."""

        def reported(self, report: Report) -> None:
            """Something happened."""

        def asked(self, phase: Phase, session: bytes, argument: bytes) -> Decision | None:
            """Smtpd waits for this decision; None to give it later."""

        def content(self, session: bytes, lines: list[bytes], *, end: bool) -> None:
            """Lines of a message, dot-stuffed; ``end``: its dot has come."""


class Remark:
    """Something to be logged: of smtpd's ("odd"), of our own ("bug"), or of a message ("mail")."""

    __slots__ = ("detail", "kind", "session", "sort")

    def __init__(self, sort: str, kind: str, session: bytes = b"", detail: bytes = b"") -> None:
        self.sort, self.kind, self.session, self.detail = sort, kind, session, detail

    def __repr__(self) -> str:
        return f"<{self.sort}: {self.kind} {self.session!r} {self.detail!r}>"


class Remarks:
    """The remarks of a conversation, until somebody takes them."""

    def __init__(self) -> None:
        #: Those since `take` was last called.
        self.kept: list[Remark] = []

    def take(self) -> list[Remark]:
        """The remarks since this was last called."""
        kept, self.kept = self.kept, []
        return kept

    def odd(self, kind: str, session: bytes = b"", detail: bytes = b"") -> None:
        """Something that smtpd should not have said."""
        self.kept.append(Remark("odd", kind, session, detail[:SHOWN]))

    def bug(self, kind: str, session: bytes) -> None:
        """Something that this project should not have wanted to say."""
        self.kept.append(Remark("bug", kind, session))

    def mail(self, kind: str, session: bytes, detail: bytes) -> None:
        """Something that was done to a message."""
        self.kept.append(Remark("mail", kind, session, detail))
