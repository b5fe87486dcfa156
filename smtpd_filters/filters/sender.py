"""filter-sender: the policy that refuses envelope senders to which no mail can be returned.

Each check is off, logs, marks or refuses (`strictness`). A domain's exchangers are those that SMTP
uses (RFC 5321 section 5.1): its MX, or the domain itself if it has none.

Invariants
----------
*Facts only*: a permanent refusal needs a statement of the DNS. If a look-up fails, or the records
exceed a limit, `--on-error` decides, by default with 451.
*Null sender passes*: failures are reported with it (RFC 5321 section 6.1), and it must be accepted
(RFC 1123 section 5.2.9).
*No needless event loop*: if the checks that use the DNS are off, neither the event loop nor the DNS
library is loaded.
"""

from __future__ import annotations

import sys

from smtpd_filters.addresses import canonical, path
from smtpd_filters.checks.exemptions import (
    Exempt,
    allow_option,
    check_users_option,
    exempt_option,
    exempted,
)
from smtpd_filters.checks.hosts import read_address, read_name, write_address
from smtpd_filters.checks.strictness import Check, Findings, check_option, checks_of, marks
from smtpd_filters.errors import ConfigError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.lookups.outcome import NODATA, Found, NotFound, Unavailable
from smtpd_filters.main import run
from smtpd_filters.protocol.decisions import PROCEED, Junk, Proceed, Reject
from smtpd_filters.settings import SWITCH, Settings, option, table
from smtpd_filters.tables import AddressTable, IPTable
from smtpd_filters.tables.networks import parse_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from smtpd_filters.lookups.dns import RecordType
    from smtpd_filters.lookups.outcome import MX, Outcome
    from smtpd_filters.session import Session

#: The SMTP reply of each check.
# RFC 3463 section 3.2, X.1.8: "The sender's system specified in the address does not exist or is
# incapable of accepting return mail." RFC 7505 section 6: X.7.27, "Sender address has null MX",
# "Associated basic status code: 550", for a receiver that refuses it, "e.g., because it could not
# return a DSN". 504 5.5.2 is Postfix's reply to an address that is not fully qualified.
REPLIES = {
    "non_fqdn": "504 5.5.2 Your sender address is not fully qualified",
    "unknown": "550 5.1.8 Your sender domain does not exist or cannot receive mail",
    "null_mx": "550 5.7.27 Your sender domain says that it receives no mail (null MX)",
    "bad_mx": "550 5.1.8 Your sender domain has no mail exchanger on the public Internet",
}
#: The checks that use the DNS.
ASKING = ("unknown", "null_mx", "bad_mx")

# The networks in which no exchanger of a stranger can be: those in the IANA's registries of
# special-purpose addresses (RFC 6890) that are not globally reachable, and multicast.
_BOGONS4 = (
    "0.0.0.0/8",  # RFC 791: this network
    "10.0.0.0/8",  # RFC 1918: private
    "100.64.0.0/10",  # RFC 6598: behind a provider's NAT
    "127.0.0.0/8",  # RFC 1122: loopback
    "169.254.0.0/16",  # RFC 3927: link-local
    "172.16.0.0/12",  # RFC 1918
    "192.0.0.0/24",  # RFC 6890: protocol assignments
    "192.0.2.0/24",  # RFC 5737: documentation
    "192.168.0.0/16",  # RFC 1918
    "198.18.0.0/15",  # RFC 2544: benchmarking
    "198.51.100.0/24",  # RFC 5737
    "203.0.113.0/24",  # RFC 5737
    "224.0.0.0/4",  # RFC 5771: multicast
    "240.0.0.0/4",  # RFC 1112: reserved, and broadcast
)
_BOGONS6 = (
    "::",  # RFC 4291: unspecified
    "::1",  # RFC 4291: loopback
    "::/96",  # RFC 4291 section 2.5.5.1: IPv4-compatible, deprecated
    "::ffff:0:0:0/96",  # RFC 2765: IPv4-translated, within a network
    "64:ff9b:1::/48",  # RFC 8215: local translation
    "100::/64",  # RFC 6666: discard
    "2001::/23",  # RFC 2928: protocol assignments, Teredo among them
    "2001:db8::/32",  # RFC 3849: documentation
    "3fff::/20",  # RFC 9637: documentation
    "5f00::/16",  # RFC 9602: segment routing
    "fc00::/7",  # RFC 4193: unique local
    "fe80::/10",  # RFC 4291: link-local
    "fec0::/10",  # RFC 3879: site-local
    "ff00::/8",  # RFC 4291: multicast
)


def _carried(network: str) -> tuple[str, str]:
    """Return the IPv6 networks that map to an IPv4 network.

    They are those of 6to4 (RFC 3056) and DNS64 (RFC 6147).
    """
    place, _, prefix = network.partition("/")
    _, value = parse_address(place)
    groups = f"{value >> 16:x}:{value & 0xFFFF:x}"
    return f"2002:{groups}::/{16 + int(prefix)}", f"64:ff9b::{groups}/{96 + int(prefix)}"


#: All these networks, and the IPv6 networks that map to them.
BOGONS = (*_BOGONS4, *_BOGONS6, *(each for network in _BOGONS4 for each in _carried(network)))
#: The maximum of exchangers of a domain that are looked up, the most preferred first. RFC 7208
#: section 4.6.4 has the same bound for the addresses of "mx".
EXCHANGERS_MAX = 10
#: The maximum of their addresses that are checked.
ADDRESSES_MAX = 100
# RFC 6761 section 6.3: "localhost." and names below it are loopback, whatever the DNS says.
_LOCALHOST = "localhost"


class Sender(Filter):
    """Refuse senders whose domain does not exist or cannot receive mail."""

    name = "sender"
    on_error = "tempfail"

    class Options(Settings):
        """The checks and the exemptions."""

        non_fqdn = check_option(
            "reject",
            "What to do with a sender without a domain, or whose domain is not fully qualified: "
            "one without a dot, or in brackets without an address in them.",
        )
        unknown = check_option(
            "reject",
            "What to do with a sender whose domain has neither MX nor A nor AAAA in the DNS.",
        )
        null_mx = check_option(
            "reject",
            "What to do with a sender whose domain declares that it accepts no mail, with a Null "
            "MX (RFC 7505).",
        )
        bad_mx = check_option(
            "reject",
            "What to do with a sender whose domain's mail exchangers have no address, or only "
            "loopback, private or other addresses that are not on the public Internet.",
        )
        any_bad_mx = option(
            SWITCH,
            default=False,
            help="For --bad-mx, one such exchanger suffices, whatever the others are.",
        )
        bad_networks = option(
            table(IPTable),
            default=None,
            help="Addresses and networks in which no exchanger may be, in place of the built-in "
            "ones.",
        )
        check_users = check_users_option()
        exempt = exempt_option("local", "authenticated")
        allow = allow_option()
        allow_senders = option(
            table(AddressTable, by_key=True),
            default=None,
            help="Senders that are never refused: user@example.org, @example.org.",
        )

    settings: Options
    dns = Resolver.setting(takes="a sender that needs two in a row takes 16 s")

    _checks: dict[str, Check]
    _exempt = Exempt()
    _bad: IPTable
    _uses_dns: bool

    def setup(self) -> Registration:
        """Prepare the checks, and check that the settings are consistent."""
        settings = self.settings
        self._checks = checks_of(settings, REPLIES)
        self._uses_dns = any(self._checks[name].on for name in ASKING)
        if not self._uses_dns:
            Sender.dns.refuse_unused(self, "--unknown, --null-mx or --bad-mx other than off")
        if not self._checks["bad_mx"].on and (settings.any_bad_mx or settings.bad_networks):
            flag = "--any-bad-mx" if settings.any_bad_mx else "--bad-networks"
            raise ConfigError(f"{flag} has no effect with --bad-mx off")
        self._exempt = settings.exempt.also(settings.allow)
        if settings.check_users:
            self._exempt = self._exempt.check_users()
        self._bad = settings.bad_networks or IPTable.of(BOGONS)
        return Registration(
            reports={"link-auth"} if self._exempt.users else (),
            junk=marks(self._checks.values()),
            waits=self._uses_dns,
        )

    async def mail_from(self, session: Session, address: str) -> Proceed | Junk | Reject:
        """Judge the sender."""
        if not address:
            return PROCEED
        if why := self._exempt.reason(session) or await self._allowed(address):
            return exempted(self, why)
        findings, domain = self._written(address)
        if self._uses_dns and domain and not findings.refused:
            await self._look_up(domain, findings)
        return findings.decision()

    async def _allowed(self, address: str) -> str:
        """Return the entry of `--allow-senders` that covers a sender, or ""."""
        senders = self.settings.allow_senders
        if senders is None:
            return ""
        return await senders.look_up_address(path(address)) or ""

    def _written(self, address: str) -> tuple[Findings, str]:
        """Check a sender's syntax; return the findings, and the domain to look up or ""."""
        findings = Findings()
        domain = domain_of(address)
        if domain[:1] == "[":
            literal, _ = read_address(domain)
            if literal is None:
                reason = f"sender {address} has neither a domain nor an address"
                findings.failed(self._checks["non_fqdn"], reason)
            elif bad := self._bad.match(write_address(literal)):
                findings.failed(self._checks["bad_mx"], f"sender {address} is in {bad}")
            return findings, ""
        if "." not in domain:
            reason = f"sender {address} is not fully qualified"
            findings.failed(self._checks["non_fqdn"], reason)
        return findings, domain

    async def _look_up(self, domain: str, findings: Findings) -> None:
        """Check a domain in the DNS."""
        match await self.dns.mx(domain):
            case Found(records, _, "") if all(record.exchange == "." for record in records):
                # RFC 7505 section 3: the one record of a Null MX is "." with preference 0.
                findings.failed(self._checks["null_mx"], f"sender domain {domain} has a Null MX")
            case Found(records, _, gap):
                if self._checks["bad_mx"].on:
                    await self._check_exchangers(domain, records, gap, findings)
            case NotFound(reason) if reason == NODATA:
                await self._check_domain(domain, findings)
            case NotFound():
                findings.failed(self._checks["unknown"], f"sender domain {domain} does not exist")
            case Unavailable(cause):
                for name in ASKING:
                    findings.unavailable(self._checks[name], f"sender domain: {cause}")

    async def _check_domain(self, domain: str, findings: Findings) -> None:
        """Check a domain without MX, which is its own exchanger (RFC 5321 section 5.1)."""
        unknown, bad_mx = self._checks["unknown"], self._checks["bad_mx"]
        if not (unknown.on or bad_mx.on):
            return
        answers = await self.dns.query_all(_questions([domain]))
        if any(isinstance(answer, Found) for answer in answers):
            self._judge(domain, [], answers, findings)
            return
        for answer in answers:
            if isinstance(answer, Unavailable):
                findings.unavailable(unknown, f"sender domain: {answer.cause}")
                findings.unavailable(bad_mx, f"sender domain: {answer.cause}")
                return
        findings.failed(unknown, f"sender domain {domain} has neither MX nor address")

    async def _check_exchangers(
        self, domain: str, records: Sequence[MX], gap: str, findings: Findings
    ) -> None:
        """Check the addresses of a domain's exchangers; `gap` is why there may be others."""
        if len(records) > EXCHANGERS_MAX:
            gap = f"more than {EXCHANGERS_MAX}, and none of those looked up is usable"
        hosts: list[str] = []
        known: list[str] = []
        for record in records[:EXCHANGERS_MAX]:
            host = record.exchange
            if host == _LOCALHOST or host.endswith(f".{_LOCALHOST}"):
                known.append("127.0.0.1")
            elif read_name(host):
                if host not in hosts:
                    hosts.append(host)
            # RFC 5321 section 5.1: the data of an MX "MUST contain a domain name". Some contain an
            # address, which many servers accept.
            elif (address := read_address(host)[0]) is not None:
                known.append(write_address(address))
        answers = await self.dns.query_all(_questions(hosts))
        self._judge(domain, known, answers, findings, gap)

    def _judge(
        self,
        domain: str,
        addresses: Iterable[str],
        answers: Iterable[Outcome[Any]],
        findings: Findings,
        gap: str = "",
    ) -> None:
        """Judge the addresses of a domain's exchangers; `gap` is why there may be others."""
        check = self._checks["bad_mx"]
        found = [*addresses]
        causes = []
        for answer in answers:
            if isinstance(answer, Found):
                found += answer.records
                gap = gap or answer.gap
            elif isinstance(answer, Unavailable):
                causes.append(answer.cause)
        if len(found) > ADDRESSES_MAX:
            gap = f"more than {ADDRESSES_MAX} addresses, and none of those looked at is usable"
            del found[ADDRESSES_MAX:]
        if gap:
            causes.append(gap)
        bad = [(address, entry) for address in found if (entry := self._bad.match(address))]
        if len(bad) < len(found) and not (bad and self.settings.any_bad_mx):
            return
        if causes and not (bad and self.settings.any_bad_mx):
            findings.unavailable(check, f"mail exchanger: {causes[0]}")
        elif bad:
            address, entry = bad[0]
            where = f"{address} (in {entry})" if address != entry else address
            findings.failed(check, f"sender domain {domain} has its exchanger at {where}")
        else:
            findings.failed(check, f"sender domain {domain} has no exchanger with an address")


def domain_of(address: str) -> str:
    """Return the domain of an envelope's address in its canonical form; "" without one."""
    return canonical(path(address).domain)


def _questions(hosts: Iterable[str]) -> list[tuple[str, RecordType]]:
    types: tuple[RecordType, ...] = ("A", "AAAA")
    return [(host, rdtype) for host in hosts for rdtype in types]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-sender."""
    return run(Sender, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
