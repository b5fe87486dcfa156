"""Deadlines: no request stays open for longer than one, whatever programs do."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smtpd_filters.supervise.loop import TICK
from tests.effort import part
from tests.protocol.hostile import Choices, Session, Smtpd
from tests.supervise.hostile import Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.supervise.engine import Engine

DEADLINE = 5.0


class Waiting(Smtpd):
    """Remembers since when smtpd has waited for each session."""

    engine: Engine | None = None

    def __init__(self, *arguments: object) -> None:
        self.since: dict[bytes, float] = {}
        super().__init__(*arguments)  # type: ignore[arg-type]

    @property
    def clock(self) -> float:
        """The engine's time."""
        return self.engine.now if self.engine else 0.0

    def request(self, session: Session, phase: str, argument: bytes) -> None:
        self.since[session.name] = self.clock
        super().request(session, phase, argument)

    def lines(self, session: Session, *, end: bool) -> None:
        if end:
            self.since[session.name] = self.clock
        super().lines(session, end=end)

    def longest(self) -> float:
        """Return for how long smtpd has waited at most."""
        waiting = [each.name for each in self.sessions if each.waiting and not each.gone]
        return max((self.clock - self.since[name] for name in waiting), default=0.0)


class Clocked(Stage):
    """Time passes, and the loop looks at it as often as it should."""

    def __init__(self, choices: Choices) -> None:
        super().__init__(choices.of, smtpd=Waiting)
        self.engine.deadline = DEADLINE
        assert isinstance(self.smtpd, Waiting)
        self.smtpd.engine = self.engine

    def happen(self) -> None:
        """Something happens, after the engine has got all that smtpd has written."""
        self.smtpd.flush()
        super().happen()

    def pass_time(self, seconds: float) -> None:
        """Let time pass up to the next look at deadlines, as `Fleet.tick` and `Loop`."""
        engine = self.engine
        self.smtpd.flush()
        engine.now += seconds
        engine.expire()
        for program in list(self.programs):
            if overdue := engine.overdue(program.link):
                program.link.fault = overdue
            self.look_after(program)
        engine.settle()
        self.smtpd.collect(late=True)


def play(data: bytes) -> None:
    """Run one conversation, chosen by these bytes."""
    choices = Choices(data)
    stage = Clocked(choices)
    assert isinstance(stage.smtpd, Waiting)
    while choices.left:
        which = choices.below(4)
        if which == 0:
            stage.pass_time(choices.of((0.1, TICK)))
            assert stage.smtpd.longest() <= DEADLINE + TICK
        elif which == 1:
            stage.happen()
            stage.smtpd.collect()
        else:
            stage.smtpd.act()
    for _ in range(8):
        stage.pass_time(TICK)
        assert stage.smtpd.longest() <= DEADLINE + TICK


@settings(max_examples=part(1500), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300))
def test_no_request_stays_open_beyond_the_deadline(data: bytes) -> None:
    play(data)
