"""filter-greylist under real servers: with a file, and with a Redis that two exchangers share."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from smtpd_filters.testing.server import filter_command, scratch_path
from tests.e2e.sending import (
    ALICE,
    BOB,
    DYNAMIC,
    GOOD,
    NAMELESS,
    NAMELESS6,
    ZONE,
    Outcome,
    attempt,
    folders,
    logged,
)
from tests.e2e.test_chain_file import CHAINS, command
from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

CHAIN = f"""\
[chain.inbound]
filters = ["dyndns", "fcrdns", "greylist"]
greylist-at = 2

[filter.dyndns]
score = 2

[filter.fcrdns]
score = 2

[filter.greylist]
only-if = ["dynamic", "no-rdns"]
store = "sqlite:{scratch_path("greylist.sqlite")}"
store-timeout = 30
delay = 1
ipv4-prefix = 32
nameserver = ["127.0.0.1"]
"""
FIRST = re.compile(r"451 4\.7\.1 Greylisted, please try again in 1 seconds")
STORE = f"sqlite:{scratch_path('greylist.sqlite')}"
#: Seconds for a client to be accepted that retries all the time.
PATIENCE = 60.0


def launch(start: Start, *flags: str, store: str = STORE, **more: object) -> Smtpd:
    words = filter_command(
        *("greylist", "--store", store, "--store-timeout", "30", "--delay", "1"),
        *("--ipv4-prefix", "32", *flags),
    )
    return start(zone=ZONE, filters={"greylist": words}, **more)


def refused(outcome: Outcome, stage: str = "RCPT") -> bool:
    return outcome.stage == stage and FIRST.fullmatch(outcome.said) is not None


def accepted_at_last(send: Callable[[], Outcome], stage: str = "RCPT") -> bool:
    """Retry until the client is accepted; return whether it was, and only refused temporarily."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        outcome = send()
        if not outcome.stage:
            return True
        if not refused(outcome, stage):
            return False
    return False


def test_clients_wait_once(start: Start) -> None:
    server = launch(start, "--header", "--nameserver", "127.0.0.1")
    for source in (GOOD, NAMELESS6):
        assert refused(attempt(server, source))
    assert refused(attempt(server, GOOD, sender="", recipients=[BOB]), "DATA")
    assert accepted_at_last(lambda: attempt(server, GOOD))
    assert accepted_at_last(lambda: attempt(server, GOOD, sender="", recipients=[BOB]), "DATA")
    assert folders(server) == [""]
    [mail] = server.maildir("alice")
    assert re.search(rb"^X-Greylist: delayed \d+ seconds, client ", mail.content, re.MULTILINE)
    assert attempt(server, GOOD).stage == ""
    logged(server, r"^greylist: [0-9a-f]{16} greylist rcpt-to result=proceed reason=.*waited", 1)
    logged(server, r"^greylist: [0-9a-f]{16} greylist data result=proceed reason=.*waited", 1)


def test_in_a_chain_only_the_suspicious_wait(start: Start) -> None:
    server = start(
        zone=ZONE, files={CHAINS: CHAIN}, filters={"chain": command("--chain", "inbound")}
    )
    assert attempt(server, GOOD).stage == ""
    for source in (DYNAMIC, NAMELESS):
        assert refused(attempt(server, source, recipients=[ALICE, BOB]))
    assert accepted_at_last(lambda: attempt(server, DYNAMIC, recipients=[BOB, ALICE]))


def test_what_one_exchanger_has_refused_another_accepts(start: Start, tmp_path: Path) -> None:
    redis = RedisServer(tmp_path / "redis", "--unixsocketperm", "777")
    try:
        tmp_path.chmod(0o755)
        more = {"binds": {"/mnt": redis.folder}}
        flags = ("--key", "network")
        one, two = (launch(start, *flags, store="unix:///mnt/redis.sock", **more) for _ in "12")
        assert refused(attempt(one, NAMELESS))
        assert accepted_at_last(lambda: attempt(two, NAMELESS))
        assert attempt(one, NAMELESS).stage == ""
        assert refused(attempt(two, DYNAMIC))
        # A memory that is gone refuses nobody, and is used again when it is back.
        redis.stop()
        assert attempt(one, DYNAMIC, recipients=[BOB]).stage == ""
        redis.start()
        assert refused(attempt(two, DYNAMIC, recipients=[BOB]))
    finally:
        redis.stop()
