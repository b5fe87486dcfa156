"""Forward-confirmed reverse DNS: whether a name of an address has that address.

Invariants
----------
*One is enough*: an address is confirmed if any of its names has it.
*Statements only*: the result is Unconfirmed only if the DNS has stated for every name of the
address that it leads elsewhere. If a look-up failed, if not all names were looked up (`MAX_NAMES`),
or if a name has more addresses than were read, the result is Unavailable: mail is not refused for
what nobody has looked at.
*One family*: only the type that can confirm is asked for, A for an IPv4 client, AAAA for an IPv6
one.
"""

from __future__ import annotations

from smtpd_filters.lookups.outcome import Found, NotFound, Unavailable, Value

from . import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from . import RecordType, Resolver

# RFC 7208 section 4.6.4 bounds what the owner of an address can make us ask in the same way: "If
# this limit is exceeded, all records other than the first 10 MUST be ignored."
MAX_NAMES = 10


class Confirmed(Value):
    """These of the address's names have the address."""

    __match_args__ = ("names",)
    __slots__ = __match_args__

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names


class Unconfirmed(Value):
    """The address has these names, and none of them has the address."""

    __match_args__ = ("names",)
    __slots__ = __match_args__

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names


class NoName(Value):
    """The address has no name."""

    __slots__ = ()


FCrDNS: TypeAlias = Confirmed | Unconfirmed | NoName | Unavailable


async def fcrdns(resolver: Resolver, address: str) -> FCrDNS:
    """Find out whether an IP address has a name that has the address.

    Of more than `MAX_NAMES` names so many are looked up that are drawn at random: for a client that
    comes again they are others.
    """
    try:
        own = names.canonical(address)
    except ValueError:
        return Unavailable("not an IP address")
    pointers = await resolver.ptr(own)
    match pointers:
        case Unavailable():
            return pointers
        case NotFound():
            return NoName()
    candidates, cause = _drawn(pointers)
    rdtype: RecordType = "AAAA" if ":" in own else "A"
    forwards = await resolver.query_all([(name, rdtype) for name in candidates])
    confirmed = tuple(
        name
        for name, forward in zip(candidates, forwards, strict=True)
        if isinstance(forward, Found) and own in forward.records
    )
    if confirmed:
        return Confirmed(confirmed)
    for forward in forwards:
        if isinstance(forward, Unavailable):
            return forward
        if isinstance(forward, Found):
            cause = cause or forward.gap
    return Unavailable(cause) if cause else Unconfirmed(candidates)


def _drawn(pointers: Found[str]) -> tuple[tuple[str, ...], str]:
    """Return the names to look up, and why these are not all ("" if they are)."""
    if len(pointers.records) <= MAX_NAMES:
        return pointers.records, pointers.gap
    import random

    drawn = tuple(sorted(random.sample(pointers.records, MAX_NAMES)))
    return drawn, f"more than {MAX_NAMES} reverse names, of which {MAX_NAMES} do not confirm"
