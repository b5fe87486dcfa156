"""filter-helo: look at what a client calls itself when it greets.

The law:

1. Each check is `off`, logs, marks or refuses.  What is wrong as it is written is found without a
   look-up; what the DNS says is asked only of a name that could be there, and not of one for which
   smtpd has already confirmed the client.
2. What could not be found out is a temporary failure, which `--on-error` decides.
3. Local and authenticated clients are exempt.  Nobody has authenticated when he greets, and mail
   programs call themselves anything: so the filter acts at `mail-from` unless told otherwise.
4. With the checks that ask the DNS off, nothing is looked up: no event loop, no DNS library.
"""

from __future__ import annotations

import sys

from smtpd_filters.errors import ConfigError
from smtpd_filters.filter import Filter
from smtpd_filters.filters._asking import (
    ask_nothing,
    make_resolver,
    nameserver_option,
    settle,
    timeout_option,
)
from smtpd_filters.filters._checks import Check, Findings, check_option, exempt, marks
from smtpd_filters.filters._client import allow_option
from smtpd_filters.filters._hosts import V6, address_of, read_address, read_name, write_address
from smtpd_filters.program import run
from smtpd_filters.protocol.decisions import PROCEED, Junk, Proceed, Reject
from smtpd_filters.settings import Settings, choice, option, table
from smtpd_filters.tables import DomainTable, NetworkTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from typing import Any, TypeAlias

    from smtpd_filters.filters._asking import Policy
    from smtpd_filters.filters._hosts import Address
    from smtpd_filters.lookups.dns import RecordType, Resolver
    from smtpd_filters.lookups.outcome import Outcome
    from smtpd_filters.session import Session

    Decision: TypeAlias = Proceed | Junk | Reject

#: What a client is told, by the check.
# RFC 5321 section 4.2.3 has 501, "Syntax error in parameters or arguments", and section 4.3.2 has
# 504 and 550 for a refused EHLO.  RFC 3463: X.5.2, "Syntax error", and X.7.1, "Delivery not
# authorized, message refused".  These are Postfix's codes, too, but for a name that is not in the
# DNS, which it refuses with 450 by default, not knowing a failure from a statement.
REPLIES = {
    "invalid": "501 5.5.2 Your HELO name is neither a host name nor an address literal",
    "non_fqdn": "504 5.5.2 Your HELO name is not a fully qualified host name",
    "foreign_literal": "550 5.7.1 The address in your HELO is not the one you come from",
    "own": "550 5.7.1 Your HELO name is one of ours",
    "unknown": "550 5.7.1 Your HELO name does not exist in the DNS",
    "elsewhere": "550 5.7.1 Your HELO name does not lead to the address you come from",
}
#: The checks that ask the DNS.
ASKING = ("unknown", "elsewhere")

_PHASES = {
    "helo": {"helo", "ehlo"},
    "mail-from": {"mail_from"},
    "rcpt-to": {"rcpt_to"},
}
# RFC 2606 section 2 and RFC 6761 section 6.3: this machine, whoever says it.
_LOCALHOST = frozenset({"localhost", "localhost.localdomain"})


class Helo(Filter):
    """Refuse clients whose HELO or EHLO name cannot be theirs."""

    name = "helo"

    class Options(Settings):
        """The checks, what is ours, whom to spare, and when to act."""

        invalid = check_option(
            "reject",
            "What to do with a greeting that is neither a host name nor an address literal as "
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
            "What to do with a stranger that gives the name of this server (as smtpd has it), one "
            "in --own-names, localhost, the address that it has come to, or one in "
            "--own-addresses. A client is no stranger if it comes from one of --own-addresses, or "
            "if the name is its confirmed reverse name.",
        )
        unknown = check_option(
            "log", "What to do with a name for which the DNS has neither an address nor an MX."
        )
        elsewhere = check_option(
            "off",
            "What to do with a name whose addresses in the DNS are not the client's. RFC 5321 "
            "forbids to refuse mail for this alone.",
        )
        own_names = option(
            table(DomainTable),
            default=None,
            help="More names of our own. A star covers one label: *.example.org is a.example.org, "
            "but neither example.org nor a.b.example.org.",
        )
        own_addresses = option(
            table(NetworkTable), default=None, help="More addresses and networks of our own."
        )
        allow = allow_option()
        phase = option(
            choice("helo", "mail-from", "rcpt-to"),
            default="mail-from",
            help="When to act. Clients that authenticate are spared from mail-from on; at helo "
            "nobody has authenticated yet.",
        )
        nameserver = nameserver_option()
        timeout = timeout_option("a client at most two look-ups, one behind the other")

    settings: Options

    _checks: dict[str, Check]
    _resolver: Resolver | None = None

    def setup(self) -> None:
        """Make the checks, choose the phase, and get a resolver ready if one is needed."""
        settings = self.settings
        self._checks = {
            name: Check(getattr(settings, name), reply) for name, reply in REPLIES.items()
        }
        if not any(check.on for check in self._checks.values()):
            raise ConfigError("nothing to check: every check is off")
        self.marks = marks(self._checks.values())
        self.phases = set(_PHASES[settings.phase])
        if any(self._checks[name].on for name in ASKING):
            self._resolver = make_resolver(settings.nameserver, settings.timeout)
        elif settings.nameserver:
            raise ConfigError("--nameserver: nothing is looked up without --unknown or --elsewhere")
        else:
            ask_nothing(self)  # law 4
        if settings.phase == "helo":
            # There the name is needed as soon as it is known.
            self.events.discard("identified")

    async def close(self) -> None:
        """End what is being looked up."""
        if self._resolver is not None:
            await self._resolver.aclose()

    def identified(self, session: Session) -> None:
        """Begin to look up the name, which will be needed if the client has mail."""
        if self._resolver is None or exempt(session, self.settings.allow):
            return
        findings, name = self._written(session, session.identity or "")
        if name and not findings.refused:
            for rdtype in self._types(session):
                self._resolver.start(name, rdtype)

    def required_reports(self) -> frozenset[str]:
        """Ask for the greeting and for who has authenticated, where that is over already."""
        return frozenset({"link-auth"} if "helo" in self.phases else {"link-auth", "link-identify"})

    def helo(
        self, session: Session, identity: str
    ) -> Proceed | Junk | Reject | Awaitable[Proceed | Junk | Reject]:
        """Decide when the client greets."""
        if exempt(session, self.settings.allow):
            return PROCEED
        known = self._known(session, identity)
        if known is not None:
            return known
        findings, name = self._written(session, identity)
        if self._resolver is None or not name or findings.refused:
            return self._decided(session, identity, findings)
        return settle(self._resolver, self._policy(session, identity, name, findings))

    ehlo = helo

    def mail_from(
        self, session: Session, _address: str
    ) -> Proceed | Junk | Reject | Awaitable[Proceed | Junk | Reject]:
        """Decide for each message or recipient."""
        return PROCEED if session.identity is None else self.helo(session, session.identity)

    rcpt_to = mail_from

    def _known(self, session: Session, identity: str) -> Decision | None:
        """What has been decided of this greeting: all messages and recipients get one answer."""
        greeting, decision = session.scratch.get(self, ("", None))
        return decision if greeting == identity else None

    def _decided(self, session: Session, identity: str, findings: Findings) -> Decision:
        """Decide, and keep it.  What is only logged is logged once."""
        decision = findings.decision()
        kept = PROCEED if type(decision) is Proceed else decision
        session.scratch[self] = identity, kept
        return decision

    def _written(self, session: Session, identity: str) -> tuple[Findings, str]:
        """Check a greeting as it is written; and a name that the DNS could know, or ""."""
        findings = Findings()
        own, literal = self._checks["own"], self._checks["foreign_literal"]
        client = address_of(session.address)
        name = read_name(identity)
        if not name:
            address, is_literal = read_address(identity)
            if not is_literal:
                reason = f"helo {identity} is neither a name nor an address literal"
                findings.failed(self._checks["invalid"], reason)
            ours = self._is_own_address(session, client)
            if not ours and self._is_own_address(session, address):
                findings.failed(own, f"helo {identity} is an address of ours")
            if address is not None and address != client:
                findings.failed(literal, f"helo {identity} is not {session.address}")
            return findings, ""
        confirmed = is_confirmed(session, name)
        stranger = not confirmed and not self._is_own_address(session, client)
        if stranger and self._is_own_name(name):
            findings.failed(own, f"helo {identity} is a name of ours")
        if "." not in name:
            findings.failed(self._checks["non_fqdn"], f"helo {identity} is not fully qualified")
        return findings, "" if confirmed else name

    def _is_own_name(self, name: str) -> bool:
        if name in _LOCALHOST or name == self.smtpd.get("admd", "").lower():
            return True
        names = self.settings.own_names
        return names is not None and names.match(name) is not None

    def _is_own_address(self, session: Session, address: Address | None) -> bool:
        if address is None:
            return False
        if address == address_of(session.dest.rpartition(":")[0]):
            return True
        addresses = self.settings.own_addresses
        return addresses is not None and addresses.match(write_address(address)) is not None

    def _types(self, session: Session) -> tuple[RecordType, ...]:
        """The records that can be needed: the client's family first, the other for --unknown."""
        client = address_of(session.address)
        six = client is not None and client[0] == V6
        family: RecordType = "AAAA" if six else "A"
        other: RecordType = "A" if six else "AAAA"
        return (family, other) if self._checks["unknown"].on else (family,)

    def _policy(
        self, session: Session, identity: str, name: str, findings: Findings
    ) -> Policy[Decision]:
        """Check what the DNS says of a name."""
        answers = yield [(name, rdtype) for rdtype in self._types(session)]
        self._check_elsewhere(session, identity, answers[0], findings)
        if self._checks["unknown"].on and not findings.refused:
            yield from self._check_unknown(identity, name, answers, findings)
        return self._decided(session, identity, findings)

    def _check_elsewhere(
        self, session: Session, identity: str, answer: Outcome[Any], findings: Findings
    ) -> None:
        """Check whether a name has the client's address."""
        from smtpd_filters.lookups.outcome import Found, Unavailable  # law 4

        check = self._checks["elsewhere"]
        match answer:
            case Found(records):
                client = address_of(session.address)
                if any(address_of(record) == client for record in records):
                    return
            case Unavailable(cause):
                findings.unavailable(check, f"helo name: {cause}")
                return
        findings.failed(check, f"helo {identity} does not lead to {session.address}")

    def _check_unknown(
        self, identity: str, name: str, answers: Sequence[Outcome[Any]], findings: Findings
    ) -> Policy[None]:
        """Check whether the DNS knows a name."""
        from smtpd_filters.lookups.outcome import NXDOMAIN, Found, NotFound, Unavailable  # law 4

        check = self._checks["unknown"]
        if any(isinstance(answer, Found) for answer in answers):
            return
        # RFC 8020: a name that does not exist for one type does not for any.
        if not any(isinstance(each, NotFound) and each.reason == NXDOMAIN for each in answers):
            [mx] = yield [(name, "MX")]
            # RFC 7505: "." is no exchanger.
            if isinstance(mx, Found) and any(record.exchange != "." for record in mx.records):
                return
            for answer in (*answers, mx):
                if isinstance(answer, Unavailable):
                    findings.unavailable(check, f"helo name: {answer.cause}")
                    return
        findings.failed(check, f"helo {identity} does not exist")


def is_confirmed(session: Session, name: str) -> bool:
    """Whether smtpd has found that a name, in lower case, is the client's: both ways."""
    return session.fcrdns == "pass" and (session.rdns or "").lower().removesuffix(".") == name


def main(argv: Sequence[str] | None = None) -> int:
    """The executable filter-helo."""
    return run(Helo, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
