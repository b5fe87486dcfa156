from __future__ import annotations

from smtpd_filters.lookups.failover.breaker import REST, Breaker, Circuit
from smtpd_filters.lookups.failover.outages import EVERY
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.lookups.retry import SET_BACK, SILENCES, Failure, Plan


def opened(breaker: Breaker, server: int, now: float = 0.0) -> Breaker:
    for _ in range(SILENCES):
        breaker.silent(server, now)
    return breaker


def test_servers_are_asked_in_their_order_until_one_has_failed_too_often() -> None:
    breaker = Breaker(["a", "b"])
    for _ in range(SILENCES):
        assert breaker.order(0) == [0, 1]
        assert not breaker.is_open(0)
        breaker.silent(0, 0)
    assert breaker.is_open(0)
    assert breaker.order(0) == [1, 0]


def test_failures_count_only_in_a_row() -> None:
    breaker = Breaker(["a", "b"])
    for _ in range(3 * SILENCES):
        breaker.silent(0, 0)
        breaker.answered(0)
    assert breaker.order(0) == [0, 1]


def test_one_request_at_a_time_tries_a_server_whose_time_is_up() -> None:
    breaker = opened(Breaker(["a", "b"]), 0)
    assert breaker.order(SET_BACK - 0.1) == [1, 0]
    assert breaker.order(SET_BACK) == [0, 1]
    # That one is under way; nobody else waits for a server that may be dead.
    assert [breaker.order(SET_BACK + later) for later in (0, 1, 29)] == [[1, 0]] * 3
    # It never came back.
    assert breaker.order(2 * SET_BACK) == [0, 1]


def test_an_answer_closes_the_circuit() -> None:
    breaker = opened(Breaker(["a", "b"]), 0)
    assert breaker.order(SET_BACK) == [0, 1]
    breaker.answered(0)
    assert [breaker.order(SET_BACK) for _ in range(3)] == [[0, 1]] * 3


def test_another_failure_leaves_it_open() -> None:
    breaker = opened(Breaker(["a", "b"]), 0)
    assert breaker.order(SET_BACK) == [0, 1]
    breaker.silent(0, SET_BACK + 5)
    assert breaker.order(2 * SET_BACK) == [1, 0]
    assert breaker.order(2 * SET_BACK + 5) == [0, 1]


def test_where_there_is_one_server_it_is_asked() -> None:
    breaker = opened(Breaker(["a"]), 0)
    assert [breaker.order(now) for now in (0, 1, SET_BACK, SET_BACK)] == [[0]] * 4


def test_where_all_have_failed_all_are_asked() -> None:
    breaker = opened(opened(Breaker(["a", "b"]), 0), 1, 10)
    assert breaker.order(11) == [0, 1]
    assert breaker.order(SET_BACK) == [0, 1]  # the trial of a
    assert breaker.order(SET_BACK) == [0, 1]  # b is not trusted either


def test_a_plan_over_a_breaker_spares_the_dead_server() -> None:
    breaker = Breaker(["a", "b"])

    def course(now: float, *, dead: set[int]) -> list[int]:
        """Whom a request asks."""
        plan = Plan(breaker, now, attempts=2, timeout=1, deadline=now + 60)
        asked: list[int] = []
        while True:
            step = plan.next(now)
            if isinstance(step, Unavailable):
                return asked
            asked.append(step.server)
            if step.server not in dead:
                plan.answered()
                return asked
            plan.failed(Failure.SILENT, "timeout", now)

    first = [course(now, dead={0}) for now in range(10)]
    assert first == [[0, 1]] * SILENCES + [[1]] * (10 - SILENCES)
    # It was last asked at second 2.
    back = [course(2 + SET_BACK + now, dead=set()) for now in range(3)]
    assert back == [[0]] * 3


def test_a_cause_names_servers_in_the_operators_order() -> None:
    breaker = opened(Breaker(["a", "b"]), 0)
    plan = Plan(breaker, 0, attempts=1, timeout=1, deadline=60)
    for _ in range(2):
        assert not isinstance(plan.next(0), Unavailable)
        plan.failed(Failure.SILENT, "timeout", 0)
    assert plan.next(0) == Unavailable("a timeout, b timeout")


# -- all servers together --------------------------------------------------------------------


def noted() -> tuple[Circuit, list[tuple[str, str]]]:
    """Return a circuit and the lines that it logs, with their causes."""
    lines: list[tuple[str, str]] = []

    def note(event: str, *, server: str, cause: str = "") -> None:
        assert server == "a, b"
        lines.append((event, cause))

    return Circuit("a, b", note), lines


def failed(circuit: Circuit, now: float = 0.0) -> None:
    """Let so many requests fail that it opens."""
    for _ in range(SILENCES):
        assert not circuit.is_open
        assert circuit.admits(now)
        circuit.silent("a timeout", now)
    assert circuit.is_due
    circuit.open()
    assert not circuit.is_due


def test_an_open_circuit_admits_a_trial_from_time_to_time() -> None:
    circuit, lines = noted()
    failed(circuit)
    assert lines == [("no longer waited for", "a timeout")]
    assert circuit.cause == "a timeout; not asked again for now"
    assert [circuit.admits(now) for now in (0, 1, REST - 0.1)] == [False] * 3
    assert circuit.admits(REST)
    assert not circuit.admits(2 * REST - 0.1)
    circuit.silent("b timeout", 2 * REST - 0.1)
    circuit.release()
    assert circuit.cause == "b timeout; not asked again for now"
    assert [circuit.admits(2 * REST - 0.1), circuit.admits(2 * REST)] == [False, True]
    assert not circuit.is_due
    circuit.answered()
    circuit.release()
    assert [circuit.admits(0), circuit.admits(0)] == [True, True]
    assert lines[1:] == [("answers again", "")]


def test_a_trial_does_not_wait_for_the_one_before() -> None:
    """One client could make each of them last as long as it likes."""
    circuit, lines = noted()
    failed(circuit)
    for turn in range(1, 5):
        assert circuit.admits(turn * REST)
        assert not circuit.admits(turn * REST)
    circuit.silent("a timeout", 4 * REST + 1)  # the first one
    circuit.release()
    assert not circuit.admits(4 * REST + 1)
    assert circuit.admits(5 * REST)
    circuit.answered()
    circuit.release()
    assert lines[1:] == [("answers again", "")]
    circuit.release()  # one that goes on meanwhile
    failed(circuit, 5 * REST)
    assert not circuit.admits(5 * REST)


def test_a_trial_without_a_result_is_followed_by_another() -> None:
    circuit, lines = noted()
    failed(circuit)
    for _ in range(3):
        assert circuit.admits(REST)
        circuit.release()
    assert len(lines) == 1


def test_a_server_that_is_reached_again_is_noted_at_most_once_in_a_while() -> None:
    circuit, lines = noted()
    for now in range(int(2 * EVERY)):
        circuit.unreached(now)
        assert not circuit.is_open
        circuit.answered()
    assert lines == [("answers again", "")] * 2
    # What begins shortly after the last line, and goes on, has its line.
    for then in (2 * EVERY - 1, 2 * EVERY + 1):
        circuit.unreached(then)
    circuit.answered()
    circuit.answered()
    assert len(lines) == 3


def test_only_failures_in_a_row_open_a_circuit() -> None:
    circuit, lines = noted()
    for _ in range(3 * SILENCES):
        circuit.silent("a timeout", 0)
        circuit.answered()
        assert not circuit.is_due
    failed(circuit)  # as many as before
    assert len(lines) == 1
    assert not Circuit("a").is_due
