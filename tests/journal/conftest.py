"""Fixtures of the tests of the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .deciding import Deciding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .deciding import Decide


@pytest.fixture
def decide() -> Iterator[Decide]:
    """Return a function that makes a process of some filters; all end with the test."""
    made: list[Deciding] = []

    def make(*filters: object, **more: object) -> Deciding:
        made.append(Deciding(*filters, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()
