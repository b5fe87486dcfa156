"""A chain with a score under a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.testing.server import file_path
from tests.e2e.sending import (
    ALICE,
    BOB,
    DYNAMIC,
    GOOD,
    GOOD6,
    LIAR,
    NAMELESS,
    ZONE,
    attempt,
    folders,
    logged,
)
from tests.e2e.test_chain_file import CHAINS, command

if TYPE_CHECKING:
    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

FILE = f"""\
[filter.nameless]
use = "fcrdns"
require = "rdns"
action = "reject"
score = {{ reject = 3, tempfail = 3 }}

[filter.liars]
use = "fcrdns"
score = 2.5

[filter.dyndns]
action = "reject"
score = 6

[filter.friend]
use = "rcpt"
max-recipients = 1
score = 1

[chain.scored]
filters = ["dyndns", "nameless", "liars", "friend"]
junk-at = 2.5
reject-at = 6
score-at = "rcpt-to"
score-header = true
bypass-clients = "file:{file_path("friends")}"
bypass-recipients = "{BOB}"
"""
FIELD = b"X-Smtpd-Filters-Score: "


def scored(start: Start, friends: str = "# nobody yet\n") -> Smtpd:
    return start(
        zone=ZONE,
        files={CHAINS: FILE, "friends": friends},
        filters={"chain": command("--chain", "scored")},
    )


def fields(server: Smtpd) -> list[bytes]:
    """The scores of alice's mail, in order."""
    return [
        line.removeprefix(FIELD).rstrip()
        for mail in server.maildir("alice")
        for line in mail.content.splitlines()
        if line.startswith(FIELD)
    ]


def test_points_mark_and_refuse(start: Start) -> None:
    server = scored(start)
    assert attempt(server, GOOD).stage == ""
    assert attempt(server, LIAR).stage == ""
    refused = attempt(server, DYNAMIC)
    assert (refused.stage, refused.said) == ("RCPT", "550 5.7.1 Refused as probable spam")
    # A name that isn't there can't be confirmed either.
    assert attempt(server, NAMELESS).stage == ""
    assert folders(server) == ["", "Junk", "Junk"]
    assert fields(server) == [
        b"0 (junk-at 2.5, reject-at 6)",
        b"2.5 (junk-at 2.5, reject-at 6) liars=2.5",
        b"5.5 (junk-at 2.5, reject-at 6) nameless=3 liars=2.5",
    ]
    logged(server, r"^chain: [0-9a-f]{16} liars connect result=proceed would=junk points=2.5 ", 2)
    logged(server, r"^chain: [0-9a-f]{16} score message result=junk score=2.5 junk-at=2.5 ", 1)
    logged(server, r"^chain: [0-9a-f]{16} score rcpt-to result=reject score=6 ", 1)


def test_who_bypasses_the_chain(start: Start) -> None:
    server = scored(start, friends=f"{DYNAMIC}\n")
    assert attempt(server, DYNAMIC).stage == ""
    server = scored(start)
    assert attempt(server, DYNAMIC).stage == "RCPT"
    assert attempt(server, DYNAMIC, recipients=[BOB]).stage == ""
    assert attempt(server, GOOD6, recipients=[ALICE, BOB]).stage == ""
