"""Sessions and messages: what it takes to answer for a program and to continue with another.

Invariants
----------
*Replayed in order*: the reports and requests kept are smtpd's own lines, in smtpd's order.
*Answered*: a request is kept once the program has let it pass, before anything that comes later.
One that it refused has no effect; one that was answered in its place may be what ended it.
*No credentials*: a request at `auth` is never kept.
*Current*: of a transaction that has ended nothing is kept, and nothing of a session that has ended.
*Bounded*: a client that repeats commands does not grow what is kept of its session.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.journal.collector import Story
    from smtpd_filters.message.spool import Store
    from smtpd_filters.protocol.vocabulary import Phase

    from .link import Link
    from .replay import Replay

#: What a request begins with.
REQUEST = b"filter|"
#: Reports that are kept as long as the session, and as long as its transaction.
OF_SESSION = frozenset(
    {b"link-connect", b"link-greeting", b"link-identify", b"link-tls", b"link-auth"}
)
OF_TRANSACTION = frozenset({b"tx-begin", b"tx-mail", b"tx-rcpt", b"tx-data"})
KEPT = OF_SESSION | OF_TRANSACTION
#: The report of the end of a transaction.
RESET = b"tx-reset"
#: The phases of requests that are kept in the same way.
ASKED_OF_SESSION = frozenset({b"connect", b"helo", b"ehlo", b"starttls"})
ASKED_OF_TRANSACTION = frozenset({b"mail-from", b"rcpt-to", b"data"})
_KEPT_WITH_SESSION = OF_SESSION | ASKED_OF_SESSION
#: Lines kept of a session beyond which a repeated report replaces the earlier one. A session with
#: STARTTLS and AUTH has ten.
MAX_SESSION = 32
#: Lines kept of a transaction beyond which refused recipients and requests are left out. smtpd has
#: a limit of its own for accepted recipients (`limit session max-rcpt`, 1000 by default), and ends
#: a session of which too many in succession are refused.
MAX_TRANSACTION = 4000

#: States of a message: given to a program; kept until there is one; lost, and to be refused; passed
#: on unchanged, without a program.
GIVEN, HELD, LOST, PASSED = range(4)


class Session:
    """One session of smtpd."""

    __slots__ = (
        "asked",
        "asked_at",
        "begun",
        "expected",
        "id",
        "judged",
        "lines",
        "link",
        "message",
        "mixed",
        "own",
        "phase",
        "refusal",
        "replay",
        "requests",
        "row",
        "since",
        "story",
        "unfinished",
    )

    def __init__(self, id_: bytes) -> None:
        self.id = id_
        #: The program that has the session, or None.
        self.link: Link | None = None
        #: The reports and requests to replay; how many of them are of the session itself; where
        #: those of its transaction begin, or -1; and whether some of the session come after these.
        self.lines: list[bytes] = []
        self.own = 0
        self.begun = -1
        self.mixed = False
        #: Whether there are requests among them.
        self.requests = False
        #: The last request that a program got, as a line, until it is kept; empty if it is not to
        #: be. And its phase.
        self.asked = b""
        self.asked_at = b""
        #: What a program is being given; and how many have ended before they had all of it.
        self.replay: Replay | None = None
        self.unfinished = 0
        #: The open request, or None: its phase and time; its line while no program has it.
        self.phase: Phase | None = None
        self.since = 0.0
        self.row = b""
        #: The key of the open request in `Link.open`: its session and token.
        self.expected = b""
        #: The message in transit.
        self.message: Message | None = None
        #: The answer to `commit` if the message is refused in the program's place.
        self.refusal = b""
        #: The program has returned a message, and so may have a verdict on it.
        self.judged = False
        #: Its events for the journal.
        self.story: Story | None = None

    @property
    def token(self) -> bytes:
        """The token of the open request."""
        return self.expected[len(self.id) + 1 :]

    def keep(self, name: bytes, row: bytes) -> None:
        """Keep a report, which is one of `KEPT`, after the request before it.

        It may be called again with the same row if memory ran out later.
        """
        if self.asked and self.phase is None:
            self.keep_request()
        lines = self.lines
        if lines and lines[-1] is row:
            return
        if name in OF_TRANSACTION:
            if self.begun < 0:
                self.begun = len(lines)
            elif len(lines) - self.own >= MAX_TRANSACTION and _refused(row):
                return
            lines.append(row)
            return
        if self.begun >= 0:
            self.mixed = True
        lines.append(row)
        self.own += 1
        if self.own > MAX_SESSION:
            self._drop_earlier(name)

    def keep_request(self) -> None:
        """Keep the last request, which has been answered."""
        row, phase = self.asked, self.asked_at
        if phase in ASKED_OF_TRANSACTION:
            if phase == b"mail-from":
                # The one before it has begun no transaction.
                self.end_transaction()
                self.begun = len(self.lines)
            elif self.begun < 0:
                self.begun = len(self.lines)
            if len(self.lines) - self.own < MAX_TRANSACTION or phase == b"data":
                self.lines.append(row)
                self.requests = True
            self.asked = b""
        elif phase in ASKED_OF_SESSION:
            if self.begun >= 0:
                self.mixed = True
            self.lines.append(row)
            self.own += 1
            self.requests, self.asked = True, b""
            if self.own > MAX_SESSION:
                self._drop_earlier(phase)
        else:
            self.asked = b""

    def _drop_earlier(self, name: bytes) -> None:
        """Drop the first line of this name if the last one, just kept, has replaced it."""
        at = next(at for at, line in enumerate(self.lines) if report_name(line) == name)
        if at == len(self.lines) - 1:
            return
        del self.lines[at]
        self.own -= 1
        if at < self.begun:
            self.begun -= 1

    def end_transaction(self) -> None:
        """Forget the reports and requests of the transaction."""
        if self.begun < 0:
            return
        if self.mixed:
            self.lines = [row for row in self.lines if report_name(row) in _KEPT_WITH_SESSION]
        else:
            del self.lines[self.begun :]
        self.begun, self.mixed = -1, False


def report_name(row: bytes) -> bytes:
    """Return the name of a report's line, or the phase of a request's."""
    return row.split(b"|", 5)[4]


def _refused(row: bytes) -> bool:
    return b"|permfail" in row or b"|tempfail" in row


class Message:
    """One message, from its first data-line until the final dot was returned to smtpd."""

    __slots__ = (
        "blocks",
        "ended",
        "fed",
        "given",
        "header",
        "kept",
        "key",
        "link",
        "prefix",
        "received",
        "returned",
        "sent",
        "session",
        "since",
        "state",
        "store",
    )

    def __init__(self, session: Session, prefix: bytes) -> None:
        self.session = session
        #: The start of each line on its way back.
        self.prefix = prefix
        #: The key of the message's lines (`Transit.key`), or empty.
        self.key = b""
        self.state = HELD
        self.link: Link | None = None
        #: smtpd's lines from the first one, as long as they may be needed again, in the spool or as
        #: a few blocks; how many bytes were kept, and how many of them the program has got.
        self.store: Store | None = None
        self.blocks: list[bytes] = []
        self.kept = self.fed = 0
        #: How many programs have got it.
        self.given = 0
        #: smtpd has sent the final dot; and when, if so.
        self.ended = False
        self.since = 0.0
        #: Something has gone back to smtpd; only lines of the header so far.
        self.returned = False
        self.header = True
        #: Bytes from smtpd and from the program.
        self.received = self.sent = 0

    def release(self) -> None:
        """Release the lines kept."""
        if self.store is not None:
            self.store.discard()
            self.store = None
        self.blocks.clear()
        self.kept = 0
