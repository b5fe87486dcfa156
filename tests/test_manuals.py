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
from smtpd_filters import settings
from smtpd_filters.filter import _EVENTS, Registration
from smtpd_filters.handlers import CONTENT
from smtpd_filters.mime.signatures import GROUPS, KINDS
from smtpd_filters.protocol.vocabulary import HANDLERS
from smtpd_filters.session import Session, Transaction
from smtpd_filters.supervise.program import main as supervise
from smtpd_filters.supervise.program import split_command

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


#: What mandoc says of the machine: that a page isn't installed, which the next test looks for, or
#: that its clock is behind.
HERE = ("referenced manual not found", "outdated mandoc.db lacks", "date in the future")
#: The manuals of others that ours refer to: of OpenBSD and of what they are about.
OTHERS = {
    *(
        "grep 1",
        "ps 1",
        "sh 1",
        "sysexits 3",
        "resolv.conf 5",
        "smtpd.conf 5",
        "table 5",
        "re_format 7",
    ),
    *(
        "smtpd-filters 7",
        "clamd 8",
        "clamd.conf 5",
        "dnsmasq 8",
        "postscreen 8",
        "rspamd 8",
        "smtpd 8",
        "spamd 8",
        "unbound 8",
    ),
    "unbound.conf 5",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_has_nothing_to_say(page: Path) -> None:
    mandoc = shutil.which("mandoc")
    assert mandoc, "mandoc is missing"
    done = subprocess.run(
        [mandoc, "-T", "lint", "-W", "all", str(page)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = (done.stdout + done.stderr).splitlines()
    assert [line for line in said if not any(text in line for text in HERE)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_it_fits_a_screen_of_eighty_columns(page: Path) -> None:
    command = ["mandoc", "-T", "ascii", "-O", "width=78", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shown = re.sub(r".\x08", "", done.stdout).splitlines()
    assert len(shown) > 50
    assert [line for line in shown if len(line) > 80] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_that_it_refers_to_exist(page: Path) -> None:
    known = OTHERS | {f"{page.stem} {page.suffix[1:]}" for page in PAGES}
    text = page.read_text("utf-8")
    assert set(re.findall(r"\bXr (\S+ \d)", text)) <= known - {f"{page.stem} {page.suffix[1:]}"}
    # "smtpd.conf(5)" in the midst of a text is one, too.
    named = {f"{name} {section}" for name, section in re.findall(r"([\w.-]+)\((\d)\)", text)}
    assert named <= known


@pytest.mark.parametrize("name", sorted(SCRIPTS.keys() - {"smtpd-filters"}))
def test_each_executable_has_a_page_with_all_its_options(name: str) -> None:
    text = (ROOT / "docs" / "man" / f"{name}.8").read_text("utf-8")
    assert f'.\\" begin options {name}\n' in text
    assert f'.\\" begin synopsis {name}\n' in text


@pytest.mark.parametrize("verb", list(MANUALS.verbs()), ids=lambda verb: str(verb.name))
def test_the_page_of_the_tool_has_all_its_verbs(verb: Any) -> None:
    text = (ROOT / "docs" / "man" / "smtpd-filters.8").read_text("utf-8")
    assert f"\n.Ss {verb.prog}\n" in text
    assert f'.\\" begin synopsis {verb.prog}\n' in text
    if any(option.flags for option in verb.options.options.values()):
        assert f'.\\" begin options {verb.prog}\n' in text


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
    known["smtpd-filters"] = {
        flag
        for verb in MANUALS.verbs()
        for option in verb.options.options.values()
        for flag in option.spellings()
    }
    # The arguments of the older filter of that name, which are read before the flags.
    known["filter-dnsbl"] |= {"-mv", "-w", "-d"}
    return {name: found | {"--help", "--version", "--"} for name, found in known.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_flag_that_a_page_names_is_one_of_its_program(page: Path) -> None:
    known = flags()
    own = known.get(page.stem) or set().union(*known.values())
    if page.stem == "filter-supervise":  # it names the short form as well
        own = own | known["filter-chain"]
    named = re.findall(r"\bFl (\S+)", page.read_text("utf-8"))
    assert {f"-{flag}".replace("\\-", "-") for flag in named} <= own


def test_the_options_of_the_supervisor_are_those_that_it_accepts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        supervise(["--help"])
    lines = re.findall(r"^  (-.*)", capsys.readouterr().out, re.MULTILINE)
    accepted = {flag for line in lines for flag in re.findall(r"(?:^|, )(-[\w-]+)", line)}
    assert accepted | {"--"} == flags()["filter-supervise"]


def commands(page: Path) -> list[str]:
    text = page.read_text("utf-8").replace("\\e\n", " ").replace("\\e", "\\")
    return re.findall(r'proc-exec "((?:[^"\\]|\\.)*)"', text)


def test_long_defaults_are_whole() -> None:
    page = (ROOT / "docs" / "man" / "filter-dkimsign.8").read_text()
    fields = "from:reply-to:subject:date:to:cc:resent-date:resent-from:resent-to:resent-cc:"
    assert fields in page.replace("\\:", "")


def test_the_page_of_the_content_filter_has_all_kinds_of_files() -> None:
    page = (ROOT / "docs" / "man" / "filter-content.8").read_text()
    listed = page.partition("Kinds by content:\n")[2].partition("\n.It ")[0]
    assert set(re.findall(r"(?m)^\.Ql (\S+)", listed)) == KINDS | GROUPS.keys()


def test_pages_have_examples() -> None:
    assert len([page for page in PAGES if commands(page)]) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_flag_of_an_example_is_one_of_the_program_in_it(page: Path) -> None:
    known = flags()
    unknown = []
    for command in commands(page):
        program, *words = shlex.split(command.replace('\\"', '"'))
        if program == "filter-supervise":
            words, inner = split_command(words)
            assert {word.partition("=")[0] for word in words if word[:1] == "-"} <= known[program]
            program, *words = inner
            if program not in SCRIPTS:  # another project's
                continue
        named = {word.partition("=")[0] for word in words if re.match("--?[A-Za-z]", word)}
        if not named <= known[program.rpartition("/")[2]]:
            unknown.append(command)
    assert unknown == []


def test_the_page_for_authors_has_every_handler_and_what_it_may_return() -> None:
    page = (ROOT / "docs" / "man" / "smtpd_filters.3").read_text("utf-8")
    said = {}
    for row, answers in re.findall(r"^\.It (Fn .*) Ta (.*)$", page, re.MULTILINE):
        for handler in re.findall(r"Fn (\w+)", row):
            said[handler] = set(answers.split(", "))
    legal = {name: {kind.verb for kind in phase.legal} for name, phase in HANDLERS.items()}
    legal |= {key: {"proceed", "junk", "reject", "disconnect"} for key in CONTENT}
    assert said == legal


def test_the_page_for_authors_has_what_a_filter_registers_and_its_events() -> None:
    page = (ROOT / "docs" / "man" / "smtpd_filters.3").read_text("utf-8")
    [life] = re.findall(r"(?s)^\.Ss A filter's life\n(.*?)^\.Ss", page, re.MULTILINE)
    events = set(re.findall(r"^\.It Fn (\w+)", life, re.MULTILINE))
    assert events == {*_EVENTS, "setup", "needs", "probes", "remove_forged"}
    [part] = re.findall(r"(?s)^\.Ss Registration\n(.*?)^\.Ss", page, re.MULTILINE)
    named = {
        word
        for row in re.findall(r"^\.It Fa (.*)$", part, re.MULTILINE)
        for word in row.split(" , ")
    }
    assert named == set(Registration.__slots__)


@pytest.mark.parametrize("name", smtpd_filters.__all__)
def test_the_page_for_authors_knows_every_public_name(name: str) -> None:
    page = (ROOT / "docs" / "man" / "smtpd_filters.3").read_text("utf-8")
    assert re.search(rf"\b{name}\b", page, re.IGNORECASE)


def test_what_the_page_for_authors_names_of_sessions_and_settings_exists() -> None:
    page = (ROOT / "docs" / "man" / "smtpd_filters.3").read_text("utf-8")
    named = set(re.findall(r"\bsession\.(\w+)", page))
    assert len(named) > 10
    assert named <= set(dir(Session))
    assert set(re.findall(r"\bsession\.tx\.(\w+)", page)) <= set(dir(Transaction))
    [part] = re.findall(r"(?s)^\.Ss Settings\n(.*?)^\.Ss", page, re.MULTILINE)
    kinds = set(re.findall(r"\b(?:Dv|Fn) (\w+)", part)) | set(re.findall(r"(?<= , )[A-Z]+", part))
    assert len(kinds) > 10
    assert kinds <= set(dir(settings)) - set(dir(object))
