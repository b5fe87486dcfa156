"""The engine: takes the bytes of smtpd and of the programs, and makes the bytes for both.

It has no descriptor and no clock: `now` is set from outside. This module has the sessions and their
requests, `handshake` what precedes them, `transit` their messages; `smtpd_side` and `program_side`
read what both sides write.

Invariants
----------
*Once*: a request is in one of three places, and leaves it with its answer: with a program
(`Link.open`), waiting for one (`waiting`), or nowhere, since it is answered at once.
*Caught up*: a program gets nothing new of a session before it has answered again what was asked
about it before (`Session.replay`), since a later answer may depend on these.
*Answered last*: that a request is answered is logged before: what fails for lack of memory is done
again, and an answer must not be.
"""

from __future__ import annotations

from smtpd_filters.message.spool import Spool
from smtpd_filters.protocol.credentials import AUTH, Refusals
from smtpd_filters.protocol.data_lines import TOO_LONG
from smtpd_filters.protocol.decisions import PROCEED
from smtpd_filters.protocol.vocabulary import PHASES_ON_WIRE
from smtpd_filters.runtime.log import fold_traceback

from .handshake import Handshake
from .ledger import ASKED_OF_TRANSACTION, GIVEN, HELD, KEPT, RESET, Session
from .link import Link, Loss
from .observer import Unobserved
from .program_side import ProgramSide
from .replay import DISCONNECT, Replay, wanted
from .smtpd_side import SmtpdSide
from .transit import COMMIT, NAME, TEMPFAIL, Transit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.protocol.decisions import Decision
    from smtpd_filters.protocol.vocabulary import Phase
    from smtpd_filters.runtime.log import Log

    from .ledger import Message

#: Sessions kept. smtpd's own limit is that of its descriptors.
MAX_SESSIONS = 32768

#: Programs that may end while they catch up with a session, before it is given to no other: a
#: session that ends each program must not end them forever.
MAX_UNFINISHED = 2
#: Why a message is refused in the place of the program.
LOST_MESSAGE, LONG_LINE = "the message was lost with the program", "a line is too long"
#: Why a session is served by no program any more.
GIVEN_UP = "programs end of what was asked in this session before"
_DATA_LINE = b"data-line"


class Engine:
    """Both conversations: with smtpd, and with each program.

    `on_error` is the outcome of requests that no program answers, `deadline` the seconds that a
    program may take.
    """

    def __init__(  # noqa: PLR0913  # keyword-only: the settings
        self,
        log: Log,
        *,
        on_error: str = "tempfail",
        deadline: float = 60.0,
        register_all: bool = False,
        refuse_long_lines: bool = False,
        spool: Spool | None = None,
        observer: Unobserved | None = None,
        max_sessions: int = MAX_SESSIONS,
    ) -> None:
        self.log = log
        self._max_sessions = max_sessions
        self._observer = observer or Unobserved()
        self._observed = type(self._observer) is not Unobserved
        self.on_error, self.deadline = on_error, deadline
        #: Sessions with a request or a message that no program has.
        self.waiting: dict[Session, None] = {}
        self.transit = Transit(
            log,
            self.waiting,
            on_error=on_error,
            refuse_long_lines=refuse_long_lines,
            spool=spool or Spool(),
            quick=[phase for phase in self._observer.unasked if phase is not AUTH],
        )
        #: Pending output to smtpd. Answers may overtake lines of messages of other sessions.
        self.answers: list[bytes] = []
        self.lines = self.transit.lines
        self.handshake = Handshake(
            log,
            self.answers,
            own=self._observer.entries,
            register_all=register_all,
            server_cuts=self.transit.server_cuts,
        )
        self.sessions: dict[bytes, Session] = {}
        #: Refusals of AUTH commands, which smtpd must not log.
        self._refusals = Refusals()
        self.smtpd = SmtpdSide(
            self.transit, self.sessions, self._refusals.later, self._report, self._line
        )
        #: Process bytes of smtpd.
        self.from_smtpd = self.smtpd.receive
        #: Process bytes of a program, up to its first fault.
        self.from_program = ProgramSide(
            log,
            self.transit,
            self.answers,
            self._refusals,
            self.handshake.complete,
            self._replayed,
            self._observer,
        ).receive
        #: Programs that take new sessions.
        self.links: list[Link] = []

    @property
    def now(self) -> float:
        """Seconds, of a clock that stands still while no program can be expected to answer."""
        return self.transit.now

    @now.setter
    def now(self, seconds: float) -> None:
        self.transit.now = seconds

    @property
    def expecting(self) -> bool:
        """Whether a program is about to be ready: requests wait for it."""
        return self.transit.expecting

    @expecting.setter
    def expecting(self, soon: bool) -> None:
        self.transit.expecting = soon

    # -- programs ------------------------------------------------------------------------

    def attach(self, link: Link) -> None:
        """Begin the conversation with a program that was started."""
        self.handshake.attach(link)

    def admit(self, link: Link) -> None:
        """Let a program that is ready take new sessions."""
        if link not in self.links:
            self.links.append(link)

    def dismiss(self, link: Link) -> None:
        """Give a program no new sessions; it finishes those it has."""
        if link in self.links:
            self.links.remove(link)

    def settle(self) -> None:
        """Serve the sessions that wait: by a program, or if none is expected, in its place."""
        if not self.waiting or (self.expecting and not self.links):
            return
        for session in list(self.waiting):
            link = session.link or self._bind(session)
            if link is None and session.replay is not None:
                continue
            if link is not None:
                self._continue(session, link)
            elif session.unfinished >= MAX_UNFINISHED:
                self._unserved(session, GIVEN_UP)
            else:
                self._unserved(session, "no program runs")
            self.waiting.pop(session, None)

    def lost(self, link: Link, why: str) -> Loss:
        """Answer for a program that has ended, or will be ended because of `why`."""
        link.fault = link.fault or why
        self.handshake.starting.pop(link, None)
        self.dismiss(link)
        loss = Loss()
        for session in list(link.sessions.values()):
            loss.sessions += 1
            self._detach(session, link, why, loss)
            link.sessions.pop(session.id, None)
        link.open.clear()
        link.replaying.clear()
        link.messages.clear()
        link.returning.clear()
        link.feeding.clear()
        return loss

    def _detach(self, session: Session, link: Link, why: str, loss: Loss) -> None:
        session.link = None
        if session.replay is not None:
            session.replay = None
            session.unfinished += 1
        message = session.message
        if message is not None and message.state == GIVEN:
            if self.transit.take_back(message, link, self.deadline):
                loss.given_again += 1
            else:
                loss.refused += 1
        elif session.judged:
            # The verdict on the message, which smtpd has got back, is lost.
            session.judged = False
            if session.phase is not COMMIT:
                session.refusal = TEMPFAIL
                loss.refused += 1
        if session.phase is not None and not session.row:
            loss.answered += 1
            self._answer_for(session, session.phase, session.token, why)

    def overdue(self, link: Link) -> str:
        """Return why a program counts as hung, or an empty string."""
        limit = self.now - self.deadline
        for session in link.open.values():
            if session.since < limit and session.phase is not None:
                return f"no answer at {session.phase.name} for {self.deadline:g} s"
        for session in link.replaying.values():
            if session.replay is not None and (phase := session.replay.overdue(limit)):
                return f"no answer at {phase}, asked again, for {self.deadline:g} s"
        for message in link.messages.values():
            if message.ended and message.since < limit:
                return f"message not returned for {self.deadline:g} s"
        return ""

    def expire(self) -> None:
        """Answer for sessions that have waited for a program for too long."""
        limit = self.now - self.deadline
        for session in list(self.waiting):
            message = session.message
            asked = session.row and session.since < limit
            if asked or (message is not None and message.ended and message.since < limit):
                self._unserved(session, "no program is ready")
                self.waiting.pop(session, None)

    def beat(self, ends: int) -> float | None:
        """Send the journal stories and the state that are due; programs have ended `ends` times.

        Return the seconds until more is; None without a journal.
        """
        return self._observer.beat(len(self.sessions), ends)

    @property
    def holds(self) -> bool:
        """Whether something for the journal waits for `beat`, which may be due soon."""
        return self._observer.holds

    def flush(self) -> None:
        """Send the journal all that waits, at the end of the process."""
        self._observer.flush()

    def relieve(self) -> None:
        """Release memory: the lines of messages that are kept only to be given again."""
        for session in self.sessions.values():
            message = session.message
            if message is None or not message.kept or message.state != GIVEN:
                continue
            if message.link is not None and message not in message.link.feeding:
                message.returned = True  # as if: it is not given again
                message.release()

    # -- input of smtpd ------------------------------------------------------------------

    def _line(self, row: bytes) -> bytes:
        """Process a line of smtpd; return the key of a message that begins with it."""
        fields = row[:-1].split(b"|", 7)
        kind = fields[0]
        try:
            if kind == b"filter" and len(fields) > 6:
                if fields[4] == _DATA_LINE:
                    return self._data_line(row, fields)
                self._request(row, fields)
            elif kind == b"filter":
                self._unexpected("request")
            elif kind == b"config":
                self.handshake.configure(row, fields)
            elif kind == b"report" and len(fields) > 5:
                self._report(row, fields[3], fields[4], fields[5])
            else:
                self._unexpected("report" if kind == b"report" else "line")
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # Alive
            self._failed(fields, error)
        return b""

    def _failed(self, fields: list[bytes], error: Exception) -> None:
        """Handle a bug of ours: it costs at most an answer by `on_error`."""
        self.log.limited("bug", NAME, "bug", error=fold_traceback(error))
        phase = PHASES_ON_WIRE.get(fields[4]) if len(fields) == 8 else None
        session = self.sessions.get(fields[5]) if phase is not None else None
        if phase is not None and (session is None or session.phase is None):
            wire = self._refusals.answer(phase, fields[5], self._fallback(phase).wire)
            self._answer(fields[5], fields[6], wire)

    def _unexpected(self, what: str) -> None:
        self.log.limited(f"unexpected {what}", NAME, "unexpected", input=what)

    # -- reports -------------------------------------------------------------------------

    def _report(self, row: bytes, subsystem: bytes, name: bytes, id_: bytes) -> None:
        """Process a report."""
        try:
            session = self.sessions.get(id_)
            if session is not None:
                self._reported(session, row, subsystem, name)
            elif name not in (DISCONNECT, RESET):
                self._reported(self._new_session(id_), row, subsystem, name)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # Alive
            self._failed([], error)

    def _reported(self, session: Session, row: bytes, subsystem: bytes, name: bytes) -> None:
        if self._observed:
            self._observer.reported(session, name, row)
        kept = name in KEPT
        if kept:
            session.keep(name, row)
        elif name == RESET:
            self._reset(session)
        link, replay = session.link, session.replay
        if link is None and replay is None and name not in (DISCONNECT, RESET):
            # What has ended is not passed on; what is kept is replayed, now or later.
            link = self._bind(session)
            if kept:
                return
            replay = session.replay
        if link is not None:
            if name in link.reports.get(subsystem, ()):
                link.out.append(row)
        elif replay is not None:
            replay.report(subsystem, name, row)
        if name == DISCONNECT:
            self._close(session)

    def _new_session(self, id_: bytes) -> Session:
        if len(self.sessions) >= self._max_sessions:
            self._evict()
        session = self.sessions[id_] = Session(id_)
        return session

    def _evict(self) -> None:
        """Forget the oldest session that smtpd waits for nothing in."""
        for session in self.sessions.values():
            if session.phase is None and session.message is None:
                self._close(session)
                return

    def _close(self, session: Session) -> None:
        """Forget a session that has ended."""
        if self._observed:
            self._observer.closed(session)
        if session.message is not None:
            self._reset(session)
        link = session.link
        if link is not None:
            if session.phase is not None and session.expected in link.open:
                link.owe(session.id)
                del link.open[session.expected]
            link.sessions.pop(session.id, None)
        if session.replay is not None:
            session.replay.end(session)
            session.replay = None
        self.waiting.pop(session, None)
        self.sessions.pop(session.id, None)
        self._refusals.forget(session.id)

    def _reset(self, session: Session) -> None:
        """Forget the transaction, and a message that the client has not finished."""
        session.end_transaction()
        if session.asked_at in ASKED_OF_TRANSACTION:
            session.asked = b""
        session.refusal = b""
        session.judged = False
        message = session.message
        if message is None:
            return
        if message.link is not None:
            message.link.owe(session.id)
            # From here on no memory is needed.
            message.link.remove(message)
        self.transit.forget_key(message)
        message.release()
        session.message = None
        if not session.row:
            self.waiting.pop(session, None)

    def _bind(self, session: Session) -> Link | None:
        """Give the session to the least loaded program, and replay what is kept of it.

        Return None if there is none, or if it has to be asked again first (*Caught up*).
        """
        links = self.links
        if not links or session.replay is not None or session.unfinished >= MAX_UNFINISHED:
            return None
        if session.asked:
            session.keep_request()
        link = links[0] if len(links) == 1 else min(links, key=_load)
        if session.requests:
            replay = Replay(link, [row for row in session.lines if wanted(link, row)])
            link.sessions[session.id] = session
            session.replay = replay
            return self._advance(session, replay)
        if link.replayed:
            link.out += [row for row in session.lines if wanted(link, row)]
        link.sessions[session.id] = session
        session.link = link
        return link

    def _advance(self, session: Session, replay: Replay) -> Link | None:
        """Go on with a replay; return the program if it has all of the session."""
        if not replay.advance(session, self.now):
            return None
        session.replay, session.link = None, replay.link
        session.unfinished = 0
        return replay.link

    def _replayed(self, session: Session) -> None:
        """Go on after the answer to a request of a replay."""
        replay = session.replay
        if replay is not None and (link := self._advance(session, replay)) is not None:
            self._continue(session, link)
            self.waiting.pop(session, None)

    # -- requests ------------------------------------------------------------------------

    def _data_line(self, row: bytes, fields: list[bytes]) -> bytes:
        """Process a line of a message; return the message's key if it begins with this line."""
        session = self.sessions.get(fields[5]) or self._new_session(fields[5])
        link = session.link
        if link is None and session.message is None:
            link = self._bind(session)
        argument = fields[7] if len(fields) > 7 else b""
        return self.transit.line(session, fields[6], row, argument, link)

    def _request(self, row: bytes, fields: list[bytes]) -> None:
        """Process a request: answer it, pass it to a program, or let it wait for one.

        `SmtpdSide` passes most requests on by itself, in the same way.
        """
        id_, token = fields[5], fields[6]
        session = self.sessions.get(id_) or self._new_session(id_)
        link = session.link
        phase, argument = PHASES_ON_WIRE.get(fields[4]), fields[7] if len(fields) > 7 else b""
        if session.asked and session.phase is None:
            session.keep_request()
        self._observer.asked(session, phase, row)
        if session.message is not None:
            self._cut_short(session.message)
        if phase is None or session.phase is not None:
            self._unexpected("request")
            self._answer(id_, token, PROCEED.wire)
        elif due := self._refusals.due(phase, id_, argument):
            self._answer(id_, token, due)
            self._refusals.given(id_)
        elif session.refusal and phase is COMMIT:
            self._refuse(session, token)
        elif link is None and (link := self._bind(session)) is None:
            self._ask_nobody(session, phase, token, row)
        elif phase.wire in link.phases:
            self._ask(session, link, phase, token, row)
        else:
            self._answer(id_, token, PROCEED.wire)

    def _ask(self, session: Session, link: Link, phase: Phase, token: bytes, row: bytes) -> None:
        """Pass a request to the program of its session."""
        expected = session.id + b"|" + token
        link.open[expected] = session
        try:
            link.out.append(row)
        except MemoryError:  # the program has not got it
            del link.open[expected]
            raise
        # From here on no memory is needed.
        session.expected = expected
        session.phase, session.since = phase, self.transit.now
        session.asked, session.asked_at = row if phase is not AUTH else b"", phase.wire
        if phase is COMMIT:
            session.judged = False  # the program is asked for it

    def _cut_short(self, message: Message) -> None:
        """End a message before a request: smtpd exits on a result before the final dot."""
        self._unexpected("request within a message")
        self.transit.lose(message)
        if message.session.message is message:
            self.transit.finish(message)

    def _ask_nobody(self, session: Session, phase: Phase, token: bytes, row: bytes) -> None:
        """Let a request wait for a program, or answer it in its place."""
        if session.unfinished >= MAX_UNFINISHED:
            self._answer_for(session, phase, token, GIVEN_UP)
            return
        if session.replay is None and not self.expecting:
            self._answer_for(session, phase, token, "no program runs")
            return
        self.waiting[session] = None
        session.expected = session.id + b"|" + token
        session.phase, session.since, session.row = phase, self.now, row

    def _refuse(self, session: Session, token: bytes) -> None:
        """Refuse a message at `commit` in the place of the program."""
        wire, why, setting = session.refusal, LOST_MESSAGE, ""
        if wire == TOO_LONG.wire:
            why, setting = LONG_LINE, "--long-lines"
        self._observer.refused(session, COMMIT, wire, why, setting)
        self._answer(session.id, token, wire)
        # From here on no memory is needed.
        session.refusal, session.judged = b"", False

    def _answer(self, session: bytes, token: bytes, wire: bytes) -> None:
        self.answers.append(b"filter-result|%b|%b|%b\n" % (session, token, wire))

    def _answer_for(self, session: Session, phase: Phase, token: bytes, why: str) -> None:
        """Answer a request in the place of a program."""
        decision = self._fallback(phase)
        self._observer.answered_for(session, phase, decision, why)
        shown = session.id.decode("latin-1")
        brief = {"result": decision.verb}
        self.log.failure(why, NAME, phase.name, shown, brief, cause=why, reply=decision.text)
        self._answer(session.id, token, self._refusals.answer(phase, session.id, decision.wire))
        # From here on no memory is needed.
        session.phase, session.row, session.asked = None, b"", b""
        if phase is COMMIT:
            session.judged = False

    def _fallback(self, phase: Phase) -> Decision:
        """Return the decision of `on_error`: at commit a message can't be marked any more."""
        found = phase.fallbacks.get(self.on_error)
        if found is not None:
            return found
        return phase.fallbacks["tempfail"] if phase is COMMIT else PROCEED

    def _continue(self, session: Session, link: Link) -> None:
        """Give a program what the session waits with."""
        message = session.message
        if message is not None and message.state == HELD:
            self.transit.give(message, link)
        elif message is not None and message.link is None:
            self.transit.do_without(message)
        if session.row:
            row, session.row = session.row, b""
            since, phase, session.phase = session.since, session.phase, None
            try:
                self._request(row, row[:-1].split(b"|", 7))
            except MemoryError:
                session.row, session.phase = row, phase
                raise
            session.since = since

    def _unserved(self, session: Session, why: str) -> None:
        """Do without a program what the session waits with."""
        message = session.message
        if message is not None and message.link is None:
            self.transit.do_without(message)
        if session.row and session.phase is not None:
            self._answer_for(session, session.phase, session.token, why)


def _load(link: Link) -> tuple[bool, int]:
    return link.clogged, len(link.sessions)
