"""One milter in one session: brought to each stage, however much of the session it has missed.

A milter is connected to at the first stage that is asked about, and is sent what came before. The
same happens after its connection was lost, or was closed because others need it, and for stages
that smtpd doesn't ask this filter about.

Invariants
----------
*Refused stays refused*: a refusal of the session or of the message is returned at each later stage
of it, and the milter isn't asked again.
*Reset between messages*: ABORT is sent before the next message if the milter has seen a part of
one, so that a milter that needs it forgets the last one.
*One retry*: if a milter closes its connection, the stage is repeated once with a new one.
"""

from __future__ import annotations

from math import inf
from time import monotonic

from smtpd_filters.milter import MilterError, Verdict
from smtpd_filters.milter import vocabulary as v
from smtpd_filters.milter.macros import chosen
from smtpd_filters.runtime.counters import COUNTERS, PASSED_OVER
from smtpd_filters.scanning.outcomes import safe
from smtpd_filters.scanning.servers import client_of

from .content import Wishes, cut, fits
from .facts import Facts, bracketed, encoded
from .gate import FailedError
from .links import KIND
from .outcomes import LONG_FIELD, closing, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from smtpd_filters.lookups.stream.address import Address
    from smtpd_filters.milter import Agreement, ReplyCode
    from smtpd_filters.protocol.decisions import Disconnect, Reject

    from .content import Draft
    from .links import Link, Links

    Refusal: TypeAlias = Reject | Disconnect

_SESSION = frozenset({v.CONNECT, v.HELO})
#: The beginnings of the names of fields of which milters get everything or nothing.
_WHOLE = (b"from", b"content-", b"mime-version")
_TO_RECIPIENT = frozenset({v.RCPT, v.DATA})
_CONTENT = frozenset({v.HEADER, v.END_OF_HEADER, v.BODY, v.END_OF_BODY})


class Milter:
    """One milter as it is configured: its address, its times, its connections.

    `agreed` is the result of the trial at start; None if it was not reached. `discarded` is the
    decision for a message that it discards, None to accept it. `cuts` says whether it gets a part
    of a field that doesn't fit into a packet.
    """

    def __init__(  # noqa: PLR0913  # given by name
        self,
        address: Address,
        links: Links,
        *,
        command: float,
        content: float,
        discarded: Reject | None,
        cuts: bool = True,
    ) -> None:
        self.address = address
        self.links = links
        self.command, self.content = command, content
        self.discarded = discarded
        self.cuts = cuts
        self.agreed: Agreement | None = None
        self.label = address.label

    async def ping(self) -> bool | None:
        """Return whether it answers a session of this machine, up to the command missed last.

        None if that is not known, as when it refuses connections. The session has no content, the
        null sender and a recipient here, so that what a milter may remember of it concerns no mail.
        """
        facts = Facts.of_this_machine()
        dialogue = Dialogue(self, facts)
        event = self.links.missed_last
        try:
            dialogue.link = await self.links.open(None)
            if event in _TO_RECIPIENT:
                await dialogue.bring(v.RCPT, f"postmaster@{facts.identity}")
            if event != v.RCPT:
                await dialogue.bring(event)
        except FailedError as error:
            return False if error.silent or error.failure == PASSED_OVER else None
        finally:
            if dialogue.link is not None:
                dialogue.link.end()
        return True


class Dialogue:
    """The state of one milter in one session."""

    __slots__ = (
        "_counts",
        "_greeted",
        "_over",
        "_passed",
        "_refusal",
        "_refused",
        "_sent_to",
        "_serial",
        "_until",
        "facts",
        "failed",
        "link",
        "milter",
    )

    def __init__(self, milter: Milter, facts: Facts) -> None:
        self.milter = milter
        self.facts = facts
        self._counts = COUNTERS.of(KIND)
        self.link: Link | None = None
        #: The time until which it may be asked.
        self._until = inf
        #: The greeting with its encryption, and the transaction, that the connection has been sent.
        self._greeted: tuple[str | None, str | None] | None = None
        self._serial = 0
        #: How many of smtpd's recipients it has been sent; -1 if it is sent each as it comes.
        self._sent_to = 0
        #: Whether it has accepted the session; the refusal of the session.
        self._passed = False
        self._refusal: Refusal | None = None
        #: The transaction that it has accepted, and the refusal of one.
        self._over = 0
        self._refused: tuple[int, Refusal] | None = None
        #: The transaction in which it failed: it isn't asked again in the same.
        self.failed = 0

    def settled(self, event: bytes = v.MAIL) -> tuple[bool, Refusal | None]:
        """Return whether the milter has nothing more to say, and its refusal if there is one.

        What it said about a message doesn't concern a greeting, which may follow STARTTLS.
        """
        if self._passed or self._refusal is not None:
            return True, self._refusal
        if event in _SESSION:
            return False, None
        serial = self.facts.serial
        if self._refused is not None and self._refused[0] == serial:
            return True, self._refused[1]
        return serial > 0 and self._over == serial, None

    async def at(
        self,
        event: bytes,
        recipient: str | None = None,
        draft: Draft | None = None,
        *,
        until: float = inf,
    ) -> Refusal | None:
        """Bring the milter to a stage; return its refusal. Raises FailedError.

        It may take until `until` by the loop's clock. `recipient` is the one that is asked about.
        At the end of the body `draft` is the message, None if the milter wants nothing of it.
        """
        over, refused = self.settled(event)
        if over:
            return refused
        link, self._until = self.link, until
        before, began = 0 if link is None else link.asked, monotonic()
        try:
            async with self.milter.links.at_commands.admission(self.milter.ping, until):
                refused = await self.bring(event, recipient, draft)
        except FailedError as error:
            self._counts.ended_since(began, error.failure)
            raise
        if self.link is not link or (link is not None and link.asked > before):
            self._counts.ended_since(began)
        return refused

    async def bring(
        self, event: bytes, recipient: str | None = None, draft: Draft | None = None
    ) -> Refusal | None:
        """Bring the milter to the stage of an event, whatever its circuit says.

        Tries once more over a new connection if the milter closes the first.
        """
        try:
            return await self._in_step(event, recipient, draft)
        except FailedError as error:
            if not error.lost:
                raise
        return await self._in_step(event, recipient, draft)

    async def _in_step(
        self, event: bytes, recipient: str | None, draft: Draft | None
    ) -> Refusal | None:
        link = self.link
        if link is None or link.closed:
            link = await self._open()
            self._greeted, self._serial, self._sent_to = None, 0, 0
        link.use(self._until)
        try:
            refused = await self._reach(link, event, recipient, draft)
            await link.flush(self.milter.command)
        except MilterError as error:  # what can't be said to a milter, such as a long field
            link.abort()
            raise FailedError(str(error)) from None
        except FailedError as error:
            error.silent = error.silent and self.milter.links.missed(link.mta.due, link.answers)
            link.abort()
            raise
        except BaseException:  # cancelled as well: an answer may be due
            link.abort()
            raise
        link.rest()
        return refused

    async def _open(self) -> Link:
        try:
            client = client_of(self.facts.session)
            self.link = link = await self.milter.links.open(client, self._until)
        except FailedError as error:
            error.silent = False  # counted there
            raise
        return link

    async def _reach(
        self, link: Link, event: bytes, recipient: str | None, draft: Draft | None
    ) -> Refusal | None:
        for step in (self._session, self._message):
            over, refused = await step(link, event)
            if over:
                return refused
        if recipient is not None:
            return await self._recipient(link, recipient)
        if event == v.RCPT:
            return None
        if refused := await self._recipients(link):
            return refused
        if event == v.DATA or event in _CONTENT:
            refused = await self._data(link)
        if refused or event not in _CONTENT:
            return refused
        return await self._content(link, draft)

    async def _session(self, link: Link, event: bytes) -> tuple[bool, Refusal | None]:
        """Send CONNECT and HELO, as far as they are due."""
        facts, mta, command = self.facts, link.mta, self.milter.command
        if self._greeted is None:
            self._greeted = None, None
            sent = mta.connect(*facts.endpoint(), self._macros(link, v.CONNECT))
            if not link.put(sent) and self._judged(v.CONNECT, await link.tell(sent, command)):
                return self.settled()
        greeting = facts.identity, facts.session.tls  # it is repeated after STARTTLS
        if event != v.CONNECT and facts.identity and greeting != self._greeted:
            link.keep(mta.abort())
            self._greeted = greeting
            self._serial = 0
            sent = mta.helo(encoded(facts.identity), self._macros(link, v.HELO))
            if not link.put(sent) and self._judged(v.HELO, await link.tell(sent, command)):
                return self.settled()
        return event in _SESSION, None

    async def _message(self, link: Link, event: bytes) -> tuple[bool, Refusal | None]:
        """Send MAIL, after an ABORT for the message before, unless it was sent."""
        facts, mta = self.facts, link.mta
        if self._serial == facts.serial:
            return event == v.MAIL, None
        link.keep(mta.abort())
        self._serial, self._sent_to = facts.serial, 0
        macros = self._macros(link, v.MAIL)
        sent = mta.mail(bracketed(facts.sender), facts.parameters, macros)
        if not link.put(sent) and self._judged(v.MAIL, await link.tell(sent, self.milter.command)):
            return self.settled()
        replayed = event == v.RCPT and facts.recipients
        if replayed and (refused := await self._recipients(link)):
            return True, refused
        return event == v.MAIL, None

    async def _recipient(self, link: Link, recipient: str) -> Refusal | None:
        """Send one recipient as it comes; its refusal concerns it alone."""
        if self._sent_to >= 0:
            # Those before it have been sent, or else smtpd has accepted none.
            self._sent_to = -1
        parameters = self.facts.recipient_parameters(recipient)
        answer = await self._rcpt(link, recipient, parameters)
        refused = refusal(answer) if answer is not None else None
        if refused is None:
            self._judged(v.RCPT, answer)
            return self.settled()[1]
        return refused

    async def _recipients(self, link: Link) -> Refusal | None:
        """Send the recipients that smtpd has accepted, unless each was sent as it came.

        It is too late to refuse one of them: the message is refused instead.
        """
        if self._sent_to < 0:
            return None
        recipients = self.facts.recipients
        while self._sent_to < len(recipients):
            recipient = recipients[self._sent_to]
            self._sent_to += 1
            if self._judged(v.RCPT, await self._rcpt(link, recipient)):
                return self.settled()[1]
        return None

    async def _rcpt(
        self, link: Link, recipient: str, parameters: Sequence[bytes] = ()
    ) -> Verdict | ReplyCode | None:
        macros = self._macros(link, v.RCPT, recipient)
        sent = link.mta.rcpt(bracketed(recipient), parameters, macros)
        return None if link.put(sent) else await link.tell(sent, self.milter.command)

    async def _data(self, link: Link) -> Refusal | None:
        if link.mta.reached(v.DATA):
            return None
        sent = link.mta.data(self._macros(link, v.DATA))
        if not link.put(sent):
            self._judged(v.DATA, await link.tell(sent, self.milter.command))
        return self.settled()[1]

    async def _content(self, link: Link, draft: Draft | None) -> Refusal | None:
        """Send the message, and apply what the milter wants of it."""
        if draft is None and (link.mta.wants(v.HEADER) or link.mta.wants(v.BODY)):
            # Restarted as another one: smtpd was not asked for messages at start.
            raise FailedError("it wants messages, unlike at start: restart smtpd")
        for step in (self._headers, self._end_of_header, self._body):
            if await step(link, draft):
                return self.settled()[1]
        mta, seconds = link.mta, self.milter.content
        wishes = Wishes(draft)
        try:
            sent = mta.end_of_body(self._macros(link, v.END_OF_BODY))
            answer = None if link.put(sent) else await link.tell(sent, seconds, wishes.take)
            if not self._judged(v.END_OF_BODY, answer) or not self.settled()[1]:
                # A refusal makes the edits void.
                agreed = mta.agreed
                await wishes.apply(leading_space=bool(agreed and agreed.leading_space))
        finally:
            wishes.discard()
        self._over = self.facts.serial
        return self.settled()[1]

    async def _headers(self, link: Link, draft: Draft | None) -> bool:
        mta = link.mta
        if draft is None or not mta.wants(v.HEADER):
            return False
        if mta.answers(v.HEADER) or len(draft.headers.text()) > v.MAX_PAYLOAD:
            return await self._each_header(link, draft)
        sent = mta.headers(draft.headers.fields())  # each of them fits into a packet
        if not link.put(sent):
            await link.tell(sent, self.milter.content)
        return False

    async def _each_header(self, link: Link, draft: Draft) -> bool:
        """Send the fields that the milter answers, or that may not fit into a packet."""
        mta, seconds = link.mta, self.milter.content
        together: list[tuple[bytes, bytes]] | None = None if mta.answers(v.HEADER) else []
        for name, value in draft.headers.fields():
            part = value if fits(name, value) else self._cut(draft, name, value)
            if part is None:
                self._refused = self.facts.serial, LONG_FIELD
                return True
            if together is not None:
                together.append((name, part))
                continue
            if self._judged(v.HEADER, await link.tell(mta.header(name, part), seconds)):
                return True
            if not mta.wants(v.HEADER):
                break
        if together:
            sent = mta.headers(together)
            if not link.put(sent):
                await link.tell(sent, seconds)
        return False

    def _cut(self, draft: Draft, name: bytes, value: bytes) -> bytes | None:
        """Return the lines of a field that fit into a packet, or None to refuse the message.

        Milters judge by the address in From, and find attachments by the boundary in Content-Type,
        which would be out of their sight.
        """
        if not self.milter.cuts or name.lower().startswith(_WHOLE):
            return None
        part = cut(name, value)
        shown = safe(name, 80)
        draft.note(f"{self.milter.label} was sent {len(part)} bytes of {len(value)} of {shown}")
        return part

    async def _end_of_header(self, link: Link, _draft: Draft | None) -> bool:
        sent = link.mta.end_of_header(self._macros(link, v.END_OF_HEADER))
        if link.put(sent):
            return False
        return self._judged(v.END_OF_HEADER, await link.tell(sent, self.milter.content))

    async def _body(self, link: Link, draft: Draft | None) -> bool:
        mta, seconds = link.mta, self.milter.content
        if draft is not None and mta.wants(v.BODY):
            for piece in draft.pieces():
                sent = mta.body(piece)
                if not link.put(sent) and self._judged(v.BODY, await link.tell(sent, seconds)):
                    return True
                if not mta.wants(v.BODY):
                    break
        return False

    def _macros(self, link: Link, event: bytes, recipient: str = "") -> Sequence[bytes]:
        return self.facts.macros(event, chosen(event, link.mta.agreed), recipient)

    def _judged(self, event: bytes, answer: Verdict | ReplyCode | None) -> bool:
        """Note an answer; return whether the milter has nothing more to say."""
        if answer is None:
            return False
        if refused := refusal(answer):
            if event == v.CONNECT:
                self._refusal = closing(refused)
            elif event == v.HELO:
                self._refusal = refused
            else:
                self._refused = self.facts.serial, refused
            return True
        command = answer.command if isinstance(answer, Verdict) else v.CONTINUE
        if command == v.ACCEPT and event in _SESSION:
            self._passed = True
        elif command == v.ACCEPT:
            self._over = self.facts.serial
        elif command == v.DISCARD:
            if self.milter.discarded is None:
                self._over = self.facts.serial
            else:
                self._refused = self.facts.serial, self.milter.discarded
        return command in {v.ACCEPT, v.DISCARD}
