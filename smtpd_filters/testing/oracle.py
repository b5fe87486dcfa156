"""What smtpd makes of a filter: every condition on which it exits, hangs or misbehaves.

The law:

1. The oracle watches both directions of the line and complains of the filter. It states smtpd's
   rules again, by itself: nothing of `smtpd_filters.protocol` is used, so that the two can be held
   against each other.
2. `rules.RULES` is the whole of what it complains of, each with what smtpd does about it.
3. It is never the judge of time: an answer is missing when finish() is called, not before.
4. It never raises, whatever the bytes, and how they are cut into chunks changes nothing.
5. What smtpd itself would never write is an oddity, not a complaint. A session in which smtpd broke
   its own rules is lost: of what the filter says in it only the form is checked. (It is odd, too,
   to hand over a `commit` before the filter's final dot: bytes are to be given in the order in
   which they pass.)
6. Where smtpd is lenient by accident (`0x1f` as a session id, `REGISTER|ready`) the oracle is not.

How it works: each session has at most one open request or one open message. A line from smtpd opens
one of them, a line from the filter closes it; what is left at the end was never answered. The
message part knows only what the rules need: whether the header block is whole, which odd bytes came
in, and which side has written its final dot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from smtpd_filters.testing.rules import (
    NEEDS,
    PHASES,
    REPORTS,
    RULES,
    UNFIT,
    WITH_PARAMETER,
    Kind,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Complaint:
    """One rule that the filter broke.

    line: what broke it, cut to 120 bytes; never what a client said in `auth`.
    """

    rule: str
    kind: Kind
    why: str
    line: bytes

    def __str__(self) -> str:
        return f"{self.kind.name} {self.rule}: {self.why}: {self.line!r}"


_LINE_LIMIT: Final = 65_536
_CUT: Final = 1_997
_CUT_UNTIL: Final = (7, 4)
_NOOP_ARGUMENT_SINCE: Final = (7, 0)
_REPORT_SINCE: Final = (7, 0)
_REPLY_LIMIT: Final = 5_000
_SHOWN: Final = 120

_HEX: Final = re.compile(rb"[0-9a-fA-F]{1,16}")
_WELL_FORMED: Final = re.compile(
    rb"filter\|[0-9]+\.[0-9]+\|[0-9]+(\.[0-9]+)?\|smtp-in\|[a-z-]+"
    rb"\|[0-9a-f]{16}\|[0-9a-f]{16}\|"
)
_REPLY: Final = re.compile(rb"[45][0-9][0-9] [^\0]")
# RFC 5321, 4.2: a reply's text is HT and printable ASCII; smtpd lets 8-bit pass.
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# RFC 5322, 2.2 (and 4.5 for the blank before the colon).
_FIELD: Final = re.compile(rb"[!-9;-~]+[ \t]*:")
_NUMBERS: Final = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")


class _Lines:
    """Bytes in, whole lines out."""

    __slots__ = ("rest",)

    def __init__(self) -> None:
        self.rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        if b"\n" not in data:
            self.rest += data
            return []
        lines = (bytes(self.rest) + data).split(b"\n")
        self.rest = bytearray(lines.pop())
        return lines


class _Head(Enum):
    """How far a header block has come."""

    EMPTY = 0
    OPEN = 1
    OVER = 2
    BROKEN = 3

    def after(self, line: bytes) -> _Head:
        if self not in {_Head.EMPTY, _Head.OPEN}:
            return self
        if not line:
            return _Head.OVER
        if line[0] in b" \t":
            return _Head.BROKEN if self is _Head.EMPTY else self
        return _Head.OPEN if _FIELD.match(line) else _Head.BROKEN


class _Message:
    """One message in transit: what came in, what went out."""

    __slots__ = (
        "cr",
        "cut_short",
        "dots",
        "filter_ended",
        "head_in",
        "head_out",
        "nul",
        "smtpd_ended",
        "token",
    )

    def __init__(self, token: bytes) -> None:
        self.token = token
        self.smtpd_ended = False
        self.filter_ended = False
        self.cut_short = False
        self.head_in = _Head.EMPTY
        self.head_out = _Head.EMPTY
        # Whether CR, NUL, or an unescaped dot (of a client that doesn't escape) came in: what only
        # passes through is no damage of the filter's.
        self.cr = False
        self.nul = False
        self.dots = False

    def receive(self, line: bytes) -> str | None:
        """Take a line from smtpd; the rule that it shows to be broken."""
        if line == b".":
            self.smtpd_ended = True
            return None
        if self.filter_ended:
            said, self.cut_short = self.cut_short, True
            return None if said else "mail-cut-short"
        if self.head_in is not _Head.OVER:
            self.head_in = self.head_in.after(line)
        if b"\r" in line:
            self.cr = True
        if b"\0" in line:
            self.nul = True
        if line.startswith(b".") and not line.startswith(b".."):
            self.dots = True
        return None

    def send(self, line: bytes) -> str | None:
        """Take a line from the filter; the rule that it breaks."""
        if line == b".":
            self.filter_ended = True
            return None
        broken = None
        if self.head_out is not _Head.OVER:
            before, self.head_out = self.head_out, self.head_out.after(line)
            if before is not self.head_out is _Head.BROKEN is not self.head_in:
                broken = "mail-head-broken"
        if b"\r" in line and not self.cr:
            broken = "mail-cr"
        if b"\0" in line and not self.nul:
            broken = "mail-nul"
        if line.startswith(b".") and not line.startswith(b"..") and not self.dots:
            broken = "mail-dot-lost"
        return broken


class _Session:
    """One client's connection: what smtpd waits for in it."""

    __slots__ = ("lost", "message", "phase", "required", "token")

    def __init__(self, *, lost: bool = False) -> None:
        self.lost = lost
        self.message: _Message | None = None
        # The open request, None when there is none, and whether an answer is due.
        self.phase: bytes | None = None
        self.token = b""
        self.required = False


class Oracle:
    """Watches one filter and one smtpd.

    server: the version of smtpd ("7.8.0p1"); without it, what smtpd says of itself counts.
    complaints: what the filter did wrong, in order.
    oddities: what no smtpd would write (truncated lines); a test that means to play a true smtpd
    wants none.
    """

    def __init__(self, server: str | None = None) -> None:
        self.complaints: list[Complaint] = []
        self.oddities: list[bytes] = []
        self._server = _numbers(server) if server is not None else None
        self._server_given = server is not None
        self._from_smtpd = _Lines()
        self._from_filter = _Lines()
        self._sessions: dict[bytes, _Session] = {}
        self._gone: set[bytes] = set()
        self._asked_to_register = False
        self._ready = False
        self._token_first = False
        self._version = b""

    def from_smtpd(self, data: bytes) -> None:
        """Bytes that smtpd wrote to the filter."""
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
        """Bytes that the filter wrote to smtpd."""
        for line in self._from_filter.feed(data):
            if len(line) >= _LINE_LIMIT:
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
        """Both ends are closed and the filter has written all it had: complain of what is due."""
        if rest := bytes(self._from_filter.rest):
            long = len(rest) >= _LINE_LIMIT
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
        """AssertionError that lists the complaints, if there are any.

        Oddities are listed as well, unless the test means to write what no smtpd would (`odd`):
        what the filter says in a session that is lost for them is not checked.
        """
        found = [str(complaint) for complaint in self.complaints]
        if not odd:
            found += [f"no smtpd writes: {line!r}" for line in self.oddities]
        if found:
            raise AssertionError("\n".join(found))

    # What smtpd says

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
            self._server = _numbers(fields[-1].decode("latin-1"))

    def _report(self, line: bytes) -> None:
        fields = line.split(b"|", 6)
        if len(fields) < 6:
            self._odd(line)
            return
        event, name = fields[4], fields[5]
        if event == b"link-connect":
            known = name in self._sessions or name in self._gone
            self._sessions[name] = _Session(lost=known)
            self._gone.discard(name)
        elif event == b"link-disconnect":
            self._sessions.pop(name, None)
            self._gone.add(name)
        elif event in {b"tx-commit", b"tx-rollback", b"tx-reset"}:
            session = self._sessions.get(name)
            if session and session.message:
                # Nothing more is due; a filter that has not ended the message yet may go on until
                # it learns that the client is gone.
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
            self._token_first = _numbers(fields[1].decode("latin-1"), (0, 5)) < (0, 5)
        if not (_HEX.fullmatch(name) and _HEX.fullmatch(token)):
            self._odd_request(fields)
            return
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = _Session(lost=name in self._gone)
            self._gone.discard(name)
        required = _WELL_FORMED.match(line) is not None
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

    def _line_of_mail(self, session: _Session, token: bytes, content: bytes) -> None:
        message = session.message
        if message is None or (message.smtpd_ended and message.filter_ended):
            message = session.message = _Message(token)
        if session.phase is not None or token != message.token or message.smtpd_ended:
            session.lost = True
            self._odd(content)
        elif broken := message.receive(content):
            self._complain(broken, content)

    # What the filter says

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
        """The session that is answered; None when smtpd would not look further."""
        session = self._sessions.get(name)
        if session is not None and not session.lost:
            return session
        if not (_HEX.fullmatch(name) and _HEX.fullmatch(token)):
            self._complain("id-not-hex", line)
            return None
        if session is None:
            session = self._sessions.get(b"%016x" % int(name, 16))
        if session is None and name not in self._gone:
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
        if not _HEX.fullmatch(token):
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
            self._unasked(session, token, line)
        else:
            if session.phase == b"auth":
                shown = b"|".join([*fields[:3], b"..."])
            if token != session.token:
                self._wrong_token(token, verb, shown)
        if (parameter is not None) != (verb in WITH_PARAMETER) or (
            parameter is None and verb not in {b"proceed", b"junk"}
        ):
            self._complain("decision-malformed", shown)
        elif session is not None and session.phase is not None:
            self._decision(session.phase, verb, parameter or b"", shown)
        if session is not None:
            session.phase = None

    def _unasked(self, session: _Session | None, token: bytes, line: bytes) -> None:
        if session is None:
            return
        if not _HEX.fullmatch(token):
            self._complain("id-not-hex", line)
        elif session.message is not None and not session.message.filter_ended:
            self._complain("result-in-data-line", line)
        else:
            self._complain("answer-unasked", line)

    def _wrong_token(self, token: bytes, verb: bytes, line: bytes) -> None:
        if not _HEX.fullmatch(token):
            self._complain("id-not-hex", line)
        elif verb == b"proceed":
            self._complain("token-unknown", line)
        else:
            self._complain("token-unchecked", line)

    def _decision(self, phase: bytes, verb: bytes, parameter: bytes, line: bytes) -> None:
        unfit = UNFIT.get((verb, phase))
        if verb == b"report":
            known = self._server is not None and self._server >= _REPORT_SINCE
            unfit = (unfit or "report-as-response") if known else "report-before-7"
        elif verb == b"rewrite" and phase == b"noop":
            if self._server is not None and self._server < _NOOP_ARGUMENT_SINCE:
                unfit = "rewrite-refused"
        elif need := NEEDS.get((verb, phase)):
            pattern, name = need
            unfit = None if pattern.match(parameter) else name
        if unfit:
            self._complain(unfit, line)
        if verb in {b"reject", b"disconnect"}:
            self._reply(parameter, line)
        if _CONTROL.search(parameter):
            self._complain("text-control", line)

    def _reply(self, text: bytes, line: bytes) -> None:
        if not _REPLY.match(text):
            self._complain("reply-no-code", line)
        if len(text) > _REPLY_LIMIT:
            self._complain("reply-too-long", line)


def judge(entries: Iterable[tuple[str, bytes]], server: str | None = None) -> list[Complaint]:
    """The complaints that a whole conversation deserves.

    entries: as in a Recording: ("<" or ">", line without LF); anything else is passed over.
    """
    oracle = Oracle(server)
    for direction, line in entries:
        if direction == "<":
            oracle.from_smtpd(line + b"\n")
        elif direction == ">":
            oracle.from_filter(line + b"\n")
    oracle.finish()
    return oracle.complaints


def _numbers(version: str, unknown: tuple[int, int] = (99, 0)) -> tuple[int, int]:
    """Major and minor of a version, wherever they stand in the text."""
    found = _NUMBERS.search(version)
    return (int(found[1]), int(found[2])) if found else unknown
