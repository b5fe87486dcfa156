"""The domains of a message's authors, which DMARC judges."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smtpd_filters.addresses import canonical
from smtpd_filters.addresses.domains import PREFIX
from smtpd_filters.checks.author.from_field import TooLargeError, read_from, values_of_from

if TYPE_CHECKING:
    from smtpd_filters.message import Headers

#: RFC 9989 section 5.3.1 lets a receiver evaluate several domains; more are not a message's author.
MAX_DOMAINS = 4
#: A name that can be looked up, or an address literal. Labels may be too long: the policy of the
#: domain above them applies.
_DOMAIN = re.compile(r"[a-z0-9_-]++(?:\.[a-z0-9_-]++)*|\[[0-9a-z:.]++\]")


@dataclass(frozen=True, slots=True)
class Authors:
    """The domains in From, in canonical form: `stated`, and by other `readings` of the field.

    `problem` is the reason why there are none, or no certain ones: no From field, several, no
    address, too many domains, or an invalid one, such as one with a byte that isn't UTF-8 or an
    empty label. What programs may take an invalid domain for is among the `readings`.
    """

    stated: tuple[str, ...] = ()
    readings: tuple[str, ...] = ()
    problem: str = ""

    @property
    def domains(self) -> tuple[str, ...]:
        """All domains, the stated ones first."""
        return self.stated + self.readings


def authors_of(headers: Headers, server_name: str | None) -> Authors:
    """Return the author's domains; an address without one has our `server_name` from smtpd."""
    values = values_of_from(headers)
    if headers.cut:
        return Authors(problem="header too large")
    if len(values) != 1 or "From" not in headers:
        # A field that only some programs read as From doesn't count as the only one.
        return Authors(problem="several From fields" if len(values) > 1 else "no From field")
    try:
        author = read_from(values)
    except TooLargeError as error:
        return Authors(problem=str(error))
    stated = dict.fromkeys(
        canonical(each.completed(server_name).domain) for each in author.addresses
    )
    stated.pop("", None)
    if not stated:
        return Authors(problem="no address in From")
    # A name without a dot is a word: `Bob @ Work`.
    possible = [name for each in author.possible if "." in (name := canonical(each.domain))]
    return _certain(list(stated), possible)


def _certain(stated: list[str], possible: list[str]) -> Authors:
    """Return the domains in From, in a number that can be looked up."""
    invalid = [each for each in stated if not _DOMAIN.fullmatch(each)]
    valid = [each for each in stated if each not in invalid]
    readings = [each for each in dict.fromkeys((*possible, *invalid)) if each not in valid]
    if invalid:
        # The plain names first: a sender can add any number of others.
        readings.sort(key=lambda each: PREFIX in each or each in invalid)
        left = max(0, MAX_DOMAINS - len(valid))
        problem = "invalid domain in From"
        return Authors(tuple(valid[:MAX_DOMAINS]), tuple(readings[:left]), problem)
    if len(valid) + len(readings) > MAX_DOMAINS:
        return Authors(problem=f"more than {MAX_DOMAINS} domains in From")
    return Authors(tuple(valid), tuple(readings))
