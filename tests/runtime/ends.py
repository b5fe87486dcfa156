"""Random sessions of an engine, with policies that wait, fail and ignore their cancellation.

A legal smtpd plays sessions, which end anywhere; the handlers of a chain wait for futures, which
are settled in any order, fail, or are dropped. At the end nothing may be left of any session. The
event loop takes one round at a time and has a clock of its own, so that all is decided by choices
from outside (`tests.protocol.hostile`).
"""

from __future__ import annotations

import asyncio
import gc
import re
import selectors
from typing import TYPE_CHECKING, Any

from smtpd_filters import (
    JUNK,
    PROCEED,
    Answer,
    ContentAnswer,
    Decision,
    Disconnect,
    Filter,
    FinalAnswer,
    Headers,
    Message,
    ParameterAnswer,
    Registration,
    Reject,
    Rewrite,
    Session,
    UnavailableError,
)
from smtpd_filters.chain import Chain
from smtpd_filters.journal.collector import Collector
from smtpd_filters.message import Spool
from smtpd_filters.message.body import Body
from smtpd_filters.message.spool import Store
from smtpd_filters.oracle.rules import Kind
from smtpd_filters.protocol.events import Line
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.runtime.coroutines import Early, Pending, Suspended, Turn, my_turn
from smtpd_filters.runtime.engine import Engine
from smtpd_filters.runtime.jobs import Job
from smtpd_filters.runtime.log import Log
from smtpd_filters.runtime.messages import Intake, Messages
from smtpd_filters.runtime.pace import Pace
from smtpd_filters.scoring.chain import ScoringChain
from smtpd_filters.scoring.rules import ACTIONS, FilterRules, Rules, RuleSettings
from smtpd_filters.session import Transaction
from tests.journal.deciding import Sent
from tests.protocol.hostile import ALWAYS, DEADLY, SERVERS, Choices, Smtpd
from tests.protocol.hostile import Session as Client

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import TypeVar

    T = TypeVar("T")

#: What lives as long as a session, a message or a coroutine at the longest.
SHORT_LIVED: tuple[type, ...] = (Session, Transaction, Message, Headers, Store, Body, Intake)
SHORT_LIVED += (Job, Early, Pending, Suspended, Turn)
#: The handlers of a filter, and what each may return.
HANDLERS: dict[str, Any] = {
    **dict.fromkeys(("connect", "starttls", "data"), Answer),
    **dict.fromkeys(("helo", "ehlo", "mail_from", "rcpt_to"), ParameterAnswer),
    **dict.fromkeys(("commit", "rset"), FinalAnswer),
    "noop": Answer,
}
RETURNED: dict[Any, tuple[Decision, ...]] = {
    Answer: (PROCEED, JUNK, Reject("550 5.7.1 No"), Disconnect("421 4.7.0 Go")),
    FinalAnswer: (PROCEED, PROCEED, Reject("450 4.7.1 Later"), Disconnect("421 4.7.0 Go")),
}
#: What of a message is the framework's or a policy's own.
ADDED = re.compile(rb"(?i)x-(mark|spam|smtpd-filters-score):")
LINES = (b"Subject: x", b" folded", b"", b"body", b"..", b"A: " + b"y" * 900, b"b" * 1900)
#: What is in the log line of a failure that the test has ordered.
EXPLAINED: tuple[str, ...] = (
    "injected",
    "ExceptionGroup",
    "was cancelled",
    "not done after",
    " ends.py:",
    "[ends.py:",
)
#: Seconds that a handler may take.
DEADLINE = 10.0


def awaited(future: asyncio.Future[None]) -> bool:
    """Return whether anything waits for a future."""
    callbacks: Any = getattr(future, "_callbacks", None)
    return bool(callbacks)


class InjectedError(Exception):
    """A failure that a test has ordered."""


class Rounds(asyncio.SelectorEventLoop):
    """An event loop that takes a round at a time, with a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(selectors.SelectSelector())

    def time(self) -> float:
        return self.now

    def round(self, call: Callable[[], object] | None = None) -> None:
        """Take one round; `call` is called behind what is ready, as the callback of a read is."""
        failed: list[BaseException] = []

        def guarded() -> None:
            assert call is not None
            try:
                call()
            except BaseException as error:  # noqa: BLE001  # raised below
                failed.append(error)

        if call is not None:
            self.call_soon(guarded)
        self.call_soon(self.stop)
        self.run_forever()
        if failed:
            raise failed[0]

    @property
    def timers(self) -> list[asyncio.TimerHandle]:
        """The timers that are not cancelled."""
        every: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return [each for each in every if not each.cancelled()]


class Lines(Log):
    """A log whose lines are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


class Faults:
    """Failures of what the framework calls, once each."""

    def __init__(self) -> None:
        self.due: set[str] = set()
        #: All that have occurred.
        self.done: list[str] = []

    def check(self, name: str, error: type[BaseException] = MemoryError) -> None:
        """Raise the failure of this name if it is due."""
        if name in self.due:
            self.due.remove(name)
            self.done.append(name)
            raise error("injected")


class Frail(Spool):
    """A spool whose file fails when `Faults` says so."""

    faults: Faults

    def write(self, block: int, at: int, data: memoryview) -> int:
        self.faults.check("disk", OSError)
        return super().write(block, at, data)

    def read(self, block: int, at: int, size: int) -> bytes:
        self.faults.check("read", OSError)
        return super().read(block, at, size)


class Waits(Filter):
    """Does in each handler what the choices say."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__()
        self.world = world
        self.name = name

    async def _act(self, returned: Sequence[Decision], message: Message | None = None) -> Any:
        world = self.world
        world.running += 1
        try:
            return await self._do(returned, message)
        finally:
            world.running -= 1

    async def _do(self, returned: Sequence[Decision], message: Message | None) -> Any:
        which = self.world.pick(range(20))
        if which < 11:
            await self._wait(which)
        elif which < 18:
            await self._wait_in_asyncio(which)
        elif message is not None:
            await self._read(which, message)
        return self.world.pick(returned)

    async def _wait(self, which: int) -> None:
        world = self.world
        match which:
            case 3 | 4 | 5 | 6:
                await world.wait()
            case 7:
                await world.wait()
                await world.wait()
            case 8:
                raise world.error()
            case 9:
                await world.wait()
                raise world.error()
            case 10:
                try:
                    await world.wait()
                except asyncio.CancelledError:
                    await world.wait(stubborn=True)

    async def _wait_in_asyncio(self, which: int) -> None:
        world = self.world
        match which:
            case 11:
                async with asyncio.timeout(world.pick((1, 30))):
                    await world.wait()
            case 12:
                await asyncio.gather(world.wait(), world.wait(), return_exceptions=True)
            case 13:
                await asyncio.shield(world.wait(stubborn=True))
            case 14:
                async with asyncio.TaskGroup() as group:
                    group.create_task(world.wait())
                    group.create_task(world.wait())
            case 15:
                try:
                    await world.wait()
                except asyncio.CancelledError:
                    await asyncio.sleep(0)
                    raise
            case 16:
                await asyncio.sleep(world.pick((0, 1, 20)))
            case 17:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await world.wait()

    async def _read(self, which: int, message: Message) -> None:
        world = self.world
        if which == 19:
            for piece in message.body():
                assert piece
                await world.wait()
            return
        await my_turn()
        body = message.new_body()
        try:
            body.write(b"new\n" * world.pick((1, 30000)))
            await world.wait()
        except BaseException:
            body.discard()
            raise
        world.replaced = True
        message.replace_body(body)


class Edits(Waits):
    """Edits messages that it has read as a whole."""

    scans = True

    async def message(self, session: Session, message: Message) -> ContentAnswer:  # noqa: ARG002
        answer = await self._act(RETURNED[Answer], message)
        await my_turn()
        if self.world.pick((True, False)):
            message.headers.prepend("X-Mark", "1")
        return answer  # type: ignore[no-any-return]


class Looks(Waits):
    """Edits headers."""

    async def headers(self, session: Session, headers: Headers) -> ContentAnswer:  # noqa: ARG002
        answer = await self._act(RETURNED[Answer])
        if self.world.pick((True, False)):
            headers.prepend("X-Mark", "1")
        return answer  # type: ignore[no-any-return]


def handler(name: str, returns: Any) -> Any:
    """Return the handler of a phase."""
    rewritten = Rewrite("a.example" if name in ("helo", "ehlo") else "a@b.example")
    returned = (*RETURNED.get(returns, RETURNED[Answer]), PROCEED, PROCEED, rewritten)
    returned = returned if returns == ParameterAnswer else returned[:-1]

    async def decide(self: Waits, _session: Session, *_: str) -> Any:
        return await self._act(returned)

    decide.__annotations__ = {"return": returns}
    decide.__name__ = name
    return decide


def kind(base: type[Waits], names: Sequence[str]) -> type[Waits]:
    """Return a class of filters with handlers of these phases."""
    return type(base.__name__, (base,), {name: handler(name, HANDLERS[name]) for name in names})


PARTS = [tuple(HANDLERS), ("connect", "mail_from", "rcpt_to", "data"), ("rcpt_to", "commit"), ()]
KINDS = [kind(Waits, names) for names in PARTS[:3]]
KINDS += [kind(base, names) for base in (Looks, Edits) for names in PARTS]


class Server(Smtpd):
    """Sends messages whose lines no server cuts, and keeps them."""

    world: World

    def leave(self, session: Client) -> None:
        """Disconnect the client, and report what the filter registers for."""
        session.gone = True
        for name, *values in (("tx-rollback", b"0000000a"), ("tx-reset", b"0000000a")):
            if name in self.side.reports:
                self.send(self.side.report(name, session.name, *values, time=self._time()))
        self.send(self.side.report("link-disconnect", session.name, time=self._time()))

    def lines(self, session: Client, *, end: bool) -> None:
        lines = [self.pick(LINES) for _ in range(self.pick((0, 1, 2, 3, 3, 40)))]
        if not lines and not end:
            lines = [b"x"]
        if end:
            session.sending, session.waiting = False, "data-line"
        self.world.sent.setdefault(session.name, []).extend(lines)
        token = self._tokens["data-line"]
        self.send(self.side.lines(session.name, token, lines, end=end, time=self._time()))


class World:
    """A chain in an engine, its clients, and what happens to both."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.loop = Rounds()
        self.unhandled: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.unhandled.append(context))
        self.log = Lines()
        self.faults = Faults()
        self.running = 0
        #: Futures that handlers wait for; and those that they wait for even if cancelled.
        self.waits: list[asyncio.Future[None]] = []
        self.stubborn: list[asyncio.Future[None]] = []
        self.bugs: list[BaseException] = []
        self.sent: dict[bytes, list[bytes]] = {}
        self.got: dict[bytes, list[bytes]] = {}
        self.compared = 0
        #: How it ends: chosen now, since by then there are no choices left.
        self.way = self.pick(("answered", "gone", "gone", "abandoned"))
        #: Whether something of the framework's may fail.
        self.faulty = self.pick((False, False, True))
        #: Whether memory was said to be scarce.
        self.relieved = False
        self.replaced = False
        self.pace = Pace(150)
        self.spool = Frail(memory=self.pick((1 << 25, 20000)), message=self.pick((1 << 18, 5000)))
        self.spool.faults = self.faults
        self.loop.round(self._begin)
        protocol = self.pick(tuple(SERVERS))
        self.side = SmtpdConnection(protocol)
        self.server = Server.__new__(Server)
        self.server.world = self
        server = self.pick(SERVERS[protocol])
        self.server.__init__(self.pick, protocol, server, self.receive, self.outgoing)  # type: ignore[misc]

    def pick(self, options: Sequence[T]) -> T:
        """One of these."""
        return self.choices.of(options)

    def _begin(self) -> None:
        filters = [
            (self.pick(KINDS)(self, f"f{number}"), self.pick(("proceed", "tempfail")), DEADLINE)
            for number in range(self.pick((1, 1, 2, 3, 4)))
        ]
        for each, _, _ in filters:
            each.early = self.pick((True, True, False))
            if self.pick((True, False)):
                each.registration = Registration(reports=())
        if self.pick((True, False)):
            self.chain = Chain(filters, self.log)  # type: ignore[arg-type]
        else:
            scored: Any = {"score": dict.fromkeys(ACTIONS, 2.0)}
            bypass: Any = {"bypass": ("exempt",), "score": {"junk": 2.0, "reject": 3.0}}
            of = {name.name: FilterRules(**self.pick((scored, bypass))) for name, _, _ in filters}
            some: Any = ({"junk_at": 2}, {"reject_at": 2}, {"score_header": True})
            scores = RuleSettings(**self.pick(some))
            self.chain = ScoringChain(filters, self.log, None, Rules(scores, of))  # type: ignore[arg-type]
        if self.pick((True, False)):
            journal = Collector(Sent(), "filter-test", self.log)  # type: ignore[arg-type]
            self.chain.keep_journal(journal)
        self.engine = Engine(self.chain, self.log, spool=self.spool, reserve=1, checked=1)
        self.engine.spawn = self._spawn

    def _spawn(self, pending: Pending, done: Callable[[Any], None], price: int) -> Job:
        def failed(error: BaseException) -> None:
            self.bugs.append(error)
            done(None)

        self.faults.check("spawn")
        return Job(self.loop, pending, done, failed, self.pace if price else None, price)

    # -- for the handlers ----------------------------------------------------------------

    async def wait(self, *, stubborn: bool = False) -> None:
        """Wait for what the choices settle."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self.stubborn if stubborn else self.waits).append(future)
        await future

    def error(self) -> BaseException:
        """Return an exception to raise."""
        made = (
            InjectedError("injected"),
            UnavailableError("injected", status="4.4.3"),
            MemoryError("injected"),
            SystemExit("injected"),
            asyncio.CancelledError("injected"),
            TimeoutError("injected"),
        )
        return self.pick(made)

    # -- for the server ------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Have the engine read, in a round of the loop."""
        self.loop.round(lambda: self.engine.receive(data))
        for _ in range(self.pick((0, 0, 1, 2, 5))):
            self.loop.round()

    def outgoing(self) -> tuple[bytes, bytes]:
        """Return the pending output, and clear it: answers, and lines of messages."""
        connection = self.engine.connection
        said = b"".join(connection.answers), b"".join(connection.lines)
        self.engine.output()
        for answer in self.side.receive(said[1]):
            if isinstance(answer, Line):
                self._returned(answer.session, answer.line)
        return said

    def _returned(self, name: bytes, line: bytes) -> None:
        if line != b".":
            self.got.setdefault(name, []).append(line)
            return
        sent, got = self.sent.pop(name, []), self.got.pop(name, [])
        if not (self.replaced or self.faults.done or "message refused" in " ".join(self.log.lines)):
            assert [each for each in got if each and not ADDED.match(each)] == list(
                filter(None, sent)
            ), [b"%b" % each[:20] for each in (*sent, b"->", *got)]
            self.compared += 1

    # -- what happens --------------------------------------------------------------------

    def happen(self) -> None:
        """Do one thing."""
        match self.pick(range(16)):
            case 0 | 1 | 2:
                self.settle_one()
            case 3 | 4:
                self.loop.round()
            case 5:
                self.work()
            case 6:
                self.loop.now += self.pick((0.5, 2.0, DEADLINE, 100.0))
                self.loop.round()
            case 7:
                self.settle_one()
                self.leave()
            case 8:
                for _ in range(3):
                    self.settle_one()
            case 9 if self.faulty and self.pick((True, False, False)):
                self.relieved = True
                self.engine.relieve()
            case 10 if self.faulty and self.pick((True, False, False, False)):
                self.faults.due.add(self.pick(("task", "timer", "spawn", "disk", "read", "store")))
            case _:
                self.server.act()

    def settle_one(self) -> None:
        """Settle a future that a handler waits for."""
        pending = [each for each in self.waits + self.stubborn if not each.done()]
        if not pending:
            return
        future = self.pick(pending)
        match self.pick(range(6)):
            case 0:
                future.set_exception(self._raisable())
            case 1:
                future.cancel()
            case _:
                future.set_result(None)

    def _raisable(self) -> Exception:
        error = self.error()
        return error if isinstance(error, Exception) else InjectedError("injected")

    def leave(self) -> None:
        """Have a client hang up."""
        if there := [each for each in self.server.sessions if not each.gone]:
            self._forget(self.pick(there))

    def _forget(self, client: Client) -> None:
        self.server.leave(client)
        self.server.flush()
        self.sent.pop(client.name, None)
        self.got.pop(client.name, None)

    def work(self) -> None:
        """Have messages judged and returned."""
        if self.engine.working:
            try:
                self.loop.round(self.engine.work)
            except MemoryError:
                assert self.faults.done
        self.server.collect()

    # -- the end -------------------------------------------------------------------------

    def idle(self) -> None:
        """Process all that needs no new event."""
        for _ in range(30):
            self.work()
            if self.engine.stalled:
                self.loop.round(self.engine.resume)
            self.loop.round()

    def finish(self) -> None:
        """End everything, and check what is left."""
        self.faults.due.clear()
        self.server.flush()
        if self.way == "answered":
            self._answer_all()
        if self.way == "abandoned":
            self.loop.round(self.engine.abandon)
        else:
            for client in self.server.sessions:
                if not client.gone:
                    self._forget(client)
        self.idle()
        if self.way != "abandoned":
            self._check_answers()
        self._check_waits()
        self._check()

    def _check_answers(self) -> None:
        self.server.collect(late=True)
        oracle = self.server.oracle
        oracle.finish()
        kinds = DEADLY | {Kind.HANGS_SESSION}
        assert not [each for each in oracle.complaints if each.kind in kinds or each.rule in ALWAYS]

    def _check_waits(self) -> None:
        # Only what ignores its cancellation may continue, until it gets what it waits for. Without
        # memory coroutines are closed, not cancelled, and a closed task group cancels no task.
        closed = self.relieved or self.faults.done
        left = [each for each in self.waits if not each.done() and awaited(each)]
        assert not left or closed, left
        for _ in range(20):
            for future in self.stubborn:
                if not future.done():
                    future.set_result(None)
            for future in self.waits:
                if closed and not future.done():
                    future.set_result(None)
            self.loop.now += 100
            self.idle()

    def _answer_all(self) -> None:
        for _ in range(12):
            self.loop.now += DEADLINE + 1
            self.idle()
            self.server.collect(late=True)
            for client in self.server.sessions:
                if client.sending and not client.gone:
                    self.server.lines(client, end=True)
        waiting = [
            (each.name, each.waiting)
            for each in self.server.sessions
            if each.waiting and not each.gone
        ]
        assert not waiting, waiting

    def _check(self) -> None:
        gc.collect()  # a coroutine that is closed in a task group, say
        engine, messages = self.engine, self.engine.messages
        held = held_by(engine, self.spool, self.pace) | {
            "coroutines": self.running,
            "asyncio": asyncio.all_tasks(self.loop),
            "timers": self.loop.timers,
            "ready": list(self.loop._ready),  # type: ignore[attr-defined]
        }
        if isinstance(messages, Messages):  # there is a handler for them
            held |= {"judging": messages._judging, "waiting": list(messages._waiting)}
        kept = {name: value for name, value in held.items() if value}
        assert not kept, kept
        connection: Any = engine.connection
        for holder in (connection, connection._transit):
            names = list(vars(holder)) if hasattr(holder, "__dict__") else holder.__slots__
            for name in names:
                value = getattr(holder, name)
                if isinstance(value, dict | set) and any(
                    each.name in value for each in self.server.sessions
                ):
                    kept[name] = value
        assert not kept, kept
        self._check_log()

    def _check_log(self) -> None:
        for error in self.bugs:
            assert isinstance(error, MemoryError), error
            assert self.faults.done
        for line in self.log.lines:
            explained = any(text in line for text in EXPLAINED)
            if "error=" in line or " bug" in line or "Traceback" in line:
                assert explained, line
            if " bug" in line:
                assert self.faults.done, line
                assert "injected" in line, line
        for context in self.unhandled:
            assert "injected" in repr(context.get("exception")) or context.get("future"), context

    def close(self) -> None:
        """Close the loop; what is left must not live on."""
        self.waits.clear()
        self.stubborn.clear()
        self.server.sessions.clear()
        self.loop.round()
        self.loop.close()


def held_by(engine: Engine, spool: Spool, pace: Pace) -> dict[str, object]:
    """Return by name what an engine holds: of sessions that have all ended, only what is empty."""
    return {
        "sessions": engine.sessions,
        "tasks": engine._tasks,
        "intakes": engine.messages.intakes,
        "queue": list(engine.queue),
        "spool": spool.used,
        "file": spool.on_disk,
        "pace": list(pace._queue),
    }


def alive() -> list[object]:
    """Return what lives as long as a session, a message or a coroutine."""
    gc.collect()
    return [each for each in gc.get_objects() if type(each) in SHORT_LIVED]


def play(data: bytes, patch: Any) -> World:
    """Run one conversation, chosen by these bytes."""
    choices = Choices(data)
    world = World(choices)
    faults = world.faults
    create, later, append = world.loop.create_task, world.loop.call_later, Store.append

    def create_task(work: Coroutine[Any, Any, Any], **names: Any) -> Any:
        if getattr(work, "__name__", "") == "_rest":
            faults.check("task")
        return create(work, **names)

    def call_later(seconds: float, call: Any, *arguments: Any, **names: Any) -> Any:
        if getattr(call, "__name__", "") == "_overdue":
            faults.check("timer")
        return later(seconds, call, *arguments, **names)

    def failing(store: Store, lines: list[bytes], size: int) -> None:
        faults.check("store")
        append(store, lines, size)

    patch.setattr(world.loop, "create_task", create_task)
    patch.setattr(world.loop, "call_later", call_later)
    patch.setattr(Store, "append", failing)
    try:
        while choices.left:
            world.happen()
        world.finish()
    finally:
        patch.undo()
        world.close()
    return world
