"""filter-senderscore: the policy that refuses, marks or delays clients by their Sender Score.

The score of a client, from 0 to 100, is the last octet of the zone's answer in 127.0.4.0/24. A
client that is not in the zone is neutral, and passes. So do IPv6 clients, since the zone has none,
and exempt ones, by default local clients, without a look-up.

Flags, reply and header field are those of poolp.org's filter of the same name. So is `-testMode`,
which does no look-ups: test scripts rely on it.

Invariants
----------
*No score is no verdict*: after any other result (a timeout, SERVFAIL, any other address, above all
127.255.255.0/24, "not registered") the client has no score and isn't neutral: `--on-error` decides.
*One score*: a session has one score. The result of its look-up is kept until its end, so that it
waits for a broken name server once only.
*Bounded delay*: a delayed client delays no other, and gets its reply before smtpd, the client or
`--deadline` time out.
*Needed phases only*: only the phases that the flags need are registered.
"""

from __future__ import annotations

import sys
from time import monotonic, sleep

from smtpd_filters.checks.exemptions import (
    SOCKET,
    UNKNOWN,
    UNKNOWN_STATUS,
    Exempt,
    exempt_option,
    exempted,
    known_address,
)
from smtpd_filters.checks.hosts import unmapped
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filter import Filter, Registration, legal_outcomes
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.lookups.dns.setting import LOOKUP
from smtpd_filters.lookups.outcome import DNS_FAILURE, Found, NotFound
from smtpd_filters.main import run
from smtpd_filters.own_field import OwnField
from smtpd_filters.protocol.decisions import JUNK, PROCEED, Disconnect, Junk, Proceed
from smtpd_filters.settings import (
    INTEGER,
    SWITCH,
    TEXT,
    Settings,
    choice,
    option,
    table,
)
from smtpd_filters.tables import NetworkTable
from smtpd_filters.tables.source import REMOTE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from smtpd_filters.filter import OnError
    from smtpd_filters.lookups.outcome import Outcome
    from smtpd_filters.message import Headers
    from smtpd_filters.session import Session

FIELD = OwnField("X-SenderScore")
REFUSAL = Disconnect("550 your IP reputation is too low for this MX")

BEST = 100
TRUSTED = BEST  # the score of the allow list, as in the original
#: In place of a score: the zone has none.
NEUTRAL = -1

# The answers of Sender Score, and the prefix of its refusals.
_SCORES = {f"127.0.4.{score}": score for score in range(BEST + 1)}
_BLOCKED = "127.255.255."
UNREGISTERED = (
    f"the zone answers {_BLOCKED}x, not scores: the name server is not registered or is over its "
    "quota; register its address at my.validity.com, or use another with --nameserver"
)
OVERDUE = "the look-up took too long"

# RFC 5321 section 4.5.3.2: the shortest of a client's timeouts is "DATA Initiation: 2 Minutes".
# smtpd reports its own in the handshake; before it did, that was 5 minutes.
_CLIENT_TIMEOUT = 120
_SMTPD_TIMEOUT = 300
# The share of the shorter one, and of --deadline, that a delay may take.
_OF_TIMEOUT = 0.5
# Seconds. In test mode the process itself sleeps, and would be interrupted after 5 s.
_TEST_DELAY = 4.0
_TEST_UNKNOWN = 255
_TEST_MOST = 127

_PHASES = ("connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "quit")
#: Phases that are delayed, and registered in test mode; `headers` covers the message.
_ANSWERED = (*_PHASES, "data", "commit")
#: Handlers of phases at which junk is not allowed.
_WITHOUT_JUNK = {"commit", "quit"}
#: Phases at which no client has authenticated yet.
_EARLY = {"connect", "helo", "ehlo", "starttls", "auth"}


class _AllowList(NetworkTable):
    """A table of networks; any value but an inline table is a path, as in the original."""

    __slots__ = ()

    @classmethod
    def load(cls, spec: str) -> Self:
        inline = spec.lstrip().startswith("{")
        given = spec.startswith(("file:", "/", *(f"{scheme}:" for scheme in REMOTE)))
        return cls(spec if inline or given else f"file:{spec}")


class Senderscore(Filter):
    """Refuse, mark or delay clients by their Sender Score."""

    name = "senderscore"

    class Options(Settings):
        """The thresholds of the score, the actions, and the zone."""

        block_below = option(
            INTEGER(low=-1),
            default=-1,
            flags=("-blockBelow",),
            help="Refuse clients with a score below this, and close the connection. With -1, none.",
        )
        block_phase = option(
            choice(*_PHASES),
            default="connect",
            flags=("-blockPhase",),
            help="The phase at which to refuse. A client greets with helo or with ehlo, not both. "
            "At quit its mail has already been accepted.",
        )
        junk_below = option(
            INTEGER(low=-1),
            default=-1,
            flags=("-junkBelow",),
            help='Mark all mail of clients with a score below this with "X-Spam: Yes". With -1, '
            "none.",
        )
        slow_factor = option(
            INTEGER(low=-1),
            default=-1,
            flags=("-slowFactor",),
            help="Delay each reply to a client by this number of milliseconds times (100 - score) "
            "/ 100. A reply is never delayed by more than a minute, half of smtpd's own timeout, "
            "or nine tenths of --deadline.",
        )
        score_header = option(
            SWITCH,
            default=False,
            flags=("-scoreHeader",),
            help=f"Add a field {FIELD} with the score, if there is one, at the top of each "
            "message. Such fields from clients that are not local are removed.",
        )
        allowlist = option(
            table(_AllowList),
            default=None,
            flags=("-allowlist",),
            help=f"A file with addresses and networks, one per line, whose score is {TRUSTED} "
            "without a look-up.",
        )
        exempt = exempt_option("local", what="Clients whose score is not looked up")
        test_mode = option(
            SWITCH,
            default=False,
            flags=("-testMode",),
            help="For tests: the score is the last number of the client's address (255: no score, "
            "127 at most), nothing is looked up, every phase is registered, and sessions are "
            "answered one after the other.",
        )
        zone = option(
            TEXT,
            default="score.senderscore.com",
            help="The zone to query: a mirror, or another one with the same answers.",
        )

    settings: Options
    # Before `--deadline`, when the removal of fields by `_set_field` would be undone.
    dns = Resolver.setting(
        timing=lambda filter_: (
            filter_.settings.timeout,
            min(LOOKUP * filter_.settings.timeout, filter_.share * filter_.deadline),
        )
    )

    #: The part of `--deadline` that look-ups may take.
    share = 0.9
    _exempt = Exempt()
    _slow = 0.0  # seconds of delay for a score of 0
    _longest = 0.0
    #: The phases at which an unavailable score is a failure; if there is none, it is a failure
    #: where the header field is written.
    _deciding: frozenset[str]
    _uses_dns: bool

    @classmethod
    def outcomes(cls) -> tuple[OnError, ...]:
        """Return the choices of `--on-error`, by the phases of all handlers that allow junk."""
        return legal_outcomes(cls.handlers.keys() - _WITHOUT_JUNK)

    def setup(self) -> Registration:
        """Return the registration for the phases that the flags need."""
        settings = self.settings
        self._check_scores()
        self._exempt = settings.exempt
        if settings.test_mode and not self._exempt.given:
            # Test scripts connect from loopback addresses.
            self._exempt = Exempt([SOCKET], self._exempt.tables)
        deciding = set()
        if settings.block_below > 0:
            deciding.add(settings.block_phase)
        if settings.junk_below > 0:
            deciding.add("connect")
        asked = set(deciding)
        if settings.slow_factor > 0:
            self._slow = settings.slow_factor / 1000
            asked.update(_ANSWERED)
        if settings.test_mode:
            asked.update(_ANSWERED)
        if not deciding and not settings.score_header:
            deciding.add("connect")
        self._deciding = frozenset(deciding)
        handlers = {phase.replace("-", "_") for phase in asked}
        if settings.score_header:
            handlers.add("headers")
        self._check_outcome(handlers)
        if asked and asked <= _EARLY and not settings.score_header:
            self._exempt.note_phase(max(asked, key=_PHASES.index), self.log)
        self._check_zone()
        self._uses_dns = bool(handlers) and not settings.test_mode
        return Registration(
            handlers,
            reports={"link-auth"} if self._exempt.users else (),
            events={"link_connect"} if self._uses_dns else (),
            junk=settings.junk_below > 0,
            waits=self._uses_dns,
            data=settings.test_mode,
        )

    def _check_scores(self) -> None:
        """Raise ConfigError for a threshold above the maximum."""
        settings = self.settings
        most = _TEST_MOST if settings.test_mode else BEST + 1
        for flag, below in (
            ("-blockBelow", settings.block_below),
            ("-junkBelow", settings.junk_below),
        ):
            if below > most:
                raise ConfigError(f"{flag}: must be at most {most}, not {below}")

    def _check_outcome(self, handlers: set[str]) -> None:
        """Raise ConfigError for `--on-error junk` if a registered phase doesn't allow it."""
        settings = self.settings
        if self.on_error in legal_outcomes(handlers):
            return
        flag = f"-blockPhase {settings.block_phase}"
        if settings.test_mode:
            flag = "-testMode"
        elif settings.slow_factor > 0:
            flag = "-slowFactor"
        raise ConfigError(f"--on-error: {self.on_error} is not possible with {flag}")

    def _check_zone(self) -> None:
        from smtpd_filters.lookups.dns.names import domain  # not for --help

        try:
            domain(f"255.255.255.255.{domain(self.settings.zone)}")
        except ValueError:
            raise ConfigError(f"--zone: {self.settings.zone!a} is not a domain name") from None

    def link_connect(self, session: Session) -> None:
        """Start to look up the score ahead of need."""
        if not self._exempt.reason(session) and self._known(session) is None:
            self.dns.start(self._query(session), "A")

    # -- phases --------------------------------------------------------------------------

    async def connect(self, session: Session) -> Proceed | Junk | Disconnect:
        return await self._answer("connect", session)

    async def helo(self, session: Session, _identity: str) -> Proceed | Disconnect:
        return await self._answer("helo", session)

    async def ehlo(self, session: Session, _identity: str) -> Proceed | Disconnect:
        return await self._answer("ehlo", session)

    async def starttls(self, session: Session) -> Proceed | Disconnect:
        return await self._answer("starttls", session)

    async def auth(self, session: Session, _credentials: str) -> Proceed | Disconnect:
        return await self._answer("auth", session)

    async def mail_from(self, session: Session, _address: str) -> Proceed | Disconnect:
        return await self._answer("mail-from", session)

    async def rcpt_to(self, session: Session, _address: str) -> Proceed | Disconnect:
        return await self._answer("rcpt-to", session)

    async def data(self, session: Session) -> Proceed | Disconnect:
        return await self._answer("data", session)

    async def commit(self, session: Session) -> Proceed | Disconnect:
        return await self._answer("commit", session)

    async def quit(self, session: Session) -> Proceed | Disconnect:
        return await self._answer("quit", session)

    async def headers(self, session: Session, headers: Headers) -> Proceed:
        """Add the score at the top of the message."""
        why = self._exempt_from_field(session)
        if why and session.local:
            return exempted(self, why)
        return self._set_field(NEUTRAL if why else await self._score(session), headers)

    def remove_forged(self, session: Session, headers: Headers) -> None:
        """Do so for clients that aren't local."""
        # Mail of a local client may have passed here before, on its way through a scanner.
        try:
            exempt = session.local and self._exempt_from_field(session)
        except UnavailableError:
            exempt = ""
        if not exempt:
            FIELD.remove(headers)

    def _exempt_from_field(self, session: Session) -> str:
        """Return why a client gets no field; "" if it does."""
        why = self._exempt.reason(session)
        return "" if why and self._is_trusted(unmapped(session.address or "")) else why

    def _set_field(self, score: int | str, headers: Headers) -> Proceed:
        FIELD.remove(headers)
        if isinstance(score, str):
            if not self._deciding:
                raise _unavailable(score)
        elif score >= 0:
            FIELD.prepend(headers, str(score))
        return PROCEED

    # -- decisions -----------------------------------------------------------------------

    async def _answer(self, phase: str, session: Session) -> Proceed | Disconnect:
        """Judge the client at a phase, and delay the answer by its score."""
        if why := self._exempt.reason(session):
            return exempted(self, why)
        started = monotonic()
        score = await self._score(session)
        if isinstance(score, str):
            if phase in self._deciding:
                raise _unavailable(score)
            return PROCEED
        decision = PROCEED if score < 0 else self._decision(phase, score)
        if self._slow and 0 <= score < BEST and not self.dry_run:
            await self._delay(score, started)
        return decision

    def _decision(self, phase: str, score: int) -> Proceed | Disconnect:
        settings = self.settings
        if score < settings.block_below and phase == settings.block_phase:
            return REFUSAL.because(f"score {score}")
        if score < settings.junk_below and phase == "connect":
            return JUNK.because(f"score {score}")  # type: ignore[return-value]  # connect has it
        return PROCEED

    async def _delay(self, score: int, started: float) -> None:
        """Wait for the delay of a client with this score."""
        seconds = self._slow * (BEST - score) / BEST
        if self.settings.test_mode:
            sleep(min(seconds, _TEST_DELAY))  # noqa: ASYNC251  # as the original does
            return
        from asyncio import sleep as pause  # already loaded by the event loop

        # The time of the look-up counts, for smtpd, the client and --deadline alike.
        spent = monotonic() - started
        await pause(max(min(seconds, self._cap() - spent), 0))

    def _cap(self) -> float:
        """Return the maximum time for an answer, in seconds."""
        if not self._longest:
            value = self.smtpd.get("smtp-session-timeout", "")
            smtpd = int(value[:9]) if value.isascii() and value.isdigit() else _SMTPD_TIMEOUT
            shorter = _OF_TIMEOUT * min(smtpd, _CLIENT_TIMEOUT)
            self._longest = min(shorter, self.share * self.deadline)
        return self._longest

    # -- scores --------------------------------------------------------------------------

    async def _score(self, session: Session) -> int | str:
        """Return the session's score, or the cause why it has none."""
        score = self._known(session)
        return await self._look_up(session) if score is None else score

    def _known(self, session: Session) -> int | str | None:
        """Return the session's score, or the cause why it has none; None if it needs a look-up."""
        score: int | str | None = session.scratch.get(self)
        if score is None:
            score = self._at_once(session)
            if score is not None and score is not UNKNOWN:
                session.scratch[self] = score
        return score

    def _at_once(self, session: Session) -> int | str | None:
        address = known_address(session)
        if address is None:
            return NEUTRAL if session.by_socket else UNKNOWN
        address = unmapped(address)
        if ":" in address:
            return NEUTRAL
        if self._is_trusted(address):
            return TRUSTED
        if self.settings.test_mode:
            return _test_score(address)
        if session.local:
            return NEUTRAL
        outcome = self.dns.known(self._query(session), "A")
        return None if outcome is None else _read(outcome)

    def _is_trusted(self, address: str) -> bool:
        """Return whether `--allowlist` has an address; only IPv4 addresses can have a score."""
        allowlist = self.settings.allowlist
        return allowlist is not None and ":" not in address and address in allowlist

    async def _look_up(self, session: Session) -> int | str:
        """Look up the score, or the cause why there is none, and keep it (*One score*)."""
        score: int | str = OVERDUE
        try:
            score = _read(await self.dns.query(self._query(session), "A"))
        finally:
            session.scratch[self] = score
        return score

    def _query(self, session: Session) -> str:
        # RFC 5782 section 2.1: the numbers of the address in reverse order, and the zone.
        numbers = unmapped(session.address or "").split(".")
        return f"{'.'.join(numbers[::-1])}.{self.settings.zone}"


def _read(outcome: Outcome[str]) -> int | str:
    """Return the zone's score, NEUTRAL, or the cause why there is none."""
    match outcome:
        case Found(records):
            score = _SCORES.get(records[0]) if len(records) == 1 else None
            if score is not None:
                return score
            if any(record.startswith(_BLOCKED) for record in records):
                return UNREGISTERED
            return f"the zone answers {' '.join(records[:3])}, which is not a score"
        case NotFound():
            return NEUTRAL
        case unavailable:
            return unavailable.cause


def _unavailable(cause: str) -> UnavailableError:
    return UnavailableError(cause, UNKNOWN_STATUS if cause == UNKNOWN else DNS_FAILURE)


def _test_score(address: str) -> int:
    last = address.rpartition(".")[2]
    number = int(last) if last.isascii() and last.isdigit() else _TEST_UNKNOWN
    return NEUTRAL if number == _TEST_UNKNOWN else min(number, _TEST_MOST)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-senderscore."""
    return run(Senderscore, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
