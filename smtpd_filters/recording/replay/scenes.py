"""The scenes of a recording: smtpd's events, each with the recorded verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.protocol.codec import decode, decode_answer
from smtpd_filters.protocol.events import Line, Lines, Report, Request, Result
from smtpd_filters.recording.format import FROM_FILTER, FROM_SMTPD
from smtpd_filters.recording.verdict import Verdict, message_verdict, reported_verdict, verdict

if TYPE_CHECKING:
    from smtpd_filters.protocol.versions import Dialect
    from smtpd_filters.recording import Recording


class Scene:
    """An event of the recording, with its time and the recorded verdict."""

    __slots__ = ("event", "recorded", "time")

    def __init__(self, event: Report | Request | Lines, time: bytes) -> None:
        self.event = event
        self.time = time
        self.recorded: Verdict | None = None

    def record_answer(self, answer: Result) -> None:
        """Store the verdict of the recorded filter."""
        if isinstance(self.event, Request) and self.event.phase is not None:
            self.recorded = verdict(self.event.phase.name, self.event.argument, answer)

    def record_response(self, report: Report) -> None:
        """Store the verdict of the server's whole chain, if the report is on this request."""
        if isinstance(self.event, Request) and self.event.phase is not None:
            found = reported_verdict(report.values, self.event.argument)
            if found is not None and found.phase == self.event.phase.name:
                self.recorded = found


def scenes_of(recording: Recording, spoken: Dialect) -> list[Scene]:
    """Return the events of a recording; consecutive lines of a message are one event.

    The verdict on a command is that of the server's whole chain if it was reported, else that of
    the recorded filter.
    """
    scenes = _read(recording, spoken)
    _add_responses(scenes)
    if recording.by_recorder:
        # The recording doesn't have what the filters after the recorder did to a message.
        for scene in scenes:
            if isinstance(scene.event, Lines):
                scene.recorded = None
    return scenes


def _read(recording: Recording, spoken: Dialect) -> list[Scene]:
    """Return the events with the verdicts of the recorded filter."""
    scenes: list[Scene] = []
    requests: dict[bytes, Scene] = {}
    messages: dict[bytes, _RecordedMessage] = {}
    for direction, line in recording.entries:
        if direction == FROM_SMTPD:
            event = decode(line, spoken)
            if not isinstance(event, (Report, Request, Lines)):
                continue
            scene = Scene(event, line.split(b"|", 3)[2])
            if isinstance(event, Lines):
                scene = _joined(scenes, event) or scene
                messages.setdefault(event.session, _RecordedMessage()).add_lines(event, scene)
            elif isinstance(event, Request):
                requests[event.session] = scene
            scenes.append(scene)
        elif direction == FROM_FILTER:
            answer = decode_answer(line, spoken)
            if isinstance(answer, Result) and answer.session in requests:
                requests.pop(answer.session).record_answer(answer)
            elif isinstance(answer, Line) and answer.session in messages:
                messages[answer.session].take(answer.line)
        for key in [key for key, message in messages.items() if message.store_verdict()]:
            del messages[key]
    return scenes


def _add_responses(scenes: list[Scene]) -> None:
    """Set the verdicts of requests from the following reports `filter-response`."""
    requests: dict[bytes, Scene] = {}
    for scene in scenes:
        event = scene.event
        if isinstance(event, Request):
            requests[event.session] = scene
        elif isinstance(event, Report) and event.name == "filter-response":
            request = requests.pop(event.session, None)
            if request is not None:
                request.record_response(event)


def _joined(scenes: list[Scene], event: Lines) -> Scene | None:
    """Remove and return the last scene, with these lines added, if it is of the same message."""
    last = scenes[-1].event if scenes else None
    if isinstance(last, Lines) and last.session == event.session and not last.end:
        last.lines += event.lines
        last.end = event.end
        return scenes.pop()
    return None


class _RecordedMessage:
    """A message of the recording: the lines that smtpd sent and those that were returned."""

    __slots__ = ("ended", "returned", "scene", "sent")

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.returned: list[bytes] = []
        self.scene: Scene | None = None
        self.ended = False

    def add_lines(self, event: Lines, scene: Scene) -> None:
        """Add lines that smtpd wrote."""
        self.sent += event.lines
        if event.end:
            self.scene = scene

    def take(self, line: bytes) -> None:
        """Add a line that the filter wrote."""
        if line == b".":
            self.ended = True
        elif not self.ended:
            self.returned.append(line)

    def store_verdict(self) -> bool:
        """Store the recorded verdict if both sides are complete; return whether they are."""
        if self.ended and self.scene is not None:
            self.scene.recorded = message_verdict(self.sent, self.returned)
            return True
        return False
