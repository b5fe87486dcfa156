"""The ports: their recipes run here, with a make of the BSDs and a stand-in for the framework.

What only a BSD can show is marked in packaging/README.md.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

from tests.packaging.conftest import Dist, make_dist
from tests.packaging.test_dist import unpack

LOCAL = "/usr/local"
SITE = f"{LOCAL}/lib/python3.99/site-packages"
PYCACHE = "${MODPY_PYCACHE}"  # __pycache__, with its slash
INSTALL = dict.fromkeys(("INSTALL_MAN", "INSTALL_DATA"), "install -m 444")
FREEBSD = {
    **INSTALL,
    "CP": "cp",
    "MKDIR": "mkdir -p",
    "ECHO_CMD": "echo",
    "REINPLACE_CMD": "sed -i.bak",
    "FIND": "find",
    "SED": "sed",
    "SORT": "sort",
    "COPYTREE_SHARE": "sh -c 'cp -R $$1 $$2' sh",
    "PREFIX": LOCAL,
    "DOCSDIR": f"{LOCAL}/share/doc/smtpd-filters",
    "EXAMPLESDIR": f"{LOCAL}/share/examples/smtpd-filters",
    "PYTHON_CMD": sys.executable,
    "PYTHON_SITELIBDIR": SITE,
}
OPENBSD = {
    **INSTALL,
    "INSTALL_MAN_DIR": "install -d",
    "INSTALL_DATA_DIR": "install -d",
    "TRUEPREFIX": LOCAL,
    "MODPY_BIN": sys.executable,
    "MODPY_SITEPKG": SITE,
}


class Port(NamedTuple):
    """A port, and what its recipes have made."""

    directory: Path
    source: Path
    stage: Path
    wheel: Path

    def staged(self) -> set[str]:
        """The files that were installed."""
        return {str(p.relative_to(self.stage)) for p in self.stage.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def ports(dist: Dist, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("ports")
    program = str(dist.source / "packaging/make_ports.py")
    command = [sys.executable, "-B", program, str(dist.sdist), str(dist.wheel), str(output)]
    subprocess.run(command, check=True, capture_output=True)
    return output


def made(dist: Dist, directory: Path, work: Path, variables: dict[str, str]) -> Port:
    """Run post-patch, build what the framework would, and run post-install."""
    bmake = shutil.which("bmake")
    if not bmake:
        if os.environ.get("SMTPD_FILTERS_E2E") == "required":
            pytest.fail("no bmake", pytrace=False)
        pytest.skip("no bmake")
    unpack(dist.sdist, work)
    [source] = work.iterdir()
    stage, framework, wheels = work / "stage", work / "mk", work / "wheels"
    for made_directory in (stage, framework, wheels):
        made_directory.mkdir()
    for name in ("bsd.port.mk", "sys.mk"):
        (framework / name).touch()
    given = {
        "WRKSRC": source,
        "WRKDIR": work,
        "STAGEDIR": stage,
        "TMPPLIST": work / "plist",
        "WRKINST": stage,
        "PREFIX": f"{stage}{LOCAL}",
        **variables,
    }
    command = [bmake, "-m", str(framework), *(f"{name}={value}" for name, value in given.items())]
    options = ("post-install-DOCS-on", "post-install-EXAMPLES-on")
    for target in ("post-patch", "post-install", *(options if variables is FREEBSD else ())):
        if target == "post-install":
            wheel = make_dist(source, wheels).wheel
        done = subprocess.run(
            [*command, target], cwd=directory, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return Port(directory, source, stage, wheel)


def check_wheel(port: Port, dist: Dist) -> None:
    """The port's wheel is ours, without scripts."""
    with zipfile.ZipFile(port.wheel) as theirs, zipfile.ZipFile(dist.wheel) as ours:
        missing = set(ours.namelist()) - set(theirs.namelist())
    assert {name.rpartition("/")[2] for name in missing} == {"entry_points.txt"}


def test_freebsds_recipes_install_what_they_list(ports: Path, dist: Dist, tmp_path: Path) -> None:
    port = made(dist, ports / "freebsd", tmp_path, FREEBSD)
    check_wheel(port, dist)
    listed = (tmp_path / "plist").read_text().splitlines()
    listed.remove("@dir(_smtpd,_smtpd,0750) /var/db/smtpd-filters")
    # The framework compresses manual pages; a name is relative to the prefix.
    files = {str(Path(LOCAL, path))[1:].removesuffix(".gz") for path in listed}
    assert files == port.staged()
    pages = {page.name for page in (dist.source / "docs/man").glob("*.[1-9]")}
    assert {Path(path).name for path in files if "/man/" in path} == pages


def test_openbsds_packing_list_is_what_its_recipes_install(
    ports: Path, dist: Dist, tmp_path: Path
) -> None:
    port = made(dist, ports / "openbsd", tmp_path, OPENBSD)
    check_wheel(port, dist)
    lines = (port.directory / "pkg/PLIST").read_text().splitlines()
    files = {line.removeprefix("@man ") for line in lines if not line.endswith("/")}
    files = {line for line in files if not line.startswith("@") and not line.endswith(PYCACHE)}
    files.remove("share/doc/pkg-readmes/${PKGSTEM}")  # the framework's, from pkg/README
    site = "lib/python${MODPY_VERSION}/site-packages/"
    version = tomllib.loads((dist.source / "pyproject.toml").read_text())["project"]["version"]
    modules = {
        line.removeprefix(site).replace("${MODPY_DISTV}", version)
        for line in files
        if line.startswith(site)
    }
    with zipfile.ZipFile(port.wheel) as archive:
        names = set(archive.namelist())
    compiled = {line for line in modules if PYCACHE in line}
    assert modules - compiled == names
    for extension in ("pyc", "${MODPY_PYOEXTENSION}"):
        assert {line for line in compiled if line.endswith(f"G}}{extension}")} == {
            f"{path.parent}/{PYCACHE}{path.stem}.${{MODPY_PYC_MAGIC_TAG}}{extension}"
            for path in map(PurePosixPath, names)
            if path.suffix == ".py"
        }
    rest = {f"{LOCAL[1:]}/{line}" for line in files if not line.startswith(site)}
    assert rest == port.staged()
    # Directories are packed too; the one for state belongs to the user of filters.
    assert lines[-1] == "@sample /var/db/smtpd-filters/"
    assert lines[-4:-1] == ["@mode 0750", "@owner _smtpd", "@group _smtpd"]


def test_the_sums_are_those_of_the_sdist(ports: Path, dist: Dist) -> None:
    content = dist.sdist.read_bytes()
    digest, name = hashlib.sha256(content), dist.sdist.name
    size = f"SIZE ({name}) = {len(content)}"
    free = (ports / "freebsd/distinfo").read_text().splitlines()
    assert free[1:] == [f"SHA256 ({name}) = {digest.hexdigest()}", size]
    openbsd = (ports / "openbsd/distinfo").read_text().splitlines()
    assert openbsd == [f"SHA256 ({name}) = {base64.b64encode(digest.digest()).decode()}", size]


@pytest.mark.parametrize("system", ["freebsd", "openbsd"])
def test_a_port_has_the_projects_version_and_dependencies(
    ports: Path, dist: Dist, system: str
) -> None:
    project = tomllib.loads((dist.source / "pyproject.toml").read_text())["project"]
    text = (ports / system / "Makefile").read_text()
    assert re.search(rf"(?m)^(DISTVERSION|MODPY_DISTV)\s*=\s*{project['version']}$", text)
    assert project["maintainers"][0]["email"] in text
    [needed] = re.findall(r"(?m)^RUN_DEPENDS\s*=\s*((?:.*\\\n)*.*)$", text)
    bounds = set()
    for entry in needed.replace("\\\n", " ").split():
        if system == "freebsd":
            name, _, rest = entry.partition(">=")
            bounds.add((name.rpartition("}")[2], rest.partition(":")[0]))
        else:
            path, _, version = entry.partition(">=")
            # OpenBSD names the package of pyspf after its module.
            bounds.add((path.partition("/py-")[2].replace("spf", "pyspf"), version))
    bounds.discard(("opensmtpd", "6.6.4"))
    bounds.discard(("sqlite3", "0"))  # FreeBSD has it apart from Python
    assert bounds == {
        # Ports have one version of each package; an upper bound is their maintainers' business.
        tuple(text.partition(",")[0].split(">="))
        for text in project["dependencies"]
    }


def test_readme_and_description_fit_the_screen(ports: Path) -> None:
    for path in (
        "freebsd/pkg-descr",
        "freebsd/pkg-message",
        "openbsd/pkg/DESCR",
        "openbsd/pkg/README",
    ):
        text = (ports / path).read_text("ascii")
        assert all(len(line) <= 80 for line in text.splitlines())
    assert "${PKGSTEM}" in (ports / "openbsd/pkg/README").read_text()
