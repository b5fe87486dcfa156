"""The engine's reader of programs: checks every line that one writes before smtpd gets it.

Lines of messages that need no change are passed on in blocks, and so are answers `proceed`, which
are looked up by session and token. The first fault ends the processing of a program's output: it is
to be ended.

Invariants
----------
*Whole lines*: what a program has not ended by a line feed is not passed on.
*Expected*: an answer is passed on only to the open request of the program's own session, with its
token; a line of a message only if the program was given the message, before its final dot.
*All or a fault*: if memory runs out the program is at fault, since its answers may be lost.
*Asked again*: what a program answers to a request that smtpd has had an answer to is checked, and
goes no further.
*Marked first*: a message counts as returned before something of it is written, whatever fails then.
"""

from __future__ import annotations

from io import BytesIO
from itertools import groupby, repeat
from operator import itemgetter

from smtpd_filters.runtime.log import fold_traceback

from .answers import FaultError, check
from .layout import PAIR
from .observer import Unobserved
from .transit import COMMIT, HEAD, NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from smtpd_filters.protocol.credentials import Refusals
    from smtpd_filters.protocol.vocabulary import Phase
    from smtpd_filters.runtime.log import Log

    from .ledger import Message, Session
    from .link import Link
    from .replay import Replay
    from .transit import Transit

    #: Lines of a message, maybe among those of others; their bytes; whether the last one is its
    #: final dot.
    Run = tuple[Message, list[bytes], int, bool]

#: Bytes of a line of a program. A longer one is a fault; one of a message is broken far below.
MAX_LINE = 4 << 20
#: A message may grow on its way by so many bytes, and times; beyond that it is a flood.
GROWTH = 16 << 20
GROWTH_FACTOR = 4
#: Bytes up to which it is not counted exactly how much of a message was returned.
ROUGHLY = GROWTH // 2
#: Characters of a faulty line in the log.
SHOWN = 60

#: Lengths of an empty line, and of a final dot.
_EMPTY, _DOT = HEAD + len(b"\n"), HEAD + len(b".\n")
_head = itemgetter(slice(0, HEAD))
#: The start and the end of an answer that lets a request pass, and what is between two of these.
_RESULT, _PROCEED = b"filter-result|", b"|proceed\n"
_REFUSALS = b"reject|", b"disconnect|"
_BETWEEN = _PROCEED + _RESULT
#: The length of such an answer, and its session and token.
_PASSES = len(_RESULT) + PAIR + len(_PROCEED)
_pair = itemgetter(slice(len(_RESULT), len(_RESULT) + PAIR))


class ProgramSide:
    """Reads what programs write.

    Answers are appended to `answers`, lines of messages to the output of `transit`. `registered` is
    called with a program whose registration is complete; it sets `Link.ready`. `replayed` is called
    with a session about which a program was asked again, and has answered.
    """

    def __init__(  # noqa: PLR0913  # what it writes to, and calls
        self,
        log: Log,
        transit: Transit,
        answers: list[bytes],
        refusals: Refusals,
        registered: Callable[[Link], None],
        replayed: Callable[[Session], None],
        observer: Unobserved | None = None,
    ) -> None:
        self._log, self._transit, self._answers = log, transit, answers
        self._refusals = refusals
        self._on_registration, self._on_replayed = registered, replayed
        self._observer = observer or Unobserved()
        self._observed = type(self._observer) is not Unobserved

    def receive(self, link: Link, data: bytes) -> None:
        """Process bytes of a program, up to its first fault."""
        if link.fault:
            return
        try:
            self._receive(link, data)
        except FaultError as error:
            link.fault = str(error)
        except MemoryError:
            # What it wrote may be lost in part.
            link.fault = "no memory for its answers"
        except Exception as error:  # noqa: BLE001  # Alive
            link.fault = "its answers can't be processed"
            self._log.limited("bug", NAME, "bug", error=fold_traceback(error))

    def _receive(self, link: Link, data: bytes) -> None:
        end = data.rfind(b"\n") + 1
        if not end:
            link.partial += data
            if len(link.partial) > MAX_LINE:
                raise _fault("line without an end", bytes(link.partial[:SHOWN]))
            return
        whole = data[:end]
        if link.partial or end < len(data):
            whole = bytes(link.partial) + whole
            link.partial = bytearray(data[end:])
        if not link.ready:
            self._register(link, list(BytesIO(whole)))
        elif not (whole.startswith(_RESULT) and self._only_proceed(link, whole)):
            rows = list(BytesIO(whole))
            if not self._only_messages(link, rows, whole):
                self._process(link, rows, whole)

    def _only_proceed(self, link: Link, data: bytes) -> bool:
        """Pass on a read if it only lets open requests pass; return False if it does not."""
        if len(data) == _PASSES and data.endswith(_PROCEED):  # the most frequent read
            session = link.open.pop(_pair(data), None)
            if session is None:
                return False
            self._passed(link, data, (session,))
            return True
        rows = list(BytesIO(data))
        count = len(rows)
        if not (
            len(data) == _PASSES * count
            and data.endswith(_PROCEED)
            and data.count(_BETWEEN) == count - 1
        ):
            return False
        # A longer line makes another one shorter, which has no request then.
        pairs = map(_pair, rows)
        sessions = list(map(link.open.pop, pairs, repeat(None)))
        if None in sessions:
            link.open.update((each.expected, each) for each in sessions if each is not None)
            return False
        self._passed(link, data, sessions)  # type: ignore[arg-type]  # none is None
        return True

    def _passed(self, link: Link, data: bytes, sessions: Sequence[Session]) -> None:
        """Pass on the answers that let the open requests of these sessions pass."""
        if self._observed:
            now = self._transit.now
            for session in sessions:
                phase: Phase = session.phase  # type: ignore[assignment]  # it is open
                self._observer.passed(session, phase, now - session.since)
        closed = iter(sessions)
        self._answers.append(data)
        for session in closed:  # needs no memory: they are answered
            session.phase = None
        link.useful = True

    def _only_messages(self, link: Link, rows: list[bytes], data: bytes) -> bool:
        """Pass on a read if it is nothing but lines of messages; return False if it is not.

        The messages may take turns, and none ends.
        """
        returning, last = link.returning, rows[-1]
        if rows[0][:HEAD] not in returning or last[:HEAD] not in returning:
            return False
        if len(last) == _DOT and last.endswith(b"|.\n"):
            return False  # short messages end in the read in which they began
        sizes = set(map(len, rows))
        if _DOT in sizes and b"|.\n" in data:
            return False
        heads = set(map(_head, rows))
        if not returning.keys() >= heads:
            return False
        messages = [returning[head] for head in heads]
        shares = _shares(messages, rows, data)
        runs = [(each, rows, size, False) for each, size in zip(messages, shares, strict=True)]
        return self._pass_back(link, runs, sizes, data)

    def _pass_back(self, link: Link, runs: list[Run], sizes: set[int], data: bytes) -> bool:
        """Pass on lines of messages, `data`, in one piece; return False if one needs a change.

        `sizes` are the lengths of the lines.
        """
        if b"\0" in data or max(sizes) > self._transit.limit + _EMPTY:
            return False
        ended = [message for message, _, _, end in runs if end]
        judged = COMMIT.wire in link.phases
        for message in ended:
            message.returned = True
            message.session.judged = judged  # the program may have a verdict on it
        going_on = [run for run in runs if not run[3]] if len(ended) < len(runs) else []
        for message, _, _, _ in going_on:
            message.returned = True
        finished = iter(ended)
        self._transit.lines.append(data)
        for message in finished:  # needs no memory: its final dot is written
            message.session.message = None
        if ended:
            self._forget(link, ended)
        for message, rows, size, _ in going_on:
            if message.header and _EMPTY in sizes and message.prefix + b"\n" in rows:
                message.header = False
            self._progress(link, message, size)
        for message, _, _, _ in going_on:
            _check_growth(message)
        return True

    def _progress(self, link: Link, message: Message, size: int) -> None:
        """Note how much of a message the program has returned."""
        message.sent += size
        if message.kept and message not in link.feeding:
            message.release()

    def _process(self, link: Link, rows: list[bytes], data: bytes) -> None:
        """Process lines of a program: those of messages in runs, others one at a time."""
        returning = link.returning
        if not returning:
            self._answered(link, rows)
            return
        runs = [(head, list(group)) for head, group in groupby(rows, _head)]
        if self._whole_runs(link, rows, runs, data):
            return
        gathered: dict[bytes, list[bytes]] = {}
        for head, group in runs:
            if head not in returning:
                self._answered(link, group, gathered)
            elif head in gathered:
                gathered[head] += group
            else:
                gathered[head] = group
        if gathered:
            self._blocks_back(link, gathered)

    def _whole_runs(
        self, link: Link, every: list[bytes], runs: list[tuple[bytes, list[bytes]]], data: bytes
    ) -> bool:
        """Process a read with one run of lines of each message; return False if it is not one.

        `every` are the lines of `data`, `runs` those of the same head by head. What belongs to no
        message is processed after the messages.
        """
        returning = link.returning
        found: dict[Message, Run] = {}
        others: list[bytes] = []
        dots = 0
        for head, rows in runs:
            message = returning.get(head)
            if message is None:
                others += rows
                continue
            end = len(rows[-1]) == _DOT and rows[-1].endswith(b"|.\n")
            if message in found or (end and not self._may_end(link, message)):
                return False
            dots += end
            found[message] = message, rows, 0 if end else sum(map(len, rows)), end
        if not found:
            return False
        if others:
            every = [row for _, rows, _, _ in found.values() for row in rows]
            data = b"".join(every)
        lengths = list(map(len, every))
        if lengths.count(_DOT) != dots:  # there may be one within a run
            return False
        if not self._pass_back(link, list(found.values()), set(lengths), data):
            return False
        self._answered(link, others)
        return True

    def _may_end(self, link: Link, message: Message) -> bool:
        """Return whether a final dot of the message is in order now, and is to be written."""
        return message.ended and message.session.message is message and message not in link.feeding

    def _answered(
        self, link: Link, rows: Iterable[bytes], gathered: dict[bytes, list[bytes]] | None = None
    ) -> None:
        """Process lines that belong to no message; before any but `proceed`, those `gathered`."""
        for row in rows:
            session = None
            if row.startswith(_RESULT) and row.endswith(_PROCEED):
                session = link.open.pop(row[len(_RESULT) : -len(_PROCEED)], None)
            if session is not None:
                self._passed(link, row, (session,))
            else:
                if gathered:
                    self._blocks_back(link, gathered)
                self._single(link, row[:-1])

    def _blocks_back(self, link: Link, gathered: dict[bytes, list[bytes]]) -> None:
        """Process lines of messages, by their heads, and remove them from `gathered`."""
        for head in gathered:
            rows = gathered[head]
            message = link.returning[head]
            end = len(rows[-1]) == _DOT and rows[-1].endswith(b"|.\n")
            if end:
                rows.pop()
            if rows and not self._block_back(link, message, rows):
                for row in rows:
                    self._line_back(link, row[:-1])
            if end:
                self._end(link, message)
        gathered.clear()

    def _block_back(self, link: Link, message: Message, rows: list[bytes]) -> bool:
        """Pass on lines of a message in one piece; return False if that can't be done."""
        sizes, data = set(map(len, rows)), b"".join(rows)
        if _DOT in sizes and b"|.\n" in data:
            return False
        return self._pass_back(link, [(message, rows, len(data), False)], sizes, data)

    def _single(self, link: Link, row: bytes) -> None:
        """Process one line."""
        if row.startswith(_RESULT):
            self._result(link, row)
        elif row.startswith(b"filter-dataline|"):
            self._line_back(link, row)
        elif not row.startswith(b"register|"):  # smtpd ignores a late registration
            raise _fault("unknown line", row)

    def _line_back(self, link: Link, row: bytes) -> None:
        """Process one line of a message from a program."""
        fields = row.split(b"|", 3)
        message = link.messages.get(fields[1]) if len(fields) == 4 else None
        if message is None or not row.startswith(message.prefix):
            if message is None and len(fields) == 4 and fields[1] in link.late:
                if fields[3] == b".":
                    link.settle(fields[1])
                return
            raise _fault("line outside of a message", row)
        line = fields[3]
        if line == b".":
            self._end(link, message)
        else:
            message.returned = True
            self._transit.write(message, [line.replace(b"\0", b"")])
            self._progress(link, message, len(row))
            _check_growth(message)

    def _end(self, link: Link, message: Message) -> None:
        """Process the final dot of a message."""
        if not message.ended or message in link.feeding:
            raise _fault("end of a message before its end", message.prefix)
        # The program may have a verdict on it for `commit`.
        message.session.judged = COMMIT.wire in link.phases
        message.returned = True
        self._transit.finish(message)
        self._forget(link, (message,))

    def _forget(self, link: Link, messages: Iterable[Message]) -> None:
        """Release what is kept of messages that were returned."""
        for message in messages:
            if message.store is not None:
                message.release()
            link.remove(message)
        link.useful = True

    def _result(self, link: Link, row: bytes) -> None:
        """Process the answer to a request."""
        fields = row.split(b"|", 4)
        if len(fields) < 4:
            raise _fault("incomplete answer", row)
        id_, token, verb = fields[1:4]
        if link.replaying and (again := link.replaying.pop(id_ + b"|" + token, None)) is not None:
            self._answered_again(link, again, row, fields)
            return
        session = link.sessions.get(id_)
        if session is not None and link.open.get(session.expected) is not session:
            session = None
        if session is None or token != session.token:
            if session is None and id_ in link.late:
                link.settle(id_)
                return
            raise _fault("answer without a request", row)
        phase: Phase = session.phase  # type: ignore[assignment]  # it is open
        wire = _check(phase, row, fields)
        if row[-len(wire) :] != wire:
            self._log.limited(
                f"unsafe {phase.name}",
                NAME,
                "unsafe answer",
                id_.decode("latin-1"),
                phase=phase.name,
                answer=verb.decode("latin-1"),
            )
        self._observer.answered(session, phase, wire, self._transit.now - session.since)
        sent = self._refusals.answer(phase, id_, wire)
        self._answers.append(b"filter-result|%b|%b|%b\n" % (id_, token, sent))
        del link.open[session.expected]
        if wire.startswith(_REFUSALS):
            session.asked = b""
        session.phase = None
        link.useful = True

    def _answered_again(
        self, link: Link, session: Session, row: bytes, fields: list[bytes]
    ) -> None:
        """Process the answer to a request of a replay (*Asked again*)."""
        replay: Replay = session.replay  # type: ignore[assignment]  # it is asked again
        _check(replay.phase, row, fields)  # type: ignore[arg-type]  # it is open
        link.useful = True
        self._on_replayed(session)

    def _register(self, link: Link, rows: list[bytes]) -> None:
        for at, row in enumerate(rows):
            try:
                done = link.registration.add(row[:-1])
            except ValueError as error:
                raise _fault(str(error), row[:-1]) from None
            if done:
                self._on_registration(link)
                if link.ready:
                    self._answered(link, rows[at + 1 :])
                return


def _shares(messages: list[Message], rows: list[bytes], data: bytes) -> Iterable[int]:
    """Return how many bytes of `data`, which are these lines, each message has.

    To add them up costs a third of what else is done for a line, so that each message is charged
    all of them as long as that alone doesn't count as a flood.
    """
    size = len(data)
    if len(messages) == 1 or all(message.sent + size <= ROUGHLY for message in messages):
        return repeat(size, len(messages))
    shares = {message.prefix: 0 for message in messages}
    # Messages take turns line by line: runs of lines would be as many as lines, and cost more.
    for head, length in zip(map(_head, rows), map(len, rows), strict=True):
        shares[head] += length
    return shares.values()


def _check(phase: Phase, row: bytes, fields: list[bytes]) -> bytes:
    """Return the decision to send for an answer in these fields; raise FaultError."""
    parameter = fields[4] if len(fields) > 4 else None
    try:
        return check(phase, fields[3], parameter)
    except FaultError as error:
        raise _fault(str(error), row) from None


def _fault(what: str, row: bytes) -> FaultError:
    """Return the error for a faulty line. Of an answer its parameter is not shown."""
    head = b"|".join(row[: 2 * HEAD].split(b"|")[:4])[:SHOWN]
    return FaultError(f"{what}: {head.decode('utf-8', 'backslashreplace')}")


def _check_growth(message: Message) -> None:
    if message.sent > GROWTH and message.sent > GROWTH_FACTOR * message.received + GROWTH:
        raise _fault("flood of lines", message.prefix)
