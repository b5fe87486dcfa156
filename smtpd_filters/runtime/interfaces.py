"""What the runtime asks of those above it: types alone, imported by nothing that runs."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, Protocol

    from smtpd_filters.message import Headers, Message
    from smtpd_filters.protocol.decisions import Decision
    from smtpd_filters.protocol.vocabulary import Phase
    from smtpd_filters.session import Session

    from .coroutines import Pending

    class Task(Protocol):
        """Pending work that is being driven."""

        def cancel(self) -> object:
            """Drop it."""

    Ask = Callable[[Session, bytes], Decision | Pending]
    #: Drives pending work; the callback gets its decision, or None after a fault of ours. The
    #: number is the price of each of its steps (`runtime.pace`); 0 if they are not charged.
    Spawn = Callable[[Pending, Callable[[Decision | None], None], int], Task]

    class Refresher(Protocol):
        """Who looks after something beside the sessions."""

        refresh_interval: float

    class Policy(Protocol):
        """What decides.  None of its methods raises; a coroutine's result is a decision."""

        #: What it asks smtpd for: phases, ``data-line`` among them, and reports.
        phases: tuple[str, ...]
        reports: tuple[str, ...]
        #: Reports of the sessions in which smtpd is the client, for the tap alone.
        outgoing: tuple[str, ...]
        #: The fields of a session that these reports fill.
        fields: tuple[str, ...]
        #: How much of a message it looks at: "", "headers" or "message".
        content: str

        #: Who answers the requests of a phase.
        ask: dict[Phase, Ask]
        #: What a phase is answered, and a message, when our own code fails; PROCEED if it is not
        #: here.
        otherwise: dict[Phase, Decision]
        otherwise_content: Decision
        #: Who is to be told when a report has been applied to its session; none raises.
        hooks: dict[str, Callable[[Session], None]]

        def configured(self, smtpd: Mapping[str, str]) -> None:
            """What smtpd said of itself, before anything is registered."""

        def judge_headers(self, session: Session, headers: Headers) -> Decision | Pending:
            """Edit the header block; junk is a field in it by then."""

        def judge_message(self, session: Session, message: Message) -> Decision | Pending:
            """Judge a whole message."""

        def gone(self, session: Session) -> None:
            """The session is over."""

    class Service(Policy, Protocol):
        """A policy with what a loop asks of it besides decisions."""

        #: Whether a handler may wait.
        waits: bool
        #: Whether it has anything to release.
        closing: bool

        @property
        def refreshing(self) -> Sequence[Refresher]:
            """Those that `refresh` is to be called for."""

        async def refresh(self, filter_: Any) -> None:
            """Let one look after what is not of a session; never raises."""

        def reload(self) -> Iterator[None]:
            """Read its tables again, a bounded piece of work for each step; never raises."""

        async def close(self) -> None:
            """The process ends; never raises."""
