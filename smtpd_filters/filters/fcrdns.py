"""filter-fcrdns: refuse clients without a reverse name, or whose reverse name isn't theirs.

The law:

1. What could not be found out is a temporary failure, which `--on-error` decides: only a statement
   of the DNS (no such name, or a name that leads elsewhere) is a reason for a permanent refusal.
2. smtpd can't tell the one from the other. To its resolver every failure is an answer, and it
   reports `fail` for a name server that is dead as for a name that isn't there. So on its word
   alone the default reply of a refusal is a temporary one.
3. What smtpd has confirmed is confirmed. `--verify` looks again at the others, knows what failed
   and what was stated, and finds names that smtpd doesn't: it looks at one of an address's, once.
4. Local and authenticated clients are exempt, unless `--exempt` says otherwise.
5. Without `--verify` nothing is looked up: no event loop, no DNS library is loaded.

An address is confirmed if one of its names (PTR) has the address (A or AAAA): "iprev" in RFC 8601
section 3.
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
from smtpd_filters.checks.exemptions import allow_option, client_address, exempt_option
from smtpd_filters.errors import UnavailableError
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.lookups.outcome import DNS_FAILURE, Found, NotFound
from smtpd_filters.main import run
from smtpd_filters.protocol.decisions import PROCEED, Disconnect, Junk, Reject
from smtpd_filters.settings import SWITCH, choice, option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.filter import Registration
    from smtpd_filters.protocol.decisions import Answer
    from smtpd_filters.session import Session

NO_NAME = "no reverse name"


class Fcrdns(ClientFilter):
    """Mark or refuse clients whose reverse DNS is missing or isn't confirmed by forward DNS."""

    name = "fcrdns"

    class Options(ClientSettings):
        """What is required, who says so, whom to exempt, what to do and when."""

        require = option(
            choice("rdns", "fcrdns"),
            default="fcrdns",
            help="What a client must have: a reverse name (rdns), or one that leads back to its "
            "address as well (fcrdns).",
        )
        verify = option(
            SWITCH,
            default=False,
            help="Look up all names of a client that smtpd hasn't confirmed, instead of relying on "
            "smtpd, which looks at one name, once, and can't tell a failing DNS from a failing "
            "client. Refusals are permanent only with this.",
        )
        exempt = exempt_option("local", "authenticated")
        allow = allow_option()
        action = action_option("that fails")
        phase = phase_option()
        reply = reply_option(
            "450 4.7.25 (421 4.7.25 where the connection is closed), with --verify 550 5.7.25 (554 "
            "5.7.25 at connect), and a text that says what is missing"
        )

    settings: Options
    dns = Resolver.setting(
        timeout="With --verify, how long to wait for a name server before the next is asked. The "
        "second round waits twice as long, so that a client takes at most 16 s by default: two "
        "look-ups, one behind the other.",
    )

    _unnamed: Junk | Reject | Disconnect
    _unconfirmed: Junk | Reject | Disconnect

    def setup(self, *, waits: bool = False) -> Registration:
        """Make the refusals; only `--verify` waits."""
        verify = self.settings.verify
        registration = super().setup(waits=waits or verify)
        if verify:
            # Now, not at the first client: by then an upgrade may have put another version there.
            import smtpd_filters.lookups.dns.fcrdns  # noqa: F401
        else:
            Fcrdns.dns.refuse_unused(self, "without --verify")
        self._unnamed = self._failure("Your IP address has no reverse DNS name")
        self._unconfirmed = self._failure(
            "The reverse DNS name of your IP address does not lead back to the address"
        )
        return registration

    def _failure(self, text: str) -> Junk | Reject | Disconnect:
        # RFC 7372 section 3.3: X.7.25, "Reverse DNS validation failed", "Associated basic status
        # code: 550".  That is for what --verify has found out.  But the class stands by itself (RFC
        # 3463 section 2): 4.7.25 is such a failure that may be over when the client comes again.
        # Postfix says so by default, too: "450 4.7.25 Client host rejected".
        return self._refusal("7.25", text, temporary=not self.settings.verify)

    async def _judge(self, session: Session) -> Answer:
        """Take smtpd's word (law 2), or look again."""
        address = self._suspect(session)
        if address is None:
            return PROCEED
        if self.settings.verify:
            # Each recipient gets the same answer, whatever happens to the cache meanwhile.
            decision: Answer | None = session.scratch.get(self)
            if decision is None:
                decision = session.scratch[self] = await self._look_up(address)
            return decision
        if session.fcrdns != "fail":
            # RFC 7372's X.7.25 is not for this: there the "IP address failed a reverse DNS
            # validation check".
            raise UnavailableError("smtpd reports a DNS failure", DNS_FAILURE)
        if session.rdns is None:
            return self._unnamed.because(NO_NAME)
        return self._failed((session.rdns,), address)

    def _suspect(self, session: Session) -> str | None:
        """Return the address of a client which smtpd's report doesn't clear, else None."""
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
            return await self._look_for_a_name(address)
        from smtpd_filters.lookups.dns.fcrdns import (  # law 5
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

    async def _look_for_a_name(self, address: str) -> Answer:
        match await self.dns.ptr(address):
            case Found():
                return PROCEED
            case NotFound():
                return self._unnamed.because(NO_NAME)
            case unavailable:
                raise unavailable.error()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-fcrdns."""
    return run(Fcrdns, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
