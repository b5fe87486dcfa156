"""The answers of DNS lists: filters of them, and answers that are not listings.

An answer that isn't named here is a listing.

Invariants
----------
*Loopback only*: only an answer in 127.0.0.0/8 can be a listing (RFC 5782 section 2.1).
*Refusals are not listings*: an answer about the querier (a public name server, too many queries, no
registration) says nothing about the subject. It comes with advice for the operator.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_OCTET = re.compile(r"(?P<one>[0-9]{1,3})|\[(?P<many>[^\[\]]*)\]", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,3})(?:\.\.([0-9]{1,3}))?", re.ASCII)
_OCTETS, _OCTET_MAX = 4, 255


class Pattern:
    """The answers that a filter selects."""

    __slots__ = ("_octets", "text")

    def __init__(self, text: str) -> None:
        """Parse a filter; raise ValueError with the reason if it is invalid."""
        self.text = text
        self._octets = tuple(_octets(text))

    def match(self, address: str) -> bool:
        """Return whether the filter selects this IPv4 address, in its canonical form."""
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
            f'expected four octets such as 127.0.0.[2..11;14] after "=", not {text[:40]!r}'
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


_OWN_RESOLVER = "use a name server of your own (--nameserver), not a public one"
_REGISTER = "register for its Data Query Service and use the zone with your key"
_ODD = ";".join(str(octet) for octet in range(1, 256, 2))

#: Suffix of the zone's name, pattern of answers, and advice ("" if the answer can be ignored). The
#: first match applies.
_CODES = tuple(
    (suffix, Pattern(answers), advice)
    for suffixes, answers, advice in (
        # https://www.spamhaus.org/news/article/807/: "must not be interpreted as reputation".
        (
            ("spamhaus.org", "spamhaus.net"),
            "127.255.255.252",
            "the name of the list is misspelt: correct it",
        ),
        (
            ("spamhaus.org", "spamhaus.net"),
            "127.255.255.254",
            f"it refuses public name servers: {_OWN_RESOLVER}, or {_REGISTER}",
        ),
        (
            ("spamhaus.org", "spamhaus.net"),
            "127.255.255.255",
            f"too many queries: {_REGISTER}",
        ),
        # A query for an address in its lists of names; ZRD's third octet is 2.
        (("spamhaus.org", "spamhaus.net"), "127.0.[1;2].255", ""),
        (
            ("senderscore.com",),
            "127.255.255.[0..255]",
            f"register at my.validity.com; {_OWN_RESOLVER}",
        ),
        # It has also been seen to return 127.0.10.3 ("highly trusted") for every address, once
        # queries continue above the limit.
        (
            ("dnswl.org",),
            "127.0.0.255",
            f"more queries than are free: {_OWN_RESOLVER}, or subscribe to it",
        ),
        (
            ("dnswl.org",),
            "127.0.10.[1..3]",
            f"more queries than are free: {_OWN_RESOLVER}, or subscribe to it",
        ),
        # Lists whose last octet is a set of bits; 1 is "blocked" (https://uribl.com/refused.shtml).
        (
            ("surbl.org", "uribl.com"),
            f"127.0.[0..255].[{_ODD}]",
            f"it refuses this name server: {_OWN_RESOLVER}, or arrange for access to its data",
        ),
        # A convention of several lists, after Spamhaus.
        (
            ("",),
            "127.255.255.[0..255]",
            f"it refuses this name server: {_OWN_RESOLVER}, and see whether to register with it",
        ),
    )
    for suffix in suffixes
)
# RFC 5782 section 5: 127.0.0.1 must not be listed, and few lists use it as a code. Some return it
# to refused queriers, and so do name servers that block the list's domain.
_LOOPBACK = "127.0.0.1"
_LOOPBACK_ADVICE = (
    f"the list refuses this name server, or the name server blocks the list: {_OWN_RESOLVER}"
)
_OUTSIDE_ADVICE = (
    "the list is gone and its domain has a new owner, or the name server makes up answers"
)


def trouble(zone: str, address: str, *, wanted: bool = False) -> str | None:
    """Return why an answer is not a listing, with advice; "" to ignore it; None for a listing.

    `wanted` is whether the operator's own filter names the answer, which makes 127.0.0.1 a listing
    unless a known list is concerned.
    """
    if not address.startswith("127."):
        return f"answers {address}, outside 127.0.0.0/8: {_OUTSIDE_ADVICE}"
    for suffix, pattern, advice in _CODES:
        if ends(zone, suffix) and pattern.match(address):
            return f"answers {address}: {advice}" if advice else ""
    if address == _LOOPBACK and not wanted:
        return f"answers {address}: {_LOOPBACK_ADVICE}"
    return None


def sort(
    zone: str, records: Iterable[str], is_wanted: Callable[[str], bool] | None = None
) -> tuple[list[str], str, str]:
    """Return the listings among answers, the trouble with those outside 127.0.0.0/8, and a refusal.

    With a refusal, no answer says anything about the subject.
    """
    answers, outside, refused = [], "", ""
    for address in records:
        why = trouble(zone, address, wanted=is_wanted is not None and is_wanted(address))
        if why is None:
            answers.append(address)
        elif not address.startswith("127."):
            outside = outside or why
        else:
            refused = refused or why
    return answers, outside, refused


def ends(zone: str, suffix: str) -> bool:
    """Return whether a zone is a domain or below it; "" is that of all."""
    return not suffix or zone == suffix or zone.endswith(f".{suffix}")
