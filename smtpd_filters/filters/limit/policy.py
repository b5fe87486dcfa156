"""filter-limit: how much clients, users and senders may send, and how often a login may fail.

`rules` are the limits as an operator writes them, `subjects` what they are counted by, `overrides`
the exceptions, `ledger` what the store is asked, and `steps` the operations of that.

Invariants
----------
*Counted when asked*: a command counts when smtpd asks about it, so that no number of parallel
sessions exceeds a limit. If a limit refuses it, nothing of it counts.
*Guesses are bounded*: an authentication takes a token before smtpd checks the password, and gets it
back if the password is right.
*Broken memory*: if the store fails, `--on-error` decides, by default to proceed.
"""

from __future__ import annotations

import sys
from asyncio import sleep
from typing import TYPE_CHECKING

from smtpd_filters.checks.exemptions import Exempt, exempt_option, exempted
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.main import run
from smtpd_filters.protocol.decisions import PROCEED, Disconnect, Reject
from smtpd_filters.settings import (
    INTEGER,
    LIST,
    PATH,
    REPLY,
    SECONDS,
    Settings,
    choice,
    option,
    table,
)
from smtpd_filters.stores import Store

from .claims import Book, State
from .credentials import user_of
from .judgement import STRICTNESS, decision_on
from .ledger import MAX_BACKGROUND, REMEMBERED, RENEWAL, Ledger
from .notices import SENDMAIL, SharedNotices
from .overrides import OverrideTable
from .queues import Queues
from .rules import ACTIONS, BLOCK, CONNECTIONS, DELAY, JUNK, LIMIT, MAILBOX, REFUSED, TEMPFAIL
from .subjects import Prefixes, Values, fields, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from smtpd_filters.filter import OnError
    from smtpd_filters.message import Message
    from smtpd_filters.session import Session

    from .judgement import Decided
    from .ledger import Result
    from .rules import Rule
    from .steps import Breach, Claim

#: The reply to a blocked subject.
BLOCKED = "450 4.7.1 Sending is suspended, please contact the postmaster"
#: The part of `--deadline` that a delay may take.
OF_DEADLINE = 0.8
#: Seconds for which this process doesn't note a breach again.
NOTED_FOR = 60.0


def _none(_values: Values) -> Iterable[str]:
    return ()


class Limit(Filter):
    """Limit connections, messages, recipients and failed logins of clients, users and senders."""

    name = "limit"
    on_error: OnError = "proceed"  # Broken memory
    early = False  # it counts what it is asked
    refresh_interval = RENEWAL

    class Options(Settings):
        """The limits, and what happens beyond them."""

        limit = option(
            LIST(LIMIT),
            default=(),
            help="A limit, as SUBJECT COUNTED AMOUNT: see Limits in filter-limit(8).",
        )
        action = option(
            choice(*ACTIONS),
            default=TEMPFAIL,
            help="What to do beyond a limit that has no action of its own: delay the reply until "
            "there is room, but at most --max-delay, and then refuse temporarily; refuse "
            "temporarily (tempfail) or permanently (reject); mark as junk; log; or refuse "
            "temporarily and block the subject until it is released.",
        )
        override = option(
            table(OverrideTable),
            default=None,
            help="Users, addresses, domains (@example.org) and networks with limits of their own: "
            "lines of KEY unlimited, or KEY COUNTED AMOUNT, COUNTED AMOUNT and so on.",
        )
        max_delay = option(
            SECONDS(low=0.1, high=240), default=10.0, help="The longest delay of a reply."
        )
        client_prefix6 = option(
            INTEGER(low=16, high=128),
            default=64,
            help="The prefix length of the IPv6 networks that count as one client.",
        )
        network_prefix4 = option(
            INTEGER(low=8, high=32), default=24, help="The prefix length of an IPv4 network."
        )
        network_prefix6 = option(
            INTEGER(low=16, high=128), default=48, help="The prefix length of an IPv6 network."
        )
        blocked_reply = option(
            REPLY,
            default=BLOCKED,
            help="The reply to blocked subjects.",
        )
        notify_command = option(
            PATH,
            default=None,
            help="A program to run when a subject is blocked, with the arguments SUBJECT, LIMIT, "
            "ADDRESS of the client, and SESSION.",
        )
        notify_mail = option(
            MAILBOX,
            default=None,
            help="An address that gets a mail when a subject is blocked.",
        )
        sendmail = option(
            PATH, default=SENDMAIL, help="The program that submits this mail, as sendmail does."
        )
        exempt = exempt_option(what="Clients without limits")

    settings: Options
    store = Store.setting()
    _notices = SharedNotices()
    #: Requests at a time for which no command waits.
    background = MAX_BACKGROUND
    #: Breaches, and pasts of subjects, that this process remembers, so that a flood of them doesn't
    #: burden the store.
    remembered = REMEMBERED

    _exempt = Exempt()
    _prefixes: Prefixes
    _book: Book
    _opened: Ledger | None = None
    _notifies = False
    #: When this process has last noted the breach of a limit, by subject and rule.
    _noted: dict[tuple[str, str], float]
    _queues: Queues

    def setup(self) -> Registration:
        """Sort the rules by the commands at which they are checked."""
        settings = self.settings
        self._exempt = settings.exempt
        self._prefixes = Prefixes(
            settings.client_prefix6, settings.network_prefix4, settings.network_prefix6
        )
        if not settings.limit:
            raise ConfigError("--limit is required")
        seen = set()
        for rule in settings.limit:
            same = frozenset(rule.subject), rule.counted, rule.amount
            if same in seen:
                raise ConfigError(f"--limit: {rule.text} is there twice")
            seen.add(same)
        self._check_action()
        self._notifies = bool(settings.notify_command or settings.notify_mail)
        if self._notifies and not any(self._action(rule) == BLOCK for rule in settings.limit):
            flag = "command" if settings.notify_command else "mail"
            raise ConfigError(f"--notify-{flag} has no effect without a limit that blocks")
        self._book = book = Book(settings.limit, settings.override)
        self._noted = {}
        self._queues = Queues()
        events = {"refresh", "close"}
        if book.at_once or book.counts_refused:
            events.add("link_disconnect")
        if "auth" in book.handlers:
            events.add("link_auth")
        reports = {"link-auth"} if book.by_user or self._exempt.users else set()
        if book.by_address:
            reports.add("link-greeting")
        if book.counts_refused or book.handlers.keys() & {"rcpt_to", "message"}:
            reports.add("tx-begin")
        return Registration(
            book.handlers,
            reports=reports,
            events=events,
            junk=any(self._action(rule) == JUNK for rule in settings.limit),
            opens={"store", "_notices"} if self._notifies else {"store"},
        )

    def _check_action(self) -> None:
        """Raise ConfigError if the action of `--action` is not possible for a rule."""
        for rule in self.settings.limit:
            if not rule.action:
                try:
                    LIMIT.parse(f"{rule} action={self.settings.action}")
                except ValueError as error:
                    raise ConfigError(f"--action: {rule}: {error}") from None

    def _action(self, rule: Rule) -> str:
        return rule.action or self.settings.action

    def _delays(self, rule: Rule) -> bool:
        """Return whether a command waits until there is room: an override may be no rate."""
        return self._action(rule) == DELAY and bool(rule.amount.period)

    def _blocks(self, rule: Rule) -> bool:
        return self._action(rule) == BLOCK and not self.dry_run

    @property
    def _ledger(self) -> Ledger:
        if self._opened is None:
            self._opened = Ledger(
                self.store, self._note, background=self.background, remembered=self.remembered
            )
        return self._opened

    def _note(self, cause: str) -> None:
        self.log.limited(f"store {cause}", "store", error=cause)

    # -- phases --------------------------------------------------------------------------

    async def connect(self, session: Session) -> Decided:
        """Count a connection."""
        return await self._judge(session, "connect", self._book.blocks)

    async def mail_from(self, session: Session, address: str) -> Decided:
        """Count a message, and the connection of its user or sender."""
        return await self._judge(session, "mail_from", self._book.blocks, sender=address)

    async def rcpt_to(self, session: Session, address: str) -> Decided:
        """Count a recipient."""
        return await self._judge(session, "rcpt_to", sender=_sender(session), recipient=address)

    async def message(self, session: Session, message: Message) -> Decided:
        """Count the bytes of a message."""
        return await self._judge(session, "message", sender=_sender(session), cost=message.stored)

    async def auth(self, session: Session, credentials: str) -> Decided:
        """Count an authentication as failed, before smtpd checks it (*Guesses are bounded*)."""
        if why := self._exempt.reason(session):
            return exempted(self, why)
        state = self._state(session)
        values = Values(session, self._prefixes, user=user_of(credentials))
        claims = self._book.of("auth", values, session, state)
        decision, taken = await self._claim(session, "auth", claims)
        state.guess = taken if decision.verb == "proceed" else ()
        return decision

    def link_auth(self, session: Session) -> None:
        """Put back what a successful authentication has taken; count a failed one by its user."""
        state = self._state(session)
        guess, state.guess = state.guess, ()
        if session.username is not None:
            self._ledger.put_back(guess)
            return
        if self._exempt.reason(session):
            return
        known = {claim.key for claim in guess}
        values = Values(session, self._prefixes, user=session.failed_username)
        # With LOGIN, smtpd asks before the client has said which user it is.
        claims = self._book.of("auth", values, session, state)
        if late := [claim for claim in claims if claim.key not in known]:
            self._ledger.later(self._count(session, late))

    def link_disconnect(self, session: Session) -> None:
        """Release the leases of a session, and count its refused recipients."""
        if self._opened is None:
            return
        self._opened.leave(session.id)
        if self._book.counts_refused and not self._exempt.reason(session):
            values = self._values(session)
            if claims := self._book.of_refusals(values, session, self._state(session)):
                self._opened.later(self._count(session, claims))

    async def _count(self, session: Session, claims: Sequence[Claim]) -> None:
        """Make claims for which no command waits."""
        result = await self._ledger.take(claims)
        for breach in result.breaches:
            await self._note_breach(session, breach)

    async def refresh(self) -> None:
        """Renew the leases of connections."""
        if self._opened is not None:
            try:
                await self._opened.renew()
            except UnavailableError as error:
                self._note(str(error))

    async def close(self) -> None:
        """Release the leases."""
        if self._opened is not None:
            await self._opened.close()

    # -- claims --------------------------------------------------------------------------

    def _state(self, session: Session) -> State:
        state: State | None = session.scratch.get(self)
        if state is None:
            state = session.scratch[self] = State()
        return state

    def _values(
        self, session: Session, sender: str | None = None, recipient: str | None = None
    ) -> Values:
        user = session.username if self._book.by_user else None
        server_name = session.server_name if self._book.by_address else None
        return Values(
            session,
            self._prefixes,
            user=user,
            sender=sender,
            recipient=recipient,
            server_name=server_name,
        )

    async def _judge(  # noqa: PLR0913  # given by name
        self,
        session: Session,
        handler: str,
        blocks: Callable[[Values], Iterable[str]] = _none,
        *,
        sender: str | None = None,
        recipient: str | None = None,
        cost: int = 1,
    ) -> Decided:
        """Make the claims of a command."""
        if why := self._exempt.reason(session):
            return exempted(self, why)
        state = self._state(session)
        if handler == "connect":
            values = Values(session, self._prefixes)
        else:
            values = self._values(session, sender, recipient)
        claims = self._book.of(handler, values, session, state, cost=cost)
        decision, taken = await self._claim(session, handler, claims, blocks(values))
        state.counted.update(each.key for each in taken if each.rule.counted == CONNECTIONS)
        if any(claim.rule.counted == REFUSED for claim in claims):
            # A refusal of this filter's own doesn't count.
            state.refused = session.refused_recipients + (
                handler == "rcpt_to" and decision.text.startswith("5")
            )
        return decision

    async def _claim(
        self,
        session: Session,
        handler: str,
        claims: Iterable[Claim],
        blocks: Iterable[str] = (),
    ) -> tuple[Decided, Sequence[Claim]]:
        """Make claims; return the decision, and what was taken if the command passes."""
        claims = list(claims)
        # Of subjects that are asked anyway.
        blocks = {*blocks, *(each.subject for each in claims if self._blocks(each.rule))}
        if not claims and not blocks:
            return PROCEED, ()
        now = self.now()
        kept = {
            each.key
            for each in claims
            if self._delays(each.rule) and self._queues.keep_room(each.key, now)
        }
        result = await self._ledger.take(claims, blocks, kept)
        if result.blocked:
            self._ledger.put_back(result.counted)
            subject, reason = result.blocked[0]
            refusal = Disconnect if handler == "connect" else Reject
            why = f"{subject} is blocked: {reason}"
            return refusal(self.settings.blocked_reply).because(why), ()
        if result.breaches:
            result = await self._delayed(result)
        if not result.breaches:
            return PROCEED, result.taken
        return await self._refused(session, handler, result)

    async def _refused(
        self, session: Session, handler: str, result: Result
    ) -> tuple[Decided, Sequence[Claim]]:
        breach = max(
            result.breaches, key=lambda breach: STRICTNESS[self._action(breach.claim.rule)]
        )
        for each in result.breaches:
            await self._note_breach(session, each)
        decision = decision_on(breach, self._action(breach.claim.rule), handler)
        if decision.verb in {"reject", "disconnect"}:
            self._ledger.put_back(result.counted)
            return decision, ()
        return decision, result.taken

    async def _delayed(self, result: Result) -> Result:
        """Wait for limits with the action `delay`, if they alone are exceeded."""
        until = self.now() + min(self.settings.max_delay, OF_DEADLINE * self.deadline)
        place = self._queues.place()
        try:
            while result.breaches and not self.dry_run:
                if not all(self._delays(each.claim.rule) for each in result.breaches):
                    break
                result = result._replace(breaches=[*map(place.behind, result.breaches)])
                wait = max(each.wait for each in result.breaches)
                if self.now() + wait > until:
                    break
                place.enter(result.breaches, self.now() + wait)
                await sleep(wait)
                try:
                    again = await self._ledger.take([each.claim for each in result.breaches])
                except UnavailableError:
                    self._ledger.put_back(result.counted)
                    raise
                result = again._replace(taken=[*result.taken, *again.taken])
        finally:
            place.leave()
        return result

    # -- breaches ------------------------------------------------------------------------

    async def _note_breach(self, session: Session, breach: Breach) -> None:
        """Log the first breach of a limit by a subject, and block the subject if it says so."""
        claim = breach.claim
        blocks = self._blocks(claim.rule)
        now = self.now()
        known = claim.subject, claim.rule.text
        if not blocks and now - self._noted.get(known, -NOTED_FOR) < NOTED_FOR:
            return
        if len(self._noted) >= self.remembered:
            self._noted.clear()
        self._noted[known] = now
        try:
            first = await self._ledger.first(claim, reason=claim.rule.text if blocks else "")
        except UnavailableError as error:
            self._note(str(error))
            self._noted.pop(known, None)
            return
        if not first:
            return
        who = {"address": "local" if session.local else session.address or "unknown"}
        who |= fields(claim.subject)
        if blocks:
            self.log.event("blocked", session, **who, limit=claim.rule.text)
            if self._notifies:
                self._notices.give(
                    subject=shown(claim.subject),
                    limit=claim.rule.text,
                    address=who["address"],
                    session=session.id,
                )
        else:
            self.log.event("breach", session, **who, limit=claim.rule.text)


def _sender(session: Session) -> str | None:
    return session.tx.sender if session.tx is not None else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-limit."""
    return run(Limit, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
