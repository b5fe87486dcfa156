"""The entry points of the installed distributions, of which some may be broken.

`importlib.metadata.entry_points` fails for all if a single distribution's file can't be read.
"""

from __future__ import annotations

from importlib.metadata import EntryPoints, distributions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The group of entry points that are filters.
GROUP = "smtpd_filters.filters"


def entry_points_of(path: Sequence[str]) -> Iterator[tuple[str, EntryPoints, Exception | None]]:
    """Yield the name of each distribution below directories, its entry points, and its fault."""
    for each in distributions(path=list(path)):
        name = "?"
        try:
            name = each.metadata["Name"]
            found, fault = each.entry_points, None
        except Exception as error:  # noqa: BLE001  # their parsers raise TypeError and more
            found, fault = EntryPoints(), error
        yield name, found, fault
