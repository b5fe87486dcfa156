from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import pytest

from tests.bench.player import MisbehaviourError, Player
from tests.bench.workloads import lines_of, message, sessions
from tests.loading import loaded

Workload = Callable[[Player, int, int, Sequence[bytes]], object]

# A filter that registers two phases and passes everything; `{change}` may spoil its answers.
FILTER = r"""
import os, sys
take = sys.stdin.buffer.readline
while take() != b"config|ready\n":
    pass
answer = b"register|filter|smtp-in|mail-from\nregister|filter|smtp-in|data-line\nregister|ready\n"
while True:
    while answer:
        answer = answer[os.write(1, answer):]
    line = take()
    if not line:
        break
    _, _, _, _, phase, session, token, rest = line.split(b"|", 7)
    if phase == b"data-line":
        answer = b"|".join([b"filter-dataline", session, token, rest])
    else:
        answer = b"|".join([b"filter-result", session, token, b"proceed\n"])
    {change}
"""


def player(change: str = "pass") -> Player:
    return Player([sys.executable, "-S", "-c", FILTER.replace("{change}", change)])


def test_a_filter_that_does_its_work_is_measured() -> None:
    with player() as filter_:
        run = sessions(filter_, 20, 5, message(10))
        lot = lines_of(filter_, 6, 3, message(10))
    assert filter_.phases == {"mail-from", "data-line"}
    assert run.sessions == len(run.latencies) == 20
    assert run.cpu > 0
    assert 0 < run.latency(0.5) <= run.latency(1)
    assert lot.lines == 6 * len(message(10))
    assert lot.cost > 0


def test_fields_may_be_put_in_front() -> None:
    field = "answer.replace(rest, b'X-New: yes\\n')"
    added = f"if rest.startswith(b'Received:'): answer = {field} + answer"
    with player(added) as filter_:
        sessions(filter_, 3, 3, message(10))
        lines_of(filter_, 4, 2, message(10))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("if rest.startswith(b'a|b'): answer = answer.replace(b'a|b', b'a')", "came back"),
        ("if rest == b'\\n': answer = b''", "came back"),
        ("if rest == b'.\\n': answer = answer.replace(b'|.', b'|..') + answer", "came back"),
        ("if phase == b'mail-from': answer *= 2", "unexpected answer"),
        ("answer = answer.replace(b'proceed', b'junk')", "unexpected answer"),
        ("answer = answer.replace(b'proceed', b'reject|550 no')", "unexpected answer"),
        ("answer = answer.replace(session, session[::-1])", "unexpected"),
        ("answer = answer.replace(token, token[::-1])", "unexpected"),
        ("answer = b'nonsense\\n'", "unexpected"),
        ("sys.exit()", "ended before"),
        ("sys.exit('broken')", "broken"),
    ],
)
@pytest.mark.parametrize("workload", [sessions, lines_of])
def test_misbehaviour_is_noticed(change: str, complaint: str, workload: Workload) -> None:
    with pytest.raises(MisbehaviourError, match=complaint), player(change) as filter_:
        workload(filter_, 4, 2, message(10))


@pytest.mark.parametrize(
    ("last", "complaint"),
    [("sys.exit(3)", "exit status 3"), ("os.write(1, b'filter-result|')", "nobody asked for")],
)
def test_a_filter_must_leave_in_order(last: str, complaint: str) -> None:
    code = FILTER.replace("{change}", "pass") + last
    with (
        pytest.raises(MisbehaviourError, match=complaint),
        Player([sys.executable, "-S", "-c", code]) as filter_,
    ):
        sessions(filter_, 2, 1, message(10))


@pytest.mark.parametrize("registration", ["register|filter|smtp-in|data line", "nonsense"])
def test_registrations_are_checked(registration: str) -> None:
    code = f"print('{registration}'); print('register|ready', flush=True); input()"
    with pytest.raises(MisbehaviourError, match="invalid registration"):
        Player([sys.executable, "-S", "-c", code])


def test_the_filters_load_nothing_slow() -> None:
    """A filter without look-ups is to be ready in three times the bare interpreter's start."""
    slow = {
        *("asyncio", "dataclasses", "inspect", "ipaddress", "json", "logging", "pathlib"),
        *("socket", "ssl", "subprocess", "tempfile", "tomllib", "typing", "urllib"),
    }
    assert not slow & loaded("import tests.bench.filters")
