"""Addresses of envelopes: what is meant by one, however the client spells it.

Nothing here raises: the texts are the client's.
"""

from __future__ import annotations

import re

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def normal(address: str) -> str:
    """Give an envelope's address as it is meant: ``user@domain``, or ``user`` without a domain.

    The client's spelling is gone: a source route, quotes that aren't needed, a final dot.  Letter
    case is left to the tables, which don't regard it.  Never raises.
    """
    address = address.strip(" \t")
    if address.startswith("<") and address.endswith(">"):
        address = address[1:-1]
    # RFC 5321 section 4.1.2: Path = "<" [ A-d-l ":" ] Mailbox ">"; appendix C: servers "SHOULD
    # ignore the source route".  A literal may hold colons, but a route has no literal.
    if address.startswith("@") and ":" in address:
        address = address.partition(":")[2]
    local, domain = _parted(address)
    domain = domain.rstrip(".")
    plain = unquoted(local)
    if domain:
        return f"{plain}@{domain}"
    return local if "@" in plain else plain  # in its quotes: it is no domain


def _parted(address: str) -> tuple[str, str]:
    """Local part and domain; a local part in quotes may hold an ``@``."""
    quoted = _QUOTED.match(address)
    if quoted and (quoted.end() == len(address) or address[quoted.end()] == "@"):
        return quoted[0], address[quoted.end() + 1 :]
    local, at, domain = address.rpartition("@")
    return (local, domain) if at else (address, "")


def unquoted(local: str) -> str:
    """Give a local part without quotes and the backslashes in them."""
    # RFC 5321 section 4.1.2: "the quoted form ... MUST be treated as equivalent".
    if len(local) > 1 and local[0] == local[-1] == '"':
        return ESCAPED.sub(r"\1", local[1:-1])
    return local


def spellings(domain: str) -> tuple[str, ...]:
    """Give a domain as it is written, and in the other form if it is internationalised."""
    if domain.isascii() and "xn--" not in domain.lower():
        return (domain,)
    try:
        # Python's codec is IDNA 2003's; for names in use the newer one differs in four letters.
        if domain.isascii():
            return domain, domain.encode().decode("idna")
        return domain, domain.encode("idna").decode()
    except UnicodeError:
        return (domain,)
