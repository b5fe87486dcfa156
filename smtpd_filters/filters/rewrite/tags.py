"""Tags of recipients: `user+tag@example.org` and, where people can't write a plus, `user-tag`.

Invariants
----------
*Mailboxes first*: with a table of mailboxes, an address that is one stays as it is, and only users
that are in it have tags.
"""

from __future__ import annotations

from smtpd_filters.addresses import Address
from smtpd_filters.addresses.tags import TAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.tables import AddressTable

KEEP, STRIP, PLUS = MODES = ("keep", "strip", "plus")
# RFC 5321 section 4.5.3.1.1: a longer local part is invalid.
_LOCAL_MAX = 64


async def split(
    address: Address, delimiters: str, mailboxes: AddressTable | None
) -> tuple[Address, str] | None:
    """Return the address without its tag, and the tag; None if it has none.

    With `mailboxes` the longest user counts that is there: `jane-doe-news` may be `jane-doe`. Waits
    only for mailboxes that are kept elsewhere.
    """
    local = address.local
    if len(local) > _LOCAL_MAX:
        return None
    places = [at for at, char in enumerate(local) if char in delimiters and at]
    if mailboxes is None:
        if not places:
            return None
        at = places[0]
        return Address(local[:at], address.domain), local[at + 1 :]
    if TAGS.delimiter not in local and await mailboxes.look_up_address(address) is not None:
        return None
    for at in reversed(places):
        user = Address(local[:at], address.domain)
        if TAGS.delimiter not in user.local and await mailboxes.look_up_address(user) is not None:
            return user, local[at + 1 :]
    return None
