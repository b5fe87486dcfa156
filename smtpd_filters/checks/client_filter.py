"""The base class of filters that judge the client alone: its phase, exemptions and refusals.

Invariants
----------
*Client only*: the decision depends on the client alone, and is made at the phase that `--phase`
names.
*Users from mail-from on*: exempt clients (`exemptions`) pass, but at connect and helo no client has
authenticated yet.
*Temporary when in doubt*: a permanent code is for established facts; a refusal for a possibly
temporary failure has a temporary code.
*Replies checked at start*: a reply that smtpd would not accept is an error at start, whether it is
used or not.

A subclass declares its flags, by the functions here or by `option`, and implements `_judge`.
"""

from __future__ import annotations

from smtpd_filters.filter import Filter, Registration
from smtpd_filters.protocol.decisions import JUNK, Disconnect, Junk, Reject
from smtpd_filters.settings import REPLY, Settings, choice, option

from .exemptions import Exempt, exempted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.protocol.decisions import Answer
    from smtpd_filters.session import Session
    from smtpd_filters.tables import NetworkTable

#: The log text at the start of a filter with `--reply` and `--action junk`.
REPLY_UNUSED = "--reply has no effect with --action junk"
#: The values of `--action`.
ACTIONS = choice("junk", "reject", "disconnect")
#: The handlers at each value of `--phase`.
HANDLERS_AT = {
    "connect": {"connect"},
    "helo": {"helo", "ehlo"},
    "mail-from": {"mail_from"},
    "rcpt-to": {"rcpt_to"},
}
_PHASE = choice(*HANDLERS_AT)


def action_option(whom: str) -> str:
    """Declare `--action`; `whom` completes "a client ..."."""
    return option(
        ACTIONS,
        default="junk",
        help=f"What to do with a client {whom}. At connect, reject disconnects as well, since "
        "smtpd would keep the connection open otherwise.",
    )


def phase_option() -> str:
    """Declare `--phase`."""
    return option(
        _PHASE,
        default="connect",
        help="The phase at which to do it. Authenticated clients are exempt from mail-from on; at "
        "earlier phases no client has authenticated yet.",
    )


def reply_option(default: str) -> str | None:
    """Declare `--reply`; `default` describes the default reply."""
    return option(
        REPLY,
        default=None,
        help=f"The SMTP reply of a refusal, with its codes; by default {default}.",
    )


def decision(action: str, text: str) -> Junk | Reject | Disconnect:
    """Return the decision of an action in `ACTIONS`; raise ValueError if `text` is no reply."""
    refusals: dict[str, Reject | Disconnect] = {
        "reject": Reject(text),
        "disconnect": Disconnect(text),
    }
    return refusals.get(action, JUNK)


class ClientSettings(Settings):
    """The settings that every client filter declares at least."""

    if TYPE_CHECKING:
        exempt: Exempt
        allow: NetworkTable | None
        action: str
        phase: str
        reply: str | None


class ClientFilter(Filter):
    """A filter that judges the client alone, in `_judge`."""

    Options = ClientSettings
    settings: ClientSettings

    _exempt = Exempt()

    def setup(self) -> Registration:
        """Return the registration for `--phase`; a filter with look-ups sets its `waits`."""
        settings = self.settings
        self._exempt = settings.exempt.also(settings.allow)
        if settings.phase in {"connect", "helo"}:
            self._exempt.note_phase(settings.phase, self.log)
            self._exempt = self._exempt.without_users()  # *Users from mail-from on*
        if settings.reply is not None and settings.action == "junk":
            self.log.event(REPLY_UNUSED)
        return Registration(
            HANDLERS_AT[settings.phase],
            reports={"link-auth"} if self._exempt.users else (),
            junk=settings.action == "junk",
            waits=False,
        )

    async def connect(self, session: Session) -> Answer:
        """Judge the client before smtpd greets it."""
        return await self._decide(session)

    async def helo(self, session: Session, _identity: str) -> Answer:
        """Judge the client at its greeting, whatever that is."""
        return await self._decide(session)

    ehlo = helo

    async def mail_from(self, session: Session, _address: str) -> Answer:
        """Judge the client at each message or recipient."""
        return await self._decide(session)

    rcpt_to = mail_from

    async def _decide(self, session: Session) -> Answer:
        """Judge the client unless it is exempt."""
        why = self._exempt.reason(session)
        return exempted(self, why) if why else await self._judge(session)

    async def _judge(self, session: Session) -> Answer:
        """Return the decision on a client that is not exempt."""
        raise NotImplementedError

    def _refusal(
        self, detail: str, text: str, *, temporary: bool = False
    ) -> Junk | Reject | Disconnect:
        """Return the decision of `--action`; `detail` is the enhanced code without its class."""
        settings = self.settings
        code = self._temporary_code() if temporary else self._permanent_code()
        return decision(settings.action, settings.reply or f"{code} {code // 100}.{detail} {text}")

    def _permanent_code(self) -> int:
        # RFC 5321 section 3.1: "A 554 response MAY be given in the initial connection opening
        # message instead of the 220".
        return 554 if self.settings.phase == "connect" else 550

    def _temporary_code(self) -> int:
        # RFC 5321 section 4.2.3: 421 is "Service not available, closing transmission channel", by
        # section 3.8 the only code to close a connection with. 450 is for a mailbox "temporarily
        # blocked for policy reasons".
        closes = self.settings.phase == "connect" or self.settings.action == "disconnect"
        return 421 if closes else 450
