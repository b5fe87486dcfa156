"""Tests of the servers for tests: their versions, their installations and their clocks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.server import (
    VERSIONS,
    LabError,
    Smtpd,
    add_server,
    releases,
    root_of,
    system_version,
    unavailable,
    versions,
)
from smtpd_filters.testing.server.releases import RELEASES
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHECKOUT = Path(__file__).parents[2]
SET_UP = Path(__file__).with_name("setup-roots")
# Debian's releases, and a system that is neither: which version is its own.
OWN = {"bookworm": "6.8", "trixie": "7.6", "": None}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Call it to be on a release, as root; what was found out of versions is forgotten."""
    unavailable.cache_clear()
    with monkeypatch.context() as patch:

        def be(release: str) -> None:
            patch.setattr(os, "geteuid", lambda: 0)
            patch.setattr(releases, "system_release", lambda: release)

        yield be
    unavailable.cache_clear()


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """The servers that a test adds."""
    found: dict[str, Path] = {}
    monkeypatch.setattr(releases, "_added", found)
    unavailable.cache_clear()
    yield found
    unavailable.cache_clear()


# -- of a version each -----------------------------------------------------------------------------


@pytest.mark.parametrize("release", OWN)
def test_a_release_has_one_version_of_its_own(on: Callable[[str], None], release: str) -> None:
    on(release)
    assert system_version() == OWN[release]
    for name, home in RELEASES.items():
        if home == release:
            assert root_of(name) == Path("/")
            continue
        shown = subprocess.run([SET_UP, "--path", home], capture_output=True, text=True, check=True)
        assert str(root_of(name)) == shown.stdout.rstrip()


@pytest.mark.parametrize("release", OWN)
@pytest.mark.parametrize("name", VERSIONS)
def test_without_a_server_the_reason_is_shown(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    on: Callable[[str], None],
    release: str,
    name: str,
) -> None:
    on(release)
    monkeypatch.setattr(releases, "SYSTEM", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = name == OWN[release]
    how = "install the opensmtpd package" if own else "run tests/e2e/setup-roots of a checkout"
    assert unavailable(name) == f"no smtpd {name} ({how})"


def test_without_root_the_reason_is_shown(
    monkeypatch: pytest.MonkeyPatch, on: Callable[[str], None]
) -> None:
    on("bookworm")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert unavailable() == "root is required"
    assert unavailable("6.8") == "root is required"
    with pytest.raises(LabError, match="root is required"), Smtpd("6.8"):
        pass


# -- others that are at hand -----------------------------------------------------------------------


@pytest.mark.parametrize("name", VERSIONS)
def test_a_server_may_be_added(name: str, added: dict[str, Path], tmp_path: Path) -> None:
    need(unavailable(name))
    root = root_of(name)
    with pytest.raises(ValueError, match=r"^no smtpd 9\.9 among "):
        root_of("9.9")
    assert add_server(str(root)) == name
    assert versions() == VERSIONS
    assert add_server(f"{root}=9.9") == "9.9"
    assert versions() == (*VERSIONS, "9.9")
    assert added == {name: root, "9.9": root}
    assert root_of("9.9") == root
    assert unavailable("9.9") == f"the smtpd of {root} is not 9.9"
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}: "):
        add_server(str(tmp_path))


def test_tests_run_on_what_is_named(tmp_path: Path) -> None:
    def collected(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "--collect-only", *options]
        return subprocess.run(
            [*command, "-p", "no:cacheprovider", "tests/e2e/test_record.py"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )

    found = collected("--smtpd", f"{tmp_path}=9.9").stdout
    assert set(re.findall(r"\[([\d.]+)-", found)) == {*VERSIONS, "9.9"}
    refused = collected("--smtpd", str(tmp_path))
    assert refused.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"--smtpd {tmp_path}: " in refused.stderr


# -- the clock -------------------------------------------------------------------------------------

FILTER = """\
from datetime import UTC, datetime
from smtpd_filters import PROCEED, Filter, Headers, Proceed, Session, run

class Clock(Filter):
    name = "clock"

    def headers(self, session: Session, headers: Headers) -> Proceed:
        headers.append("X-Clock", datetime.now(UTC).isoformat())
        return PROCEED

raise SystemExit(run(Clock))
"""
# Sends a message over TLS, then says what time it is: here, in the filter, and in the server.
PROGRAM = f"""\
import sys
from datetime import UTC, datetime
from smtpd_filters.testing.server import Smtpd, add_server, script_command
filters = {{"clock": script_command("clock.py")}}
version = add_server(sys.argv[1])
with Smtpd(version, filters=filters, files={{"clock.py": {FILTER!r}}}) as server:
    with server.client() as client:
        client.starttls()
        client.sendmail("a@b.example", ["alice@local.example"], "Subject: hello\\n\\nhello\\n")
    [mail] = server.maildir("alice")
print(datetime.now(UTC).isoformat())
print(mail.message["X-Clock"])
print(mail.message["Received"].rpartition(";")[2].strip())
"""


@pytest.mark.parametrize("days", [-400, 400, 5000])  # the last: beyond 2^31 seconds
def test_a_moved_clock_is_everybodys(version: str, days: int) -> None:
    # It may be moved here already.
    movers = ("LD_", "DATEFUDGE")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(movers)}

    def run(*command: str | Path) -> list[str]:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=CHECKOUT, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    [now] = map(datetime.fromisoformat, run("date", "--iso-8601=seconds"))
    program = (CHECKOUT / "packaging/moved-clock", sys.executable, "-c", PROGRAM)
    server = f"{root_of(version)}={version}"
    ours, filters, servers = run("faketime", "-f", f"{days:+}d", *program, server)
    for shown in (
        datetime.fromisoformat(ours),
        datetime.fromisoformat(filters),
        parsedate_to_datetime(servers),
    ):
        assert abs(shown - now - timedelta(days)) < timedelta(hours=1)
