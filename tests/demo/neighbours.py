"""The senders of the demonstration, with their mail and its expected outcome."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime
from typing import NamedTuple

INBOX, JUNK, REFUSED, NOWHERE = "Inbox", "Junk", "refused", "nowhere"
SMTP, SUBMISSION = 25, 587
END_OF_DATA = "end of DATA"
USERS = ("alice", "bob")
# Generic Test for Unsolicited Bulk Email, which every scanner treats as spam, for tests. Rspamd
# marks, and doesn't refuse, a message with the second pattern (`enable_test_patterns`).
GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
MARKED = f"Y{GTUBE[1:]}"


class Neighbour(NamedTuple):
    """A sender of a message, and the expected outcome."""

    who: str
    address: str
    sender: str
    recipient: str
    expected: str
    #: Authenticates as this user, at the submission port.
    user: str = ""
    #: The filter that is to object, if it asks somebody else: a recording can't answer for that.
    judge: str = ""
    text: str = "Hello from a neighbour."

    @property
    def port(self) -> int:
        """The port it connects to."""
        return SUBMISSION if self.user else SMTP

    @property
    def message(self) -> bytes:
        """The message it sends."""
        return (
            f"From: <{self.sender}>\r\nTo: <{self.recipient}>\r\nSubject: {self.who}\r\n"
            f"Message-ID: {self.id}\r\nDate: {format_datetime(datetime.now(UTC))}\r\n\r\n"
            f"{self.text}\r\n"
        ).encode()

    @property
    def id(self) -> str:
        """The identifier of the message."""
        return f"<{self.address}@demo.example>"


NEIGHBOURS = (
    Neighbour("a good host", "198.51.100.10", "news@good.example", "alice@example.org", INBOX),
    Neighbour("a dynamic address", "203.0.113.77", "me@isp.example", "alice@example.org", JUNK),
    Neighbour(
        "no reverse name", "203.0.113.200", "x@nowhere.example", "alice@example.org", REFUSED
    ),
    Neighbour(
        "a name that isn't its own", "198.51.100.66", "info@bank.example", "alice@example.org", JUNK
    ),
    Neighbour(
        "spoofs our domain", "198.51.100.20", "boss@example.org", "alice@example.org", REFUSED
    ),
    Neighbour(
        "trusted: our scanner", "192.0.2.25", "scanner@example.org", "alice@example.org", INBOX
    ),
    Neighbour(
        "alice, logged in, at home",
        "203.0.113.42",
        "alice@example.org",
        "bob@example.org",
        INBOX,
        "alice",
    ),
    Neighbour(
        "sends what nobody wants",
        "198.51.100.13",
        "offers@bulk.example",
        "alice@example.org",
        REFUSED,
        judge="senderscore",
    ),
    Neighbour(
        "a good host with spam",
        "198.51.100.11",
        "sales@good.example",
        "alice@example.org",
        REFUSED,
        judge="rspamd",
        text=GTUBE,
    ),
    Neighbour(
        "a good host with an offer",
        "198.51.100.12",
        "offers@good.example",
        "alice@example.org",
        JUNK,
        judge="rspamd",
        text=MARKED,
    ),
)


class Said(NamedTuple):
    """The decision of a filter at a phase, and its reason."""

    filter: str
    phase: str
    verb: str
    reason: str


class Answered(NamedTuple):
    """The last word of the server to a client: the command it was said to, and the reply."""

    command: str
    reply: str


class Outcome(NamedTuple):
    """The outcome of one message."""

    neighbour: Neighbour
    #: The client's reverse name, as smtpd reports it.
    rdns: str
    said: list[Said]
    #: Filters that were not asked any more.
    silent: list[str]
    answered: Answered
    place: str

    @property
    def as_expected(self) -> bool:
        """Whether the message is where it is expected."""
        return self.place == self.neighbour.expected
