"""The engine's ear for programs: every line that one writes is checked before smtpd gets it.

A chunk that consists of lines of messages which need no change is passed on in one piece; any other
line by line. The first fault ends the processing of a program's output: it is to be ended.

Invariants
----------
*Whole lines*: what a program has not ended by a line feed is not passed on.
*Expected*: an answer is passed on only to the open request of the program's own session, with its
token; a line of a message only if the program was given the message, before its final dot.
*All or a fault*: if memory runs out the program is at fault, since its answers may be lost.
"""

from __future__ import annotations

from operator import itemgetter

from smtpd_filters.runtime.log import fold_traceback

from .answers import FaultError, check
from .transit import COMMIT, HEAD, NAME, count_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.runtime.log import Log

    from .ledger import Message
    from .link import Link
    from .transit import Transit

#: Bytes of a line of a program. A longer one is a fault; one of a message is broken far below.
MAX_LINE = 4 << 20
#: A message may grow on its way by so many bytes, and times; beyond that it is a flood.
GROWTH = 16 << 20
GROWTH_FACTOR = 4
#: Characters of a faulty line in the log.
SHOWN = 60

#: Length of the line of a final dot.
_DOT = HEAD + len(b".")
_head = itemgetter(slice(0, HEAD))


class ProgramSide:
    """Reads what programs write.

    Answers are appended to `answers`, lines of messages to the output of `transit`. `registered` is
    called with a program whose registration is complete; it sets `Link.ready`.
    """

    def __init__(
        self,
        log: Log,
        transit: Transit,
        answers: list[bytes],
        registered: Callable[[Link], None],
    ) -> None:
        self._log, self._transit, self._answers = log, transit, answers
        self._on_registration = registered

    def receive(self, link: Link, data: bytes) -> None:
        """Process bytes of a program, up to its first fault."""
        if link.fault:
            return
        try:
            self._receive(link, data)
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
                self._fault(link, "line without an end", bytes(link.partial[:SHOWN]))
            return
        whole = data[:end] if end < len(data) else data
        if link.partial:
            whole = bytes(link.partial) + whole
        link.partial = bytearray(data[end:])
        if link.returning and self._whole(link, whole):
            return
        rows = whole.split(b"\n")
        rows.pop()
        if not link.ready:
            self._register(link, rows)
        elif not self._all_returning(link, rows, whole):
            self._answered(link, rows)

    def _fault(self, link: Link, what: str, row: bytes) -> None:
        """Note that a program must be ended. Of an answer its parameter is not shown."""
        head = b"|".join(row[: 2 * HEAD].split(b"|")[:4])[:SHOWN]
        link.fault = f"{what}: {head.decode('utf-8', 'backslashreplace')}"

    def _whole(self, link: Link, data: bytes) -> bool:
        """Pass a chunk on without splitting it; return False if that can't be done.

        It consists of lines of one or two messages, those of its first and its last line, and none
        is a final dot or needs a change. Each line but the first is counted with the line end
        before it, so no text of a message can pass for the start of a line.
        """
        if len(data) > self._transit.limit or b"\0" in data:
            return False
        second = data.find(b"\n") + 1
        if not data.startswith(data[:HEAD], second):
            return False  # the lines of several messages take turns
        lines = count_lines(data)
        last = data.rfind(b"\n", 0, len(data) - 1) + 1
        present: list[Message] = []
        for at in (0, last):
            head = data[at : at + HEAD]
            message = link.returning.get(head)
            if message is None or head + b".\n" in data:
                return False
            if message not in present:
                present.append(message)
                lines -= data.count(b"\n" + head) + data.startswith(head)
            if not lines:
                break
        if lines:
            return False
        self._transit.lines.append(data)
        for message in present:
            if message.header and message.prefix + b"\n" in data:
                message.header = False
            self._progress(link, message, len(data))
        return True

    def _all_returning(self, link: Link, rows: list[bytes], data: bytes) -> bool:
        """Pass a chunk on in one piece if it consists of lines of messages that need no change."""
        heads = set(map(_head, rows))
        if not link.returning.keys() >= heads:
            return False
        if min(map(len, rows)) <= _DOT and b"|.\n" in data:
            return False
        return self._pass_back(link, rows, data, heads)

    def _pass_back(self, link: Link, rows: list[bytes], data: bytes, heads: set[bytes]) -> bool:
        """Pass lines on in one piece, none a final dot; return False if some need change."""
        limit = self._transit.limit + HEAD
        if (len(data) > limit and max(map(len, rows)) > limit) or b"\0" in data:
            return False
        self._transit.lines.append(data)
        for head in heads:
            message = link.returning[head]
            if message.header and head in rows:
                message.header = False
            self._progress(link, message, len(data))
        return True

    def _progress(self, link: Link, message: Message, size: int) -> None:
        """Note that the program has returned something of a message."""
        message.returned = True
        message.since = self._transit.now
        message.sent += size
        if message.kept and message not in link.feeding:
            message.release()
        if message.sent > GROWTH_FACTOR * message.received + GROWTH:
            self._fault(link, "flood of lines", message.prefix)

    def _answered(self, link: Link, rows: list[bytes]) -> None:
        """Process lines of a program, one at a time where necessary."""
        returning = link.returning
        run: list[bytes] = []
        for row in rows:
            if returning and len(row) != _DOT and row[:HEAD] in returning:
                run.append(row)
                continue
            if run:
                self._run_back(link, run)
                run = []
            if link.fault:
                return
            if row.startswith(b"filter-result|"):
                self._result(link, row)
            elif row.startswith(b"filter-dataline|"):
                self._line_back(link, row)
            elif not row.startswith(b"register|"):  # smtpd ignores a late registration
                self._fault(link, "unknown line", row)
        if run:
            self._run_back(link, run)

    def _run_back(self, link: Link, rows: list[bytes]) -> None:
        data = b"\n".join([*rows, b""])
        if not self._pass_back(link, rows, data, set(map(_head, rows))):
            for row in rows:
                if not link.fault:
                    self._line_back(link, row)

    def _line_back(self, link: Link, row: bytes) -> None:
        """Process one line of a message from a program."""
        fields = row.split(b"|", 3)
        message = link.messages.get(fields[1]) if len(fields) == 4 else None
        if message is None or not row.startswith(message.prefix):
            if message is None and len(fields) == 4 and fields[1] in link.late:
                return
            self._fault(link, "line outside of a message", row)
            return
        line = fields[3]
        if line != b".":
            self._transit.write(message, [line.replace(b"\0", b"")])
            self._progress(link, message, len(row))
            return
        if not message.ended or message in link.feeding:
            self._fault(link, "end of a message before its end", row)
            return
        self._transit.finish(message)
        link.remove(message)
        link.useful = True
        # The program may have a verdict on it for `commit`.
        message.session.judged = COMMIT.wire in link.phases
        message.release()

    def _result(self, link: Link, row: bytes) -> None:
        """Process the answer to a request."""
        fields = row.split(b"|", 4)
        if len(fields) < 4:
            self._fault(link, "incomplete answer", row)
            return
        id_, token, verb = fields[1:4]
        session = link.open.get(id_)
        if session is None or token != session.token:
            if session is None and id_ in link.late:
                return
            self._fault(link, "answer without a request", row)
            return
        phase = session.phase
        parameter = fields[4] if len(fields) > 4 else None
        if verb != b"proceed" or parameter is not None:
            try:
                wire = check(phase, verb, parameter)  # type: ignore[arg-type]  # it is open
            except FaultError as error:
                self._fault(link, str(error), row)
                return
            if row[-len(wire) :] != wire:
                name = phase.name if phase is not None else ""
                self._log.limited(
                    f"unsafe {name}",
                    NAME,
                    "unsafe answer",
                    id_.decode("latin-1"),
                    phase=name,
                    answer=verb.decode("latin-1"),
                )
            self._answers.append(b"filter-result|%b|%b|%b\n" % (id_, token, wire))
        else:
            self._answers.append(row + b"\n")
        del link.open[id_]
        session.phase = None
        link.useful = True
        if phase is COMMIT:
            session.judged = False

    def _register(self, link: Link, rows: list[bytes]) -> None:
        for at, row in enumerate(rows):
            try:
                done = link.registration.add(row)
            except ValueError as error:
                self._fault(link, str(error), row)
                return
            if done:
                self._on_registration(link)
                if link.ready and rows[at + 1 :]:
                    self._answered(link, rows[at + 1 :])
                return
