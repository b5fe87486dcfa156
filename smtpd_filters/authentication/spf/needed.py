"""The part of an outcome that an evaluation of SPF needs until its verdict.

An evaluation that waits for an answer keeps those that it has, and the owner of a domain chooses
how many and how large they are: the exchangers of ten terms may have 12,800 addresses.

Invariants
----------
*Same verdict*: what is left of an outcome leads to the same verdict.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from smtpd_filters.lookups.cache import size_of
from smtpd_filters.lookups.outcome import Found

from .pyspf import spf

if TYPE_CHECKING:
    from smtpd_filters.lookups.outcome import Outcome

#: Bytes of an outcome that is kept as it is; that of most domains is smaller.
SMALL = 1024


def needed(rdtype: str, outcome: Outcome[Any], client: int) -> Outcome[Any]:
    """Return an outcome without the records that no term needs.

    `client` is the address of the client as a number.
    """
    if not isinstance(outcome, Found) or size_of(outcome) <= SMALL:
        return outcome
    return Found(_records(rdtype, outcome.records, client), outcome.ttl, outcome.gap)


def _records(rdtype: str, records: tuple[Any, ...], client: int) -> tuple[Any, ...]:
    if rdtype in {"A", "AAAA"}:
        # That which has the most leading bits of the client's is in its network if any is.
        return (min(records, key=lambda each: int(ip_address(each)) ^ client),)
    if rdtype == "TXT":
        return tuple(each for each in records if spf.RE_SPF.match(each)) or (b"",)
    # RFC 7208 section 4.6.4: more than ten exchangers are an error, further names are ignored.
    return records[: max(spf.MAX_MX, spf.MAX_PTR) + 1]
