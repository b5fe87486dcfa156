"""filter-tls: how mail has to be encrypted on its way here, and how it is.

`rules` are the requirements as an operator writes them, `channel` what smtpd tells of a connection,
`counts` the shares that are logged.

Invariants
----------
*Known, not guessed*: a connection whose beginning smtpd has not reported isn't treated as one
without TLS; `--on-error` decides.
*STARTTLS comes first*: a client without TLS isn't refused before MAIL, since it may still start it.
*Counted before enforced*: messages that a requirement with `action=log` would refuse are counted
and logged as well.
"""

from __future__ import annotations

import sys

from smtpd_filters.addresses import path
from smtpd_filters.checks.exemptions import (
    UNKNOWN,
    UNKNOWN_STATUS,
    Exempt,
    exempt_option,
    exempted,
)
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.main import run
from smtpd_filters.protocol.decisions import JUNK, PROCEED, Junk, Proceed, Reject, reply
from smtpd_filters.settings import SECONDS, TEXT, Settings, choice, option

from .channel import is_verified, parse_channel
from .counts import Counts
from .rules import ACTIONS, MAIL, RCPT, REQUIREMENT, Rules
from .rules import JUNK as MARK
from .rules import LOG as NOTE
from .rules import REJECT as REFUSE
from .rules import TEMPFAIL as DEFER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from smtpd_filters.addresses import Address
    from smtpd_filters.filter import OnError
    from smtpd_filters.message import Headers
    from smtpd_filters.session import Session

    from .channel import Channel
    from .rules import Rule

    Decided: TypeAlias = Proceed | Junk | Reject

#: The strictness of actions.
_RANK = {NOTE: 0, MARK: 1, DEFER: 2, REFUSE: 3}
_NO_TLS, _CERTIFICATE = "no TLS", "no verified certificate"
#: Characters of `--info`, so that a reply with it is no longer than a line of SMTP.
_MAX_INFO = 200


class _State:
    """What is remembered of a session."""

    __slots__ = ("failing", "refused")

    def __init__(self) -> None:
        #: Whether the current message is counted as failing.
        self.failing = False
        #: Whether the client was refused at its greeting, and counted.
        self.refused = False


class Tls(Filter):
    """Require TLS, by client, user, sender and recipient, and log how mail is encrypted."""

    name = "tls"
    on_error: OnError = "tempfail"

    class Options(Settings):
        """The requirements, and what happens to mail that doesn't meet them."""

        require = option(
            REQUIREMENT,
            default=Rules(),
            help="A version of TLS (any, 1.0, 1.1, 1.2 or 1.3), what else is required, and for "
            "whom: see Requirements in filter-tls(8). Without one, mail is only counted.",
        )
        action = option(
            choice(*ACTIONS),
            default=REFUSE,
            help="What to do with mail that doesn't meet a requirement without an action of its "
            "own: refuse it permanently (reject) or temporarily (tempfail), mark it as junk, or "
            "only log it.",
        )
        info = option(
            TEXT,
            default="",
            help="A text at the end of each refusal, such as the address of a page with help.",
        )
        summary = option(
            SECONDS(low=60, high=31 * 86400.0),
            default=3600.0,
            help="How often to log how many messages came with which version of TLS.",
        )
        exempt = exempt_option("local")

    settings: Options

    _exempt = Exempt()
    _rules: tuple[Rule, ...]
    _at_greeting: tuple[Rule, ...]
    _counts: Counts

    def setup(self) -> Registration:
        """Sort the requirements by the phases at which they are checked."""
        settings = self.settings
        self._exempt = exempt = settings.exempt
        self._rules = rules = settings.require.rules
        self._check(settings)
        self._counts = Counts(self.now())
        # No client has authenticated when it greets.
        self._at_greeting = tuple(
            rule
            for rule in rules
            if rule.of_client
            and rule.of_channel
            and self._action(rule) in {REFUSE, DEFER}
            and not exempt.users
        )
        handlers = {"mail_from"}
        if self._at_greeting:
            handlers |= {"helo", "ehlo"}
        if any(rule.of_recipient for rule in rules):
            handlers.add("rcpt_to")
        if any(rule.certificate for rule in rules):
            handlers.add("headers")
        reports = {"link-tls", "link-auth"}
        if any(rule.tables.keys() - {"client", "user"} for rule in rules):
            reports.add("link-greeting")
        if handlers & {"rcpt_to", "headers"}:
            reports.add("tx-begin")
        return Registration(
            handlers,
            reports=reports,
            junk=any(self._action(rule) == MARK for rule in rules),
            waits=False,
        )

    def _check(self, settings: Options) -> None:
        texts = [rule.text for rule in self._rules]
        if len(set(texts)) < len(texts):
            raise ConfigError("--require: a requirement is there twice")
        if "action" in settings.given and all(rule.action for rule in self._rules):
            raise ConfigError(
                "--action has no effect: each --require has an action, or there is none"
            )
        info = settings.info
        if not (info.isascii() and info.isprintable()) or len(info) > _MAX_INFO:
            raise ConfigError(f"--info: expected at most {_MAX_INFO} characters of printable ASCII")
        if info and not any(self._action(rule) in {REFUSE, DEFER} for rule in self._rules):
            raise ConfigError("--info has no effect without a requirement that refuses")

    def _action(self, rule: Rule) -> str:
        return rule.action or self.settings.action

    # -- phases --------------------------------------------------------------------------

    def helo(self, session: Session, _identity: str) -> Decided:
        """Refuse a client with TLS that no message from it can meet, before it authenticates."""
        if session.tls is None or self._exempt.reason(session):
            return PROCEED
        channel = self._channel(session)
        failed = [
            (rule, lack)
            for rule in self._at_greeting
            if rule.covers(_client(session), None) and (lack := rule.lacks(channel))
        ]
        if not failed:
            return PROCEED
        state = self._state(session)
        if not state.refused:
            state.refused = True
            self._count(channel, user=False)
            self._counts.failing += 1
        return self._decision(failed)

    ehlo = helo

    def mail_from(self, session: Session, address: str) -> Decided:
        """Count a message, and check what is required of its client, user and sender."""
        if why := self._exempt.reason(session):
            self._summarise()
            self._counts.exempt += 1
            return exempted(self, why)
        channel = self._channel(session)
        state = self._state(session)
        state.failing = False
        self._count(channel, user=bool(session.username))
        sender = self._address(session, address)
        covering = [rule for rule in self._of(session, sender) if rule.phase == MAIL]
        return self._judged(state, self._lacking(covering, channel))

    def rcpt_to(self, session: Session, address: str) -> Decided:
        """Check what is required for a recipient."""
        if why := self._exempt.reason(session):
            return exempted(self, why)
        recipient = self._address(session, address)
        covering = [
            rule
            for rule in self._of(session, self._sender(session))
            if rule.phase == RCPT and rule.covers_recipient(recipient)
        ]
        return self._judged(self._state(session), self._lacking(covering, self._channel(session)))

    def headers(self, session: Session, headers: Headers) -> Decided:
        """Check the client's certificate, of which only smtpd's Received field tells."""
        if why := self._exempt.reason(session):
            return exempted(self, why)
        recipients = [] if session.tx is None else session.tx.recipients
        addresses = [self._address(session, each) for each in recipients]
        failed = [
            rule
            for rule in self._of(session, self._sender(session))
            if rule.certificate
            and (not rule.of_recipient or any(map(rule.covers_recipient, addresses)))
        ]
        if not failed or self._verified(session, headers):
            return PROCEED
        return self._judged(self._state(session), [(rule, _CERTIFICATE) for rule in failed])

    # -- what is known -------------------------------------------------------------------

    def _state(self, session: Session) -> _State:
        state: _State | None = session.scratch.get(self)
        if state is None:
            state = session.scratch[self] = _State()
        return state

    def _channel(self, session: Session) -> Channel | None:
        """Return the encryption of a session; None for none (*Known, not guessed*)."""
        if session.tls is None:
            if not session.src:
                raise UnavailableError(UNKNOWN, UNKNOWN_STATUS)
            return None
        try:
            return parse_channel(session.tls)
        except ValueError as error:
            raise UnavailableError(str(error), UNKNOWN_STATUS) from None

    def _address(self, session: Session, address: str) -> Address:
        parsed = path(address)
        return parsed if parsed.domain else parsed.completed(self._server_name(session))

    def _server_name(self, session: Session) -> str | None:
        reports = self.registration.reports
        return session.server_name if reports and "link-greeting" in reports else None

    def _sender(self, session: Session) -> Address | None:
        tx = session.tx
        return None if tx is None else self._address(session, tx.sender or "")

    def _verified(self, session: Session, headers: Headers) -> bool:
        """Whether smtpd has verified a certificate of the client."""
        if session.tls is None or session.tx is None:
            return False
        field = headers.get("Received")
        verified = None
        if field is not None:
            verified = is_verified(field, session.tx.msgid, session.tls)
        if verified is None:
            raise UnavailableError("smtpd's own Received field is not the first", UNKNOWN_STATUS)
        return verified

    def _of(self, session: Session, sender: Address | None) -> Iterable[Rule]:
        client, user = _client(session), session.username
        return [rule for rule in self._rules if rule.covers(client, user, sender)]

    @staticmethod
    def _lacking(rules: Iterable[Rule], channel: Channel | None) -> list[tuple[Rule, str]]:
        return [(rule, lack) for rule in rules if (lack := rule.lacks(channel))]

    # -- decisions -----------------------------------------------------------------------

    def _judged(self, state: _State, failed: Sequence[tuple[Rule, str]]) -> Decided:
        """Count a message that fails, and return the decision on it."""
        if not failed:
            return PROCEED
        if not state.failing:
            state.failing = True
            self._counts.failing += 1
        return self._decision(failed)

    def _decision(self, failed: Sequence[tuple[Rule, str]]) -> Decided:
        """Return the strictest decision on requirements that aren't met, with all reasons."""
        rule, lack = max(failed, key=lambda each: (_RANK[self._action(each[0])], each[0].minimum))
        why = "; ".join(f"{lack}, required is {rule.text}" for rule, lack in failed)
        action = self._action(rule)
        if action == NOTE:
            return PROCEED.because(why)
        if action == MARK:
            return JUNK.because(why)
        return Reject(self._reply(rule, lack, temporary=action == DEFER)).because(why)

    def _reply(self, rule: Rule, lack: str, *, temporary: bool) -> str:
        required = f"{rule.required} is required {_scope(rule)}"
        if lack == _NO_TLS:
            # RFC 3207 section 4: "530 Must issue a STARTTLS command first".
            code, status, text = 530, "7.0", f"{required}: issue STARTTLS first"
        elif lack == _CERTIFICATE:
            code, status = 550, "7.1"
            text = f"A verified client certificate is required {_scope(rule)}"
        else:
            code, status = 550, "7.1"
            text = f"{required}, not {lack}: update your mail server's TLS library or its settings"
        if temporary:
            code = 450
        if self.settings.info:
            text = f"{text}. {self.settings.info}"
        return reply(code, f"{code // 100}.{status}", text)

    # -- counting ------------------------------------------------------------------------

    def _count(self, channel: Channel | None, *, user: bool) -> None:
        self._summarise()
        self._counts.add(channel, user=user)

    def _summarise(self) -> None:
        """Log the shares if the interval has passed, and begin the next."""
        now = self.now()
        if now - self._counts.since >= self.settings.summary:
            if values := self._counts.values(now):
                self.log.event("summary", **values)
            self._counts = Counts(now)


def _client(session: Session) -> str:
    """Return the key of a client in a table of networks."""
    return session.address or "local"


def _scope(rule: Rule) -> str:
    """Return for whom something is required, for a reply that says nothing of the tables."""
    if rule.of_recipient:
        return "for this recipient"
    if rule.tables.keys() & {"sender", "sender-domain"}:
        return "for this sender"
    if rule.authenticated or "user" in rule.tables:
        return "for this user"
    return "here"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-tls."""
    return run(Tls, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
