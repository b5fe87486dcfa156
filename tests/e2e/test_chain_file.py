"""filter-chain under a real server: several filters in one process, as a file declares them."""

from __future__ import annotations

import re
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.dns import merge
from smtpd_filters.testing.server import BIN, LabError, file_path, filter_command
from tests.e2e.sending import (
    ALICE,
    BOB,
    DYNAMIC,
    DYNAMIC6,
    GOOD,
    GOOD6,
    LIAR,
    MESSAGE,
    NAMELESS,
    NAMELESS6,
    SENDER,
    ZONE,
    attempt,
    crowd,
    folders,
    logged,
)

if TYPE_CHECKING:
    from typing import Any

    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

ROOT = Path(__file__).parents[2]
FILE = f"""\
[filter.nameless]
use = "fcrdns"
require = "rdns"
action = "reject"
phase = "mail-from"

[filter.liars]
use = "fcrdns"
phase = "mail-from"
verify = true
nameserver = ["127.0.0.1"]

[filter.dyndns]
allow = "file:{file_path("allow")}"
action = "reject"

[filter.rcpt]
max-recipients = 1

[filter.mailfrom]
domains = "local.example"
dry-run = true

[chain.inbound]
filters = ["dyndns", "nameless", "liars", "mailfrom", "rcpt"]

[chain.users]
verbose = true
filters = ["mailfrom-users"]

[filter.mailfrom-users]
use = "mailfrom"
senders = "{{ alice = alice@local.example }}"
"""
GREET = """\
from smtpd_filters import PROCEED, Filter, Proceed, Reject, Session


class Greet(Filter):
    "Refuse who calls itself by our name."

    def ehlo(self, session: Session, identity: str) -> Proceed | Reject:
        if identity == "local.example":
            return Reject("550 5.7.1 That is me").because("greets by our name")
        return PROCEED
"""
CHAINS = "chains.toml"


def command(*flags: str, file: str = CHAINS) -> str:
    return filter_command("chain", "--config", file_path(file), *flags)


def chained(start: Start, content: str = FILE, chain: str = "inbound", **files: str) -> Smtpd:
    given = {CHAINS: content, "allow": "# nobody yet\n", **files}
    return start(zone=ZONE, files=given, filters={"chain": command("--chain", chain)})


@pytest.mark.parametrize(("good", "nameless"), [(GOOD, NAMELESS), (GOOD6, NAMELESS6)])
@pytest.mark.parametrize("dynamic", [DYNAMIC, DYNAMIC6])
def test_each_filter_of_a_chain_has_its_say(
    start: Start, good: str, nameless: str, dynamic: str
) -> None:
    server = chained(start)
    assert attempt(server, good).stage == ""
    assert attempt(server, dynamic).said.startswith("554 5.7.1 Your reverse DNS name looks ")
    assert attempt(server, nameless).said == "450 4.7.25 Your IP address has no reverse DNS name"
    assert attempt(server, LIAR).stage == ""
    assert attempt(server, good, recipients=[ALICE, BOB]).code == 452
    assert attempt(server, good, sender=BOB).stage == ""
    assert folders(server) == ["", "Junk", ""]
    # Each by its own name.
    for line in (
        "dyndns connect result=reject ",
        'nameless mail-from result=reject reason="no reverse name"',
        'liars mail-from result=junk reason="rdns liar.example not confirmed',
        "mailfrom mail-from result=proceed would=reject ",
        'rcpt rcpt-to result=reject reason="1 recipients already"',
    ):
        logged(server, f"^chain: [0-9a-f]{{16}} {line}", 1)


def test_one_process_serves_them_all(start: Start) -> None:
    server = chained(start)
    assert len(server.find("filter-chain")) == 1
    clients = [{"source": source} for source in (GOOD, NAMELESS, DYNAMIC, GOOD6)] * 5
    outcomes = crowd(partial(attempt, server), clients)
    assert [outcome.stage for outcome in outcomes] == ["", "MAIL", "connect", ""] * 5
    assert len(server.maildir("alice")) == 10


def test_two_chains_of_one_file(start: Start) -> None:
    chains = {name: command("--chain", name) for name in ("inbound", "users")}
    listeners = """\
filter "in" chain { "inbound" }
filter "out" chain { "users" }
listen on 127.0.0.1 port 25 filter "in"
listen on 127.0.0.1 port 587 $tls auth <credentials> filter "out"
"""
    server = start(
        zone=ZONE,
        files={CHAINS: FILE, "allow": "# nobody\n"},
        filters=chains,
        listeners=listeners,
    )
    assert attempt(server, NAMELESS).stage == "MAIL"
    with server.client(NAMELESS, port=587) as client:
        client.starttls()
        from smtpd_filters.testing.server import password

        client.login("alice", password("alice"))
        client.sendmail(ALICE, [BOB], MESSAGE)
        code, text = client.mail(SENDER)
        assert (code, text) == (550, b"5.7.1 Sender address not allowed for your user")
    assert len(server.maildir("bob")) == 1
    # Verbose is one of them.
    logged(server, "users: [0-9a-f]{16} mailfrom-users mail-from result=proceed ", 1)
    assert not [line for line in server.log if re.search("^inbound: .*result=proceed took", line)]


def test_tables_are_reloaded_and_the_file_is_not(start: Start) -> None:
    server = chained(start)
    assert attempt(server, DYNAMIC).stage == "connect"
    server.write("allow", f"{DYNAMIC}\n")
    server.write(CHAINS, "nonsense")
    server.signal_filter("chain", signal.SIGHUP)
    server.wait_for("dyndns reload table=allow result=ok")
    assert attempt(server, DYNAMIC).stage == ""
    assert attempt(server, NAMELESS).stage == "MAIL"


def test_a_filter_of_the_operators_own(start: Start) -> None:
    content = f"""
    [filter.greet]
    use = "{file_path("greet.py")}:Greet"
    [chain.inbound]
    filters = ["greet", "rcpt"]
    """
    server = chained(start, content, **{"greet.py": GREET})
    assert attempt(server).stage == ""
    outcome = attempt(server, helo="EHLO local.example")
    assert (outcome.stage, outcome.said) == ("EHLO", "550 5.7.1 That is me")
    logged(server, 'greet ehlo result=reject reason="greets by our name"', 1)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "require =",
            "requires =",
            r'\d+: \[filter.nameless\]: unknown key "requires", did you mean "require"[?]',
        ),
        (
            '"rcpt"]',
            '"rcpts"]',
            r'\d+: \[chain.inbound\]: filters: no filter "rcpts", did you mean "rcpt"[?]',
        ),
        (
            file_path("allow"),
            file_path("missing"),
            r"\d+: \[filter.dyndns\]: allow: /.*/missing: No such .*",
        ),
        ("[filter.rcpt]", "[filter.rcpt", r"\d+:\d+: .*"),
    ],
)
def test_what_is_wrong_keeps_the_server_from_starting(
    start: Start, old: str, new: str, line: str
) -> None:
    with pytest.raises(LabError, match="did not start") as failure:
        chained(start, FILE.replace(old, new))
    found = [text for text in str(failure.value).split("\n") if text.startswith("chain: ")]
    assert len(found) == 1, found
    assert re.fullmatch(f"chain: filter-chain: {file_path(CHAINS)}:{line}", found[0])


def test_a_file_that_everybody_may_write_to(start: Start) -> None:
    server = chained(start)
    server.path(file_path(CHAINS)).chmod(0o666)
    done = server.lab.run(f"{BIN}/filter-chain", "-n", "-f", file_path(CHAINS), check=False)
    assert done.returncode == 1
    assert b": users other than its owner can write to it" in done.stderr


def test_a_check_is_made_as_smtpds_user(start: Start) -> None:
    """The file is well for root, but smtpd's filters could not read it."""
    server = chained(start)
    check = (f"{BIN}/filter-chain", "--check", "--config", file_path(CHAINS))
    done = server.lab.run(*check, check=False)
    assert done.returncode == 0
    well = rb"configuration OK: /srv/lab/files/chains.toml \(.*dyndns.*\), as \w+\n"
    assert re.fullmatch(well, done.stderr)
    server.path(file_path("allow")).chmod(0o600)
    done = server.lab.run(*check, check=False)
    assert done.returncode == 1
    denied = rb"\[filter.dyndns\]: allow: /srv/lab/files/allow: Permission denied for user \w+\n"
    assert re.search(denied, done.stderr)
    assert b"for user root" not in done.stderr
    # What runs is what was read at the start.
    assert attempt(server, DYNAMIC).stage == "connect"


def test_the_example(start: Start) -> None:
    content = (ROOT / "docs" / "examples" / "smtpd-filters.toml").read_text("utf-8")
    files = dict.fromkeys(re.findall(r"file:/etc/mail/(\w+)", content), "# none\n")
    files["domains"] = "local.example\n"
    files["spamtraps"] = "trap@local.example\n"
    content = content.replace("/etc/mail/", file_path("")).replace("verify = true", "")
    zone: dict[str, Any] = merge(
        ZONE,
        {
            "good.example": {"MX": ["10 mx.good.example"]},
            "mx.good.example": {"A": ["198.18.0.1", "192.88.99.1"]},
        },
    )
    server = start(
        zone=zone,
        files={CHAINS: content, **files},
        filters={name: command("--chain", name) for name in ("inbound", "users")},
        listeners='listen on 127.0.0.1 port 25 filter "inbound"\n'
        'listen on ::1 port 25 filter "inbound"\n',
    )
    for source in (GOOD, GOOD6):
        assert attempt(server, source).stage == ""
        assert attempt(server, source, sender=BOB).code == 550
        assert attempt(server, source, sender="x@nowhere.example").code == 550
        assert attempt(server, source, recipients=["alice@local"]).code == 504
    assert folders(server) == ["", ""]
