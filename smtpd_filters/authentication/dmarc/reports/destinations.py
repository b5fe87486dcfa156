"""The addresses that a report goes to (RFC 9990 sections 3.5 and 4)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from smtpd_filters.addresses import canonical
from smtpd_filters.authentication.dmarc.record import parse
from smtpd_filters.authentication.dmarc.walk import Walk, questions
from smtpd_filters.lookups.outcome import Found, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from smtpd_filters.authentication.inquiry import Engine
    from smtpd_filters.lookups.outcome import Outcome

# RFC 9989 section 4.8: a "!" and a maximum size behind a URI are obsolete, and ignored.
_MAILTO = re.compile(
    r"mailto:([^?!]+)(?:\?[^!]*)?(?:![0-9]{1,12}[kmgt]?)?", re.IGNORECASE | re.DOTALL
)
# A plain address: it is given to sendmail as a word of its command line, and written in To, where
# an encoded word would be decoded.
_ADDRESS = re.compile(
    r"(?!.*=\?)[A-Za-z0-9!#$%&'*+/=?^_`{|}~][A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]*@([^@\s]+)"
)
_DOMAIN = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})+")
#: Octets of a name in the DNS, as text.
_NAME_MAX = 253


@dataclass(frozen=True, slots=True)
class Destination:
    """A URI, with the address if reports may be sent there, and otherwise the `problem`.

    `temporary` is set if a look-up failed.
    """

    uri: str
    address: str = ""
    problem: str = ""
    temporary: bool = False


def is_domain(name: str) -> bool:
    """Return whether a name is a plain domain: it may be part of a file's name and of a URI."""
    return _DOMAIN.fullmatch(name) is not None


def destinations(domain: str, uris: Iterable[str]) -> Engine[list[Destination]]:
    """Return the destinations for the reports on a policy that was found at a domain."""
    read = [_read(uri) for uri in dict.fromkeys(uris)]
    hosts = dict.fromkeys(_host(each) for each in read if each.address)
    outside = yield from _outside(domain, list(hosts))
    asked = [(name, "TXT") for host in outside if (name := _consent(domain, host))]
    outcomes: dict[str, Outcome[Any]] = {}
    if asked:
        found = yield asked  # type: ignore[misc]  # a literal type
        outcomes = dict(zip((name for name, _ in asked), found, strict=True))
    checked = (
        _checked(each, outside.get(_host(each)), outcomes.get(_consent(domain, _host(each))))
        if each.address
        else [each]
        for each in read
    )
    return list(dict.fromkeys(each for found in checked for each in found))


def _outside(domain: str, hosts: list[str]) -> Engine[dict[str, str]]:
    """Return the hosts outside a domain's organization; with a cause if that is not known."""
    names = [domain, *hosts]
    asked = list(dict.fromkeys(each for name in names for each in questions(name)))
    outcomes = dict(zip(asked, (yield asked), strict=True))
    own, *walks = (Walk(name, [outcomes[each] for each in questions(name)]) for name in names)
    found = {}
    for walk in walks:
        if walk.domain == own.domain:
            continue
        cause = own.failure or walk.failure
        if cause or walk.organization != own.organization:
            found[walk.domain] = cause
    return found


def _consent(domain: str, host: str) -> str:
    """Return the name at which a host agrees to reports on a domain; "" if it is too long."""
    name = f"{domain}._report._dmarc.{host}"
    return name if len(name) <= _NAME_MAX else ""


def _checked(
    destination: Destination, cause: str | None, outcome: Outcome[Any] | None
) -> list[Destination]:
    """Return the destination as its host wants it, or with the `problem`.

    `cause` is None for a host in the organization of the policy. For any other, `outcome` is that
    of the look-up of its consent, and `cause` why this could not be looked up, or "".
    """
    if cause is None:
        return [destination]
    uri = destination.uri
    if isinstance(outcome, Unavailable):
        return [Destination(uri, problem=outcome.cause, temporary=True)]
    texts = outcome.records if isinstance(outcome, Found) else ()
    records = [record for record in map(parse, texts) if record is not None]
    if not records:
        problem = cause or f"{_host(destination)} has not agreed to reports"
        return [Destination(uri, problem=problem, temporary=bool(cause))]
    others = [_read(each) for record in records for each in record.rua]
    # RFC 9990 section 4, step 9: "the overriding URI MUST use the same destination host".
    host = _host(destination)
    if any(each.address and _host(each) != host for each in others):
        return [Destination(uri, problem=f"{host} names another host")]
    return others or [destination]


def _read(uri: str) -> Destination:
    match = _MAILTO.fullmatch(uri)
    if match is None:
        return Destination(uri, problem="not a mailto URI")
    address = unquote(match[1])
    parts = _ADDRESS.fullmatch(address)
    host = canonical(parts[1]) if parts else ""
    if not is_domain(host):
        return Destination(uri, problem="not a plain address")
    return Destination(uri, f"{address.rpartition('@')[0]}@{host}")


def _host(destination: Destination) -> str:
    return destination.address.rpartition("@")[2]
