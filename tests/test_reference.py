"""The tables and diagrams in docs/protocol.md, which `make reference` generates from the code."""

from __future__ import annotations

import re
import tomllib
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from smtpd_filters.protocol.vocabulary import PHASES

PAGE = Path(__file__).parent.parent / "docs" / "protocol.md"


def program() -> Any:
    path = PAGE.parents[1] / "packaging" / "update_protocol.py"
    loader = SourceFileLoader(path.stem, str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


MODULE = program()


def test_the_page_is_that_of_the_code() -> None:
    text = PAGE.read_text("utf-8")
    assert text == MODULE.page(text), "run make reference"


def test_every_state_leads_back_to_the_idle_one() -> None:
    edges = {edge for edge in MODULE.Explorer().edges if edge[0] != edge[1]}
    done = {"idle"}
    while more := {a for a, b in edges if b in done} - done:
        done |= more
    assert done == {state for edge in edges for state in edge}
    assert len(done) > 7


def test_an_answer_and_a_final_dot_are_written_once() -> None:
    edges = MODULE.Explorer().edges
    assert edges
    for (before, after), steps in edges.items():
        assert steps
        for step in steps:
            _, _, written = step.partition(" / ")
            answered = "pending" in before or (before, after) == ("idle, refused", "idle")
            assert (written == "filter-result") == answered
            dot = before.split(",")[0] in {"passing", "whole message"} and after.startswith("idle")
            assert (written == "final dot") == dot


def test_smtpd_requests_each_phase() -> None:
    asked = {phase for edge in MODULE.orders() for phase in edge} - {"[*]", "data-line"}
    assert asked == set(PHASES)


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
