"""One message given to filter-auth, in this process: its evidence and its decision are kept.

Invariants
----------
*The filter's own verdict*: nothing is evaluated here. The handlers of filter-auth are called as for
a client at this address, and what they found out is kept.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.auth import Auth
from smtpd_filters.lookups.dns.fcrdns import Confirmed, Unconfirmed, fcrdns
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.main import set_up
from smtpd_filters.message import Message
from smtpd_filters.runtime.log import Log
from smtpd_filters.session import FIELDS, Session
from smtpd_filters.settings import Pool, common_options, parse_flags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.filters.auth.evidence import Evidence
    from smtpd_filters.filters.auth.judgement import Judgement
    from smtpd_filters.lookups.dns import Resolver
    from smtpd_filters.lookups.outcome import Outcome
    from smtpd_filters.message import Headers
    from smtpd_filters.protocol.decisions import Decision, Junk, Points, Proceed, Reject
    from smtpd_filters.settings import PolicySettings

PROG = "filter-auth"
_MESSAGE_ID = b"00000000"
#: Bytes of a message that are given to the filter at a time.
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a message arrived; `server` is the name of smtpd, by default that of this host."""

    client: str
    helo: str
    sender: str
    server: str = ""


@dataclass(slots=True)
class Examined:
    """What filter-auth found out about a message, and what it did.

    `reverse` is the client's name and smtpd's word for its confirmation. `evidence` and `judgement`
    are None if the client is exempt, by the entry `exempt`. `fields` are the lines that it added,
    none if it refused the message. `answers` are those of the DNS.
    """

    arrival: Arrival
    reverse: tuple[str, str]
    decision: Decision
    evidence: Evidence | None
    judgement: Judgement | None
    exempt: str
    fields: tuple[bytes, ...]
    answers: dict[tuple[str, str], Outcome[Any]]


class _Watched(Auth):
    """filter-auth, which keeps what it finds out."""

    name = "auth"
    _explains = True
    evidence: Evidence | None = None
    judgement: Judgement | None = None
    written: tuple[bytes, ...] = ()
    #: The entry of --exempt that covers the client.
    exempt_by = ""

    def _reporting(self) -> tuple[str, ...]:
        return ()  # the message has not arrived: no report counts it

    async def message(self, session: Session, message: Message) -> Proceed | Junk | Reject | Points:
        self.exempt_by = self._exempt.reason(session) or ""
        return await super().message(session, message)

    async def _judge(self, session: Session, message: Message) -> tuple[Evidence, Judgement]:
        self.evidence, self.judgement = await super()._judge(session, message)
        return self.evidence, self.judgement

    def _write(
        self, session: Session, headers: Headers, evidence: Evidence, judgement: Judgement
    ) -> None:
        before = len(headers.lines())
        super()._write(session, headers, evidence, judgement)
        lines = headers.lines()
        self.written = tuple(lines[: len(lines) - before])


def examine(content: bytes, arrival: Arrival, flags: Sequence[str]) -> Examined:
    """Have a filter with these flags examine a message.

    Raises ConfigError for wrong flags, or if they check nothing.
    """
    common = common_options(Auth.outcomes(), Auth.on_error, Auth.deadline)
    own, general = parse_flags(
        Auth.Options, flags, common=common, prog=PROG, description=Auth.described()
    )
    if own.scrub_only:
        raise ConfigError(f"{PROG}: --scrub-only checks nothing")
    return asyncio.run(_examine(content, arrival, own, general))


async def _examine(
    content: bytes, arrival: Arrival, own: Auth.Options, general: PolicySettings
) -> Examined:
    pool = Pool()
    watched = _Watched(own)
    try:
        set_up(watched, Log(), general, pool)
        recorder = vars(watched)["dns"] = _Recorder(watched.dns)
        server = arrival.server or socket.gethostname()
        watched.smtpd = {"admd": server}
        name, confirmed = await _reverse(watched.dns, arrival.client)
        session = _session(arrival, server, name, confirmed)
        watched.link_identify(session)
        watched.mail_from(session, arrival.sender)
        session.apply("tx-begin", (_MESSAGE_ID,))
        session.apply("tx-mail", (_MESSAGE_ID, b"ok", _bytes(arrival.sender)))
        message = message_of(content)
        try:
            decision = await watched.message(session, message)
        finally:
            message.discard()
            watched.link_disconnect(session)
    finally:
        await pool.aclose()
    return Examined(
        arrival,
        (name, confirmed),
        decision,
        watched.evidence,
        watched.judgement,
        watched.exempt_by,
        watched.written,
        recorder.answers,
    )


class _Recorder:
    """A resolver that keeps its answers, as far as filter-auth uses it."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self.answers: dict[tuple[str, str], Outcome[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._resolver, name)

    def known(self, name: str, rdtype: Any) -> Outcome[Any] | None:
        outcome = self._resolver.known(name, rdtype)
        if outcome is not None:
            self.answers[name, rdtype] = outcome
        return outcome

    async def query_all(self, questions: Sequence[tuple[str, Any]]) -> list[Outcome[Any]]:
        outcomes: list[Outcome[Any]] = await self._resolver.query_all(questions)
        self.answers.update(zip(questions, outcomes, strict=True))
        return outcomes


async def _reverse(resolver: Resolver, address: str) -> tuple[str, str]:
    """Return the client's name and smtpd's word for its confirmation."""
    match await fcrdns(resolver, address):
        case Confirmed(names):
            return names[0], "pass"
        case Unconfirmed(names):
            return names[0], "fail"
        case Unavailable():
            return "<unknown>", "error"
    return "<unknown>", "fail"


def _session(arrival: Arrival, server: str, name: str, confirmed: str) -> Session:
    session = Session(b"0000000000000000")
    session.expect(field for fields in FIELDS.values() for field in fields)
    client = f"[{arrival.client}]" if ":" in arrival.client else arrival.client
    session.apply("link-connect", (_bytes(name), confirmed.encode(), f"{client}:0".encode(), b""))
    session.apply("link-greeting", (_bytes(server),))
    session.apply("link-identify", (b"EHLO", _bytes(arrival.helo)))
    return session


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def message_of(content: bytes, piece_size: int = _PIECE) -> Message:
    """Return a message as smtpd gives it to a filter, from a file with any line ends.

    The separator at the top of an mbox is dropped. Lines are read by pieces of about this size.
    """
    message = Message()
    file = BytesIO(content)
    if content.startswith(b"From "):
        file.readline()
    # In pieces: a message of empty lines would take hundreds of times its size.
    while piece := file.read(piece_size):
        message.feed(_as_from_smtpd(piece + file.readline()))
    message.close()
    return message


def _as_from_smtpd(piece: bytes) -> list[bytes]:
    """Return whole lines of a file without their ends, and with the dots that SMTP adds.

    All of them at once: it can be millions.
    """
    text = b"\n" + piece.replace(b"\r\n", b"\n").removesuffix(b"\n")
    return text.replace(b"\n.", b"\n..").split(b"\n")[1:]
