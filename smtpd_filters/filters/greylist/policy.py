"""filter-greylist: the policy that asks unknown clients to try again later.

A first attempt of a client, a sender and a recipient is refused temporarily, and so is a second one
before `--delay` has passed. Mail servers try again; much of what sends spam doesn't. `senders` has
the addresses of a triplet, `clients` its client, `triplets` what is remembered.

Invariants
----------
*Never for good*: every refusal is temporary, and says when to come back.
*Memory may fail*: a store that fails refuses nobody, unless `--on-error` says so.
*Doubt is no evidence*: with `--only-if` a client waits for what is known about it, never because a
look-up failed.
*Asked in turn*: the filter remembers what it is asked about, so that a chain asks it only when the
filters ahead of it have accepted the command.
"""

from __future__ import annotations

import re

from smtpd_filters.addresses import path
from smtpd_filters.checks.correspondents import Correspondents, CorrespondentsSetting
from smtpd_filters.checks.exemptions import (
    Exempt,
    allow_option,
    client_address,
    exempt_option,
    exempted,
)
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.main import run
from smtpd_filters.own_field import OwnField
from smtpd_filters.protocol.decisions import PROCEED, Proceed, Reject
from smtpd_filters.settings import (
    INTEGER,
    LIST,
    REPLY,
    SECONDS,
    SWITCH,
    Settings,
    choice,
    option,
    table,
)
from smtpd_filters.settings.kind import Kind
from smtpd_filters.settings.quoting import quote
from smtpd_filters.stores import Store
from smtpd_filters.tables import AddressTable, HostTable

from . import senders
from .triplets import Attempt, Terms, Triplets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.message import Headers
    from smtpd_filters.session import Session, Transaction

    from .clients import Clients
    from .suspicion import Suspicion
    from .triplets import Standing

#: The header field, named as by milter-greylist and postgrey.
FIELD = OwnField("X-Greylist")
# RFC 3463 section 3.8, X.7.1: "The sender is not authorized to send to the destination ... per-host
# or per-recipient filtering".
TEXT_OF_REPLY = "451 4.7.1 Greylisted, please try again in %{seconds} seconds"
SECONDS_LEFT = "%{seconds}"
_PLACEHOLDER = re.compile(r"%\{[^}]*\}?")
#: Local parts that `--exempt-roles` exempts: RFC 5321 section 4.5.1 requires that postmaster takes
#: mail, RFC 2142 section 4 names abuse.
ROLES = frozenset({"postmaster", "abuse"})
#: The share of `--deadline` for the look-ups that identify a client; the store is asked after them.
SHARE = 0.4
#: Recipients of a message whose correspondents are looked up.
RECIPIENTS_MAX = 20
_SECONDS = SECONDS(low=1, high=366 * 86400)
_PREFIX4, _PREFIX6 = INTEGER(low=8, high=32), INTEGER(low=16, high=128)


class _Zone(Kind[str]):
    metavar = "ZONE"
    noun = "the name of a DNS list"

    def parse(self, text: str) -> str:
        from smtpd_filters.lookups.dns.names import domain  # not for --help

        try:
            name = domain(text)
            domain(f"{'f.' * 32}{name}")
        except ValueError:
            raise ValueError(f"expected {self.noun}, not {quote(text)}") from None
        return name


ZONE = _Zone()


class _Judged:
    """What is known of a message: its client, why it is exempt, and the result for its header."""

    __slots__ = ("client", "exempt", "network", "passed", "result")

    def __init__(self) -> None:
        self.client = self.network = self.exempt = self.result = ""
        #: Whether one of its recipients has passed.
        self.passed = False


class Greylist(Filter):
    """Ask clients that are not known to try again later."""

    name = "greylist"
    early = False  # it remembers what it is asked
    own_fields = (FIELD,)

    class Options(Settings):
        """The times, the clients that wait, the exemptions, and the reply."""

        delay = option(
            _SECONDS,
            default=300.0,
            help="How long a client has to wait before it may try again.",
        )
        window = option(
            _SECONDS,
            default=2 * 86400.0,
            help="How long after its first attempt a client may try again; after that it waits "
            "again.",
        )
        lifetime = option(
            _SECONDS,
            default=36 * 86400.0,
            help="How long a triplet that has passed, or a known client, is remembered after its "
            "last message.",
        )
        known_after = option(
            INTEGER(low=0, high=1000),
            default=5,
            help="The number of messages after which a client is known and waits no more, at most "
            "one an hour counting; 0 for never.",
        )
        key = option(
            choice("network", "spf", "domain"),
            default="domain",
            help="What counts as one client: the network of its address; or the sender's domain if "
            "SPF passes (spf), or if not, the registered domain of its confirmed reverse name "
            "(domain), so that servers which retry from other addresses don't wait again.",
        )
        ipv4_prefix = option(
            _PREFIX4, default=24, help="The prefix length of a client's network, for IPv4."
        )
        ipv6_prefix = option(
            _PREFIX6, default=64, help="The prefix length of a client's network, for IPv6."
        )
        only_if = option(
            LIST(choice("no-rdns", "unconfirmed", "dynamic", "listed")),
            default=(),
            help="Have only suspicious clients wait: those without a reverse name (no-rdns), those "
            "whose reverse name is missing or does not resolve to them (unconfirmed), those whose "
            "name looks dynamically assigned (dynamic), those on a --dnsbl (listed). In a chain, "
            "greylist-at is another such condition. By default all clients wait.",
        )
        dnsbl = option(
            LIST(ZONE),
            default=(),
            help="The zone of a DNS list of addresses, for --only-if listed.",
        )
        dnswl = option(
            LIST(ZONE),
            default=(),
            help="The zone of a DNS list of clients that never wait, such as list.dnswl.org.",
        )
        phase = option(
            choice("rcpt-to", "data"),
            default="rcpt-to",
            help="When to refuse: each recipient, or the whole message at data. At data a message "
            "passes if one of its recipients does.",
        )
        null_sender = option(
            choice("data", "rcpt-to", "exempt"),
            default="data",
            help="When to refuse messages without a sender (bounces). Servers that verify a sender "
            "by asking for it don't get to data.",
        )
        exempt = exempt_option("local", "authenticated")
        allow = allow_option()
        allow_names = option(
            table(HostTable, by_key=True),
            default=None,
            help="Reverse names of clients that never wait, if they resolve to the client. A star "
            "covers one label: *.example.org is a.example.org, but neither example.org nor "
            "a.b.example.org.",
        )
        allow_senders = option(
            table(AddressTable, by_key=True),
            default=None,
            help="Senders that never wait: user@example.org, @example.org. Senders can be forged.",
        )
        allow_recipients = option(
            table(AddressTable, by_key=True),
            default=None,
            help="Recipients whose mail never waits.",
        )
        exempt_roles = option(
            SWITCH,
            default=False,
            help="Mail to postmaster and abuse, at any domain, never waits.",
        )
        reply = option(
            REPLY,
            default=TEXT_OF_REPLY,
            help=f"The SMTP reply of a refusal, with its codes; {SECONDS_LEFT} stands for the "
            "seconds to wait.",
        )
        header = option(
            SWITCH,
            default=False,
            help=f"Add a field {FIELD} to messages that says how long they have waited or why they "
            "have not, and remove such fields from incoming messages.",
        )

    settings: Options
    dns = Resolver.setting(
        takes="SPF may need ten look-ups in a row; after two fifths of --deadline the client's "
        "network is used"
    )
    store = Store.setting()
    correspondents = CorrespondentsSetting()

    _exempt = Exempt()
    _triplets: Triplets
    _clients: Clients
    _suspicion: Suspicion
    _friends: Correspondents | None = None

    def setup(self) -> Registration:
        """Check that the settings are consistent, and prepare."""
        settings = self.settings
        self._check_settings()
        self._exempt = settings.exempt.also(settings.allow)
        uses_dns = settings.key != "network" or bool(settings.dnsbl or settings.dnswl)
        if not uses_dns:
            Greylist.dns.refuse_unused(self, "--key, --dnsbl or --dnswl")
        self._prepare()
        phases = {settings.phase, settings.null_sender} - {"exempt"}
        handlers = {phase.replace("-", "_") for phase in phases}
        reports = {"tx-begin"}
        if settings.header:
            handlers.add("headers")
        if self._exempt.users:
            reports.add("link-auth")
        if settings.key != "network":
            reports.add("link-identify")
        opens = {"store", *(("dns",) if uses_dns else ())}
        if vars(settings)["correspondents"] is not None:
            opens.add("correspondents")
            self._friends = Correspondents(self.correspondents, vars(settings)["correspondents_of"])
        elif "correspondents_of" in settings.given:
            raise ConfigError("--correspondents-of requires --correspondents")
        return Registration(
            handlers,
            reports=reports,
            events={"link_connect"} if settings.dnsbl or settings.dnswl else (),
            junk=False,
            opens=opens,
        )

    def _check_settings(self) -> None:
        settings = self.settings
        if settings.delay >= settings.window:
            raise ConfigError("--delay must be shorter than --window")
        if settings.window > settings.lifetime:
            # A full store drops first what expires first: triplets that nobody has confirmed.
            raise ConfigError("--lifetime must not be shorter than --window, by default 2d")
        if not settings.reply.startswith("4"):
            raise ConfigError("--reply: must be temporary, with a code that begins with 4")
        others = _PLACEHOLDER.findall(settings.reply.replace(SECONDS_LEFT, ""))
        if others:
            raise ConfigError(f"--reply: unknown placeholder {others[0]}: expected {SECONDS_LEFT}")
        if bool(settings.dnsbl) is not ("listed" in settings.only_if):
            raise ConfigError("--only-if listed and --dnsbl require each other")

    def _prepare(self) -> None:
        """Prepare the look-ups; these imports are not needed for --help."""
        from smtpd_filters.checks.dynamic import DynamicNames

        from .suspicion import Suspicion

        settings = self.settings
        try:
            from .clients import Clients, load

            load(settings.key)
        except ImportError as error:
            raise ConfigError(f"--key {settings.key} requires pyspf: {error}") from None
        needs_names = settings.key == "domain" or "dynamic" in settings.only_if
        dynamic = DynamicNames() if needs_names else None
        uses_dns = settings.key != "network"
        terms = Terms(settings.delay, settings.window, settings.lifetime, settings.known_after)
        self._triplets = Triplets(self.store, terms, self._note)
        self._clients = Clients(
            settings.key,
            (settings.ipv4_prefix, settings.ipv6_prefix),
            dns=self.dns if uses_dns else None,
            dynamic=dynamic,
            seconds=SHARE * self.deadline,
        )
        self._suspicion = Suspicion(
            settings.only_if,
            dynamic,
            listed=settings.dnsbl,
            allowed=settings.dnswl,
            dns=self.dns if settings.dnsbl or settings.dnswl else None,
            note=self._note_list,
        )

    def _note(self, cause: str) -> None:
        self.log.limited(f"store {cause}", "store", error=cause)

    def _note_list(self, zone: str, trouble: str) -> None:
        self.log.limited(f"list {zone}", "list", zone=zone, error=trouble)

    def link_connect(self, session: Session) -> None:
        """Start the look-ups of the lists ahead of need."""
        if not self._exempt.reason(session) and session.address:
            self._suspicion.start(session.address)

    # -- phases ----------------------------------------------------------------------------

    async def rcpt_to(self, session: Session, address: str) -> Proceed | Reject:
        """Refuse a recipient that has to wait."""
        tx, sender = _transaction(session)
        if (self.settings.phase if sender else self.settings.null_sender) != "rcpt-to":
            return PROCEED
        return await self._decide(session, tx, sender, [address])

    async def data(self, session: Session) -> Proceed | Reject:
        """Refuse a message that has to wait."""
        tx, sender = _transaction(session)
        if (self.settings.phase if sender else self.settings.null_sender) != "data":
            return PROCEED
        return await self._decide(session, tx, sender, tx.recipients)

    def headers(self, session: Session, headers: Headers) -> Proceed:
        """State how long the message has waited, or why it has not."""
        FIELD.remove(headers)
        tx = session.tx
        judged: _Judged | None = None if tx is None else tx.scratch.get(self)
        result = judged.result if judged is not None else ""
        if not result and (why := self._exempt.reason(session)):
            result = f"not delayed: {why}"
        if result:
            FIELD.prepend(headers, result)
        return PROCEED

    # -- the decision ----------------------------------------------------------------------

    async def _decide(
        self, session: Session, tx: Transaction, sender: str, recipients: Sequence[str]
    ) -> Proceed | Reject:
        """Judge recipients of a message."""
        if why := self._exempt.reason(session):
            return exempted(self, why)
        address = client_address(session)
        if address is None:  # a client on smtpd's socket, which is not exempt
            return PROCEED
        judged: _Judged | None = tx.scratch.get(self)
        if judged is None:
            judged = await self._identify(session, address, sender)
            tx.scratch[self] = judged
        why = judged.exempt or await self._exempt_recipient(recipients)
        unknown = None
        if not why:
            try:
                why = "a correspondent" if await self._is_friend(sender, recipients) else ""
            except UnavailableError as error:
                unknown = error  # it matters only if the client would have to wait
        if why:
            judged.result = judged.result or f"not delayed: {why}"
            return exempted(self, why)
        attempt = Attempt(
            judged.client,
            senders.sender(sender),
            [senders.recipient(each) for each in recipients],
            network=judged.network,
            address=address,
            retried=judged.passed,
        )
        standing = await self._triplets.judge(attempt)
        if unknown is not None:
            if not standing.passes:
                raise unknown
            self._note(str(unknown))
        return self._decision(judged, standing)

    async def _identify(self, session: Session, address: str, sender: str) -> _Judged:
        """Return the client of a message, or why it is exempt."""
        judged = _Judged()
        judged.exempt = await self._exempt_sender(
            session, sender
        ) or await self._suspicion.innocence(session, address)
        if not judged.exempt:
            judged.network = self._clients.network(address)
            domain = await self._clients.domain(session, address, sender)
            judged.client = domain or judged.network
        return judged

    async def _exempt_sender(self, session: Session, sender: str) -> str:
        """Return the entry of a table that covers the client or the sender, or ""."""
        settings = self.settings
        name = session.rdns if session.fcrdns == "pass" else None
        names, senders = settings.allow_names, settings.allow_senders
        if names is not None and name and (entry := await names.look_up(name)):
            return f"name {entry}"
        if senders is not None and sender:
            entry = await senders.look_up_address(path(sender))
            return f"sender {entry}" if entry else ""
        return ""

    async def _exempt_recipient(self, recipients: Sequence[str]) -> str:
        """Return why one of the recipients wants no mail to wait, or ""."""
        roles, allowed = self.settings.exempt_roles, self.settings.allow_recipients
        for each in recipients if roles or allowed is not None else ():
            address = path(each)
            if roles and address.local.lower() in ROLES:
                return f"recipient {address.local.lower()}"
            if allowed is not None and (entry := await allowed.look_up_address(address)):
                return f"recipient {entry}"
        return ""

    async def _is_friend(self, sender: str, recipients: Sequence[str]) -> bool:
        """Return whether one of the recipients has written to the sender."""
        if self._friends is None or not sender:
            return False
        for each in recipients[:RECIPIENTS_MAX]:
            if await self._friends.knows(each, sender):
                return True
        return False

    def _decision(self, judged: _Judged, standing: Standing) -> Proceed | Reject:
        client = judged.client
        if not standing.passes:
            text = self.settings.reply.replace(SECONDS_LEFT, str(standing.wait))
            what = "first attempt" if standing.state == "new" else "retried too early"
            return Reject(text).because(f"client {client}: {what}")
        judged.passed = judged.passed or standing.state != "known"
        if standing.state == "waited":
            judged.result = f"delayed {standing.seconds:.0f} seconds, client {client}"
            return PROCEED.because(f"client {client}: waited {standing.seconds:.0f} s")
        judged.result = judged.result or f"not delayed: client {client} {standing.state}"
        return (
            PROCEED.because(f"client {client}: {standing.state}") if self.log.verbose else PROCEED
        )


def _transaction(session: Session) -> tuple[Transaction, str]:
    """Return the transaction and its sender. Raises UnavailableError if smtpd reported neither."""
    tx = session.tx
    if tx is None or tx.sender is None:
        raise UnavailableError("the sender is not known")
    return tx, tx.sender


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-greylist."""
    return run(Greylist, argv=argv)
