"""The fleet with programs that are only played, so that each moment can be chosen."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, NoReturn, cast

import pytest

from smtpd_filters.supervise.engine import Engine
from smtpd_filters.supervise.fleet import CLOSING, GRACE, LONGEST, UNKILLED, Fleet
from tests.supervise.hostile import nowhere

if TYPE_CHECKING:
    from smtpd_filters.supervise.fleet import Worker
    from smtpd_filters.supervise.process import Process


class Played:
    """A program that does nothing; signals have no effect on it until it obeys."""

    memory = 0
    status: int | None = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.channel = SimpleNamespace(broken=False, size=0)
        self.signals: list[int] = []
        self.input_ended = False

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def reap(self) -> bool:
        return self.status is not None

    def ended(self) -> str:
        return f"exited with status {self.status}"

    def hang_up(self) -> None:
        pass

    def end_input(self) -> None:
        self.input_ended = True


def without_memory(*_: object) -> NoReturn:
    raise MemoryError


class Stage:
    """A fleet, and its clock."""

    def __init__(self, size: int = 1) -> None:
        self.started: list[Played] = []
        self.now = 1000.0
        self.fleet = Fleet(
            Engine(nowhere()),
            self.spawn,
            nowhere(),
            size=size,
            drain=600.0,
            watch=lambda _: None,
            unwatch=lambda _: None,
        )

    def spawn(self) -> Process:
        self.started.append(Played(len(self.started)))
        return cast("Process", self.started[-1])

    def obey(self) -> None:
        """The programs that were asked to end exit."""
        for each in self.started:
            if each.signals or each.input_ended:
                each.status = 0

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.fleet.tick(self.now)

    def get_ready(self) -> None:
        """The program started last gets ready."""
        self.fleet.workers[-1].link.ready = True
        self.tick()

    def close_input(self) -> Worker:
        """A program gets ready, and closes its input."""
        self.tick()
        self.get_ready()
        [worker] = self.fleet.workers
        worker.channel.broken = True
        self.tick()
        return worker


def test_a_second_reload_starts_programs_once_more() -> None:
    stage = Stage()
    stage.tick()
    stage.get_ready()
    stage.fleet.reload()
    stage.tick()
    for _ in range(2):
        stage.fleet.reload()
    stage.get_ready()
    stage.tick()
    assert len(stage.started) == 3
    stage.get_ready()
    for _ in range(3):
        stage.tick(1.0)
    assert len(stage.started) == 3


def test_a_reload_waits_for_a_program_that_starts() -> None:
    stage = Stage()
    stage.tick()
    stage.fleet.reload()
    stage.tick(1.0)
    assert len(stage.started) == 1
    stage.get_ready()
    assert len(stage.started) == 2


def test_a_program_that_closes_its_input_may_exit() -> None:
    """It is noticed before the exit, which is the better reason in the log."""
    stage = Stage()
    worker = stage.close_input()
    assert stage.fleet.next_time(stage.now) == CLOSING
    stage.started[0].status = 3
    stage.fleet.reap(stage.now)
    assert worker.why == "exited with status 3"


def test_a_program_that_closes_its_input_and_does_not_exit_is_ended() -> None:
    stage = Stage()
    worker = stage.close_input()
    assert not worker.kill
    stage.tick(2 * CLOSING)
    assert worker.why == "closed its input"


def test_a_program_that_cannot_be_killed_is_replaced() -> None:
    stage = Stage()
    stage.tick()
    stage.get_ready()
    [worker] = stage.fleet.workers
    stage.fleet.end(worker, "hangs", stage.now)
    stage.tick(GRACE)
    assert stage.started[0].signals == [signal.SIGTERM, signal.SIGKILL]
    stage.tick(GRACE / 2)
    assert len(stage.started) == 1
    wait = stage.fleet.next_time(stage.now)
    assert wait is not None
    assert wait > 0.5  # it isn't looked at in a loop
    stage.tick(GRACE / 2)
    stage.tick(1.0)
    assert len(stage.started) == 2


def test_a_reload_ends_with_a_program_that_cannot_be_killed() -> None:
    stage = Stage()
    stage.tick()
    stage.get_ready()
    stage.fleet.reload()
    stage.tick()
    [_, worker] = stage.fleet.workers
    stage.fleet.end(worker, "hangs", stage.now)
    stage.tick(2 * GRACE)
    stage.fleet.reload()
    stage.tick()
    stage.get_ready()
    assert [place.worker for place in stage.fleet.places] == [stage.fleet.workers[-1]]


def test_programs_that_cannot_be_killed_are_few() -> None:
    stage = Stage()
    for _ in range(3 * UNKILLED):
        stage.tick(LONGEST)
        worker = stage.fleet.workers[-1]
        stage.fleet.end(worker, "hangs", stage.now)
        stage.tick(2 * GRACE)
    assert len(stage.started) == UNKILLED + 1


@pytest.mark.parametrize("ready", [True, False])
def test_a_program_whose_end_is_not_noted_for_lack_of_memory_has_a_successor(
    ready: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage()
    stage.tick()
    if ready:
        stage.get_ready()
    engine = stage.fleet._engine
    engine.from_smtpd(b"config|ready\n")
    engine.handshake.register_all()
    stage.started[0].status = 75
    with monkeypatch.context() as patch:
        patch.setattr(engine, "lost", without_memory)
        with pytest.raises(MemoryError):
            stage.fleet.reap(stage.now)
    stage.fleet.reap(stage.now)
    assert stage.fleet.workers == []
    stage.tick(LONGEST)
    assert len(stage.started) == 2


def test_a_reload_that_has_no_memory_for_its_end_ends_at_the_second_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage()
    stage.tick()
    stage.get_ready()
    stage.fleet.reload()
    stage.tick()
    engine = stage.fleet._engine
    with monkeypatch.context() as patch:
        patch.setattr(engine, "dismiss", without_memory)
        with pytest.raises(MemoryError):
            stage.get_ready()
    stage.tick()
    [place] = stage.fleet.places
    assert place.worker is not None
    assert engine.links == [place.worker.link]
    stage.tick()
    assert stage.started[0].input_ended
    assert not stage.started[1].input_ended
