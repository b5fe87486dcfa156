"""Verdicts to proceed of a story, summed by who let the command pass, and their rows."""

from __future__ import annotations

from smtpd_filters.runtime.log import EXEMPT_FOR

from .wire import FILTER, LONGEST, PACKED, TOOK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    from .wire import Row

    class Source(Protocol):
        """Who decides: one handler of one filter."""

        filter: str
        phase: str
        dry: bool
        settings: object


class Group:
    """Filters of a chain that are called one after another at a phase, and all let pass."""

    __slots__ = ("filters", "phase")

    def __init__(self, phase: str, filters: Sequence[str]) -> None:
        self.phase = phase
        #: Their names, with blanks in between.
        self.filters = " ".join(filters)


def rows_of(passed: dict[Any, list[float]]) -> list[Row]:
    """Return rows for verdicts to proceed, those of one phase together.

    By the supervisor's clock, which advances once a round, a verdict may have begun before its
    session: its time is 0 then.
    """
    rows: list[Row] = []
    row: Row = []
    phase = ""
    exempt: dict[tuple[str, str, float], Row] = {}
    for source, (count, total, longest, since_start) in passed.items():
        at = max(0, int(since_start * 1000))
        if type(source) is tuple:
            _add_exempt(rows, exempt, source, [at, int(total * 1e6), count, longest])
            continue
        if type(source) is Group:
            rows.append([source.phase, at, int(total * 1e6), source.filters])
            if count > 1:
                rows[-1] += count, int(longest * 1e6)
            continue
        if count > 1:
            times = at, int(total * 1e6), count, int(longest * 1e6)
            rows.append([source.filter, source.phase, "proceed", *times])
            continue
        if source.phase != phase or len(row) > 2 * PACKED:
            phase = source.phase
            row = [phase, at]
            rows.append(row)
        row += source.filter, int(total * 1e6)
    return rows


def _add_exempt(
    rows: list[Row],
    exempt: dict[tuple[str, str, float], Row],
    source: tuple[Source, str],
    times: list[Any],
) -> None:
    """Add a filter for which the client is exempt: those with the same reason have one row."""
    who, why = source
    at, took, count, longest = times
    longest = int(longest * 1e6) if count > 1 else 0
    row = exempt.get((who.phase, why, count))
    if row is None:
        row = exempt[who.phase, why, count] = [
            who.filter, who.phase, "proceed", at, took, count, longest, f"{EXEMPT_FOR}{why}"
        ]  # fmt: skip
        rows.append(row)
    else:
        row[FILTER] += f" {who.filter}"
        row[TOOK] += took
        row[LONGEST] += longest
