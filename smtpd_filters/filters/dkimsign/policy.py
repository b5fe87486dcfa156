"""filter-dkimsign: sign messages with DKIM.

`keys` has domains and private keys, `kinds` the kinds of settings; the signature itself is made by
`smtpd_filters.authentication.dkim.sign`.

Invariants
----------
*As delivered*: a message is signed as smtpd will deliver it: From, To and Cc are completed first
(`smtpd_filters.message.completion`), and fields that smtpd removes or adds later are left alone.
*Fields for all verifiers*: blanks between a field's name and its colon are removed first, and CR,
VT and FF replaced, since verifiers disagree about them (`smtpd_filters.message.obsolete`).
*Never a broken signature*: a message with a line that smtpd would cut, or that this process would
break, is not signed, and the log says so.
*Sealed or signed*: with `--arc-seal` a message is sealed with ARC and not signed with DKIM.
*Never unsigned by accident*: if signing fails, `--on-error` decides, by default with 451.
"""

from __future__ import annotations

import os
from time import time
from typing import TYPE_CHECKING

from smtpd_filters.authentication.dkim.canonical import RELAXED, SIMPLE, BodyHash
from smtpd_filters.authentication.dkim.keys import RSA
from smtpd_filters.authentication.dkim.private_keys import ADVISED_BITS
from smtpd_filters.authentication.dkim.sign import (
    NAME,
    REMOVED,
    SigningFields,
    SigningKey,
    Style,
    TooManyFieldsError,
)
from smtpd_filters.authentication.dkim.signed_fields import SignedFields
from smtpd_filters.errors import ConfigError, UnavailableError, os_reason
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.main import run
from smtpd_filters.message.completion import complete
from smtpd_filters.message.obsolete import correct_names, replace_odd_blanks
from smtpd_filters.protocol.decisions import PROCEED, Proceed
from smtpd_filters.protocol.long_lines import content_limit
from smtpd_filters.protocol.versions import cuts_lines
from smtpd_filters.runtime.pace import pace
from smtpd_filters.settings import INTEGER, LIST, SWITCH, TEXT, Settings, Shared, option, table
from smtpd_filters.settings.kinds import choice
from smtpd_filters.settings.quoting import quote

from .author import author_domain
from .keys import KEY, DomainList, KeyTable
from .kinds import (
    ALGORITHM,
    AUTHENTICATED,
    CLIENT_WORDS,
    DOMAIN,
    FORMS,
    LOCAL,
    NAMES,
    SELECTOR,
    TIMES,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smtpd_filters.authentication.dkim.private_keys import PrivateKey
    from smtpd_filters.filter import OnError
    from smtpd_filters.message import Headers, Message
    from smtpd_filters.sandbox import Needs
    from smtpd_filters.session import Session

    from .workers import Workers

#: Bytes of a body that are hashed at a time, and their price (`runtime.pace`).
BLOCK = 1 << 16
PRICE = 1000
_DOT = ord(".")
#: The fields that are signed by default: those that opensmtpd-filter-dkimsign signs.
SIGNED = (
    "from", "reply-to", "subject", "date", "to", "cc", "resent-date", "resent-from", "resent-to",
    "resent-cc", "in-reply-to", "references", "list-id", "list-help", "list-unsubscribe",
    "list-subscribe", "list-post", "list-owner", "list-archive",
)  # fmt: skip


#: Fields that servers add to most messages on their way, and this filter itself to each.
_ADDED_BY_SERVERS = frozenset({"dkim-signature", "received", "return-path"})
_NO_DOMAIN = "no domain to sign for in -D or --keys"
_NO_RSA_KEY = "the first domain has no RSA key"


class _SharedWorkers(Shared["Workers"]):
    """The processes that sign, shared by the filters of a process that have as many."""

    def key(self, filter_: Dkimsign) -> int:
        """Return the number of processes."""
        return filter_.settings.workers

    def open(self, filter_: Dkimsign) -> Workers:
        """Start the processes. Raises ConfigError."""
        from .workers import Workers  # needed for costly keys only

        try:
            return Workers(filter_.settings.workers, filter_.log)
        except OSError as error:
            raise ConfigError(f"--workers: cannot start: {os_reason(error)}") from None


class Dkimsign(Filter):
    """Sign messages with DKIM."""

    name = "dkimsign"
    signs = True
    on_error: OnError = "tempfail"  # Never unsigned by accident

    class Options(Settings):
        """The domains, the keys, and the form of signatures."""

        algorithm = option(
            ALGORITHM,
            default=None,
            flags=("-a",),
            help="The algorithm of the key in -k; an error if the key is of the other type. By "
            "default that of the key.",
        )
        canonicalization = option(
            FORMS,
            default=(SIMPLE, SIMPLE),
            flags=("-c",),
            help="The canonicalization of the header and of the body, each simple or relaxed: with "
            "relaxed, changes of white space in transit are tolerated. Without a slash the body "
            "is simple.",
        )
        domain = option(
            LIST(DOMAIN),
            default=(),
            flags=("-d",),
            help="A domain to sign for with the key in -k. A message is signed for the domain of "
            "its From field, or else for the closest parent of that, or else for the first domain.",
        )
        domains = option(
            table(DomainList),
            default=None,
            flags=("-D",),
            help="More such domains, in a file with one on each line.",
        )
        headers = option(
            NAMES,
            default=SIGNED,
            flags=("-h",),
            help="The header fields to sign where they are present; from must be among them. Bcc "
            "is never signed, since smtpd removes it.",
        )
        key = option(
            KEY,
            default=None,
            flags=("-k",),
            help="The private key: PEM, as openssl, opendkim-genkey and smtpd-filters dkim keygen "
            "write it, or a file of rspamadm. Others must not be able to read it.",
        )
        selector = option(
            SELECTOR,
            default=None,
            flags=("-s",),
            help="The selector of the key in -k: its record is at SELECTOR._domainkey.DOMAIN.",
        )
        time = option(
            SWITCH, default=False, flags=("-t",), help="Add the time of the signature (t=)."
        )
        expire = option(
            INTEGER(low=1, high=10**9),
            default=None,
            flags=("-x",),
            help="Add the time when the signature expires (x=), this many seconds from now.",
        )
        copies = option(
            TIMES,
            default=0,
            flags=("-z",),
            help="Add copies of the signed header fields (z=), for the analysis of failures; given "
            "twice, of all header fields. The lowest fields come first, up to 4,000 bytes together "
            "with the names of the signed fields.",
        )
        keys = option(
            table(KeyTable),
            default=None,
            help="Domains with their own keys, as lines of DOMAIN SELECTOR KEYFILE. A domain with "
            "several, such as one of RSA and one of Ed25519, gets a signature of each.",
        )
        oversign = option(
            NAMES,
            default=("from",),
            help="Fields of which none can be added without breaking the signature. They are "
            "signed where they are present. Not date and message-id in a message without them, "
            "since smtpd adds them; and never dkim-signature, received and return-path, which "
            "servers add on the way.",
        )
        foreign = option(
            choice("sign", "skip"),
            default="sign",
            help="What to do with a message whose author has no address at the domains, or "
            "below them: sign it for the first domain, or skip it, so that it stays unsigned.",
        )
        only = option(
            CLIENT_WORDS,
            default=frozenset(),
            help="Sign only mail of these clients: authenticated, local (on this machine), or "
            "both, separated by a comma. By default all mail is signed that passes the filter.",
        )

        arc_seal = option(
            TEXT,
            default=None,
            help="Seal messages with ARC in place of signing them with DKIM, for a server that "
            "forwards mail: with the first domain, its first RSA key, and the results in "
            "Authentication-Results fields with this id, which a filter before this one has "
            "added. The word admd stands for the id of smtpd.",
        )
        workers = option(
            INTEGER(low=0, high=64),
            default=2,
            help="How many processes make signatures that take more than a millisecond, so that "
            "they delay no session: those of RSA keys of more than 2048 bits, and of all RSA keys "
            "if the Python package cryptography is missing. Other keys need no processes. With 0 "
            "this process makes them.",
        )

    settings: Options

    _workers = _SharedWorkers()
    #: Whether these processes were started.
    _delegates = False
    _style: Style

    def setup(self) -> Registration:
        """Check that the settings are consistent, and prepare the form of signatures."""
        settings = self.settings
        if "from" not in settings.headers:
            raise ConfigError("-h: from must be among the fields")
        if any(name.encode() in REMOVED for name in settings.oversign):
            raise ConfigError("--oversign: bcc can't be signed, since smtpd removes it")
        if added := [name for name in settings.oversign if name in _ADDED_BY_SERVERS]:
            raise ConfigError(f"--oversign: {added[0]} can't be over-signed, since servers add it")
        self._check_key()
        if settings.key is None and settings.keys is None:
            raise ConfigError("-k or --keys is required")
        self._style = Style(
            header_form=settings.canonicalization[0],
            body_form=RELAXED if settings.arc_seal else settings.canonicalization[1],
            names=tuple(name.encode() for name in settings.headers),
            oversigned=tuple(name.encode() for name in settings.oversign),
            time=settings.time,
            lifetime=settings.expire,
            copies=min(settings.copies, 2),
        )
        self._check_seal()
        for signing in self._every_key():
            if signing.key.bits < ADVISED_BITS and signing.key.kind == RSA:
                self.log.event(
                    f"the key of {signing.selector}._domainkey.{signing.domain} has "
                    f"{signing.key.bits} bits; receivers may require {ADVISED_BITS}"
                )
        if self._known_domain() == "":
            self.log.event("no message is signed", reason=_NO_DOMAIN)
        users = {"link-auth"} if AUTHENTICATED in settings.only else set()
        self._delegates = bool(settings.workers) and any(
            signing.key.costly for signing in self._every_key()
        )
        opens = {"_workers"} if self._delegates else set()
        return Registration(reports={"link-greeting", *users}, junk=False, opens=opens)

    def needs(self, needs: Needs) -> None:
        """Declare the directories of the keys: after a rotation the table names new files there.

        The processes that sign need nothing, and give up everything now.
        """
        if self._delegates:
            self._workers.confine()
        if self.settings.keys is not None:
            for directory in {os.path.dirname(path) for path in self.settings.keys.files}:  # noqa: PTH120  # as given
                needs.to_read(directory)

    def _check_key(self) -> None:
        """Raise ConfigError unless -k, -s and -d or -D are given together."""
        settings = self.settings
        domains = settings.domain or settings.domains is not None
        if settings.key is None:
            for flag, given in (("-s", settings.selector), ("-a", settings.algorithm)):
                if given is not None:
                    raise ConfigError(f"{flag} requires -k")
            if domains:
                raise ConfigError("-d and -D require -k")
            return
        if settings.selector is None:
            raise ConfigError("-k requires -s")
        if not domains:
            raise ConfigError("-k requires -d or -D")
        own = settings.key.key.algorithm
        if settings.algorithm not in {None, own}:
            raise ConfigError(
                f"-k: {settings.key.source}: a key for {own}, but -a is {settings.algorithm}"
            )

    def _check_seal(self) -> None:
        """Raise ConfigError unless messages can be sealed, if they are to be."""
        authserv_id = self.settings.arc_seal
        if authserv_id is None:
            return
        from smtpd_filters.authentication import results
        from smtpd_filters.authentication.dkim import seal  # noqa: F401  # for `_seal`

        if not results.is_name(authserv_id):
            raise ConfigError(f"--arc-seal {quote(authserv_id)}: expected a name")
        if self._known_domain() is not None and not self._sealing_keys():
            raise ConfigError(f"--arc-seal: {_NO_RSA_KEY}")

    def _every_key(self) -> Iterator[SigningKey]:
        settings = self.settings
        if settings.key is not None and settings.selector is not None:
            domain = self._known_domain() or "DOMAIN"
            yield SigningKey(domain, settings.selector, settings.key.key)
        if settings.keys is not None:
            for keys in settings.keys.keys.values():
                yield from keys

    def _first_domain(self) -> str:
        """Return the domain to sign for strangers' mail with; "" if the tables have none."""
        return next(iter(self._all_domains()), "")

    def _known_domain(self) -> str | None:
        """Return the first domain; None if the server of a table has not listed its domains yet."""
        try:
            return self._first_domain()
        except UnavailableError:
            return None

    def _all_domains(self) -> dict[str, None]:
        """Return the domains to sign for, the first of them for strangers.

        Raises UnavailableError.
        """
        found = dict.fromkeys(self.settings.domain)
        if self.settings.domains is not None:
            found |= self.settings.domains.names
        if self.settings.keys is not None:
            found |= dict.fromkeys(self.settings.keys.keys)
        return found

    def _keys_of(self, domain: str) -> list[SigningKey]:
        """Return the keys to sign with for a domain; "" has none."""
        if not domain:
            return []
        settings = self.settings
        keys = list(settings.keys.keys.get(domain, ())) if settings.keys is not None else []
        if settings.key is not None and settings.selector is not None and not keys:
            keys.append(SigningKey(domain, settings.selector, settings.key.key))
        return keys

    async def message(self, session: Session, message: Message) -> Proceed:
        """Sign the message."""
        if not self._is_ours(session):
            return PROCEED.because("not signed: neither authenticated nor local")
        headers = message.headers
        correct_names(headers)
        replace_odd_blanks(headers)
        if session.server_name:
            complete(headers, session.server_name)
        if not self._first_domain() or headers.cut:
            reason = "the header is too long" if self._first_domain() else _NO_DOMAIN
            return self._unsigned(session, reason)
        domain = self._domain_of(author_domain(headers.get("From", "")))
        if not domain and not self.settings.arc_seal:
            return PROCEED.because("not signed: the author has an address elsewhere")
        body = await self._hash(message)
        if body is None or self._breaks(headers.text()[1:] + b"\n"):
            return self._unsigned(session, "a line is too long for this smtpd")
        if self.settings.arc_seal:
            return await self._seal(session, headers, body)
        return await self._add_signatures(session, headers, body, domain)

    async def _add_signatures(
        self, session: Session, headers: Headers, body: bytes, domain: str
    ) -> Proceed:
        """Sign with all keys of a domain."""
        try:
            fields = SigningFields(SignedFields(headers), self._style)
        except TooManyFieldsError as error:
            return self._unsigned(session, str(error))
        now = time()
        values = []
        for signing in self._keys_of(domain):
            unsigned = fields.unsigned(signing, body, now)
            values.append(unsigned.value(await self._sign(signing.key, unsigned.digest)))
        for value in reversed(values):
            headers.prepend(NAME, value)
        return PROCEED.because(f"signed for {domain}")

    async def _seal(self, session: Session, headers: Headers, body: bytes) -> Proceed:
        """Add a set of ARC, with its fields in the order that most validators expect."""
        from smtpd_filters.authentication.dkim import seal  # needed for --arc-seal only

        authserv_id = self.settings.arc_seal or ""
        if authserv_id == "admd":
            authserv_id = self.smtpd.get("admd", "")
        keys = self._sealing_keys()
        if not keys:  # since a reload
            return self._unsigned(session, _NO_RSA_KEY, "not sealed")
        key, names = keys[0], self._style.names
        try:
            new = seal.NewSet(SignedFields(headers), authserv_id, names, key, time())
        except seal.NotSealedError as error:
            return self._unsigned(session, str(error), "not sealed")
        unsigned = new.message(body)
        message = unsigned.value(await self._sign(key.key, unsigned.digest))
        unsigned = new.seal(message)
        value = unsigned.value(await self._sign(key.key, unsigned.digest))
        headers.prepend(seal.RESULTS, new.results)
        headers.prepend(seal.MESSAGE, message)
        headers.prepend(seal.SEAL, value)
        return PROCEED.because(f"sealed as {new.instance}, cv={new.cv}")

    def _sealing_keys(self) -> list[SigningKey]:
        """Return the RSA keys of the first domain; RFC 8617 has no other algorithm."""
        keys = self._keys_of(self._first_domain())
        return [each for each in keys if each.key.kind == RSA]

    async def _sign(self, key: PrivateKey, digest: bytes) -> bytes:
        if key.costly and self._delegates:
            return await self._workers.sign(key, digest)
        return key.sign(digest)

    def _is_ours(self, session: Session) -> bool:
        only = self.settings.only
        return (
            not only
            or (LOCAL in only and session.local)
            or (AUTHENTICATED in only and bool(session.username))
        )

    def _unsigned(self, session: Session, reason: str, event: str = "not signed") -> Proceed:
        """Return the decision on a message that can't be signed or sealed, and log it."""
        self.log.event(event, session, reason=reason)
        return PROCEED

    def _domain_of(self, author: str) -> str:
        """Return the domain to sign for: the author's, its closest parent, or the first.

        With `--foreign skip`, "" in place of the first.
        """
        domains = self._all_domains()
        while author:
            if author in domains:
                return author
            author = author.partition(".")[2]
        return self._first_domain() if self.settings.foreign == "sign" else ""

    async def _hash(self, message: Message) -> bytes | None:
        """Return the hash of the body; None if a line of it can't be sent back unchanged."""
        body = BodyHash(self._style.body_form)
        first = True
        for block in message.body(BLOCK):
            if not first:
                await pace().admit(PRICE)
            first = False
            if self._breaks(block):
                return None
            body.update(block)
        body.finish()
        return body.digest()

    def _breaks(self, block: bytes) -> bool:
        """Return whether one of a block's lines would be cut by smtpd, or broken on its way."""
        limit = content_limit(cuts=cuts_lines(self.smtpd.get("smtpd-version", "")))
        at = 0
        while len(block) - at > limit:
            # The last line that ends within the limit; those before it are shorter.
            end = block.rfind(b"\n", at, at + limit + 1)
            if end < 0:
                return True
            # A dot is doubled at the beginning.
            if end == at + limit and block[at] == _DOT and block.find(b"\n", at) == end:
                return True
            at = end + 1
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-dkimsign."""
    return run(Dkimsign, argv=argv)
