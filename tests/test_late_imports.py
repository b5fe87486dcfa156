"""What serves loads nothing more: an upgrade may replace the files below a filter that runs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing import DNSServer
from smtpd_filters.testing.rspamd_stub import Answer, RspamdStub
from tests.bench.player import Player
from tests.bench.workloads import message, sessions

if TYPE_CHECKING:
    from collections.abc import Iterator

# Writes down what is imported after the first event.
PROGRAM = """\
import importlib, sys

found = open(sys.argv.pop(1), "w")
serving = False

def watch(event, arguments):
    if serving and event == "import":
        print(arguments[0], file=found, flush=True)

from smtpd_filters.runtime.engine import Engine

receive = Engine.receive

def first_event(self, data):
    global serving
    serving = serving or data.startswith((b"report|", b"filter|"))
    receive(self, data)

Engine.receive = first_event
sys.addaudithook(watch)
filter_ = importlib.import_module("smtpd_filters.filters." + sys.argv.pop(1))
status = filter_.main()
import sched  # so that one sees that it is
sys.exit(status)
"""
ZONE = {"*.list.example": {"A": "127.0.0.2", "TXT": "listed"}}
NAMESERVER = ("--nameserver", "{nameserver}", "--dry-run")
COMMANDS: dict[str, tuple[str, ...]] = {
    "dnsbl": (*NAMESERVER, "--client", "list.example", "--junk-at", "1", "--header"),
    "dyndns": ("--dry-run",),
    "fcrdns": (*NAMESERVER, "--verify"),
    "helo": NAMESERVER,
    "mailfrom": ("--patterns", "{patterns}", "--check-display", "--dry-run"),
    "rcpt": (*NAMESERVER, "--unknown-domain", "reject", "--domains", "example.org"),
    "rspamd": ("-url", "{url}"),
    "sender": NAMESERVER,
    "senderscore": (*NAMESERVER, "-junkBelow", "70", "-scoreHeader", "-allowlist", "{networks}"),
    "trace": (),
}
REPLY = b'{"action": "add header", "score": 7.5, "required_score": 15.0, "symbols": {}}'


@pytest.fixture
def values(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What stands for the names in COMMANDS."""
    tables = {"patterns": "/@.*[.]example$/\n", "networks": "192.0.2.0/24\n"}
    for name, content in tables.items():
        (tmp_path / name).write_text(content, "ascii")
    with DNSServer(ZONE) as dns, RspamdStub(Answer(REPLY)) as stub:
        yield {
            "nameserver": f"{dns.address}:{dns.port}",
            "url": stub.url,
            **{name: str(tmp_path / name) for name in tables},
        }


def test_each_filter_is_here() -> None:
    package = Path(sys.modules["smtpd_filters"].__path__[0]) / "filters"
    assert set(COMMANDS) == {path.stem for path in package.glob("[!_]*.py")}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_serves_loads_nothing_more(name: str, values: dict[str, str], tmp_path: Path) -> None:
    found = tmp_path / "imported"
    arguments = [argument.format_map(values) for argument in COMMANDS[name]]
    with Player([sys.executable, "-c", PROGRAM, str(found), name, *arguments]) as player:
        # A short message, one that goes to disk, and tables that are read again.
        sessions(player, 5, 5, message(12))
        sessions(player, 1, 1, message(8000))
        os.kill(player.pid, signal.SIGHUP)
        sessions(player, 5, 5, message(12))
        player.finish()
    late = found.read_text("ascii").split()
    assert "sched" in late
    # The standard library's may: it is not this package's upgrade that replaces it.
    ours = {module for module in late if module.partition(".")[0] not in sys.stdlib_module_names}
    assert not ours
