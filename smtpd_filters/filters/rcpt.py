"""filter-rcpt: the policy that checks recipients, and stops clients that guess recipients.

smtpd replies to unknown recipients itself. The filter counts them from its reports, delays further
recipients of the client, and disconnects a client with too many. If a look-up fails, `--on-error`
decides.

Invariants
----------
*Counted from reports*: a recipient counts as guessed if smtpd has reported its permanent refusal.
*Own refusals don't count*: a recipient that this filter has refused is not a guess.
*Traps last*: a client that writes to a spam trap is a spammer until it disconnects. A bounce
doesn't spring a trap, since a spammer may have forged the trap's address as the sender.
*Bounded delay*: only clients that guess are delayed, without delaying others, and less than
`--deadline` and smtpd's session timeout. A dry run delays no client.
*No needless event loop*: without `--unknown-domain` and `--delay`, neither the event loop nor the
DNS library is loaded.
"""

from __future__ import annotations

import sys

from smtpd_filters.addresses import canonical, literal, path
from smtpd_filters.checks.exemptions import (
    Exempt,
    allow_option,
    check_users_option,
    exempt_option,
    exempted,
)
from smtpd_filters.checks.strictness import (
    Check,
    Findings,
    check_option,
    marks,
    require_check,
    require_entries,
    require_option,
)
from smtpd_filters.errors import ConfigError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.lookups.outcome import NODATA, Found, NotFound, Unavailable
from smtpd_filters.main import run
from smtpd_filters.protocol.decisions import PROCEED, Disconnect, Junk, Proceed, Reject
from smtpd_filters.settings import INTEGER, SECONDS, Settings, option, table
from smtpd_filters.tables import AddressTable, DomainTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smtpd_filters.addresses import Address
    from smtpd_filters.protocol.decisions import Answer
    from smtpd_filters.session import Session

# Postfix disconnects after 20 errors (smtpd_hard_error_limit), and delays replies from 10 on
# (smtpd_soft_error_limit).
MAX_UNKNOWN = 20
#: The maximum share of `--deadline`, and of smtpd's session timeout, for a delay.
PATIENCE = 0.75
#: smtpd's default `smtp-session-timeout` in seconds, if it doesn't report it.
SESSION_TIMEOUT = 300.0

_GUESSED = "421 4.7.0 Too many unknown recipients, closing the connection"
_NO_MAIL = "550 5.1.2 The recipient's domain has no mail exchanger and no address"
#: The maximum of doublings of a delay; the result is in the range of floats.
_DOUBLINGS = 64
# RFC 7505 section 6: "X.1.10", "Recipient address has null MX", "Associated basic status code:
# 556".
_NULL_MX = "556 5.1.10 The recipient's domain accepts no mail (null MX)"


class Rcpt(Filter):
    """Refuse impossible recipients, and clients that guess recipients."""

    name = "rcpt"
    early = False  # it counts what it is asked, and delays clients

    class Options(Settings):
        """The checks, their tables and limits, and the exemptions."""

        domains = option(
            table(DomainTable, by_key=True),
            default=None,
            help="Own domains, for which mail is not relayed. A star covers one label.",
        )
        non_fqdn = check_option(
            "reject",
            "What to do with a recipient without a domain, or with one that isn't own and has no "
            "dot, or brackets without an address in them. The postmaster needs no domain.",
        )
        unknown_domain = check_option(
            "off",
            "What to do with a recipient whose domain isn't own and can't receive mail: it doesn't "
            "exist, has neither MX nor address records, or declares that it accepts none (null "
            "MX). Requires --domains.",
        )
        traps = option(
            table(AddressTable, by_key=True),
            default=None,
            help="Spam traps: addresses that were never in use and never published.",
        )
        trapped = check_option(
            "junk",
            "What to do with a client that has written to a spam trap, from then on: with that "
            "message, and with all that follow on the connection. A message without a sender (a "
            "bounce) springs no trap.",
        )
        max_recipients = option(
            INTEGER(low=1),
            default=None,
            help="The maximum of recipients of a message. RFC 5321 requires at least 100.",
        )
        many_recipients = check_option(
            "reject",
            "What to do with the recipients beyond --max-recipients. They are refused temporarily: "
            "mail servers send them another message.",
        )
        null_sender = check_option(
            "log",
            "What to do with a message without a sender (a bounce) that has a second recipient. "
            "Few honest ones have.",
        )
        max_unknown = option(
            INTEGER(low=1),
            default=MAX_UNKNOWN,
            help="The maximum of recipients on one connection that are unknown to smtpd, or "
            "permanently refused for another reason than this filter's.",
        )
        unknown_recipients = check_option(
            "reject",
            "What to do with a client that has tried --max-unknown recipients in vain, when it "
            "tries another one; reject closes the connection.",
        )
        delay = option(
            SECONDS(high=240),
            default=0.0,
            help="The delay of the reply to a recipient once the client has tried half of "
            "--max-unknown in vain. It doubles with each further unknown recipient.",
        )
        max_delay = option(
            SECONDS(high=240),
            default=20.0,
            help="The maximum of the delay; it never exceeds three quarters of --deadline, or of "
            "the timeout of smtpd's sessions.",
        )
        check_users = check_users_option()
        exempt = exempt_option("local", "authenticated")
        allow = allow_option()

    settings: Options
    dns = Resolver.setting(takes="a recipient that needs two in a row takes 16 s")

    _exempt = Exempt()
    _non_fqdn: Check
    _unknown_domain: Check
    _trapped: Check
    _many: Check
    _null: Check
    _unknown: Check
    _disconnect: Disconnect

    def setup(self) -> Registration:
        """Prepare the checks, and check that the settings are consistent."""
        settings = self.settings
        self._non_fqdn = Check(
            settings.non_fqdn, "504 5.5.2 The recipient's address is not fully qualified"
        )
        self._unknown_domain = Check(
            settings.unknown_domain, "550 5.1.2 The recipient's domain does not exist"
        )
        self._trapped = Check(
            settings.trapped if settings.traps is not None else "off",
            "550 5.7.1 Refused by local policy",
        )
        # RFC 5321 section 4.5.3.1.10: "If an SMTP server has an implementation limit on the number
        # of RCPT commands and this limit is exhausted, it MUST use a response code of 452".
        self._many = Check(
            settings.many_recipients if settings.max_recipients is not None else "off",
            "452 4.5.3 Too many recipients, send the others another message",
        )
        self._null = Check(
            settings.null_sender, "550 5.5.3 A message without a sender has one recipient"
        )
        self._unknown = Check(settings.unknown_recipients, _GUESSED)
        self._disconnect = Disconnect(_GUESSED)
        checks = (
            *(self._non_fqdn, self._unknown_domain, self._trapped),
            *(self._many, self._null, self._unknown),
        )
        self._check_settings(checks)
        self._exempt = settings.exempt.also(settings.allow)
        if settings.check_users:
            self._exempt = self._exempt.check_users()
        handlers = {"rcpt_to"}
        if self._trapped.action == "reject":
            # Otherwise recipients accepted before the trap would get the message.
            handlers.add("data")
        return Registration(
            handlers,
            reports=self._reports(),
            junk=marks(checks),
            waits=self._unknown_domain.on or settings.delay > 0,
            opens={"dns"} if self._unknown_domain.on else (),
        )

    def _check_settings(self, checks: Iterable[Check]) -> None:
        """Raise ConfigError for settings that are inconsistent or have no effect."""
        settings = self.settings
        require_check(checks)
        require_option(settings, "trapped", "traps")
        require_option(settings, "many_recipients", "max_recipients")
        require_entries(settings, "traps")
        if settings.traps is not None and settings.trapped == "off":
            raise ConfigError("--traps has no effect with --trapped off")
        if settings.max_recipients is not None and settings.many_recipients == "off":
            raise ConfigError("--max-recipients has no effect with --many-recipients off")
        if settings.delay > settings.max_delay:
            raise ConfigError(
                f"--delay: must be at most --max-delay, which is {settings.max_delay:g} s, not "
                f"{settings.delay:g} s"
            )
        if self._unknown_domain.on and settings.domains is None:
            raise ConfigError("--unknown-domain requires --domains")
        if not self._unknown_domain.on:
            Rcpt.dns.refuse_unused(self, "--unknown-domain other than off")
        if settings.delay and settings.unknown_recipients in {"off", "log"}:
            raise ConfigError("--delay requires --unknown-recipients junk or reject")

    def _reports(self) -> set[str]:
        """Return the reports that the checks need."""
        settings = self.settings
        counted = settings.traps is not None or settings.max_recipients is not None
        counted |= {settings.null_sender, settings.unknown_recipients} != {"off"}
        needed = {"tx-begin"} if counted else set()
        if settings.traps is not None:
            needed.add("link-greeting")
        if self._exempt.users:
            needed.add("link-auth")
        return needed

    async def rcpt_to(self, session: Session, address: str) -> Answer:
        """Judge a recipient, after a delay if the client guesses."""
        if why := self._exempt.reason(session):
            return exempted(self, why)
        if (disconnect := self._disconnection(session)) is not None:
            return disconnect
        found = Findings()
        domain = await self._check(session, path(address), found)
        asks = self._unknown_domain.on and domain and not found.refused
        if seconds := self._wait(session):
            from asyncio import sleep  # already loaded if the filter waits

            if asks:
                self.dns.start(domain, "MX")
            await sleep(seconds)
        if asks:
            await self._look_up(domain, found)
        return self._decide(session, found)

    def data(self, session: Session) -> Proceed | Junk | Reject:
        """Refuse a message with a spam trap among its recipients."""
        if why := self._exempt.reason(session):
            return exempted(self, why)
        trap = _note(self, session).trap
        if not trap:
            return PROCEED
        return self._trapped.failed(f"has written to the spam trap {trap}")

    # -- the client ------------------------------------------------------------------------

    def _disconnection(self, session: Session) -> Disconnect | None:
        """Return the decision for a client with too many guesses, else None."""
        if self._unknown.action != "reject":
            return None
        guessed = self._guessed(session)
        if guessed < self.settings.max_unknown:
            return None
        return self._disconnect.because(f"{guessed} unknown recipients")

    def _check_client(self, session: Session, found: Findings) -> None:
        """Make the checks of the client, independent of the recipient."""
        note = _note(self, session)
        if note.trap and self._trapped.action != "log":  # logged when it was sprung
            found.failed(self._trapped, f"has written to the spam trap {note.trap}")
        if self._unknown.action in {"log", "junk"}:
            guessed = self._guessed(session)
            if guessed >= self.settings.max_unknown and not note.guesser:
                # Log it once, but mark every message.
                note.guesser = self._unknown.action == "log"
                found.failed(self._unknown, f"{guessed} unknown recipients")

    def _guessed(self, session: Session) -> int:
        """Return the number of guesses (*Counted from reports*, *Own refusals don't count*)."""
        refused = session.refused_recipients
        return refused - _note(self, session).refused if refused else 0

    # -- the recipient ---------------------------------------------------------------------

    async def _check(self, session: Session, address: Address, found: Findings) -> str:
        """Make the checks without the DNS; return the domain to look up, or ""."""
        self._check_client(session, found)
        domain = canonical(address.domain)
        domains = self.settings.domains
        ours = domains is not None and await domains.look_up(domain) is not None
        is_literal = bool(literal(domain))
        # RFC 5321 section 4.1.1.3: "RCPT TO:<Postmaster> (with no domain)" is valid.
        is_name = "." in domain and domain[0] != "["
        if not (is_name or ours or is_literal) and (
            domain or address.local.lower() != "postmaster"
        ):
            found.failed(self._non_fqdn, f"recipient {address} is not fully qualified")
        self._check_message(session, found)
        if self._trapped.on and not _note(self, session).trap:
            await self._check_traps(session, address, found)
        return domain if domain and not (ours or is_literal) else ""

    def _check_message(self, session: Session, found: Findings) -> None:
        """Check the number of the message's recipients."""
        if not (self._many.on or self._null.on) or session.tx is None:
            return
        count = len(session.tx.recipients)
        # Log it once; otherwise each further recipient is one too many.
        limit = self.settings.max_recipients
        if limit is not None and _exceeds(count - limit, self._many):
            found.failed(self._many, f"{count} recipients already")
        if session.tx.sender == "" and _exceeds(count - 1, self._null):
            found.failed(self._null, "null sender with several recipients")

    async def _check_traps(self, session: Session, address: Address, found: Findings) -> None:
        traps = self.settings.traps
        if traps is None:
            return
        address = address.completed(session.server_name)
        trap = await traps.look_up_address(address)
        # *Traps last*
        if trap is not None and not (session.tx is not None and session.tx.sender == ""):
            _note(self, session).trap = str(address)
            found.failed(self._trapped, f"recipient {address} is a spam trap: {trap}")

    def _decide(self, session: Session, found: Findings) -> Proceed | Junk | Reject:
        """Return the decision, and count it if smtpd will report it as a permanent refusal."""
        decision = found.decision()
        if type(decision) is Reject and decision.text[0] == "5" and not self.dry_run:
            _note(self, session).refused += 1
        return decision

    # -- look-ups and delays ---------------------------------------------------------------

    async def _look_up(self, domain: str, found: Findings) -> None:
        """Check in the DNS whether a domain can receive mail."""
        check = self._unknown_domain
        match await self.dns.mx(domain):
            case Found(exchangers, _, gap):
                if not gap and all(each.exchange == "." for each in exchangers):
                    found.failed(check, f"domain {domain} has a null MX", _NULL_MX)
            case Unavailable(cause):
                found.unavailable(check, cause)
            case NotFound(reason) if reason != NODATA:
                found.failed(check, f"domain {domain} does not exist")
            case NotFound():
                # RFC 5321 section 5.1: "If an empty list of MXs is returned, the address is treated
                # as if it was associated with an implicit MX RR".
                hosts = await self.dns.query_all([(domain, "A"), (domain, "AAAA")])
                unknown = [each.cause for each in hosts if isinstance(each, Unavailable)]
                if any(isinstance(each, Found) for each in hosts):
                    pass
                elif unknown:
                    found.unavailable(check, unknown[0])
                else:
                    found.failed(check, f"domain {domain} has neither MX nor address", _NO_MAIL)

    def _wait(self, session: Session) -> float:
        """Return the client's delay in seconds (*Bounded delay*)."""
        settings = self.settings
        if not settings.delay or self.dry_run:
            return 0.0
        value = self.smtpd.get("smtp-session-timeout", "")
        timeout = float(value[:9]) if value.isascii() and value.isdecimal() else SESSION_TIMEOUT
        most = min(settings.max_delay, PATIENCE * self.deadline, PATIENCE * timeout)
        return wait(self._guessed(session), settings.max_unknown, settings.delay, most)


class _Note:
    """The filter's state of a session."""

    __slots__ = ("guesser", "refused", "trap")

    def __init__(self) -> None:
        #: The spam trap that the client has written to.
        self.trap = ""
        #: The number of recipients that this filter has refused permanently.
        self.refused = 0
        #: Whether it has been logged that the client guesses.
        self.guesser = False


def _note(filter_: Rcpt, session: Session) -> _Note:
    note: _Note | None = session.scratch.get(filter_)
    if note is None:
        note = session.scratch[filter_] = _Note()
    return note


def _exceeds(beyond: int, check: Check) -> bool:
    return beyond == 0 or (beyond > 0 and check.action != "log")


def wait(guessed: int, limit: int, first: float, most: float) -> float:
    """Return the delay of a client with this number of guesses, in seconds.

    From half of the `limit` it is `first`, then doubles with each further guess, up to `most`.
    """
    beyond = guessed - max(limit // 2, 1)
    if beyond < 0:
        return 0.0
    return min(first * 2.0 ** min(beyond, _DOUBLINGS), most)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-rcpt."""
    return run(Rcpt, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
