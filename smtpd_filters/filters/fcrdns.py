"""filter-fcrdns: refuse clients without a reverse name, or whose reverse name isn't theirs.

The law:

1. Only a statement of the DNS counts against a client: no such name, or a name that leads
   elsewhere. What could not be found out is a temporary failure, which `--on-error` decides:
   never a permanent refusal.
2. What smtpd has confirmed is confirmed. `--verify` looks again at the others, since smtpd
   looks at one of an address's names only, and once.
3. Local and authenticated clients are exempt.
4. Without `--verify` nothing is looked up: no event loop, no DNS library is loaded.

An address is confirmed if one of its names (PTR) has the address (A or AAAA): "iprev" in RFC 8601
section 3.
"""

from __future__ import annotations

import sys

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filter import Filter
from smtpd_filters.program import run
from smtpd_filters.protocol.decisions import JUNK, PROCEED, Disconnect, Junk, Proceed, Reject
from smtpd_filters.settings import (
    ENDPOINT,
    LIST,
    SECONDS,
    SWITCH,
    TEXT,
    Settings,
    choice,
    option,
    table,
)
from smtpd_filters.tables import NetworkTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from smtpd_filters.lookups.dns import Resolver
    from smtpd_filters.session import Session

# RFC 3463 section 3.5, X.4.3, "Directory server failure": "The inability to connect to an Internet
# DNS server is one example of the directory server failure error."  RFC 7372's X.7.25 is not for
# this: there the "IP address failed a reverse DNS validation check".
_DNS_FAILURE = "4.4.3"
NO_NAME = "no reverse name"
# A look-up asks each server in two rounds, and waits twice as long in the second.
_ROUNDS = 2
_LOOKUP = 4


class Fcrdns(Filter):
    """Refuse clients whose reverse DNS is missing or isn't confirmed by forward DNS."""

    name = "fcrdns"

    class Settings(Settings):
        """What is required, who says so, whom to spare, what to do and when."""

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
            "smtpd, which looks at one name, once.",
        )
        nameserver = option(
            LIST(ENDPOINT(port=53)),
            default=(),
            help="The address of a recursive name server to ask with --verify, instead of those in "
            "resolv.conf(5).",
        )
        timeout = option(
            SECONDS(low=0.01, high=60),
            default=2.0,
            help="With --verify, how long to wait for a name server before the next is asked. The "
            "second round waits twice as long; a look-up takes at most four times as long "
            "altogether, and a client at most two look-ups, one behind the other.",
        )
        allow = option(
            table(NetworkTable),
            default=None,
            help="Addresses and networks that are never refused.",
        )
        action = option(
            choice("junk", "reject", "disconnect"),
            default="junk",
            help="What to do with a client that fails. At connect, reject disconnects as well, "
            "since smtpd would go on otherwise.",
        )
        phase = option(
            choice("connect", "helo", "mail-from", "rcpt-to"),
            default="connect",
            help="When to do it. Clients that authenticate are spared from mail-from on; before "
            "that nobody has authenticated yet.",
        )
        reply = option(
            TEXT,
            default="",
            help="The reply of a refusal, with its codes; by default 550 5.7.25 (554 5.7.25 at "
            "connect) and a text that says what is missing.",
        )

    settings: Settings

    _unnamed: Junk | Reject | Disconnect
    _unconfirmed: Junk | Reject | Disconnect

    def __new__(cls, settings: Settings | None = None) -> Self:
        """Make the kind that looks for itself if it is to.

        Its handlers are coroutines, for which the chain runs asyncio; law 4.
        """
        kind: type = cls
        if settings is not None and settings.verify:
            kind = _Verifying
        made: Self = object.__new__(kind)
        return made

    def setup(self) -> None:
        """Choose the phase and make the refusals."""
        settings = self.settings
        if not settings.verify and settings.nameserver:
            raise ConfigError("--nameserver: nothing is looked up without --verify")
        at = {"helo": {"helo", "ehlo"}, "mail-from": {"mail_from"}, "rcpt-to": {"rcpt_to"}}
        self.phases = at.get(settings.phase, {"connect"})
        self._unnamed = self._refusal("Your IP address has no reverse DNS name")
        self._unconfirmed = self._refusal(
            "The reverse DNS name of your IP address does not lead back to the address"
        )

    def _refusal(self, text: str) -> Junk | Reject | Disconnect:
        # RFC 7372 section 3.3: X.7.25, "Reverse DNS validation failed", with 550.  At connect, RFC
        # 5321 section 3.1: "A 554 response MAY be given in the initial connection opening message
        # instead of the 220".
        settings = self.settings
        code = 554 if settings.phase == "connect" else 550
        text = settings.reply or f"{code} 5.7.25 {text}"
        try:
            refusals: dict[str, Reject | Disconnect] = {
                "reject": Reject(text),
                "disconnect": Disconnect(text),
            }
        except ValueError as error:
            raise ConfigError(f"--reply: {error}") from None
        return refusals.get(settings.action, JUNK)

    def required_reports(self) -> frozenset[str]:
        """Ask who has authenticated where somebody may have."""
        return frozenset({"link-auth"} if self.phases & {"mail_from", "rcpt_to"} else ())

    def connect(self, session: Session) -> Proceed | Junk | Reject | Disconnect:
        """Decide before smtpd greets the client."""
        return self._decide(session)

    def helo(self, session: Session, _identity: str) -> Proceed | Junk | Reject | Disconnect:
        """Decide when the client greets; what it calls itself is no matter."""
        return self._decide(session)

    ehlo = helo

    def mail_from(self, session: Session, _address: str) -> Proceed | Junk | Reject | Disconnect:
        """Decide for each message or recipient, unless the client has authenticated."""
        return PROCEED if session.username else self._decide(session)

    rcpt_to = mail_from

    def _decide(self, session: Session) -> Proceed | Junk | Reject | Disconnect:
        """Take smtpd's word."""
        address = self._suspect(session)
        if address is None:
            return PROCEED
        if session.fcrdns != "fail":
            raise UnavailableError("smtpd reports a DNS failure", _DNS_FAILURE)
        if session.rdns is None:
            return self._unnamed.because(NO_NAME)
        return self._failed((session.rdns,), address)

    def _suspect(self, session: Session) -> str | None:
        """Give the address of a client which smtpd's report doesn't clear, else None."""
        address, settings = session.address, self.settings
        if address is None:  # local
            return None
        if session.fcrdns == "pass" if settings.require == "fcrdns" else session.rdns is not None:
            return None
        if settings.allow is not None and settings.allow.match(address):
            return None
        return address

    def _failed(self, names: tuple[str, ...], address: str) -> Junk | Reject | Disconnect:
        return self._unconfirmed.because(f"rdns {' '.join(names)} not confirmed for {address}")


class _Verifying(Fcrdns):
    """The same, which looks for itself at those that smtpd has not confirmed."""

    name = "fcrdns"

    _resolver: Resolver

    def setup(self) -> None:
        """Get a resolver ready, too."""
        super().setup()
        from smtpd_filters.lookups.dns import Resolver  # law 4

        settings = self.settings
        try:
            self._resolver = Resolver(
                settings.nameserver or None,
                timeout=settings.timeout,
                deadline=_LOOKUP * settings.timeout,
                attempts=_ROUNDS,
            )
        except ConfigError as error:
            raise ConfigError(f"--nameserver: {error}") from None

    async def close(self) -> None:
        """End what is being looked up."""
        await self._resolver.aclose()

    # Coroutines in the place of plain handlers: a filter may have either.

    async def connect(  # type: ignore[override]
        self, session: Session
    ) -> Proceed | Junk | Reject | Disconnect:
        return await self._verify(session)

    async def helo(  # type: ignore[override]
        self, session: Session, _identity: str
    ) -> Proceed | Junk | Reject | Disconnect:
        return await self._verify(session)

    ehlo = helo  # type: ignore[assignment]

    async def mail_from(  # type: ignore[override]
        self, session: Session, _address: str
    ) -> Proceed | Junk | Reject | Disconnect:
        return PROCEED if session.username else await self._verify(session)

    rcpt_to = mail_from  # type: ignore[assignment]

    async def _verify(self, session: Session) -> Proceed | Junk | Reject | Disconnect:
        address = self._suspect(session)
        if address is None:
            return PROCEED
        # Each recipient gets the same answer, whatever happens to the cache meanwhile.
        known: Proceed | Junk | Reject | Disconnect | None = session.scratch.get(self)
        if known is None:
            known = session.scratch[self] = await self._look_up(address)
        return known

    async def _look_up(self, address: str) -> Proceed | Junk | Reject | Disconnect:
        if self.settings.require == "rdns":
            return await self._look_for_a_name(address)
        from smtpd_filters.lookups.fcrdns import (  # law 4
            Confirmed,
            NoName,
            Unconfirmed,
            fcrdns,
        )

        match await fcrdns(self._resolver, address):
            case Confirmed():
                return PROCEED
            case NoName():
                return self._unnamed.because(NO_NAME)
            case Unconfirmed(names):
                return self._failed(names, address)
            case unavailable:
                raise UnavailableError(unavailable.cause, _DNS_FAILURE)

    async def _look_for_a_name(self, address: str) -> Proceed | Junk | Reject | Disconnect:
        from smtpd_filters.lookups.outcome import Found, NotFound  # law 4

        match await self._resolver.ptr(address):
            case Found():
                return PROCEED
            case NotFound():
                return self._unnamed.because(NO_NAME)
            case unavailable:
                raise UnavailableError(unavailable.cause, _DNS_FAILURE)


def main(argv: Sequence[str] | None = None) -> int:
    """The executable filter-fcrdns."""
    return run(Fcrdns, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
