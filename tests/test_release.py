"""The checks before a release: versions and dates, and the interface against the last one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from datetime import datetime
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# griffe runs git.
pytestmark = pytest.mark.processes


def load(name: str) -> Any:
    loader = SourceFileLoader(name, str(ROOT / "packaging" / f"{name}.py"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


RELEASE = load("release_check")
API = load("api_check")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that a release consists of, all of one date."""
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("packaging", "docs/man"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    [stamp] = re.findall(r"(?m)^ -- .*  (.*)$", RELEASE.debian(tmp_path))[:1]
    day = datetime.strptime(stamp, "%a, %d %b %Y %H:%M:%S %z").date()
    log = tmp_path / "CHANGELOG.md"
    log.write_text(re.sub(r"(?m)^(## \S+?),? .*$", rf"\1, {day}", log.read_text("utf-8"), count=1))
    for page in (tmp_path / "docs" / "man").iterdir():
        dated = f".Dd $Mdocdate: {day:%B} {day.day} {day.year} $\n"
        page.write_text(dated + page.read_text("utf-8").partition("\n")[2])
    return tmp_path


def complaints(root: Path) -> list[str]:
    return [*RELEASE.versions(root), *RELEASE.dates(root), *RELEASE.installed(root)]


def test_nothing_to_complain_about(tree: Path) -> None:
    assert complaints(tree) == []


def test_this_checkout_has_one_version() -> None:
    assert [*RELEASE.versions(ROOT), *RELEASE.installed(ROOT)] == []


VERSION = RELEASE.project_version(ROOT)
V = re.escape(VERSION)


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        ("CHANGELOG.md", rf"## {V}", "## 9.8.7", "CHANGELOG.md: first section 9.8.7: expected "),
        ("CHANGELOG.md", r"(?m)^## .*$", "", "CHANGELOG.md: first section missing: expected "),
        ("CHANGELOG.md", rf"(## {V}), .*", r"\1, unreleased",
         "CHANGELOG.md: date unreleased: expected YEAR-MONTH-DAY"),
        ("packaging/debian/changelog", rf"\({V}", "(9.8.7",
         "debian/changelog: version 9.8.7: expected "),
        ("packaging/debian/changelog", r"\A(?s:.*)", "", "debian/changelog: version missing: "),
        ("packaging/debian/changelog", r"  \w+, \d+ \w+ \d+ (?=\d\d:)", "  Fri, 02 Jan 2026 ",
         "debian/changelog: date 2026-01-02: expected "),
        ("packaging/debian/changelog", r"  \w+, (?=\d+ \w+ \d+ \d\d:)", "  Som, ",
         "debian/changelog: date Som, "),
        ("packaging/debian/changelog", r"unstable;", "UNRELEASED;",
         "debian/changelog: distribution UNRELEASED: expected unstable"),
        ("CHANGELOG.md", rf"## {V}, .*", f"## {VERSION}",
         "CHANGELOG.md: date missing: expected YEAR-MONTH-DAY"),
        ("packaging/freebsd/Makefile", "@VERSION@", "9.8.7",
         "freebsd/Makefile: DISTVERSION 9.8.7: expected @VERSION@"),
        ("packaging/openbsd/Makefile", r"MODPY_DISTV\s*=.*", "",
         "openbsd/Makefile: MODPY_DISTV : expected @VERSION@"),
        ("docs/man/filter-rcpt.8", r"Mdocdate: \w+ \d+", "Mdocdate: May 1",
         "docs/man/filter-rcpt.8: date $Mdocdate: May 1 "),
    ],
)  # fmt: skip
def test_each_mismatch_is_a_line(tree: Path, name: str, old: str, new: str, complaint: str) -> None:
    path = tree / name
    before = path.read_text("utf-8")
    path.write_text(re.sub(old, new, before, count=0 if new == "" else 1))
    assert path.read_text("utf-8") != before
    found = complaints(tree)
    assert found[0].startswith(complaint)
    # Without its first section a log has no date either.
    assert len(found) == (2 if re.search("(section|version) missing", complaint) else 1)


def test_the_dates_of_manual_pages_are_written(tree: Path) -> None:
    log = tree / "CHANGELOG.md"
    log.write_text(
        re.sub(rf"## {V}, .*", f"## {VERSION}, 2031-02-03", log.read_text("utf-8"), count=1)
    )
    pages = list((tree / "docs" / "man").iterdir())
    page = tree / "docs/man/filter-rcpt.8"
    before = page.read_text("utf-8").splitlines()
    assert len(complaints(tree)) == 1 + len(pages)
    RELEASE.write_dates(tree)
    assert [line.partition(":")[0] for line in complaints(tree)] == ["debian/changelog"]
    assert page.read_text("utf-8").splitlines() == [
        ".Dd $Mdocdate: February 3 2031 $",
        *before[1:],
    ]


def test_no_dates_are_written_before_the_release_has_one(tree: Path) -> None:
    log = tree / "CHANGELOG.md"
    log.write_text(re.sub(rf"(## {V}), .*", r"\1, unreleased", log.read_text("utf-8"), count=1))
    page = tree / "docs/man/filter-rcpt.8"
    before = page.read_text("utf-8")
    RELEASE.write_dates(tree)
    assert page.read_text("utf-8") == before


def test_another_version_of_the_project(tree: Path) -> None:
    path = tree / "pyproject.toml"
    path.write_text(re.sub(rf'version = "{V}"', 'version = "9.8"', path.read_text("utf-8")))
    assert [line.partition(":")[0] for line in complaints(tree)] == [
        "pyproject.toml",
        "CHANGELOG.md",
        "debian/changelog",
        "installed package",
    ]


def test_the_command(tree: Path) -> None:
    (tree / "smtpd_filters").mkdir()
    (tree / "smtpd_filters" / "__init__.py").write_text(EXPORTS)
    (tree / "smtpd_filters" / "inner.py").write_text(INNER)
    program = [sys.executable, str(ROOT / "packaging" / "release_check.py"), "--root", str(tree)]
    write = [
        sys.executable,
        str(ROOT / "packaging" / "api_check.py"),
        "--root",
        str(tree),
        "--write",
    ]
    subprocess.run(write, check=True)
    page = tree / "docs/man/filter-rcpt.8"
    page.write_text("." + page.read_text("utf-8"))
    done = subprocess.run([*program, "--write"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    snapshot = tree / "packaging" / "api.txt"
    text = snapshot.read_text("utf-8")
    snapshot.write_text(text.replace("    def kept(", "    def left("))
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert re.match(r"interface: since \S+: smtpd_filters.Policy.left: ", lines[0])
    assert lines[1] == "packaging/api.txt: out of date: run packaging/api_check.py --write"


# The interface

EXPORTS = """
from .inner import Policy, ask, LIMIT
__all__ = ["LIMIT", "Policy", "ask"]
"""
INNER = """
LIMIT = 5
class Base:
    def kept(self, one: int, /, two: str = "x", *, three: bool = False) -> None: ...
class Policy(Base):
    name: str = ""
    def __init__(self) -> None:
        self.made = 1
    @classmethod
    async def known(cls, one: int) -> int: ...
    @staticmethod
    def plain(one): ...
    @property
    def shown(self) -> int: ...
    def _private(self): ...
class Other: ...
def ask(question: str, *more: str, **others: int) -> str: ...
def unasked(): ...
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in {
        "pyproject.toml": '[project]\nversion = "1.2.3"\n',
        "smtpd_filters/__init__.py": EXPORTS,
        "smtpd_filters/inner.py": INNER,
        "packaging/api.txt": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert api(tmp_path, "--write") == 0
    return tmp_path


def api(root: Path, *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["api_check", "--root", str(root), *arguments])
        status: int = API.main()
    return status


def test_the_interface_as_a_stub(project: Path) -> None:
    assert (
        (project / "packaging" / "api.txt").read_text()
        == """\
# The interface of smtpd_filters 1.2.3, by packaging/api_check.py --write
__all__ = [
    'LIMIT',
    'Policy',
    'ask',
]

LIMIT = 5

class Policy(Base):
    def __init__(self) -> None: ...
    def kept(self, one: int, /, two: str = 'x', *, three: bool = False) -> None: ...
    @classmethod
    async def known(cls, one: int) -> int: ...
    made: object
    name: str = ''
    @staticmethod
    def plain(one): ...
    shown: int

def ask(question: str, *more: str, **others: int) -> str: ...
"""
    )


def test_nothing_has_changed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert api(project) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("__init__", '"LIMIT", ', ""),
        ("inner", "def kept(", "def left("),
        ("inner", "two: str", "too: str"),
        ("inner", 'two: str = "x"', "two: str"),
        ("inner", 'two: str = "x"', 'two: str = "y"'),
        ("inner", "one: int, /", "one: int, new: int, /"),
        ("inner", ", **others: int", ""),
        ("inner", "def plain(one)", "def plain()"),
        ("inner", "def shown(", "def hidden("),
        ("inner", "self.made", "self._made"),
        ("inner", "def ask(", "ask = 5\ndef asked("),
    ],
)
def test_what_breaks_a_filter(
    project: Path, name: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = project / "smtpd_filters" / f"{name}.py"
    text = module.read_text()
    assert text.count(old) == 1
    module.write_text(text.replace(old, new))
    if name == "__init__":
        module.write_text(module.read_text().replace(", LIMIT", ""))
    assert api(project) == 1
    assert re.match(r"since 1\.2\.3: smtpd_filters[\w.()]+: ", capsys.readouterr().out)
    # A new first number may break it; the report stays.
    (project / "pyproject.toml").write_text('[project]\nversion = "2.0.0"\n')
    assert api(project) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 5", "LIMIT = 6"),
        ("class Other: ...", "class Another: ..."),
        ("def _private", "def _secret"),
        ("three: bool = False", "three: bool = False, four: int = 4"),
        ("class Base:", "class Base:\n    def more(self): ..."),
    ],
)
def test_what_breaks_nothing(project: Path, old: str, new: str) -> None:
    module = project / "smtpd_filters" / "inner.py"
    module.write_text(module.read_text().replace(old, new))
    assert api(project) == 0
    assert api(project, "--print") == 0


def test_a_file_that_was_not_written_by_it(project: Path) -> None:
    (project / "packaging" / "api.txt").write_text("class Policy: ...\n")
    with pytest.raises(SystemExit, match=r"packaging/api\.txt: invalid: write it"):
        api(project)
