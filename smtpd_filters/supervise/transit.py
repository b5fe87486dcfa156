"""Messages in transit: given to a program, kept for the next one, passed on without one, or lost.

Lines are processed in blocks, as by the filter's side of the protocol (`protocol.data_lines`). With
its first line a message gets a key: the bytes of its lines from the bar before `smtp-in` to the bar
after the token, at the same offset in each line (`layout`), where no text of the message can get. A
message that begins and ends in one read needs none (`whole`).

Invariants
----------
*Framed*: lines of a message go to smtpd only between its first line and its final dot.
*Lost without memory*: a message whose line can't be stored or passed on is lost, by operations that
allocate nothing; a lost message is refused at `commit`.
"""

from __future__ import annotations

from smtpd_filters.message.spool import Spool, SpoolError, Store
from smtpd_filters.protocol import long_lines
from smtpd_filters.protocol.data_lines import TOO_LONG
from smtpd_filters.protocol.vocabulary import PHASES
from smtpd_filters.runtime.log import fold_traceback

from .layout import DATA_LINE, PAIR, Layout, offset
from .ledger import GIVEN, HELD, LOST, PASSED, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smtpd_filters.protocol.vocabulary import Phase
    from smtpd_filters.runtime.log import Log

    from .ledger import Session
    from .link import Link

NAME = "supervise"
COMMIT = PHASES["commit"]
TEMPFAIL = COMMIT.fallbacks["tempfail"].wire
#: How often a message is given to a program: the first time, and again after its end.
MAX_GIVEN = 3
#: Bytes of a block of a message that is given again.
BLOCK = 1 << 16
#: Bytes of a message that are kept without the spool.
SMALL = 1 << 14
_DATA_LINE = b"data-line"
_PREFIX = b"filter-dataline|"
#: Bars in a key.
_BARS = DATA_LINE.count(b"|") + 2
#: Length of a line's start on its way back, with such a session and token.
HEAD = len(_PREFIX) + PAIR + len(b"|")


class Transit:
    """The messages of one conversation with smtpd.

    `waiting` are the sessions that wait for a program, `quick` the phases of requests that need no
    look at their fields.
    """

    def __init__(  # noqa: PLR0913  # keyword-only: the settings
        self,
        log: Log,
        waiting: dict[Session, None],
        *,
        on_error: str,
        refuse_long_lines: bool,
        spool: Spool,
        quick: Sequence[Phase],
    ) -> None:
        self._log, self._waiting, self._spool = log, waiting, spool
        self._on_error, self._refuse_long_lines = on_error, refuse_long_lines
        self._quick = quick
        #: See `Engine`.
        self.now = 0.0
        self.expecting = True
        #: Pending output to smtpd.
        self.lines: list[bytes] = []
        #: Messages by the key of their lines.
        self.known: dict[bytes, Message] = {}
        self.layout = Layout(-1, quick)
        #: Bytes of a line that the server accepts whole.
        self.limit = long_lines.content_limit(cuts=False)

    def server_cuts(self) -> None:
        """Set the limit for a server that truncates long lines."""
        self.limit = long_lines.content_limit(cuts=True)

    def learn(self, data: bytes) -> None:
        """Take the layout of the first line in `data` for that of all, unless another is in use.

        To be called between reads: the lines of a read are grouped by one layout.
        """
        at = offset(data)
        if at >= 0 and not self.known:
            self.layout = Layout(at, self._quick)

    # -- the state of a message -----------------------------------------------------------

    def line(
        self, session: Session, token: bytes, row: bytes, line: bytes, link: Link | None
    ) -> bytes:
        """Process a line that belongs to no known message.

        Return the key of its message if it is still to be processed, in a block.
        """
        message = session.message or self._begin(session, token, link)
        if message.ended:
            if message.state in (LOST, PASSED):  # there was no memory for the dot
                self.finish(message)
            else:
                self._after_dot()
            return b""
        if not message.key:
            self._add_key(message, row)
        if message.key and self.layout.key(row) == message.key:
            return message.key
        end = line == b"."
        self._arrive(message, row, end=end)
        if end:
            self._ended(message)
        return b""

    def whole(self, session: Session, key: bytes, rows: list[bytes]) -> bool:
        """Give a program a message that begins and ends with these lines, which have this key.

        Return False if it is not one, or if that can't be done. MemoryError means that nothing was
        done.
        """
        link, last, size = session.link, rows[-1], self.layout.dot_size
        if (
            link is None
            or link.clogged
            or session.message is not None
            or _DATA_LINE not in link.phases
            or len(last) != size
            or not last.endswith(b"|.\n")
            or not rows[0].startswith(b"filter|")
            or key.count(b"|") != _BARS
            or list(map(len, rows)).count(size) > 1  # maybe another dot
        ):
            return False
        block = b"".join(rows)
        kept = len(block)
        if kept > SMALL:
            return False
        message = Message(session, _PREFIX + key[len(DATA_LINE) :])
        message.blocks.append(block)
        message.kept = message.fed = message.received = kept
        message.ended, message.since = True, self.now
        message.state, message.link, message.given = GIVEN, link, 1
        link.messages[session.id] = message
        link.returning[message.prefix] = message
        link.out.append(block)
        # From here on no memory is needed.
        session.message = message
        session.refusal, session.judged = b"", False
        return True

    def _after_dot(self) -> None:
        self._log.limited("line after the dot", NAME, "unexpected", input="line after the dot")

    def _begin(self, session: Session, token: bytes, link: Link | None) -> Message:
        message = Message(session, _PREFIX + session.id + b"|" + token + b"|")
        session.refusal, session.judged = b"", False
        if link is not None:
            self.give(message, link)
        elif self.expecting or session.replay is not None:
            self._waiting[session] = None
        else:
            self.do_without(message)
        session.message = message
        return message

    def give(self, message: Message, link: Link) -> None:
        """Give the message to a program, from its first line."""
        if _DATA_LINE not in link.phases:
            if message.given:
                # An earlier program registered for it, so it is not to pass unseen.
                self.lose(message)
            else:
                self._pass_on(message)
            return
        link.messages[message.session.id] = message
        if len(message.prefix) == HEAD:
            link.returning[message.prefix] = message
        if message.kept:
            link.feeding[message] = None
        # From here on no memory is needed.
        message.state, message.link = GIVEN, link
        message.given += 1

    def do_without(self, message: Message) -> None:
        """Decide on a message that no program can be given, or end one on which it was decided."""
        if message.state != HELD:
            if message.ended:  # there was no memory for the dot
                self.finish(message)
        elif self._on_error == "proceed" and not message.given:
            self._pass_on(message)
        else:
            self.lose(message)

    def _pass_on(self, message: Message) -> None:
        """Return the message unchanged."""
        message.state = PASSED
        store = message.store
        try:
            at = 0
            while store is not None and at < store.size:
                block = store.block(at, BLOCK)
                at += len(block)
                self._return(message, block)
            if message.blocks:
                self._return(message, b"".join(message.blocks))
        except (SpoolError, MemoryError):  # it was returned in part
            self.lose(message)
            return
        message.release()
        if message.ended:
            self.finish(message)

    def lose(self, message: Message) -> None:
        """Give the message up: the rest of it is dropped, and it is refused at `commit`."""
        self._spoil(message)
        self._log.limited(
            "lost",
            NAME,
            "message refused",
            message.session.id.decode("latin-1"),
            result="reject",
            reply=COMMIT.fallbacks["tempfail"].text,
        )
        if message.ended:
            self.finish(message)

    def _spoil(self, message: Message) -> None:
        """Do the part of `lose` that needs no memory."""
        message.state = LOST
        message.session.refusal = TEMPFAIL
        if message.link is not None:
            message.link.remove(message)
            message.link = None
        message.release()

    def finish(self, message: Message) -> None:
        """Write the final dot of a message, once."""
        if message.session.message is message:
            self.lines.append(message.prefix + b".\n")
            message.session.message = None
        self.forget_key(message)

    def feed(self, link: Link) -> None:
        """Give a program a further piece of the messages that it gets again."""
        for message in list(link.feeding):
            store = message.store
            try:
                if store is not None:
                    block = store.block(message.fed, BLOCK)
                else:
                    block = b"".join(message.blocks)[message.fed :]
            except SpoolError as error:
                link.fault = f"message can't be given again: {error}"
                return
            fed = message.fed + len(block)
            link.out.append(block)
            message.fed = fed  # needs no memory, so that nothing is given twice
            if message.fed >= (store.size if store is not None else message.kept):
                del link.feeding[message]
                if message.returned:
                    message.release()

    def take_back(self, message: Message, link: Link, deadline: float) -> bool:
        """Keep a message for the next program, or give it up; return whether it is kept."""
        session = message.session
        self._waiting[session] = None  # first: there may be no memory for the dot
        link.remove(message)
        message.link = None
        overdue = message.ended and self.now - message.since > deadline
        if message.returned or message.given >= MAX_GIVEN or overdue:
            self.lose(message)
            if not session.row:
                self._waiting.pop(session, None)
            return False
        message.state, message.fed = HELD, 0
        return True

    # -- lines ----------------------------------------------------------------------------

    def pass_on(self, rows: list[bytes], data: bytes) -> bool:
        """Process the lines of `data` in one piece; return False if that can't be done.

        They are lines of known messages, none a final dot; if there are several messages, all are
        on their way to one program. MemoryError means that nothing was processed.
        """
        known, key = self.known, self.layout.key
        if key(rows[0]) not in known or key(rows[-1]) not in known:
            return False  # the most frequent reason
        keys = set(map(key, rows))
        if not known.keys() >= keys:
            return False
        if self.layout.dot_size in map(len, rows) and b"|.\n" in data:
            return False
        messages = [known[key] for key in keys]
        if len(messages) == 1:
            self._arrive(messages[0], data, end=False)
            return True
        link = messages[0].link
        if (
            link is None
            or link.clogged
            or not all(
                each.link is link and each.returned and each not in link.feeding
                for each in messages
            )
        ):
            return False
        size = len(data)
        for each in messages:
            each.received += size
        link.out.append(data)
        return True

    def blocks(self, gathered: dict[bytes, list[bytes]]) -> None:
        """Process lines of known messages by key, and remove them from `gathered`.

        MemoryError means that those that are left were not processed, except that a message may
        have ended without its final dot.
        """
        blocks = []
        for key in gathered:
            rows = gathered[key]
            message = self.known.get(key)
            if message is not None:
                blocks.append((key, message, self._find_dot(rows), b"".join(rows)))
        for key, message, end, block in blocks:
            if not message.ended:
                self._arrive(message, block, end=end)
            if end:
                self._ended(message)
            del gathered[key]
        gathered.clear()  # those of messages that were ended otherwise

    def _find_dot(self, rows: list[bytes]) -> bool:
        """Return whether the last line is a final dot; drop lines after it."""
        size = self.layout.dot_size
        sizes = list(map(len, rows))
        if size not in sizes:
            return False
        for at in range(sizes.index(size), len(rows)):
            if sizes[at] == size and rows[at].endswith(b"|.\n"):
                if at + 1 < len(rows):
                    del rows[at + 1 :]
                    self._after_dot()
                return True
        return False

    def _ended(self, message: Message) -> None:
        """Complete a message after its final dot was processed.  Raise MemoryError."""
        if message.state in (LOST, PASSED):
            self.finish(message)
        self.forget_key(message)

    def _arrive(self, message: Message, block: bytes, *, end: bool) -> None:
        """Process lines, with the final dot if `end`.

        Without memory, or by a bug, the message is lost.
        """
        if end:
            message.ended, message.since = True, self.now
        try:
            self._forward(message, block)
        except MemoryError:
            self._break_off(message, "no memory for its messages")
        except Exception as error:  # noqa: BLE001  # Alive
            self._break_off(message, "its messages can't be processed")
            self._log.limited("bug", NAME, "bug", error=fold_traceback(error))

    def _break_off(self, message: Message, why: str) -> None:
        """Lose a message, and a program that has a part of it: it may add the next one to that."""
        link = message.link
        if link is not None and (message.fed or message.returned):
            link.fault = link.fault or why
        self._spoil(message)

    def _forward(self, message: Message, block: bytes) -> None:
        message.received += len(block)
        state, link = message.state, message.link
        if state == GIVEN and link is not None:
            if link.clogged and message not in link.feeding:
                if message.returned:
                    message.fed = 0  # nothing is kept
                link.feeding[message] = None
            if message in link.feeding:
                self._keep(message, block)
                return
            if not message.returned:
                self._keep(message, block)
            link.out.append(block)
            message.fed += len(block)
        elif state == HELD:
            self._keep(message, block)
        elif state == PASSED:
            self._return(message, block)

    def _keep(self, message: Message, block: bytes) -> None:
        """Keep lines of smtpd, as a list of blocks while these are small."""
        if message.store is None:
            message.blocks.append(block)
            message.kept += len(block)
            if message.kept <= SMALL:
                return
            block = b"".join(message.blocks)
            message.store = Store(self._spool)
            message.blocks = []
        try:
            message.store.append_block(block)
        except SpoolError as error:
            self._log.limited("spool", NAME, "spool", error=str(error))
            message.returned = True  # as if: it can't be given again
            message.release()
            link = message.link
            if link is not None and message in link.feeding:
                link.fault = f"message can't be given again: {error}"
            elif message.state == HELD:
                self.lose(message)

    def _return(self, message: Message, block: bytes) -> None:
        """Write lines of smtpd back to it, except for the final dot."""
        rows = block.split(b"\n")
        rows.pop()
        contents = [row.split(b"|", 7)[-1] for row in rows]
        if message.ended and contents and contents[-1] == b".":
            contents.pop()
        self.write(message, contents)

    def write(self, message: Message, lines: Iterable[bytes]) -> None:
        """Write lines of a message to smtpd, and break those that are too long for it."""
        prefix, limit = message.prefix, self.limit
        broken = 0
        out: list[bytes] = []
        for line in lines:
            if len(line) > limit:
                broken += 1
                out += long_lines.break_line(line, header=message.header)
            else:
                if message.header and not line:
                    message.header = False
                out.append(line)
        if out:
            self.lines.append(prefix + (b"\n" + prefix).join(out) + b"\n")
        if broken:
            done = "refused" if self._refuse_long_lines else "broken"
            id_ = message.session.id
            self._log.event(NAME, f"long lines {done}", id_.decode("latin-1"), detail=str(broken))
            if self._refuse_long_lines:
                message.session.refusal = message.session.refusal or TOO_LONG.wire

    def _add_key(self, message: Message, row: bytes) -> None:
        """Store the key of the message's lines, so that these are processed in blocks."""
        if len(message.prefix) != HEAD:
            return
        key = self.layout.key(row)
        if key == DATA_LINE + message.prefix[len(_PREFIX) :]:
            self.known[key] = message
            message.key = key

    def forget_key(self, message: Message) -> None:
        """Process further lines of the message one at a time."""
        if message.key:
            self.known.pop(message.key, None)
            message.key = b""
