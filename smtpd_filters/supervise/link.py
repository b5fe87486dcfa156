"""The engine's end of one program, and what the end of one costs."""

from __future__ import annotations

from .registration import Registration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .ledger import Message, Session

#: Ended sessions remembered by program, whose late answers are dropped. Clients that hang up during
#: slow look-ups may be many: a hundred a second, for as long as the look-ups take.
MAX_LATE = 32768


class Link:
    """The engine's end of one program."""

    def __init__(self) -> None:
        #: Pending output to the program: whole lines.
        self.out: list[bytes] = []
        self.registration = Registration()
        #: The registration is complete; and all of it is registered with smtpd.
        self.complete = self.ready = False
        #: Why the program must be ended, or empty. Nothing is read from it afterwards.
        self.fault = ""
        #: It has not read for a while: lines of messages are kept for it, not queued.
        self.clogged = False
        #: It has answered a request, so it works.
        self.useful = False
        self.phases: frozenset[bytes] = frozenset()
        self.reports: dict[bytes, frozenset[bytes]] = {}
        #: It has registered for reports that are kept.
        self.replayed = False
        #: The sessions that the program has; those with an open request, by `Session.expected`.
        self.sessions: dict[bytes, Session] = {}
        self.open: dict[bytes, Session] = {}
        #: The sessions that it is asked about again, by `Replay.expected`.
        self.replaying: dict[bytes, Session] = {}
        #: Messages in transit by session.
        self.messages: dict[bytes, Message] = {}
        #: Messages in transit by the start of their lines on the way back.
        self.returning: dict[bytes, Message] = {}
        #: Messages of which the program has not got all lines that are kept.
        self.feeding: dict[Message, None] = {}
        #: Sessions that ended while the program owed answers, and how many.
        self.late: dict[bytes, int] = {}
        self.partial = bytearray()

    def owe(self, session: bytes) -> None:
        """Remember that an answer for this session may come late, or the end of a message."""
        late = self.late
        if len(late) >= MAX_LATE:
            del late[next(iter(late))]
        late[session] = late.get(session, 0) + 1

    def settle(self, session: bytes) -> None:
        """Take note of a late answer."""
        self.late[session] -= 1
        if not self.late[session]:
            del self.late[session]

    def remove(self, message: Message) -> None:
        """Forget a message."""
        self.messages.pop(message.session.id, None)
        self.returning.pop(message.prefix, None)
        self.feeding.pop(message, None)


class Loss:
    """What the end of a program cost."""

    def __init__(self) -> None:
        self.sessions = self.answered = self.given_again = self.refused = 0

    def values(self) -> dict[str, str]:
        """Return the values for the log."""
        counts = {
            "sessions": self.sessions,
            "answered": self.answered,
            "given-again": self.given_again,
            "refused": self.refused,
        }
        return {key: str(counts[key]) for key in counts if counts[key]}
