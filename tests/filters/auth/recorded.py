"""The rows of a day, as the reports on it have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.filters.auth.reporting import most_frequent, results_on

if TYPE_CHECKING:
    from smtpd_filters.authentication.dmarc.reports import Published, Row
    from smtpd_filters.stores import Store


async def rows_on(store: Store, day: str) -> dict[str, tuple[Published, list[tuple[Row, int]]]]:
    """Return the policies that were applied on a day, by their domains, with rows and counts."""
    found = await results_on(store, day)
    return {
        name: (each.published, await most_frequent(store, each)) for name, each in found.items()
    }
