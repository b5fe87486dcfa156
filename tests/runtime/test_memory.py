"""Without memory the process stays up, loses nothing silently, and recovers afterwards."""

from __future__ import annotations

import importlib.util
import resource
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from smtpd_filters.protocol.events import Result
from tests.effort import part, some
from tests.runtime.process import ROOT, TOKENS, FilterProcess, policy, sid

MEGABYTE = 1 << 20


def _bound(process: FilterProcess, spare: int) -> None:
    """Let the process have no more memory than it has, and so many bytes."""
    status = Path(f"/proc/{process.child.pid}/status").read_text()
    size = int(status.partition("VmSize:")[2].split()[0]) << 10
    limits = (size + spare, resource.RLIM_INFINITY)
    resource.prlimit(process.child.pid, resource.RLIMIT_AS, limits)


@pytest.mark.allocations
@pytest.mark.parametrize(
    "program",
    [
        *(
            ("no_memory", kind, width)
            for kind in ("Head", "Whole", "Scored")
            for width in ("1", "20")
        ),
        *(("no_memory_reload", width) for width in ("1", "4")),
        *(("no_memory_channel", width) for width in ("1", "20")),
        ("no_memory_log",),
    ],
    ids=" ".join,
)
def test_any_allocation_may_fail(program: tuple[str, ...]) -> None:
    if importlib.util.find_spec("_testcapi") is None:
        pytest.skip("this Python lacks _testcapi")
    name, *arguments = program
    done = subprocess.run(
        [sys.executable, "-m", f"tests.runtime.{name}", *arguments],
        capture_output=True,
        cwd=ROOT,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    *wrong, tried = done.stdout.decode().splitlines()
    assert wrong == []
    assert int(tried.split()[0]) > part(500)


@pytest.mark.parametrize(("spare", "name"), some(product([0, 1, 4], ["Plain", "Later"])))
def test_all_are_answered_when_sessions_take_all_memory(name: str, spare: int) -> None:
    """Sessions that are never closed, each of which asks, and where there are coroutines waits."""
    count = 6000
    with FilterProcess(policy(name, "--on-error", "proceed")) as process:
        process.hand_shake()
        process.connect(sid(0))
        process.ask("rcpt-to", sid(0), b"a@example.org")
        process.answers.clear()
        _bound(process, spare * MEGABYTE)
        smtpd = process.smtpd
        for number in range(1, count + 1):
            session = sid(number)
            process.connect(session)
            process.send(
                smtpd.report("link-identify", session, b"EHLO", b"x" * 250)
                + smtpd.request("rcpt-to", session, TOKENS["rcpt-to"], b"wait@example.org")
            )
        process.send(smtpd.request("noop", sid(0), TOKENS["noop"]))
        # Those who wait for it go on; that of session 0 is answered as well.
        process.until(lambda: len(process.answers) >= count + (name == "Later"))
        assert {answer.verb for answer in process.answers if isinstance(answer, Result)} == {
            b"proceed"
        }
        process.finish()


@pytest.mark.parametrize(
    ("name", "spare"), some(product(["Whole", "Head", "HeadLater", "WholeLater"], [0, 1, 4]))
)
def test_a_process_lives_on_when_it_gets_no_more(name: str, spare: int) -> None:
    header = [b"Subject: x", *[b"X: " + b"a" * 900] * 1000]
    with FilterProcess(policy(name, "--on-error", "tempfail")) as process:
        process.hand_shake()
        process.connect(sid(0))
        # Whatever is loaded or grows with the first message is there.
        process.message(sid(0), [b"Subject: x", b"", b"x"])
        process.ask("commit", sid(0))
        _bound(process, spare * MEGABYTE)
        sessions = [sid(number) for number in range(1, 31)]
        for session in sessions:
            process.connect(session)
            data = process.smtpd.lines(session, TOKENS["data-line"], header, end=False)
            process.send(data)
        for session in sessions:
            process.send(process.smtpd.lines(session, TOKENS["data-line"], [b"", b"body"]))
            process.until_dot(session)
            said = process.ask("commit", session)
            assert said.verb == b"proceed" or (said.argument or b"").startswith(b"45")
        # With memory again, there are messages again.
        resource.prlimit(process.child.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        process.answers.clear()
        back = process.message(sid(0), [b"Subject: x", b"", b"x"])
        assert back[-2:] == [b"", b"x"]
        assert process.ask("commit", sid(0)).verb == b"proceed"
        process.finish()
