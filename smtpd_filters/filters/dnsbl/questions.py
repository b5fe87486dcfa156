"""The queries to lists about a client's address, its names, and a sender's domain.

Invariants
----------
*Possible entries only*: a list is queried only for entries that it may have: addresses in the form
of RFC 5782 sections 2.1 and 2.4, names that are valid in the DNS. A list that is off isn't queried
(`lists`).
*No evasion by form*: no name avoids a list because of its form. If it is not valid in the list's
zone, because it is too long or has an invalid label, labels are removed from the left until it is.
The list can have no entry for the whole name, and an entry for a parent, such as `*.spam.example`,
covers the rest. Such a name never counts in the client's favour.
*State survives*: when the files with lists are reloaded, the state of remaining lists is kept.
"""

from __future__ import annotations

from smtpd_filters.addresses import canonical, path
from smtpd_filters.checks import zone_names
from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.dns import names

from .lists import List

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from smtpd_filters.session import Session

    from .options import Sites
    from .sites import Site

#: The kinds of lists, by their subjects.
CLIENT, RDNS, HELO, SENDER = KINDS = ("client", "rdns", "helo", "sender")


class Question:
    """A query to one list: `name` is looked up, `subject` is the address or name it is about."""

    __slots__ = ("list", "low", "name", "subject", "trusted")

    def __init__(self, to: List, subject: str, name: str, *, trusted: bool) -> None:
        self.list = to
        self.subject = subject
        self.name = name
        #: Whether the subject is verified to be the client's, so that it may count in its favour.
        self.trusted = trusted
        #: The minimum that the answer can add.
        self.low = to.low if trusted else 0


class Book:
    """The configured lists, by kind."""

    def __init__(
        self, given: Mapping[str, Sites], keys: Iterable[str] = (), untested: Iterable[str] = ()
    ) -> None:
        """Take the lists `given` by kind, and the zones of `untested` ones.

        Raises ConfigError if a member of `keys` or `untested` fits none of the lists.
        """
        self._given = given
        self._keys = zone_names.labels_of(keys)
        self._untested = {zone.lower().rstrip(".") for zone in untested}
        self._lists: dict[str, list[List]] = {kind: [] for kind in KINDS}
        self._lists = self._make()
        self._check()

    def _make(self) -> dict[str, list[List]]:
        """Make the lists; existing ones pass on their state (*State survives*)."""
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
        # At start only: a list removed from a file later is not a mistake.
        every = [each for lists in self._lists.values() for each in lists]
        if not all(any(key in each.zone for each in every) for key in self._keys):
            # A misspelt key would be shown.
            raise ConfigError("--key: one of the keys is in no list's name")
        for zone in self._untested:
            if not any(zone in {each.zone, each.shown} for each in every):
                shown = zone_names.shown(zone, self._keys)
                raise ConfigError(f"--untested: {shown} is not the zone of a configured list")

    @property
    def watched(self) -> list[tuple[List, str]]:
        """The lists to test, each with the kinds of its subjects."""
        return [
            (each, about)
            for kind, lists in self._lists.items()
            for each in lists
            for about in ((zone_names.V4, zone_names.V6) if kind == CLIENT else (zone_names.NAME,))
        ]

    @property
    def size(self) -> int:
        """The number of lists."""
        return sum(map(len, self._lists.values()))

    def renew(self) -> None:
        """Make the lists from the reloaded settings."""
        self._lists = self._make()

    # -- queries -------------------------------------------------------------------------------

    def about(self, session: Session, address: str, identity: str, sender: str) -> list[Question]:
        """Return the queries for a decision on a client with this `address`.

        `identity` and `sender` are "" if unknown.
        """
        questions = self.about_client(session, address)
        if identity:
            questions += self.about_name(HELO, identity)
        if sender:
            questions += self.about_sender(sender)
        return questions

    def about_client(self, session: Session, address: str) -> list[Question]:
        """Return the queries about the client's address and reverse name, if it has an address."""
        questions: list[Question] = []
        if not address:
            return questions
        if self._lists[CLIENT]:
            about, reverse, address = _reversed(address)
            questions = [
                Question(each, address, reverse + each.zone, trusted=True)
                for each in self._lists[CLIENT]
                if about not in each.off
            ]
        if self._lists[RDNS] and session.rdns:
            trusted = session.fcrdns == "pass"
            questions += self.about_name(RDNS, session.rdns, trusted=trusted)
        return questions

    def about_name(self, kind: str, name: str, *, trusted: bool = True) -> list[Question]:
        """Return the queries about a name; none if it is invalid."""
        if not self._lists[kind]:
            return []
        whole = canonical(name)
        known = _known_to_dns(whole)
        if not known:
            return []
        questions: list[Question] = []
        for each in self._lists[kind]:
            if zone_names.NAME not in each.off:
                # `sites.MAX_ZONE` leaves room for two labels.
                subject = names.ending(known, names.MAX_NAME - len(each.zone) - 1)
                name = f"{subject}.{each.zone}"
                favourable = trusted and subject == whole
                questions.append(Question(each, subject, name, trusted=favourable))
        return questions

    def about_sender(self, address: str) -> list[Question]:
        """Return the queries about the domain of a sender's address."""
        return self.about_name(SENDER, path(address).domain)


def _reversed(address: str) -> tuple[str, str, str]:
    """Return an address's kind, its reversed form with a final dot, and its canonical form."""
    if ":" in address:
        address = names.canonical(address)
    if ":" in address:
        return zone_names.V6, names.reverse(address, zone=""), address
    return zone_names.V4, f"{'.'.join(address.split('.')[::-1])}.", address


def _known_to_dns(name: str) -> str:
    """Return the longest suffix of a canonical name that a list can have; "" for an address."""
    name = names.ending(name)
    last = name.rpartition(".")
    # RFC 3696 section 2: a top-level domain isn't all numeric.
    return name if last[1] and not last[2].isdigit() else ""
