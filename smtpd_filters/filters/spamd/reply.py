"""spamd's reply to a scan: the verdict, spamd's header fields, and the new message.

The parser is fed as the reply arrives. `smtpd_filters.lookups.spamd` parses the head of the reply;
this module its body, which is a list of symbols (SYMBOLS), a header block (HEADERS) or a whole
message (PROCESS).

With `report_safe 0` the block is that of the message as it was sent, with spamd's own fields on
top. With `report_safe 1` and `2`, spam has the block of another message, to which the sent one is
attached. What both have in common is used: the fields `X-Spam-*`, of which spamd leaves none of the
client's, and the first Subject. The rest is used only together with the new message.

Invariants
----------
*Never half a scan*: a result without some of the tests, since spamd's `time_limit` has passed, is a
failure.
*Bounded*: of a block only what is used is kept, within `MAX_LINES` and `MAX_BYTES`, and a new
message is written to a spool. What a client can make large never makes the verdict unusable: it is
left out, and noted.
*Linear*: the work is proportional to the bytes, whatever pieces they arrive in.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from smtpd_filters.lookups.spamd import ReplyError, ReplyParser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smtpd_filters.message import Body

#: The bounds of spamd's own fields: a report has a line for each of some tens of rules.
MAX_LINES, MAX_BYTES = 1000, 64 << 10
#: Bytes of a list of symbols, and how many of them are kept.
MAX_SYMBOLS_SIZE, MAX_SYMBOLS = 64 << 10, 1000
#: Bytes of a Subject, above which it stays as it is.
MAX_SUBJECT = 8 << 10
#: Bytes of a message, or of a header block, that are accepted for each one sent: SpamAssassin may
#: repeat what it has found, such as each Received in a form of its own. And further bytes.
MULTIPLE, MAX_REPORT = 4, 1 << 20
#: The same for lines of a header block: each of them is a piece of work, and of memory.
MORE_LINES = 10_000
#: SpamAssassin's rule for a scan that was ended by its time_limit.
TIME_LIMIT = "TIME_LIMIT_EXCEEDED"

_OWN = b"x-spam-"
#: A copy of a field that spamd has rewritten.
_PREVIOUS, _PREVIOUS_SUBJECT = b"x-spam-prev-", b"x-spam-prev-subject:"
_SUBJECT, _CONTENT_TYPE, _STATUS = b"subject:", b"content-type:", b"x-spam-status:"
_WHITE = (b" ", b"\t")
_LINE = re.compile(rb"\n([^\n]*+)")
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)
_TESTS = "tests="

#: A field: its raw lines, without line ends.
Lines = list[bytes]


class Reply:
    """A reply of spamd to a scan."""

    __slots__ = ("body", "fields", "header", "is_spam", "notes", "required", "score", "subject",
                 "symbols")  # fmt: skip

    def __init__(self, *, is_spam: bool, score: float, required: float) -> None:
        self.is_spam = is_spam
        self.score = score
        self.required = required
        #: The names of the rules that have matched.
        self.symbols: list[str] = []
        #: spamd's own fields, in their order; and those of the Subject, if it has changed it: the
        #: new one, and a copy of the old one.
        self.fields: list[Lines] = []
        self.subject: list[Lines] = []
        #: The header block, its lines each after a line feed, and the body of a new message, or
        #: None.
        self.header: bytes | None = None
        self.body: Body | None = None
        #: What was left out, for the log.
        self.notes: list[str] = []

    def discard(self) -> None:
        """Discard the new body, if there is one."""
        if self.body is not None:
            self.body.discard()
            self.body = None


class ReplyReader:
    """A parser of one reply. Call `close`, or `discard` after an error."""

    def __init__(
        self,
        command: str,
        sent: bytes,
        size: int,
        new_body: Callable[[], Body] | None = None,
    ) -> None:
        """Begin a reply.

        command: SYMBOLS, HEADERS or PROCESS. sent: the lines of the sent header block, each after
        a line feed. size: the bytes of the sent message. new_body: creates the body of a new
        message, which is wanted; for PROCESS only.
        """
        self._sent = sent
        self._new_body = new_body
        lists = command == "SYMBOLS"
        most = MAX_SYMBOLS_SIZE if lists else MULTIPLE * size + MAX_REPORT
        self._parser = ReplyParser(most)
        self._list: list[bytes] | None = [] if lists else None
        #: The pieces of an incomplete line of the header block.
        self._line: list[bytes] = []
        self._block: Block | None = None
        #: The bytes that the header block may still have.
        lines = sent.count(b"\n")
        self._room = MULTIPLE * (len(sent) + lines) + MAX_REPORT
        #: And its lines.
        self._lines_left = MULTIPLE * lines + MORE_LINES
        self._reply: Reply | None = None
        #: Whether the header block has ended.
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Parse the next bytes. Raises ReplyError, and SpoolError if a body can't be stored."""
        data = self._parser.feed(data)
        head = self._parser.head
        if head is None:
            return
        if self._reply is None:
            if head.is_spam is None:
                raise ReplyError("no Spam in the reply")
            self._reply = Reply(is_spam=head.is_spam, score=head.score, required=head.required)
            if head.length is None:
                raise ReplyError("no Content-length in the reply")
            self._block = Block(whole=head.is_spam and self._new_body is not None)
        if not data:
            return
        if self._list is not None:
            self._list.append(data)
        elif self._ended:
            self._take_body(data)
        else:
            self._take_header(data)

    @property
    def in_header(self) -> bool:
        """Whether the header block hasn't ended, whose lines take more work than a body."""
        return not self._ended

    def close(self) -> Reply:
        """Return the reply, at the end of the connection. Raises ReplyError and SpoolError."""
        self._parser.close()
        reply, block = self._reply, self._block
        assert reply is not None  # noqa: S101  # the head is complete
        assert block is not None  # noqa: S101
        if self._list is not None:
            text = b"".join(self._list).decode("ascii", "replace")
            reply.symbols = _symbols(text.split(","))
        else:
            if not self._ended:
                # Of a message without a body; Content-length says that nothing is missing.
                if self._line:
                    block.add(b"".join(self._line).removesuffix(b"\r"))
                self._end_header(block)
            if reply.body is not None:
                reply.body.close()
        if TIME_LIMIT in reply.symbols:
            raise ReplyError("the scan exceeded SpamAssassin's time_limit")
        return reply

    def discard(self) -> None:
        """Discard what was received."""
        if self._reply is not None:
            self._reply.discard()

    def _take_header(self, data: bytes) -> None:
        block = self._block
        assert block is not None  # noqa: S101  # the head is complete
        self._room -= len(data)
        if self._room < 0:
            self._give_up(block)
            return
        cut = data.rfind(b"\n") + 1
        if not cut:
            self._line.append(data)
            return
        rest = data[cut:]
        lines = b"".join([*self._line, data[: cut - 1]]).split(b"\n")
        self._line = [rest] if rest else []
        for at, line in enumerate(lines):
            if line in (b"", b"\r"):
                self._end_header(block)
                tail = b"\n".join([*lines[at + 1 :], rest])
                self._line = []
                if tail:
                    self._take_body(tail)
                return
            self._lines_left -= 1
            if self._lines_left < 0:
                self._give_up(block)
                return
            block.add(line.removesuffix(b"\r"))

    def _give_up(self, block: Block) -> None:
        """Take the whole fields that have come of a block that is too long.

        A message whose header is longer than what `Headers` has (`cut`) makes it so. spamd's own
        fields are on top, except for those of spam with `report_safe`, which are below From and To.
        """
        reply = self._reply
        assert reply is not None  # noqa: S101  # the head is complete
        self._ended, self._line = True, []
        block.cut()
        block.describe(reply)
        reply.subject = []
        reply.notes.append("long header left out")

    def _end_header(self, block: Block) -> None:
        self._ended = True
        reply = self._reply
        assert reply is not None  # noqa: S101  # the head is complete
        block.close()
        block.describe(reply)
        sent = _parsed(self._sent)
        if block.subject == sent.subject:
            reply.subject = []  # the copy of another one is the client's
        if block.whole and block.content_type != sent.content_type:
            # spamd's boundary is one that no sender can know.
            assert self._new_body is not None  # noqa: S101  # that is when the block is whole
            reply.header = bytes(block.all_lines)
            reply.body = self._new_body()

    def _take_body(self, data: bytes) -> None:
        if self._reply is not None and self._reply.body is not None:
            self._reply.body.write(data)


class Block:
    """A header block of spamd, line by line; with `whole` all of it is kept."""

    def __init__(self, *, whole: bool = False) -> None:
        self.whole = whole
        #: All lines, if they are kept, each after a line feed; spamd's own; and those of the
        #: Subject.
        self.all_lines = bytearray()
        self.own: list[Lines] = []
        self.subject: Lines = []
        #: A digest of the first Content-Type; empty without one.
        self.content_type = b""
        self._previous: Lines = []
        self._left_out = False
        self._lines = self._size = 0
        #: Collects the lines of the current field, if they are kept.
        self._field: Lines | None = None
        self._room = 0
        self._digest: blake2b | None = None

    def add(self, line: bytes) -> None:
        """Add a line, without its line end."""
        if not line.startswith(_WHITE):
            self._begin(line)
        elif self.all_lines:
            self.all_lines += b"\n" + line
        if self._digest is not None:
            self._digest.update(line + b"\n")
        if self._field is None:
            return
        self._room -= len(line)
        self._field.append(line)
        if self._room < 0 or self._lines_over():
            self._drop()

    def _begin(self, line: bytes) -> None:
        self._end_field()
        if self.whole:
            self.all_lines += b"\n" + line
        name = line[: len(_PREVIOUS_SUBJECT)].lower()
        if name.startswith(_OWN):
            if name.startswith(_PREVIOUS) and name != _PREVIOUS_SUBJECT:
                return  # spamd leaves those of a client, and rewrites no other field here
            self._field = []
            self._room = MAX_SUBJECT if name == _PREVIOUS_SUBJECT else MAX_BYTES - self._size
        elif name.startswith(_SUBJECT) and not self.subject:
            self._field = []
            self._room = MAX_SUBJECT
        elif name.startswith(_CONTENT_TYPE) and not self.content_type:
            self._digest = blake2b()

    def _lines_over(self) -> bool:
        return len(self._field or ()) + self._lines > MAX_LINES

    def _drop(self) -> None:
        """Leave the current field out."""
        self._left_out = self._left_out or (self._field or [b""])[0].lower().startswith(_OWN)
        self._field = None

    def _end_field(self) -> None:
        field, self._field = self._field, None
        if self._digest is not None:
            self.content_type, self._digest = self._digest.digest(), None
        if not field:
            return
        name = field[0][: len(_PREVIOUS_SUBJECT)].lower()
        if name.startswith(_SUBJECT):
            self.subject = field
        elif name == _PREVIOUS_SUBJECT:
            self._previous = field
        else:
            self.own.append(field)
            self._size += sum(map(len, field))
            self._lines += len(field)

    def close(self) -> None:
        """Note the end of the block."""
        self._end_field()

    def cut(self) -> None:
        """Note that the rest of the block is missing, of which a field may have a part."""
        if self._field is not None:
            self._drop()
        self._end_field()

    def describe(self, reply: Reply) -> None:
        """Complete a reply by what the block has."""
        reply.fields = self.own
        if self._previous and self.subject:
            reply.subject = [self.subject, self._previous]
        elif self.subject:
            reply.subject = [self.subject]
        if self._left_out:
            reply.notes.append("header fields left out")
        for field in self.own:
            if field[0].lower().startswith(_STATUS):
                reply.symbols = _symbols(_tests(b" ".join(field).decode("ascii", "replace")))


def _parsed(text: bytes) -> Block:
    """Return the block of a message that was sent."""
    block = Block()
    for match in _LINE.finditer(text):
        block.add(match[1].removesuffix(b"\r"))
    block.close()
    return block


def _tests(status: str) -> list[str]:
    """Return the words in `tests=A,B, C` of an X-Spam-Status: it is folded after commas."""
    words = iter(status.split())
    for word in words:
        if word.startswith(_TESTS):
            found = word.removeprefix(_TESTS).split(",")
            while not found[-1]:
                following = next(words, None)
                if following is None:
                    break
                found[-1:] = following.split(",")
            return found
    return []


def _symbols(words: Iterable[str]) -> list[str]:
    """Return the names among some words, within the bound; "none" is spamd's word for no name."""
    stripped = (word.strip() for word in words)
    names = [word for word in stripped if _SYMBOL.fullmatch(word) and word != "none"]
    if TIME_LIMIT in names[MAX_SYMBOLS:]:
        names.insert(0, TIME_LIMIT)
    return names[:MAX_SYMBOLS]
