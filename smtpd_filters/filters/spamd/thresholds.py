"""Thresholds of scores: a number, spamd's own threshold, or none."""

from __future__ import annotations

from itertools import pairwise

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.outcome import Value
from smtpd_filters.lookups.spamd import MAX_SCORE
from smtpd_filters.settings import NUMBER, Kind
from smtpd_filters.settings.quoting import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: What spamd calls spam: a score of at least its required_score. No score at all.
SPAM, NEVER = WORDS = ("spam", "never")
_SCORE = NUMBER(low=-MAX_SCORE, high=MAX_SCORE)


class Threshold(Value):
    """A threshold: a `word` of WORDS, or the `score` from which it is reached."""

    __match_args__ = ("word", "score")
    __slots__ = __match_args__

    def __init__(self, word: str = "", score: float = 0.0) -> None:
        self.word = word
        self.score = score

    def reached(self, score: float, *, is_spam: bool) -> bool:
        """Return whether a score reaches it; `is_spam` is spamd's own verdict."""
        if self.word:
            return self.word == SPAM and is_spam
        return score >= self.score

    def __str__(self) -> str:
        return self.word or f"{self.score:g}"


class _ThresholdKind(Kind[Threshold]):
    inward = True
    metavar = "SCORE|spam|never"
    noun = "a score, spam or never"
    toml = (int, float, str)

    def parse(self, text: str) -> Threshold:
        if text in WORDS:
            return Threshold(text)
        try:
            return Threshold(score=_SCORE.parse(text))
        except ValueError as error:
            if str(error).startswith("must be"):
                raise
            raise ValueError(f"expected {self.noun}, not {quote(text)}") from None

    def show(self, value: Threshold) -> str:
        return value.word or _SCORE.show(value.score)


THRESHOLD = _ThresholdKind()


def check_order(named: Sequence[tuple[str, Threshold]]) -> None:
    """Raise ConfigError unless the scores among thresholds rise; flags name them."""
    scores = [(flag, each.score) for flag, each in named if not each.word]
    for (milder, low), (stricter, high) in pairwise(scores):
        if low >= high:
            raise ConfigError(f"{milder} {low:g}: must be below {stricter} {high:g}")
