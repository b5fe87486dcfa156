"""filter-mailfrom: the policy that refuses clients that spoof our own addresses.

Invariants
----------
*Own addresses*: an own address (`--domains`, `--addresses`, `--patterns`) may be used by exempt
clients only, by default those on this machine and authenticated ones.
*Users by list*: with `--senders`, an authenticated user may use the addresses listed for it, own or
not, and no others, as with smtpd's `senders`, wherever it connects from.
*Null sender*: the null sender is never a spoof; the header is judged all the same.
*Judged as accepted*: an address is judged as smtpd will use it: without a source route and quotes,
case-insensitively, and completed with the server's name if it has no domain. A domain is own if any
program takes it for an own one; a user may use a domain only in its canonical form.
*All readings*: a `From:` field is judged by all readings of it: several fields, several mailboxes,
invalid syntax. A field that is too large, or may lie in a part of the header that isn't read, is a
spoof.
*Names are words*: a name is not a claim to a foreign address. In a name outside quotes, an `@`
without a dot to its right is a word, where no program sends mail.
"""

from __future__ import annotations

import re
from functools import lru_cache

from smtpd_filters.addresses import Address, folded, in_unicode, path, readings
from smtpd_filters.addresses.domains import NAME_MAX
from smtpd_filters.checks.author.candidate import Candidate
from smtpd_filters.checks.client_filter import ACTIONS, REPLY_UNUSED, decision
from smtpd_filters.checks.exemptions import AUTHENTICATED, Exempt, exempt_option, exempted
from smtpd_filters.checks.strictness import require_entries
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.main import run
from smtpd_filters.protocol.decisions import PROCEED, Disconnect, Junk, Proceed, Reject
from smtpd_filters.settings import REPLY, SWITCH, Settings, option, table
from smtpd_filters.tables import (
    AddressTable,
    DomainTable,
    MappingTable,
    NetworkTable,
    RegexTable,
)
from smtpd_filters.tables.domains import address_entry
from smtpd_filters.tables.source import KEY_MAX, LINE_MAX, shown
from smtpd_filters.tables.table import Pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.message import Headers
    from smtpd_filters.session import Session

# Addresses separated by blanks and commas; a quoted local part may have both.
_ADDRESSES = re.compile(r'(?:"(?:[^"\\]|\\.)*+"|[^\s,"]|")++', re.DOTALL)


# The work for a byte of them, beyond that for any entry (see `source.STEP`).
_WORK = 4
# The number of bytes copied in a unit of work.
_COPIED = 16
# Labels of an own domain above a name, at most. A remote table is asked for each such domain, and a
# client chooses how many labels the 256 names in a From have: without a limit, it could take longer
# than the deadline to judge them.
_LABELS_MAX = 16


class _Senders(Pairs):
    __slots__ = ()

    def add_pair(self, key: str, value: str) -> int:
        for entry in _split(value):
            try:
                address_entry(entry)
            except ValueError as error:
                raise ValueError(f"{error} in {shown(entry)}") from None
        known = self.value(key)
        whole = value if known is None else f"{known}, {value}"
        if len(whole) > LINE_MAX:
            # The table of a user's addresses is made in one step.
            raise ValueError(f"one user has more than {LINE_MAX} characters of addresses")
        return super().add_pair(key, whole) + _WORK * len(value) + len(whole) // _COPIED


class SendersTable(MappingTable):
    """The addresses that each user may use, like smtpd's `senders`: `user a@b, @c`.

    A user with several lines may use the addresses of all; smtpd uses the last line only.
    """

    __slots__ = ()
    contents = _Senders
    service = "mailaddrmap"


def _split(addresses: str) -> list[str]:
    entries = _ADDRESSES.findall(addresses)
    if not entries:
        raise ValueError("no address")
    return entries


@lru_cache(maxsize=1024)
def _owned(addresses: str) -> AddressTable:
    """Return the table of one user's addresses."""
    return AddressTable.of(_split(addresses))


class Mailfrom(Filter):
    """Refuse clients that use our addresses without permission."""

    name = "mailfrom"

    class Options(Settings):
        """The own addresses, the clients and users that may use them, and the action."""

        domains = option(
            table(DomainTable, by_key=True),
            default=None,
            help="Own domains. A star covers one label: *.example.org is a.example.org, but "
            "neither example.org nor a.b.example.org; see --subdomains.",
        )
        subdomains = option(
            SWITCH,
            default=False,
            help="Treat everything below an own domain as own as well.",
        )
        addresses = option(
            table(AddressTable, by_key=True),
            default=None,
            help="Own addresses in domains that are not in --domains: user@example.org, "
            "@example.org.",
        )
        patterns = option(
            table(RegexTable),
            default=None,
            help="Regular expressions; an address is own if one matches it in lower case.",
        )
        exempt = exempt_option("local", "authenticated", what="Clients that may use own addresses")
        trusted = option(
            table(NetworkTable),
            default=None,
            help="Addresses and networks whose clients may use own addresses without "
            "authentication: the same as --exempt TABLE.",
        )
        senders = option(
            table(SendersTable, by_key=True),
            default=None,
            help="Users and the addresses that each may use, as for smtpd's senders: a user name, "
            "then addresses separated by commas; @example.org is every address there. Users not "
            "listed may use none. An address without a domain is completed with the server's name, "
            "as by smtpd.",
        )
        check_header = option(
            SWITCH,
            default=False,
            help="Check the From field as well. The message then passes through the filter.",
        )
        check_display = option(
            SWITCH,
            default=False,
            help="Check the display names and comments of the From field for own addresses as "
            'well, as in "boss@example.org" <x@example.net>. Implies --check-header.',
        )
        action = option(
            ACTIONS,
            default="reject",
            help="What to do with a spoofed envelope sender.",
        )
        header_action = option(
            ACTIONS,
            default=None,
            help="What to do with a spoofed From field; by default the same. A refusal follows "
            "the end of the message.",
        )
        reply = option(
            REPLY,
            default=None,
            help="The SMTP reply of a refusal, with its codes; by default 550 5.7.1 and a text "
            "that states the reason.",
        )

    settings: Options

    _exempt: Exempt
    _replies: dict[tuple[str, bool], Junk | Reject | Disconnect]

    def setup(self) -> Registration:
        """Check that there is something to guard, and prepare the refusals."""
        settings = self.settings
        guarded = (settings.domains, settings.addresses, settings.patterns)
        if all(each is None for each in (*guarded, settings.senders)):
            raise ConfigError(
                "nothing to guard: --domains, --addresses, --patterns or --senders is required"
            )
        require_entries(settings, "domains", "addresses", "patterns")
        if settings.subdomains and settings.domains is None:
            raise ConfigError("--subdomains requires --domains")
        header = settings.check_header or settings.check_display
        if settings.header_action is not None and not header:
            raise ConfigError("--header-action requires --check-header")
        if settings.senders is not None and AUTHENTICATED in settings.exempt.given:
            raise ConfigError("--exempt authenticated: cannot be combined with --senders")
        self._exempt = settings.exempt.also(settings.trusted)
        if header:
            # At start rather than while a message waits.
            import smtpd_filters.checks.author.from_field  # noqa: F401  # used in `headers` only
        # RFC 3463 section 3.8, X.7.1: "The sender is not authorized to send to the destination."
        texts = {
            ("mail", False): "550 5.7.1 Sender address not allowed from here; please authenticate",
            ("mail", True): "550 5.7.1 Sender address not allowed for your user",
            ("from", False): "550 5.7.1 Address in From not allowed from here; please authenticate",
            ("from", True): "550 5.7.1 Address in From not allowed for your user",
        }
        actions = {"mail": settings.action, "from": settings.header_action or settings.action}
        if settings.reply is not None and set(actions.values()) == {"junk"}:
            self.log.event(REPLY_UNUSED)
        self._replies = {
            key: decision(actions[key[0]], settings.reply or text) for key, text in texts.items()
        }
        reports = {"link-auth"}
        if settings.senders is not None:
            reports.add("link-greeting")  # has the server's name, which completes an address
        return Registration(
            {"mail_from", "headers"} if header else {"mail_from"},
            reports=reports,
            junk="junk" in actions.values(),
            waits=False,  # only for a remote table
        )

    async def mail_from(
        self, session: Session, address: str
    ) -> Proceed | Junk | Reject | Disconnect:
        """Judge the envelope sender."""
        sender = path(address)
        if not sender:
            return PROCEED
        if why := self._exempt_reason(session):
            return exempted(self, why)
        reason = await self._judge(session, Candidate((sender.local,), sender.domain))
        if reason is None:
            return PROCEED
        return self._replies["mail", bool(session.username)].because(f"sender {reason}")

    async def headers(
        self, session: Session, headers: Headers
    ) -> Proceed | Junk | Reject | Disconnect:
        """Judge the authors in the header."""
        if why := self._exempt_reason(session):
            return exempted(self, why)
        from smtpd_filters.checks.author.from_field import values_of_from

        reason = await self._judge_from(session, values_of_from(headers))
        if reason is None and headers.cut:
            reason = "cannot be judged: there may be another one beyond what is read of the header"
        if reason is None:
            return PROCEED
        return self._replies["from", bool(session.username)].because(f"from {reason}")

    def _exempt_reason(self, session: Session) -> str:
        """Return why a client may use any address; "" if it may not."""
        if session.username and self.settings.senders is not None:
            return ""  # *Users by list*
        return self._exempt.reason(session)

    async def _judge_from(self, session: Session, values: list[str]) -> str | None:
        from smtpd_filters.checks.author.from_field import TooLargeError, read_from

        try:
            author = read_from(values)
        except TooLargeError as error:
            return f"cannot be judged: {error}"
        for candidate in author.addresses:
            if (reason := await self._judge(session, candidate)) is not None:
                return reason if len(values) == 1 else f"{reason}, in one of {len(values)} fields"
        for candidate in author.possible:
            if (reason := await self._judge_own(session, candidate)) is not None:
                return reason
        if self.settings.check_display:
            for candidate in author.shown:
                if (reason := await self._judge_own(session, candidate)) is not None:
                    return f"{reason}, shown as a name"
        return None

    async def _judge(self, session: Session, candidate: Candidate) -> str | None:
        """Return why a client may not use an address, or None."""
        senders = self.settings.senders
        if not session.username or senders is None:
            return await self._judge_own(session, candidate)
        # smtpd completes an address before it looks for it in its own `senders`.
        candidate = candidate.completed(session.server_name)
        if (addresses := await senders.look_up_value(session.username)) is not None:
            try:
                listed = _owned(addresses)
            except ConfigError as error:  # of a remote table
                raise UnavailableError(f"{senders.source}: {error}") from None
            for local in candidate.local_parts:
                if listed.find(Address(local, candidate.domain)):
                    return None
        return f"{candidate} is not of user {session.username}"

    async def _judge_own(self, session: Session, candidate: Candidate) -> str | None:
        """Return why a client may not use a name or another reading of an address, or None.

        Neither is a claim to a foreign address.
        """
        own = await self._is_own(candidate)
        if not own:
            return None
        if session.username and self.settings.senders is not None:
            return await self._judge(session, candidate)
        return f"{candidate} is own: {own}"

    async def _is_own(self, candidate: Candidate) -> str | None:
        """Return the entry or the reason that makes an address own, or None."""
        settings = self.settings
        if not candidate.domain:
            # smtpd completes it with the name of the server.
            guards = settings.domains or settings.addresses or settings.patterns
            return "it has no domain but the server's" if guards else None
        for domain in readings(candidate.domain):
            if settings.domains is not None and (entry := await self._own_domain(domain)):
                return entry
            for local in candidate.local_parts:
                if entry := await self._own_address(Address(local, domain)):
                    return entry
        return None

    async def _own_address(self, address: Address) -> str | None:
        settings = self.settings
        own = settings.addresses
        if len(address.local) > KEY_MAX and (own is not None or settings.patterns is not None):
            return "its local part is too long to be compared"
        if own is not None and (entry := await own.look_up_address(address)):
            return entry
        if settings.patterns is None:
            return None
        forms = {address.domain: None, in_unicode(address.domain): None}
        for domain in forms:
            key = f"{folded(address.local)}@{domain}"
            if entry := settings.patterns.match(key):
                return entry
            if len(key.encode("utf-8", "replace")) > KEY_MAX:
                return "it is too long to be compared with --patterns"
        return None

    async def _own_domain(self, domain: str) -> str | None:
        """Return the entry that covers a canonical domain, or with `--subdomains` one above it."""
        domains = self.settings.domains
        assert domains is not None  # noqa: S101  # checked by the caller
        # A longer name is not a domain, but its parents may be.
        domain = domain[-NAME_MAX:]
        entry = await domains.look_up(domain)
        if entry is None and self.settings.subdomains:
            labels = domain.split(".")[1:][-_LABELS_MAX:]
            while entry is None and labels:
                entry = await domains.look_up(".".join(labels))
                del labels[0]
        return entry


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-mailfrom."""
    return run(Mailfrom, argv=argv)
