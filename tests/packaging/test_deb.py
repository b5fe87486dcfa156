"""The Debian package: built on Debian 12 and 13, installed on clean ones, used, and removed."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.packaging.booted import booted
from tests.packaging.conftest import another_day, copy_of
from tests.packaging.roots import SUITES, Machine, need, run_in
from tests.packaging.shells import completing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.packaging.booted import Booted

pytestmark = pytest.mark.e2e

#: Where deb-systemd-helper notes which units there are.
UNITS = "/var/lib/systemd/deb-systemd-helper-enabled"
STATE = "var/lib/smtpd-filters"
SERVICES = ("smtpd-filters-journal", "smtpd-filters-web")
DPKG_DEB = "/usr/bin/dpkg-deb"
#: What is said after a change of the version while smtpd runs.
KEPT = "keep the version with which smtpd was started until it is restarted"
#: Debian 13's lintian takes two thirds of its time for this check, which tries 46 patterns on each
#: line of the sources. `test_no_module_is_imported_that_python_drops` looks for the same modules.
SLOW_CHECK = "languages/python/stdlib-deprecation"
SLOW_CHECK_FILE = "usr/share/lintian/lib/Lintian/Check/Languages/Python/StdlibDeprecation.pm"


class Built(NamedTuple):
    suite: str
    source: Path
    deb: Path
    lintian: str


def build(suite: str, source: Path, output: Path, **variables: str) -> Path:
    """Build the package in this suite's root; the .deb."""
    output.mkdir()
    log = run_in(
        need(suite, "build"),
        *("sh", "-euc"),
        "mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /srv; mkdir /srv/source /srv/output;"
        'mount --move /media /srv/source; mount --move /mnt /srv/output; umask "${MASK:-022}";'
        'exec /srv/source/packaging/build-deb /srv/output "${BUILD:-/tmp/build}"',
        binds={source: "/media", output: "/mnt"},
        environment=variables,
    ).stdout
    (output / "log").write_text(log)
    [deb] = output.glob("*.deb")
    return deb


@pytest.fixture(scope="module", params=SUITES)
def built(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Built:
    suite: str = request.param
    output = tmp_path_factory.mktemp(suite) / "output"
    deb = build(suite, source, output)
    root = need(suite, "build")
    without = f"-X {SLOW_CHECK}" if (root / SLOW_CHECK_FILE).exists() else ""
    command = f"lintian --allow-root --fail-on none {without} -IL +pedantic /mnt/*.changes"
    lintian = run_in(root, "sh", "-c", command, binds={output: "/mnt"}).stdout
    return Built(suite, source, deb, lintian)


@pytest.fixture(scope="module")
def prepared(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A clean root, with what the package and its tests depend on, and without the package."""
    machine = Machine.clean(built.suite, tmp_path_factory.mktemp("roots") / built.suite)
    machine.apt("satisfy", f"{depends(built.deb)}, iproute2, openssl")
    yield machine
    machine.remove()


def depends(deb: Path) -> str:
    done = subprocess.run(
        [DPKG_DEB, "-f", deb, "Depends"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def later(deb: Path, directory: Path, edits: Mapping[str, tuple[str, str]] | None = None) -> Path:
    """The same package as a later version, with replaced texts in some of its files."""
    subprocess.run([DPKG_DEB, "-R", deb, directory], check=True)
    for name, (old, new) in (edits or {}).items():
        file = directory / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
    control = directory / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^(Version: .*)$", r"\1+later", control.read_text()))
    made = directory.with_suffix(".deb")
    # Debian's compression would take seconds.
    options = ("--root-owner-group", "-Zgzip", "-z1")
    subprocess.run([DPKG_DEB, *options, "-b", directory, made], check=True, capture_output=True)
    return made


def listen_in(smtpd: socket.socket, directory: Path) -> None:
    """Be what a running smtpd leaves in this directory; the whole path may be too long for that."""
    descriptor = os.open(directory, os.O_PATH)
    smtpd.bind(f"/proc/self/fd/{descriptor}/smtpd.sock")
    os.close(descriptor)


def test_lintian_has_nothing_to_say(built: Built) -> None:
    said = re.findall(r"(?m)^[EWIP]: [\w-]+(?: source)?: ([\w-]+)", built.lintian)
    # One control file is for both, and says what the older one knows.
    newer = ["out-of-date-standards-version"]
    if built.suite == "bookworm":  # whose lintian still asks for a script beside each unit
        newer = ["package-supports-alternative-init-but-no-init"] * 2  # and ".d-script"
    assert said == newer


def dropped_imports(program: str, dropped: set[str]) -> list[str]:
    """Return the modules among `dropped` that a program imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module or "")
    return [name for name in names if name.partition(".")[0] in dropped]


def test_no_module_is_imported_that_python_drops(source: Path) -> None:
    check = (need("trixie", "build") / SLOW_CHECK_FILE).read_text("utf-8")
    dropped = set(re.findall(r"(?m)^ *'(\w+)' *=> *\{ 'deprecated'", check))
    assert {"asyncore", "cgi", "distutils", "smtpd"} <= dropped
    example = (
        "import os, smtpd\nfrom distutils.core import setup\nfrom .cgi import x\nimport cgi.a as b"
    )
    assert dropped_imports(example, dropped) == ["smtpd", "distutils.core", "cgi.a"]
    files = [*source.rglob("*.py")]
    assert len(files) > 100
    found = {str(file): dropped_imports(file.read_text("utf-8"), dropped) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


def test_the_same_source_makes_the_same_bytes(built: Built, tmp_path: Path) -> None:
    source = copy_of(built.source, tmp_path / "source")
    another_day(source)
    # Without the start of each executable, which `built` has seen.
    options = {"DEB_BUILD_OPTIONS": "nocheck"}
    other = {"BUILD": "/srv/elsewhere", "MASK": "077", "TZ": "Asia/Tokyo", **options}
    again = build(built.suite, source, tmp_path / "output", **other)
    assert again.read_bytes() == built.deb.read_bytes()


def test_it_depends_on_debians_packages_of_what_the_metadata_names(built: Built) -> None:
    names = {entry.split()[0].partition(":")[0] for entry in depends(built.deb).split(",")}
    modules = ("aiohttp", "dkim", "dnspython", "redis", "spf")
    assert names == {"opensmtpd", "python3", *(f"python3-{module}" for module in modules)}


def test_it_completes_all_executables(built: Built) -> None:
    scripts = tomllib.loads((built.source / "pyproject.toml").read_text())["project"]["scripts"]
    done = subprocess.run(
        [DPKG_DEB, "--contents", built.deb], capture_output=True, text=True, check=True
    )
    files = {line.rpartition(" ./")[2] for line in done.stdout.splitlines()}
    assert {
        *(f"usr/share/bash-completion/completions/{name}" for name in scripts),
        *(f"usr/share/fish/vendor_completions.d/{name}.fish" for name in scripts),
        "usr/share/zsh/vendor-completions/_smtpd-filters",
    } <= files


def test_the_shells_complete(built: Built, machine: Machine) -> None:
    machine.apt("install", "bash-completion", "fish", "zsh", machine.put(built.deb))
    environment = (
        "env",
        "LC_ALL=C.UTF-8",
        "HOME=/tmp",
        "PATH=/usr/libexec/opensmtpd:/usr/bin:/bin",
    )
    for shell, directory in (
        ("bash", "bash-completion/completions"),
        ("fish", "fish/vendor_completions.d"),
        ("zsh", "zsh/vendor-completions"),
    ):
        files = Path("/usr/share", directory)
        for line, expected in (
            ("smtpd-filters rel", "reload"),
            ("smtpd-filters auth -- --rep", "--report-to"),
            ("filter-tls --act", "--action"),
            ("filter-chain --chec", "--check"),
            ("filter-supervise --regi", "--register"),
            ("filter-supervise -v --deadline 5 -- filter-tls --action te", "tempfail"),
            ("filter-supervise --verbose /no/such/filter-tls --act", "--action"),
            ("filter-supervise filter-dnsb", "filter-dnsbl"),
            ("smtpd-filters replay x -- filter-supervise --regi", "--register"),
        ):
            said = machine.run(*environment, *completing(shell, files, line.split()))
            found = {each.partition("\t")[0].strip().lstrip("+") for each in said.splitlines()}
            assert expected in found, (shell, line, said)


def test_mail_passes_and_nothing_is_left(built: Built, machine: Machine) -> None:
    before = machine.files()
    machine.apt("install", machine.put(built.deb))
    after = machine.files()

    # Nothing but the package's own files has been touched, and nothing in /etc.
    own = set(machine.run("dpkg", "-L", "smtpd-filters").split())
    own |= {f"/usr{path}" for path in own if path.startswith("/lib/")}
    services = ("journal", "web")
    own |= {f"{UNITS}/smtpd-filters-{name}.service.dsh-also" for name in services}
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    compiled = {path for path in changed if "/smtpd_filters/" in path and "__pycache__" in path}
    assert {f"/{path}" for path in changed - compiled} <= own
    assert not any(path.startswith("etc/") for path in changed)
    sources = {path for path in own if path.endswith(".py")}
    assert len([path for path in compiled if path.endswith(".pyc")]) == len(sources)

    # Each executable has a launcher; the state directory belongs to the user of filters.
    project = tomllib.loads((built.source / "pyproject.toml").read_text())["project"]
    launchers = {f"/usr/libexec/opensmtpd/{name}" for name in project["scripts"]}
    assert {path for path in own if "/libexec/opensmtpd/" in path} == launchers
    assert {path for path in own if path.startswith("/usr/bin/")} == {"/usr/bin/smtpd-filters"}
    assert machine.run("stat", "-c", "%U:%G %a", f"/{STATE}") == "opensmtpd:opensmtpd 750\n"

    # The package's own tests, one of which sends mail through smtpd.
    tests = built.source / "packaging/debian/tests"
    for name in re.findall(r"(?m)^Tests: (.*)$", (tests / "control").read_text()):
        machine.run(machine.put(tests / name))

    # State outlives removal, and goes with a purge; so does everything else.
    (machine.root / STATE / "kept").write_text("kept")
    journal = machine.root / f"{STATE}-journal"
    journal.mkdir()  # as without systemd, which would make it a link
    (journal / "2026-11-30.sqlite").write_text("kept")
    machine.apt("remove", "smtpd-filters")
    assert (machine.root / STATE / "kept").read_text() == "kept"
    assert (journal / "2026-11-30.sqlite").read_text() == "kept"
    machine.apt("purge", "smtpd-filters")
    assert machine.files() == before


def test_an_upgrade_keeps_state_and_owner(built: Built, machine: Machine, tmp_path: Path) -> None:
    machine.run("dpkg", "-i", machine.put(built.deb))
    machine.run("runuser", "-u", "opensmtpd", "--", "sh", "-c", f"echo kept >/{STATE}/kept")
    machine.run("dpkg-statoverride", "--update", "--add", "opensmtpd", "root", "0770", f"/{STATE}")
    with socket.socket(socket.AF_UNIX) as smtpd:
        listen_in(smtpd, machine.root / "run")
        said = machine.run("dpkg", "-i", machine.put(later(built.deb, tmp_path / "later")))
    assert KEPT in said
    assert (machine.root / STATE / "kept").read_text() == "kept\n"
    # What the administrator has said about it goes before what we think.
    assert machine.run("stat", "-c", "%U:%G %a", f"/{STATE}") == "opensmtpd:root 770\n"
    assert machine.run("dpkg", "--audit") == ""


def test_a_downgrade_names_no_version_that_does_not_run(
    built: Built, machine: Machine, tmp_path: Path
) -> None:
    """smtpd may have been started with the older one, and nothing tells."""
    machine.run("dpkg", "-i", machine.put(later(built.deb, tmp_path / "later")))
    with socket.socket(socket.AF_UNIX) as smtpd:
        listen_in(smtpd, machine.root / "run")
        said = machine.run("dpkg", "-i", machine.put(built.deb))
    [advice] = [line for line in said.splitlines() if KEPT in line]
    assert "+later" not in advice
    assert 'run "smtpd-filters check" before' in advice


def test_a_missing_directory_of_the_state_is_made_again(built: Built, machine: Machine) -> None:
    machine.run("dpkg", "-i", machine.put(built.deb))
    (machine.root / STATE).rmdir()
    machine.run("dpkg-reconfigure", "smtpd-filters")
    assert machine.run("stat", "-c", "%U:%G %a", f"/{STATE}") == "opensmtpd:opensmtpd 750\n"


@pytest.mark.parametrize("script", ["preinst", "postinst"])
def test_what_an_interrupted_dpkg_leaves_is_mended(
    built: Built, machine: Machine, tmp_path: Path, script: str
) -> None:
    """As README.Debian says; in the last step by `dpkg --configure -a` alone."""
    kill = '#!/bin/sh\n[ ! -e /tmp/kill ] || { rm /tmp/kill; kill -9 "$PPID"; exit 1; }\n'
    directory = tmp_path / "later"
    new = later(built.deb, directory)
    machine.run("dpkg", "-i", machine.put(new))
    before = machine.run("dpkg", "-V", "smtpd-filters")
    (file := directory / "DEBIAN" / script).write_text(
        kill + (file.read_text() if file.exists() else "")
    )
    file.chmod(0o755)
    subprocess.run(
        [DPKG_DEB, "--root-owner-group", "-b", directory, new], check=True, capture_output=True
    )
    installing = ("dpkg", "-i", machine.put(new))
    machine.run(*installing)  # prerm is that of the version before
    (machine.root / "tmp/kill").touch()
    # Not as process 1 of its namespace, which nothing kills.
    assert "status 137" in machine.run("sh", "-c", '"$@"; echo "status $?"', "sh", *installing)
    assert not machine.installed("smtpd-filters")
    machine.run(*(("dpkg", "--configure", "-a") if script == "postinst" else installing))
    assert machine.installed("smtpd-filters")
    assert machine.run("dpkg", "--audit") == ""
    assert machine.run("dpkg", "-V", "smtpd-filters") == before == ""
    assert list((machine.root / "usr").rglob("*.dpkg-*")) == []


def test_removal_names_the_filters_that_smtpd_will_miss(built: Built, machine: Machine) -> None:
    machine.run("dpkg", "-i", machine.put(built.deb))
    configuration = machine.root / "etc/smtpd.conf"
    configuration.write_text(
        '#filter "dead" proc-exec "filter-tls"\n'
        'filter "helo" proc-exec "filter-helo --supervised"\n'
        'filter "sender" proc-exec "/usr/libexec/opensmtpd/filter-sender" # filter-rcpt\n'
        'filter "other" proc-exec "/opt/filter-auth"\n'
    )
    said = machine.run("dpkg", "-r", "smtpd-filters")
    assert "(filter-helo filter-sender); smtpd does not start while they are missing" in said

    machine.run("dpkg", "-i", machine.put(built.deb))
    configuration.write_text('listen on lo\n#filter "x" proc-exec "filter-tls"\n')
    assert "does not start" not in machine.run("dpkg", "-r", "smtpd-filters")


def reloading(deb: Path, directory: Path) -> Path:
    """Return a later version of the package, which notes a reload and what is compiled then."""
    cache = "/usr/lib/python3/dist-packages/smtpd_filters/__pycache__"
    reload = f'#!/bin/sh\necho "$@" >/tmp/words; exec ls {cache} >/tmp/compiled\n#'
    return later(deb, directory, {"usr/bin/smtpd-filters": ("#!", reload)})


def test_an_upgrade_reloads_filters_once_modules_are_compiled(
    built: Built, machine: Machine, tmp_path: Path
) -> None:
    """Otherwise each of them compiles all modules again, for seconds, while sessions wait."""
    machine.run("dpkg", "-i", machine.put(built.deb))
    new = reloading(built.deb, tmp_path / "later")
    with socket.socket(socket.AF_UNIX) as smtpd:
        listen_in(smtpd, machine.root / "run")
        machine.run("dpkg", "-i", machine.put(new))
        compiled = (machine.root / "tmp/compiled").read_text()
        (words := machine.root / "tmp/words").unlink()
        # After a purge their sandboxes don't have the new directory of the state.
        machine.run("dpkg", "-P", "smtpd-filters")
        said = machine.run("dpkg", "-i", machine.put(new))
    assert "filter." in compiled
    assert words.read_text() == "reload\n"
    assert KEPT not in said


def test_another_python_compiles_modules_and_reloads_filters(
    built: Built, machine: Machine, tmp_path: Path
) -> None:
    """An upgrade of Debian may leave this package as it is, and filters can't write bytecode."""
    machine.run("dpkg", "-i", machine.put(reloading(built.deb, tmp_path / "later")))
    modules = machine.root / "usr/lib/python3/dist-packages/smtpd_filters"
    before = sorted(modules.rglob("*.pyc"))
    for file in before:
        file.unlink()
    with socket.socket(socket.AF_UNIX) as smtpd:
        listen_in(smtpd, machine.root / "run")
        # What dpkg does when it unpacks python3-minimal, and at the end of its run.
        machine.run("dpkg-trigger", "--by-package=python3-minimal", "/usr/bin/python3")
        machine.run("dpkg", "--triggers-only", "--pending")
    assert sorted(modules.rglob("*.pyc")) == before
    assert (machine.root / "tmp/words").read_text() == "reload\n"
    assert "filter." in (machine.root / "tmp/compiled").read_text()


def states(system: Booted) -> dict[str, tuple[str, str, str]]:
    """Of each service whether it runs, whether it is enabled, and its process."""
    found = {}
    for name in SERVICES:
        asked = ("ActiveState", "UnitFileState", "MainPID")
        shown = system.run("systemctl", "show", name, *(f"--property={each}" for each in asked))
        by_name = dict(line.split("=", 1) for line in shown.splitlines())
        found[name] = (by_name["ActiveState"], by_name["UnitFileState"], by_name["MainPID"])
    return found


def in_run(system: Booted) -> list[str]:
    return system.run("find", "/run", "-name", "smtpd-filters*").split()


def test_services_restart_with_an_upgrade_and_stop_with_removal(
    built: Built, machine: Machine, tmp_path: Path
) -> None:
    """Those that ran, that is; and nothing is started or enabled by itself."""
    machine.apt("install", "systemd-sysv", "dbus", "python3-jinja2")
    # The start clears /tmp.
    package = machine.put(built.deb, "srv")
    upgrade = machine.put(later(built.deb, tmp_path / "later"), "srv")
    journal, page = SERVICES
    with booted(machine) as system:
        off = dict.fromkeys(SERVICES, ("inactive", "disabled", "0"))
        system.run("dpkg", "-i", package)
        assert states(system) == off
        system.run("dpkg", "-i", upgrade)
        assert states(system) == off

        # One runs; the other is enabled, and was stopped.
        system.run("systemctl", "enable", *SERVICES)
        system.run("systemctl", "start", journal)
        before = states(system)
        system.run("dpkg", "-i", package)
        after = states(system)
        assert after[journal][:2] == ("active", "enabled")
        assert after[journal][2] != before[journal][2]
        assert after[page] == ("inactive", "enabled", "0")

        system.run("systemctl", "start", page)
        before = states(system)
        system.run("dpkg", "-i", upgrade)
        after = states(system)
        assert {each[:2] for each in after.values()} == {("active", "enabled")}
        assert all(after[name][2] != before[name][2] for name in SERVICES)

        # They don't stay with a Python that an upgrade of Debian has replaced.
        before = after
        system.run("dpkg-trigger", "--by-package=python3-minimal", "/usr/bin/python3")
        system.run("dpkg", "--triggers-only", "--pending")
        after = states(system)
        assert {each[:2] for each in after.values()} == {("active", "enabled")}
        assert all(after[name][2] != before[name][2] for name in SERVICES)

        # Removal keeps the files of the journal, and nothing else of it; a purge keeps nothing.
        system.run("dpkg", "-r", "smtpd-filters")
        assert {each[0] for each in states(system).values()} == {"inactive"}
        assert in_run(system) == []
        assert system.run("ls", f"/{STATE}-journal").split() != []
        system.run("dpkg", "-i", package)
        assert {each[0] for each in states(system).values()} == {"inactive"}
        system.run("systemctl", "start", *SERVICES)
        assert {f"/run/{name}" for name in SERVICES} <= set(in_run(system))
        system.run("dpkg", "-P", "smtpd-filters")
        assert {each[0] for each in states(system).values()} == {"inactive"}
        assert in_run(system) == []
        left = system.run("find", "/var/lib", "/etc", "-name", "*smtpd-filters*").split()
        assert [path for path in left if not path.startswith("/var/lib/dpkg/")] == []


def test_an_upgrade_under_load_and_back_loses_nothing(
    built: Built, machine: Machine, tmp_path: Path
) -> None:
    """Sessions go on, those that are open as well, and new code answers after each change."""
    machine.run("dpkg", "-i", old := machine.put(built.deb))
    policy = "usr/lib/python3/dist-packages/smtpd_filters/filters/mailfrom/policy.py"
    text = "5.7.1 Sender address not allowed from here"
    new = later(built.deb, tmp_path / "later", {policy: (text, f"{text} (later)")})
    passes = machine.put(built.source / "packaging/debian/tests/mail-passes")
    program = machine.put(Path(__file__).with_name("upgrade_under_load.py"))
    said = machine.run("python3", program, passes, old, machine.put(new))
    assert re.search(r"[0-9]{3} messages, [0-9]+ refused, 2 changes", said), said


def test_it_takes_the_place_of_single_filters(built: Built, machine: Machine) -> None:
    names = ("rspamd", "senderscore")
    single = [f"opensmtpd-filter-{name}" for name in names]
    machine.apt("install", *single)
    paths = [machine.root / f"usr/libexec/opensmtpd/filter-{name}" for name in names]
    theirs = [path.read_bytes() for path in paths]
    # It is said before it is done.
    simulated = machine.apt("install", "--simulate", machine.put(built.deb))
    assert f"will be REMOVED:\n  {' '.join(single)}\n" in simulated
    machine.apt("install", machine.put(built.deb))
    assert not any(map(machine.installed, single))
    assert all(path.read_bytes().startswith(b"#!/usr/bin/python3 -IS\n") for path in paths)
    # And back.
    machine.apt("install", *single)
    assert not machine.installed("smtpd-filters")
    assert [path.read_bytes() for path in paths] == theirs
