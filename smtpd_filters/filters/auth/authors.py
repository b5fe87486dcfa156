"""The domains of a message's authors, which DMARC judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from smtpd_filters.addresses import canonical
from smtpd_filters.checks.author.from_field import TooLargeError, read_from, values_of_from

if TYPE_CHECKING:
    from smtpd_filters.message import Headers

#: RFC 9989 section 5.3.1 lets a receiver evaluate several domains; more are not a message's author.
MAX_DOMAINS = 4


@dataclass(frozen=True, slots=True)
class Authors:
    """The domains in From, in canonical form: `stated`, and by other `readings` of the field.

    `problem` is the reason why there are none, or no certain ones: no From field, several, no
    address, too many domains.
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
    if len(values) != 1:
        return Authors(problem="several From fields" if values else "no From field")
    try:
        author = read_from(values)
    except TooLargeError as error:
        return Authors(problem=str(error))
    stated = dict.fromkeys(
        canonical(each.completed(server_name).domain) for each in author.addresses
    )
    stated.pop("", None)
    # A name without a dot is a word: `Bob @ Work`.
    possible = (canonical(each.domain) for each in author.possible)
    readings = dict.fromkeys(each for each in possible if "." in each and each not in stated)
    if not stated:
        return Authors(problem="no address in From")
    if len(stated) + len(readings) > MAX_DOMAINS:
        return Authors(problem=f"more than {MAX_DOMAINS} domains in From")
    return Authors(tuple(stated), tuple(readings))
