"""Programs that misbehave in every way, between an engine and a legal smtpd.

The smtpd is that of `tests.protocol.hostile`. A program answers as a filter of this project does,
late, in part, twice, for other sessions, or with anything else; it ends at any time, and others are
started. The engine must keep smtpd's rules all the same.
"""

from __future__ import annotations

import os
from functools import cache

from smtpd_filters.oracle.lines import LINE_LIMIT
from smtpd_filters.oracle.rules import Kind
from smtpd_filters.protocol.decisions import JUNK, PROCEED, Reject
from smtpd_filters.protocol.filter_side import FilterConnection
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.protocol.vocabulary import PHASES, REPORTS
from smtpd_filters.runtime.log import Log
from smtpd_filters.supervise.engine import Engine
from smtpd_filters.supervise.link import Link
from tests.protocol.hostile import SERVERS, Choices, Smtpd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from smtpd_filters.protocol.decisions import Decision
    from smtpd_filters.protocol.events import Report
    from smtpd_filters.protocol.vocabulary import Phase

    T = TypeVar("T")

#: Lines that a program may write: nonsense, and answers that smtpd does not survive.
GARBAGE = (
    b"",
    b"hello",
    b"proceed\r",
    b"report|0.7|1.0|smtp-in|timeout|%s",
    b"register|filter|smtp-in|commit",
    b"register|ready",
    b"filter-result|%s|%s|PROCEED",
    b"filter-result|%s|%s|proceed|",
    b"filter-result|%s|%s|junk",
    b"filter-result|%s|%s|reject",
    b"filter-result|%s|%s|reject|",
    b"filter-result|%s|%s|reject|550",
    b"filter-result|%s|%s|reject|550 a\rb\0c",
    b"filter-result|%s|%s|disconnect|Go away \xff",
    b"filter-result|%s|%s|reject|550 " + b"x" * 20000,
    b"filter-result|%s|%s|rewrite|x\0y",
    b"filter-result|%s|%s|rewrite|<a@b.example>",
    b"filter-result|%s|%s|report|text",
    b"filter-result|%s|zz|proceed",
    b"filter-result|%s",
    b"filter-result|%s|%s",
    b"filter-dataline|%s|%s|text",
    b"filter-dataline|%s|%s|.",
    b"filter-dataline|%s|%s|nul\0nul",
    b"filter-dataline|%s|%s|" + b"z" * 70000,
    b"filter-dataline|%s|%s",
)
#: What a program registers: everything, no messages, messages only, nothing.
REGISTERED = (
    ((*PHASES, "data-line"), tuple(REPORTS)),
    (tuple(PHASES), ("link-connect", "link-disconnect", "tx-mail", "protocol-client")),
    (("data-line",), ()),
    ((), ("*",)),
)


@cache
def nowhere() -> Log:
    """A log that is discarded."""
    return Log(fd=os.open(os.devnull, os.O_WRONLY))


class Program:
    """A filter of this project at the other end of a link, with what it wrote but did not send."""

    def __init__(
        self,
        link: Link,
        choose: Callable[[Sequence[T]], T],
        registered: tuple[tuple[str, ...], tuple[str, ...]],
        decisions: Sequence[Decision | None] = (PROCEED,),
    ) -> None:
        self.link = link
        self.choose: Callable[[Sequence[object]], object] = choose  # type: ignore[assignment]
        self.registered, self.decisions = registered, decisions
        self.connection = FilterConnection(self)
        self.held: dict[bytes, list[bytes]] = {}
        self.asked_in: list[bytes] = []
        self.heard: list[tuple[str, bytes]] = []
        self.output = b""
        self.given = b""

    # -- the listener ----------------------------------------------------------------------

    def configured(self, key: str, _value: str) -> None:
        """Register."""
        if key == "ready":
            self.connection.register(*self.registered)

    def reported(self, report: Report) -> None:
        """Take note."""
        self.heard.append((report.name, report.session))
        if report.name in ("link-disconnect", "tx-reset"):
            self.held.pop(report.session, None)

    def asked(self, phase: Phase, session: bytes, argument: bytes) -> Decision | None:  # noqa: ARG002
        """Answer with one of the decisions; None is answered by `settle`."""
        decision: Decision | None = self.choose(self.decisions)  # type: ignore[assignment]
        if decision is None:
            self.asked_in.append(session)
        elif type(decision) not in phase.legal:
            return PROCEED
        return decision

    def content(self, session: bytes, lines: list[bytes], *, end: bool) -> None:
        """Echo, or keep the message until it is complete."""
        held = self.held.get(session)
        if held is None:
            if lines and not end and self.choose((True, False)):
                self.connection.send_lines(session, lines)
                self.connection.pass_through(session)
                return
            held = self.held[session] = []
        held += lines
        if end:
            del self.held[session]
            self.connection.send_lines(session, held, end=True)

    # -- what happens to it ----------------------------------------------------------------

    def read(self) -> None:
        """Read what was written to it."""
        data = b"".join(self.link.out)
        self.link.out.clear()
        self.given += data
        self.connection.receive(data)
        self.output += self.connection.data_to_send()

    def settle(self) -> None:
        """Answer what was not answered."""
        while self.asked_in:
            self.connection.answer(self.asked_in.pop(), PROCEED)
        self.output += self.connection.data_to_send()


class Stage:
    """An engine between a legal smtpd and programs that come and go."""

    def __init__(
        self,
        choose: Callable[[Sequence[T]], T],
        *,
        honest: bool = False,
        smtpd: type[Smtpd] = Smtpd,
    ) -> None:
        self.choose: Callable[[Sequence[object]], object] = choose  # type: ignore[assignment]
        self.honest = honest
        protocol = self.pick(tuple(each for each in SERVERS if each >= (0, 5)))
        self.engine = Engine(
            nowhere(),
            on_error=self.pick(("tempfail", "proceed", "junk")),
            refuse_long_lines=self.pick((False, True)),
            register_all=self.pick((False, True)),
        )
        self.programs: list[Program] = []
        self.ended: list[Program] = []
        self.registered = self.pick(REGISTERED)
        self.start()
        self.smtpd = smtpd(
            choose,  # type: ignore[arg-type]
            protocol,
            self.pick(SERVERS[protocol]),
            self.receive,
            self.outgoing,
        )
        self.run(self.programs[0])
        if self.engine.handshake.registered is None:
            self.engine.handshake.register_all()
        self.engine.settle()

    def pick(self, options: Sequence[T]) -> T:
        """One of these."""
        return self.choose(options)  # type: ignore[return-value]

    def receive(self, data: bytes) -> None:
        """Take bytes of smtpd."""
        self.engine.from_smtpd(data)

    def outgoing(self) -> tuple[bytes, bytes]:
        """Return the pending output to smtpd, and clear it: answers, and lines of messages."""
        engine = self.engine
        said = b"".join(engine.answers), b"".join(engine.lines)
        engine.answers.clear()
        engine.lines.clear()
        return said

    # -- programs --------------------------------------------------------------------------

    def start(self) -> Program:
        """Start a program."""
        link = Link()
        self.engine.attach(link)
        decisions: Sequence[Decision | None] = (
            (PROCEED,)
            if self.honest
            else (
                PROCEED,
                None,
                JUNK,
                Reject("550 5.7.1 No"),
            )
        )
        program = Program(link, self.choose, self.registered, decisions)
        self.programs.append(program)
        return program

    def end(self, program: Program) -> None:
        """A program ends."""
        self.programs.remove(program)
        self.ended.append(program)
        self.engine.lost(program.link, "exited with status 1")

    def run(self, program: Program) -> None:
        """A program does what it should."""
        link, engine = program.link, self.engine
        for _ in range(1000):
            engine.transit.feed(link)
            program.read()
            program.settle()
            output, program.output = program.output, b""
            engine.from_program(link, output)
            if not (link.out or link.feeding):
                break
        self.look_after(program)

    def look_after(self, program: Program) -> None:
        """Do what the fleet does."""
        link, engine = program.link, self.engine
        if link.fault:
            assert not self.honest, link.fault
            self.end(program)
        elif link.ready and link not in engine.links:
            engine.admit(link)
        engine.settle()

    def happen(self) -> None:  # noqa: C901, PLR0912  # a list of what may happen
        """Something happens to a program."""
        engine = self.engine
        which = self.pick(range(13))
        if not self.programs or which == 0:
            engine.expecting = self.pick((True, False)) or self.honest
            if len(self.programs) < 3:
                self.run(self.start())
            engine.settle()
            return
        program = self.pick(self.programs)
        link = program.link
        if which == 1:
            self.end(program)
            engine.settle()
        elif which == 2:
            engine.transit.feed(link)
            program.read()
        elif which == 3:
            program.read()
            cut = self.pick((1, len(program.output) // 2, len(program.output) - 1))
            piece, program.output = program.output[:cut], program.output[cut:]
            engine.from_program(link, piece)
            self.look_after(program)
        elif which == 4 and not self.honest:
            engine.from_program(link, self.garbage(link))
            self.look_after(program)
        elif which == 5 and not self.honest:
            program.read()
            rows = program.output.split(b"\n")
            program.output += self.pick(rows) + b"\n"
        elif which == 6 and not self.honest:
            engine.now += self.pick((1.0, 100.0))
            engine.expire()
            for each in list(self.programs):
                if overdue := engine.overdue(each.link):
                    each.link.fault = overdue
                    self.look_after(each)
        elif which == 7:
            engine.relieve()
        elif which == 8:
            link.clogged = not link.clogged
        else:
            self.run(program)

    def garbage(self, link: Link) -> bytes:
        """Return a line of nonsense, about an open request or any session and token."""
        line = self.pick(GARBAGE)
        names = [session.name for session in self.smtpd.sessions] or [b"00000000000000ee"]
        tokens = [b"%016x" % (0xA0 + at) for at in range(len(PHASES) + 1)]
        pair = self.pick(names), self.pick(tokens)
        if link.open and bool(self.pick(range(3))):
            session = self.pick(list(link.open.values()))
            pair = session.id, session.token
        elif link.messages and bool(self.pick(range(3))):
            message = self.pick(list(link.messages.values()))
            _, id_, token, _ = message.prefix.split(b"|")
            pair = id_, token
        return line % pair[: line.count(b"%s")] + b"\n"

    def finish(self) -> None:
        """End it: a program does what it should, and then every session has its answers."""
        self.engine.expecting = True
        if not any(program.link.ready for program in self.programs):
            self.start()
        self.smtpd.flush()
        for _ in range(5):
            for program in list(self.programs):
                self.run(program)
        if not self.engine.links:
            self.run(self.start())
        self.engine.settle()
        for program in list(self.programs):
            self.run(program)
        self.smtpd.collect(late=True)
        # What is still open is a program's fault: it is overdue.
        self.engine.now += 1000
        for program in list(self.programs):
            if overdue := self.engine.overdue(program.link):
                assert not self.honest, overdue
                program.link.fault = overdue
                self.look_after(program)
        self.engine.expecting = False
        for program in list(self.programs):
            self.end(program)
        self.engine.settle()
        self.smtpd.collect(late=True)
        self.smtpd.oracle.finish()
        broken = self.smtpd.broken()
        assert not broken, broken
        hanging = [c for c in self.smtpd.oracle.complaints if c.kind is Kind.HANGS_SESSION]
        assert not hanging, hanging
        assert not any(each.waiting for each in self.smtpd.sessions if not each.gone)


def raw(data: bytes) -> None:
    """Give the bytes to both sides as they are; raise AssertionError if an end is not clean.

    The engine takes anything, answers nothing that is not a whole line, and keeps no session that
    has ended. `\\xff` at the start of a line changes the side.
    """
    engine, link = Engine(nowhere()), Link()
    engine.attach(link)
    engine.from_smtpd(SmtpdConnection().configure())
    engine.from_program(link, b"register|filter|smtp-in|data-line\nregister|ready\n")
    engine.admit(link)
    for piece in data.split(b"\n\xff"):
        engine.from_smtpd(piece + b"\n")
        engine.transit.feed(link)
        engine.from_program(link, b"".join(link.out).replace(b"filter|", b"filter-dataline|"))
        engine.from_program(link, piece[:200])
        engine.now += 30
        engine.expire()
        if fault := link.fault or engine.overdue(link):
            engine.lost(link, fault)
            link = Link()
            engine.attach(link)
            engine.from_program(link, b"register|report|smtp-in|*\nregister|ready\n")
            engine.admit(link)
        engine.settle()
    for output in (*engine.answers, *engine.lines):
        assert output.endswith(b"\n")
        assert max(map(len, output.split(b"\n"))) < LINE_LIMIT
    assert all(engine.sessions.get(session.id) is session for session in engine.waiting)


def play(data: bytes) -> None:
    """Run one conversation, chosen by these bytes; raise AssertionError if a rule is broken."""
    choices = Choices(data)
    stage = Stage(choices.of)
    while choices.left:
        if choices.below(2):
            stage.smtpd.act()
        else:
            stage.happen()
            stage.smtpd.collect()
    stage.finish()
