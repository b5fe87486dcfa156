from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from pathlib import Path

import pytest

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filters.rcpt import Rcpt
from smtpd_filters.sandbox import Needs
from smtpd_filters.tables import DomainTable, MappingTable, NetworkTable
from smtpd_filters.tables.remote.backend import BackendError
from smtpd_filters.tables.remote.proc import TableProgram
from smtpd_filters.testing import Conversation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

#: Seconds for a program to start; the machine may be busy.
PATIENCE = 60.0
PROGRAM = f"proc:{sys.executable} {Path(__file__).with_name('table_program.py')}"


def run(
    work: Callable[[TableProgram], Coroutine[Any, Any, None]],
    mode: str = "",
    service: str = "domain",
    **more: float,
) -> None:
    table = TableProgram([*PROGRAM.removeprefix("proc:").split(), mode], service, **more)
    table.timeout = PATIENCE

    async def main() -> None:
        try:
            await work(table)
        finally:
            await table.aclose()

    asyncio.run(main())


async def failure(table: TableProgram, key: str) -> str:
    with pytest.raises(BackendError) as raised:
        await table.look_up(key)
    return str(raised.value)


def test_domains_and_mappings() -> None:
    domains = DomainTable.load_by_key(PROGRAM)
    users = MappingTable.load_by_key(PROGRAM)

    async def main() -> None:
        assert await domains.look_up("EXAMPLE.org") == "example.org"
        assert await domains.look_up("example.com") is None
        assert await users.look_up_value("Joe") == "joe@example.org, j@example.org"
        assert await users.look_up_value("jane") is None
        with pytest.raises(UnavailableError, match="the program failed: database is down"):
            await domains.look_up("error.example")
        for table in (domains, users):
            assert table.remote is not None
            await table.remote.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("mode", "cause"),
    [
        ("ends", "the program did not start: the program has ended"),
        ("other", "the program does not offer 'domain'"),
    ],
)
def test_programs_that_are_of_no_use(mode: str, cause: str) -> None:
    async def work(table: TableProgram) -> None:
        assert await failure(table, "example.org") == cause
        assert await failure(table, "example.org") == "the program has ended"

    run(work, mode, pause=PATIENCE)


@pytest.mark.parametrize("key", ["verb.example", "ok.example"])
def test_an_answer_to_another_request_makes_no_key_absent(key: str) -> None:
    async def work(table: TableProgram) -> None:
        assert "an answer to another request" in await failure(table, key)

    run(work)


def test_a_mute_program_is_killed() -> None:
    async def work(table: TableProgram) -> None:
        table.timeout = 0.2
        assert await failure(table, "example.org") == ("the program did not start: no registration")

    run(work, "mute")


@pytest.mark.parametrize("key", ["die.example", "garbage.example", "slow.example"])
def test_a_program_that_fails_is_started_again(key: str) -> None:
    async def work(table: TableProgram) -> None:
        before = await table.look_up("pid")
        if key == "slow.example":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await table.look_up(key)
        else:
            assert "the program" in await failure(table, key)
        after = await table.look_up("pid")
        assert after is not None
        assert after != before

    run(work, service="alias", pause=0.0)


def test_the_processes_that_start_the_program_have_ended() -> None:
    async def work(table: TableProgram) -> None:
        children = table._starter()
        children._control.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.close()
        children._control = ours
        cause = "the program did not start: the process that starts it has ended"
        assert await failure(table, "example.org") == cause

    run(work)


def test_fifty_requests_at_once_and_no_child_is_left() -> None:
    async def work(table: TableProgram) -> None:
        keys = [*("joe", "pid"), *(f"key{number}" for number in range(48))]
        found = await asyncio.gather(*map(table.look_up, keys))
        assert found[0] == "joe@example.org, j@example.org"
        assert found[2:] == [None] * 48
        await table.aclose()
        with pytest.raises(ProcessLookupError):
            os.kill(int(found[1] or "0"), 0)

    run(work, service="alias")


def test_requests_that_are_given_up_at_once_are_no_failed_tasks() -> None:
    unhandled: list[object] = []

    async def work(table: TableProgram) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: unhandled.append(context))
        await table.look_up("pid")
        keys = ["slow.example", *["x" * 60_000] * 20]
        requests = [asyncio.create_task(table.look_up(key)) for key in keys]
        assert table._child is not None
        while len(table._child._pending) < len(keys):  # noqa: ASYNC110  # nothing else tells
            await asyncio.sleep(0)
        for request in requests:
            request.cancel()
        await asyncio.wait(requests)
        del request, requests
        gc.collect()

    run(work, service="alias")
    assert not unhandled


def test_mistakes_are_found_at_start() -> None:
    for spec, error in (
        ("proc:", "needs a command"),
        ("proc:/missing/program", "/missing/program is not a program that can be run"),
        ("proc:'", "No closing quotation"),
    ):
        with pytest.raises(ConfigError, match=error):
            DomainTable.load_by_key(spec)
    with pytest.raises(ConfigError, match="loads all entries"):
        NetworkTable.load(PROGRAM)


def test_the_program_is_started_outside_the_sandbox() -> None:
    needs = Needs()
    table = DomainTable.load_by_key(PROGRAM)
    assert table.remote is not None
    table.remote.declare(needs)
    assert not needs.runs
    assert needs.receives
    asyncio.run(table.remote.aclose())


def test_in_a_filter() -> None:
    flags = ("--domains", PROGRAM, "--non-fqdn", "reject", "--on-error", "tempfail")
    with Conversation(Rcpt, *flags) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("bob@example.net")
        assert client.rcpt_to("anna@example.org").verb == "proceed"
        assert client.rcpt_to("anna@error.example").reply.startswith("451 4.4.3 ")
