"""The subjects of limits: their values in a session, and their keys in the store.

A subject is written `user=alice` or, for a combination, `client=192.0.2.1 sender=a@example.org`. It
is the shard of its keys (`smtpd_filters.stores.keys`), so that all limits of a subject are taken in
one round trip.
"""

from __future__ import annotations

import re
import sys

from smtpd_filters.addresses import canonical, folded, path
from smtpd_filters.addresses.tags import TAGS
from smtpd_filters.checks.exemptions import client_address
from smtpd_filters.settings.quoting import printable
from smtpd_filters.stores import join, split
from smtpd_filters.tables.networks import network_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smtpd_filters.addresses import Address
    from smtpd_filters.session import Session

SPACE = "limit"
#: The parts of a key that is not that of a rule.
BLOCK, BREACH, PAST = b"block", b"breach", b"past"
#: What stands for a subject that is too long (`smtpd_filters.stores.keys`).
HASH = re.compile(r"sha256=[0-9a-f]{64}")
#: An escape as Python writes it.
_ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


class Prefixes:
    """The prefix lengths of the networks that count as one client, and as one network."""

    __slots__ = ("client6", "network4", "network6")

    def __init__(self, client6: int, network4: int, network6: int) -> None:
        self.client6, self.network4, self.network6 = client6, network4, network6

    def client(self, address: str) -> str:
        """Return the client of an address: the address itself, or its network in IPv6."""
        return network_of(address, 32, self.client6).removesuffix("/32")

    def network(self, address: str) -> str:
        """Return the network of an address."""
        return network_of(address, self.network4, self.network6)


class Values:
    """What is known of a session by the kinds of subjects, while a command is judged.

    An address without a domain gets `server_name`, as in smtpd.
    """

    __slots__ = ("_prefixes", "_session", "_values")

    def __init__(  # noqa: PLR0913  # given by name
        self,
        session: Session,
        prefixes: Prefixes,
        *,
        user: str | None = None,
        sender: str | None = None,
        recipient: str | None = None,
        server_name: str | None = None,
    ) -> None:
        self._session, self._prefixes = session, prefixes
        self._values: dict[str, str] = {"all": ""}
        if user:
            self._values["user"] = user_name(user)
        for kind, text in (("sender", sender), ("recipient", recipient)):
            mailbox = path(text or "").completed(server_name)
            if mailbox:
                self._values[kind] = written(mailbox)
                if mailbox.domain:
                    self._values[f"{kind}-domain"] = canonical(mailbox.domain)

    @property
    def address(self) -> str | None:
        """The client's address.

        None for a client on this machine: the server's own programs are never limited as a client.
        Raises UnavailableError if smtpd has not reported it.
        """
        return None if self._session.local else client_address(self._session)

    def get(self, kind: str) -> str | None:
        """Return the value of a kind; None if there is none. Raises as `address`."""
        if kind not in {"client", "network"}:
            return self._values.get(kind)
        address = self.address
        if address is None:
            return None
        return getattr(self._prefixes, kind)(address)  # type: ignore[no-any-return]

    def subject(self, kinds: Iterable[str]) -> str | None:
        """Return the subject of these kinds; None if one of them has no value."""
        parts = []
        for kind in kinds:
            if (value := self.get(kind)) is None:
                return None
            parts.append(part(kind, value))
        return " ".join(parts)


def written(mailbox: Address) -> str:
    """Return an address in the form in which it is counted: without a tag, in lower case.

    smtpd delivers `user+tag` to `user`; its sender is the same user as well.
    """
    local = TAGS.without(folded(mailbox.local))
    return f"{local}@{canonical(mailbox.domain)}" if mailbox.domain else local


def user_name(user: str) -> str:
    """Return a user in the form in which it is counted.

    A client may give a name of nothing but invisible characters, which must not be that of `all`.
    """
    return folded(user) or "_"


def part(kind: str, value: str) -> str:
    """Return the part of a subject."""
    return f"{kind}={'_'.join(value.split()) or '_'}" if value else kind


def fields(subject: str) -> dict[str, str]:
    """Return the values of a subject by kind, for the log."""
    pairs = [word.partition("=") for word in subject.split(" ")]
    return {kind: value for kind, _, value in pairs if value}


def key(subject: str, *parts: bytes) -> bytes:
    """Return a key of a subject."""
    return join(SPACE, subject.encode("utf-8", "surrogateescape"), *parts)


def shown(subject: str) -> str:
    """Return a subject for people: with escapes for what isn't printable.

    A long one is shown as its hash, as the store has it. `read` returns the subject from it.
    """
    stored, _ = read_key(key(subject))
    if read(stored) != stored:  # it has what looks like an escape
        stored = stored.replace("\\", r"\x5c")
    return printable(stored)


def read(text: str) -> str:
    """Return the subject that is shown as a text.

    Only the escapes that `shown` makes are read: a name may have a backslash.
    """
    return _ESCAPE.sub(_character, text)


_BYTES = frozenset(map(chr, range(0xDC80, 0xDD00)))


def _character(found: re.Match[str]) -> str:
    number = int(found[0].lstrip("\\xuU"), 16)
    if number > sys.maxunicode:
        return found[0]
    if found[0][1] == "x" and number >= 0x80:
        return chr(0xDC00 + number)
    character = chr(number)
    if character.isprintable() and character != "\\":
        return found[0]
    # Surrogates stand for bytes that aren't UTF-8 (PEP 383); others are no characters.
    return found[0] if 0xD800 <= number <= 0xDFFF and character not in _BYTES else character


def read_key(text: bytes) -> tuple[str, Sequence[bytes]]:
    """Return subject and parts of a key that `key` made."""
    subject, *parts = split(text)
    return subject.decode("utf-8", "surrogateescape"), parts
