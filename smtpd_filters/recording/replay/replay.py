"""The player of a recording: scene by scene, adapted to the filter's decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.oracle import Oracle
from smtpd_filters.protocol.codec import decode, encode_config
from smtpd_filters.protocol.events import Config, Line, Lines, Report, Request, Result
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.protocol.versions import NEWEST, dialect, version
from smtpd_filters.recording.verdict import PROTOCOL_IN_HANDSHAKE, Tokens, message_verdict, verdict

from .scenes import scenes_of
from .session import Course, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.recording import Recording

    from .scenes import Scene
    from .session import NamedValues


class Replay:
    """A recording that is played to one filter.

    `protocol` is the protocol version to use, by default the recorded one.
    """

    def __init__(self, recording: Recording, *, protocol: tuple[int, int] | None = None) -> None:
        self._recorded = dialect(version(recording.protocol or "") or NEWEST)
        spoken = dialect(protocol or self._recorded.version)
        #: With another protocol version, the recorded server's version no longer applies.
        self._converted = spoken.version != self._recorded.version
        release = "" if self._converted else recording.server_version or ""
        #: smtpd's side of the conversation.
        self.smtpd = SmtpdConnection(spoken.version, release)
        #: The recording that is played.
        self.recording = recording
        #: The checker of what the filter writes.
        self.oracle = Oracle()
        #: The steps with a decision, in order.
        self.outcomes: list[Step] = []
        self._courses: dict[bytes, Course] = {}
        self._tokens = Tokens()

    @property
    def ready(self) -> bool:
        """Whether the filter has finished its registration."""
        return self.smtpd.ready

    def handshake(self) -> bytes:
        """Return the recorded configuration lines, converted to the protocol version in use."""
        configuration: list[Config] = []
        for line in self.recording.to_filter():
            event = decode(line, self._recorded)
            if not isinstance(event, Config) or event.key in {"protocol", "ready"}:
                continue
            if event.key == "smtpd-version":
                kept = event.value if not self._converted else self.smtpd.smtpd_version
                configuration.append(Config("smtpd-version", kept))
                if self.smtpd.dialect.version >= PROTOCOL_IN_HANDSHAKE:
                    configuration.append(Config("protocol", self.smtpd.dialect.name))
            else:
                configuration.append(event)
        data = b"".join(map(encode_config, [*configuration, Config("ready")]))
        self.oracle.from_smtpd(data)
        return data

    def receive(self, data: bytes) -> None:
        """Process output of the filter."""
        self.oracle.from_filter(data)
        for answer in self.smtpd.receive(data):
            if isinstance(answer, (Result, Line)) and answer.session in self._courses:
                self._courses[answer.session].take(answer)

    def steps(self) -> Iterator[Step]:
        """Yield smtpd's output step by step; the caller waits for the answer to each."""
        for scene in scenes_of(self.recording, self._recorded):
            course = self._courses.setdefault(scene.event.session, Course(scene.event.session))
            for step in self._play(scene, course):
                course.step = step
                self.oracle.from_smtpd(step.data)
                yield step

    def finish(self) -> None:
        """Let the oracle check for missing answers, after the filter has closed its end."""
        self.oracle.finish()

    # -- one scene -----------------------------------------------------------------------

    def _play(self, scene: Scene, course: Course) -> Iterator[Step]:
        event = scene.event
        if isinstance(event, Report):
            if not course.gone and event.subsystem == b"smtp-in":
                for report in course.adapt(event):
                    yield from self._report(course, report, event.time)
        elif isinstance(event, Lines):
            yield from self._lines(event, scene, course)
        elif event.phase is not None:
            # Servers before protocol 0.7 send no request for a NOOP with an argument.
            if event.argument and event.phase.name == "noop" and self._speaks_before_0_7:
                return
            yield from self._request(event, event.phase.name, scene, course)

    @property
    def _speaks_before_0_7(self) -> bool:
        return self.smtpd.dialect.version < PROTOCOL_IN_HANDSHAKE

    def _report(self, course: Course, report: NamedValues, time: bytes) -> Iterator[Step]:
        name, values = report
        if name in self.smtpd.reports:
            data = self.smtpd.report(name, course.session, *values, time=time)
            yield Step(course.session, data=data)

    def _request(self, event: Request, phase: str, scene: Scene, course: Course) -> Iterator[Step]:
        step = Step(course.session, phase, event.argument, recorded=scene.recorded)
        self.outcomes.append(step)
        if not course.reaches(phase):
            return
        if phase in self.smtpd.phases:
            step.data = self.smtpd.request(
                phase, course.session, self._tokens[phase], event.argument, event.time
            )
            step.waiting = True
            yield step
        else:
            step.verdict = verdict(phase, event.argument, None)
        if course.apply_verdict(step):
            for report in course.closing_reports(phase, event.argument):
                yield from self._report(course, report, event.time)

    def _lines(self, event: Lines, scene: Scene, course: Course) -> Iterator[Step]:
        step = Step(course.session, recorded=scene.recorded)
        if event.end:
            step.phase = "data-line"
            self.outcomes.append(step)
        if not course.reaches("data-line"):
            return
        lines = course.marked(event.lines)
        asked = "data-line" in self.smtpd.phases
        if asked:
            step.data = self.smtpd.lines(
                course.session, self._tokens["data-line"], lines, end=event.end, time=scene.time
            )
            step.waiting = event.end
        elif event.end:
            step.verdict = message_verdict(course.sent, course.sent, asked=False)
        if step.data:
            yield step
        if event.end:
            course.sent, course.returned = [], []
