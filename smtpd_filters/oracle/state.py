"""The oracle and its state: the open request or message of each session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .decision import faults, is_decision
from .lines import HEX, LINE_LIMIT, WELL_FORMED, Lines, numbers
from .message import Message
from .rules import PHASES, REPORTS, RULES, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

_CUT: Final = 1_997
_CUT_UNTIL: Final = (7, 4)
_SHOWN: Final = 120
_WITHOUT_CREDENTIALS: Final = frozenset({b"", b"plain", b"login"})


@dataclass(frozen=True, slots=True)
class Complaint:
    """One rule that the filter broke.

    `line` is the line that broke it, cut to 120 bytes, without credentials of `auth`.
    """

    rule: str
    kind: Kind
    why: str
    line: bytes

    def __str__(self) -> str:
        return f"{self.kind.name} {self.rule}: {self.why}: {self.line!r}"


class _Session:
    """One client's connection, with the answer that smtpd waits for."""

    __slots__ = ("credentials", "lost", "message", "phase", "required", "token")

    def __init__(self, *, lost: bool = False) -> None:
        self.lost = lost
        self.message: Message | None = None
        # The phase of the open request or None, its token, and whether it requires an answer.
        self.phase: bytes | None = None
        self.token = b""
        self.required = False
        # The open request is an AUTH with credentials.
        self.credentials = False


class Oracle:
    """A checker of one filter's conversation with one smtpd.

    `server` is smtpd's version ("7.8.0p1"), by default the one in its configuration line.
    `complaints` are the violations of the filter, in order. `oddities` are lines, cut to 120 bytes,
    that no smtpd writes; a test that plays a real smtpd should have none.
    """

    def __init__(self, server: str | None = None) -> None:
        #: What smtpd would not accept, in order.
        self.complaints: list[Complaint] = []
        #: Lines in smtpd's direction that no smtpd writes.
        self.oddities: list[bytes] = []
        self._server = numbers(server) if server is not None else None
        self._server_given = server is not None
        self._from_smtpd = Lines()
        self._from_filter = Lines()
        self._sessions: dict[bytes, _Session] = {}
        self._closed: set[bytes] = set()
        self._asked_to_register = False
        self._ready = False
        self._token_first = False
        self._version = b""

    def from_smtpd(self, data: bytes) -> None:
        """Process bytes that smtpd wrote to the filter."""
        for line in self._from_smtpd.feed(data):
            if line.startswith(b"filter|"):
                self._request(line)
            elif line.startswith(b"report|"):
                self._report(line)
            elif line.startswith(b"config|"):
                self._config(line)
            else:
                self._odd(line)

    def from_filter(self, data: bytes) -> None:
        """Process bytes that the filter wrote to smtpd."""
        for line in self._from_filter.feed(data):
            if len(line) >= LINE_LIMIT:
                self._complain("line-too-long", line)
            elif line.startswith(b"filter-dataline|"):
                self._data_line(line)
            elif line.startswith(b"filter-result|"):
                self._result(line)
            elif line.startswith(b"register|"):
                self._register(line)
            elif line.startswith(b"report|"):
                self._complain("line-report", line)
            else:
                self._complain("line-unknown", line)

    def finish(self) -> None:
        """Complain about missing answers, after both ends are closed and all output was fed."""
        if rest := bytes(self._from_filter.rest):
            long = len(rest) >= LINE_LIMIT
            self._complain("line-too-long" if long else "line-unfinished", rest)
            self._from_filter.rest.clear()
        if self._asked_to_register and not self._ready:
            self._complain("register-not-ready", b"config|ready")
        for name, session in self._sessions.items():
            if session.lost:
                continue
            if session.phase is not None and session.required:
                self._complain("never-answered", b"%s|%s" % (session.phase, name))
            message = session.message
            if message and message.smtpd_ended and not message.filter_ended:
                self._complain("never-ended", b"data-line|%s" % name)

    def verify(self, *, odd: bool = False) -> None:
        """Raise AssertionError with the complaints, if there are any.

        Oddities count as well, since they leave a session unchecked; `odd` is for tests that
        write such lines on purpose.
        """
        found = [str(complaint) for complaint in self.complaints]
        if not odd:
            found += [f"no smtpd writes: {line!r}" for line in self.oddities]
        if found:
            raise AssertionError("\n".join(found))

    # Lines from smtpd

    def _odd(self, line: bytes) -> None:
        self.oddities.append(line[:_SHOWN])

    def _odd_request(self, fields: list[bytes]) -> None:
        # Without its parameter: that may be a credential.
        self._odd(b"|".join(fields[:7]))

    def _config(self, line: bytes) -> None:
        fields = line.split(b"|", 2)
        if fields[1] == b"ready":
            self._asked_to_register = True
        elif fields[1] == b"smtpd-version" and not self._server_given:
            self._server = numbers(fields[-1].decode("latin-1"))

    def _report(self, line: bytes) -> None:
        fields = line.split(b"|", 6)
        if len(fields) < 6:
            self._odd(line)
            return
        event, name = fields[4], fields[5]
        if event == b"link-connect":
            known = name in self._sessions or name in self._closed
            self._sessions[name] = _Session(lost=known)
            self._closed.discard(name)
        elif event == b"link-disconnect":
            self._sessions.pop(name, None)
            self._closed.add(name)
        elif event in {b"tx-commit", b"tx-rollback", b"tx-reset"}:
            session = self._sessions.get(name)
            if session and session.message:
                # No answer is required any more; a filter that has not ended the message yet may
                # continue until it receives the disconnect.
                if session.message.filter_ended:
                    session.message = None
                session.lost = session.lost or session.message is not None

    def _request(self, line: bytes) -> None:
        fields = line.split(b"|", 7)
        if len(fields) < 7:
            self._odd(line)
            return
        phase, name, token = fields[4:7]
        if fields[1] != self._version:
            self._version = fields[1]
            self._token_first = numbers(fields[1].decode("latin-1"), (0, 5)) < (0, 5)
        if not (HEX.fullmatch(name) and HEX.fullmatch(token)):
            self._odd_request(fields)
            return
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = _Session(lost=name in self._closed)
            self._closed.discard(name)
        required = WELL_FORMED.match(line) is not None
        if phase == b"data-line":
            if required:
                self._line_of_mail(session, token, fields[7])
            else:
                session.lost = True
                self._odd_request(fields)
            return
        message = session.message
        if session.phase is not None or (message and not message.filter_ended):
            session.lost = True
        if session.lost or not required:
            self._odd_request(fields)
        session.message = None
        session.phase, session.token, session.required = phase, token, required
        argument = fields[7].strip().lower() if len(fields) > 7 else b""
        session.credentials = phase == b"auth" and argument not in _WITHOUT_CREDENTIALS

    def _line_of_mail(self, session: _Session, token: bytes, content: bytes) -> None:
        message = session.message
        if message is None or (message.smtpd_ended and message.filter_ended):
            message = session.message = Message(token)
        if session.phase is not None or token != message.token or message.smtpd_ended:
            session.lost = True
            self._odd(content)
        elif broken := message.receive(content):
            self._complain(broken, content)

    # Lines from the filter

    def _complain(self, name: str, line: bytes) -> None:
        rule = RULES[name]
        self.complaints.append(Complaint(name, rule.kind, rule.why, line[:_SHOWN]))

    def _register(self, line: bytes) -> None:
        match line.split(b"|"):
            case [_, b"ready"]:
                self._ready = True
            case [_, b"report", b"smtp-in" | b"smtp-out", event] if event in REPORTS:
                pass
            case [_, b"filter", b"smtp-in", phase] if phase in PHASES:
                pass
            case _:
                self._complain("register-unknown", line)

    def _find(self, name: bytes, token: bytes, line: bytes) -> _Session | None:
        """Return the session of an answer, or None if smtpd would process it no further."""
        session = self._sessions.get(name)
        if session is not None and not session.lost:
            return session
        if not (HEX.fullmatch(name) and HEX.fullmatch(token)):
            self._complain("id-not-hex", line)
            return None
        if session is None:
            session = self._sessions.get(b"%016x" % int(name, 16))
        if session is None and name not in self._closed:
            self._complain("session-unknown", line)
        return None if session is None or session.lost else session

    def _data_line(self, line: bytes) -> None:
        fields = line.split(b"|", 3)
        if len(fields) < 4:
            self._complain("line-incomplete", line)
            return
        _, name, token, content = fields
        if self._token_first:
            name, token = token, name
        session = self._find(name, token, line)
        if session is None:
            return
        message = session.message
        if message is None or token != message.token:
            self._stray_data_line(session, token, line)
        elif message.filter_ended:
            self._complain("dataline-after-dot", line)
        else:
            if len(content) > _CUT and self._server and self._server < _CUT_UNTIL:
                self._complain("mail-cut", line)
            if broken := message.send(content):
                self._complain(broken, line)

    def _stray_data_line(self, session: _Session, token: bytes, line: bytes) -> None:
        if not HEX.fullmatch(token):
            self._complain("id-not-hex", line)
        elif session.phase == b"commit":
            self._complain("dataline-at-commit", line)
        elif session.message is None:
            self._complain("dataline-outside", line)
        else:
            self._complain("token-unknown", line)

    def _result(self, line: bytes) -> None:
        fields = line.split(b"|", 4)
        if len(fields) < 4:
            self._complain("line-incomplete", line)
            return
        _, name, token, verb = fields[:4]
        if self._token_first:
            name, token = token, name
        parameter = fields[4] if len(fields) > 4 else None
        session = self._find(name, token, line)
        shown = line
        if session is None or session.phase is None:
            self._unexpected(session, token, line)
        else:
            if session.phase == b"auth":
                shown = b"|".join([*fields[:3], b"..."])
            if token != session.token:
                self._wrong_token(token, verb, shown)
        if not is_decision(verb, parameter):
            self._complain("decision-malformed", shown)
        elif session is not None and session.phase is not None:
            found = faults(session.phase, verb, parameter or b"", self._server)
            leaks = session.credentials and verb in {b"reject", b"disconnect"}
            for rule in [*found, *(["refusal-at-auth"] if leaks else [])]:
                self._complain(rule, shown)
        if session is not None:
            session.phase = None

    def _unexpected(self, session: _Session | None, token: bytes, line: bytes) -> None:
        if session is None:
            return
        if not HEX.fullmatch(token):
            self._complain("id-not-hex", line)
        elif session.message is not None and not session.message.filter_ended:
            self._complain("result-in-data-line", line)
        else:
            self._complain("answer-unasked", line)

    def _wrong_token(self, token: bytes, verb: bytes, line: bytes) -> None:
        if not HEX.fullmatch(token):
            self._complain("id-not-hex", line)
        elif verb == b"proceed":
            self._complain("token-unknown", line)
        else:
            self._complain("token-unchecked", line)


def judge(entries: Iterable[tuple[str, bytes]], server: str | None = None) -> list[Complaint]:
    """Return the complaints about a whole conversation.

    `entries` are those of a `Recording`: ("<" or ">", line without LF); others are ignored.
    """
    oracle = Oracle(server)
    for direction, line in entries:
        if direction == "<":
            oracle.from_smtpd(line + b"\n")
        elif direction == ">":
            oracle.from_filter(line + b"\n")
    oracle.finish()
    return oracle.complaints
