"""Entries for lists in the syntax of postscreen(8): `zone=127.0.0.[2..11;14]*3`.

A site is a zone, a filter of its answers after "=" (by default all count), and a weight after "*"
(by default 1; negative for allow lists). An entry counts once, however many answers match; several
entries for one zone each count. In a filter each of the four octets is a number, or numbers and
ranges in brackets separated by ";": postconf(5), postscreen_dnsbl_sites.

Invariants
----------
*Round trip*: `parse(str(site)) == site`.
*Keys stay secret*: neither the ValueError for an invalid entry nor the `repr` of a site contains a
zone that may have a key.
"""

from __future__ import annotations

import re

from smtpd_filters.checks.listings import Pattern
from smtpd_filters.lookups.dns.names import MAX_NAME, domain

#: The maximum length of a zone. It leaves room for a name with two labels of 63 (RFC 1035 section
#: 2.3.4), and for an IPv6 address, which takes 64. Zones in use, with keys, have at most 70.
MAX_ZONE = MAX_NAME - len(".") - (63 + len(".") + 63)
#: A weight beyond this is a typing error.
MAX_WEIGHT = 1_000_000
# The minimum length of a key (`checks.zone_names`).
_KEY_MIN = 16
_WEIGHT = re.compile(r"[+-]?[0-9]{1,7}", re.ASCII)


class Site:
    """An entry: the zone, the filter of its answers (None selects all listings), its weight."""

    __slots__ = ("pattern", "weight", "zone")

    def __init__(self, zone: str, pattern: Pattern | None = None, weight: int = 1) -> None:
        self.zone = zone
        self.pattern = pattern
        self.weight = weight

    def match(self, address: str) -> bool:
        """Return whether a listing counts for this entry."""
        return self.pattern is None or self.pattern.match(address)

    def __str__(self) -> str:
        pattern = f"={self.pattern.text}" if self.pattern else ""
        weight = f"*{self.weight}" if self.weight != 1 else ""
        return f"{self.zone}{pattern}{weight}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Site) and str(other) == str(self)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f"<site, weight {self.weight}>"  # *Keys stay secret*


def parse(text: str) -> Site:
    """Parse an entry; raise ValueError with the reason if it is invalid."""
    rest, star, factor = text.partition("*")
    name, equals, answers = rest.partition("=")
    try:
        zone = domain(name)
    except ValueError:
        zone = ""
    # Misplaced flags, and mistakes such as a missing end, are not zones.
    if "." not in zone or zone.startswith("-") or ".-" in zone:
        # *Keys stay secret*: keys are longer, or have digits.
        shown = f": {name}" if name.isascii() and name.isalpha() and len(name) < _KEY_MIN else ""
        raise ValueError(f"the name of the list is not a domain name{shown}")
    if len(zone) > MAX_ZONE:
        raise ValueError(f"the name of the list is longer than {MAX_ZONE} characters")
    weight = 1
    if star:
        if not _WEIGHT.fullmatch(factor) or abs(int(factor)) > MAX_WEIGHT:
            raise ValueError(f'expected a weight after "*", such as 3 or -2, not {factor[:20]!r}')
        weight = int(factor)
    return Site(zone, Pattern(answers) if equals else None, weight)
