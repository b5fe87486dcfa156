"""filter-milter: ask milters, the filters of Sendmail and Postfix.

`smtpd_filters.milter` speaks the protocol; `links` are the connections; `dialogues` asks all
milters about a session, and `dialogue` brings one to a stage of it; `facts` is what it gets,
`content` the message and its edits, `outcomes` are the replies. `probe` asks at start what a milter
wants, so that smtpd is asked for nothing else.

Invariants
----------
*Never unscanned by accident*: a milter that fails is not passed over, unless the operator chose
so: `--on-error` decides, for each of them; the others are asked in any case.
*Lazily*: a milter is connected to at the first stage whose answer matters, by default MAIL.
Sessions without mail cost nothing, and the greeting, TLS and login are known by then.
*First refusal*: milters are asked in order, and the first refusal ends it.
*Content at the end*: a refusal of the content is sent at `commit`, and the lines go back unchanged.
"""

from __future__ import annotations

from functools import partial

from smtpd_filters.checks.exemptions import exempt_option, exempted
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.lookups.failover.breaker import REST
from smtpd_filters.main import run
from smtpd_filters.protocol.decisions import Disconnect, Proceed, Reject
from smtpd_filters.scanning.options import envelope_option
from smtpd_filters.settings import (
    INTEGER,
    LIST,
    MAX_DEADLINE,
    SECONDS,
    TEXT,
    Settings,
    choice,
    option,
)

from .endpoints import ENDPOINT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from smtpd_filters.filter import OnError
    from smtpd_filters.message import Headers, Message
    from smtpd_filters.milter import Offer
    from smtpd_filters.protocol.decisions import Answer, ContentAnswer
    from smtpd_filters.runtime.probes import Probe
    from smtpd_filters.sandbox import Needs
    from smtpd_filters.session import Session

    from .dialogue import Milter as Configured
    from .dialogues import Dialogues

#: Seconds for all trials at start: smtpd waits for its filters.
TRIALS = 10.0
#: The reports that the facts are made of; that of commands has the parameters of MAIL.
REPORTS = (
    "link-greeting", "link-identify", "link-tls", "link-auth", "tx-begin", "protocol-client",
)  # fmt: skip


class Milter(Filter):
    """Ask milters, the filters of Sendmail and Postfix."""

    name = "milter"
    on_error: OnError = "tempfail"  # Never unscanned by accident
    # RFC 5321 section 4.5.3.2.6: a client waits 10 minutes for the reply to its final dot.
    deadline = MAX_DEADLINE
    early = False  # milters count what they are asked, and see what comes before

    class Options(Settings):
        """The milters, when and how they are asked, and what becomes of what smtpd can't do."""

        milter = option(
            LIST(ENDPOINT),
            required=True,
            help="A milter: inet:HOST:PORT or unix:PATH as in Postfix, or inet:PORT@HOST as in the "
            "configuration of milters. If given several times, they are asked in this order, and "
            "each sees the edits of those before it.",
        )
        connect_timeout = option(
            SECONDS(low=0.01, high=MAX_DEADLINE),
            default=30.0,
            help="How long to wait for a connection to a milter and its first answer.",
        )
        command_timeout = option(
            SECONDS(low=0.01, high=MAX_DEADLINE),
            default=30.0,
            help="How long to wait for a milter's answer to a command: connection, greeting, "
            "sender, recipient, DATA.",
        )
        content_timeout = option(
            SECONDS(low=0.01, high=MAX_DEADLINE),
            default=MAX_DEADLINE,
            help="How long to wait for a milter's answer to a part of a message. A milter that "
            "reports progress has this time again, up to --deadline.",
        )
        exempt = exempt_option(what="Clients about which milters aren't asked")
        first_phase = option(
            choice("connect", "helo", "mail-from"),
            default="mail-from",
            help="The first phase at which milters are asked. With connect, a milter that refuses "
            "a client does so before its greeting, but it doesn't know the name in smtpd's "
            "greeting yet, and is asked about clients that send no mail.",
        )
        recipients = option(
            choice("asked", "accepted"),
            default="asked",
            help="Which recipients milters are asked about: each one that the client names, before "
            "smtpd itself may refuse it; or those that smtpd has accepted, when the client sends "
            "DATA, and then a milter that refuses one refuses the message.",
        )
        discard = option(
            choice("reject", "accept"),
            default="reject",
            help="What to do with a message that a milter discards, which smtpd can't: refuse it, "
            "or accept it.",
        )
        quarantine = option(
            choice("junk", "tempfail", "reject", "accept"),
            default="junk",
            help="What to do with a message that a milter quarantines; smtpd can't hold mail. "
            "Unless it is refused, it gets the milter's reason in the field X-Milter-Quarantine.",
        )
        envelope_changes = envelope_option()
        long_fields = option(
            choice("cut", "reject"),
            default="cut",
            help="What to do with a header field that doesn't fit into a packet, which has 65,535 "
            "bytes: send milters the lines that fit, as Postfix does, and log it; or refuse the "
            "message. A message with such a From, MIME-Version or Content-* field is refused in "
            "any case, since milters judge by the sender and find attachments by these.",
        )
        daemon_name = option(
            TEXT,
            default="",
            help="The value of the macro {daemon_name}, by which a milter may choose its policy; "
            "by default the name in smtpd's greeting.",
        )
        protocol_version = option(
            INTEGER(low=2, high=6),
            default=6,
            help="The newest version of the milter protocol to offer; some old milters refuse a "
            "newer one than theirs.",
        )
        connections = option(
            INTEGER(low=1, high=10000),
            default=100,
            help="How many connections to a milter are open at a time. Beyond that the one that "
            "has been idle for longest is closed, and opened again when its session needs it. "
            "Clients of one network (IPv4 /24, IPv6 /64) get at most about half of them.",
        )

    settings: Options
    #: Seconds between two trials of a milter that is no longer waited for.
    rest = REST

    _milters: list[Configured]
    #: Begins the dialogues about a session.
    _begin: Callable[[Session], Dialogues]

    @classmethod
    def outcomes(cls) -> tuple[OnError, ...]:
        """Return the choices of `--on-error`.

        `commit` allows no mark, but is registered only if there is none to make.
        """
        return ("proceed", "junk", "tempfail")

    def setup(self) -> Registration:
        """Ask the milters what they want, and register that."""
        from socket import gethostname

        from smtpd_filters.milter import Offer  # not for --help

        from .dialogue import Milter as Configured
        from .dialogues import Dialogues
        from .links import Links  # imports asyncio
        from .outcomes import DISCARDED

        settings = self.settings
        offer = Offer.of(settings.protocol_version)
        self._milters = [
            Configured(
                address,
                Links(
                    address,
                    offer,
                    limit=settings.connections,
                    seconds=settings.connect_timeout,
                    note=self.log.event,
                    rest=self.rest,
                ),
                command=settings.command_timeout,
                content=settings.content_timeout,
                discarded=Reject(DISCARDED) if settings.discard == "reject" else None,
                cuts=settings.long_fields == "cut",
            )
            for address in settings.milter
        ]
        self._begin = partial(Dialogues, self, self._milters, host=gethostname())
        self._try(offer)
        return Registration(self._phases(), reports=REPORTS)

    def _try(self, offer: Offer) -> None:
        """Negotiate with each milter, to learn what it wants."""
        from time import monotonic

        from smtpd_filters.milter.vocabulary import ENVELOPE as CHANGES

        from .probe import NoAgreementError, probe

        until = monotonic() + TRIALS
        for milter in self._milters:
            seconds = min(self.settings.connect_timeout, max(until - monotonic(), 0.01))
            try:
                milter.agreed = probe(milter.address, offer, seconds)
            except NoAgreementError as error:
                self.log.event(
                    "not reached at start: registering all phases",
                    milter=milter.label,
                    cause=str(error),
                )
                continue
            if milter.agreed.actions & CHANGES:
                self.log.event(
                    "may change envelopes, which smtpd takes from no filter",
                    milter=milter.label,
                    then=self.settings.envelope_changes,
                )

    def _phases(self) -> set[str]:
        from .phases import wanted

        return wanted(
            [milter.agreed for milter in self._milters],
            first=self.settings.first_phase,
            recipients=self.settings.recipients,
            marks=self.on_error == "junk",
        )

    def needs(self, needs: Needs) -> None:
        """Declare a descriptor for each connection; the option `milter` declares the addresses."""
        each = self.settings.connections + 1  # for a ping
        needs.to_open(each * len(self.settings.milter))

    def probes(self) -> Iterator[Probe]:
        """Yield a probe for each milter: a negotiation."""
        from smtpd_filters.runtime.probes import Probe

        for milter in self._milters:
            yield Probe(f"milter {milter.label}", milter.links.ping)

    async def close(self) -> None:
        """Close the idle connections."""
        for milter in self._milters:
            await milter.links.aclose()

    # -- phases ------------------------------------------------------------------------------

    async def connect(self, session: Session) -> Answer:
        """Ask about the client."""
        return self._exempted(session) or await self._dialogues(session).connect()

    async def helo(self, session: Session, identity: str) -> Answer:
        """Ask about the greeting."""
        return self._exempted(session) or await self._dialogues(session).helo(identity)

    ehlo = helo

    async def mail_from(self, session: Session, address: str) -> Answer:
        """Ask about the sender."""
        dialogues = self._dialogues(session)
        dialogues.facts.begin(address)
        return self._exempted(session) or await dialogues.mail_from()

    async def rcpt_to(self, session: Session, address: str) -> Answer:
        """Ask about a recipient."""
        return self._exempted(session) or await self._dialogues(session).rcpt_to(address)

    async def data(self, session: Session) -> Answer:
        """Ask at DATA."""
        return self._exempted(session) or await self._dialogues(session).data()

    async def message(self, session: Session, message: Message) -> ContentAnswer:
        """Pass the message through the milters."""
        return self._exempted(session) or await self._dialogues(session).message(message)

    async def commit(self, session: Session) -> Proceed | Reject | Disconnect:
        """Ask milters that want nothing of a message."""
        return self._exempted(session) or await self._dialogues(session).commit()

    def link_disconnect(self, session: Session) -> None:
        """Close the connections of the session."""
        dialogues: Dialogues | None = session.scratch.pop(self, None)
        if dialogues is not None:
            dialogues.end()

    def remove_forged(self, session: Session, headers: Headers) -> None:
        """Do so for clients that aren't exempt."""
        from .content import QUARANTINE  # loaded by `setup`

        if not self.settings.exempt.known_reason(session):
            QUARANTINE.remove(headers)

    def _exempted(self, session: Session) -> Proceed | None:
        """Return the decision about an exempt client; None for any other."""
        why = self.settings.exempt.reason(session)
        return exempted(self, why) if why else None

    def _dialogues(self, session: Session) -> Dialogues:
        """Return the dialogues about a session."""
        dialogues: Dialogues | None = session.scratch.get(self)
        if dialogues is None:
            dialogues = session.scratch[self] = self._begin(session)
        return dialogues


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-milter."""
    return run(Milter, argv=argv)
