"""filter-mailfrom: refuse senders that use our addresses and aren't ours.

The law:

1. An own address (`--domains`, `--addresses`, `--patterns`) may be used by whoever comes by the
   socket, from a trusted network, or has authenticated; by nobody else.
2. With `--senders`, a user that has authenticated may use the addresses listed for it, own or not,
   and no others: as with smtpd's `senders`.
3. The null sender belongs to nobody and is never a spoof. (What a message says of itself is looked
   at all the same.)
4. An address is judged as smtpd will take it: without a source route and quotes, without regard to
   case, and completed with the server's own name where it has no domain.
5. A `From:` field is judged by all addresses that any reader could make of it: of several fields,
   of several mailboxes, of syntax that is none.  What is too large to be judged is a spoof.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache

from smtpd_filters.errors import ConfigError
from smtpd_filters.filter import Filter
from smtpd_filters.filters._client import ACTIONS, decision
from smtpd_filters.program import run
from smtpd_filters.protocol.decisions import PROCEED, Disconnect, Junk, Proceed, Reject
from smtpd_filters.settings import SWITCH, TEXT, Settings, option, table
from smtpd_filters.tables import (
    AddressTable,
    DomainTable,
    MappingTable,
    NetworkTable,
    RegexTable,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.message import Headers
    from smtpd_filters.session import Session
    from smtpd_filters.tables.source import Source

# RFC 5321 section 4.5.3.1.2: "The maximum total length of a domain name or number is 255 octets".
_DOMAIN_MAX = 255
#: Characters of all `From:` fields, and addresses in them, that are looked at.  An honest one has
#: one line of at most 998 characters (RFC 5322 section 2.1.1) and an address or two.
FROM_MAX = 1 << 15
ADDRESSES_MAX = 256
# RFC 5321 section 4.5.3.1.1 has 64; twice that for quotes and backslashes.
_LOCAL_MAX = 128


# -- addresses -----------------------------------------------------------------------------


def normal(address: str) -> str:
    """Give an envelope's address as it is meant: ``user@domain``, or ``user`` without a domain.

    The client's spelling is gone: a source route, quotes that aren't needed, a final dot.  Letter
    case is left to the tables, which don't regard it.  Never raises.
    """
    address = address.strip(" \t")
    if address.startswith("<") and address.endswith(">"):
        address = address[1:-1]
    # RFC 5321 section 4.1.2: Path = "<" [ A-d-l ":" ] Mailbox ">"; appendix C: servers "SHOULD
    # ignore the source route".  A literal may hold colons, but a route has no literal.
    if address.startswith("@") and ":" in address:
        address = address.partition(":")[2]
    local, domain = _parted(address)
    domain = domain.rstrip(".")
    plain = _unquoted(local)
    if domain:
        return f"{plain}@{domain}"
    return local if "@" in plain else plain  # in its quotes: it is no domain


def _parted(address: str) -> tuple[str, str]:
    """Local part and domain; a local part in quotes may hold an ``@``."""
    quoted = _QUOTED.match(address)
    if quoted and (quoted.end() == len(address) or address[quoted.end()] == "@"):
        return quoted[0], address[quoted.end() + 1 :]
    local, at, domain = address.rpartition("@")
    return (local, domain) if at else (address, "")


def _unquoted(local: str) -> str:
    # RFC 5321 section 4.1.2: "the quoted form ... MUST be treated as equivalent".
    if len(local) > 1 and local[0] == local[-1] == '"':
        return _ESCAPED.sub(r"\1", local[1:-1])
    return local


_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def _spellings(domain: str) -> tuple[str, ...]:
    """A domain as it is written, and in the other form if it is internationalised."""
    if domain.isascii() and "xn--" not in domain.lower():
        return (domain,)
    try:
        # Python's codec is IDNA 2003's; for names in use the newer one differs in four letters.
        if domain.isascii():
            return domain, domain.encode().decode("idna")
        return domain, domain.encode("idna").decode()
    except UnicodeError:
        return (domain,)


# -- From: ---------------------------------------------------------------------------------

# RFC 5322 section 3.2: a quoted string, a quoted pair, a literal, words, and single specials.  A
# quote or bracket that isn't closed is a character like any other.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+"|\\.|\[[^\[\]\\"]*+\]|[^"\\()<>,;:\[]++|.', re.DOTALL)
# A quoted pair is taken along, so that a quote in it opens nothing.
_QUOTED_OR_PAIR = re.compile(r'\\.|"(?:[^"\\]|\\.)*+"', re.DOTALL)
# RFC 2047 section 2; section 6.2: white space between two of them is no part of the text.
_ENCODED = re.compile(r"=\?([!->@-~]{1,40})\?([bBqQ])\?([!->@-~ ]{0,998})\?=")
_BETWEEN = re.compile(r"(?<=\?=)\s++(?==\?)")
# What is at the right of an `@`: a literal, or atoms, with white space around the dots as in
# obs-domain (RFC 5322 section 4.4).
_AFTER = re.compile(
    r"""\s*+(\[[^\[\]]{0,255}\]|[^\s\x00-\x20\x7f."\\()<>,;:@\[\]]++"""
    r"""(?:\s*+\.\s*+[^\s\x00-\x20\x7f."\\()<>,;:@\[\]]++)*+)"""
)
# And at the left: a quoted string or atoms.
_BEFORE = re.compile(
    r"""("(?:[^"\\]|\\.)*+"|[^\s\x00-\x20\x7f"\\()<>,;:@\[\]]*+)\s*+\Z""", re.DOTALL
)
_SPACE = re.compile(r"\s+")


class Author:
    """What a `From:` field says.

    `addresses` are those that it gives, or that a lenient reader could take for given; `shown`
    those that stand in display names and comments, which some mail programs show instead.
    """

    __slots__ = ("addresses", "shown")

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.shown: list[str] = []


class TooLargeError(ValueError):
    """A field has more in it than is looked at."""


def read_from(values: Sequence[str]) -> Author:
    """Read the values of all `From:` fields of a message, whatever is in them.

    Raises TooLargeError beyond `FROM_MAX` characters and `ADDRESSES_MAX` addresses.
    """
    if sum(map(len, values)) > FROM_MAX:
        raise TooLargeError(f"From has more than {FROM_MAX} characters")
    author = Author()
    for value in values:
        _Mailboxes(author).read(value)
        if len(author.addresses) + len(author.shown) > ADDRESSES_MAX:
            raise TooLargeError(f"From has more than {ADDRESSES_MAX} addresses")
    return author


class _Mailboxes:
    """The mailboxes of one field: name-addr or addr-spec, in a list, perhaps in a group.

    A pass over the tokens parts what stands in angle brackets, in quotes, in comments and
    elsewhere; at the end of each mailbox it is known which of it was the address.
    """

    __slots__ = ("_angle", "_author", "_bare", "_comments", "_plain", "_quoted")

    def __init__(self, author: Author) -> None:
        self._author = author
        self._bare: list[str] = []  # mailboxes without a domain
        self._start()

    def _start(self) -> None:
        self._plain: list[str] = []  # outside of angle brackets: a name, or a bare address
        self._quoted: list[str] = []  # of that, what is in quotes
        self._comments: list[str] = []
        self._angle: list[str] = []

    def read(self, value: str) -> None:
        before = len(self._author.addresses)
        depth = 0
        comment: list[str] = []
        angle = False
        for match in _TOKENS.finditer(value):
            piece = match[0]
            if depth or piece == "(":
                depth += (piece == "(") - (piece == ")")
                comment.append(piece)
                if not depth:
                    self._comments.append("".join(comment[1:-1]))
                    self._plain.append(" ")
                    comment.clear()
            elif angle:
                # The bracket stays: what is in two pairs of them is no one address.
                angle = piece != ">"
                self._angle.append(piece)
            elif piece == "<":
                angle = True
            else:
                self._take(piece)
        self._plain += comment[1:]  # no comment after all: it never ends
        self._end()
        # smtpd completes what has no domain with its own name.  Beside an address it is a comma
        # in a name more often than not: Doe, Jane <jane@example.org>
        if len(self._author.addresses) == before:
            self._author.addresses += self._bare[:1]

    def _take(self, piece: str) -> None:
        """Take what stands neither in angle brackets nor in a comment."""
        if piece in (",", ";", ":"):
            self._end(group=piece == ":")
            return
        self._plain.append(piece)
        if piece[0] == '"' and len(piece) > 1:
            self._quoted.append(piece[1:-1])

    def _end(self, *, group: bool = False) -> None:
        """A mailbox is complete, or the name of a group."""
        found, shown = self._author.addresses, self._author.shown
        plain = "".join(self._plain)
        if self._angle or group:
            # By right a name.  An `@` in it that isn't in quotes is against the syntax; there are
            # programs that take it for the address.
            bare = _QUOTED_OR_PAIR.sub(lambda match: " " if match[0][0] == '"' else match[0], plain)
            found += _addresses(_ENCODED.sub(" ", bare))
            if "=?" in bare:
                shown += _addresses(_decoded(bare))
            angle = "".join(self._angle)
            if angle.lstrip().startswith("@") and ":" in angle:
                angle = angle.partition(":")[2]  # RFC 5322 section 4.4: obs-route
            angle = _decoded(angle)
            if "@" in angle:
                found += _addresses(angle)
            elif name := angle.replace(">", " ").strip():
                found.append(_unquoted(name))
        elif "@" not in (text := _decoded(plain)):
            if name := text.strip():
                self._bare.append(_unquoted(name))
        else:
            # RFC 2047 section 5: an encoded-word "MUST NOT appear in any portion of an
            # 'addr-spec'".  There are programs that decode it there.
            found += _addresses(text)
        for aside in (*self._quoted, *self._comments):
            shown += _addresses(_ESCAPED.sub(r"\1", _decoded(aside)))
        self._start()


def _addresses(text: str) -> list[str]:
    """Everything in a text that looks like an address; an ``@`` in a quoted local part doesn't."""
    if "@" not in text:
        return []
    masked = _QUOTED_OR_PAIR.sub(
        lambda match: "_" * len(match[0]) if match[0][0] == '"' else match[0], text
    )
    found: list[str] = []
    at = -1
    while (at := masked.find("@", at + 1)) >= 0 and len(found) <= ADDRESSES_MAX:
        if after := _AFTER.match(text, at + 1):
            before = _BEFORE.search(text[max(0, at - _LOCAL_MAX) : at])
            local = _unquoted(before[1]) if before else ""
            found.append(f"{local}@{_SPACE.sub('', after[1]).rstrip('.')}")
    return found


def _decoded(text: str) -> str:
    """A text with its encoded-words decoded, as far as addresses in ASCII or UTF-8 go."""
    return _ENCODED.sub(_decode, _BETWEEN.sub("", text)) if "=?" in text else text


def _decode(match: re.Match[str]) -> str:
    from binascii import Error, a2b_base64, a2b_qp  # only for this

    charset, encoding, body = match.groups()
    try:
        if encoding in "bB":
            data = a2b_base64(body + "=" * (-len(body) % 4))
        else:
            data = a2b_qp(body, header=True)
    except (Error, ValueError):
        return match[0]
    charset = charset.lower()
    if charset.startswith("utf-7"):
        return data.decode("utf-7", "replace")
    # The letters of an address are ASCII in every other charset that mail programs know, with
    # zeros between them in the wide ones.  No codec is looked up by a stranger's name for it.
    if charset.startswith(("utf-16", "utf-32", "utf16", "utf32", "ucs", "iso-10646")):
        data = data.replace(b"\0", b"")
    return data.decode("utf-8", "surrogateescape")


# -- the filter ----------------------------------------------------------------------------


class SendersTable(MappingTable):
    """Users with the addresses that each may use, as smtpd's `senders`: `user a@b, @c`."""

    __slots__ = ()

    def _load(self, source: Source) -> None:
        def add(_user: str, addresses: str) -> None:
            try:
                _table_of(addresses)
            except ConfigError as error:
                # "built-in table: entry 1: reason": the caller knows the place better.
                raise ValueError(str(error).split(": ", 2)[-1]) from None

        source.pairs(add)
        super()._load(source)


def _table_of(addresses: str) -> AddressTable:
    entries = addresses.replace(",", " ").split()
    if not entries:
        raise ConfigError("no address")
    return AddressTable.of(entries)


@lru_cache(maxsize=1024)
def _owned(addresses: str) -> AddressTable:
    """The addresses of one user."""
    return _table_of(addresses)


class Mailfrom(Filter):
    """Refuse senders that use our addresses without being ours."""

    name = "mailfrom"
    needs = frozenset({"link-auth"})

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
        trusted = option(
            table(NetworkTable),
            default=None,
            help="Addresses and networks whose clients may use own addresses without "
            "authentication.",
        )
        senders = option(
            table(SendersTable),
            default=None,
            help="Users and the addresses that each may use, as for smtpd's senders: a user name, "
            "then addresses with commas between them; @example.org is every address there. Users "
            "not listed may use none.",
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
            TEXT,
            default="",
            help="The reply of a refusal, with its codes; by default 550 5.7.1 and a text that "
            "says what is wrong.",
        )

    settings: Options

    _replies: dict[tuple[str, bool], Junk | Reject | Disconnect]

    def setup(self) -> None:
        """See that there is something to guard, and make the refusals."""
        settings = self.settings
        guarded = (settings.domains, settings.addresses, settings.patterns)
        if all(each is None for each in (*guarded, settings.senders)):
            raise ConfigError(
                "nothing to guard: --domains, --addresses, --patterns or --senders is required"
            )
        if settings.subdomains and settings.domains is None:
            raise ConfigError("--subdomains: of what? --domains is required")
        header = settings.check_header or settings.check_display
        if settings.header_action is not None and not header:
            raise ConfigError("--header-action: needs --check-header")
        self.phases = {"mail_from", "headers"} if header else {"mail_from"}
        # RFC 3463 section 3.8, X.7.1: "The sender is not authorized to send to the destination."
        texts = {
            ("mail", False): "550 5.7.1 Sender address not allowed from here; please authenticate",
            ("mail", True): "550 5.7.1 Sender address not allowed for your user",
            ("from", False): "550 5.7.1 Address in From not allowed from here; please authenticate",
            ("from", True): "550 5.7.1 Address in From not allowed for your user",
        }
        actions = {"mail": settings.action, "from": settings.header_action or settings.action}
        self.marks = "junk" in actions.values()
        self._replies = {
            key: decision(actions[key[0]], settings.reply or text) for key, text in texts.items()
        }

    def mail_from(self, session: Session, address: str) -> Proceed | Junk | Reject | Disconnect:
        """Look at the envelope's sender."""
        address = normal(address)
        if not address or self._free(session):
            return PROCEED
        reason = self._judge(session.username, address)
        if reason is None:
            return PROCEED
        return self._replies["mail", bool(session.username)].because(f"sender {reason}")

    def headers(self, session: Session, headers: Headers) -> Proceed | Junk | Reject | Disconnect:
        """Look at what the message says who wrote it."""
        if self._free(session):
            return PROCEED
        reason = self._judge_from(session.username, headers.get_all("From"))
        if reason is None:
            return PROCEED
        return self._replies["from", bool(session.username)].because(f"from {reason}")

    def _free(self, session: Session) -> bool:
        """Whether a client may use any address."""
        if session.username:
            return self.settings.senders is None
        if session.address is None:  # local
            return True
        trusted = self.settings.trusted
        return trusted is not None and trusted.match(session.address) is not None

    def _judge_from(self, user: str | None, values: list[str]) -> str | None:
        try:
            author = read_from(values)
        except TooLargeError as error:
            return f"cannot be judged: {error}"
        for address in author.addresses:
            if (reason := self._judge(user, address)) is not None:
                return reason if len(values) == 1 else f"{reason}, in one of {len(values)} fields"
        if self.settings.check_display:
            for address in author.shown:
                # A name is no claim to a foreign address.
                if self._is_own(address) and (reason := self._judge(user, address)) is not None:
                    return f"{reason}, shown as a name"
        return None

    def _judge(self, user: str | None, address: str) -> str | None:
        """Say why somebody may not use an address, or None; `user` is None for a stranger."""
        senders = self.settings.senders
        if user and senders is not None:
            addresses = senders.get(user)
            if addresses is not None and _owned(addresses).match(address) is not None:
                return None
            return f"{address} is not of user {user}"
        own = self._is_own(address)
        return f"{address} is own: {own}" if own else None

    def _is_own(self, address: str) -> str | None:
        """Give what makes an address our own, or None."""
        settings = self.settings
        local, at, domain = address.rpartition("@")
        guards = settings.domains or settings.addresses or settings.patterns
        if not at or domain.endswith('"'):
            # smtpd completes it with the name of the server.
            return "it has no domain but the server's" if guards else None
        domain = domain[-_DOMAIN_MAX:]
        for spelt in _spellings(domain):
            if settings.domains is not None and (entry := self._own_domain(spelt)):
                return entry
            full = f"{local}@{spelt}"
            if settings.addresses is not None and (entry := settings.addresses.match(full)):
                return entry
            if settings.patterns is not None and (entry := settings.patterns.match(full)):
                return entry
        return None

    def _own_domain(self, domain: str) -> str | None:
        domains = self.settings.domains
        assert domains is not None  # noqa: S101  # asked only if there are
        entry = domains.match(domain)
        while entry is None and self.settings.subdomains and "." in domain:
            domain = domain.partition(".")[2]
            entry = domains.match(domain)
        return entry


def main(argv: Sequence[str] | None = None) -> int:
    """The executable filter-mailfrom."""
    return run(Mailfrom, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
