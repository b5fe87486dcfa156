from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.lookups.retry import PAUSE, SET_BACK, SILENCES, Ask, Failure, Plan, Servers


def plan(servers: Servers | int = 2, *, attempts: int = 2, deadline: float = 100) -> Plan:
    standing = servers if isinstance(servers, Servers) else Servers("abcd"[:servers])
    return Plan(standing, 0, attempts=attempts, timeout=1, deadline=deadline)


def ask(server: int, timeout: float = 1, *, tcp: bool = False, pause: float = 0) -> Ask:
    return Ask(server, tcp=tcp, pause=pause, timeout=timeout)


def play(plan: Plan, *failures: Failure, now: float = 0) -> list[Ask | Unavailable]:
    steps = [plan.next(now)]
    for failure in failures:
        plan.failed(failure, failure.value, now)
        steps.append(plan.next(now))
    return steps


SILENT, BROKEN, UNREACHABLE, USE_TCP, LOCAL, SHORT = (
    Failure.SILENT,
    Failure.BROKEN,
    Failure.UNREACHABLE,
    Failure.USE_TCP,
    Failure.LOCAL,
    Failure.SHORT,
)


def test_silence_asks_the_next_server_then_all_again_for_twice_as_long() -> None:
    assert play(plan(), SILENT, SILENT, SILENT, SILENT) == [
        ask(0), ask(1), ask(0, 2), ask(1, 2), Unavailable("a timeout, b timeout"),
    ]  # fmt: skip


def test_a_server_that_said_no_is_not_asked_again() -> None:
    assert play(plan(), BROKEN, SILENT, SILENT) == [
        ask(0), ask(1), ask(1, 2), Unavailable("a broken, b timeout"),
    ]  # fmt: skip
    assert play(plan(), BROKEN, BROKEN)[-1] == Unavailable("a broken, b broken")


def test_truncated_asks_the_same_server_over_tcp() -> None:
    assert play(plan(), USE_TCP, SILENT, USE_TCP, USE_TCP, SILENT) == [
        ask(0), ask(0, tcp=True), ask(1), ask(1, tcp=True), ask(0, 2),
        Unavailable("a timeout, b use TCP"),
    ]  # fmt: skip


def test_a_round_that_is_over_at_once_is_followed_by_a_pause() -> None:
    for failure in (UNREACHABLE, LOCAL):
        assert play(plan(1, attempts=3), failure, failure, failure) == [
            ask(0),
            ask(0, 2, pause=PAUSE),
            ask(0, 4, pause=2 * PAUSE),
            Unavailable(f"a {failure.value}"),
        ]
    assert play(plan(2), UNREACHABLE, SILENT)[1:] == [ask(1), ask(0, 2)]


def test_the_deadline() -> None:
    one = plan(1, attempts=9, deadline=2.5)
    assert one.next(0) == ask(0)
    one.failed(SILENT, "timeout", 1)
    assert one.next(1) == ask(0, 1.5)
    one.failed(SILENT, "timeout", 2.5)
    assert one.next(2.5) == Unavailable("a timeout")
    assert plan(1, deadline=0).next(0) == Unavailable("deadline passed")


def test_no_servers() -> None:
    assert plan(0).next(0) == Unavailable("no name server left to ask")


def test_a_silent_server_goes_to_the_back_for_a_while() -> None:
    servers = Servers("ab")
    for _ in range(SILENCES):
        assert servers.order(0) == [0, 1]
        servers.silent(0, 0)
    assert servers.order(0) == [1, 0]
    assert plan(servers).next(0) == ask(1)
    assert servers.order(SET_BACK) == [0, 1]
    servers.silent(0, SET_BACK)
    assert servers.order(SET_BACK + 1) == [1, 0]
    servers.answered(0)
    assert servers.order(SET_BACK + 1) == [0, 1]


def test_the_plan_tells_which_servers_are_alive() -> None:
    servers = Servers("ab")
    for _ in range(SILENCES):
        play(plan(servers), SILENT)
    assert servers.order(0) == [1, 0]
    play(plan(servers), SILENT, BROKEN)
    assert servers.order(0) == [0, 1]
    for _ in range(SILENCES):
        play(plan(servers, attempts=1), UNREACHABLE)
    assert servers.order(0) == [1, 0]
    alive = plan(servers)
    assert play(alive, SILENT)[-1] == ask(0)
    alive.answered()
    assert servers.order(0) == [0, 1]


def test_what_this_machine_lacks_is_not_held_against_the_server() -> None:
    servers = Servers("ab")
    for _ in range(SILENCES):
        play(plan(servers), LOCAL)
    assert servers.order(0) == [0, 1]


def test_what_this_machine_is_short_of_uses_up_no_attempt() -> None:
    short = [SHORT] * 5
    assert play(plan(), *short) == [ask(0)] * 6
    assert play(plan(), USE_TCP, *short)[1:] == [ask(0, tcp=True)] * 6
    assert play(plan(), UNREACHABLE, SILENT, *short)[2:] == [ask(0, 2)] * 6
    late = plan(1, deadline=5)
    late.failed(SHORT, "too many open files", 4)
    assert late.next(4) == ask(0)
    assert late.next(5) == Unavailable("a too many open files")


ENDING = sorted(set(Failure) - {SHORT}, key=lambda failure: failure.value)


@given(st.integers(0, 4), st.integers(1, 4), st.lists(st.sampled_from(ENDING), max_size=80))
def test_it_ends_and_asks_no_server_too_often(
    servers: int, attempts: int, failures: list[Failure]
) -> None:
    steps = []
    one = plan(servers, attempts=attempts, deadline=1e9)
    for failure in [*failures, *[SILENT] * 80]:
        step = one.next(0)
        if isinstance(step, Unavailable):
            break
        steps.append(step)
        one.failed(failure, "x", 0)
    else:
        raise AssertionError(steps)
    assert len(steps) <= servers * attempts * 2
    for server in range(servers):
        assert 1 <= sum(step.server == server and not step.tcp for step in steps) <= attempts
