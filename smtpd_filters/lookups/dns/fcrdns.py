"""Forward-confirmed reverse DNS: check that a PTR name of an address resolves to that address.

Invariants
----------
*One is enough*: an address is confirmed if any of its names resolves to it. An address in place of
a name confirms nothing, whatever a name server answers for it.
*Complete evidence*: the result is Unconfirmed only if every name of the address was looked up and
resolves elsewhere. If a look-up failed, if there are too many names (`MAX_NAMES`), or if the
addresses of a name were not all read, the result is Unavailable, so that no mail is refused on
partial evidence.
*One family*: only the type that can confirm is queried, A for an IPv4 client, AAAA for an IPv6 one.
"""

from __future__ import annotations

from smtpd_filters.lookups.outcome import Found, NotFound, Unavailable, Value

from . import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from . import RecordType, Resolver

# RFC 7208 section 4.6.4 bounds the queries that the owner of an address can cause in the same way:
# "If this limit is exceeded, all records other than the first 10 MUST be ignored."
MAX_NAMES = 10


class Confirmed(Value):
    """The names of the address that resolve to it."""

    __match_args__ = ("names",)
    __slots__ = __match_args__

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names


class Unconfirmed(Value):
    """The names of the address, none of which resolves to it."""

    __match_args__ = ("names",)
    __slots__ = __match_args__

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names


class NoName(Value):
    """The result for an address without a PTR record."""

    __slots__ = ()


FCrDNS: TypeAlias = Confirmed | Unconfirmed | NoName | Unavailable


async def fcrdns(resolver: Resolver, address: str) -> FCrDNS:
    """Return the forward-confirmed reverse DNS of an IP address.

    If it has more than `MAX_NAMES` names, that many are drawn at random and looked up: a client
    that reconnects gets others.
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
    candidates, cause = _draw(pointers)
    rdtype: RecordType = "AAAA" if ":" in own else "A"
    forwards = await resolver.query_all([(name, rdtype) for name in candidates])
    confirmed = tuple(
        name
        for name, forward in zip(candidates, forwards, strict=True)
        if isinstance(forward, Found) and own in forward.records and not names.is_address(name)
    )
    if confirmed:
        return Confirmed(confirmed)
    for forward in forwards:
        if isinstance(forward, Unavailable):
            return forward
        if isinstance(forward, Found):
            cause = cause or forward.gap
    return Unavailable(cause) if cause else Unconfirmed(candidates)


def _draw(pointers: Found[str]) -> tuple[tuple[str, ...], str]:
    """Return the names to look up, and the reason why some are missing ("" if none are)."""
    if len(pointers.records) <= MAX_NAMES:
        return pointers.records, pointers.gap
    import random

    drawn = tuple(sorted(random.sample(pointers.records, MAX_NAMES)))
    return drawn, f"more than {MAX_NAMES} reverse names, of which {MAX_NAMES} do not confirm"
