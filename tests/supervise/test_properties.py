"""Programs that do anything: smtpd gets one legal answer to each request, and whole messages."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smtpd_filters.protocol.events import Line, Result
from smtpd_filters.protocol.long_lines import content_limit
from smtpd_filters.recording import Recording
from smtpd_filters.supervise.ledger import KEPT
from tests.effort import part
from tests.protocol.hostile import BODY, Choices, Session, Smtpd
from tests.supervise.hostile import Stage, play, raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

FIXTURES = Path(__file__).parents[2] / "fixtures" / "protocol"
#: Lines of real servers, some of which change the side.
RECORDED = [
    mark + line
    for line in Recording.read(FIXTURES / "7.8.0p1" / "ehlo-message.session").to_filter()
    for mark in (b"", b"\xff")
]
#: Lines that neither server has to have broken.
SHORT = tuple(line for line in BODY if len(line) <= content_limit(cuts=True))


class Watching(Smtpd):
    """Compares what is accepted with what was sent; takes note of all lines by session."""

    def __init__(self, *arguments: object) -> None:
        self.written: dict[bytes, list[bytes]] = {}
        self.sent: dict[bytes, list[bytes]] = {}
        self.back: dict[bytes, list[bytes]] = {}
        self.accepted = self.refused = 0
        super().__init__(*arguments)  # type: ignore[arg-type]

    def send(self, data: bytes) -> None:
        for row in data.split(b"\n")[:-1]:
            fields = row.split(b"|", 6)
            if fields[0] != b"config":
                self.written.setdefault(fields[5], []).append(row)
        super().send(data)

    def lines(self, session: Session, *, end: bool) -> None:
        lines = [self.pick(SHORT) for _ in range(self.pick(range(4)))]
        self.sent.setdefault(session.name, []).extend(lines)
        if end:
            session.sending, session.waiting = False, "data-line"
        data = self.side.lines(
            session.name, self._tokens["data-line"], lines, end=end, time=self._time()
        )
        if data:
            self.send(data)

    def collect(self, *, late: bool = False) -> None:
        # The order of answers and lines is that of the engine's two outputs.
        receive = self.side.receive
        committing = {each.name for each in self.sessions if each.waiting == "commit"}

        def watch(data: bytes) -> Iterable[object]:
            for answer in receive(data):
                if isinstance(answer, Line):
                    self.back.setdefault(answer.session, []).append(answer.line)
                elif isinstance(answer, Result) and answer.session in committing:
                    self.committed(answer)
                yield answer

        self.side.receive = watch  # type: ignore[method-assign, assignment]
        try:
            super().collect(late=late)
        finally:
            self.side.receive = receive  # type: ignore[method-assign]

    def committed(self, answer: Result) -> None:
        """Compare a message at its end."""
        back = self.back.pop(answer.session, [])
        sent = self.sent.pop(answer.session, [])
        if answer.verb == b"proceed":
            self.accepted += 1
            if back:
                assert back == [*sent, b"."]
        else:
            self.refused += 1
            assert answer.argument is not None
            assert answer.argument.startswith(b"451 ")


def act_honestly(data: bytes) -> Stage:
    """Programs that answer as they should, but end at any time."""
    choices = Choices(data)
    stage = Stage(choices.of, honest=True, smtpd=Watching)
    while choices.left:
        if choices.below(2):
            stage.smtpd.act()
        else:
            stage.happen()
            stage.smtpd.collect()
    stage.finish()
    return stage


def check_told(stage: Stage) -> None:
    """Each program got a session from its beginning, in smtpd's words and order."""
    smtpd = stage.smtpd
    assert isinstance(smtpd, Watching)
    for program in [*stage.programs, *stage.ended]:
        _, reports = program.registered
        told: dict[bytes, list[bytes]] = {}
        for row in program.given.split(b"\n")[:-1]:
            fields = row.split(b"|", 6)
            if fields[0] != b"config":
                told.setdefault(fields[5], []).append(row)
        for session, rows in told.items():
            rest = iter(smtpd.written[session])
            kept = [row for row in rows if row.split(b"|", 5)[4] in KEPT]
            assert all(row in rest for row in kept), "not in smtpd's order"
            if "link-connect" in reports:
                assert rows[0] == smtpd.written[session][0]
            assert set(rows) <= set(smtpd.written[session])


@settings(max_examples=part(2000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300))
def test_smtpd_survives_every_program(data: bytes) -> None:
    play(data)


@settings(max_examples=part(1000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300))
def test_messages_are_whole_or_refused(data: bytes) -> None:
    check_told(act_honestly(data))


@settings(max_examples=part(1000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.binary(max_size=60)
        | st.sampled_from(RECORDED).flatmap(
            lambda line: st.binary(max_size=3).map(lambda more: line + more)
        ),
        max_size=40,
    )
)
def test_any_bytes_of_both_sides(lines: list[bytes]) -> None:
    raw(b"\n".join(lines))


def test_a_line_of_a_message_with_too_few_bars() -> None:
    session = b"|smtp-in|data-line|00000000000000ee|00000000000000a0|"
    raw(
        b"\n".join(
            [
                b"report|0.7|1.0|smtp-in|link-connect|00000000000000ee|h|pass|a:1|b:2",
                b"filter|0.7|1.0" + session + b"one",
                b"\xfffilterx0.7x1.0" + session + b"two",
                b"filter|0.7|1.0" + session + b".",
            ]
        )
    )


def test_long_conversations() -> None:
    accepted = refused = 0
    for seed in range(part(40)):
        chance = random.Random(seed)  # noqa: S311  # the same conversations in every run
        play(chance.randbytes(3000))
        stage = act_honestly(chance.randbytes(3000))
        check_told(stage)
        assert isinstance(stage.smtpd, Watching)
        accepted += stage.smtpd.accepted
        refused += stage.smtpd.refused
    assert accepted
    assert refused
