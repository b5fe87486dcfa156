"""A recording turned into what smtpd would send to another filter.

It is pure: who plays it moves the bytes, to a process or to an engine.

Law
---
1. A filter gets what it registered, its own tokens, and the protocol version that it is to speak;
   sessions, time stamps and texts are the recording's.
2. What the filter decides counts.  A session that it disconnects is over, a transaction that it
   refuses does not go on, and smtpd's reports say so.
3. Where it lets through what was refused when it was recorded, nobody can know how it would have
   gone on: what follows is played as recorded.
4. A verdict stands beside the one recorded.  A phase that a filter does not ask for is one at which
   it proceeds.

Use::

    replay = Replay(recording)
    write(replay.handshake())
    while not replay.ready:
        replay.receive(read())
    for step in replay.steps():
        write(step.data)
        while step.waiting:
            replay.receive(read())
    replay.finish()

Afterwards `Replay.outcomes` are the steps at which there was something to decide, each with its
``recorded`` and ``verdict``, and `Replay.oracle` has seen all of it.  To play without waiting for
each answer is allowed, but then law 2 comes too late.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd_filters.protocol.codec import decode, decode_answer, encode_config
from smtpd_filters.protocol.dialect import NEWEST, dialect, version
from smtpd_filters.protocol.events import Config, Line, Lines, Report, Request, Result
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.recording import FROM_FILTER, FROM_SMTPD

from .oracle import Oracle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.protocol.dialect import Dialect
    from smtpd_filters.recording import Recording

REFUSALS = frozenset({"reject", "disconnect"})
#: A filter's ``report`` puts its text in the place of the command's parameter.
WITH_PARAMETER = frozenset({"rewrite", "report"})
#: What smtpd calls two phases in the report ``filter-response``.
RESPONSE_NAMES = {"connect": "connected", "starttls": "tls"}
#: The first protocol that says its version in the hand-shake.
SAYS_PROTOCOL = (0, 7)
#: What smtpd puts before a message that was called junk.
MARK = b"X-Spam: Yes"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a filter said at a phase, and what became of the command.

    ``verb`` is proceed, junk, reject, disconnect or rewrite; of a message ("data-line") it is
    unchanged or changed.
    """

    phase: str
    verb: str
    #: The reply that refuses the command; empty when it is not refused.
    reply: str = ""
    #: What smtpd goes on with: the client's parameter, or the one it was rewritten to.
    parameter: str = ""
    #: The lines of a message as they came back, dot-stuffed.
    lines: tuple[bytes, ...] | None = field(default=None, repr=False)
    #: Whether the filter was asked; one that does not register a phase proceeds.
    asked: bool = field(default=True, compare=False)

    @property
    def refused(self) -> bool:
        """Whether the client was told no."""
        return bool(self.reply)

    @property
    def closes(self) -> bool:
        """Whether smtpd closes the connection; it does so by itself behind a 421."""
        return self.verb == "disconnect" or self.reply.startswith("421")

    def __str__(self) -> str:
        return (
            f"{self.verb} {self.reply or self.parameter}" if self.verb != "proceed" else "proceed"
        )


def verdict(phase: str, argument: bytes, result: Result | None) -> Verdict:
    """Make a verdict of an answer; None for a phase that was not asked."""
    before = argument.decode("utf-8", "surrogateescape")
    if result is None:
        return Verdict(phase, "proceed", parameter=before, asked=False)
    verb = result.verb.decode("latin-1")
    said = (result.argument or b"").decode("utf-8", "surrogateescape")
    if verb in REFUSALS:
        return Verdict(phase, verb, reply=said)
    return Verdict(phase, verb, parameter=said if verb in WITH_PARAMETER else before)


def message_verdict(sent: list[bytes], returned: list[bytes], *, asked: bool = True) -> Verdict:
    """Make the verdict on a message of these lines."""
    verb = "unchanged" if sent == returned else "changed"
    return Verdict("data-line", verb, lines=tuple(returned), asked=asked)


@dataclass(slots=True, eq=False)
class Step:
    """What is to be written next, and whether an answer to it is needed.

    ``phase`` is empty where there is nothing to decide, else that of the request, or "data-line"
    for the end of a message.  ``data`` is empty where there is nothing to write.
    """

    session: bytes
    phase: str = ""
    argument: bytes = b""
    data: bytes = b""
    recorded: Verdict | None = None
    #: None until there is an answer, and for good where it did not come to the question.
    verdict: Verdict | None = None
    #: Whether the filter's answer is waited for.
    waiting: bool = False

    @property
    def differs(self) -> bool:
        """Whether the filter decided otherwise than recorded."""
        return bool(self.phase) and self.verdict != self.recorded


class Replay:
    """One recording, played to one filter.

    ``protocol``: the version to be spoken, by default the recorded one.
    """

    def __init__(self, recording: Recording, *, protocol: tuple[int, int] | None = None) -> None:
        self._recorded = dialect(version(recording.protocol or "") or NEWEST)
        spoken = dialect(protocol or self._recorded.version)
        #: A server that speaks another protocol is another server.
        self._converted = spoken.version != self._recorded.version
        said = "" if self._converted else recording.server_version or ""
        self.smtpd = SmtpdConnection(spoken.version, said)
        self.recording = recording
        self.oracle = Oracle()
        #: The steps at which there was something to decide, in order.
        self.outcomes: list[Step] = []
        self._clients: dict[bytes, _Client] = {}
        self._tokens: dict[str, bytes] = {}

    @property
    def ready(self) -> bool:
        """Whether the filter has registered all that it wants."""
        return self.smtpd.ready

    def handshake(self) -> bytes:
        """The configuration lines as recorded, in the terms of the version that is spoken."""
        said: list[Config] = []
        for line in self.recording.to_filter():
            event = decode(line, self._recorded)
            if not isinstance(event, Config) or event.key in {"protocol", "ready"}:
                continue
            if event.key == "smtpd-version":
                kept = event.value if not self._converted else self.smtpd.smtpd_version
                said.append(Config("smtpd-version", kept))
                if self.smtpd.dialect.version >= SAYS_PROTOCOL:
                    said.append(Config("protocol", self.smtpd.dialect.name))
            else:
                said.append(event)
        data = b"".join(map(encode_config, [*said, Config("ready")]))
        self.oracle.from_smtpd(data)
        return data

    def receive(self, data: bytes) -> None:
        """Take what the filter wrote."""
        self.oracle.from_filter(data)
        for answer in self.smtpd.receive(data):
            if isinstance(answer, (Result, Line)) and answer.session in self._clients:
                self._clients[answer.session].take(answer)

    def steps(self) -> Iterator[Step]:
        """What smtpd sends, in order.  The answer to a step is waited for before the next."""
        for scene in _scenes(self.recording, self._recorded):
            client = self._clients.setdefault(scene.event.session, _Client(scene.event.session))
            for step in self._play(scene, client):
                client.step = step
                self.oracle.from_smtpd(step.data)
                yield step

    def finish(self) -> None:
        """The filter has closed its end: have the oracle say what is missing."""
        self.oracle.finish()

    # -- a scene as it goes now ----------------------------------------------------------

    def _play(self, scene: _Scene, client: _Client) -> Iterator[Step]:
        event = scene.event
        if isinstance(event, Report):
            if not client.gone and event.subsystem == b"smtp-in":
                for report in client.adapt(event):
                    yield from self._report(client, report, event.time)
        elif isinstance(event, Lines):
            yield from self._lines(event, scene, client)
        elif event.phase is not None:
            # Servers before 0.7 do not ask about a NOOP with an argument.
            if event.argument and event.phase.name == "noop" and self._speaks_before_0_7:
                return
            yield from self._request(event, event.phase.name, scene, client)

    @property
    def _speaks_before_0_7(self) -> bool:
        return self.smtpd.dialect.version < SAYS_PROTOCOL

    def _report(
        self, client: _Client, report: tuple[str, tuple[bytes, ...]], time: bytes
    ) -> Iterator[Step]:
        name, values = report
        if name in self.smtpd.reports:
            data = self.smtpd.report(name, client.session, *values, time=time)
            yield Step(client.session, data=data)

    def _request(
        self, event: Request, phase: str, scene: _Scene, client: _Client
    ) -> Iterator[Step]:
        step = Step(client.session, phase, event.argument, recorded=scene.recorded)
        self.outcomes.append(step)
        if not client.reaches(phase):
            return
        if phase in self.smtpd.phases:
            step.data = self.smtpd.request(
                phase, client.session, self._token(phase), event.argument, event.time
            )
            step.waiting = True
            yield step
        else:
            step.verdict = verdict(phase, event.argument, None)
        if client.heed(step):
            for report in client.goodbye(phase, event.argument):
                yield from self._report(client, report, event.time)

    def _lines(self, event: Lines, scene: _Scene, client: _Client) -> Iterator[Step]:
        step = Step(client.session, recorded=scene.recorded)
        if event.end:
            step.phase = "data-line"
            self.outcomes.append(step)
        if not client.reaches("data-line"):
            return
        lines = client.marked(event.lines)
        asked = "data-line" in self.smtpd.phases
        if asked:
            step.data = self.smtpd.lines(
                client.session, self._token("data-line"), lines, end=event.end, time=scene.time
            )
            step.waiting = event.end
        elif event.end:
            step.verdict = message_verdict(client.sent, client.sent, asked=False)
        if step.data:
            yield step
        if event.end:
            client.sent, client.returned = [], []

    def _token(self, phase: str) -> bytes:
        """The token of a phase: it is the same for all sessions."""
        return self._tokens.setdefault(phase, b"%016x" % (0x70C3 << 48 | len(self._tokens) + 1))


class _Scene:
    """An event of the recording, with the time at which it was and what it came to."""

    __slots__ = ("event", "recorded", "time")

    def __init__(self, event: Report | Request | Lines, time: bytes) -> None:
        self.event = event
        self.time = time
        self.recorded: Verdict | None = None

    def answered(self, answer: Result) -> None:
        """Note the verdict."""
        if isinstance(self.event, Request) and self.event.phase is not None:
            self.recorded = verdict(self.event.phase.name, self.event.argument, answer)


def _scenes(recording: Recording, spoken: Dialect) -> list[_Scene]:
    """The recording's events; lines that stand together are one."""
    scenes: list[_Scene] = []
    requests: dict[bytes, _Scene] = {}
    messages: dict[bytes, _Told] = {}
    for direction, line in recording.entries:
        if direction == FROM_SMTPD:
            event = decode(line, spoken)
            if not isinstance(event, (Report, Request, Lines)):
                continue
            scene = _Scene(event, line.split(b"|", 3)[2])
            if isinstance(event, Lines):
                scene = _joined(scenes, event) or scene
                messages.setdefault(event.session, _Told()).hear(event, scene)
            elif isinstance(event, Request):
                requests[event.session] = scene
            scenes.append(scene)
        elif direction == FROM_FILTER:
            answer = decode_answer(line, spoken)
            if isinstance(answer, Result) and answer.session in requests:
                requests.pop(answer.session).answered(answer)
            elif isinstance(answer, Line) and answer.session in messages:
                messages[answer.session].take(answer.line)
        for session in [session for session, told in messages.items() if told.settled()]:
            del messages[session]
    return scenes


def _joined(scenes: list[_Scene], event: Lines) -> _Scene | None:
    """Take off the last scene, with these lines added, if it is of the same message."""
    last = scenes[-1].event if scenes else None
    if isinstance(last, Lines) and last.session == event.session and not last.end:
        last.lines += event.lines
        last.end = event.end
        return scenes.pop()
    return None


class _Told:
    """A message of the recording: what smtpd sent and what came back."""

    __slots__ = ("ended", "returned", "scene", "sent")

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.returned: list[bytes] = []
        self.scene: _Scene | None = None
        self.ended = False

    def hear(self, event: Lines, scene: _Scene) -> None:
        """Take what smtpd wrote."""
        self.sent += event.lines
        if event.end:
            self.scene = scene

    def take(self, line: bytes) -> None:
        """Take what the filter wrote."""
        if line == b".":
            self.ended = True
        elif not self.ended:
            self.returned.append(line)

    def settled(self) -> bool:
        """Note the verdict, once both sides have come to their end."""
        if self.ended and self.scene is not None:
            self.scene.recorded = message_verdict(self.sent, self.returned)
            return True
        return False


#: The phases that smtpd does not come to while a session is stuck: what goes before was refused.
_STUCK: dict[str, frozenset[str]] = {
    "": frozenset(),
    "greeting": frozenset({"auth", "mail-from", "rcpt-to", "data", "data-line", "commit"}),
    "mail-from": frozenset({"rcpt-to", "data", "data-line", "commit"}),
    "data": frozenset({"data-line", "commit"}),
}
#: The phases that bring a stuck session on.
_FRESH = {
    "helo": ("greeting",),
    "ehlo": ("greeting",),
    "mail-from": ("mail-from", "data"),
    "data": ("data",),
}

#: A greeting takes the place of the other one.
_REPLACES = {"helo": ("ehlo",), "ehlo": ("helo",)}


class _Client:
    """A session of the recording, as it goes now."""

    def __init__(self, session: bytes) -> None:
        self.session = session
        self.gone = False
        self.stuck = ""
        #: The transaction's message id; empty outside of one.
        self.msgid = b""
        #: The verdicts that reports still to come depend on, by phase.
        self.last: dict[str, Verdict] = {}
        self.recipients = 0
        #: Who called the session or the transaction junk: ("now" or "then", phase).
        self.junk: set[tuple[str, bool]] = set()
        self.step = Step(session)
        self.sent: list[bytes] = []
        self.returned: list[bytes] = []

    def take(self, answer: Result | Line) -> None:
        """Take what the filter said."""
        step = self.step
        if isinstance(answer, Result):
            if step.waiting and step.phase != "data-line":
                step.verdict = verdict(step.phase, step.argument, answer)
                step.waiting = False
        elif answer.line != b".":
            self.returned.append(answer.line)
        elif step.waiting and step.phase == "data-line":
            step.verdict = message_verdict(self.sent, self.returned)
            step.waiting = False

    def reaches(self, phase: str) -> bool:
        """Whether it comes to this phase at all."""
        if self.gone:
            return False
        if self.stuck in _FRESH.get(phase, ()):
            self.stuck = ""
        if phase == "data" and "rcpt-to" in self.last and not self.recipients:
            self.stuck = "data"  # no recipient was taken
            return False
        return phase not in _STUCK[self.stuck]

    def heed(self, step: Step) -> bool:
        """Note what was decided; whether smtpd closes the connection, unlike when recorded."""
        said = step.verdict
        if said is None:
            return False
        in_transaction = bool(self.msgid)
        for when, one in (("now", said), ("then", step.recorded)):
            if one is not None and one.verb == "junk":
                self.junk.add((when, in_transaction))
        phase = step.phase
        for former in _REPLACES.get(phase, ()):
            self.last.pop(former, None)
        self.last[phase] = said
        if not said.refused:
            self.recipients += phase == "rcpt-to"
            return False
        if said.closes:
            return step.recorded is None or not step.recorded.closes
        stuck = {"helo": "greeting", "ehlo": "greeting", "mail-from": "mail-from", "data": "data"}
        self.stuck = stuck.get(phase, self.stuck)
        return False

    def marked(self, lines: list[bytes]) -> list[bytes]:
        """Lines of a message with or without smtpd's mark, as it was decided now."""
        lines = list(lines)
        if not self.sent:
            whose = {when for when, _ in self.junk}
            if lines[:1] == [MARK]:
                if whose == {"then"}:
                    del lines[0]
            elif "now" in whose:
                lines.insert(0, MARK)
        self.sent += lines
        return lines

    def adapt(self, report: Report) -> list[tuple[str, tuple[bytes, ...]]]:
        """The reports that smtpd makes now, in place of a recorded one."""
        name, values = report.name, report.values
        kept = [(name, values)]
        if name.startswith("tx-"):
            return self._adapt_transaction(name, values)
        if name == "filter-response":
            return self._response(values)
        refused_by = {"link-identify": ("helo", "ehlo"), "link-tls": ("starttls",)}
        refused_by["link-auth"] = ("auth",)
        if any(self._refused(phase) for phase in refused_by.get(name, ())):
            return []
        if name == "link-identify" and (rewritten := self._rewritten()):
            return [(name, (values[0], rewritten))]
        if name == "link-disconnect":
            self.gone = True
        return kept

    def _adapt_transaction(
        self, name: str, values: tuple[bytes, ...]
    ) -> list[tuple[str, tuple[bytes, ...]]]:
        if self.stuck in {"greeting", "mail-from"}:
            return []
        if name == "tx-begin":
            self.msgid, self.recipients = values[0], 0
            self.last.pop("rcpt-to", None)
        elif name == "tx-reset":
            self._reset()
        elif name == "tx-commit":
            return self._committed(values)
        elif name in {"tx-envelope", "tx-rcpt"} and self._refused("rcpt-to"):
            if name == "tx-envelope":
                return []
            values = (values[0], self._failure("rcpt-to"), values[2])
        elif name == "tx-data" and self.stuck == "data":
            if not self._refused("data"):
                return []
            values = (values[0], self._failure("data"))
        return [(name, values)]

    def _committed(self, values: tuple[bytes, ...]) -> list[tuple[str, tuple[bytes, ...]]]:
        rolled_back = ("tx-rollback", (self.msgid,))
        if self._refused("commit"):
            return [("tx-data", (self.msgid, self._failure("commit"))), rolled_back]
        return [rolled_back] if self.stuck == "data" else [("tx-commit", values)]

    def _reset(self) -> None:
        """The transaction is over."""
        self.msgid, self.recipients, self.stuck = b"", 0, ""
        self.sent, self.returned = [], []
        self.junk = {(when, within) for when, within in self.junk if not within}
        for phase in ("rcpt-to", "data", "commit"):
            self.last.pop(phase, None)

    def _response(self, values: tuple[bytes, ...]) -> list[tuple[str, tuple[bytes, ...]]]:
        for phase, said in self.last.items():
            if RESPONSE_NAMES.get(phase, phase).encode() == values[0]:
                parameter = said.reply or (said.parameter if said.verb in WITH_PARAMETER else "")
                text = parameter.encode("utf-8", "surrogateescape")
                response = (values[0], said.verb.encode("latin-1"), text)
                return [("filter-response", response)] if said.asked else []
        return [("filter-response", values)]

    def goodbye(self, phase: str, argument: bytes) -> list[tuple[str, tuple[bytes, ...]]]:
        """The reports with which smtpd closes a connection because of what was decided."""
        self.gone = True
        reports: list[tuple[str, tuple[bytes, ...]]] = []
        if self.msgid:
            failure = self._failure(phase)
            if phase == "rcpt-to":
                reports.append(("tx-rcpt", (self.msgid, failure, argument)))
            elif phase in {"data", "commit"}:
                reports.append(("tx-data", (self.msgid, failure)))
            reports += [("tx-rollback", (self.msgid,)), ("tx-reset", (self.msgid,))]
        return [*reports, ("link-disconnect", ())]

    def _refused(self, phase: str) -> bool:
        return phase in self.last and self.last[phase].refused

    def _failure(self, phase: str) -> bytes:
        return failure(self.last[phase])

    def _rewritten(self) -> bytes:
        for phase in ("ehlo", "helo"):
            if phase in self.last and self.last[phase].verb == "rewrite":
                return self.last[phase].parameter.encode("utf-8", "surrogateescape")
        return b""


def failure(said: Verdict) -> bytes:
    """The result in a ``tx-`` report of a command that was refused so."""
    return b"tempfail" if said.reply.startswith("4") else b"permfail"
