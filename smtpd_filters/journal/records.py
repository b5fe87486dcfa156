"""The records that queries of the journal take and return, with texts from outside."""

from __future__ import annotations

from dataclasses import dataclass, field

from .rollups import BUCKETS

#: Seconds after the present of which the newest stories are shown. Those of a clock that was set
#: back by some hours are; those of one that was years ahead would hide the others until then.
AHEAD = 86400.0
#: Seconds since 1970, after those of every story.
NEVER = 1e12


@dataclass(frozen=True, slots=True)
class Search:
    """What to look for; all conditions hold together."""

    #: An address, a domain (`@example.org`), part of an address, a client's address or network, a
    #: host's name, a user, a Message-ID, or smtpd's id of a session or message; "" for all.
    text: str = ""
    #: Seconds since 1970, from and before.
    since: float = 0.0
    until: float = NEVER
    #: Some of `OUTCOMES`; all if empty.
    outcomes: frozenset[str] = frozenset()
    #: A filter's name with a verdict that is not to proceed, and the verb of a verdict; "" for any.
    filter: str = ""
    verb: str = ""
    limit: int = 50
    #: Only stories that are older than this one: its id.
    before: str = ""


@dataclass(slots=True)
class Passing:
    """How often, and how long, a filter decided at a phase in one way."""

    filter: str
    phase: str
    #: "proceed", "reject", ..., with "/failed" and "/dry" behind it.
    verb: str
    count: int = 0
    #: In total, and the longest.
    seconds: float = 0.0
    longest: float = 0.0
    #: The numbers for each of `BUCKETS`, and above.
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))

    def add(self, other: Passing) -> None:
        """Add those of another time."""
        self.count += other.count
        self.seconds += other.seconds
        self.longest = max(self.longest, other.longest)
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]


@dataclass(frozen=True, slots=True)
class Overview:
    """Sums over a time."""

    since: float
    until: float
    #: Seconds of a step, and for each step its start and the numbers by outcome.
    step: int
    steps: tuple[tuple[float, dict[str, int]], ...]
    outcomes: dict[str, int]
    #: For each step its start and the numbers of verdicts by verb, without those to proceed.
    verdict_steps: tuple[tuple[float, dict[str, int]], ...]
    #: The most frequent first.
    verdicts: tuple[Passing, ...]
    #: Filters, outcomes, reasons and numbers, the most frequent first.
    reasons: tuple[tuple[str, str, str, int], ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over a file: messages by outcome, and verdicts."""

    outcomes: dict[str, int]
    verdicts: list[Passing]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A sender, client or user, and what became of its mail."""

    word: str
    outcomes: dict[str, int]
    #: Messages by day, as in `2026-11-30`.
    days: dict[str, int]

    @property
    def count(self) -> int:
        """The number of messages."""
        return sum(self.outcomes.values())
