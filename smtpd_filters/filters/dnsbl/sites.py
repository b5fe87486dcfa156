"""Lists as postscreen(8) writes them: `zone=127.0.0.[2..11;14]*3`.

The law:

1. A site is a zone, which of its answers count (all, unless a filter follows "="), and its weight
   behind "*" (1, unless given; negative for lists of those to let in). One entry counts once,
   however many answers match; several entries for one zone count each.
2. `parse(str(site)) == site`.
3. What can't be read is a ValueError with the reason, which never repeats a zone that may hold a
   key. Nor does the `repr` of a site.

In a filter each of the four octets is a number, or numbers and ranges in brackets with ";" between
them: postconf(5), postscreen_dnsbl_sites.
"""

from __future__ import annotations

import re

from smtpd_filters.lookups.dns.names import MAX_NAME, domain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Characters of a zone. Every name with two labels of 63 (RFC 1035 section 2.3.4) fits in front of
#: it, and so does an IPv6 address, which takes 64. Zones in use, keys included, have at most 70.
MAX_ZONE = MAX_NAME - len(".") - (63 + len(".") + 63)
#: A weight beyond is a slip of the finger.
MAX_WEIGHT = 1_000_000
# Letters of a key, at the least (`codes`).
_KEY_MIN = 16
_WEIGHT = re.compile(r"[+-]?[0-9]{1,7}", re.ASCII)
_OCTET = re.compile(r"(?P<one>[0-9]{1,3})|\[(?P<many>[^\[\]]*)\]", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,3})(?:\.\.([0-9]{1,3}))?", re.ASCII)
_OCTETS, _OCTET_MAX = 4, 255


class Pattern:
    """Which addresses a filter lets count."""

    __slots__ = ("_octets", "text")

    def __init__(self, text: str) -> None:
        """Raise ValueError with the reason for a text that is no filter."""
        self.text = text
        self._octets = tuple(_octets(text))

    def match(self, address: str) -> bool:
        """Whether this IPv4 address, in its canonical form, is covered."""
        parts = address.split(".")
        return len(parts) == _OCTETS and all(
            part in octet for part, octet in zip(parts, self._octets, strict=True)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


class Site:
    """One entry: the zone, which answers count (None: all that are listings), its weight."""

    __slots__ = ("pattern", "weight", "zone")

    def __init__(self, zone: str, pattern: Pattern | None = None, weight: int = 1) -> None:
        self.zone = zone
        self.pattern = pattern
        self.weight = weight

    def match(self, address: str) -> bool:
        """Whether an answer that is a listing counts here."""
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
        return f"<site, weight {self.weight}>"  # law 3


def parse(text: str) -> Site:
    """Read one site; ValueError says what is wrong with it."""
    rest, star, factor = text.partition("*")
    name, equals, answers = rest.partition("=")
    try:
        zone = domain(name)
    except ValueError:
        zone = ""
    # Flags that are lost among lists, and slips such as a missing end, are no zones.
    if "." not in zone or zone.startswith("-") or ".-" in zone:
        # Law 3: what may be a key is longer, or has digits.
        shown = f": {name}" if name.isascii() and name.isalpha() and len(name) < _KEY_MIN else ""
        raise ValueError(f"the name of the list is not a domain name{shown}")
    if len(zone) > MAX_ZONE:
        raise ValueError(f"the name of the list is longer than {MAX_ZONE} characters")
    weight = 1
    if star:
        if not _WEIGHT.fullmatch(factor) or abs(int(factor)) > MAX_WEIGHT:
            raise ValueError(f'expected a weight behind "*", such as 3 or -2, not {factor[:20]!r}')
        weight = int(factor)
    return Site(zone, Pattern(answers) if equals else None, weight)


def _octets(text: str) -> Iterator[frozenset[str]]:
    rest, count = text, 0
    while count < _OCTETS:
        found = _OCTET.match(rest)
        if not found:
            break
        numbers = set(_numbers(found["one"] or found["many"] or ""))
        if count == 0 and 127 not in numbers:
            raise ValueError("only answers in 127.0.0.0/8 can count")
        yield frozenset(map(str, numbers))
        count, rest = count + 1, rest[found.end() :]
        if count < _OCTETS:
            if not rest.startswith("."):
                break
            rest = rest[1:]
    if count < _OCTETS or rest:
        raise ValueError(
            f'expected four octets such as 127.0.0.[2..11;14] behind "=", not {text[:40]!r}'
        )


def _numbers(text: str) -> Iterator[int]:
    for part in text.split(";"):
        found = _RANGE.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last or last > _OCTET_MAX:
            raise ValueError(
                f"expected numbers from 0 to 255 or ranges such as 2..11, not {part[:20]!r}"
            )
        yield from range(first, last + 1)
