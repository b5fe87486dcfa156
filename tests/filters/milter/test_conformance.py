"""The tables of docs/milter-conformance.md: each row names tests, and each command has its row."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from smtpd_filters.milter import vocabulary as v

TABLE = Path(__file__).parents[3] / "docs" / "milter-conformance.md"
ANSWERS = (*v.FINAL, *v.HEADER_EDITS, v.PROGRESS, v.REPLY_CODE, v.REPLACE_BODY, v.CHANGE_SENDER)
MORE = (v.ADD_RECIPIENT, v.ADD_RECIPIENT_WITH, v.DELETE_RECIPIENT, v.QUARANTINE)


def rows() -> list[list[str]]:
    """Return the cells of the rows of all tables."""
    lines = TABLE.read_text().splitlines()
    found = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line[:1] == "|"
    ]
    return [row for row in found if not row[0].startswith(("---", "Part of", "Milter"))]


def run(path: Path) -> set[str]:
    """Return the tests of a module that pytest runs: functions without a mark that skips them."""
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and not any(re.search(r"\b(skip|xfail)", ast.unparse(each)) for each in node.decorator_list)
    }


def test_every_row_of_the_tables_has_its_tests() -> None:
    root = TABLE.parents[1] / "tests"
    found = rows()
    assert len(found) > 30
    for row in found:
        assert len(row) == 4, row
        assert all(row), row
        named = re.findall(r"`(?:([a-z_/0-9]+\.py)::)?(test_\w+)`", row[3])
        assert named, row
        for file, test in named:
            assert test in run(root / (file or "filters/milter/test_policy.py")), test


def test_every_command_and_every_answer_is_in_the_table() -> None:
    first = " ".join(row[0] for row in rows())
    events = (v.NEGOTIATE, v.MACROS, *v.OMITTED, v.END_OF_BODY, v.ABORT, v.QUIT)
    for command in (*events, *ANSWERS, *MORE):
        assert f"`{command.decode()}`" in first, command
