"""filter-dyndns: the policy that refuses clients whose reverse name looks dynamically assigned.

What is built in stands in `checks.dynamic`.

Invariants
----------
*No look-ups*: the decision depends on the reverse name and the address alone.
*Operator first*: `--exempt`, `--allow-names`, `--patterns` and `--extra-patterns` take precedence
over everything built in, without exceptions.
"""

from __future__ import annotations

import sys

from smtpd_filters.addresses import canonical
from smtpd_filters.checks.client_filter import (
    ClientFilter,
    ClientSettings,
    action_option,
    phase_option,
    reply_option,
)
from smtpd_filters.checks.dynamic import DynamicNames
from smtpd_filters.checks.exemptions import (
    UNKNOWN,
    UNKNOWN_STATUS,
    allow_option,
    exempt_option,
    exempted,
)
from smtpd_filters.checks.strictness import require_entries
from smtpd_filters.errors import UnavailableError
from smtpd_filters.main import run
from smtpd_filters.protocol.decisions import PROCEED, Disconnect, Junk, Proceed, Reject
from smtpd_filters.settings import SWITCH, option, table
from smtpd_filters.tables import HostTable, RegexTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.filter import Registration
    from smtpd_filters.session import Session


class Dyndns(ClientFilter):
    """Mark or refuse clients whose reverse name looks dynamically assigned."""

    name = "dyndns"

    class Options(ClientSettings):
        """The patterns, the exemptions, the action and the phase."""

        patterns = option(
            table(RegexTable),
            default=None,
            help="Regular expressions for reverse names, in place of the built-in ones. They apply "
            "without exceptions.",
        )
        extra_patterns = option(
            table(RegexTable),
            default=None,
            help="Regular expressions in addition to the built-in ones. They apply without "
            "exceptions.",
        )
        no_embedded = option(
            SWITCH,
            default=False,
            help="Don't look for the client's address in its reverse name.",
        )
        exempt = exempt_option("local", "authenticated")
        allow = allow_option()
        allow_names = option(
            table(HostTable, by_key=True),
            default=None,
            help="Reverse names that are never refused, such as mail.example.org or *.example.org. "
            "A star covers one label.",
        )
        action = action_option("whose name looks dynamic")
        phase = phase_option()
        reply = reply_option("550 5.7.1 (554 5.7.1 at connect) and a text with advice")

    settings: Options

    _refused: Junk | Reject | Disconnect
    _builtin: DynamicNames

    def setup(self) -> Registration:
        """Prepare the refusal and the tables."""
        registration = super().setup()
        require_entries(self.settings, "extra_patterns")
        # RFC 3463 section 3.8, X.7.1: "The sender is not authorized to send to the destination.
        # This can be the result of per-host or per-recipient filtering." X.7.25 of RFC 7372 is for
        # a reverse name that isn't confirmed.
        self._refused = self._refusal(
            "7.1",
            "Your reverse DNS name looks dynamically assigned; "
            "please send through your provider's mail server",
        )
        self._builtin = DynamicNames(
            patterns=self.settings.patterns is None, embedded=not self.settings.no_embedded
        )
        return registration

    async def _judge(self, session: Session) -> Proceed | Junk | Reject | Disconnect:
        if session.rdns is None or session.by_socket:
            if not session.src:
                raise UnavailableError(UNKNOWN, UNKNOWN_STATUS)
            return PROCEED  # clients without a name are left to filter-fcrdns
        name = canonical(session.rdns)
        names = self.settings.allow_names
        if names is not None and (entry := await names.look_up(name)):
            return exempted(self, entry)
        reason = self._looks_dynamic(name, session.address or "")
        return self._refused.because(reason) if reason else PROCEED

    def _looks_dynamic(self, name: str, address: str) -> str | None:
        """Return why a client's name, in lower case, looks dynamic; None if it doesn't."""
        settings = self.settings
        for own in (settings.extra_patterns, settings.patterns):
            if own is not None and (pattern := own.match(name)):
                return f"rdns {name} matches {pattern}"
        return self._builtin.reason(name, address)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-dyndns."""
    return run(Dyndns, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
