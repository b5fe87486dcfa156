"""Messages that a policy looks at: collected, judged, sent back, a bounded piece per turn.

Invariants
----------
Unchanged
    A message goes back as it came but for what a policy changed.
Turns
    `content` only keeps lines.  Judging and sending back happen in `work`, which does about `TURN`
    worth of it and returns, so that requests are heard and answered in between however many
    messages are complete at one moment, and however large they are.  The steps of a coroutine that
    judges a message have a price, and the loop makes few of them in a round (`coroutines`).
Bounded
    Lines wait in a `Spool`, and so many headers are judged at a time as its budget allows: the
    others wait for their turn, and are refused for now if it does not come within `PATIENCE`.
    Reading goes on while messages are sent back, no faster than smtpd takes them.
Refused at commit
    A refusal is given at ``commit``; so is that of a message that could not be kept, for now.
Our own failures
    When our own code fails, the message goes as it came, or is refused for now where the policy
    would have that when it fails itself.

Policies that only look at the header hold only that: once it has been judged, and what came with
it has been sent, the rest of the message passes.
"""

from __future__ import annotations

from collections import deque
from time import monotonic

from smtpd_filters.message import Message, Spool, SpoolError
from smtpd_filters.message.spool import LINE_COST
from smtpd_filters.protocol.decisions import Decision, Proceed, Reject

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from smtpd_filters.protocol.filter_side import FilterConnection
    from smtpd_filters.session import Session

    from .coroutines import Pending
    from .interfaces import Policy
    from .log import Log

    class Host(Protocol):
        """The engine, as far as messages need it."""

        connection: FilterConnection

        def session(self, key: bytes) -> Session:
            """The session of that name."""

        def later(
            self,
            key: bytes,
            pending: Pending,
            then: Callable[[Decision], None],
            otherwise: Decision,
            price: int,
        ) -> None:
            """Go on with what the coroutine comes to; its steps cost ``price`` each."""

        def cancel(self, key: bytes) -> None:
            """Cancel the coroutine of a session."""

        def relieve(self) -> None:
            """Free memory, when there is none."""

        def failed(self, key: bytes, error: BaseException) -> None:
            """Report a bug of ours."""


#: RFC 3463, 3.4: X.3.1 is "Mail system full"; RFC 5321, 4.2.3: 452 "insufficient system storage".
NO_STORAGE = Reject("452 4.3.1 Insufficient system storage")
LATER = Reject("451 4.3.0 Temporary failure, please try again later")
#: What one call of `Messages.work` may cost, in bytes: of lines that are sent or judged, with
#: `LINE_COST` for each of them.  A turn takes 1 to 3 ms; the judging of one header of the largest
#: size, which can't be cut, 10 ms.
TURN = 1 << 17
#: What judging a message costs beside its header.
JUDGE_COST = 1 << 11
#: What a step of a coroutine that judges a message costs, in microseconds, without what it looks
#: at; and bytes that it looks at in a microsecond: of a header, with `LINE_COST` for each line, and
#: of a body, of which it is expected to yield behind each `PART`.
STEP = 100
HEADER_RATE, BODY_RATE = 1 << 7, 1 << 9
PART = 1 << 20
#: Seconds that a message may wait until its header fits into the budget beside the others.
PATIENCE = 60.0

COLLECTING, READY, JUDGING, SENDING, DROPPED = range(5)


class _Intake:
    """A message on its way."""

    __slots__ = ("cost", "ended", "lost", "message", "session", "since", "state")

    def __init__(self, session: bytes, message: Message) -> None:
        self.session = session
        self.message = message
        self.state = COLLECTING
        #: smtpd's dot has come.
        self.ended = False
        #: There was no memory for it: it is to be refused.
        self.lost = False
        #: What it counts among those that are judged, and since when it waits for that.
        self.cost = 0
        self.since = 0.0


class Messages:
    """The messages of one conversation that its policy looks at."""

    def __init__(self, host: Host, policy: Policy, log: Log, spool: Spool) -> None:
        self._host = host
        self._connection = host.connection
        self._policy = policy
        self._log = log
        self._whole = policy.content == "message"
        self.spool = spool
        #: The messages that are collected, judged or being sent.
        self.intakes: dict[bytes, _Intake] = {}
        #: Those for which there is something to do, and those that wait for others to be judged.
        self.queue: deque[_Intake] = deque()
        self._waiting: deque[_Intake] = deque()
        #: What the headers that are being judged take, in bytes.
        self._judging = 0

    @property
    def pending(self) -> bool:
        """Whether a message waits, for `work` or for other messages."""
        return bool(self.queue or self._waiting)

    def content(self, key: bytes, lines: list[bytes], *, end: bool) -> None:
        """Take lines of a message in.  Never raises."""
        intake = self.intakes.get(key)
        try:
            if intake is None:
                intake = self.intakes[key] = _Intake(key, Message(self.spool))
                if self.spool.full:
                    raise SpoolError("too many messages at a time")  # noqa: TRY301  # as any other
            intake.ended = end
            message = intake.message
            if lines:
                message.feed(lines)
            if intake.state == COLLECTING and (end or (message.header_seen and not self._whole)):
                if end:
                    message.close()
                intake.state = READY
                self.queue.append(intake)
        except (SpoolError, MemoryError) as error:
            self._no_storage(key, error)
        except Exception as error:  # noqa: BLE001  # never exits
            self._host.failed(key, error)

    def work(self) -> None:
        """Judge and send back messages, a bounded part of them.

        Raises MemoryError; then it is to be called again.
        """
        budget = TURN
        queue = self.queue
        while queue and budget > 0:
            # It stays in the queue until that is done.
            intake = queue[0]
            try:
                if intake.lost:
                    self._no_storage(intake.session, MemoryError())
                elif intake.state == SENDING:
                    budget -= self._send(intake)
                elif intake.state == READY:
                    budget -= self._judge(intake)
            except SpoolError as error:
                self._refuse(intake.session, str(error))
            except MemoryError:
                if intake.lost:
                    raise
                intake.lost = True
                continue
            except Exception as error:  # noqa: BLE001  # never exits
                self._host.failed(intake.session, error)
            queue.popleft()

    def refuse_all(self) -> None:
        """Refuse for now all messages that are on their way: they hold what everybody lacks."""
        for key in list(self.intakes):
            self._refuse(key, "out of memory")

    def drop(self, key: bytes) -> bool:
        """End the transaction; whether a message of it was on its way."""
        if not self.intakes or key not in self.intakes:
            return False
        self._end(self.intakes.pop(key), DROPPED)
        return True

    def recover(self, key: bytes) -> bool:
        """Send a message as it came, since our own code has failed; whether that can be done.

        If not, it is refused for now.
        """
        intake = self.intakes.get(key)
        if intake is None:
            return False
        try:
            if intake.state != SENDING:
                intake.message.revert()
                self._release(intake, self._policy.otherwise_content)
                return True
        except Exception:  # noqa: BLE001, S110  # the first failure has been logged
            pass
        self.drop(key)
        self._connection.refuse(key, LATER)
        return False

    # -- judged --------------------------------------------------------------------------

    def _judge(self, intake: _Intake) -> int:
        """Ask the policy; what that costs."""
        message = intake.message
        cost = message.header_cost + JUDGE_COST
        held = 3 * cost  # as it came, as fields, as it is edited
        if self._judging and self._judging + held > self.spool.memory:
            self._wait(intake)
            return JUDGE_COST
        intake.cost = held
        self._judging += intake.cost
        intake.state = JUDGING
        self._admit()
        key = intake.session
        session = self._host.session(key)
        if self._whole:
            verdict = self._policy.judge_message(session, message)
        else:
            verdict = self._policy.judge_headers(session, message.headers)
        if isinstance(verdict, Decision):
            self._release(intake, verdict)
        else:
            self._host.later(
                key,
                verdict,
                lambda decision: self._judged(intake, decision),
                self._policy.otherwise_content,
                self._price(message),
            )
        return cost

    def _price(self, message: Message) -> int:
        """What a step of a coroutine costs that judges the message, in units of `runtime.pace`.

        That is about a microsecond.  A step may walk over the header, and read a part of the body.
        """
        price = STEP + message.header_cost // HEADER_RATE
        return price + min(message.stored, PART) // BODY_RATE if self._whole else price

    def _wait(self, intake: _Intake) -> None:
        now = monotonic()
        intake.since = intake.since or now
        if now - intake.since > PATIENCE:
            raise SpoolError("too many messages are being judged")
        self._waiting.append(intake)

    def _admit(self) -> None:
        """Let the next one try whether it fits in."""
        while self._waiting:
            intake = self._waiting.popleft()
            if intake.state == READY:
                self.queue.append(intake)
                return

    def _judged(self, intake: _Intake, verdict: Decision) -> None:
        """Take the result of a coroutine."""
        if intake.state != JUDGING:
            return
        try:
            self._release(intake, verdict)
        except SpoolError as error:
            self._refuse(intake.session, str(error))
        except MemoryError:
            intake.lost = True
            self.queue.append(intake)

    def _release(self, intake: _Intake, verdict: Decision) -> None:
        """The verdict is there: have the message sent back."""
        if type(verdict) is not Proceed:
            self._connection.refuse(intake.session, verdict)
        intake.message.release()
        self._settle(intake, SENDING)
        self.queue.append(intake)

    def _settle(self, intake: _Intake, state: int) -> None:
        """It is judged no longer."""
        intake.state = state
        if intake.cost:
            self._judging -= intake.cost
            intake.cost = 0
        if self._waiting:
            self._admit()

    # -- sent ----------------------------------------------------------------------------

    def _send(self, intake: _Intake) -> int:
        """Send a part of the message; what that costs.  At its end, pass through or close."""
        key, message = intake.session, intake.message
        rows = message.drain()
        done = message.drained
        ended = done and intake.ended
        if rows or ended:
            self._connection.send_lines(key, rows, end=ended)
        if not done:
            self.queue.append(intake)
        else:
            del self.intakes[key]
            self._end(intake, DROPPED)
            if not ended:
                self._connection.pass_through(key)
        return sum(map(len, rows)) + LINE_COST * len(rows)

    def _end(self, intake: _Intake, state: int) -> None:
        self._settle(intake, state)
        intake.message.discard()

    def _no_storage(self, key: bytes, error: Exception) -> None:
        """Refuse a message for now that can neither be kept nor sent; what follows may pass.

        Raises MemoryError, if there is none for that either; the message is refused all the same.
        """
        if isinstance(error, MemoryError):
            self._connection.spoil(key)
            self._host.relieve()
            self._refuse(key, "out of memory")
        else:
            self._refuse(key, str(error))

    def _refuse(self, key: bytes, reason: str) -> None:
        intake = self.intakes.get(key)
        if intake is None:
            return
        self._log.failure(
            "spool",
            "smtpd-filters",
            "message refused",
            key.decode("latin-1"),
            {},
            reason=reason,
            reply=NO_STORAGE.text,
        )
        self._host.cancel(key)
        # What raises MemoryError is done again, until the message is forgotten.
        self._connection.refuse(key, NO_STORAGE)
        if intake.ended:
            self._connection.send_lines(key, [], end=True)
        else:
            if intake.state != SENDING:
                # What follows is no header, for which smtpd would refuse the message for good.
                self._connection.send_lines(key, [b""])
            self._connection.pass_through(key)
        self._end(intake, DROPPED)
        del self.intakes[key]
