"""Sessions and messages: what it takes to answer for a program and to continue with another.

Invariants
----------
*Replayed in order*: the reports kept are smtpd's own lines, in smtpd's order.
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

#: Reports that are kept as long as the session, and as long as its transaction.
OF_SESSION = frozenset(
    {b"link-connect", b"link-greeting", b"link-identify", b"link-tls", b"link-auth"}
)
OF_TRANSACTION = frozenset({b"tx-begin", b"tx-mail", b"tx-rcpt", b"tx-data"})
KEPT = OF_SESSION | OF_TRANSACTION
#: Lines kept of a session beyond which a repeated report replaces the earlier one. A session with
#: STARTTLS and AUTH has six.
MAX_SESSION = 32
#: Lines kept of a transaction beyond which refused recipients are left out. smtpd has a limit of
#: its own for accepted ones (`limit session max-rcpt`, 1000 by default).
MAX_TRANSACTION = 2000

#: States of a message: given to a program; kept until there is one; lost, and to be refused; passed
#: on unchanged, without a program.
GIVEN, HELD, LOST, PASSED = range(4)


class Session:
    """One session of smtpd."""

    __slots__ = (
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
        "row",
        "since",
        "story",
    )

    def __init__(self, id_: bytes) -> None:
        self.id = id_
        #: The program that has the session, or None.
        self.link: Link | None = None
        #: The reports to replay; how many of them are of the session itself; where those of its
        #: transaction begin, or -1; and whether some of the session come after these.
        self.lines: list[bytes] = []
        self.own = 0
        self.begun = -1
        self.mixed = False
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
        """Keep a report, which is one of `KEPT`."""
        lines = self.lines
        if name in OF_TRANSACTION:
            if self.begun < 0:
                self.begun = len(lines)
            elif len(lines) - self.own >= MAX_TRANSACTION and _refused(row):
                return
            lines.append(row)
            return
        if self.begun >= 0:
            self.mixed = True
        self.own += 1
        lines.append(row)
        if self.own > MAX_SESSION:
            self._drop_earlier(name)

    def _drop_earlier(self, name: bytes) -> None:
        """Drop the first report of this name: a later one has replaced it."""
        at = next(at for at, line in enumerate(self.lines) if report_name(line) == name)
        del self.lines[at]
        self.own -= 1
        if at < self.begun:
            self.begun -= 1

    def end_transaction(self) -> None:
        """Forget the reports of the transaction."""
        if self.begun < 0:
            return
        if self.mixed:
            self.lines = [row for row in self.lines if report_name(row) in OF_SESSION]
        else:
            del self.lines[self.begun :]
        self.begun, self.mixed = -1, False


def report_name(row: bytes) -> bytes:
    """Return the name of a report's line."""
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
