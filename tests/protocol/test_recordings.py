"""Recordings of real servers are decoded, encoded, passed through, and converted to versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtpd_filters.oracle import Oracle
from smtpd_filters.protocol import codec
from smtpd_filters.protocol.decisions import PROCEED
from smtpd_filters.protocol.events import (
    Config,
    Line,
    Lines,
    Malformed,
    Register,
    Report,
    Request,
    Result,
)
from smtpd_filters.protocol.filter_side import FilterConnection
from smtpd_filters.protocol.versions import DIALECTS, Dialect, dialect, version
from smtpd_filters.protocol.vocabulary import PHASES, REPORTS
from smtpd_filters.recording import Recording
from smtpd_filters.recording.format import FROM_SMTPD
from smtpd_filters.recording.replay import Replay
from tests.effort import SHARE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.protocol.decisions import Decision
    from smtpd_filters.protocol.vocabulary import Phase

FIXTURES = Path(__file__).parents[2] / "fixtures" / "protocol"
PATHS = sorted(FIXTURES.glob("*/*.session"))
every = pytest.mark.parametrize(
    "path", PATHS[::SHARE], ids=lambda path: f"{path.parent.name}/{path.stem}"
)


def spoken_in(recording: Recording) -> Dialect:
    found = version(recording.protocol or "")
    assert found in DIALECTS
    return dialect(found)


def written(event: object, line: bytes, spoken: Dialect) -> bytes:
    fields = line.split(b"|", 5)
    if isinstance(event, Config):
        return codec.encode_config(event)
    if isinstance(event, Report):
        return codec.encode_report(event, spoken)
    if isinstance(event, Request):
        return codec.encode_request(event, fields[4], spoken)
    assert isinstance(event, Lines)
    return codec.encode_lines(event, fields[2], spoken)


def test_there_are_recordings() -> None:
    assert len(PATHS) >= 150
    assert {path.parent.name for path in PATHS} == {"6.8.0p2", "7.8.0p1"}


@every
def test_each_line_is_read_and_written_again(path: Path) -> None:
    recording = Recording.read(path)
    spoken = spoken_in(recording)
    assert recording.to_filter()
    assert recording.from_filter()
    for line in recording.to_filter():
        event = codec.decode(line, spoken)
        assert written(event, line, spoken) == line + b"\n"
    for line in recording.from_filter():
        # A filter of these recordings that was no good: smtpd did not read it either.
        answer = codec.decode_answer(line, spoken)
        assert isinstance(answer, (Register, Result, Line))
        assert not isinstance(answer, Malformed)


@every
@pytest.mark.parametrize("through", [(0, 5), (0, 6), (0, 7)])
def test_each_line_survives_another_version(path: Path, through: tuple[int, int]) -> None:
    recording = Recording.read(path)
    spoken, other = spoken_in(recording), dialect(through)
    assert recording.to_filter()
    for line in recording.to_filter():
        event = codec.decode(line, spoken)
        converted = written(event, line, other)
        again = codec.decode(converted[:-1], other)
        assert written(again, line, spoken) == line + b"\n"
        if not line.startswith(b"config|"):
            assert converted.split(b"|", 2)[1] == other.wire


class Passes:
    """A listener that proceeds, and sends lines back as they come."""

    def __init__(self, *, pass_all: bool) -> None:
        self.connection = FilterConnection(self, pass_all=pass_all)
        self.asked_for: list[str] = []

    def configured(self, key: str, _value: str) -> None:
        if key == "ready":
            self.connection.register([*PHASES, "data-line"], REPORTS)

    def reported(self, report: Report) -> None: ...

    def asked(self, phase: Phase, _session: bytes, _argument: bytes) -> Decision | None:
        self.asked_for.append(phase.name)
        return PROCEED

    def content(self, session: bytes, lines: list[bytes], *, end: bool) -> None:
        self.connection.send_lines(session, lines, end=end)


@every
@pytest.mark.parametrize("pass_all", [False, True])
def test_it_passes_through_as_it_was_recorded(path: Path, *, pass_all: bool) -> None:
    recording = Recording.read(path)
    listener, oracle = Passes(pass_all=pass_all), Oracle()
    connection = listener.connection
    lines, answers = 0, 0
    for direction, line in recording.entries:
        if direction == FROM_SMTPD:
            oracle.from_smtpd(line + b"\n")
            connection.receive(line + b"\n")
            out = connection.data_to_send()
            oracle.from_filter(out)
            answers += out.count(b"filter-result|")
            if line.startswith(b"filter|") and b"|data-line|" in line:
                fields = line.split(b"|", 7)
                if len(fields[7]) <= 998:
                    assert out == b"filter-dataline|" + b"|".join(fields[5:]) + b"\n"
                lines += 1
    oracle.finish()
    oracle.verify()
    assert answers == len(listener.asked_for)
    requests = sum(line.startswith(b"filter|") for line in recording.to_filter())
    assert answers + lines == requests
    assert [remark for remark in connection.remarks.take() if remark.sort != "mail"] == []


@every
def test_it_is_played_in_every_version(path: Path) -> None:
    recording = Recording.read(path)
    told = []
    for protocol in ((0, 6), (0, 7), (0, 5)):
        listener = Passes(pass_all=True)
        connection = listener.connection
        replay = Replay(recording, protocol=protocol)
        connection.receive(replay.handshake())
        replay.receive(connection.data_to_send())
        assert replay.ready
        for step in replay.steps():
            connection.receive(step.data)
            replay.receive(connection.data_to_send())
            assert not step.waiting
        replay.finish()
        replay.oracle.verify()
        assert connection.dialect is dialect(protocol)
        told.append([name for name in listener.asked_for if name != "noop"])
    assert told[0] == told[1] == told[2]
    assert told[0]
