"""filter-rewrite: canonical addresses, masquerading, tags of recipients, and the subject.

`maps` are tables of canonical addresses and `patterns` those by regular expressions, `masquerade`
and `tags` the other changes of addresses, `fields` the edit of a header block.

Invariants
----------
*Legal results*: an address becomes another valid one of 254 octets at most, or stays.
*Null sender*: the empty envelope sender is never rewritten.
*One pass*: no result is looked up again by the table that it comes from.
*Parameters stay*: the parameters of MAIL and RCPT are kept, which smtpd takes from the answer.
*Before signatures*: a filter that signs is behind this one, or a chain doesn't start.
*Bounded*: the addresses of a header block that are looked up, and the time for their patterns.
"""

from __future__ import annotations

import sys

from smtpd_filters.addresses import Address, path
from smtpd_filters.addresses.tags import TAGS
from smtpd_filters.checks.strictness import require_entries
from smtpd_filters.errors import ConfigError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.main import run
from smtpd_filters.own_field import OwnField
from smtpd_filters.protocol.decisions import MAX_PARAMETER, PROCEED, Proceed, Rewrite
from smtpd_filters.session import parameters
from smtpd_filters.settings import LIST, TEXT, Settings, choice, option, table
from smtpd_filters.settings.quoting import quote
from smtpd_filters.tables import AddressTable, StringTable

from .addresses import checked, same, written
from .clients import ALL, CLIENTS, OUTBOUND, Clients
from .fields import Addresses
from .maps import MAPS, Maps
from .masquerade import ENTRY, masqueraded
from .tags import KEEP, MODES, PLUS, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smtpd_filters.filter import OnError
    from smtpd_filters.message import Headers
    from smtpd_filters.session import Session

SENDERS, RECIPIENTS = frozenset({b"from", b"sender", b"reply-to"}), frozenset({b"to", b"cc"})
#: Distinct addresses of a header block that are looked up, characters of them, and the work for
#: regular expressions (`patterns`): each about 20 ms at most.
ADDRESSES_MAX, CHARACTERS_MAX, WORK_MAX = 500, 25_000, 200_000
#: Such addresses if a table is kept elsewhere.
REMOTE_MAX = 100
_ENVELOPE, _HEADER, _BOTH = PLACES = ("envelope", "header", "both")
#: Characters of a tag that are written into a field.
_TAG_MAX = 64
_TAG = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


class Rewriter(Filter):
    """Rewrite addresses in envelope and header, and tag subjects."""

    name = "rewrite"
    on_error: OnError = "tempfail"

    class Options(Settings):
        """The changes, and for whose mail they are made."""

        canonical = option(
            MAPS,
            default=Maps(),
            help="Canonical addresses of senders and recipients: a mapping in any form of a table, "
            "or regexp:PATH or pcre:PATH, see Tables in filter-rewrite(8). The first table with an "
            "entry counts.",
        )
        sender_canonical = option(
            MAPS, default=Maps(), help="Such tables for senders only, looked up before --canonical."
        )
        recipient_canonical = option(
            MAPS,
            default=Maps(),
            help="Such tables for recipients only, looked up before --canonical.",
        )
        where = option(
            choice(*PLACES),
            default=_BOTH,
            help="Where canonical addresses are put: into the envelope, the header or both.",
        )
        masquerade = option(
            LIST(ENTRY),
            default=(),
            help="A domain whose subdomains are removed from senders, and from all addresses of "
            "the header. With an exclamation mark, one whose addresses are kept; the first that "
            "fits counts.",
        )
        masquerade_except = option(
            table(StringTable), default=None, help="Users whose addresses are not masqueraded."
        )
        tags = option(
            choice(*MODES),
            default=KEEP,
            help="What to do with a tag in an envelope recipient: keep it, strip it, or write it "
            "with a plus, which smtpd understands, or the character of --sub-addr-delim.",
        )
        tag_delimiters = option(TEXT, default="+", help="The characters between a user and a tag.")
        mailboxes = option(
            table(AddressTable, by_key=True),
            default=None,
            help="The addresses that have a mailbox: only they have tags, and an address that is "
            "one of them has none.",
        )
        tag_field = option(
            TEXT,
            default="",
            help="A header field to write the tag of the recipient into, if the message has only "
            "one, and to remove from all messages, such as X-Folder.",
        )
        subject_prefix = option(
            TEXT, default="", help="A text to put before the subject, unless it is there."
        )
        for_ = option(
            CLIENTS,
            default=Clients(),
            help="The clients whose mail is changed: all, those on this machine and authenticated "
            "ones (outbound, or local and authenticated), all others (inbound), and those whose "
            "address is in TABLE. By default all, but addresses in the header only of outbound "
            "mail.",
        )
        users = option(
            table(StringTable, by_key=True),
            default=None,
            help="Authenticated users whose mail is changed, and no other mail.",
        )

    settings: Options

    _for: Clients
    _header_for: Clients
    _edits: bool
    _tag_field: OwnField
    _tag_subject: Callable[[Headers, str], bool]

    def setup(self) -> Registration:
        """Check the settings, and register what they need."""
        settings = self.settings
        self._check()
        given = settings.for_ != Clients()
        self._for = settings.for_ if given else Clients((ALL,))
        self._header_for = settings.for_ if given else Clients((OUTBOUND,))
        canonical = bool(settings.canonical)
        senders = canonical or bool(settings.sender_canonical)
        recipients = canonical or bool(settings.recipient_canonical)
        envelope = settings.where != _HEADER
        self._edits = bool(settings.masquerade) or (
            settings.where != _ENVELOPE and (senders or recipients)
        )
        handlers = set()
        if (senders and envelope) or settings.masquerade:
            handlers.add("mail_from")
        tags = settings.tags != KEEP or settings.tag_field
        if (recipients and envelope) or tags:
            handlers.add("rcpt_to")
        self._tag_field = OwnField(settings.tag_field)
        if settings.tag_field:
            self.own_fields = (self._tag_field,)
        if self._edits or settings.tag_field or settings.subject_prefix:
            handlers.add("headers")
            self.edits_signed = True
        if not handlers:
            raise ConfigError("nothing to rewrite: no tables, domains, tags or subject are given")
        if settings.subject_prefix:
            from smtpd_filters.checks.subject import tag_subject  # start-up time

            self._tag_subject = tag_subject
        self._note_anchors()
        reports = {"link-auth", "link-greeting"}
        if handlers & {"mail_from", "rcpt_to"}:
            reports.add("protocol-client")  # for the parameters; one for each command of a client
        if handlers & {"rcpt_to", "headers"}:
            reports.add("tx-begin")
        return Registration(
            handlers,
            reports=reports,
            junk=False,
            waits=False,  # only for a remote table
        )

    def _check(self) -> None:
        """Raise ConfigError for settings that contradict each other."""
        settings = self.settings
        maps = settings.canonical, settings.sender_canonical, settings.recipient_canonical
        if "where" in settings.given and not any(maps):
            raise ConfigError("--where has no effect without --canonical or its like")
        if settings.masquerade_except is not None and not settings.masquerade:
            raise ConfigError("--masquerade-except requires --masquerade")
        uses_tags = settings.tags != KEEP or settings.tag_field
        for flag, name in (("--tag-delimiters", "tag_delimiters"), ("--mailboxes", "mailboxes")):
            if name in settings.given and not uses_tags:
                raise ConfigError(f"{flag} has no effect without --tags or --tag-field")
        delimiters = settings.tag_delimiters
        if not delimiters or any(
            char.isalnum() or not "!" <= char <= "~" or char in '@"\\' for char in delimiters
        ):
            raise ConfigError(
                f"--tag-delimiters: expected characters such as +-, not {delimiters!r}"
            )
        if settings.tags == PLUS and settings.mailboxes is None:
            raise ConfigError("--tags plus requires --mailboxes")
        field = settings.tag_field
        if field and not (field.isascii() and field.replace("-", "").isalnum() and field[0] != "-"):
            raise ConfigError(f"--tag-field: expected the name of a field, not {field!r}")
        prefix = settings.subject_prefix
        if len(prefix) > 100 or not prefix.isprintable() or prefix != prefix.strip():
            raise ConfigError(
                "--subject-prefix: expected at most 100 printable characters without a blank at "
                f"the beginning or end, not {quote(prefix[:120])} (a blank follows it in the field)"
            )
        require_entries(settings, "mailboxes", "users", "masquerade_except")

    def _note_anchors(self) -> None:
        """Log that patterns without anchors match whole addresses only."""
        settings = self.settings
        texts = [
            text
            for each in (
                settings.canonical,
                settings.sender_canonical,
                settings.recipient_canonical,
            )
            for text in each.anchored
        ]
        if texts:
            self.log.event(
                "patterns without ^ and $ match whole addresses only",
                count=len(texts),
                first=texts[0],
            )

    # -- phases --------------------------------------------------------------------------

    async def mail_from(self, session: Session, address: str) -> Proceed | Rewrite:
        """Rewrite the envelope sender."""
        if not address or not await self._covers(session, self._for):
            return PROCEED
        maps = () if self.settings.where == _HEADER else self._sender_maps()
        given = path(address).completed(session.server_name)
        new = await self._mapped(session, given, maps)
        return self._rewritten(given, self._masqueraded(new), address, session.mail_command)

    async def rcpt_to(self, session: Session, address: str) -> Proceed | Rewrite:
        """Rewrite an envelope recipient."""
        if not await self._covers(session, self._for):
            return PROCEED
        maps = () if self.settings.where == _HEADER else self._recipient_maps()
        given = path(address).completed(session.server_name)
        new = await self._without_tag(session, await self._mapped(session, given, maps))
        return self._rewritten(given, new, address, session.rcpt_command)

    async def headers(self, session: Session, headers: Headers) -> Proceed:
        """Rewrite the addresses of the header, and add the fields that are wanted."""
        settings = self.settings
        if self._edits and await self._covers(session, self._header_for):
            await self._edit(session, headers)
        covered = await self._covers(session, self._for)
        if settings.tag_field:
            self._tag_field.remove(headers)
            if covered and (tag := self._tag(session)):
                self._tag_field.append(headers, tag)
        if settings.subject_prefix and covered:
            self._tag_subject(headers, settings.subject_prefix)
        return PROCEED

    async def _covers(self, session: Session, clients: Clients) -> bool:
        users, user = self.settings.users, session.username
        if users is not None and (not user or await users.look_up(user) is None):
            return False
        return clients.covers(session)

    # -- addresses -----------------------------------------------------------------------

    def _sender_maps(self) -> tuple[Maps, ...]:
        return self.settings.sender_canonical, self.settings.canonical

    def _recipient_maps(self) -> tuple[Maps, ...]:
        return self.settings.recipient_canonical, self.settings.canonical

    async def _mapped(self, session: Session, address: Address, maps: Sequence[Maps]) -> Address:
        """Return the canonical address; the address itself if there is no valid one."""
        for each in maps:
            found = await each.look_up(address, session.server_name) if each else None
            if found is None:
                continue
            try:
                address = path(checked(found))
            except ValueError as error:
                self.log.limited("invalid", "kept", session, address=str(address), error=str(error))
        return address

    def _masqueraded(self, address: Address) -> Address:
        settings = self.settings
        if not settings.masquerade or not address.domain:
            return address
        domain = masqueraded(address.domain, settings.masquerade)
        excepted = settings.masquerade_except
        if domain == address.domain or (excepted is not None and address.local in excepted):
            return address
        return Address(address.local, domain)

    async def _without_tag(self, session: Session, address: Address) -> Address:
        """Return an address as `--tags` has it, and keep its tag for `--tag-field`."""
        settings = self.settings
        if settings.tags == KEEP and not settings.tag_field:
            return address
        found = await split(address, settings.tag_delimiters, settings.mailboxes)
        if found is None:
            return address
        user, tag = found
        new = address
        if settings.tags == PLUS:
            new = Address(f"{user.local}{TAGS.delimiter}{tag}", user.domain)
        elif settings.tags != KEEP:
            new = user
        if settings.tag_field and session.tx is not None:
            session.tx.scratch.setdefault(self, {})[str(new)] = tag
        return new

    def _tag(self, session: Session) -> str:
        """Return the tag of the only recipient, or "" if it is no word."""
        tx = session.tx
        if tx is None or len(tx.recipients) != 1:
            return ""
        tags: dict[str, str] = tx.scratch.get(self, {})
        recipient = path(tx.recipients[0]).completed(session.server_name)
        tag = tags.get(str(recipient), "")
        return tag if len(tag) <= _TAG_MAX and _TAG.issuperset(tag) else ""

    def _rewritten(
        self, given: Address, new: Address, address: str, command: str | None
    ) -> Proceed | Rewrite:
        """Return the decision for a command whose address has become another one."""
        if same(given, new):
            return PROCEED
        try:
            text = checked(written(new.local, new.domain))
        except ValueError as error:
            return PROCEED.because(f"{address} is kept: {error}")
        more = _parameters(command)
        if len(text) + len(more) > MAX_PARAMETER - len("<>"):
            more = ""  # no honest client sends as many
        return Rewrite(f"<{text}>{more}").because(f"{address} -> {text}")

    # -- the header ----------------------------------------------------------------------

    async def _edit(self, session: Session, headers: Headers) -> None:
        """Rewrite the addresses in the header (*Bounded*)."""
        canonical = self.settings.where != _ENVELOPE
        senders, recipients = self._sender_maps(), self._recipient_maps()
        limit = _Limit((*senders, *recipients))
        found = Addresses(headers.text(), SENDERS | RECIPIENTS)
        new: dict[tuple[bool, str], str | None] = {}
        for name, text in found:
            key = name in SENDERS, text
            if key in new:
                continue
            if limit.is_reached(text):
                self.log.limited(
                    "addresses", "kept", session, error="too many addresses in the header"
                )
                break
            maps = senders if key[0] else recipients
            new[key] = await self._in_header(session, text, maps if canonical else ())
        edited = found.replaced(lambda name, text: new.get((name in SENDERS, text)))
        if edited is not None:
            headers.replace_text(edited)

    async def _in_header(self, session: Session, text: str, maps: Sequence[Maps]) -> str | None:
        """Return the new form of an address in a header, or None."""
        address = Address.parse(text)
        given = address.completed(session.server_name)
        new = self._masqueraded(await self._mapped(session, given, maps))
        if same(given, new):
            return None
        try:
            return checked(written(new.local, new.domain))
        except ValueError:
            return None


class _Limit:
    """The limit of the addresses of a header block that are looked up."""

    __slots__ = ("_characters", "_looked_up", "_maps", "_most", "_work")

    def __init__(self, maps: Sequence[Maps]) -> None:
        self._maps = maps
        self._most = REMOTE_MAX if any(each.remotes for each in maps) else ADDRESSES_MAX
        self._work = sum(each.work for each in maps)
        self._looked_up = self._characters = 0

    def is_reached(self, text: str) -> bool:
        """Count an address; return whether it is beyond the limit."""
        self._looked_up += 1
        self._characters += len(text)
        work = sum(each.work for each in self._maps) - self._work
        return self._looked_up > self._most or self._characters > CHARACTERS_MAX or work > WORK_MAX


def _parameters(command: str | None) -> str:
    """Return the parameters of a client's MAIL or RCPT command, with a blank before them."""
    words = parameters(command)
    legal = all(word.isascii() and word.isprintable() for word in words)
    return " ".join(["", *words]) if words and legal else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-rewrite."""
    return run(Rewriter, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
