"""No bytes from smtpd, and no policy, make the filter write what ends or hangs smtpd, or raise.

That is the invariant.  Two ways in: `structured` turns the bytes into steps of a legal smtpd and of
a hostile listener (`tests.protocol.hostile`), `raw` gives them to an `Engine` with hostile policies
as they are.  `python -m tests.fuzz` runs both under atheris, from a corpus that `corpus` makes of
the recordings; its arguments are libFuzzer's.
"""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path

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
from smtpd_filters.protocol.filter_side import UnsupportedProtocolError
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.recording import Recording
from smtpd_filters.testing.oracle import Oracle
from smtpd_filters.testing.oracle.rules import Kind
from smtpd_filters.testing.served import Served
from tests.protocol.hostile import DEADLY, DECISIONS, SERVERS, Choices, play

FIXTURES = Path(__file__).parents[2] / "fixtures" / "protocol"
CHOICES = 16
MORE: tuple[object, ...] = (*DECISIONS, KeyError, SystemExit, "never", "wait")


class Cycle(Choices):
    """Choices that never run out."""

    def below(self, count: int) -> int:
        """A number from 0 to ``count`` - 1."""
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


def raw(data: bytes) -> None:
    """Bytes as they might come from smtpd, in pieces, to hostile policies."""
    choices, stream = Cycle(data[:CHOICES] or b"\0"), data[CHOICES:]
    plain, later = Plain(choices), Later(choices)
    filters: list[Filter] = choices.of(([plain], [later], [plain, later], [Looks()], [Silent()]))
    served = Served(filters, (), None)
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


def ancient(stream: bytes) -> bool:
    """Whether a version before 0.5 is spoken in between.

    The order of the answers changes with it, and no server changes its version.
    """
    spoken = {line.split(b"|", 2)[1] for line in stream.split(b"\n") if line.count(b"|") > 1}
    return any(not name.startswith(b"0.") or name[2:3] in b"01234" for name in spoken)


def fuzz(data: bytes) -> None:
    """The first byte chooses the way in."""
    if data[:1] < b"\x80":
        play(data[1:])
    else:
        raw(data[1:])


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
        (folder / f"recorded-{number:03}").write_bytes(b"\xff" + choices + stream)
        (folder / f"steps-{number:03}").write_bytes(b"\0" + stream[200:1200])
