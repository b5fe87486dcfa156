"""Forward-confirmed reverse DNS: whether a name of an address has that address.

1. All names of the address are tried, up to a bound; one that confirms is enough.
2. "No such name" and "could not be found out" are kept apart. If none confirmed and a look-up that
   could have was unavailable, the result is Unavailable, never Unconfirmed: mail is not refused
   because somebody's DNS is down.
3. Only the type that can confirm is asked for: A for an IPv4 client, AAAA for an IPv6 one.
"""

from __future__ import annotations

from smtpd_filters.lookups import names
from smtpd_filters.lookups.outcome import Found, NotFound, Unavailable, Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from smtpd_filters.lookups.dns import RecordType, Resolver

# RFC 7208 section 4.6.4, of PTR records: "If this limit is exceeded, all records other than the
# first 10 MUST be ignored."
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
    """Find out whether an IP address has a name that has the address."""
    import asyncio

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
    candidates = pointers.records[:MAX_NAMES]
    rdtype: RecordType = "AAAA" if ":" in own else "A"
    forwards = await asyncio.gather(*(resolver.query(name, rdtype) for name in candidates))
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
    return Unconfirmed(candidates)
