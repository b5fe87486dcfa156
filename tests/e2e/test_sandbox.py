"""Tests of `--sandbox strict` under a real server: filters work, and a mistake gets nowhere."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.server import CODE, file_path, filter_command, scratch_path
from tests.e2e.sending import DYNAMIC, GOOD, LIAR, NAMELESS, ZONE, attempt, folders, logged
from tests.needed import need
from tests.sandbox.kernel import complete

if TYPE_CHECKING:
    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

STRICT = ("--sandbox", "strict")
#: The folder of the package; and a directory to which a filter is confined by smtpd itself.
PACKAGE = Path(__file__).parents[2]
JAIL = "/srv/jail"
#: A filter of the operator's own, whose policy reads what it has not declared.
OWN = """\
from pathlib import Path

from smtpd_filters import PROCEED, Filter, Proceed, Session


class Own(Filter):
    on_error = "tempfail"

    def mail_from(self, session: Session, address: str) -> Proceed:
        if address.startswith("curious"):
            Path("/etc/passwd").read_text()
        return PROCEED
"""
CHAIN = """\
sandbox = "strict"

[filter.own]
use = "{own}"

[filter.dyndns]
allow = "file:{allow}"
action = "reject"

[filter.fcrdns]
verify = true
nameserver = ["127.0.0.1"]
action = "reject"
phase = "mail-from"

[chain.all]
filters = ["own", "dyndns", "fcrdns"]
"""


@pytest.fixture(autouse=True)
def kernel() -> None:
    need("" if complete() else "a kernel with seccomp, and Landlock for TCP ports")


def every() -> dict[str, str]:
    """All filters in processes of their own, each with settings by which it does something."""
    dns = ("--nameserver", "127.0.0.1")
    return {
        name: filter_command(name, *flags, *STRICT)
        for name, flags in {
            "dyndns": ("--action", "reject", "--allow", f"file:{file_path('allow')}"),
            "fcrdns": ("--verify", "--action", "reject", "--phase", "mail-from", *dns),
            "helo": ("--unknown", "junk", *dns),
            "sender": ("--bad-mx", "off", *dns),
            "rcpt": ("--max-recipients", "1"),
            "dnsbl": ("--client", "bl.example", *dns),
            "senderscore": ("-junkBelow", "1", *dns),
            "mailfrom": ("--domains", "local.example"),
            "auth": dns,
            "trace": ("--record", scratch_path("recorded"), "--detail", "headers"),
        }.items()
    }


def test_all_filters_work(start: Start) -> None:
    zone = {**ZONE, "good.example": {"A": GOOD}, "client.example": {"A": GOOD}}
    server = start(zone=zone, files={"allow": "# nobody yet\n"}, filters=every())
    assert attempt(server, GOOD).stage == ""
    assert attempt(server, DYNAMIC).stage == "connect"
    assert attempt(server, NAMELESS).stage == "MAIL"
    assert attempt(server, LIAR).stage == "MAIL"
    # The file is replaced and read again; this client's name is confirmed.
    server.write("allow", f"{DYNAMIC}\n")
    server.signal_filter("dyndns", signal.SIGHUP)
    server.wait_for("dyndns reload table=allow result=ok")
    assert attempt(server, DYNAMIC).stage == ""
    assert len(folders(server)) == 2
    server.terminate()  # the log is complete then
    complaints = [line for line in server.log if "sandbox" in line or "PermissionError" in line]
    assert complaints == []


def chained(start: Start) -> Smtpd:
    files = {
        "own.py": OWN,
        "allow": "# nobody yet\n",
        "chain.toml": CHAIN.format(own=file_path("own.py"), allow=file_path("allow")),
    }
    command = filter_command("chain", "--config", file_path("chain.toml"))
    return start(zone=ZONE, files=files, filters={"chain": command})


def test_a_mistake_of_an_own_filter_is_answered_for(start: Start) -> None:
    server = chained(start)
    assert attempt(server, GOOD).stage == ""
    outcome = attempt(server, GOOD, sender="curious@example.net")
    assert (outcome.stage, outcome.code) == ("MAIL", 451)
    [line] = logged(server, "own mail-from .*result=reject", 1)
    assert "PermissionError: [Errno 1] --sandbox: not declared: reading '/etc/passwd'" in line
    assert attempt(server, GOOD).stage == ""
    assert attempt(server, NAMELESS).stage == "MAIL"
    server.write("allow", f"{DYNAMIC}\n")
    server.signal_filter("chain", signal.SIGHUP)
    server.wait_for("dyndns reload table=allow result=ok")
    assert attempt(server, DYNAMIC).stage == ""


def test_a_filter_in_a_chroot_of_another_user(start: Start) -> None:
    """With what it takes there, and nothing else: no /proc, no /etc."""
    system = {name: Path(f"/usr/{name}") for name in ("bin", "lib", "lib64")}
    inside = {"usr": Path("/usr"), "dev": Path("/dev"), CODE: PACKAGE, **system}
    run = f"/usr/bin/env PYTHONPATH={CODE} /usr/bin/python3 -s -m smtpd_filters"
    filter_ = f"{run}.filters.dyndns --action reject --sandbox strict"
    server = start(
        zone=ZONE,
        binds={f"{JAIL}/{name.strip('/')}": path for name, path in inside.items()},
        declarations=f'filter "jailed" proc-exec "{run}.supervise.program {filter_}" '
        f'user nobody group nogroup chroot "{JAIL}"',
        listeners='listen on lo port 25 hostname "mx.local.example" filter "jailed"',
    )
    assert attempt(server, GOOD).stage == ""
    assert attempt(server, DYNAMIC).stage == "connect"
    found = [each for each in server.find("filters.dyndns") if each.arguments[0] != "sh"]
    assert len(found) == 2  # and its supervisor
    for process in found:
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "Uid:\t65534\t65534\t65534\t65534\n" in status
        assert str(Path(f"/proc/{process.pid}/root").readlink()).endswith(JAIL)
        assert ("Seccomp:\t2\n" in status) is ("supervise" not in " ".join(process.arguments))
    # A program that ends is started again there.
    lines = len(server.log)
    for process in found:
        if "supervise" not in " ".join(process.arguments):
            os.kill(process.pid, signal.SIGKILL)
    server.wait_for("supervise ready", since=lines)
    assert attempt(server, DYNAMIC).stage == "connect"
