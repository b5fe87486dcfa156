"""filter-mailfrom: refuse senders that use our addresses and aren't ours.

The law:

1. An own address (`--domains`, `--addresses`, `--patterns`) may be used by exempt clients, which
   by default are those on this machine and those that have authenticated; by nobody else.
2. With `--senders`, a user that has authenticated may use the addresses listed for it, own or not,
   and no others: as with smtpd's `senders`.  It is that user wherever it comes from.
3. The null sender belongs to nobody and is never a spoof. (What a message says of itself is looked
   at all the same.)
4. An address is judged as smtpd will take it: without a source route and quotes, without regard to
   case, and completed with the server's own name where it has no domain.  A domain is own if any
   program takes it for an own one; a user may use a domain only in its canonical form.
5. A `From:` field is judged by all addresses that any reader could make of it: of several fields,
   of several mailboxes, of syntax that is none.  What is too large to be judged is a spoof, and so
   is a header of which a part is not read.
6. A name is no claim to a foreign address.  In one that is not in quotes, an ``@`` that has no dot
   at its right is a word: no program sends mail there.
"""

from __future__ import annotations

import re
from functools import lru_cache

from smtpd_filters.addresses import Address, folded, in_unicode, path, readings
from smtpd_filters.addresses.domains import NAME_MAX
from smtpd_filters.checks.client_filter import ACTIONS, REPLY_UNUSED, decision
from smtpd_filters.checks.exemptions import AUTHENTICATED, Exempt, exempt_option, exempted
from smtpd_filters.checks.strictness import require_entries
from smtpd_filters.errors import ConfigError
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
from smtpd_filters.tables.source import LINE_MAX, shown
from smtpd_filters.tables.table import Pairs

from .candidate import Candidate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.message import Headers
    from smtpd_filters.session import Session

# Addresses with blanks and commas between them; in quotes a local part may have both.
_ADDRESSES = re.compile(r'(?:"(?:[^"\\]|\\.)*+"|[^\s,"]|")++', re.DOTALL)


# What a byte of them costs beyond that of any entry (see `source.STEP`).
_WORK = 4
# Bytes that are copied for a unit of work.
_COPIED = 16


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
            # A user's addresses are made a table in one step.
            raise ValueError(f"one user has more than {LINE_MAX} characters of addresses")
        return super().add_pair(key, whole) + _WORK * len(value) + len(whole) // _COPIED


class SendersTable(MappingTable):
    """Users with the addresses that each may use, as smtpd's `senders`: `user a@b, @c`.

    A user with several lines may use the addresses of all; smtpd takes the last line only.
    """

    __slots__ = ()
    contents = _Senders


def _split(addresses: str) -> list[str]:
    entries = _ADDRESSES.findall(addresses)
    if not entries:
        raise ValueError("no address")
    return entries


@lru_cache(maxsize=1024)
def _owned(addresses: str) -> AddressTable:
    """The addresses of one user."""
    return AddressTable.of(_split(addresses))


class Mailfrom(Filter):
    """Refuse senders that use our addresses without being ours."""

    name = "mailfrom"

    class Options(Settings):
        """Which addresses are ours, who may use them, what to do otherwise."""

        domains = option(
            table(DomainTable),
            default=None,
            help="Own domains. A star covers one label: *.example.org is a.example.org, but "
            "neither example.org nor a.b.example.org; see --subdomains.",
        )
        subdomains = option(
            SWITCH,
            default=False,
            help="Take everything below an own domain for own as well.",
        )
        addresses = option(
            table(AddressTable),
            default=None,
            help="Own addresses in domains that aren't: user@example.org, @example.org.",
        )
        patterns = option(
            table(RegexTable),
            default=None,
            help="Regular expressions; an address that one matches, in lower case, is own.",
        )
        exempt = exempt_option("local", "authenticated", what="Clients that may use own addresses")
        trusted = option(
            table(NetworkTable),
            default=None,
            help="Addresses and networks whose clients may use own addresses without "
            "authentication: the same as --exempt TABLE.",
        )
        senders = option(
            table(SendersTable),
            default=None,
            help="Users and the addresses that each may use, as for smtpd's senders: a user name, "
            "then addresses with commas between them; @example.org is every address there. Users "
            "not listed may use none. An address without a domain is completed with the server's "
            "name, as smtpd does.",
        )
        check_header = option(
            SWITCH,
            default=False,
            help="Look at the From field, too. The message then passes through the filter.",
        )
        check_display = option(
            SWITCH,
            default=False,
            help="Look for own addresses in the display names and comments of the From field, too, "
            'as in "boss@example.org" <x@example.net>. Implies --check-header.',
        )
        action = option(
            ACTIONS,
            default="reject",
            help="What to do with a spoofed envelope sender.",
        )
        header_action = option(
            ACTIONS,
            default=None,
            help="What to do with a spoofed From field; by default the same. A refusal is given "
            "when the message is complete.",
        )
        reply = option(
            REPLY,
            default=None,
            help="The reply of a refusal, with its codes; by default 550 5.7.1 and a text that "
            "says what is wrong.",
        )

    settings: Options

    _exempt: Exempt
    _replies: dict[tuple[str, bool], Junk | Reject | Disconnect]

    def setup(self) -> Registration:
        """See that there is something to guard, and make the refusals."""
        settings = self.settings
        guarded = (settings.domains, settings.addresses, settings.patterns)
        if all(each is None for each in (*guarded, settings.senders)):
            raise ConfigError(
                "nothing to guard: --domains, --addresses, --patterns or --senders is required"
            )
        require_entries(settings, "domains", "addresses", "patterns")
        if settings.subdomains and settings.domains is None:
            raise ConfigError("--subdomains: of what? --domains is required")
        header = settings.check_header or settings.check_display
        if settings.header_action is not None and not header:
            raise ConfigError("--header-action: needs --check-header")
        if settings.senders is not None and AUTHENTICATED in settings.exempt.given:
            raise ConfigError("--exempt authenticated: not with --senders, which is for users")
        self._exempt = settings.exempt.also(settings.trusted)
        if header:
            # Now, and not while a message waits.
            import smtpd_filters.filters.mailfrom.from_field  # noqa: F401 - for `headers` alone
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
            reports.add("link-greeting")  # it has the name that completes an address
        return Registration(
            {"mail_from", "headers"} if header else {"mail_from"},
            reports=reports,
            junk="junk" in actions.values(),
        )

    def mail_from(self, session: Session, address: str) -> Proceed | Junk | Reject | Disconnect:
        """Look at the envelope's sender."""
        sender = path(address)
        if not sender:
            return PROCEED
        if why := self._free(session):
            return exempted(self, why)
        reason = self._judge(session, Candidate((sender.local,), sender.domain))
        if reason is None:
            return PROCEED
        return self._replies["mail", bool(session.username)].because(f"sender {reason}")

    def headers(self, session: Session, headers: Headers) -> Proceed | Junk | Reject | Disconnect:
        """Look at what the message says who wrote it."""
        if why := self._free(session):
            return exempted(self, why)
        from .from_field import values_of_from

        reason = self._judge_from(session, values_of_from(headers))
        if reason is None and headers.cut:
            reason = "cannot be judged: there may be another one beyond what is read of the header"
        if reason is None:
            return PROCEED
        return self._replies["from", bool(session.username)].because(f"from {reason}")

    def _free(self, session: Session) -> str:
        """Say why a client may use any address; "" if it may not."""
        if session.username and self.settings.senders is not None:
            return ""  # law 2
        return self._exempt.reason(session)

    def _judge_from(self, session: Session, values: list[str]) -> str | None:
        from .from_field import TooLargeError, read_from

        try:
            author = read_from(values)
        except TooLargeError as error:
            return f"cannot be judged: {error}"
        for candidate in author.addresses:
            if (reason := self._judge(session, candidate)) is not None:
                return reason if len(values) == 1 else f"{reason}, in one of {len(values)} fields"
        for candidate in author.possible:
            if (reason := self._judge_own(session, candidate)) is not None:
                return reason
        if self.settings.check_display:
            for candidate in author.shown:
                if (reason := self._judge_own(session, candidate)) is not None:
                    return f"{reason}, shown as a name"
        return None

    def _judge(self, session: Session, candidate: Candidate) -> str | None:
        """Say why a client may not use an address, or None."""
        senders = self.settings.senders
        if not session.username or senders is None:
            return self._judge_own(session, candidate)
        # smtpd completes an address before it looks for it in its own `senders`.
        candidate = candidate.completed(session.server_name)
        if (addresses := senders.get(session.username)) is not None:
            listed = _owned(addresses)
            for local in candidate.local_parts:
                if listed.find(Address(local, candidate.domain)):
                    return None
        return f"{candidate} is not of user {session.username}"

    def _judge_own(self, session: Session, candidate: Candidate) -> str | None:
        """Judge what is no claim to a foreign address: a name, another way to read an address."""
        own = self._is_own(candidate)
        if not own:
            return None
        if session.username and self.settings.senders is not None:
            return self._judge(session, candidate)
        return f"{candidate} is own: {own}"

    def _is_own(self, candidate: Candidate) -> str | None:
        """Give what makes an address our own, or None."""
        settings = self.settings
        if not candidate.domain:
            # smtpd completes it with the name of the server.
            guards = settings.domains or settings.addresses or settings.patterns
            return "it has no domain but the server's" if guards else None
        for domain in readings(candidate.domain):
            if settings.domains is not None and (entry := self._own_domain(domain)):
                return entry
            for local in candidate.local_parts:
                if entry := self._own_address(Address(local, domain)):
                    return entry
        return None

    def _own_address(self, address: Address) -> str | None:
        settings = self.settings
        if settings.addresses is not None and (entry := settings.addresses.find(address)):
            return entry
        if settings.patterns is None:
            return None
        forms = {address.domain: None, in_unicode(address.domain): None}
        for domain in forms:
            if entry := settings.patterns.match(f"{folded(address.local)}@{domain}"):
                return entry
        return None

    def _own_domain(self, domain: str) -> str | None:
        """Give the entry that covers a canonical domain, or with `--subdomains` one above it."""
        domains = self.settings.domains
        assert domains is not None  # noqa: S101  # asked only if there are
        # A longer one is no domain, but what is above it may be.
        domain = domain[-NAME_MAX:]
        entry = domains.match(domain)
        while entry is None and self.settings.subdomains and "." in domain:
            domain = domain.partition(".")[2]
            entry = domains.match(domain)
        return entry


def main(argv: Sequence[str] | None = None) -> int:
    """The executable filter-mailfrom."""
    return run(Mailfrom, argv=argv)
