"""Servers that fail: each costs the chosen outcome and a line, in time, and nothing more."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.policy import Policy
from smtpd_filters.filters.policy.client import PolicyClient
from smtpd_filters.filters.policy.request import build
from smtpd_filters.filters.policy.servers import EXEC, SERVER, Program
from smtpd_filters.lookups.failover.group import PING
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.lookups.retry import SILENCES
from smtpd_filters.startup import STRAY
from smtpd_filters.testing import Conversation
from tests.effort import brief
from tests.filters.policy import program
from tests.filters.policy.scripted import Scripted, action
from tests.filters.serving import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from smtpd_filters.lookups.programs.children import Children
    from tests.filters.policy.scripted import Script

T = TypeVar("T")
REQUEST = build({"request": "smtpd_access_policy", "protocol_state": "RCPT"})
#: A request that a program never answers.
SLOW = build({"request": "smtpd_access_policy", "protocol_state": "RCPT", "recipient": "slow"})
FAILED = "451 4.3.5 "
FLOOD = 64 << 20


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as server:
        yield server


def ask(*names: str, flags: tuple[str, ...] = ()) -> tuple[str, list[str]]:
    """Return the reply to a recipient, and the log."""
    servers = [word for name in names for word in ("--server", name)]
    with Conversation(Policy, *servers, *flags) as smtpd:
        client = smtpd.connect()
        client.ehlo("mail.example.net")
        client.mail_from("alice@example.net")
        return client.rcpt_to("bob@example.org").reply, smtpd.log


def closes(_request: dict[str, str]) -> tuple[bytes, bool]:
    return b"", True


def with_client(
    use: Callable[[PolicyClient], Awaitable[T]], *names: str, connections: int = 4
) -> T:
    """Run a coroutine with a client."""

    async def run() -> T:
        client = PolicyClient(
            [SERVER.parse(name) for name in names],
            timeout=PATIENCE,
            deadline=4 * PATIENCE,
            connections=connections,
        )
        try:
            return await use(client)
        finally:
            await client.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        (closes, "closed the connection"),
        (lambda _: (b"action=DUN", True), "cut short"),
        (lambda _: (b"action=DUNNO\n", True), "cut short"),
        (lambda _: b"220 mail.example.org ESMTP\r\n", "not an action"),
        (lambda _: b"action=DUNNO\n\naction=REJECT\n\n", "more than one reply"),
        (lambda _: b"\n", "without an action"),
        (lambda _: b"action=" + b"x" * FLOOD, "more than"),
        (lambda _: b"action=x\n" * (FLOOD // 9), "not an action"),
        (lambda _: b"", "timeout"),
        (lambda _: b"action=DUNNO\n", "timeout"),
        (lambda _: action("permit_mynetworks"), "is not possible"),
    ],
)
@pytest.mark.parametrize(("outcome", "reply"), [("tempfail", FAILED), ("proceed", "")])
def test_a_server_that_fails(
    server: Scripted, script: Script, cause: str, outcome: str, reply: str
) -> None:
    server.script = script
    flags = ("--timeout", f"{brief(0.6)}s") if cause == "timeout" else ()
    said, log = ask(server.name, flags=(*flags, "--on-error", outcome))
    assert said.startswith(reply)
    assert bool(said) is bool(reply)
    assert any(cause in line for line in log), log
    assert server.sent < FLOOD // 2  # what the kernel buffers


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    said, log = ask(str(tmp_path / "socket"))
    assert said.startswith(FAILED)
    assert any("no such file" in line for line in log)


@pytest.mark.parametrize("script", [closes, lambda _: b"", lambda _: b"220 hello\r\n"])
def test_the_next_server_is_asked(server: Scripted, script: Script) -> None:
    flags = ("--timeout", f"{brief(0.5)}s") if script({}) == b"" else ()
    with Scripted(script=script) as first:
        said, _ = ask(first.name, server.name, flags=flags)
    assert not said
    assert len(server.seen) == 1


def test_requests_that_take_a_server_long_keep_no_others_from_it(server: Scripted) -> None:
    """Any client can make some, where a server asks the DNS about its domain."""
    server.script = lambda request: b"" if "slow" in request["sender"] else action("550 5.7.1 no")
    flags = ("--timeout", f"{brief(0.6)}s", "--context", "in", "--on-error", "proceed")
    with Conversation(Policy, "--server", server.name, *flags) as smtpd:

        def said(sender: str) -> str:
            client = smtpd.connect()
            client.ehlo("mail.example.net")
            client.mail_from(sender)
            return client.rcpt_to("bob@example.org").reply

        assert [said("alice@slow.example") for _ in range(2 * SILENCES)] == [""] * 2 * SILENCES
        assert said("alice@example.net") == "550 5.7.1 no"
        assert not any("no longer waited for" in line for line in smtpd.log)
    probes = [each for each in server.seen if each["protocol_state"] == "CONNECT"]
    assert len(probes) == 2
    assert {each["policy_context"] for each in probes} == {"in"}


def test_a_server_has_the_time_of_a_request_for_a_probe(server: Scripted) -> None:
    """It works for it as for any other, which may take longer than a ping of other protocols."""

    async def use(client: PolicyClient) -> None:
        assert client.ping_time == client.timeout > PING

    with_client(use, server.name)


def test_a_program_that_takes_long_about_some_is_asked_about_others(behaviour: Path) -> None:
    async def use(client: PolicyClient) -> list[str | Unavailable]:
        client.timeout = brief(0.5)
        said = [await client.ask_policy(SLOW) for _ in range(SILENCES)]
        client.timeout = PATIENCE
        return [*said, await client.ask_policy(REQUEST)]

    *slow, last = with_client(use, started(behaviour))
    assert all(isinstance(each, Unavailable) for each in slow)
    assert process(last)


def test_a_request_that_was_not_answered_is_sent_once_more(server: Scripted) -> None:
    def script(_request: dict[str, str]) -> bytes | tuple[bytes, bool]:
        return action("REJECT again") if len(server.requests) > 1 else (b"", True)

    server.script = script
    assert ask(server.name)[0] == "554 5.7.1 again"
    assert [number for number, _ in server.requests] == [1, 2]


def test_a_server_that_restarts_between_two_requests(tmp_path: Path) -> None:
    with Scripted(tmp_path / "socket") as server:

        async def use(client: PolicyClient) -> None:
            assert await client.ask_policy(REQUEST) == "DUNNO"
            await asyncio.to_thread(server.stop)
            server.start()
            assert await client.ask_policy(REQUEST) == "DUNNO"

        with_client(use, server.name)
        assert len(server.requests) == 2


def test_what_arrives_later_is_not_the_next_reply(server: Scripted) -> None:
    async def use(client: PolicyClient) -> None:
        server.script = lambda _: b"action=DUNNO\n\n"
        assert await client.ask_policy(REQUEST) == "DUNNO"
        [host] = client.hosts
        [(_, kept)] = host._kept
        # The server says more when it isn't asked.
        for link in server.links:
            link.sendall(action("OK stale"))
        async with asyncio.timeout(PATIENCE):
            while kept.fresh:  # noqa: ASYNC110  # nothing says when it has arrived
                await asyncio.sleep(0)
        server.script = lambda _: action("REJECT")
        assert await client.ask_policy(REQUEST) == "REJECT"

    with_client(use, server.name)
    assert server.connections == 2


def test_fifty_requests_at_once_share_a_few_connections(server: Scripted) -> None:
    server.script = lambda request: action(f"WARN {request['recipient']}")

    async def use(client: PolicyClient) -> list[str | Unavailable]:
        requests = [build({"recipient": str(number)}) for number in range(50)]
        return await asyncio.gather(*map(client.ask_policy, requests))

    assert with_client(use, server.name) == [f"WARN {number}" for number in range(50)]
    assert server.connections <= 4


# -- programs ------------------------------------------------------------------------------


@pytest.fixture
def behaviour(tmp_path: Path) -> Path:
    path = tmp_path / "behaviour"
    behave(path, "")
    return path


def behave(path: Path, how: str) -> None:
    path.write_text(how)


def started(behaviour: Path) -> str:
    return str(Program(f"{sys.executable} -I -S {program.__file__} {behaviour}"))


def process(said: str | Unavailable) -> tuple[int, int]:
    """Return the id of the program, and the number of its request."""
    assert isinstance(said, str), said
    word, pid, count = said.split()
    assert word == "WARN"
    return int(pid), int(count)


def started_by(children: Children) -> list[int]:
    """Return the ids of the programs that run, the newest one last."""
    pid = children._process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def gone(pid: int) -> None:
    """Wait until a process has ended."""
    async with asyncio.timeout(PATIENCE):
        with suppress(ProcessLookupError):
            while True:
                os.kill(pid, 0)
                await asyncio.sleep(0.01)


async def ignores(pid: int, number: int) -> None:
    """Wait until a process ignores a signal."""
    async with asyncio.timeout(PATIENCE):
        ignored = 0
        while not ignored >> (number - 1) & 1:
            status = Path(f"/proc/{pid}/status").read_text()  # noqa: ASYNC240  # of the kernel
            ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
            await asyncio.sleep(0.01)


def test_one_program_is_kept_for_one_request_after_another(behaviour: Path) -> None:
    pid = 0

    async def use(client: PolicyClient) -> None:
        nonlocal pid
        said = [await client.ask_policy(REQUEST) for _ in range(20)]
        [pid] = {process(each)[0] for each in said}
        assert [process(each)[1] for each in said] == list(range(1, 21))

    with_client(use, started(behaviour))
    asyncio.run(gone(pid))


@pytest.mark.parametrize(("connections", "most"), [(1, 1), (4, 4), (40, 8)])
def test_a_few_programs_are_kept_for_requests_at_a_time(
    behaviour: Path, connections: int, most: int
) -> None:
    pids: set[int] = set()

    async def use(client: PolicyClient) -> None:
        for _ in range(3):
            said = await asyncio.gather(*[client.ask_policy(REQUEST) for _ in range(40)])
            pids.update(process(each)[0] for each in said)

    with_client(use, started(behaviour), connections=connections)
    assert len(pids) == most
    for pid in pids:
        asyncio.run(gone(pid))


def test_a_slow_request_holds_up_no_other(behaviour: Path) -> None:
    async def use(client: PolicyClient) -> None:
        slow = [asyncio.ensure_future(client.ask_policy(SLOW)) for _ in range(3)]
        pids = {process(await client.ask_policy(REQUEST))[0] for _ in range(5)}
        assert len(pids) == 1
        assert not any(each.done() for each in slow)
        for each in slow:
            each.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    with_client(use, started(behaviour))


@pytest.mark.parametrize("queued", [0, 50])
def test_slow_requests_of_one_client_hold_up_no_other_client(behaviour: Path, queued: int) -> None:
    async def use(client: PolicyClient) -> None:
        slow = [
            asyncio.ensure_future(client.ask_policy(SLOW, "192.0.2.0/24"))
            for _ in range(8 + queued)
        ]
        assert process(await client.ask_policy(REQUEST, "198.51.100.0/24"))
        assert not any(each.done() for each in slow)
        assert len(started_by(client._children[0])) <= 5 + 1  # the one that stands by
        for each in slow:
            each.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    with_client(use, started(behaviour), connections=8)


async def sent(client: PolicyClient, request: bytes) -> asyncio.Future[str | Unavailable]:
    """Return a request that a program has got, or will."""
    task = asyncio.ensure_future(client.ask_policy(request))
    [host] = client.hosts
    async with asyncio.timeout(PATIENCE):
        while not host._used:  # noqa: ASYNC110  # until it has a connection
            await asyncio.sleep(0)
    return task


def test_only_the_program_of_a_cancelled_request_ends(behaviour: Path) -> None:
    async def use(client: PolicyClient) -> None:
        first, _ = process(await client.ask_policy(REQUEST))
        one = await sent(client, SLOW)
        second, _ = process(await client.ask_policy(REQUEST))
        one.cancel()
        await asyncio.wait([one])
        another = await sent(client, SLOW)
        third, count = process(await client.ask_policy(REQUEST))
        assert (len({first, second, third}), count) == (3, 1)
        await gone(first)
        os.kill(second, 0)  # it runs
        another.cancel()
        assert process(await client.ask_policy(REQUEST)) == (third, 2)

    with_client(use, started(behaviour))


@pytest.mark.parametrize("fault", ["die", "silent", "half", "linger"])
def test_a_program_that_fails_is_started_again(behaviour: Path, fault: str) -> None:
    async def use(client: PolicyClient) -> None:
        first, _ = process(await client.ask_policy(REQUEST))
        behave(behaviour, fault)
        client.timeout = 0.3 if fault in ("silent", "linger") else PATIENCE
        assert isinstance(await client.ask_policy(REQUEST), Unavailable)
        behave(behaviour, "")
        client.timeout = PATIENCE
        client.hosts[0]._next = None  # as if it had ended long ago
        second, count = process(await client.ask_policy(REQUEST))
        assert (second != first, count) == (True, 1)
        await gone(first)

    with_client(use, started(behaviour))


def test_what_a_program_has_started_ends_with_it(behaviour: Path, tmp_path: Path) -> None:
    """A shell script is one that waits for the server in it."""
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\n{started(behaviour).removeprefix(EXEC)}\nexit 1\n")
    script.chmod(0o755)

    async def use(client: PolicyClient) -> None:
        first, _ = process(await client.ask_policy(REQUEST))
        client.timeout = 0.3
        assert isinstance(await client.ask_policy(SLOW), Unavailable)
        client.timeout = PATIENCE
        second, _ = process(await client.ask_policy(REQUEST))
        assert second != first
        await gone(first)

    with_client(use, f"{EXEC}{script}")


#: A filter that asks the program of its first argument: at once, and then without an answer.
USER = f"""
import asyncio, sys
from smtpd_filters.filters.policy.client import PolicyClient
from smtpd_filters.filters.policy.servers import SERVER
async def main():
    servers = [SERVER.parse(sys.argv[1])]
    client = PolicyClient(servers, timeout=100.0, deadline=100.0, connections=1)
    print(await client.ask_policy({REQUEST!r}), flush=True)
    await client.ask_policy({SLOW!r})
asyncio.run(main())
"""


def test_a_program_that_hangs_ends_when_all_of_its_filter_is_killed(behaviour: Path) -> None:
    """As `filter-supervise` kills the process group of a filter."""
    words = (sys.executable, "-c", USER, started(behaviour))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as user:
        assert user.stdout is not None
        pid, _ = process(user.stdout.readline())
        asyncio.run(ignores(pid, signal.SIGTERM))
        os.killpg(user.pid, signal.SIGKILL)
    asyncio.run(gone(pid))


def test_a_program_that_ends_at_once_is_not_started_for_each_request(behaviour: Path) -> None:
    async def use(client: PolicyClient) -> None:
        [children] = client._children
        children.rest = 3600.0
        behave(behaviour, "die")
        said = [await client.ask_policy(REQUEST) for _ in range(5)]
        cause = f"{sys.executable} closed the connection; not asked again for now"
        assert said == [Unavailable(cause)] * 5
        assert children._number == 3

    with_client(use, started(behaviour))


def test_a_program_that_has_gone_is_started_again(behaviour: Path) -> None:
    async def use(client: PolicyClient) -> None:
        first, _ = process(await client.ask_policy(REQUEST))
        os.kill(first, 9)
        await gone(first)
        second, count = process(await client.ask_policy(REQUEST))
        assert (second != first, count) == (True, 1)

    with_client(use, started(behaviour))


def test_a_request_that_is_cancelled_does_not_take_the_next_ones_program(behaviour: Path) -> None:
    async def use(client: PolicyClient) -> None:
        [children] = client._children
        task = asyncio.ensure_future(client.ask_policy(REQUEST))
        async with asyncio.timeout(PATIENCE):
            while not children._number:  # noqa: ASYNC110  # until a program is asked for
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        pid, count = process(await client.ask_policy(REQUEST))
        assert (children._number, count) == (2, 1)
        # The program of the first request is to end: the second one has its own.
        assert started_by(children)[-1] == pid

    with_client(use, started(behaviour))


async def second_of(pid: int) -> int:
    """Return the id of the process that stands by for one that starts programs."""
    async with asyncio.timeout(PATIENCE):
        while not (found := standing_by(pid)):  # noqa: ASYNC110  # nothing else tells
            await asyncio.sleep(0.01)
    return found[0]


def standing_by(pid: int) -> list[int]:
    found = []
    for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):
            if b"spawner.py" in Path(f"/proc/{each}/cmdline").read_bytes():
                found.append(int(each))
    return found


async def until_said(capfd: pytest.CaptureFixture[str], lines: int) -> None:
    """Wait for so many lines of processes that replace others."""
    said = ""
    async with asyncio.timeout(PATIENCE):
        while said.count(f'starts programs program="{sys.executable}"\n') < lines:
            said += capfd.readouterr().err
            await asyncio.sleep(0.01)


def test_the_process_that_starts_programs_is_replaced(
    behaviour: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Again and again, and the program itself goes on as long as it may."""
    pids = []

    async def use(client: PolicyClient) -> None:
        [children] = client._children
        program, _ = process(await client.ask_policy(REQUEST))
        serving = children._process.pid
        for count in range(2, 5):
            second = await second_of(serving)
            os.kill(serving, signal.SIGKILL)
            await until_said(capfd, 1)
            assert process(await client.ask_policy(REQUEST)) == (program, count)
            serving = second
        os.kill(program, signal.SIGKILL)
        await gone(program)
        another, count = process(await client.ask_policy(REQUEST))
        assert (another != program, count) == (True, 1)
        pids.extend([another, serving, await second_of(serving)])

    with_client(use, started(behaviour))
    for pid in pids:
        asyncio.run(gone(pid))


def test_stray_signals_end_neither_process_that_starts_programs(behaviour: Path) -> None:
    """As one that is sent to a process group: nothing would replace both."""

    async def use(client: PolicyClient) -> None:
        [children] = client._children
        program, _ = process(await client.ask_policy(REQUEST))
        serving = children._process.pid
        second = await second_of(serving)
        for number in STRAY:
            os.kill(serving, number)
            os.kill(second, number)
        os.kill(program, signal.SIGUSR1)  # which the program doesn't ignore
        await gone(program)
        assert process(await client.ask_policy(REQUEST))[1] == 1
        os.kill(serving, signal.SIGKILL)
        assert process(await client.ask_policy(REQUEST))[1] == 2

    with_client(use, started(behaviour))


def test_the_process_that_stands_by_is_replaced(
    behaviour: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def use(client: PolicyClient) -> None:
        [children] = client._children
        serving = children._process.pid
        second = await second_of(serving)
        os.kill(second, signal.SIGKILL)
        await until_said(capfd, 1)
        third = await second_of(serving)
        assert third != second
        os.kill(serving, signal.SIGKILL)
        await until_said(capfd, 1)
        assert process(await client.ask_policy(REQUEST))[1] == 1

    with_client(use, started(behaviour))


def test_a_request_that_the_killed_process_has_not_read(behaviour: Path) -> None:
    """The one that takes over answers it once, although it is repeated."""

    async def use(client: PolicyClient) -> None:
        [children] = client._children
        pid = children._process.pid
        await second_of(pid)
        os.kill(pid, signal.SIGSTOP)
        task = asyncio.ensure_future(client.ask_policy(REQUEST))
        async with asyncio.timeout(PATIENCE):
            while not children._number:  # noqa: ASYNC110  # until a program is asked for
                await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        assert process(await task)[1] == 1
        assert process(await client.ask_policy(REQUEST))[1] == 2

    with_client(use, started(behaviour))


def test_a_request_that_is_lost_is_repeated(behaviour: Path) -> None:
    """The test reads it in place of the process that is killed."""

    async def use(client: PolicyClient) -> None:
        [children] = client._children
        pid = children._process.pid
        await second_of(pid)
        os.kill(pid, signal.SIGSTOP)
        control = children._control
        send = control.send
        lost: list[bytes] = []

        class Losing:
            """The control socket, whose first request is lost."""

            def send(self, request: bytes) -> int:
                if lost:
                    return send(request)
                lost.append(request)
                os.kill(pid, signal.SIGKILL)
                return len(request)

            def __getattr__(self, name: str) -> Any:
                return getattr(control, name)

        children._control = Losing()  # type: ignore[assignment]  # all that is used of it
        assert process(await client.ask_policy(REQUEST))[1] == 1
        children._control = control
        assert lost == [b"1 "]

    with_client(use, started(behaviour))


def test_both_processes_that_start_programs_have_ended(behaviour: Path) -> None:
    async def use(client: PolicyClient) -> None:
        [children] = client._children
        second = await second_of(children._process.pid)
        os.kill(second, signal.SIGSTOP)
        os.kill(children._process.pid, signal.SIGKILL)
        os.kill(second, signal.SIGKILL)
        said = await client.ask_policy(REQUEST)
        assert isinstance(said, Unavailable)
        assert "the process that starts it has ended" in said.cause

    with_client(use, started(behaviour))


@pytest.mark.processes
def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_text("no script")
    with pytest.raises(ConfigError, match="not a program"):
        with_client(lambda client: client.ask_policy(REQUEST), f"exec:{path}")
    path.chmod(0o755)

    async def use(client: PolicyClient) -> None:
        said = await client.ask_policy(REQUEST)
        assert isinstance(said, Unavailable)
        assert "exec format" in said.cause

    with_client(use, f"exec:{path}")
