"""The start of a filter, which imports no package and no library that it does not use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from smtpd_filters.protocol.smtpd_side import SmtpdConnection

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "dyndns": [],
    "fcrdns": [],
    "helo": ["--unknown", "off"],
    "mailfrom": ["--domains", "example.org"],
    "rcpt": [],
    "rewrite": ["--canonical", "{ a@b.example = c@d.example }", "--where", "envelope"],
    "sender": ["--unknown", "off", "--null-mx", "off", "--bad-mx", "off"],
    "tls": ["--require", "1.2 sender-domain=example.org"],
    "trace": [],
}
#: Each of these takes about as long to import as the interpreter takes to start, or longer.
HEAVY = (
    "asyncio", "dataclasses", "inspect", "typing", "ssl", "logging", "dns", "aiohttp", "redis",
    "unicodedata", "encodings.punycode", "encodings.idna", "idna",
    "smtpd_filters.checks.author.from_field",
)  # fmt: skip


def served(name: str, *python: str) -> subprocess.CompletedProcess[bytes]:
    """Start the filter without any package beside the standard library, and greet it."""
    return subprocess.run(
        [sys.executable, "-S", "-E", *python, f"smtpd_filters.filters.{name}", *COMMANDS[name]],
        input=SmtpdConnection().configure(),
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_filter_without_look_ups_runs_without_the_packages(name: str) -> None:
    done = served(name, "-m")
    assert done.stderr == b""
    assert done.returncode == 0
    assert done.stdout.endswith(b"register|ready\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_what_takes_long_to_import_is_not(name: str) -> None:
    done = served(name, "-X", "importtime", "-m")
    imported = {line.rpartition(b"|")[2].strip().decode() for line in done.stderr.splitlines()}
    assert "smtpd_filters.chain" in imported
    assert imported.isdisjoint(HEAVY)


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"mailfrom"}))
def test_a_filter_that_reads_no_message_does_not_load_the_code_for_it(name: str) -> None:
    done = served(name, "-X", "importtime", "-m")
    assert b"smtpd_filters.chain" in done.stderr
    assert b"smtpd_filters.message" not in done.stderr
    assert b"smtpd_filters.runtime.messages" not in done.stderr


def test_a_package_that_is_missing_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-m", "smtpd_filters.filters.fcrdns", "--verify"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == 1
    assert b"filter-fcrdns: " in done.stderr
    assert b"No module named 'dns'" in done.stderr
