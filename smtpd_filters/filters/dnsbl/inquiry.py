"""The queries for one decision and their combined results, without I/O."""

from __future__ import annotations

from .score import Tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.lookups.outcome import Outcome

    from .lists import Reading
    from .questions import Question
    from .score import Thresholds


class Listing:
    """A counted answer, in text form `zen.example (192.0.2.1, 127.0.0.4, +3)`."""

    __slots__ = ("question", "reading")

    def __init__(self, question: Question, reading: Reading) -> None:
        self.question = question
        self.reading = reading

    def __str__(self) -> str:
        question, reading = self.question, self.reading
        details = ", ".join((question.subject, *reading.answers, f"{reading.points:+d}"))
        return f"{question.list.shown} ({details})"


class Inquiry:
    """The queries for one decision, and the results so far."""

    __slots__ = ("_found", "pending", "tally", "troubles")

    def __init__(self, questions: Sequence[Question], thresholds: Thresholds) -> None:
        self.tally = Tally(thresholds)
        self.pending = list(questions)
        self._found: dict[Question, Listing | None] = dict.fromkeys(questions)
        self.troubles: list[str] = []
        for question in questions:
            self.tally.expect(question.low, question.list.high)

    def take(self, question: Question, outcome: Outcome[str]) -> Reading:
        """Add the answer to a query, and return its reading."""
        self.pending.remove(question)
        reading = question.list.read(outcome, trusted=question.trusted)
        if reading.trouble:
            self.troubles.append(f"{question.list.shown}: {reading.trouble}")
        else:
            self.tally.settle(question.low, question.list.high, reading.points)
        if reading.answers:
            self._found[question] = Listing(question, reading)
        return reading

    @property
    def finished(self) -> bool:
        """Whether no further answer matters."""
        return not self.pending or self.tally.decided

    @property
    def listings(self) -> list[Listing]:
        """The counted answers, in the order of the queries."""
        return [listing for listing in self._found.values() if listing]

    @property
    def gravest(self) -> Listing:
        """The listing with the greatest weight; it exists if the client is refused."""
        return max(self.listings, key=lambda listing: listing.reading.points)

    @property
    def reason(self) -> str:
        """The score and the listings, for the log."""
        return f"score {self.tally.score}: listed at {', '.join(map(str, self.listings))}"
