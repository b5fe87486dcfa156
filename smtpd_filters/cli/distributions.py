"""The entry points of the installed distributions, of which some may be broken.

`importlib.metadata.entry_points` fails for all if a single distribution's file can't be read.
"""

from __future__ import annotations

import contextlib
from importlib.metadata import EntryPoints, distributions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The group of entry points that are filters.
GROUP = "smtpd_filters.filters"


def entry_points_of(path: Sequence[str]) -> Iterator[tuple[EntryPoints, str, Exception | None]]:
    """Yield the entry points of each distribution below directories, "" and None.

    If the entry points of a distribution can't be read, yield none, its name and the error.
    """
    for each in distributions(path=list(path)):
        found, name, fault = EntryPoints(), "", None
        try:
            found = each.entry_points
        except Exception as error:  # noqa: BLE001  # their parser raises TypeError and more
            fault = error
            with contextlib.suppress(Exception):
                name = each.metadata["Name"]
        yield found, name, fault
