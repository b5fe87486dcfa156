"""Messages that a policy looks at: collected, judged, sent back.

Law
---
1. A message comes out as it came in but for what a policy changed.
2. It is held in memory up to a limit and on disk beyond, and sent back no faster than smtpd takes
   it.  Who looks only at its header holds only that: the body passes.
3. What is refused is refused at ``commit``; so is what could not be kept, for now.
4. When our own code fails, the message goes as it came, or is refused for now where the policy
   would have that when it fails itself.

How it works
------------
An `_Intake` is collected until the policy can judge it: its header, or all of it.  The verdict may
take its time, and lines go on coming in behind a header meanwhile.  Once it is there the intake
has `rows` to be sent: the caller's loop asks for them, a part at a time, with `pump`, and what
comes in behind a header until then is kept apart and sent next.
"""

from __future__ import annotations

from collections import deque

from smtpd_filters.message import Head, Headers, Message, SpoolError, stuff, unstuff
from smtpd_filters.protocol.decisions import Decision, Proceed, Reject

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    from smtpd_filters.protocol.filter_side import FilterConnection
    from smtpd_filters.session import Session

    from .log import Log
    from .policy import Later, Policy

    class Host(Protocol):
        """The engine, as far as messages need it."""

        connection: FilterConnection

        def session(self, key: bytes) -> Session:
            """The session of that name."""

        def later(
            self, key: bytes, later: Later, then: Callable[[Decision], None], otherwise: Decision
        ) -> None:
            """Go on with what the coroutine comes to."""

        def cancel(self, key: bytes) -> None:
            """Give up what is being thought about."""

        def failed(self, key: bytes, error: BaseException) -> None:
            """A bug of ours."""


#: RFC 3463, 3.4: X.3.1 is "Mail system full"; RFC 5321, 4.2.3: 452 "insufficient system storage".
NO_STORAGE = Reject("452 4.3.1 Insufficient system storage")
LATER = Reject("451 4.3.0 Temporary failure, please try again later")
#: Bytes of messages that one call of `Messages.pump` sends on, and of one message in a row.
PUMP = 1 << 18
TURN = PUMP // 4


class _Intake:
    """A message on its way."""

    __slots__ = (
        "behind",
        "ended",
        "head",
        "headers",
        "held",
        "judged",
        "message",
        "rows",
        "session",
    )

    def __init__(self, session: bytes) -> None:
        self.session = session
        #: smtpd's dot has come; a policy has been asked.
        self.ended = self.judged = False
        #: The header's lines as they came, and the block that a policy edits.
        self.head = Head()
        #: Lines that came with the end of the header: the empty one, and some of the body.
        self.behind: list[bytes] = []
        self.headers: Headers | None = None
        #: The whole message, for a policy that wants that.
        self.message: Message | None = None
        #: Lines that came behind a judged header and are still to be sent.
        self.held: Message | None = None
        #: What is being sent, once the verdict is there.
        self.rows: Iterator[list[bytes]] | None = None


class Messages:
    """The messages of one conversation that its policy looks at."""

    def __init__(self, host: Host, policy: Policy, log: Log) -> None:
        self._host = host
        self._connection = host.connection
        self._policy = policy
        self._log = log
        self._whole = policy.content == "message"
        #: The messages that are collected, judged or being sent.
        self.intakes: dict[bytes, _Intake] = {}
        self._queue: deque[_Intake] = deque()
        self._refusals: dict[bytes, Decision] = {}

    @property
    def sending(self) -> bool:
        """Whether there is something left to `pump`."""
        return bool(self._queue)

    def content(self, key: bytes, lines: list[bytes], *, end: bool) -> None:
        """Take lines of a message in; judge it when there are enough of them.  Never raises."""
        intake = self.intakes.get(key)
        if intake is None:
            intake = self.intakes[key] = _Intake(key)
            self._refusals.pop(key, None)
        intake.ended = end
        try:
            if self._whole:
                self._collect(intake, lines)
            elif intake.judged:
                self._hold(intake, lines)
            else:
                self._collect_header(intake, lines)
        except SpoolError as error:
            self._no_storage(intake, error)
        except Exception as error:  # noqa: BLE001  # promise 1: it never dies
            self._host.failed(key, error)

    def pump(self) -> None:
        """Send on messages whose verdict is there, a bounded part of them."""
        budget = PUMP
        while self._queue and budget > 0:
            intake = self._queue.popleft()
            # A message that was dropped meanwhile has nothing to send.
            if intake.rows is None:
                continue
            try:
                budget -= self._send(intake)
            except Exception as error:  # noqa: BLE001  # promise 1: it never dies
                self._host.failed(intake.session, error)

    def refusal(self, key: bytes) -> Decision | None:
        """What the session's ``commit`` is to be told, once."""
        return self._refusals.pop(key, None) if self._refusals else None

    def drop(self, key: bytes) -> bool:
        """The transaction is over; whether a message of it was on its way."""
        if self._refusals:
            self._refusals.pop(key, None)
        if not self.intakes or key not in self.intakes:
            return False
        self._discard(self.intakes.pop(key))
        return True

    def let_go(self, key: bytes) -> bool:
        """Something failed that should not have: the message goes on as it came (law 4).

        If not even that can be done, the client must try again.  Whether it goes on.
        """
        intake = self.intakes.get(key)
        if intake is None:
            return False
        try:
            if intake.rows is None:
                intake.headers = None
                if intake.message is not None:
                    intake.message.revert()
                self._release(intake, self._policy.otherwise_content)
                return True
        except Exception:  # noqa: BLE001, S110  # the first failure has been logged
            pass
        self.drop(key)
        self._refusals[key] = LATER
        return False

    # -- collected -----------------------------------------------------------------------

    def _collect(self, intake: _Intake, lines: list[bytes]) -> None:
        if intake.message is None:
            intake.message = Message()
        if lines:
            intake.message.feed(lines)
        if intake.ended:
            intake.message.close()
            self._judge(intake)

    def _collect_header(self, intake: _Intake, lines: list[bytes]) -> None:
        behind = intake.head.feed(lines)
        if behind is None and not intake.ended:
            return
        intake.behind = behind or []
        intake.headers = Headers(unstuff(intake.head.lines))
        self._judge(intake)

    def _hold(self, intake: _Intake, lines: list[bytes]) -> None:
        """Keep lines that cannot be sent yet."""
        if intake.held is None:
            intake.held = Message()
        if lines:
            intake.held.feed(lines)

    # -- judged --------------------------------------------------------------------------

    def _judge(self, intake: _Intake) -> None:
        """Ask the policy."""
        intake.judged = True
        key = intake.session
        session = self._host.session(key)
        if intake.message is not None:
            verdict = self._policy.judge_message(session, intake.message)
        else:
            assert intake.headers is not None  # noqa: S101  # one of the two was collected
            verdict = self._policy.judge_headers(session, intake.headers)
        if isinstance(verdict, Decision):
            self._release(intake, verdict)
            return
        self._host.later(
            key,
            verdict,
            lambda decision: self._release(intake, decision),
            self._policy.otherwise_content,
        )

    def _release(self, intake: _Intake, verdict: Decision) -> None:
        """The verdict is there: send the message on."""
        if type(verdict) is not Proceed:
            self._refusals[intake.session] = verdict
        try:
            if intake.message is not None:
                intake.rows = intake.message.wire_lines()
            else:
                headers = intake.headers
                edited = headers is not None and headers.changed
                head = stuff(headers.lines()) if headers and edited else intake.head.lines
                intake.rows = iter(([*head, *intake.behind],))
            self._send(intake)
        except SpoolError as error:
            self._no_storage(intake, error)

    # -- sent ----------------------------------------------------------------------------

    def _send(self, intake: _Intake) -> int:
        """Send a part of the message; how much it was.  At its end, pass through or close."""
        key, sent = intake.session, 0
        try:
            while intake.rows is not None:
                for rows in intake.rows:
                    self._connection.send_lines(key, rows)
                    sent += sum(map(len, rows)) + 1
                    if sent >= TURN:
                        self._queue.append(intake)
                        return sent
                self._next(intake)
        except SpoolError as error:
            self._no_storage(intake, error)
            return sent
        del self.intakes[key]
        if intake.ended:
            self._connection.send_lines(key, [], end=True)
        else:
            self._connection.pass_through(key)
        return sent

    def _next(self, intake: _Intake) -> None:
        """Behind what has been sent comes what was held meanwhile."""
        if intake.message is not None:
            intake.message.discard()
        intake.message, intake.held, intake.rows = intake.held, None, None
        if intake.message is not None:
            intake.message.close()
            intake.rows = intake.message.wire_lines()

    # -- given up ------------------------------------------------------------------------

    def _no_storage(self, intake: _Intake, error: SpoolError) -> None:
        """Neither kept nor sent: the message is refused for now, and what follows may pass."""
        key = intake.session
        self._log.limited(
            "spool", "smtpd-filters", "message refused", key.decode("latin-1"), reason=str(error)
        )
        self._host.cancel(key)
        unsent = intake.rows is None
        self.drop(key)
        self._refusals[key] = NO_STORAGE
        if intake.ended:
            self._connection.send_lines(key, [], end=True)
            return
        if unsent:
            # What follows is no header, for which smtpd would refuse the message for good.
            self._connection.send_lines(key, [b""])
        self._connection.pass_through(key)

    @staticmethod
    def _discard(intake: _Intake) -> None:
        intake.rows = None
        for each in (intake.message, intake.held):
            if each is not None:
                each.discard()
