"""The mailboxes in a field of addresses, with their names, for filters.

`read_addresses` returns what most programs read, and what others may read as well, by means of
`from_field`.

Invariants
----------
*Total*: no field raises an exception; beyond the limits of `from_field` the result is `cut`.
*Bounded*: a field is read within the budget of the event loop.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from smtpd_filters.addresses import Address, canonical
from smtpd_filters.message.disguise import Name
from smtpd_filters.runtime.pace import paced

from .addresses_in_text import sightings
from .encoded_words import readings
from .from_field import (
    ADDRESSES_MAX,
    Author,
    TooLargeError,
    as_displayed,
    check_size,
    comments_of,
    elements,
    is_malformed,
    tokens_of,
    values_of,
    without_domain,
    without_route,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from smtpd_filters.message import Headers

#: Units of work (`runtime.pace`) for a field or a mailbox, and for each of its characters.
_WORK, _WORK_EACH = 40, 4
_AS_BLANKS = str.maketrans("()", "  ")
_named = lru_cache(maxsize=32)(Name)


class Mailbox(NamedTuple):
    """An address in a field, with its display name.

    `address` is as it is written, its local part without quotes. Its domain is empty if it has
    none; `Address.completed` adds the server's name, as smtpd does in From, To and Cc. `names` are
    the readings of its display name or, without one, of the comments beside it, with encoded words
    decoded: first what most programs show. `shown` are the other addresses that a program may show
    in that name or those comments, in all readings.
    """

    address: Address
    names: tuple[str, ...]
    shown: tuple[Address, ...]

    @property
    def name(self) -> str:
        """The first of its names; empty without one."""
        return self.names[0] if self.names else ""


class Mailboxes:
    """The mailboxes in all fields of one name, in their order, those in groups included.

    It can be iterated over and has a length.
    """

    __slots__ = ("_mailboxes", "cut", "malformed", "possible", "shown")

    def __init__(
        self,
        mailboxes: Iterable[Mailbox] = (),
        possible: Iterable[Address] = (),
        shown: Iterable[Address] = (),
        *,
        malformed: bool = False,
        cut: bool = False,
    ) -> None:
        self._mailboxes = tuple(mailboxes)
        #: All addresses that a program may take for one of the field, those of the mailboxes
        #: included. Most fields have no others. A filter that protects addresses looks at these.
        self.possible = tuple(possible)
        #: All addresses that a program may show in a name, also that of a group, or in a comment.
        self.shown = tuple(shown)
        #: Whether a field breaks the syntax (RFC 5322 section 3.4), so that programs may find other
        #: mailboxes in it, or only some programs take it for a field of this name.
        self.malformed = malformed
        #: Whether mailboxes are missing here: the fields have more than 256 addresses or 32,768
        #: characters, or exceed another limit, or the header goes on beyond what is read of it.
        self.cut = cut

    def __iter__(self) -> Iterator[Mailbox]:
        return iter(self._mailboxes)

    def __len__(self) -> int:
        return len(self._mailboxes)


async def read_addresses(headers: Headers, name: str) -> Mailboxes:
    """Return the mailboxes in the fields of a name, such as `From`, `To`, `Cc` or `Reply-To`.

    No field raises an exception: from a malformed one, what programs may read is returned.
    """
    values, disguised = values_of(headers, name, _named(name))
    return await paced(_read(values, malformed=disguised, cut=headers.cut))


def _read(values: Sequence[str], *, malformed: bool, cut: bool) -> Generator[int, None, Mailboxes]:
    """Read the values of the fields; yield units of work."""
    found: list[Mailbox] = []
    author, names = Author(), Author()
    try:
        check_size(values)
        for value in values:
            work = _WORK + _WORK_EACH * len(value) // 2
            yield work
            author.read(value)
            yield work
            tokens = tokens_of(value)
            comments = comments_of(tokens)
            malformed = malformed or is_malformed(value, tokens, comments)
            for plain, angle, aside, is_name in elements(tokens, comments):
                if not angle and (is_name or plain.isspace() or not plain):
                    continue  # the name of a group, or nothing
                yield _WORK + _WORK_EACH * (len(plain) + len(angle))
                _check_number(len(found) + 1)
                found += yield from _mailboxes(names, plain, angle, "".join(aside))
    except TooLargeError:
        cut = True
    possible = _all(each.address for each in found)
    for candidate in (*author.addresses, *author.possible):
        possible |= _all(Address(each, candidate.domain) for each in candidate.local_parts)
    shown = _all(each for mailbox in found for each in mailbox.shown)
    for candidate in author.shown:
        shown |= _all(Address(each, candidate.domain) for each in candidate.local_parts)
    return Mailboxes(found, possible.values(), shown.values(), malformed=malformed, cut=cut)


def _check_number(mailboxes: int) -> None:
    if mailboxes > ADDRESSES_MAX:
        raise TooLargeError(f"more than {ADDRESSES_MAX} mailboxes")


def _mailboxes(
    names: Author, plain: str, angle: str, comment: str
) -> Generator[int, None, list[Mailbox]]:
    """Return the mailboxes of one element, more than one if it is malformed.

    `names` counts the addresses in names. Raises TooLargeError.
    """
    source = without_route(angle) if angle else plain
    own = [
        Address(each.local_parts[0], each.whole)
        for each in sightings(source, quoting=True)
        if each.local_parts[0]
    ]
    if not own:
        local = without_domain(source.replace(">", " ") if angle else source)
        own = [Address(local, "")] if local else []
    if not own:
        return []
    beside = as_displayed(comment).translate(_AS_BLANKS)
    phrase = " ".join(as_displayed(plain if angle else "").split())
    written = phrase or " ".join(beside.split())
    decoded = (yield from readings(written)) if written else ()
    found = tuple(dict.fromkeys(" ".join(each.split()) for each in decoded))
    shown: dict[tuple[str, str], Address] = {}
    keys = set(map(_key, own))
    for text in dict.fromkeys((plain, as_displayed(plain), beside)):
        for sighting, _ in names.sightings(text, quoting=False):
            several = [Address(a, b) for a in sighting.local_parts for b in sighting.domains]
            if keys.isdisjoint(map(_key, several)):
                shown |= _all(several)
    return [Mailbox(address, found, tuple(shown.values())) for address in own]


def _key(address: Address) -> tuple[str, str]:
    """Return what addresses are the same by."""
    return address.local.lower(), canonical(address.domain)


def _all(addresses: Iterable[Address]) -> dict[tuple[str, str], Address]:
    """Return addresses by their spelling."""
    return {(each.local, each.domain): each for each in addresses}
