"""docs/man holds a manual page for each executable, and their options are those declared."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

import smtpd_filters
from smtpd_filters.filter import CONTENT
from smtpd_filters.protocol.vocabulary import HANDLERS

ROOT = Path(__file__).parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]


def load() -> Any:
    """The program that writes the option lists."""
    loader = SourceFileLoader("update_manuals", str(ROOT / "packaging" / "update-manuals"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


MANUALS = load()
PAGES = list(MANUALS.pages())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_option_lists_are_those_of_the_declarations(page: Path) -> None:
    text = page.read_text("utf-8")
    assert MANUALS.update(text) == text, "run packaging/update-manuals"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_has_nothing_to_say(page: Path) -> None:
    mandoc = shutil.which("mandoc")
    assert mandoc, "mandoc is missing"
    done = subprocess.run(
        [mandoc, "-T", "lint", "-W", "warning", str(page)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_each_executable_has_a_page_with_all_its_options(name: str) -> None:
    text = (ROOT / "docs" / "man" / f"{name}.8").read_text("utf-8")
    if name != "smtpd-filters":
        assert f'.\\" begin options {name}\n' in text
        assert f'.\\" begin synopsis {name}\n' in text


def flags() -> dict[str, set[str]]:
    """The flags of each program, those of a tool with verbs together."""
    known = {
        name: {
            flag
            for cls in classes
            for option in cls.options.values()
            for flag in option.spellings()
        }
        for name, *classes in MANUALS.programs()
    }
    tool = {
        flag
        for _, parser in MANUALS.verbs()
        for each in parser._actions
        for flag in each.option_strings
    }
    known["smtpd-filters"] = tool
    # The arguments of the older filter of that name, which are read before the flags.
    known["filter-dnsbl"] |= {"-mv", "-w", "-d"}
    return {name: found | {"--help", "--version", "--"} for name, found in known.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_flag_that_a_page_names_is_one_of_its_program(page: Path) -> None:
    known = flags()
    own = known.get(page.stem) or set().union(*known.values())
    named = re.findall(r"\bFl (\S+)", page.read_text("utf-8"))
    assert {f"-{flag}".replace("\\-", "-") for flag in named} <= own


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_flag_of_an_example_is_one_of_the_program_in_it(page: Path) -> None:
    known = flags()
    text = page.read_text("utf-8").replace("\\e\n", " ").replace("\\e", "\\")
    for command in re.findall(r'proc-exec "((?:[^"\\]|\\.)*)"', text):
        program, *words = shlex.split(command.replace('\\"', '"'))
        named = {word.partition("=")[0] for word in words if re.match("--?[A-Za-z]", word)}
        assert named <= known[program.rpartition("/")[2]], command


def test_the_page_for_authors_has_every_handler_and_what_it_may_return() -> None:
    page = (ROOT / "docs" / "man" / "smtpd_filters.3").read_text("utf-8")
    said = {}
    for row, answers in re.findall(r"^\.It (Fn .*) Ta (.*)$", page, re.MULTILINE):
        for handler in re.findall(r"Fn (\w+)", row):
            said[handler] = set(answers.split(", "))
    legal = {name: {kind.verb for kind in phase.legal} for name, phase in HANDLERS.items()}
    legal |= {key: {"proceed", "junk", "reject", "disconnect"} for key in CONTENT}
    assert said == legal


@pytest.mark.parametrize("name", smtpd_filters.__all__)
def test_the_page_for_authors_knows_every_public_name(name: str) -> None:
    page = (ROOT / "docs" / "man" / "smtpd_filters.3").read_text("utf-8")
    assert re.search(rf"\b{name}\b", page, re.IGNORECASE)


def test_each_flag_that_the_page_on_moving_names_is_one_of_the_filter_beside_it() -> None:
    known = flags()
    every = set().union(*known.values())
    rows = re.findall(
        r"^\| .* \| (?:`(filter-\w+)`|each) \| (.*) \|$",
        (ROOT / "docs" / "migrating.md").read_text("utf-8"),
        re.MULTILINE,
    )
    assert len(rows) > 20
    for program, cell in rows:
        named = set(re.findall(r"(?<![\w`-])--?[a-zA-Z][\w-]*|(?<=`)--?[a-zA-Z][\w-]*", cell))
        assert named <= known.get(program, every), cell
