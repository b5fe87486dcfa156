"""The course of an evaluation of SPF: its records, their terms, and the answers of the DNS.

pyspf goes through the terms of a record in a loop of its own. A term that is traced notes when the
loop reaches it, and marks the result that it has if it matches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from smtpd_filters.authentication.inquiry import Question
    from smtpd_filters.lookups.outcome import Outcome

    from .query import Term

_INCLUDE = re.compile("[+?~-]?include:", re.IGNORECASE)
MATCH, NO_MATCH = "match", "no match"


@dataclass(slots=True)
class Step:
    """A record that was evaluated, or a term of it, which is one level deeper.

    `text` is the record or the term, in the owner's words, and `domain` has the record. `outcome`
    is the result of a record, or the reason of an error; for a term it is `match`, `no match` or
    `error`. `answers` are the look-ups of a term with their outcomes.
    """

    depth: int
    domain: str
    text: str
    outcome: str = ""
    answers: list[tuple[Question, Outcome[Any]]] = field(default_factory=list)


class Trace:
    """The steps of a run, in the order of the evaluation.

    `lookups` and `voids` are the numbers that RFC 7208 section 4.6.4 limits.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.lookups = 0
        self.voids = 0
        self._depth = 0

    def record(self, domain: str, text: str) -> Step:
        """Begin a record: the sender's, or that of an include or a redirect."""
        depth = 2 * self._depth - 1
        included = self.steps and _INCLUDE.match(self.steps[-1].text)
        if self._depth and not (included and self.steps[-1].depth == depth):
            self.steps.append(Step(depth, domain, f"redirect={domain}", "no other term matches"))
        self._depth += 1
        step = Step(2 * self._depth - 2, domain, text)
        self.steps.append(step)
        return step

    def term(self, term: Term, domain: str) -> Term:
        """Return a term that notes when it is evaluated."""
        traced = _Traced(term)
        traced.trace, traced.domain = self, domain
        return traced

    def reached(self, text: str, domain: str) -> Step:
        """Begin a term."""
        step = Step(2 * self._depth - 1, domain, text)
        self.steps.append(step)
        return step

    def answered(self, question: Question, outcome: Outcome[Any]) -> None:
        """Note an answer for the term that is evaluated."""
        if self.steps and (question, outcome) not in self.steps[-1].answers:
            self.steps[-1].answers.append((question, outcome))

    def ended(self, record: Step, outcome: str) -> None:
        """End a record with its result."""
        self._end(record, str(outcome), NO_MATCH)
        if isinstance(outcome, _TracedMatch):
            outcome.step.outcome = MATCH

    def failed(self, record: Step, reason: str) -> None:
        """End a record in which an error was found."""
        self._end(record, reason, "error")

    def _end(self, record: Step, outcome: str, last: str) -> None:
        self._depth -= 1
        record.outcome = outcome
        terms = self._open(record)
        for each in terms:
            each.outcome = NO_MATCH if each is not terms[-1] else last

    def _open(self, record: Step) -> list[Step]:
        """Return the terms of a record without an outcome."""
        after = self.steps[self.steps.index(record) :]
        return [each for each in after if each.depth == record.depth + 1 and not each.outcome]


class Matched(str):
    """The result of a term if it matches, which pyspf returns as that of the record.

    `broad` is whether the term would match most clients; None for an include.
    """

    __slots__ = ("broad",)
    broad: bool | None

    def __new__(cls, result: str, *, broad: bool | None) -> Self:
        """Make the result with what it says of the term."""
        self = super().__new__(cls, result)
        self.broad = broad
        return self


class _TracedMatch(Matched):
    """The same, of a term that is traced as `step`."""

    __slots__ = ("step",)
    step: Step


class _Traced(tuple[str, str, str, int, Matched]):  # noqa: SLOT001  # a tuple can't have any
    """A term, which pyspf unpacks when it evaluates it."""

    trace: Trace
    domain: str

    def __iter__(self) -> Iterator[Any]:
        text, mechanism, argument, length, result = self[:]
        matched = _TracedMatch(result, broad=result.broad)
        matched.step = self.trace.reached(text, self.domain)
        return iter((text, mechanism, argument, length, matched))
