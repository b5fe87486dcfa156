"""What filters of clients have in common: when they act, whom they exempt, what they do.

The law:

1. A filter of clients judges by the client alone, at the phase that `--phase` names.
2. Who is exempt (`exemptions`) passes. At connect and helo nobody has authenticated yet.
3. What is known is refused for good; what may be a mistake of the moment, with temporary codes.
4. A reply that smtpd would not take is an error at the start, whether it is used or not.

A filter's own file declares its flags, by the functions here or by `option`, and has its policy,
in `_judge`.
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

#: What the log says at the start of a filter that has a reply and refuses nobody.
REPLY_UNUSED = "--reply is not used: with --action junk nobody is refused"
#: What `--action` may be.
ACTIONS = choice("junk", "reject", "disconnect")
_PHASES = choice("connect", "helo", "mail-from", "rcpt-to")
_AT = {
    "connect": {"connect"},
    "helo": {"helo", "ehlo"},
    "mail-from": {"mail_from"},
    "rcpt-to": {"rcpt_to"},
}


def action_option(whom: str) -> str:
    """Declare `--action`; `whom` it is taken against."""
    return option(
        ACTIONS,
        default="junk",
        help=f"What to do with a client {whom}. At connect, reject disconnects as well, since "
        "smtpd would go on otherwise.",
    )


def phase_option() -> str:
    """Declare `--phase`."""
    return option(
        _PHASES,
        default="connect",
        help="When to do it. Clients that authenticate are exempt from mail-from on; before that "
        "nobody has authenticated yet.",
    )


def reply_option(default: str) -> str | None:
    """Declare `--reply`; `default` tells what a client is told otherwise."""
    return option(
        REPLY,
        default=None,
        help=f"The reply of a refusal, with its codes; by default {default}.",
    )


def decision(action: str, text: str) -> Junk | Reject | Disconnect:
    """Make what an action of `ACTIONS` is; ``text`` is a reply (ValueError)."""
    refusals: dict[str, Reject | Disconnect] = {
        "reject": Reject(text),
        "disconnect": Disconnect(text),
    }
    return refusals.get(action, JUNK)


class ClientSettings(Settings):
    """Settings of a filter of clients, which declares at least these."""

    if TYPE_CHECKING:
        exempt: Exempt
        allow: NetworkTable | None
        action: str
        phase: str
        reply: str | None


class ClientFilter(Filter):
    """A filter that judges by the client alone, in `_judge`."""

    Options = ClientSettings
    settings: ClientSettings

    _exempt = Exempt()

    def setup(self, *, waits: bool = False) -> Registration:
        """Choose the phase; a filter that looks something up `waits`."""
        settings = self.settings
        self._exempt = settings.exempt.also(settings.allow)
        if settings.phase in {"connect", "helo"}:
            self._exempt.note_phase(settings.phase, self.log)
            self._exempt = self._exempt.without_users()  # law 2
        if settings.reply is not None and settings.action == "junk":
            self.log.event(REPLY_UNUSED)
        return Registration(
            _AT[settings.phase],
            reports={"link-auth"} if self._exempt.users else (),
            junk=settings.action == "junk",
            waits=waits,
        )

    async def connect(self, session: Session) -> Answer:
        """Decide before smtpd greets the client."""
        return await self._decide(session)

    async def helo(self, session: Session, _identity: str) -> Answer:
        """Decide when the client greets, whatever its greeting is."""
        return await self._decide(session)

    ehlo = helo

    async def mail_from(self, session: Session, _address: str) -> Answer:
        """Decide for each message or recipient."""
        return await self._decide(session)

    rcpt_to = mail_from

    async def _decide(self, session: Session) -> Answer:
        """Judge a client, unless it is exempt."""
        why = self._exempt.reason(session)
        return exempted(self, why) if why else await self._judge(session)

    async def _judge(self, session: Session) -> Answer:
        """Decide about a client that is not exempt."""
        raise NotImplementedError

    def _refusal(
        self, detail: str, text: str, *, temporary: bool = False
    ) -> Junk | Reject | Disconnect:
        """Make what is done with a client: `detail` is the enhanced code without its class."""
        settings = self.settings
        code = self._temporary_code() if temporary else self._permanent_code()
        return decision(settings.action, settings.reply or f"{code} {code // 100}.{detail} {text}")

    def _permanent_code(self) -> int:
        # RFC 5321 section 3.1: "A 554 response MAY be given in the initial connection opening
        # message instead of the 220".
        return 554 if self.settings.phase == "connect" else 550

    def _temporary_code(self) -> int:
        # RFC 5321 section 4.2.3: 421 is "Service not available, closing transmission channel",
        # and section 3.8 knows no other that a server closes with.  450 is for what is
        # "temporarily blocked for policy reasons".
        closes = self.settings.phase == "connect" or self.settings.action == "disconnect"
        return 421 if closes else 450
