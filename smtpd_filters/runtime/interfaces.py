"""The interfaces that the runtime requires of a policy and a service: types only."""

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
        """A handle to pending work."""

        def cancel(self) -> object:
            """Drop the work."""

    Ask = Callable[[Session, bytes], Decision | Pending]
    #: Drives pending work; the callback gets its decision, or None after a bug of ours. The number
    #: is the price of each of its steps (`runtime.pace`), 0 if they are not charged.
    Spawn = Callable[[Pending, Callable[[Decision | None], None], int], Task]

    class Refresher(Protocol):
        """A filter with periodic background work."""

        refresh_interval: float

    class Journal(Protocol):
        """Sees what smtpd reports of sessions; no method raises."""

        #: By report: what to call with the session and the report's fields.
        watches: dict[str, Callable[[Any, tuple[bytes, ...]], None]]

        def mail_from(self, session: Any, argument: bytes) -> None:
            """Handle the sender that a client names, before the policy is asked."""

        @property
        def holds(self) -> bool:
            """Whether stories wait for `beat`."""

        def beat(self, sessions: int) -> float:
            """Send stories and the state of the process that are due, with so many sessions.

            Return the seconds until more is due.
            """

        def flush(self) -> None:
            """Send all stories that wait, at the end of the process."""

    class Policy(Protocol):
        """Makes the decisions.  No method raises; the result of a coroutine is a decision."""

        #: Whether there is no memory for another coroutine; set by the engine.
        refuses_coroutines: Callable[[], bool]
        #: What to register: phases, including `data-line`, and reports.
        phases: tuple[str, ...]
        reports: tuple[str, ...]
        #: Reports of the sessions with smtpd as the client, for wiretaps only.
        outgoing: tuple[str, ...]
        #: The fields of a session that these reports fill.
        fields: tuple[str, ...]
        #: How much of a message it needs: "", "headers" or "message".
        content: str

        #: By phase: the handler of its requests.
        ask: dict[Phase, Ask]
        #: The decisions if our own code fails: by phase, PROCEED by default; and of a message.
        otherwise: dict[Phase, Decision]
        otherwise_content: Decision
        #: Whether all that judge a message are on a dry run.
        only_looks: bool
        #: By report: the callback after the report was applied to its session; none raises.
        hooks: dict[str, Callable[[Session], None]]

        @property
        def journal(self) -> Journal | None:
            """What sees the sessions for the journal, if one is configured."""

        def configured(self, smtpd: Mapping[str, str]) -> None:
            """Handle smtpd's configuration, before anything is registered."""

        def judge_headers(self, session: Session, headers: Headers) -> Decision | Pending:
            """Judge and edit the header block; a decision of junk is applied as a header field."""

        def judge_message(self, session: Session, message: Message) -> Decision | Pending:
            """Judge and edit a whole message, in the same way."""

        def gone(self, session: Session) -> None:
            """Handle the end of a session."""

    class Service(Policy, Protocol):
        """A policy with the rest of what a loop requires."""

        #: Whether a handler may wait.
        waits: bool
        #: Whether it has resources to release.
        closing: bool

        @property
        def refreshing(self) -> Sequence[Refresher]:
            """The filters to call `refresh` for."""

        async def refresh(self, filter_: Any) -> None:
            """Do the background work of a filter once; never raise."""

        def reload(self) -> Iterator[None]:
            """Reload the tables, a bounded piece of work for each step; never raise."""

        async def close(self) -> None:
            """Release resources at the end of the process; never raise."""
