"""All that is asked for one decision, and what comes of it; without input and output."""

from __future__ import annotations

from .score import Tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.lookups.outcome import Outcome

    from .lists import List, Reading
    from .score import Thresholds


class Question:
    """What a list is asked: `name` is what is looked up, `subject` whom it is about."""

    __slots__ = ("list", "low", "name", "subject", "trusted")

    def __init__(self, to: List, subject: str, name: str, trusted: bool) -> None:  # noqa: FBT001 - as `Asked` has it
        self.list = to
        self.subject = subject
        self.name = name
        #: Whether it is known to be whom the client is, so that it may speak for the client.
        self.trusted = trusted
        #: The least that the answer can add.
        self.low = to.low if trusted else 0


class Listing:
    """An answer that counts: shown as ``zen.example (192.0.2.1, 127.0.0.4, +3)``."""

    __slots__ = ("question", "reading")

    def __init__(self, question: Question, reading: Reading) -> None:
        self.question = question
        self.reading = reading

    def __str__(self) -> str:
        question, reading = self.question, self.reading
        said = ", ".join((question.subject, *reading.answers, f"{reading.points:+d}"))
        return f"{question.list.shown} ({said})"


class Inquiry:
    """All that is asked for one decision, and what has come of it."""

    __slots__ = ("_found", "out", "tally", "troubles")

    def __init__(self, questions: Sequence[Question], thresholds: Thresholds) -> None:
        self.tally = Tally(thresholds)
        self.out = list(questions)
        self._found: dict[Question, Listing | None] = dict.fromkeys(questions)
        self.troubles: list[str] = []
        for question in questions:
            self.tally.expect(question.low, question.list.high)

    def take(self, question: Question, outcome: Outcome[str]) -> Reading:
        """Take in an answer."""
        self.out.remove(question)
        reading = question.list.read(outcome, trusted=question.trusted)
        if reading.trouble:
            self.troubles.append(f"{question.list.shown}: {reading.trouble}")
        else:
            self.tally.settle(question.low, question.list.high, reading.points)
        if reading.answers:
            self._found[question] = Listing(question, reading)
        return reading

    @property
    def over(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self.out or self.tally.decided

    @property
    def listings(self) -> list[Listing]:
        """The answers that count, in the order in which they were asked for."""
        return [listing for listing in self._found.values() if listing]

    @property
    def gravest(self) -> Listing:
        """The listing with the greatest weight; there is one where somebody is refused."""
        return max(self.listings, key=lambda listing: listing.reading.points)

    @property
    def reason(self) -> str:
        """What the lists said, for the log."""
        return f"score {self.tally.score}: listed at {', '.join(map(str, self.listings))}"
