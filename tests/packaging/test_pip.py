"""The wheel in a virtual environment: upgraded by pip under load, and back."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.packaging.roots import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.packaging.conftest import Dist

pytestmark = pytest.mark.e2e

VENV = "/opt/smtpd-filters"
POLICY = "smtpd_filters/filters/mailfrom/policy.py"


@pytest.fixture(scope="module")
def prepared(dist: Dist, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Debian 13, whose packages are all that the wheel needs, with it in a virtual environment."""
    machine = Machine.clean("trixie", tmp_path_factory.mktemp("roots") / "trixie")
    modules = ("aiohttp", "dkim", "dnspython", "redis", "spf", "venv")
    machine.apt("install", "opensmtpd", "iproute2", *(f"python3-{name}" for name in modules))
    machine.run("python3", "-m", "venv", "--system-site-packages", VENV)
    machine.run(f"{VENV}/bin/pip", "install", "--no-index", machine.put(dist.wheel))
    # As README.md says.
    state = "/var/lib/smtpd-filters"
    machine.run("install", "-d", "-o", "opensmtpd", "-m", "700", state)
    yield machine
    machine.remove()


def later(wheel: Path, directory: Path, edits: Mapping[str, tuple[str, str]]) -> Path:
    """The same package as a later version, with replaced texts in some of its files."""
    name, version, tags = wheel.name.split("-", 2)
    new = f"{version}.post1"
    old_info, new_info = (f"{name}-{each}.dist-info" for each in (version, new))
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    made = directory / f"{name}-{new}-{tags}"
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(made, "w") as target:
        for member in source.infolist():
            path = member.filename.replace(old_info, new_info)
            if path == f"{new_info}/RECORD":
                continue
            content = source.read(member)
            changes = [edits[path]] if path in edits else []
            if path == f"{new_info}/METADATA":
                changes = [(f"\nVersion: {version}\n", f"\nVersion: {new}\n")]
            for before, after in changes:
                assert content.count(before.encode()) == 1
                content = content.replace(before.encode(), after.encode())
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            rows.writerow((path, f"sha256={digest.decode()}", len(content)))
            target.writestr(path, content)
        rows.writerow((f"{new_info}/RECORD", "", ""))
        target.writestr(f"{new_info}/RECORD", record.getvalue())
    return made


def upgraded(machine: Machine, dist: Dist, directory: Path, *how: str) -> str:
    """Upgrade the package under load and go back; what the program printed."""
    text = "5.7.1 Sender address not allowed from here"
    new = later(dist.wheel, directory, {POLICY: (text, f"{text} (later)")})
    passes = machine.put(dist.source / "packaging/debian/tests/mail-passes")
    program = machine.put(Path(__file__).with_name("upgrade_under_load.py"))
    wheels = (machine.put(dist.wheel), machine.put(new))
    return machine.run(f"{VENV}/bin/python", program, passes, *wheels, VENV, *how)


def test_an_upgrade_under_load_and_back_loses_nothing(
    machine: Machine, dist: Dist, tmp_path: Path
) -> None:
    """Sessions go on, those that are open as well, and new code answers after each change."""
    said = upgraded(machine, dist, tmp_path)
    assert re.search(r"[0-9]{3} messages, [0-9]+ refused, 2 changes .*, 0 sessions", said), said


def test_filters_that_fail_while_pip_installs_are_replaced_by_a_reload(
    machine: Machine, dist: Dist, tmp_path: Path
) -> None:
    """Meanwhile smtpd runs, and `--on-error` decides."""
    said = upgraded(machine, dist, tmp_path, "killed")
    assert re.search(r"[0-9]{3} messages, .*, 2 changes .*, [0-9]{2,} sessions", said), said
