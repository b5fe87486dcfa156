"""filter-fcrdns: the policy that refuses clients without forward-confirmed reverse DNS.

An address is confirmed if one of its names (PTR) resolves to it (A or AAAA): "iprev" in RFC 8601
section 3. smtpd looks at one name of an address, once, and its confirmations are accepted.
`--verify` looks up all names of the other clients.

Invariants
----------
*Facts only*: a permanent refusal needs a statement of the DNS (no such name, or a name that
resolves elsewhere). If a look-up fails, `--on-error` decides.
*smtpd can't tell*: smtpd reports `fail` for a dead name server as for a missing name. So without
`--verify` the default reply of a refusal is temporary. For a name that smtpd has cut, `--on-error`
decides.
*No look-ups without `--verify`*: no event loop and no DNS library are loaded without it.
"""

from __future__ import annotations

import sys

from smtpd_filters.checks.client_filter import (
    ClientFilter,
    ClientSettings,
    action_option,
    phase_option,
    reply_option,
)
from smtpd_filters.checks.exemptions import (
    allow_option,
    client_address,
    exempt_option,
    known_address,
)
from smtpd_filters.errors import UnavailableError
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.lookups.outcome import DNS_FAILURE, Found, NotFound
from smtpd_filters.main import run
from smtpd_filters.protocol.decisions import PROCEED, Disconnect, Junk, Reject
from smtpd_filters.session import NAME_CUT
from smtpd_filters.settings import SWITCH, choice, option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.filter import Registration
    from smtpd_filters.protocol.decisions import Answer
    from smtpd_filters.session import Session

NO_NAME = "no reverse name"
CUT = f"smtpd cuts reverse names after {NAME_CUT} characters"


class Fcrdns(ClientFilter):
    """Mark or refuse clients whose reverse DNS is missing or isn't confirmed by forward DNS."""

    name = "fcrdns"

    class Options(ClientSettings):
        """The requirement, its verification, the exemptions, the action and the phase."""

        require = option(
            choice("rdns", "fcrdns"),
            default="fcrdns",
            help="What a client must have: a reverse name (rdns), or one that resolves to its "
            "address (fcrdns).",
        )
        verify = option(
            SWITCH,
            default=False,
            help="Look up all names of a client that smtpd hasn't confirmed, instead of relying on "
            "smtpd, which looks one name up, once, and can't tell a failing DNS from a failing "
            "client. Refusals are permanent only with this.",
        )
        exempt = exempt_option("local", "authenticated")
        allow = allow_option()
        action = action_option("that fails")
        phase = phase_option()
        reply = reply_option(
            "450 4.7.25 (421 4.7.25 where the connection is closed), with --verify 550 5.7.25 (554 "
            "5.7.25 at connect), and a text that names what is missing"
        )

    settings: Options
    dns = Resolver.setting(
        timeout="With --verify, how long to wait for a name server before trying the next. The "
        "second round waits twice as long, so a client takes at most 16 s by default: two look-ups "
        "in a row.",
    )

    _unnamed: Junk | Reject | Disconnect
    _unconfirmed: Junk | Reject | Disconnect

    def setup(self) -> Registration:
        """Prepare the refusals; only `--verify` waits."""
        verify = self.settings.verify
        registration = super().setup()
        registration.waits = verify
        ahead = verify and self.settings.phase != "connect"
        registration.events = frozenset({"link_connect"} if ahead else ())
        if verify:
            # At start rather than at the first client, when an upgrade may have replaced the file.
            import smtpd_filters.lookups.dns.fcrdns  # noqa: F401
        else:
            Fcrdns.dns.refuse_unused(self, "--verify")
        self._unnamed = self._failure("Your IP address has no reverse DNS name")
        self._unconfirmed = self._failure(
            "The reverse DNS name of your IP address does not lead back to the address"
        )
        return registration

    def link_connect(self, session: Session) -> None:
        """Start to look the client up ahead of its phase."""
        from smtpd_filters.lookups.dns.names import reverse  # *No look-ups without `--verify`*

        address = known_address(session)
        exempt = self._exempt.reason(session)
        if address and not exempt and self._suspect(session) is not None:
            self.dns.start(reverse(address), "PTR")

    def _failure(self, text: str) -> Junk | Reject | Disconnect:
        # RFC 7372 section 3.3: X.7.25, "Reverse DNS validation failed", "Associated basic status
        # code: 550", which suits results of --verify. But the class is independent (RFC 3463
        # section 2): 4.7.25 is the same failure, which may be over when the client retries.
        # Postfix, too, replies "450 4.7.25 Client host rejected" by default.
        return self._refusal("7.25", text, temporary=not self.settings.verify)

    async def _judge(self, session: Session) -> Answer:
        """Judge by smtpd's report (*smtpd can't tell*), or look the client up."""
        address = self._suspect(session)
        if address is None:
            return PROCEED
        if self.settings.verify:
            # Each recipient gets the same decision, even if the cache changes meanwhile.
            decision: Answer | None = session.scratch.get(self)
            if decision is None:
                decision = session.scratch[self] = await self._look_up(address)
            return decision
        if session.fcrdns != "fail":
            # RFC 7372's X.7.25 doesn't apply: there the "IP address failed a reverse DNS
            # validation check".
            cut = len(session.rdns or "") == NAME_CUT
            raise UnavailableError(CUT if cut else "smtpd reports a DNS failure", DNS_FAILURE)
        if session.rdns is None:
            return self._unnamed.because(NO_NAME)
        return self._failed((session.rdns,), address)

    def _suspect(self, session: Session) -> str | None:
        """Return the client's address unless smtpd's report confirms it, else None."""
        address = client_address(session)
        if self.settings.require == "rdns":
            passes = session.rdns is not None
        else:
            passes = session.fcrdns == "pass"
        return None if passes else address

    def _failed(self, names: tuple[str, ...], address: str) -> Junk | Reject | Disconnect:
        return self._unconfirmed.because(f"rdns {' '.join(names)} not confirmed for {address}")

    async def _look_up(self, address: str) -> Answer:
        if self.settings.require == "rdns":
            return await self._require_name(address)
        from smtpd_filters.lookups.dns.fcrdns import (  # *No look-ups without `--verify`*
            Confirmed,
            NoName,
            Unconfirmed,
            fcrdns,
        )

        match await fcrdns(self.dns, address):
            case Confirmed():
                return PROCEED
            case NoName():
                return self._unnamed.because(NO_NAME)
            case Unconfirmed(names):
                return self._failed(names, address)
            case unavailable:
                raise unavailable.error()

    async def _require_name(self, address: str) -> Answer:
        from smtpd_filters.lookups.dns.names import is_valid  # *No look-ups without `--verify`*

        match await self.dns.ptr(address):
            case Found(records, gap=gap):
                if any(map(is_valid, records)):
                    return PROCEED
                if gap:
                    raise UnavailableError(gap, DNS_FAILURE)
                # For smtpd, too, a client has no name if it can't be one: the root, or `a b`.
                return self._unnamed.because(NO_NAME)
            case NotFound():
                return self._unnamed.because(NO_NAME)
            case unavailable:
                raise unavailable.error()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-fcrdns."""
    return run(Fcrdns, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
