"""filter-policy: ask policy servers that were written for Postfix.

`request` builds the request, `reply` parses the reply and `actions` turns it into a decision, all
without I/O; `servers` and `client` ask the servers.

Invariants
----------
*Asked in turn*: a server may remember or count what it is asked, so that a chain asks it only when
the filters ahead of it have accepted the command.
*Only where asked*: the filter registers the stages of `--at`, and the header only if a field may be
added to it.
*Failure is no permission*: if no server gives a valid reply, or an action is not possible,
`--on-error` decides.
*Bounded*: replies have a length (`reply`), and fields of headers as well (`fields`).
"""

from __future__ import annotations

from smtpd_filters.checks.exemptions import Exempt, client_address, exempt_option, exempted
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.lookups.dns.setting import note_timeout
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.main import run
from smtpd_filters.protocol.decisions import PROCEED
from smtpd_filters.scanning.servers import client_of
from smtpd_filters.session import submitter
from smtpd_filters.settings import (
    INTEGER,
    LIST,
    MAX_DEADLINE,
    SECONDS,
    TEXT,
    Kind,
    Settings,
    choice,
    option,
)

from . import actions, request
from .fields import Kept, Messages
from .servers import SERVER, ClientSetting, Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.filter import OnError
    from smtpd_filters.message import Headers, Message
    from smtpd_filters.protocol.decisions import Decision, Proceed
    from smtpd_filters.session import Session

    from .actions import Action

#: The handlers of each stage.
STAGES = {
    "connect": ("connect",),
    "helo": ("helo", "ehlo"),
    "mail-from": ("mail_from",),
    "rcpt-to": ("rcpt_to",),
    "data": ("data",),
    "end-of-message": ("message",),
}


class _Outcome(Kind["tuple[str, str]"]):
    metavar = "ACTION=OUTCOME"
    noun = (
        f"ACTION=OUTCOME with an action of {', '.join(actions.DEFAULTS).lower()} and an outcome "
        f"of {', '.join(actions.OUTCOMES)}"
    )

    def parse(self, text: str) -> tuple[str, str]:
        name, _, outcome = text.partition("=")
        name = name.upper()
        if name not in actions.DEFAULTS or outcome not in actions.OUTCOMES:
            raise ValueError(f"expected {self.noun}, not {text[:60]!r}")
        if outcome == "rewrite" and name != "REDIRECT":
            raise ValueError(f"rewrite is an outcome of redirect, not {text[:60]!r}")
        return name, outcome

    def show(self, value: tuple[str, str]) -> str:
        name, outcome = value
        return f"{name.lower()}={outcome}"


class Policy(Filter):
    """Ask policy servers that speak Postfix's policy delegation protocol."""

    name = "policy"
    on_error: OnError = "tempfail"  # as Postfix
    early = False  # Asked in turn
    deadline = 60.0

    class Options(Settings):
        """The servers, when to ask them, and what becomes of their actions."""

        server = option(
            LIST(SERVER),
            required=True,
            help="A policy server: HOST:PORT or the path of a socket, also as Postfix writes them "
            "(inet:HOST:PORT, unix:/PATH); or exec:COMMAND, a program that is asked on its stdin. "
            "If given several times, the next server is asked when the ones before it fail; a "
            "server that failed three times in a row is passed over for 30 seconds.",
        )
        at = option(
            LIST(choice(*STAGES)),
            default=("rcpt-to",),
            help="When to ask: at connect, at helo (HELO or EHLO), at mail-from, at rcpt-to (each "
            "recipient), at data, and at end-of-message, when the size is known.",
        )
        timeout = option(
            SECONDS(low=0.01, high=MAX_DEADLINE),
            default=15.0,
            help="How long to wait for a server's reply before the next one is asked. The limit "
            "for all servers together is --deadline.",
        )
        connections = option(
            INTEGER(low=1, high=1000),
            default=16,
            help="How many requests are sent to a server at a time, over a connection each, which "
            "is kept for further ones; more requests wait. Of exec:COMMAND there are at most 8 "
            "processes. Clients of one network (IPv4 /24, IPv6 /64) get at most about half of "
            "them.",
        )
        prepend = option(
            choice("add", "ignore"),
            default="add",
            help="Whether the action PREPEND adds its field to the header. With ignore messages "
            "don't pass through the filter, unless it is asked at end-of-message.",
        )
        action = option(
            LIST(_Outcome()),
            default=(),
            help="What to do for an action that smtpd doesn't have (hold, discard, redirect, "
            "filter, bcc): proceed, junk, tempfail, reject, rewrite the recipient (redirect at "
            "rcpt-to), or fail, as --on-error says. By default hold is junk, discard is reject, "
            "redirect is rewrite, and the others fail.",
        )
        context = option(
            TEXT,
            default="",
            help="The attribute policy_context of requests, for servers with several policies.",
        )
        exempt = exempt_option(
            "local", "authenticated", what="Clients about which no server is asked"
        )

    settings: Options

    _client = ClientSetting()
    _exempt = Exempt()
    _outcomes: dict[str, str]
    _kept: Kept

    def setup(self) -> Registration:
        """Register the stages of `--at`."""
        settings = self.settings
        self._exempt = settings.exempt
        self._outcomes = self._chosen()
        self._kept = Kept()
        if "connect" in settings.at:
            self._exempt.note_phase("connect", self.log)
        handlers = {handler for stage in settings.at for handler in STAGES[stage]}
        if settings.prepend == "add" and "message" not in handlers:
            handlers.add("headers")
        reports = {"link-identify", "link-tls", "link-auth"}
        if handlers - {"connect", "helo", "ehlo"}:
            reports |= {"tx-begin", "link-greeting"}
        if handlers - {"connect", "helo", "ehlo", "headers"}:
            reports.add("protocol-client")  # size, sasl_method
        note_timeout(self)
        return Registration(handlers, reports=reports)

    def _chosen(self) -> dict[str, str]:
        """Return the outcome of each action; raise ConfigError for two outcomes."""
        chosen: dict[str, str] = {}
        for name, outcome in self.settings.action:
            if chosen.setdefault(name, outcome) != outcome:
                raise ConfigError(
                    f"--action: {name.lower()} is given twice, as {chosen[name]} and as {outcome}"
                )
        return actions.DEFAULTS | chosen

    @property
    def servers(self) -> Sequence[Server]:
        """The servers in the order in which they are asked."""
        return self.settings.server

    # -- stages --------------------------------------------------------------------------

    async def connect(self, session: Session) -> Decision:
        """Ask about a client."""
        return await self._ask(session, "connect", {"protocol_state": "CONNECT"})

    async def helo(self, session: Session, identity: str) -> Decision:
        """Ask about a greeting."""
        values = {"protocol_state": "HELO", "helo_name": identity, "protocol_name": "SMTP"}
        return await self._ask(session, "helo", values)

    async def ehlo(self, session: Session, identity: str) -> Decision:
        """Ask about a greeting."""
        values = {"protocol_state": "EHLO", "helo_name": identity, "protocol_name": "ESMTP"}
        return await self._ask(session, "ehlo", values)

    async def mail_from(self, session: Session, address: str) -> Decision:
        """Ask about a sender."""
        self._messages(session).begin()
        values = {"protocol_state": "MAIL", "sender": request.address(address, session.server_name)}
        return await self._ask(session, "mail_from", values)

    async def rcpt_to(self, session: Session, address: str) -> Decision:
        """Ask about a recipient."""
        values = self._of_transaction(session) | {
            "protocol_state": "RCPT",
            "recipient": request.address(address, session.server_name),
            "recipient_count": "0",
        }
        return await self._ask(session, "rcpt_to", values)

    async def data(self, session: Session) -> Decision:
        """Ask about a message before its content."""
        values = self._of_transaction(session) | {"protocol_state": "DATA"}
        return await self._ask(session, "data", values)

    async def message(self, session: Session, message: Message) -> Decision:
        """Ask about a message whose size is known."""
        values = self._of_transaction(session) | {
            "protocol_state": "END-OF-MESSAGE",
            "size": str(message.stored),
        }
        try:
            decision = await self._ask(session, "message", values)
        except UnavailableError as error:
            self._prepend(session, message.headers)  # the fields of earlier stages
            error.keeps_edits = True
            raise
        if decision.verb in ("proceed", "junk"):
            self._prepend(session, message.headers)
        return decision

    def headers(self, session: Session, headers: Headers) -> Proceed:
        """Add the fields of the servers."""
        self._prepend(session, headers)
        return PROCEED

    def _prepend(self, session: Session, headers: Headers) -> None:
        messages = self._messages(session)
        if session.tx is not None:
            messages.enter(session.tx)
        # access(5): "the first prepended header appears before the second".
        for name, value in reversed(messages.fields):
            headers.prepend(name, value)

    def link_disconnect(self, session: Session) -> None:
        """Release the fields of a session."""
        if self in session.scratch:
            self._messages(session).release()

    # -- the request ---------------------------------------------------------------------

    def _messages(self, session: Session) -> Messages:
        messages: Messages | None = session.scratch.get(self)
        if messages is None:
            messages = session.scratch[self] = Messages(self._kept)
        return messages

    def _of_transaction(self, session: Session) -> dict[str, str]:
        """Return the attributes of the transaction, as Postfix has them from DATA on.

        Raises UnavailableError if smtpd reported none.
        """
        tx = session.tx
        if tx is None or tx.sender is None:
            raise UnavailableError("the sender is not known", actions.MISCONFIGURED)
        self._messages(session).enter(tx)
        own, recipients = session.server_name, tx.recipients
        return {
            "sender": request.address(tx.sender, own),
            # SMTPD_POLICY_README: "the recipient is empty ... when there is more than one".
            "recipient": request.address(recipients[0], own) if len(recipients) == 1 else "",
            "recipient_count": str(len(recipients)),
            "queue_id": tx.msgid,
        }

    async def _ask(self, session: Session, phase: str, values: dict[str, str]) -> Decision:
        """Ask the servers; return the decision of their action."""
        if why := self._exempt.reason(session):
            return exempted(self, why)
        client_address(session)  # a client whose address is not known
        known = {
            **request.of_session(session),
            "instance": f"{session.id}.{self._messages(session).number}",
            "policy_context": self.settings.context,
            "recipient_count": "0",
            "size": "0",
        }
        if phase not in ("connect", "helo", "ehlo"):
            known["size"] = str(request.declared_size(session.mail_command))
            if session.username:
                known["sasl_method"] = session.auth_mechanism or ""
                known["sasl_sender"] = submitter(session) or ""
        reply = await self._client.ask_policy(request.build(known | values), client_of(session))
        if isinstance(reply, Unavailable):
            raise UnavailableError(reply.cause, actions.MISCONFIGURED)
        action = actions.parse(reply)
        decision = actions.decide(action, phase, self._outcomes)
        self._note(session, phase, action)
        accepts = action.name in actions.ACCEPTING or action.name in actions.NOTED
        return PROCEED if accepts and not self.log.verbose else decision

    def _note(self, session: Session, phase: str, action: Action) -> None:
        """Log an action that is only to be logged, and keep the field of a PREPEND."""
        if action.name in actions.NOTED:
            self.log.event(phase.replace("_", "-"), session, action=action.name, text=action.text)
        if action.name != actions.PREPEND or self.settings.prepend != "add":
            return
        field = actions.field(action)
        to_session = phase in ("connect", "helo", "ehlo")
        if field is None:
            self.log.limited("field", "not a header field", session, text=action.text)
        elif not self._messages(session).add(field, to_session=to_session):
            self.log.limited("fields", "too many header fields", session, text=action.text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-policy."""
    return run(Policy, argv=argv)
