"""Several processes, killed ones, broken files, and clocks that jump."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.filters.greylist import Greylist
from smtpd_filters.filters.greylist.triplets import (
    Attempt,
    Terms,
    Triplets,
    client_key,
    triplet_key,
)
from smtpd_filters.protocol.events import Result
from smtpd_filters.stores import Get
from smtpd_filters.testing import Conversation
from tests.effort import part
from tests.filters.greylist.racer import NET, SENDERS, YOU, opened
from tests.needed import need
from tests.runtime.process import ROOT, FilterProcess, sid
from tests.stores.conftest import Clock, open_sqlite
from tests.stores.redis_server import RedisServer, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Deliveries during which the filter is killed: GREYLIST_DELIVERIES=10000 for a thorough test.
DELIVERIES = int(os.environ.get("GREYLIST_DELIVERIES", part(400)))
KILLS = 4


# -- several processes -------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.e2e)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store that processes share."""
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path}/greylist.sqlite"
        return
    need(unavailable())
    server = RedisServer(tmp_path / "redis")
    yield f"unix://{server.socket}"
    server.stop()


def test_of_several_processes_one_begins_a_wait_and_none_counts_twice(address: str) -> None:
    async def count() -> Any:
        store = opened(address)
        try:
            return await store.ask(Get(client_key(NET)))
        finally:
            await store.aclose()

    with ExitStack() as stack:
        racers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.filters.greylist.racer", address, seed],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
            for seed in "123"
        ]

        def race() -> list[dict[str, int]]:
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write("go\n")
                racer.stdin.flush()
            return [json.loads(racer.stdout.readline()) for racer in racers if racer.stdout]

        first = race()
        assert sum(states.get("new", 0) for states in first) == SENDERS
        assert sum(states.get("waiting", 0) for states in first) == 2 * SENDERS
        second = race()
        assert {state for states in second for state in states} <= {"waited", "passed"}
    assert asyncio.run(count()).value == b"1"


# -- a filter that is killed -------------------------------------------------------------------


def begun(process: FilterProcess, number: int) -> bytes:
    """Return the lines of a session up to the request about its recipient."""
    session, smtpd = sid(number), process.smtpd
    ends = (b"192.0.2.1:25", b"198.51.100.25:25")
    return b"".join(
        [
            smtpd.report("link-connect", session, b"mail.example.net", b"pass", *ends),
            smtpd.report("tx-begin", session, b"1ef1c203"),
            smtpd.report("tx-mail", session, b"1ef1c203", b"ok", b"a@example.org"),
            process.request("rcpt-to", session, b"user-%d@example.net" % number),
        ]
    )


def has_answers(process: FilterProcess, count: int) -> bool:
    return len(process.answers) >= count


def remembered(path: Path) -> set[bytes]:
    """Return the keys in the file, which must be sound, with triplets that are whole."""
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = connection.execute("SELECT key, value FROM entries").fetchall()
    connection.close()
    assert {value for _, value in found} == {b"waiting 192.0.2.1"}
    return {key for key, _ in found}


def test_a_killed_filter_forgets_nothing_that_it_has_answered(tmp_path: Path) -> None:
    path = tmp_path / "greylist.sqlite"
    words = ["-m", "smtpd_filters.filters.greylist", "--store", f"sqlite:{path}"]
    words += ["--key", "network", "--store-timeout", "60", "--deadline", "100"]
    dice = random.Random(4711)  # noqa: S311  # the moments of the kills
    answered: set[bytes] = set()
    each = DELIVERIES // KILLS
    for run in range(KILLS):
        with FilterProcess(words) as process:
            process.hand_shake()
            for number in range(run * each, (run + 1) * each):
                process.send(begun(process, number))
            process.until(partial(has_answers, process, dice.randrange(1, each)))
            process.kill(signal.SIGKILL)
            process.child.wait()
            for answer in process.answers:
                assert isinstance(answer, Result)
                assert (answer.argument or b"").startswith(b"451 4.7.1 Greylisted")
                number = int(answer.session, 16) - int(sid(0), 16)
                answered.add(
                    triplet_key("192.0.2.0/24", "a@example.org", f"user-{number}@example.net")
                )
        assert answered <= remembered(path)
    assert KILLS <= len(answered) <= len(remembered(path)) <= DELIVERIES


# -- a file that can't be used -----------------------------------------------------------------


def verb(smtpd: Conversation, recipient: str = YOU) -> str:
    client = smtpd.connect()
    client.ehlo("mail.example.com")
    client.mail_from("anna@example.org")
    return client.rcpt_to(recipient).verb


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "greylist.sqlite"
    flags = ("--store", f"sqlite:{path}", "--store-timeout", "60", "--key", "network")
    with Conversation(Greylist, *flags) as smtpd:
        assert verb(smtpd) == "reject"
    path.write_bytes(random.Random(1).randbytes(20_000))  # noqa: S311  # no secret
    with Conversation(Greylist, *flags) as smtpd:
        assert [verb(smtpd), verb(smtpd)] == ["reject", "reject"]
        assert f"{path} is damaged (file is not a database): renamed to " in smtpd.log[0]
        assert "first attempt" in smtpd.log[1]
        assert "retried too early" in smtpd.log[2]
    assert (tmp_path / "greylist.sqlite.damaged-1").stat().st_size == 20_000


def test_a_locked_file_delays_nobody(tmp_path: Path) -> None:
    path = tmp_path / "greylist.sqlite"
    flags = ("--store", f"sqlite:{path}", "--store-timeout", "0.05", "--key", "network")
    with Conversation(Greylist, *flags) as smtpd:
        locked = sqlite3.connect(path)
        locked.execute("BEGIN IMMEDIATE")
        assert verb(smtpd) == "proceed"
        assert "cause=" in smtpd.log[0]
        locked.rollback()
        locked.close()


# -- clocks that jump --------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [400 * 86400.0, -400 * 86400.0])
def test_a_clock_that_jumps_neither_shortens_nor_prolongs_a_wait(
    jump: float, tmp_path: Path, clock: Clock, notes: list[str]
) -> None:
    terms = Terms(delay=300, window=7200, lifetime=864_000, known_after=5)

    async def states() -> list[str]:
        found = []
        for step in (0, 100, 201, 0):
            clock.advance(step)
            clock.wall += jump
            store = open_sqlite(tmp_path, clock, notes)  # a filter that starts now
            standing = await Triplets(store, terms).judge(Attempt(NET, "a@example.org", [YOU]))
            found.append(standing.state)
            await store.aclose()
        return found

    assert asyncio.run(states()) == ["new", "waiting", "waited", "passed"]
