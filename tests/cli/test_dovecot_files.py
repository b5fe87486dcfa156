"""Tests of the files for Dovecot without Dovecot.

tests/e2e/test_dovecot.py tests them with it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.learning import MAIL, ROOT, TOOL
from tests.filters.spamd.stub import Answer, SpamdStub

if TYPE_CHECKING:
    from smtpd_filters.testing.rspamd.stub import RspamdStub

DOVECOT = ROOT / "packaging" / "dovecot"
SCRIPT = DOVECOT / "rspamd-learn"


@pytest.fixture
def script(tmp_path: Path, rspamd: RspamdStub) -> Path:
    """The script with settings for this test, and the tool on its PATH."""
    (tmp_path / "smtpd-filters").write_text(f'#!/bin/sh\nexec {shlex.join(TOOL)} "$@"\n')
    (tmp_path / "smtpd-filters").chmod(0o755)
    (tmp_path / "password").write_text("secret\n")
    text = SCRIPT.read_text()
    for name, value in (
        ("URL", rspamd.url),
        ("PASSWORD_FILE", str(tmp_path / "password")),
        ("PER_USER", "yes"),
    ):
        text, changed = re.subn(rf"(?m)^{name}=.*", f"{name}={value}", text)
        assert changed == 1
    made = tmp_path / "rspamd-learn"
    made.write_text(text)
    made.chmod(0o755)
    return made


def test_dovecots_script_is_one() -> None:
    assert os.access(SCRIPT, os.X_OK)
    done = subprocess.run(["/bin/sh", "-n", SCRIPT], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("kind", ["spam", "ham"])
@pytest.mark.parametrize("user", ["anna@example.org", "o'neil $x", "-v", ""])
def test_dovecots_script(script: Path, rspamd: RspamdStub, kind: str, user: str) -> None:
    done = subprocess.run(
        [script, kind, user],
        input=MAIL,
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={"PATH": f"{script.parent}:/usr/bin:/bin"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    [request] = rspamd.requests
    assert (request.path, request.body) == (f"/learn{kind}", MAIL)
    assert request.get("Password") == "secret"
    assert request.get("Deliver-To") == (user or None)


@pytest.mark.parametrize("kind", ["spam", "ham"])
def test_dovecots_script_for_spamd(script: Path, rspamd: RspamdStub, kind: str) -> None:
    with SpamdStub(Answer(b"SPAMD/1.1 0 EX_OK\r\nDidSet: local\r\n\r\n\r\n")) as spamd:
        text, changed = re.subn(r"(?m)^SPAMD=.*", f"SPAMD={spamd.server}", script.read_text())
        assert changed == 1
        script.write_text(text)
        done = subprocess.run(
            [script, kind, "anna"],
            input=MAIL,
            capture_output=True,
            check=False,
            cwd=ROOT,
            env={"PATH": f"{script.parent}:/usr/bin:/bin"},
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    [request] = spamd.requests
    assert (request.fields["Message-class"], request.fields["User"]) == (kind, "anna")
    assert request.body == MAIL
    assert not rspamd.requests


def test_dovecots_script_as_it_is(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    (tmp_path / "smtpd-filters").write_text(f'#!/bin/sh\nprintf "%s|" "$@" >{seen}\nexit 75\n')
    (tmp_path / "smtpd-filters").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run([SCRIPT, "spam", "anna"], input=MAIL, check=False, env=env)
    assert done.returncode == 75
    assert seen.read_text() == "learn|-url|http://localhost:11334|--timeout|10|spam|"


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_dovecots_configuration_names_what_is_there(version: str) -> None:
    text = (DOVECOT / f"dovecot-{version}.conf").read_text()
    assert "sieve_pipe_bin_dir = /etc/dovecot/learn\n" in text
    named = set(re.findall(r"/etc/dovecot/learn/(\S+)", text))
    assert named == {"report-spam.sieve", "report-ham.sieve"}
    for name in named:
        assert f'pipe :copy "{SCRIPT.name}"' in (DOVECOT / name).read_text()
