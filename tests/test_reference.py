"""The tables in docs/protocol.md, which are generated from the code.

`python tests/test_reference.py` updates them.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters.oracle.rules import RULES
from smtpd_filters.protocol.decisions import Disconnect, Junk, Proceed, Reject, Rewrite
from smtpd_filters.protocol.versions import DIALECTS
from smtpd_filters.protocol.vocabulary import PHASES, REPORTS

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = Path(__file__).parent.parent / "docs" / "protocol.md"
BEGIN, END = "<!-- made from the code: begin -->\n", "<!-- made from the code: end -->\n"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def tables() -> str:
    kinds = (Proceed, Junk, Reject, Disconnect, Rewrite)
    phases = [
        (
            f"`{phase.name}`",
            f"`{phase.handler}({f'session, {phase.argument}' if phase.argument else 'session'})`",
            *("yes" if kind in phase.legal else "" for kind in kinds),
            ", ".join(phase.fallbacks),
            phase.fallbacks["tempfail"].text,
        )
        for phase in PHASES.values()
    ]
    reports = [
        (
            f"`{name}`",
            *(" ".join(dialect.reports[name.encode()].fields) for dialect in DIALECTS.values()),
        )
        for name in REPORTS
    ]
    fatal = [(rule.kind.name.lower().replace("_", " "), rule.why) for rule in RULES.values()]
    words = ("proceed", "junk", "reject", "disconnect", "rewrite")
    return "\n".join(
        (
            "## Phases and their legal decisions\n",
            table(("phase", "handler", *words, "`--on-error`", "its tempfail"), phases),
            "## Reports and their fields\n",
            table(("report", *(f"protocol {d.name}" for d in DIALECTS.values())), reports),
            "## How smtpd reacts to a filter's mistakes\n",
            table(("effect", "mistake"), fatal),
        )
    )


def test_the_page_has_the_tables_of_the_code() -> None:
    text = PAGE.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == tables()


def test_the_architecture_shows_the_layers_that_are_enforced() -> None:
    text = (PAGE.parent / "architecture.md").read_text()
    drawn = re.search(r"^```\n( cli\|.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert drawn
    contracts = tomllib.loads((PAGE.parents[1] / "pyproject.toml").read_text())["tool"][
        "importlinter"
    ]["contracts"]
    layers = [layer.replace(" ", "") for layer in contracts[0]["layers"]]
    assert [line.split()[0] for line in drawn[1].splitlines()] == layers


def test_the_modules_that_pages_name_exist() -> None:
    root = PAGE.parents[1]
    for name in ("architecture.md", "security.md"):
        text = (PAGE.parent / name).read_text()
        named = re.findall(r"\b(?:\w+/)*\w+\.py\b|(?<=`)(?:\w+/)+(?=`)", text)
        assert named
        for path in named:
            assert (root / "smtpd_filters" / path).exists() or (root / path).exists(), path


def test_the_oracle_states_the_rules_by_itself() -> None:
    folder = PAGE.parents[1] / "smtpd_filters" / "oracle"
    imports = re.compile(r"^\s*(?:from|import) ([\w.]+)", re.MULTILINE)
    used = {name for file in folder.glob("*.py") for name in imports.findall(file.read_text())}
    assert used
    assert {name for name in used if name.startswith("smtpd_filters")} == set()
    assert {name.lstrip(".") for name in used if name.startswith(".")} <= {
        file.stem for file in folder.glob("*.py")
    }


if __name__ == "__main__":
    page = PAGE.read_text()
    before, after = page[: page.index(BEGIN)], page[page.index(END) :]
    PAGE.write_text(f"{before}{BEGIN}{tables()}{after}")
