"""The shell completions of all executables, which are made from the declarations."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.cli import VERBS
from smtpd_filters.cli.listing import discover
from tests.packaging.shells import BASH_COMPLETION, completing

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FILES = ROOT / "packaging/completions"
NAMES = {cls.name for cls in discover()[0]} | {"chain", "supervise"}
EXECUTABLES = {f"filter-{name}" for name in NAMES}


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home of the shells: fish makes directories there, and zsh looks for its functions once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


def lines(*command: str, **variables: str) -> set[str]:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", **variables},
        cwd=FILES,
        timeout=60,
    )
    assert done.stderr == ""
    return {line.partition("\t")[0] for line in done.stdout.splitlines() if line}


def bash(*words: str) -> set[str]:
    return lines(*completing("bash", FILES / "bash", words))


def zsh(*words: str) -> set[str]:
    found = lines(*completing("zsh", FILES / "zsh", words))
    return {line.removeprefix("+") for line in found if line.startswith("+")}


def fish(*words: str, path: Path = Path(sys.executable).parent) -> set[str]:
    """Complete in fish, which loads the files of programs that are in its PATH."""
    variables = {"PATH": f"{path}:{os.environ['PATH']}"}
    return lines(*completing("fish", FILES / "fish", words), **variables)


SHELLS = [
    pytest.param(
        shell,
        marks=pytest.mark.skipif(
            shutil.which(shell.__name__) is None, reason=f"no {shell.__name__}"
        ),
        id=shell.__name__,
    )
    for shell in (bash, zsh, fish)
]


def test_the_files_are_up_to_date() -> None:
    program = str(ROOT / "packaging/make_completions.py")
    done = subprocess.run(
        [sys.executable, program, "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), "run packaging/make_completions.py"


def test_the_files_of_a_former_filter_are_removed(tmp_path: Path) -> None:
    program = shutil.copy(ROOT / "packaging/make_completions.py", tmp_path)
    shutil.copytree(FILES, tmp_path / "completions")
    former = tmp_path / "completions/bash/filter-former"
    former.touch()
    for option, said in (("--check", "no longer made"), ("", "removed"), ("--check", "")):
        command = [sys.executable, program, *option.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout == (f"bash/filter-former: {said}\n" if said else "")
        assert done.returncode == (said == "no longer made")
    assert not former.exists()


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
        (["smtpd-filters", "auth", "--ser"], {"--server"}),
        (["smtpd-filters", "auth", "--", "--rep"], {"--report-to"}),
        (["smtpd-filters", "auth", "x", "--", "--on-error", "te"], {"tempfail"}),
        (["filter-fcrdns", "--re"], {"--reply", "--require"}),
        (["filter-fcrdns", "--on-error", "te"], {"tempfail"}),
        (["filter-senderscore", "-block"], {"-blockBelow", "-blockPhase"}),
        (["filter-chain", "--chec"], {"--check"}),
        (["filter-supervise", "--reg"], {"--register"}),
        (["filter-supervise", "--register", "a"], {"all", "auto"}),
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


def test_every_executable_is_completed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {*EXECUTABLES, "smtpd-filters"} == set(scripts)
    assert {path.name for path in (FILES / "bash").iterdir()} == set(scripts)
    assert {path.stem for path in (FILES / "fish").iterdir()} == set(scripts)
    first = (FILES / "zsh/_smtpd-filters").read_text().splitlines()[0]
    assert set(first.split()) == {"#compdef", *scripts}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_executables_have_the_flags_that_run_has(shell: object) -> None:
    assert callable(shell)
    for name in ("tls", "supervise"):
        assert shell(f"filter-{name}", "--") == shell("smtpd-filters", "run", name, "--")
        assert "--version" in shell(f"filter-{name}", "--")


@pytest.mark.parametrize("shell", SHELLS[:2])
def test_an_executable_by_its_path(shell: object) -> None:
    assert callable(shell)
    assert shell("/no/such/filter-fcrdns", "--veri") == {"--verify"}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "before",
    [
        "filter-supervise",
        "filter-supervise --",
        "filter-supervise -v --deadline 5 --verbose",
        "filter-supervise --on-error junk -- filter-supervise",
        "smtpd-filters run supervise --deadline 5",
        "smtpd-filters replay x --",
    ],
)
def test_the_command_of_another_program(shell: object, before: str) -> None:
    assert callable(shell)
    if shell is bash and not BASH_COMPLETION.exists():
        pytest.skip("no bash-completion")
    words = before.split()
    assert shell(*words, "filter-") >= EXECUTABLES
    assert shell(*words, "filter-tls", "--act") == {"--action"}
    assert shell(*words, "/no/such/filter-tls", "--action", "t") == {"tempfail"}
    assert shell(*words, "filter-tls", "--reg") == set()
    assert "sh" in shell(*words, "s")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_table_may_be_a_file(shell: object) -> None:
    assert callable(shell)
    words = {"local", "socket", "authenticated"}
    found = {each.rstrip("/") for each in shell("filter-tls", "--exempt", "")}
    assert found == words | {path.name for path in FILES.iterdir()}
    assert {each.rstrip("/") for each in shell("filter-rcpt", "--domains", "ba")} == {"bash"}


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish_completes_a_command_outside_the_path(tmp_path: Path) -> None:
    for name in ("smtpd-filters", "filter-supervise"):
        (tmp_path / name).touch(mode=0o755)
    assert shutil.which("filter-tls") is None
    assert fish("filter-supervise", "filter-tls", "--act", path=tmp_path) == {"--action"}


def test_the_command_of_another_program_behind_equals_signs() -> None:
    words = ("filter-supervise", "--deadline", "=", "5", "--verbose", "=", "false")
    assert bash(*words, "filter-") >= EXECUTABLES
    assert bash(*words, "--reg") == {"--register"}
    assert bash(*words, "--register", "=") == {"all", "auto"}
    assert bash(*words, "--register", "=", "au") == {"auto"}


def test_a_value_behind_an_equals_sign() -> None:
    assert bash("smtpd-filters", "replay", "--protocol", "=", "0.") == {"0.5", "0.6", "0.7"}
    assert bash("smtpd-filters", "replay", "--protocol", "=") == {"0.5", "0.6", "0.7"}
