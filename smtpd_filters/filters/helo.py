"""filter-helo: the policy that checks the HELO or EHLO name of clients.

Each check is off, logs, marks or refuses (`strictness`). If a look-up fails, `--on-error` decides.
Mail programs greet with arbitrary names, and no client has authenticated at its greeting: so by
default the filter acts at `mail-from`, where authenticated clients are exempt.

Invariants
----------
*Syntax first*: a malformed greeting fails without a look-up. Only names that are valid in the DNS
are looked up, and not those that smtpd has already confirmed for the client.
*No needless event loop*: if the checks that use the DNS are off, neither the event loop nor the DNS
library is loaded.
"""

from __future__ import annotations

import sys

from smtpd_filters.addresses import canonical
from smtpd_filters.checks.client_filter import HANDLERS_AT
from smtpd_filters.checks.exemptions import (
    UNKNOWN,
    UNKNOWN_STATUS,
    Exempt,
    allow_option,
    exempt_option,
    exempted,
    known_address,
)
from smtpd_filters.checks.hosts import (
    address_of,
    is_loopback,
    read_address,
    read_name,
    unmapped,
    write_address,
)
from smtpd_filters.checks.strictness import (
    Check,
    Findings,
    check_option,
    checks_of,
    marks,
    require_entries,
)
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.lookups.outcome import NXDOMAIN, Found, NotFound, Unavailable
from smtpd_filters.main import run
from smtpd_filters.protocol.decisions import PROCEED, Junk, Proceed, Reject
from smtpd_filters.settings import Settings, choice, option, table
from smtpd_filters.tables import DomainTable, HostTable, IPTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from typing import Any, TypeAlias, TypeVar

    from smtpd_filters.checks.hosts import Address
    from smtpd_filters.lookups.dns import RecordType
    from smtpd_filters.lookups.outcome import Outcome
    from smtpd_filters.session import Session

    T = TypeVar("T")

    Decision: TypeAlias = Proceed | Junk | Reject

#: The SMTP reply of each check.
# RFC 5321 section 4.2.3 has 501, "Syntax error in parameters or arguments", and section 4.3.2 has
# 504 and 550 for a refused EHLO. RFC 3463 has X.5.2, "Syntax error", and X.7.1, "Delivery not
# authorized, message refused". Postfix uses the same codes, except 450 by default for a name that
# is not in the DNS, since it doesn't distinguish failures from negative answers.
REPLIES = {
    "invalid": "501 5.5.2 Your HELO name is neither a host name nor an address literal",
    "non_fqdn": "504 5.5.2 Your HELO name is not a fully qualified host name",
    "foreign_literal": "550 5.7.1 The address in your HELO is not the one you come from",
    "own": "550 5.7.1 Your HELO name is one of ours",
    "unknown": "550 5.7.1 Your HELO name does not exist in the DNS",
    "elsewhere": "550 5.7.1 Your HELO name does not lead to the address you come from",
}
#: The checks that use the DNS.
ASKING = ("unknown", "elsewhere")

# RFC 2606 section 2 and RFC 6761 section 6.3: every machine's own name.
_LOCALHOST = frozenset({"localhost", "localhost.localdomain"})


class Greeting:
    """The HELO name of a client, and the results of its checks.

    `name` is the name to look up, "" if there is none; `decision` is None until it is made.
    """

    __slots__ = ("decision", "findings", "identity", "name", "unavailable")

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.name = ""
        self.findings = Findings()
        self.decision: Decision | None = None
        #: Whether the decision failed, and is to be tried again.
        self.unavailable = False

    def decide(self) -> Decision:
        """Return the decision, and keep it; the reasons of one that proceeds are logged once."""
        self.unavailable = True
        decision = self.findings.decision()
        self.unavailable = False
        self.decision = PROCEED if type(decision) is Proceed else decision
        return decision

    def __str__(self) -> str:
        return self.identity


class Helo(Filter):
    """Refuse clients whose HELO or EHLO name cannot be theirs."""

    name = "helo"

    class Options(Settings):
        """The checks, the own names and addresses, the exemptions and the phase."""

        invalid = check_option(
            "reject",
            "What to do with a greeting that is neither a host name nor an address literal such as "
            "[192.0.2.1] or [IPv6:2001:db8::1]: a bare address is neither.",
        )
        non_fqdn = check_option(
            "reject", "What to do with a name that is not fully qualified: one without a dot."
        )
        foreign_literal = check_option(
            "reject", "What to do with an address literal that is not the client's address."
        )
        own = check_option(
            "reject",
            "What to do with a stranger that greets with the name of this server (as smtpd has "
            "it), one in --own-names, localhost, a loopback address, the address that it has "
            "connected to, or one in --own-addresses. A client is not a stranger if its address is "
            "in --own-addresses, or if the name is its confirmed reverse name.",
        )
        unknown = check_option(
            "log", "What to do with a name for which the DNS has neither an address nor an MX."
        )
        elsewhere = check_option(
            "off",
            "What to do with a name that doesn't resolve to the client's address. RFC 5321 "
            "forbids refusing mail for this alone.",
        )
        own_names = option(
            table(HostTable, by_key=True),
            default=None,
            help="Further own names. A star covers one label: *.example.org is a.example.org, but "
            "neither example.org nor a.b.example.org.",
        )
        own_addresses = option(
            table(IPTable), default=None, help="Further own addresses and networks."
        )
        exempt = exempt_option("local", "authenticated")
        allow = allow_option()
        allow_names = option(
            table(DomainTable, by_key=True),
            default=None,
            help="Greetings that are never refused. Any client can use them.",
        )
        phase = option(
            choice("helo", "mail-from", "rcpt-to"),
            default="mail-from",
            help="The phase at which to act. Authenticated clients are exempt from mail-from on; "
            "at helo no client has authenticated yet.",
        )

    settings: Options
    dns = Resolver.setting(takes="a client that needs two in a row takes 16 s")

    _checks: dict[str, Check]
    _exempt = Exempt()
    _uses_dns: bool

    def setup(self) -> Registration:
        """Prepare the checks, and return the registration for `--phase`."""
        settings = self.settings
        self._checks = checks_of(settings, REPLIES)
        require_entries(settings, "own_names", "own_addresses")
        if settings.own == "off":
            for flag, given in (
                ("--own-names", settings.own_names),
                ("--own-addresses", settings.own_addresses),
            ):
                if given is not None:
                    raise ConfigError(f"{flag} has no effect with --own off")
        self._exempt = settings.exempt.also(settings.allow)
        if settings.phase == "helo":
            self._exempt.note_phase(settings.phase, self.log)
        self._uses_dns = any(self._checks[name].on for name in ASKING)
        if not self._uses_dns:
            Helo.dns.refuse_unused(self, "--unknown or --elsewhere other than off")
        late = settings.phase != "helo"
        reports = {"link-auth"} if self._exempt.users else set()
        if late:
            reports.add("link-identify")
        return Registration(
            HANDLERS_AT[settings.phase],
            reports=reports,
            # At helo the decision follows at once.
            events={"link_identify"} if self._uses_dns and late else (),
            junk=marks(self._checks.values()),
            waits=self._uses_dns,
        )

    def link_identify(self, session: Session) -> None:
        """Start to look up the name ahead of the client's mail."""
        identity = session.identity or ""
        tables = (self.settings.allow_names, self.settings.own_names)
        if any(names is not None and names.by_key for names in tables):
            return  # they may have to be waited for
        if self._exempt.reason(session) or done(self._allowed(identity)):
            return
        greeting = done(self._greeting(session, identity))
        if greeting.name and not greeting.findings.refused:
            for rdtype in self._types(session):
                self.dns.start(greeting.name, rdtype)

    async def helo(self, session: Session, identity: str) -> Proceed | Junk | Reject:
        """Judge the client at its greeting."""
        if why := self._exempt.reason(session) or await self._allowed(identity):
            return exempted(self, why)
        greeting = await self._greeting(session, identity)
        if greeting.decision is not None:
            return greeting.decision
        if self._uses_dns and greeting.name and not greeting.findings.refused:
            await self._look_up(session, greeting)
        return greeting.decide()

    ehlo = helo

    async def mail_from(self, session: Session, _address: str) -> Proceed | Junk | Reject:
        """Judge the client at each message or recipient."""
        identity = session.identity
        if identity is not None:
            return await self.helo(session, identity)
        if why := self._exempt.reason(session):
            return exempted(self, why)
        raise UnavailableError("the client's greeting is not known")

    rcpt_to = mail_from

    async def _allowed(self, identity: str) -> str:
        """Return the entry of `--allow-names` that covers a HELO name, or ""."""
        names = self.settings.allow_names
        return (names is not None and await names.look_up(identity)) or ""

    async def _greeting(self, session: Session, identity: str) -> Greeting:
        """Return the greeting, its syntax checked once for all messages and recipients."""
        greeting: Greeting | None = session.scratch.get(self)
        if greeting is None or greeting.identity != identity or greeting.unavailable:
            greeting = Greeting(identity)
            if name := read_name(identity):
                await self._check_name(session, greeting, name)
            else:
                await self._check_literal(session, greeting)
            session.scratch[self] = greeting
        return greeting

    async def _check_name(self, session: Session, greeting: Greeting, name: str) -> None:
        findings = greeting.findings
        confirmed = is_confirmed(session, name)
        if not confirmed:
            greeting.name = name
            if await self._is_own_name(name) and not self._is_from_us(session):
                findings.failed(self._checks["own"], f"helo {greeting} is a name of ours")
        if "." not in name:
            findings.failed(self._checks["non_fqdn"], f"helo {greeting} is not fully qualified")

    async def _check_literal(self, session: Session, greeting: Greeting) -> None:
        findings = greeting.findings
        address, is_literal = read_address(greeting.identity)
        if not is_literal:
            reason = f"helo {greeting} is neither a name nor an address literal"
            findings.failed(self._checks["invalid"], reason)
        if self._is_own_address(session, address) and not self._is_from_us(session):
            findings.failed(self._checks["own"], f"helo {greeting} is an address of ours")
        # Unicode and two final dots are invalid in HELO, but an own name in that form is still one.
        name = read_name(canonical(greeting.identity))
        if name and await self._is_own_name(name) and not self._is_from_us(session):
            findings.failed(self._checks["own"], f"helo {greeting} is a name of ours")
        if address is None or session.by_socket:
            return
        client = known_address(session)
        if client is None:
            findings.unavailable(self._checks["foreign_literal"], UNKNOWN, UNKNOWN_STATUS)
        elif address != address_of(client):
            findings.failed(self._checks["foreign_literal"], f"helo {greeting} is not {client}")

    async def _is_own_name(self, name: str) -> bool:
        if name in _LOCALHOST or name == canonical(self.smtpd.get("admd", "")):
            return True
        names = self.settings.own_names
        return names is not None and await names.look_up(name) is not None

    def _is_from_us(self, session: Session) -> bool:
        return session.local or self._is_own_address(session, address_of(session.address))

    def _is_own_address(self, session: Session, address: Address | None) -> bool:
        if address is None:
            return False
        if is_loopback(address) or address == address_of(session.dest.rpartition(":")[0]):
            return True
        addresses = self.settings.own_addresses
        return addresses is not None and addresses.match(write_address(address)) is not None

    def _types(self, session: Session) -> tuple[RecordType, ...]:
        """Return the record types to look up: the client's family, then the other for --unknown."""
        six = ":" in unmapped(session.address or "")
        family: RecordType = "AAAA" if six else "A"
        other: RecordType = "A" if six else "AAAA"
        return (family, other) if self._checks["unknown"].on else (family,)

    async def _look_up(self, session: Session, greeting: Greeting) -> None:
        """Check a name in the DNS."""
        # Until a decision is made: a cancelled look-up is repeated.
        greeting.unavailable = True
        answers = await self.dns.query_all(
            [(greeting.name, rdtype) for rdtype in self._types(session)]
        )
        if self._checks["elsewhere"].on:
            self._check_elsewhere(session, greeting, answers[0])
        if self._checks["unknown"].on and not greeting.findings.refused:
            await self._check_unknown(greeting, answers)

    def _check_elsewhere(self, session: Session, greeting: Greeting, answer: Outcome[Any]) -> None:
        """Check whether a name resolves to the client's address."""
        check = self._checks["elsewhere"]
        if session.by_socket:
            return
        address = known_address(session)
        if address is None:
            greeting.findings.unavailable(check, UNKNOWN, UNKNOWN_STATUS)
            return
        match answer:
            case Found(records, _, gap):
                client = address_of(address)
                if any(address_of(record) == client for record in records):
                    return
                if gap:
                    greeting.findings.unavailable(check, f"helo name: {gap}")
                    return
            case Unavailable(cause):
                greeting.findings.unavailable(check, f"helo name: {cause}")
                return
        reason = f"helo {greeting} does not lead to {address}"
        greeting.findings.failed(check, reason)

    async def _check_unknown(self, greeting: Greeting, answers: Sequence[Outcome[Any]]) -> None:
        """Check whether a name exists in the DNS."""
        check = self._checks["unknown"]
        if any(isinstance(answer, Found) for answer in answers):
            return
        # RFC 8020 section 2: a name that doesn't exist for one type doesn't for any.
        if not any(isinstance(each, NotFound) and each.reason == NXDOMAIN for each in answers):
            mx = await self.dns.mx(greeting.name)
            # RFC 7505 section 3: "." is not an exchanger.
            if isinstance(mx, Found) and (
                mx.gap or any(record.exchange != "." for record in mx.records)
            ):
                return
            for answer in (*answers, mx):
                if isinstance(answer, Unavailable):
                    greeting.findings.unavailable(check, f"helo name: {answer.cause}")
                    return
        greeting.findings.failed(check, f"helo {greeting} does not exist")


def done(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that doesn't wait."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        work.close()
    raise RuntimeError("it waits")


def is_confirmed(session: Session, name: str) -> bool:
    """Return whether smtpd has confirmed a name, in lower case, as the client's reverse name."""
    return session.fcrdns == "pass" and canonical(session.rdns or "") == name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-helo."""
    return run(Helo, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
