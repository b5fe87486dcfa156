"""The shell completions for smtpd-filters, which are made from the declarations."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from smtpd_filters.cli import VERBS
from smtpd_filters.cli.listing import discover

ROOT = Path(__file__).parents[2]
FILES = ROOT / "packaging/completions"
NAMES = {cls.name for cls in discover()[0]} | {"chain", "supervise"}
BASH = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_smtpd_filters
printf '%s\\n' "${COMPREPLY[@]}"
"""


def lines(*command: str) -> set[str]:
    with tempfile.TemporaryDirectory() as home:  # fish makes directories there
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "HOME": home}
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment, cwd=FILES
        )
    assert done.stderr == ""
    return {line.partition("\t")[0] for line in done.stdout.splitlines() if line}


def bash(*words: str) -> set[str]:
    return lines("bash", "-c", BASH, "bash", str(FILES / "bash/smtpd-filters"), *words)


def fish(*words: str) -> set[str]:
    line = " ".join(words)
    source = str(FILES / "fish/smtpd-filters.fish")
    return lines("fish", "--no-config", "-c", f"source {source}; complete -C '{line}'")


SHELLS = [
    pytest.param(
        shell,
        marks=pytest.mark.skipif(
            shutil.which(shell.__name__) is None, reason=f"no {shell.__name__}"
        ),
        id=shell.__name__,
    )
    for shell in (bash, fish)
]


def test_the_files_are_up_to_date() -> None:
    program = str(ROOT / "packaging/make_completions.py")
    done = subprocess.run(
        [sys.executable, program, "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), "run packaging/make_completions.py"


@pytest.mark.parametrize("path", sorted(FILES.glob("*/*")), ids=lambda path: path.parent.name)
def test_the_shell_can_read_it(path: Path) -> None:
    shell = path.parent.name
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    assert lines(shell, "-n", str(path)) == set()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["smtpd-filters", ""], set(VERBS)),
        (["smtpd-filters", "re"], {"record", "reload", "replay"}),
        (["smtpd-filters", "learn", "r"], {"report", "revoke"}),
        (["smtpd-filters", "greylist", "f"], {"forget"}),
        (["smtpd-filters", "dkim", ""], {"keygen", "dns", "check", "rotate"}),
        (["smtpd-filters", "check", "--ch"], {"--chain", "--chains"}),
        (["smtpd-filters", "replay", "--protocol", ""], {"0.5", "0.6", "0.7"}),
        (["smtpd-filters", "run", "sender"], {"sender", "senderscore"}),
        (["smtpd-filters", "run", "fcrdns", "--veri"], {"--verify"}),
        (["smtpd-filters", "run", "filter-fcrdns", "--on-error", "te"], {"tempfail"}),
        (["smtpd-filters", "run", "chain", "--chec"], {"--check"}),
        (["smtpd-filters", "run", "supervise", "--register", "a"], {"all", "auto"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words(shell: object, words: list[str], expected: set[str]) -> None:
    assert callable(shell)
    found = shell(*words)
    if words[1:] == [""]:
        found -= {"--help", "--version"}
    # Behind what may be a file there are those of the directory, too.
    assert (
        found
        - {f"{path.name}/" for path in FILES.iterdir()}
        - {path.name for path in FILES.iterdir()}
        == expected
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_all_filters_have_help(shell: object) -> None:
    assert callable(shell)
    assert shell("smtpd-filters", "help", "") == NAMES | set(VERBS)
    assert shell("smtpd-filters", "run", "") == NAMES


@pytest.mark.parametrize("shell", SHELLS)
def test_files(shell: object) -> None:
    assert callable(shell)
    for words in (["check", "--config", "ba"], ["replay", "ba"], ["learn", "ham", "ba"]):
        assert {each.rstrip("/") for each in shell("smtpd-filters", *words)} == {"bash"}


def test_a_value_behind_an_equals_sign() -> None:
    assert bash("smtpd-filters", "replay", "--protocol", "=", "0.") == {"0.5", "0.6", "0.7"}
    assert bash("smtpd-filters", "replay", "--protocol", "=") == {"0.5", "0.6", "0.7"}
