"""The MTA's side of one milter connection, as a state machine without I/O or clock.

Each method for an event returns the bytes to write, which are without the event if the milter
doesn't want it; `waiting` says whether an answer is due. `receive` takes what the milter wrote, and
`answer` returns it, one answer at a time.

Invariants
----------
*Strict outwards*: an event out of order, a null in a string, or a field that doesn't fit into a
packet raises MilterError before anything is written; libmilter would reset the connection.
*One answer*: an answer is taken only while one is due. Anything else, such as a second answer or
one to an event without a reply, is a MilterError, and the connection can't be used afterwards.
*Bounded*: packets, edits, their bytes, a new body and progress have limits for each message.
*Macros with events*: macros are sent right before their event, and in its place if the milter
leaves it out, as by Postfix: a milter may read them later.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import vocabulary as v
from .answers import NewBody, ReplyCode, Verdict, parse_answer
from .codec import UINT16, MilterError, Packets, cstr, joined, packet, shown
from .negotiation import Agreement, Offer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .answers import Answer

#: The order of events; an event may follow one of the same or a lower rank.
_RANK = {
    v.NEGOTIATE: 0,
    v.CONNECT: 1,
    v.HELO: 2,
    v.MAIL: 3,
    v.RCPT: 4,
    v.DATA: 5,
    v.HEADER: 6,
    v.END_OF_HEADER: 7,
    v.BODY: 8,
    v.END_OF_BODY: 9,
}
#: Events of which there may be several in a row.
_REPEATED = frozenset({v.HELO, v.RCPT, v.HEADER, v.BODY})
#: Events before a message.
_OF_SESSION = frozenset({v.CONNECT, v.HELO})
#: Events that carry the content of a message.
CONTENT = frozenset({v.HEADER, v.END_OF_HEADER, v.BODY, v.END_OF_BODY})


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a milter may send for one message.

    `packet` is the length of a packet with a piece of a body; others have the length that milters
    take themselves (`vocabulary.MAX_PAYLOAD`). `edits` is the number of edits except for pieces of
    a body, `edited` their bytes, `body` the bytes of a new body, `pieces` the number of its
    packets, and `progress` the number of reports of progress.
    """

    packet: int = 1 << 20
    edits: int = 1000
    edited: int = 1 << 20
    body: int = 64 << 20
    pieces: int = 1 << 16
    progress: int = 10_000


_LIMITS = Limits()


class MtaSide:
    """One connection to a milter; see the module's docstring.

    `finished` is true after the milter has accepted the session, `done` after it has accepted the
    message or said anything else that ends the message for it.
    """

    def __init__(self, offer: Offer | None = None, limits: Limits | None = None) -> None:
        self._offer = offer or Offer.of(v.NEWEST)
        self._limits = limits or _LIMITS
        self._packets = Packets(self._limits.packet)
        #: What the milter has agreed to; None before.
        self.agreed: Agreement | None = None
        #: The events that it is sent, and those that it answers.
        self._wanted: frozenset[bytes] = frozenset()
        self._answered: frozenset[bytes] = frozenset()
        self._due = b""
        self._rank = -1
        #: Kinds of events that the milter wants no more of for this message.
        self._skipped: set[bytes] = set()
        self.finished = self.done = False
        #: Whether the milter has been sent a part of a message since the last ABORT.
        self.begun = False
        self._broken = False
        self._edits = self._edited = self._body = self._pieces = self._progress = 0

    # -- sending -------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether an answer is due."""
        return bool(self._due)

    @property
    def due(self) -> bytes:
        """The event whose answer is due; b"" if none is."""
        return self._due

    def negotiate(self) -> bytes:
        """Return the first packet."""
        self._take_turn(v.NEGOTIATE)
        self._due = v.NEGOTIATE
        return self._offer.encode()

    def wants(self, event: bytes) -> bool:
        """Whether the milter is sent this event now."""
        return event in self._wanted and self._listens(event)

    def answers(self, event: bytes) -> bool:
        """Whether the milter answers this event now."""
        return event in self._answered and self._listens(event)

    def _listens(self, event: bytes) -> bool:
        """Whether the milter has not accepted the session or the message, or skipped the event."""
        return not self.finished and (
            event in _OF_SESSION or not (self.done or event in self._skipped)
        )

    def reached(self, event: bytes) -> bool:
        """Whether this event, or a later one of the message, has had its turn."""
        return self._rank >= _RANK[event]

    def connect(
        self, host: bytes, family: bytes, port: int, address: bytes, macros: Macros = ()
    ) -> bytes:
        """Return CONNECT. `family` is `4`, `6`, `L` (a path) or `U` (unknown: nothing follows)."""
        where = b"" if family == b"U" else UINT16.pack(port) + cstr(address)
        return self._event(v.CONNECT, cstr(host) + family + where, macros)

    def helo(self, name: bytes, macros: Macros = ()) -> bytes:
        """Return HELO; it may be repeated between messages."""
        return self._event(v.HELO, cstr(name), macros)

    def mail(self, sender: bytes, parameters: Sequence[bytes] = (), macros: Macros = ()) -> bytes:
        """Return MAIL; the sender has its angle brackets."""
        return self._event(v.MAIL, joined((sender, *parameters)), macros)

    def rcpt(self, address: bytes, parameters: Sequence[bytes] = (), macros: Macros = ()) -> bytes:
        """Return RCPT; the recipient has its angle brackets."""
        return self._event(v.RCPT, joined((address, *parameters)), macros)

    def data(self, macros: Macros = ()) -> bytes:
        """Return DATA."""
        return self._event(v.DATA, b"", macros)

    def header(self, name: bytes, value: bytes) -> bytes:
        """Return a field; the value is everything behind the colon, folded with LF.

        Without the milter's wish for leading space one space is left out. Raises MilterError if
        the field doesn't fit into a packet.
        """
        if not (self.agreed and self.agreed.leading_space):
            value = value.removeprefix(b" ")
        return self._event(v.HEADER, joined((name, value)))

    def headers(self, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Return fields as `header` does, all together, for a milter that answers none of them."""
        if v.HEADER in self._answered:
            raise MilterError("fields together, which are to be answered one by one")
        self._take_turn(v.HEADER)
        if not self.wants(v.HEADER):
            return b""
        self.begun = True
        space = b"" if self.agreed and self.agreed.leading_space else b" "
        return b"".join(
            [packet(v.HEADER, joined((name, value.removeprefix(space)))) for name, value in fields]
        )

    def end_of_header(self, macros: Macros = ()) -> bytes:
        """Return the end of the header."""
        return self._event(v.END_OF_HEADER, b"", macros)

    def body(self, piece: bytes) -> bytes:
        """Return a piece of the body, with CRLF; it may be cut anywhere, and isn't empty."""
        return self._event(v.BODY, piece)

    def end_of_body(self, macros: Macros = ()) -> bytes:
        """Return the end of the body, after which edits and the final answer come."""
        return self._event(v.END_OF_BODY, b"", macros)

    def abort(self) -> bytes:
        """End the message; return ABORT if the milter has seen a part of it, which it forgets."""
        if self._due or self._broken:
            raise MilterError("an abort out of order")
        begun, self.begun = self.begun, False
        self._rank = min(self._rank, _RANK[v.HELO])
        self._begin()
        return packet(v.ABORT) if begun else b""

    def quit(self) -> bytes:
        """Return QUIT; empty before the negotiation, or after the milter broke the protocol."""
        if self.agreed is None or self._broken or self._due:
            return b""
        return packet(v.QUIT)

    def _begin(self) -> None:
        """Begin with a new message."""
        self._skipped.clear()
        self.done = False
        self._edits = self._edited = self._body = self._pieces = self._progress = 0

    def _take_turn(self, event: bytes) -> None:
        """Note an event. Raises MilterError if it is out of order."""
        rank, before = _RANK[event], self._rank
        order = rank > before or (rank == before and event in _REPEATED)
        negotiates = before < 0
        if self._broken or self._due or not order or negotiates != (event == v.NEGOTIATE):
            raise MilterError(f'"{event.decode()}" out of order')
        self._rank = rank

    def _event(self, event: bytes, payload: bytes, macros: Macros = ()) -> bytes:
        if len(payload) > v.MAX_PAYLOAD:
            raise MilterError(f"{len(payload)} bytes in one packet, which milters don't take")
        self._take_turn(event)
        if event == v.MAIL:
            self._begin()
        if not self._listens(event):
            return b""
        if event not in _OF_SESSION:
            self.begun = True
        sent = b""
        if macros:
            sent = packet(v.MACROS, event + joined(macros))
        if event in self._wanted:
            sent += packet(event, payload)
            if event in self._answered:
                self._due = event
        return sent

    # -- receiving -----------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes from the milter; call `answer` until it returns None before the next ones."""
        self._packets.feed(data)

    def answer(self) -> Answer | Agreement | None:
        """Return the next answer; None if it isn't complete.

        Raises MilterError if the milter broke the protocol.
        """
        try:
            return self._answer()
        except MilterError:
            self._broken = True
            self._due = b""
            raise

    def _answer(self) -> Answer | Agreement | None:
        if self._broken:
            raise MilterError("the milter is out of step")
        if not self._due:
            if not self._packets.empty:
                raise MilterError("an answer to nothing")
            return None
        found = self._packets.next()
        if found is None:
            return None
        command, payload = found
        if command != v.REPLACE_BODY and len(payload) > v.MAX_PAYLOAD:
            raise MilterError(f"an answer of {len(payload)} bytes")
        if self._due == v.NEGOTIATE:
            return self._agree(command, payload)
        answer = parse_answer(command, payload)
        if isinstance(answer, Verdict) and answer.command == v.PROGRESS:
            self._progress += 1
            self._limit(self._progress, self._limits.progress, "reports of progress")
            return answer
        if isinstance(answer, Verdict | ReplyCode):
            self._conclude(answer)
        else:
            self._edit(answer, len(payload))
        return answer

    def _agree(self, command: bytes, payload: bytes) -> Agreement:
        if command != v.NEGOTIATE:
            raise MilterError(f"not a negotiation, but {shown(command)}")
        self.agreed = agreed = Agreement.parse(payload, self._offer)
        self._wanted, self._answered = agreed.events()
        self._ended()
        return agreed

    def _edit(self, edit: Answer, size: int) -> None:
        if self._due != v.END_OF_BODY:
            raise MilterError("an edit before the end of the message")
        if isinstance(edit, NewBody):
            self._body += size
            self._pieces += 1
            self._limit(self._body, self._limits.body, "bytes of a new body")
            self._limit(self._pieces, self._limits.pieces, "pieces of a new body")
            return
        self._edits += 1
        self._edited += size
        self._limit(self._edits, self._limits.edits, "edits")
        self._limit(self._edited, self._limits.edited, "bytes of edits")

    @staticmethod
    def _limit(number: int, most: int, what: str) -> None:
        if number > most:
            raise MilterError(f"more than {most} {what}")

    def _conclude(self, answer: Verdict | ReplyCode) -> None:
        event = self._due
        command = answer.command if isinstance(answer, Verdict) else v.REPLY_CODE
        if command == v.SKIP:
            if event == v.END_OF_BODY or event in _OF_SESSION:
                raise MilterError(f'"s" is no answer to "{event.decode()}"')
            self._skipped.add(event)
        elif event in _OF_SESSION:
            if command == v.DISCARD:
                raise MilterError("it discards a session")
            self.finished = command == v.ACCEPT
        elif command != v.CONTINUE and not (event == v.RCPT and _of_recipient(command)):
            self.done = True
        if event == v.END_OF_BODY:
            self.done = True
        self._ended()

    def _ended(self) -> None:
        """Note that the answer has come: nothing may be behind it."""
        self._due = b""
        if not self._packets.empty:
            raise MilterError("a second answer")


def _of_recipient(command: bytes) -> bool:
    """Whether an answer to a recipient concerns that recipient only."""
    return command in {v.REJECT, v.TEMPFAIL, v.REPLY_CODE}


if TYPE_CHECKING:
    from typing import TypeAlias

    #: Names of macros, each followed by its value; long names are in braces.
    Macros: TypeAlias = Sequence[bytes]
