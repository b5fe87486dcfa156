"""Filters that go on serving while a package's files are replaced or removed.

smtpd starts a filter once, and an upgrade of the package, of a dependency or of Python doesn't
restart it. A module that a filter imported later could be missing or of another version; so after
its start it imports none, those of Python's standard library included.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing import DNSServer
from smtpd_filters.testing.rspamd.stub import Answer, RspamdStub
from tests.filters.clamav.stub import Clamd
from tests.filters.milter.stub import milter
from tests.filters.spamd.stub import SpamdStub
from tests.packaging.roots import SOURCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedRWPair

FIXTURES = SOURCE / "fixtures"
#: The flags have a filter do all that it can; ZONE is a name server, FOLDER is one's own, and
#: RSPAMD and the words of `STUBS` are daemons.
COMMANDS = {
    "auth": "--dmarc honour --dkim-fail reject --received-spf --report-to sqlite:FOLDER/reports "
    "--nameserver ZONE",
    "chain": "--config FOLDER/chain.toml",
    "clamav": "CLAMD --headers all",
    "correspondents": "--store sqlite:FOLDER/store --header",
    "dkimsign": "-d example.org -s test -k FOLDER/key --arc-seal mx.example.org",
    "dnsbl": "--client bl.example --helo dbl.example --reject-at 2 --nameserver ZONE",
    "dyndns": "--extra-patterns '[.]pool[.]' --action reject",
    "fcrdns": "--verify --nameserver ZONE",
    "greylist": "--dnswl wl.example --header --correspondents sqlite:FOLDER/correspondents "
    "--store sqlite:FOLDER/greylist --nameserver ZONE",
    "helo": "--unknown reject --nameserver ZONE",
    "limit": "--limit 'client connections 100/1h' --limit 'client connections 50' "
    "--limit 'sender messages 100/1d' --store sqlite:FOLDER/limit",
    "mailfrom": "--domains example.org --check-header --check-display",
    "milter": "--milter MILTER",
    "policy": "--server \"exec:/bin/sed -u -n 's/^$/action=PREPEND X-A: b\\n/p'\" --at connect "
    "--at rcpt-to --at end-of-message",
    "rcpt": "--domains example.org --unknown-domain reject --delay 10ms --nameserver ZONE",
    "rspamd": "-url RSPAMD",
    "sender": "--nameserver ZONE",
    "spamd": "--spamd SPAMD --new-message",
    "senderscore": "-junkBelow 80 -scoreHeader -slowFactor 10 --nameserver ZONE",
    "rewrite": "--canonical \"regexp:{ '/^(.*)@lan$/ $1@x.org' }\" --subject-prefix [X]",
    "content": "--private --rules FOLDER/rules.toml",
    "tls": "--require '1.2 sender=@example.org' --require 'any certificate action=log'",
    "trace": "--detail all --record FOLDER --anonymise",
}
#: Runs a module as a program, and logs what it would import of files once `package` is removed.
START = """
import os, runpy, sys
from _imp import is_frozen

package, module = sys.argv.pop(1), sys.argv.pop(1)

def note(event, arguments):
    if event == "import" and not os.path.exists(package):
        name = arguments[0]
        if not (name in sys.modules or name in sys.builtin_module_names or is_frozen(name)):
            os.write(2, f"late import of {name}\\n".encode())

sys.addaudithook(note)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
MARKED = b'{"action": "add header", "score": 7.5, "required_score": 15.0, "symbols": {}}'
CHAIN = """\
[chain.all]
filters = ["dyndns", "fcrdns", "mailfrom"]

[filter.mailfrom]
domains = "example.org"
check-header = true
"""
RULES = """\
[[rule]]
name = "all"
header = "X-Seen"
present = false
action = "header"
field = "X-Seen: yes"
"""


@contextmanager
def clamd() -> Iterator[str]:
    with Clamd() as daemon:
        yield daemon.address


@contextmanager
def spamd() -> Iterator[str]:
    with SpamdStub() as daemon:
        yield daemon.server


@contextmanager
def milter_stub() -> Iterator[str]:
    with milter() as daemon:
        yield daemon.address


STUBS = {"CLAMD": clamd, "SPAMD": spamd, "MILTER": milter_stub}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that may be taken away."""
    target = tmp_path / "modules"
    ignored = shutil.ignore_patterns("__pycache__", "testing")
    shutil.copytree(SOURCE / "smtpd_filters", target / "smtpd_filters", ignore=ignored)
    return target


def events(name: str) -> Iterator[bytes]:
    """What smtpd said in all recorded sessions of this filter, or of some filter."""
    folder = FIXTURES / name
    folder = folder if folder.exists() else FIXTURES / "mailfrom"
    sessions = sorted([*folder.glob("*.session"), *folder.glob("*.script")])
    assert sessions
    for path in sessions:
        for line in path.read_bytes().splitlines(keepends=True):
            if line.startswith(b"< ") and not line.startswith(b"< config|"):
                yield line.removeprefix(b"< ")


def greet(filter_: BufferedRWPair) -> set[bytes]:
    """Begin as smtpd does, and wait until the filter is ready; what it has registered."""
    filter_.write(b"config|smtpd-version|7.6.0p1\nconfig|protocol|0.7\n")
    filter_.write(b"config|admd|mx.example.org\nconfig|ready\n")
    filter_.flush()
    registered = set()
    while b"register|ready" not in registered:
        line = filter_.readline()
        assert line
        registered.add(line.rstrip(b"\n"))
    return registered


def play(name: str, filter_: BufferedRWPair, registered: set[bytes]) -> int:
    """Play sessions to a filter, one request at a time; how many it has answered."""
    answered = 0
    for line in events(name):
        kind, _, _, subsystem, event, session, *rest = line.rstrip(b"\n").split(b"|", 7)
        if b"register|%b|%b|%b" % (kind, subsystem, event) not in registered:
            continue
        filter_.write(line)
        if kind == b"report" or (event == b"data-line" and rest[1] != b"."):
            continue
        last = b"filter-result|%b|%b|" % (session, rest[0])
        if event == b"data-line":
            last = b"filter-dataline|%b|%b|.\n" % (session, rest[0])
        filter_.flush()
        reply = b""
        while not reply.startswith(last):
            reply = filter_.readline()
            assert reply, f"no answer to {line!r}"
        answered += 1
    return answered


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_loaded_once_a_filter_is_ready(name: str, package: Path, tmp_path: Path) -> None:
    (tmp_path / "chain.toml").write_text(CHAIN)
    (tmp_path / "rules.toml").write_text(RULES)
    if "FOLDER/key" in COMMANDS[name]:
        subprocess.run(
            ["openssl", "genrsa", "-out", "key", "2048"],  # noqa: S607  # where the system has it
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
    module = "smtpd_filters.cli.chain" if name == "chain" else f"smtpd_filters.filters.{name}"
    zone = FIXTURES / name / "zone.json"
    ours, its = socket.socketpair()
    ours.settimeout(60)
    libraries = tmp_path / "libraries"
    libraries.symlink_to(sysconfig.get_path("purelib"))
    with (
        ours,
        DNSServer(json.loads(zone.read_text()) if zone.exists() else {}) as server,
        RspamdStub(Answer(MARKED)) as daemon,
        ExitStack() as stack,
        (tmp_path / "log").open("wb") as log,
    ):
        flags = COMMANDS[name].replace("ZONE", f"{server.address}:{server.port}")
        flags = flags.replace("RSPAMD", daemon.url)
        for word, start in STUBS.items():
            if word in flags:
                flags = flags.replace(word, stack.enter_context(start()))
        words = shlex.split(flags.replace("FOLDER", str(tmp_path)))
        with its:
            filter_ = subprocess.Popen(
                [sys.executable, "-S", "-P", "-B", "-c", START, str(package), module, *words],
                stdin=its.fileno(),
                stdout=its.fileno(),
                stderr=log,
                env={**os.environ, "PYTHONPATH": f"{package}:{libraries}"},
            )
        try:
            with ours.makefile("rwb") as both:
                registered = greet(both)
                shutil.rmtree(package)
                libraries.unlink()
                assert play(name, both, registered)
        finally:
            ours.close()
            status = filter_.wait(timeout=60)
    assert status == 0
    for line in (tmp_path / "log").read_text().splitlines():
        assert " error=" not in line
        assert "late import" not in line
