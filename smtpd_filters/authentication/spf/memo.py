"""Verdicts of recent evaluations, which hold as long as the DNS has the same answers.

Invariants
----------
*Same inputs, same verdict*: a verdict is returned only for the client, the domain and the outcomes
that it was found with. One that depends on more, by a macro, is not kept, nor a temperror.
*Bounded*: in entries, and in the size of the outcomes of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smtpd_filters.lookups.cache import size_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smtpd_filters.authentication.inquiry import Known, Question
    from smtpd_filters.lookups.outcome import Outcome

    from . import Verdict

#: Verdicts that are kept; bytes and number of the outcomes of one.
MAX_ENTRIES, MAX_SIZE, MAX_OUTCOMES = 512, 8192, 12
#: The macros whose value is the client's address, the domain, or found by look-ups.
_FIXED = frozenset("idovpr")


class Memo:
    """At most `max_entries` verdicts by client, domain and receiver, least recently used first."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._entries: dict[
            tuple[str, str, str], tuple[Verdict, tuple[tuple[Question, Outcome[Any]], ...]]
        ] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: tuple[str, str, str], cached: Known) -> Verdict | None:
        """Return the verdict if each outcome is still the one that `cached` returns."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        verdict, outcomes = entry
        for question, outcome in outcomes:
            if cached(*question) is not outcome:
                return None
        self._entries[key] = entry
        return verdict

    def put(
        self,
        key: tuple[str, str, str],
        verdict: Verdict,
        letters: set[str],
        outcomes: Mapping[Question, Outcome[Any]],
    ) -> None:
        """Keep a verdict, unless it depends on more than these outcomes.

        `letters` are the macros that were expanded.
        """
        if not letters <= _FIXED or verdict.result == "temperror" or len(outcomes) > MAX_OUTCOMES:
            return
        if sum(map(size_of, outcomes.values())) > MAX_SIZE:
            return
        self._entries[key] = verdict, tuple(outcomes.items())
        if len(self._entries) > self._max_entries:
            del self._entries[next(iter(self._entries))]


#: That of the process.
MEMO = Memo()
