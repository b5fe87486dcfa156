"""The wheel, the sdist and the FreeBSD package: what is in them, and that it is always the same."""

from __future__ import annotations

import email
import hashlib
import importlib.util
import json
import marshal
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.testing.server import Lab, root_of
from tests.packaging.conftest import Dist, another_day, copy_of, make_dist
from tests.packaging.roots import Machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PREFIX = "/usr/local"


def project(dist: Dist) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((dist.source / "pyproject.toml").read_text())["project"]
    return found


def make_pkg(dist: Dist, output: Path, *options: str) -> Path:
    program = str(dist.source / "packaging/make_pkg.py")
    done = subprocess.run(
        [sys.executable, "-B", program, *options, str(dist.wheel), str(output)],
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(done.stdout.strip())


def own_version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(scope="module")
def pkg(dist: Dist, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pkg(dist, tmp_path_factory.mktemp("pkg"), "--python", own_version())


def unpack(archive: Path, target: Path) -> None:
    """Write the files of an archive below a directory; 3.11.2 has no extraction filters yet."""
    with tarfile.open(archive) as opened_archive:
        for member in opened_archive:
            if file := opened_archive.extractfile(member):
                path = target / member.name.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())


# -- the wheel and the sdist -----------------------------------------------------------------------


def test_the_same_sources_make_the_same_bytes(dist: Dist, pkg: Path, tmp_path: Path) -> None:
    source = copy_of(dist.source, tmp_path / "another name")
    another_day(source)
    for path in (source / "README.md", source / "smtpd_filters/chain/chain.py"):
        path.chmod(0o600)
    (tmp_path / "made").mkdir()
    again = make_dist(source, tmp_path / "made", TZ="Asia/Tokyo", PYTHONHASHSEED="7", LC_ALL="C")
    assert again.wheel.read_bytes() == dist.wheel.read_bytes()
    assert again.sdist.read_bytes() == dist.sdist.read_bytes()
    made = make_pkg(again, tmp_path / "made", "--python", own_version())
    assert made.read_bytes() == pkg.read_bytes()


@pytest.mark.e2e
def test_each_releases_python_makes_the_same_bytes(dist: Dist, version: str) -> None:
    """With this hatchling; Debian's own is another in each release."""
    binds = {"/srv/source": dist.source, "/srv/libraries": Path(sysconfig.get_path("purelib"))}
    with Lab(root=root_of(version), binds=binds) as lab:
        python = ("env", "PYTHONPATH=/srv/libraries", "PYTHONDONTWRITEBYTECODE=1", "python3")
        build = 'cd /srv/source && exec "$@" -m hatchling build -d /tmp/made'
        lab.run("sh", "-c", build, "sh", *python)
        for made in (dist.wheel, dist.sdist):
            assert lab.path(f"/tmp/made/{made.name}").read_bytes() == made.read_bytes()  # noqa: S108  # the lab's


def test_the_date_of_files_is_that_of_the_environment(dist: Dist, tmp_path: Path) -> None:
    made = make_dist(dist.source, tmp_path, SOURCE_DATE_EPOCH="1700000000")
    with tarfile.open(made.sdist) as archive:
        assert {member.mtime for member in archive} == {1700000000}


def test_the_sdist_holds_what_building_needs_and_nothing_else(dist: Dist, tmp_path: Path) -> None:
    with tarfile.open(dist.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    unpack(dist.sdist, tmp_path)
    top = {"pyproject.toml", "PKG-INFO", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore"}
    below = ("smtpd_filters/", "docs/", "packaging/completions/", "packaging/dovecot/")
    rest = {name for name in names if not name.startswith(below)}
    assert rest - top == {"packaging/launchers.py"}
    assert {name for name in names if "__pycache__" in name} == set()
    # All modules, and the same wheel from it.
    modules = (dist.source / "smtpd_filters").rglob("*.py")
    assert {str(path.relative_to(dist.source)) for path in modules} <= names
    [unpacked] = tmp_path.iterdir()
    (tmp_path / "made").mkdir()
    assert make_dist(unpacked, tmp_path / "made").wheel.read_bytes() == dist.wheel.read_bytes()


def parts(dependency: str) -> tuple[str, frozenset[str]]:
    """The name of a dependency and its bounds."""
    found = re.fullmatch(r"([\w-]+)(.*)", dependency)
    assert found
    return found[1], frozenset(found[2].split(","))


def test_the_wheel_holds_the_package_and_its_scripts(dist: Dist) -> None:
    with zipfile.ZipFile(dist.wheel) as archive:
        names = set(archive.namelist())
        [points] = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        scripts = archive.read(points).decode()
        fields = email.message_from_bytes(archive.read(metadata))
    info = points.partition("/")[0]
    assert {name.partition("/")[0] for name in names} == {"smtpd_filters", info}
    for name, entry in project(dist)["scripts"].items():
        assert f"{name} = {entry}" in scripts.splitlines()
    needed = [text for text in fields.get_all("Requires-Dist", []) if "extra" not in text]
    # The bounds of one dependency are written in an order of the builder's.
    assert {parts(text) for text in needed} == {parts(t) for t in project(dist)["dependencies"]}


@pytest.mark.e2e
def test_pip_and_pipx_install_it(dist: Dist, tmp_path: Path) -> None:
    """On Debian 13, whose packages satisfy what the metadata asks for, without any network."""
    machine = Machine.clean("trixie", tmp_path / "root")
    modules = ("aiohttp", "dkim", "dnspython", "redis", "spf", "hatchling", "venv")
    machine.apt("install", "pipx", *(f"python3-{name}" for name in modules))
    wheel, sdist = machine.put(dist.wheel), machine.put(dist.sdist)
    # Nothing but the pip that venv has, too.
    pip = ("PIP_NO_INDEX=1", "PIP_FIND_LINKS=/usr/share/python-wheels")
    offline = ("env", *pip, "unshare", "--net")
    scripts = project(dist)["scripts"]
    each = ("sh", "-euc", 'for name in "$@"; do "$0/$name" --help; done')
    for number, (what, *options) in enumerate([(wheel,), (sdist, "--no-build-isolation")]):
        made = f"/opt/venv{number}"
        machine.run("python3", "-m", "venv", "--system-site-packages", made)
        machine.run(*offline, f"{made}/bin/pip", "install", *options, what)
        # Some of Debian's own packages are not complete in pip's eyes.
        assert "smtpd-filters" not in machine.run(f"{made}/bin/pip", "check", check=False)
        machine.run(*each, f"{made}/bin", *scripts)
    # Where smtpd's user can read it, as packaging/README.md has it.
    pipx = (*offline, "env", "PIPX_HOME=/opt/pipx", "PIPX_BIN_DIR=/usr/local/bin", "pipx")
    machine.run(*pipx, "install", "--system-site-packages", wheel)
    machine.run("runuser", "-u", "nobody", "--", *each, "/usr/local/bin", *scripts)
    machine.run(*pipx, "uninstall", "smtpd-filters")
    machine.remove()


# -- the FreeBSD package ---------------------------------------------------------------------------


@cache  # reading it takes most of the time of what looks at it
def opened(pkg: Path) -> tuple[Sequence[tarfile.TarInfo], Mapping[str, bytes]]:
    """The members of a package in order, and the content of its files."""
    with tarfile.open(pkg, "r:xz") as archive:
        members = archive.getmembers()
        contents = {}
        for member in members:
            if file := archive.extractfile(member):
                contents[member.name] = file.read()
    return members, contents


#: What libpkg/pkg_manifest.c knows of our keys, and the types it takes them with.
TYPES: dict[str, type] = {
    **dict.fromkeys(("name", "origin", "version", "comment", "maintainer", "www"), str),
    **dict.fromkeys(("abi", "arch", "prefix", "licenselogic", "desc"), str),
    **dict.fromkeys(("licenses", "categories", "users", "groups", "messages"), list),
    **dict.fromkeys(("deps", "files", "directories", "scripts"), dict),
    "flatsize": int,
}


def test_the_manifests_come_first_and_agree(pkg: Path) -> None:
    members, contents = opened(pkg)
    assert [member.name for member in members[:2]] == ["+COMPACT_MANIFEST", "+MANIFEST"]
    short = json.loads(contents["+COMPACT_MANIFEST"])
    whole = json.loads(contents["+MANIFEST"])
    assert {key: whole[key] for key in short} == short
    assert whole.keys() - short.keys() == {"files", "directories", "scripts"}
    assert {key: type(value) for key, value in whole.items()} == TYPES
    assert all(whole.values())
    # What pkg takes for encoded as in a URL.
    decoded = (*whole["files"], *whole["directories"], *whole["scripts"].values())
    assert not any("%" in text for text in (short["desc"], *decoded))
    assert short["prefix"] == PREFIX
    assert (short["licenselogic"], short["licenses"]) == ("single", ["ISCL"])


def test_every_file_is_in_the_manifest_with_its_sum(pkg: Path) -> None:
    members, contents = opened(pkg)
    whole = json.loads(contents["+MANIFEST"])
    files = {name: text for name, text in contents.items() if not name.startswith("+")}
    assert whole["files"] == {
        name: f"1${hashlib.sha256(content).hexdigest()}" for name, content in files.items()
    }
    assert whole["flatsize"] == sum(map(len, files.values()))
    assert all(name.startswith(f"{PREFIX}/") for name in files)
    for member in members:
        if member.isfile():
            assert (member.uname, member.gname) == ("root", "wheel")
            executable = re.search("/bin/|/libexec/|/rc.d/|/rspamd-learn$", member.name)
            assert member.mode == (0o755 if executable else 0o644)


def test_the_state_directory_belongs_to_the_user_of_filters(pkg: Path) -> None:
    members, contents = opened(pkg)
    whole = json.loads(contents["+MANIFEST"])
    directory = {"uname": "_smtpd", "gname": "_smtpd", "perm": "0750"}
    assert whole["directories"] == {"/var/db/smtpd-filters": directory}
    assert (whole["users"], whole["groups"]) == (["_smtpd"], ["_smtpd"])
    [member] = [member for member in members if member.isdir()]
    assert (member.name, member.uname, member.mode) == ("/var/db/smtpd-filters", "_smtpd", 0o750)


def test_it_depends_on_what_the_metadata_names(pkg: Path, dist: Dist) -> None:
    needed = json.loads(opened(pkg)[1]["+MANIFEST"])["deps"]
    minor = own_version().replace(".", "")
    # FreeBSD packages this module of the standard library by itself.
    expected = {f"python{minor}": own_version(), "opensmtpd": "6.6.4", f"py{minor}-sqlite3": "0"}
    for dependency in project(dist)["dependencies"]:
        name, _, version = dependency.partition(",")[0].partition(">=")
        expected[f"py{minor}-{name}"] = version
    assert {name: entry["version"] for name, entry in needed.items()} == expected
    assert all(entry["origin"].count("/") == 1 for entry in needed.values())


def test_it_says_something_when_it_comes_changes_and_goes(pkg: Path) -> None:
    said = json.loads(opened(pkg)[1]["+COMPACT_MANIFEST"])["messages"]
    assert [message["type"] for message in said] == ["install", "upgrade", "remove"]
    assert all(message["message"].strip() for message in said)


def test_it_holds_the_executables_the_manuals_and_the_modules(pkg: Path, dist: Dist) -> None:
    names = set(opened(pkg)[1])
    for name in project(dist)["scripts"]:
        assert f"{PREFIX}/libexec/opensmtpd/{name}" in names
    assert {name for name in names if "/bin/" in name} == {f"{PREFIX}/bin/smtpd-filters"}
    for page in (dist.source / "docs/man").glob("*.[1-9]"):
        assert f"{PREFIX}/share/man/man{page.suffix[1:]}/{page.name}.gz" in names
    for page in (dist.source / "README.md", *(dist.source / "docs").glob("*.md")):
        assert f"{PREFIX}/share/doc/smtpd-filters/{page.name}" in names
    shells = tuple(f"{PREFIX}/share/{shell}/" for shell in ("bash-completion", "fish", "zsh"))
    assert {name for name in names if name.startswith(shells)} == {
        *(
            f"{PREFIX}/share/bash-completion/completions/{name}"
            for name in project(dist)["scripts"]
        ),
        *(
            f"{PREFIX}/share/fish/vendor_completions.d/{name}.fish"
            for name in project(dist)["scripts"]
        ),
        f"{PREFIX}/share/zsh/site-functions/_smtpd-filters",
    }
    with zipfile.ZipFile(dist.wheel) as archive:
        for name in archive.namelist():
            assert f"{PREFIX}/lib/python{own_version()}/site-packages/{name}" in names


def test_its_modules_and_their_bytecode_work(pkg: Path, tmp_path: Path) -> None:
    """Unpacked, and with the interpreter that it was made for, it is what smtpd starts."""
    unpack(pkg, tmp_path)
    root = tmp_path / PREFIX[1:]
    site = root / f"lib/python{own_version()}/site-packages"
    launcher = root / "libexec/opensmtpd/filter-trace"
    first, *rest = launcher.read_text().splitlines()
    assert first == f"#!{PREFIX}/bin/python{own_version()} -IS"
    code = "\n".join(rest).replace(f"{PREFIX}/lib", f"{root}/lib")
    done = subprocess.run(
        [sys.executable, "-ISv", "-c", code, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    module = site / "smtpd_filters/chain/chain.py"
    cached = Path(importlib.util.cache_from_source(str(module)))
    # -v tells which file a module's code came from.
    assert f"{cached} matches {module}" in done.stderr
    assert f"wrote '{site}" not in done.stderr
    content = cached.read_bytes()
    assert content[:8] == importlib.util.MAGIC_NUMBER + b"\x01\0\0\0"
    assert marshal.loads(content[16:]).co_filename.endswith("/smtpd_filters/chain/chain.py")  # noqa: S302


def test_for_another_interpreter_it_holds_no_bytecode(dist: Dist, tmp_path: Path) -> None:
    names = opened(make_pkg(dist, tmp_path, "--python", "3.99"))[1]
    assert f"{PREFIX}/lib/python3.99/site-packages/smtpd_filters/chain/chain.py" in names
    assert not any(name.endswith(".pyc") for name in names)


def test_its_services_have_the_places_of_this_package(pkg: Path) -> None:
    contents = opened(pkg)[1]
    for name in ("journal", "web"):
        script = contents[f"{PREFIX}/etc/rc.d/smtpd_filters_{name}"].decode()
        assert f"{PREFIX}/bin/smtpd-filters {name} " in script
        assert "%%" not in script


@pytest.mark.parametrize(
    ("script", "upgrade", "running", "done"),
    [
        ("post-install", "", ("journal", "web"), []),
        ("post-install", "true", (), []),
        ("post-install", "true", ("web",), ["service smtpd_filters_web onerestart"]),
        (
            *("post-install", "true", ("journal", "web")),
            [f"service smtpd_filters_{name} onerestart" for name in ("journal", "web")],
        ),
        ("pre-deinstall", "true", ("journal", "web"), []),
        ("pre-deinstall", "", (), ["rm -rf /var/run/smtpd-filters-journal"]),
        (
            *("pre-deinstall", "", ("journal", "web")),
            [
                *(f"service smtpd_filters_{name} onestop" for name in ("web", "journal")),
                "rm -rf /var/run/smtpd-filters-journal",
            ],
        ),
    ],
)
@pytest.mark.parametrize("root", ["", "/", "/jail"])
def test_its_scripts_restart_and_stop_what_runs(  # noqa: PLR0913  # cases and fixtures
    pkg: Path,
    tmp_path: Path,
    script: str,
    upgrade: str,
    running: tuple[str, ...],
    done: list[str],
    root: str,
) -> None:
    log = tmp_path / "log"
    log.touch()
    states = "".join(f"smtpd_filters_{name}:onestatus) exit 0 ;;" for name in running)
    service = f"case $1:$2 in {states} *:onestatus) exit 1 ;; esac\n"
    for name, first in (("service", service), ("rm", "")):
        stub = tmp_path / name
        stub.write_text(f'#!/bin/sh\n{first}echo "{name} $*" >> {log}\n')
        stub.chmod(0o755)
    text = json.loads(opened(pkg)[1]["+MANIFEST"])["scripts"][script]
    environment = {"PATH": str(tmp_path), "PKG_ROOTDIR": root}
    if upgrade:
        environment["PKG_UPGRADE"] = upgrade
    subprocess.run(["/bin/sh", "-c", text], env=environment, check=True)
    # Another root has no running services.
    assert log.read_text().splitlines() == ([] if root == "/jail" else done)
