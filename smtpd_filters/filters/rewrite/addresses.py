"""Addresses as they are written into an envelope or a header field, and what is valid there.

Invariants
----------
*Legal result*: an address that passes `checked` is legal in every place: of 254 octets at most,
with a local part and a domain, in printable ASCII, its local part in quotes where it needs them.
"""

from __future__ import annotations

import re

from smtpd_filters.addresses import Address, canonical, path

#: RFC 5321 section 4.5.3.1.3: a path has at most 256 octets, of which two are its brackets; and
#: section 4.5.3.1.1, the local part.
ADDRESS_MAX, LOCAL_MAX = 254, 64
# RFC 5321 section 4.1.2: Dot-string; QcontentSMTP.
_DOT_STRING = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_QUOTABLE = re.compile(r"[ -~]*")
# RFC 5321 section 4.1.2: Domain, with the underscores that some have; an address literal.
_DOMAIN = re.compile(
    r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
    r"(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)
_LITERAL = re.compile(r"\[[A-Za-z0-9:.]+\]")


def checked(text: str) -> str:
    """Return an address in its legal form; raise ValueError with the reason if it has none."""
    address = path(text)
    if not address.local or not address.domain:
        raise ValueError(f"{_shown(text)} is not of the form user@example.org")
    local = quoted(address.local)
    domain = address.domain if address.domain.isascii() else canonical(address.domain)
    if not (_DOMAIN.fullmatch(domain) or _LITERAL.fullmatch(domain)):
        raise ValueError(f"{_shown(text)} has an invalid domain")
    result = f"{local}@{domain}"
    if len(local) > LOCAL_MAX or len(result) > ADDRESS_MAX:
        raise ValueError(f"{_shown(text)} is too long for an address")
    return result


def quoted(local: str) -> str:
    """Return a local part in its legal form; raise ValueError if it has none."""
    if not _QUOTABLE.fullmatch(local):
        raise ValueError(f"{_shown(local)} has characters that no address may have")
    return _quoted(local)


def written(local: str, domain: str) -> str:
    """Return an address from its parts, its local part in quotes where it needs them."""
    return f"{_quoted(local)}@{domain}"


def same(one: Address, other: Address) -> bool:
    """Whether two addresses are the same, spelling included."""
    return one.local == other.local and one.domain == other.domain


def _quoted(local: str) -> str:
    if _DOT_STRING.fullmatch(local):
        return local
    escaped = local.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _shown(text: str) -> str:
    return ascii(text[:80])
