"""No bytes from smtpd, and no policy, make the filter write what ends or hangs smtpd, or raise.

That is the invariant, and: none makes a session wait for another one's.  Three ways in: `play`
turns the bytes into steps of a legal smtpd and of a hostile listener (`tests.protocol.hostile`),
`raw` gives them to an `Engine` with hostile policies as they are, and `grown` plays them to quiet
policies once and then many times as long: what takes more than in proportion is found by its time.
In each of them no turn may write more than `BYTES` and `LINES`.  `python -m tests.fuzz` runs all
three under atheris, from a corpus that `corpus` makes of the recordings; its arguments are
libFuzzer's. Other parsers of bytes from outside have modules of their own: `fuzz_milter`.
"""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from time import process_time

from smtpd_filters import (
    JUNK,
    PROCEED,
    Answer,
    Disconnect,
    Filter,
    FinalAnswer,
    Headers,
    Message,
    ParameterAnswer,
    Proceed,
    Session,
)
from smtpd_filters.oracle import Oracle
from smtpd_filters.oracle.rules import Kind
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.protocol.versions import UnsupportedProtocolError
from smtpd_filters.recording import Recording
from smtpd_filters.testing.in_process import Served
from tests.fuzz import fuzz_milter
from tests.protocol.hostile import DEADLY, DECISIONS, SERVERS, Choices, play
from tests.supervise import hostile as supervised

FIXTURES = Path(__file__).parents[2] / "fixtures" / "protocol"
CHOICES = 16
#: What one turn may write.
BYTES, LINES = 1 << 20, 10_000
#: How much longer an input is made, and how much more than in proportion it may take then.
GROWTH, TOLERANCE = 24, 4
#: Bytes of an input that is grown, and seconds below which nothing is concluded from its time.
SHORT, NOTHING = 1 << 13, 0.4
MORE: tuple[object, ...] = (*DECISIONS, KeyError, SystemExit, "never", "wait")


class Cycle(Choices):
    """Choices that never run out."""

    def below(self, count: int) -> int:
        """Return a number from 0 to `count` - 1."""
        if self._at >= len(self._data):
            self._at = 0
        return super().below(count)


class Plain(Filter):
    """Answers with anything, and edits headers."""

    deadline = 5.0

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        self._choices = choices

    def _say(self) -> object:
        said = self._choices.of(MORE)
        if isinstance(said, type):
            raise said("x")
        return said

    def connect(self, _session: Session) -> Answer:
        """Any answer; so do all the others."""
        return self._say()  # type: ignore[return-value]

    def ehlo(self, _session: Session, _identity: str) -> ParameterAnswer:
        """Any answer."""
        return self._say()  # type: ignore[return-value]

    helo = ehlo

    def starttls(self, _session: Session) -> Answer:
        """Any answer."""
        return self._say()  # type: ignore[return-value]

    def auth(self, _session: Session, _credentials: str) -> ParameterAnswer:
        """Any answer."""
        return self._say()  # type: ignore[return-value]

    def mail_from(self, _session: Session, _address: str) -> ParameterAnswer:
        """Any answer."""
        return self._say()  # type: ignore[return-value]

    rcpt_to = mail_from

    def data(self, _session: Session) -> Answer:
        """Any answer."""
        return self._say()  # type: ignore[return-value]

    def commit(self, _session: Session) -> FinalAnswer:
        """Any answer."""
        return self._say()  # type: ignore[return-value]

    def rset(self, _session: Session) -> FinalAnswer:
        """Any answer."""
        return self._say()  # type: ignore[return-value]

    def noop(self, _session: Session, _text: str) -> Answer:
        """Any answer."""
        return self._say()  # type: ignore[return-value]

    def quit(self, _session: Session) -> Proceed | Disconnect:
        """Any answer."""
        return self._say()  # type: ignore[return-value]

    def headers(self, _session: Session, headers: Headers) -> Answer:
        """Edit a little, then any answer."""
        _edit(self._choices, headers)
        return self._say()  # type: ignore[return-value]


class Later(Filter):
    """Answers with anything, later, and reads messages."""

    deadline = 0.002

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        self._choices = choices

    async def _say(self) -> object:
        said = self._choices.of(MORE)
        if isinstance(said, type):
            raise said("x")
        if said == "never":
            await asyncio.Event().wait()
        if said == "wait":
            await asyncio.sleep(0)
            return JUNK
        return said

    async def connect(self, _session: Session) -> Answer:
        """Any answer; so do all the others."""
        return await self._say()  # type: ignore[return-value]

    async def rcpt_to(self, _session: Session, _address: str) -> ParameterAnswer:
        """Any answer."""
        return await self._say()  # type: ignore[return-value]

    async def commit(self, _session: Session) -> FinalAnswer:
        """Any answer."""
        return await self._say()  # type: ignore[return-value]

    async def message(self, _session: Session, message: Message) -> Answer:
        """Edit a little, replace the body, then any answer."""
        _edit(self._choices, message.headers)
        if self._choices.below(3) == 0:
            message.replace_body(message.body(5))
        return await self._say()  # type: ignore[return-value]


class Looks(Filter):
    """Looks at headers and passes everything."""

    def headers(self, _session: Session, _headers: Headers) -> Answer:
        """Proceed."""
        return PROCEED


class Reads(Filter):
    """Reads messages, edits their header, and passes them."""

    def message(self, _session: Session, message: Message) -> Answer:
        """Proceed."""
        for name in ("From", "To", "X-Spam"):
            message.headers.get_all(name)
            message.headers.remove(name)
        message.headers.prepend("X-Size", str(message.size))
        return PROCEED


class Silent(Filter):
    """Has nothing to say about messages."""

    def quit(self, _session: Session) -> Proceed | Disconnect:
        """Proceed."""
        return PROCEED


def _edit(choices: Choices, headers: Headers) -> None:
    match choices.below(6):
        case 1:
            headers.prepend("X-A", "\udcff" + "w " * 300)
        case 2:
            headers.append("X-B", "a\r\n b\r\n\r\nc")
        case 3:
            for name in headers.names():
                headers.remove(name)
        case 4:
            headers.append("X-C", "x" * 3000)
        case _:
            pass


class Counted(Served):
    """Filters whose turns are looked at."""

    def output(self) -> bytes:
        """What the filter has written."""
        parts = [self.engine.output()]
        while self.engine.working:
            self._in_loop(self.engine.work)
            parts.append(self.engine.output())
            assert len(parts[-1]) <= BYTES, len(parts[-1])
            assert parts[-1].count(b"\n") <= LINES, parts[-1].count(b"\n")
        return b"".join(parts)


def raw(data: bytes) -> None:
    """Bytes as they might come from smtpd, in pieces, to hostile policies."""
    choices, stream = Cycle(data[:CHOICES] or b"\0"), data[CHOICES:]
    plain, later = Plain(choices), Later(choices)
    filters: list[Filter] = choices.of(([plain], [later], [plain, later], [Looks()], [Silent()]))
    served = Counted(filters, (), None)
    oracle = Oracle()
    try:
        _feed(served, oracle, choices, stream)
    finally:
        served.close()
    oracle.finish()
    if ancient(stream):
        return
    deadly = [c for c in oracle.complaints if c.kind in DEADLY]
    assert not deadly, deadly
    # Without a hand-shake smtpd asks nothing, and nothing is answered.
    if not oracle.oddities and served.engine.ready:
        hanging = [c for c in oracle.complaints if c.kind is Kind.HANGS_SESSION]
        assert not hanging, hanging


def _feed(served: Served, oracle: Oracle, choices: Choices, stream: bytes) -> None:
    if choices.below(8):
        protocol = choices.of(tuple(SERVERS))
        stream = SmtpdConnection(protocol, choices.of(SERVERS[protocol])).configure() + stream
    at = 0
    while at < len(stream):
        size = choices.of((len(stream), 1 << 12, 100, 7, 1)) if at < 400 else 1 << 14
        piece, at = stream[at : at + size], at + size
        oracle.from_smtpd(piece)
        try:
            served.receive(piece)
        except UnsupportedProtocolError:
            assert b"config|protocol|" in stream
            return
        oracle.from_filter(served.output())
    while served.run():
        oracle.from_filter(served.output())


def grown(data: bytes) -> None:
    """Bytes as they might come from smtpd, and the same many times as long.

    The first says what is repeated: the whole, each line, or what a line holds.
    """
    way, stream = data[:1], data[1 : SHORT + 1]
    once = _seconds(_repeat(way, stream, 2))
    often = _seconds(_repeat(way, stream, 2 * GROWTH))
    if often > NOTHING and often > once * GROWTH * TOLERANCE:
        # A machine that was busy with something else is not what is looked for.
        once = min(_seconds(_repeat(way, stream, 2)) for _ in range(3))
        often = min(_seconds(_repeat(way, stream, 2 * GROWTH)) for _ in range(2))
        assert often <= max(NOTHING, once * GROWTH * TOLERANCE), (once, often)


def _repeat(way: bytes, stream: bytes, times: int) -> bytes:
    if way < b"\x55":
        return stream * times
    rows = stream.splitlines(keepends=True)
    if way < b"\xaa":
        return b"".join([row * times for row in rows])
    longer = []
    for row in rows:
        head, bar, last = row.rpartition(b"|")
        content = last.rstrip(b"\n")
        longer.append(head + bar + content * times + last[len(content) :])
    return b"".join(longer)


def _seconds(stream: bytes) -> float:
    """How long quiet policies take for it, on the processor."""
    began = process_time()
    for filter_ in (Looks(), Reads()):
        served = Counted([filter_], (), None)
        try:
            served.receive(SmtpdConnection().configure())
            for at in range(0, len(stream), 60 << 10):
                served.receive(stream[at : at + (60 << 10)])
                served.output()
        except UnsupportedProtocolError:
            pass
        finally:
            served.close()
    return process_time() - began


def ancient(stream: bytes) -> bool:
    """Whether a version before 0.5 is spoken in between.

    The order of the answers changes with it, and no server changes its version.
    """
    spoken = {line.split(b"|", 2)[1] for line in stream.split(b"\n") if line.count(b"|") > 1}
    return any(not name.startswith(b"0.") or name[2:3] in b"01234" for name in spoken)


def fuzz(data: bytes) -> None:
    """The first byte chooses the way in."""
    if data[:1] < b"\x50":
        play(data[1:])
    elif data[:1] < b"\x70":
        supervised.play(data[1:])
    elif data[:1] < b"\xd0":
        raw(data[1:])
    elif data[:1] < b"\xe0":
        supervised.raw(data[1:])
    elif data[:1] < b"\xe8":
        fuzz_milter.fuzz(data[1:])
    else:
        grown(data[1:])


@cache
def recorded() -> list[bytes]:
    """What smtpd wrote in each recording."""
    return [
        b"".join(line + b"\n" for line in Recording.read(path).to_filter())
        for path in sorted(FIXTURES.glob("*/*.session"))
    ]


def corpus(folder: Path) -> None:
    """Write the recordings as inputs, once for each kind of policies."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, stream in enumerate(recorded()):
        choices = bytes([number % 5, number % 7, 0, number % 251] * (CHOICES // 4))
        (folder / f"recorded-{number:03}").write_bytes(b"\xc0" + choices + stream)
        (folder / f"grown-{number:03}").write_bytes(b"\xff" + choices[3:4] + stream)
        (folder / f"steps-{number:03}").write_bytes(b"\0" + stream[200:1200])
        (folder / f"programs-{number:03}").write_bytes(b"\x50" + stream[200:1200])
        (folder / f"supervised-{number:03}").write_bytes(b"\xd0" + stream)
    for number, stream in enumerate(fuzz_milter.seeds()):
        (folder / f"milter-{number:03}").write_bytes(b"\xe0" + stream)
