from __future__ import annotations

from pathlib import Path

from tests.filters.greylist.simulation import table

PAGE = Path(__file__).parents[3] / "docs" / "decisions" / "greylisting.md"


def test_the_table_of_the_documentation_is_that_of_the_simulation() -> None:
    assert table() in PAGE.read_text("utf-8")
