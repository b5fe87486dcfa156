"""The tree walk of DMARC (RFC 9989 section 4.10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smtpd_filters.lookups.outcome import Found, Unavailable

from .record import Record, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.authentication.inquiry import Question
    from smtpd_filters.lookups.outcome import Outcome

#: RFC 9989 section 4.10: the domain itself, and at most its last seven labels.
MAX_QUERIES = 8


def names(domain: str) -> list[str]:
    """Return the names of a walk from a canonical domain, from the longest to the shortest."""
    labels = domain.split(".")
    count = min(len(labels) - 1, MAX_QUERIES - 1)
    return [domain, *(".".join(labels[-each:]) for each in range(count, 0, -1))]


def questions(domain: str) -> list[Question]:
    """Return the questions of a walk."""
    return [(f"_dmarc.{name}", "TXT") for name in names(domain)]


class Walk:
    """The result of a walk from a canonical domain, whose `questions` have these outcomes.

    `records` are the records by the names that have them, from the longest name to the shortest.
    `failure` is the cause of the first look-up that failed, "" if none did. `suffix` is the name of
    the record with `psd=y`, or "".
    """

    __slots__ = ("domain", "failure", "records", "suffix")

    def __init__(self, domain: str, outcomes: Sequence[Outcome[Any]]) -> None:
        self.domain = domain
        self.records: dict[str, Record] = {}
        self.failure = ""
        self.suffix = ""
        for name, outcome in zip(names(domain), outcomes, strict=True):
            record = self._record(outcome)
            if record is None:
                continue
            self.records[name] = record
            if record.psd == "y":
                self.suffix = name
            if record.psd != "u":
                break

    def _record(self, outcome: Outcome[Any]) -> Record | None:
        """Return the only record among the texts of a name; several count as none."""
        if isinstance(outcome, Unavailable):
            self.failure = self.failure or outcome.cause
        if not isinstance(outcome, Found):
            return None
        if outcome.gap:
            self.failure = self.failure or outcome.gap
            return None
        records = [record for record in map(parse, outcome.records) if record is not None]
        return records[0] if len(records) == 1 else None

    @property
    def organization(self) -> str:
        """The Organizational Domain; it is unreliable if there was a `failure`."""
        for name, record in self.records.items():
            if record.psd == "n":
                return name
            if record.psd == "y" and name != self.domain:
                labels = self.domain.split(".")
                return ".".join(labels[-(name.count(".") + 2) :])
        *_, shortest = self.records or [self.domain]
        return shortest
