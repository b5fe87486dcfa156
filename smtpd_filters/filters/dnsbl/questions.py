"""Which lists are asked about what: about a client's address, its names, a sender's domain.

The law:

1. A list is asked about what can be on it, and nothing else: addresses as RFC 5782 sections 2.1 and
   2.4 write them, names that the DNS could know. One that is off isn't asked (`lists`).
2. No name avoids a list because of its form. Where the DNS can't have the name in the list's zone,
   because it is too long or has an impossible label, labels are removed from the left until it can.
   The list has no entry for the whole name; an entry that covers the name from above, such as
   `*.spam.example`, covers what is left. Such a name never counts in a client's favour.
3. When the files that name lists are read again, what is known of a list that stays is kept.
"""

from __future__ import annotations

from smtpd_filters.addresses import canonical, path
from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.dns import names

from . import codes
from .lists import List

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TypeAlias

    from smtpd_filters.session import Session

    from .options import Sites
    from .sites import Site

    #: A list, whom it is asked about, the name that is looked up for it, and whether the subject is
    #: known to be whom the client is, so that it may speak for the client.
    Asked: TypeAlias = tuple[List, str, str, bool]

#: The kinds of lists, by what they are asked about.
CLIENT, RDNS, HELO, SENDER = KINDS = ("client", "rdns", "helo", "sender")


class Book:
    """The lists that are asked, by kind."""

    def __init__(
        self, given: Mapping[str, Sites], keys: Iterable[str] = (), untested: Iterable[str] = ()
    ) -> None:
        """Raises ConfigError if one of `keys` or of those `untested` is in nothing that is given.

        `given` are lists by kind, `untested` the zones of those that have no test.
        """
        self._given = given
        self._keys = codes.labels_of(keys)
        self._untested = {zone.lower().rstrip(".") for zone in untested}
        self._lists: dict[str, list[List]] = {kind: [] for kind in KINDS}
        self._lists = self._made()
        self._check()

    def _made(self) -> dict[str, list[List]]:
        """Make the lists; those that are there already pass on what is known (law 3)."""
        there = {(kind, each.zone): each for kind in KINDS for each in self._lists[kind]}
        made: dict[str, list[List]] = {kind: [] for kind in KINDS}
        for kind, given in self._given.items():
            zones: dict[str, list[Site]] = {}
            for site in given:
                zones.setdefault(site.zone, []).append(site)
            for zone, sites in zones.items():
                each = List(zone, sites, self._keys)
                each.tested = self._untested.isdisjoint({zone, each.shown})
                if (kind, zone) in there:
                    each.inherit(there[kind, zone])
                made[kind].append(each)
        return made

    def _check(self) -> None:
        # At the start only: what goes from the files later is no slip.
        every = [each for lists in self._lists.values() for each in lists]
        if not all(any(key in each.zone for each in every) for key in self._keys):
            # It would be shown.
            raise ConfigError("--key: one of them is in the name of no list")
        for zone in self._untested:
            if not any(zone in {each.zone, each.shown} for each in every):
                raise ConfigError(f"--untested: {codes.shown(zone, self._keys)} is no list's zone")

    @property
    def asked(self) -> list[tuple[List, str]]:
        """Which list is asked about what."""
        return [
            (each, about)
            for kind, lists in self._lists.items()
            for each in lists
            for about in ((codes.V4, codes.V6) if kind == CLIENT else (codes.NAME,))
        ]

    @property
    def size(self) -> int:
        """How many lists there are."""
        return sum(map(len, self._lists.values()))

    def renew(self) -> None:
        """Take in what has been read again."""
        self._lists = self._made()

    # -- what is asked -------------------------------------------------------------------------

    def about(self, session: Session, address: str, identity: str, sender: str) -> list[Asked]:
        """All that is asked for a decision about a client that is at this `address`.

        `identity` and `sender` are given as far as they are known.
        """
        asked = self.about_client(session, address)
        if identity:
            asked += self.about_name(HELO, identity)
        if sender:
            asked += self.about_sender(sender)
        return asked

    def about_client(self, session: Session, address: str) -> list[Asked]:
        """What is asked about the client's address and reverse name; nothing without an address."""
        asked: list[Asked] = []
        if not address:
            return asked
        if self._lists[CLIENT]:
            about, reverse, address = _reversed(address)
            asked = [
                (each, address, reverse + each.zone, True)
                for each in self._lists[CLIENT]
                if about not in each.off
            ]
        if self._lists[RDNS] and session.rdns:
            asked += self.about_name(RDNS, session.rdns, trusted=session.fcrdns == "pass")
        return asked

    def about_name(self, kind: str, name: str, *, trusted: bool = True) -> list[Asked]:
        """What is asked about a name; nothing about what is none."""
        if not self._lists[kind]:
            return []
        whole = canonical(name)
        known = _known_to_dns(whole)
        if not known:
            return []
        asked: list[Asked] = []
        for each in self._lists[kind]:
            if codes.NAME not in each.off:
                # Room for two labels is left (`sites.MAX_ZONE`).
                subject = names.ending(known, names.MAX_NAME - len(each.zone) - 1)
                believed = trusted and subject == whole
                asked.append((each, subject, f"{subject}.{each.zone}", believed))
        return asked

    def about_sender(self, address: str) -> list[Asked]:
        """What is asked about the domain of a sender's address."""
        return self.about_name(SENDER, path(address).domain)


def _reversed(address: str) -> tuple[str, str, str]:
    """Give what lists are asked about, an address as they have it with its dot, and as it is."""
    if ":" in address:
        address = names.canonical(address)
    if ":" in address:
        return codes.V6, names.reverse(address, zone=""), address
    return codes.V4, f"{'.'.join(address.split('.')[::-1])}.", address


def _known_to_dns(name: str) -> str:
    """Return the longest end of a canonical name that a list can have; "" for an address."""
    name = names.ending(name)
    last = name.rpartition(".")
    # RFC 3696 section 2: a top-level domain isn't all numeric.
    return name if last[1] and not last[2].isdigit() else ""
