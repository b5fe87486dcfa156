"""Messages for policies: collected, judged and returned, a bounded piece per turn.

If a policy needs only the header, only that is kept. After it has been judged and the lines
received with it have been sent, the rest of the message passes.

Invariants
----------
*Unchanged*: a message is returned as it came, except for the changes of a policy.
*Turns*: `content` only stores lines. `work` judges and returns messages up to a cost of about
`TURN`, so that requests are answered in between, whatever the number and size of complete messages.
The steps of a coroutine that judges a message have a price, and the loop makes few of them in a
round (`jobs`).
*Bounded*: lines are stored in a `Spool`, and as many headers are judged at a time as its budget
allows. Further messages wait, and are refused temporarily after `PATIENCE`. Input is read while
messages are returned, no faster than smtpd accepts them.
*Refused at commit*: a message is refused at `commit`; temporarily if it could not be stored.
*Our own failures*: if our own code fails, the message is returned as it came, or refused
temporarily if that is the policy's `--on-error` decision.
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
            """Return the session with this id."""

        def run_pending(
            self,
            key: bytes,
            pending: Pending,
            then: Callable[[Decision], None],
            otherwise: Decision,
            price: int,
        ) -> None:
            """Run pending work and call `then` with its decision; each step costs `price`."""

        def cancel(self, key: bytes) -> None:
            """Cancel the coroutine of a session."""

        def relieve(self) -> None:
            """Free memory after a MemoryError."""

        def failed(self, key: bytes, error: BaseException) -> None:
            """Log a bug of ours, and answer what is pending in its session."""


#: RFC 3463 section 3.4, X.3.1: "Mail system full". RFC 5321 section 4.2.3, 452: "insufficient
#: system storage".
NO_STORAGE = Reject("452 4.3.1 Insufficient system storage")
TEMPFAIL = Reject("451 4.3.0 Temporary failure, please try again later")
#: The maximum cost of one call of `Messages.work`, in bytes of lines sent or judged, plus
#: `LINE_COST` for each line. A turn takes 1 to 3 ms. Judging a header of the largest size, which
#: can't be divided, takes 10 ms.
TURN = 1 << 17
#: The cost of judging a message beside that of its header.
JUDGE_COST = 1 << 11
#: The cost in microseconds of a step of a coroutine that judges a message, without the data that it
#: reads; and the bytes read in a microsecond: of a header, with `LINE_COST` for each line, and of a
#: body, where it is expected to yield after each `PART`.
STEP = 100
HEADER_RATE, BODY_RATE = 1 << 7, 1 << 9
PART = 1 << 20
#: Bytes of messages that remain in memory, at least, when memory is scarce.
SPILLED = 1 << 12
#: Seconds that a message may wait until its header fits into the budget.
PATIENCE = 60.0

COLLECTING, READY, JUDGING, SENDING, DROPPED = range(5)


class Intake:
    """A message that is being collected, judged or returned."""

    __slots__ = ("cost", "ended", "lost", "message", "session", "since", "state")

    def __init__(self, session: bytes, message: Message) -> None:
        self.session = session
        self.message = message
        self.state = COLLECTING
        #: The final dot has been received.
        self.ended = False
        #: There was no memory for it: it is to be refused.
        self.lost = False
        #: Its share of the budget for judging, and the time since when it waits for that.
        self.cost = 0
        self.since = 0.0


class Messages:
    """The messages of one conversation that its policy judges."""

    def __init__(self, host: Host, policy: Policy, log: Log, spool: Spool | None = None) -> None:
        self._host = host
        self._connection = host.connection
        self._policy = policy
        self._log = log
        self._whole = policy.content == "message"
        self.spool = spool or Spool()
        #: The messages by session.
        self.intakes: dict[bytes, Intake] = {}
        #: Messages for `work` to process, and messages that wait for budget to be judged.
        self.queue: deque[Intake] = deque()
        self._waiting: deque[Intake] = deque()
        #: The budget used by the headers that are being judged, in bytes.
        self._judging = 0
        #: The cost of a turn of `work`.
        self.turn = TURN

    @property
    def pending(self) -> bool:
        """Whether a message waits for `work` or for budget."""
        return bool(self.queue or self._waiting)

    def content(self, key: bytes, lines: list[bytes], *, end: bool) -> None:
        """Store lines of a message.  Never raise."""
        try:
            self._store(self.intakes.get(key) or self._begin(key), lines, end=end)
        except (SpoolError, MemoryError) as error:
            self._no_storage(key, error)
        except BaseException as error:  # noqa: BLE001  # never exits
            self._host.failed(key, error)

    def _begin(self, key: bytes) -> Intake:
        intake = self.intakes[key] = Intake(key, Message(self.spool))
        if self.spool.full:
            raise SpoolError("too many messages at a time")
        return intake

    def _store(self, intake: Intake, lines: list[bytes], *, end: bool) -> None:
        intake.ended = end
        message = intake.message
        if lines:
            message.feed(lines)
        if intake.state == COLLECTING and (end or (message.header_seen and not self._whole)):
            if end:
                message.close()
            intake.state = READY
            self.queue.append(intake)

    def work(self) -> None:
        """Judge and return messages, up to a cost of about `turn`.

        Raise MemoryError; then it is to be called again.
        """
        budget = self.turn
        queue = self.queue
        while queue and budget > 0:
            # It stays in the queue until it has been processed.
            intake = queue[0]
            try:
                budget -= self._advance(intake)
            except SpoolError as error:
                self._refuse(intake.session, str(error))
            except MemoryError:
                if intake.lost:
                    raise
                intake.lost = True
                continue
            except BaseException as error:  # noqa: BLE001  # never exits
                self._host.failed(intake.session, error)
            queue.popleft()

    def _advance(self, intake: Intake) -> int:
        """Judge a message or return a part of it; return the cost."""
        if intake.lost:
            self._no_storage(intake.session, MemoryError())
        elif intake.state == SENDING:
            return self._send(intake)
        elif intake.state == READY:
            return self._judge(intake)
        return 0

    def spill(self) -> None:
        """Keep at most half of the memory that messages use now; the rest is moved to disk."""
        spool = self.spool
        spool.memory = min(spool.memory, max(spool.used // 2, SPILLED))

    def refuse_all(self) -> None:
        """Refuse all messages temporarily, to free their memory."""
        for key in list(self.intakes):
            self._refuse(key, "out of memory")

    def drop(self, key: bytes) -> bool:
        """End the transaction; return whether it had a message."""
        if not self.intakes or key not in self.intakes:
            return False
        self._end(self.intakes.pop(key), DROPPED)
        return True

    def recover(self, key: bytes) -> bool:
        """Return a message as it came after a failure of our own code; return whether it could be.

        Otherwise it is refused temporarily.
        """
        intake = self.intakes.get(key)
        if intake is None:
            return False
        try:
            if intake.state != SENDING:
                intake.message.revert()
                self._release(intake, self._policy.otherwise_content)
                return True
        except BaseException:  # noqa: BLE001, S110  # the first failure has been logged
            pass
        self.drop(key)
        self._connection.refuse(key, TEMPFAIL)
        return False

    # -- judging -------------------------------------------------------------------------

    def _judge(self, intake: Intake) -> int:
        """Call the policy; return the cost."""
        message = intake.message
        cost = message.header_cost + JUDGE_COST
        held = 3 * cost  # as it came, as fields, and edited
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
            self._host.run_pending(
                key,
                verdict,
                lambda decision: self._judged(intake, decision),
                self._policy.otherwise_content,
                self._price(message),
            )
        return cost

    def _price(self, message: Message) -> int:
        """Return the price of a step of the coroutine that judges the message, for `runtime.pace`.

        The unit is about a microsecond. A step may iterate over the header and read a `PART` of the
        body.
        """
        price = STEP + message.header_cost // HEADER_RATE
        return price + min(message.stored, PART) // BODY_RATE if self._whole else price

    def _wait(self, intake: Intake) -> None:
        now = monotonic()
        intake.since = intake.since or now
        if now - intake.since > PATIENCE:
            raise SpoolError("too many messages are being judged")
        self._waiting.append(intake)

    def _admit(self) -> None:
        """Queue the next waiting message, to be judged if it fits into the budget."""
        while self._waiting:
            intake = self._waiting.popleft()
            if intake.state == READY:
                self.queue.append(intake)
                return

    def _judged(self, intake: Intake, verdict: Decision) -> None:
        """Apply the decision of a coroutine."""
        if intake.state != JUDGING:
            return
        try:
            self._release(intake, verdict)
        except SpoolError as error:
            self._refuse(intake.session, str(error))
        except MemoryError:
            intake.lost = True
            self.queue.append(intake)

    def _release(self, intake: Intake, verdict: Decision) -> None:
        """Have a message returned or refused, after it has been judged."""
        if type(verdict) is not Proceed:
            self._connection.refuse(intake.session, verdict)
        intake.message.release(end_header=not self._policy.only_looks)
        self._settle(intake, SENDING)
        self.queue.append(intake)

    def _settle(self, intake: Intake, state: int) -> None:
        """Change the state after judging, and give the budget back."""
        intake.state = state
        if intake.cost:
            self._judging -= intake.cost
            intake.cost = 0
        if self._waiting:
            self._admit()

    # -- sending -------------------------------------------------------------------------

    def _send(self, intake: Intake) -> int:
        """Send a part of the message and return the cost.  At its end, pass through or close."""
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

    def _end(self, intake: Intake, state: int) -> None:
        self._settle(intake, state)
        intake.message.discard()

    def _no_storage(self, key: bytes, error: Exception) -> None:
        """Refuse a message temporarily that can't be stored; its further lines pass.

        Raise MemoryError if there is no memory for that either; the message is refused even then.
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
        # After a MemoryError all of this is repeated, until the message is deleted.
        self._connection.refuse(key, NO_STORAGE)
        if intake.ended:
            self._connection.send_lines(key, [], end=True)
        else:
            if intake.state != SENDING:
                # Ends the header: smtpd would refuse the message permanently for an invalid one.
                self._connection.send_lines(key, [b""])
            self._connection.pass_through(key)
        self._end(intake, DROPPED)
        del self.intakes[key]
