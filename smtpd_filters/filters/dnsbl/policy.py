"""filter-dnsbl: the policy that scores clients by DNS lists.

The score is the sum of the weights of all matching entries (`score`); thresholds map it to an
action. Queries are sent as soon as their subject is known, all at once; cached answers need no
task. The formats and the test entries are those of RFC 5782.

Invariants
----------
*Answers about the subject*: only answers about the subject count: none outside 127.0.0.0/8, and
none about the querier (`checks.listings`).
*Tested lists only*: no client is marked or refused unless the lists have recently been tested: each
has its listed test entry and not the other (`lists`).
*Silence never counts*: a list that times out never counts against the client. The others decide, as
long as its answer could not have changed the decision; otherwise `--on-error` does.
*Exempt clients*: no list is queried about exempt clients, by default local and authenticated ones.
*Verified names*: an allow list counts for a reverse name only if that resolves to the client.
*Keys stay secret*: no reply, header or log line contains a key in the name of a list.
"""

from __future__ import annotations

import sys

from smtpd_filters.checks.client_filter import HANDLERS_AT
from smtpd_filters.checks.exemptions import (
    UNKNOWN_STATUS,
    Exempt,
    allow_option,
    client_address,
    exempt_option,
    exempted,
    known_address,
)
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.lookups.outcome import DNS_FAILURE
from smtpd_filters.main import run
from smtpd_filters.own_field import OwnField
from smtpd_filters.protocol.decisions import JUNK as MARK
from smtpd_filters.protocol.decisions import (
    MAX_POINTS,
    PROCEED,
    Disconnect,
    Junk,
    Points,
    Proceed,
    Reject,
)
from smtpd_filters.settings import (
    INTEGER,
    LIST,
    SECONDS,
    SWITCH,
    TEXT,
    Settings,
    choice,
    option,
)

from .options import SITES, old_style
from .reply import Reply
from .score import DISCONNECT, JUNK, NOTHING, configured

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import NoReturn, TypeAlias

    from smtpd_filters.message import Headers
    from smtpd_filters.protocol.decisions import Answer
    from smtpd_filters.runtime.pace import Pace
    from smtpd_filters.runtime.probes import Probe
    from smtpd_filters.session import Session

    from .answers import Answers
    from .inquiry import Inquiry
    from .lists import Watch
    from .options import Sites
    from .questions import Book, Question
    from .score import Thresholds

    Verdict: TypeAlias = Proceed | Junk | Points | Reject | Disconnect

#: The header field, named as in the earlier filter-dnsbl.
FIELD = OwnField("X-Spam-DNSBL")
_PHASES = tuple(HANDLERS_AT)
#: The first phase at which the subject of a kind of list is known.
_KNOWN_AT = {"client": "connect", "rdns": "connect", "helo": "helo", "sender": "mail-from"}
# A look-up with one server has two rounds, and the second has twice the timeout.
_SHARES = 3
# The prices (`pace`) of a query whose answer is mostly cached, and of awaiting an answer.
_ASK = 5
_WAIT = 60
#: The seconds for which the look-ups for a client are not repeated after a failure.
_RETRY_AFTER = 30.0


class Known:
    """The state of a session: the subjects, the queries, and the decision or the cause of failure.

    After a failure, `until` is the time (by the loop's clock) of the next try.
    """

    __slots__ = ("cause", "decision", "inquiry", "key", "until")

    def __init__(
        self,
        key: tuple[str, str],
        inquiry: Inquiry,
        decision: Verdict = PROCEED,
        *,
        cause: str = "",
        until: float = 0,
    ) -> None:
        self.key = key
        self.inquiry = inquiry
        self.decision = decision
        self.cause = cause
        self.until = until


class Dnsbl(Filter):
    """Mark or refuse mail from clients, names and domains that are on DNS lists."""

    name = "dnsbl"
    points = (-MAX_POINTS, MAX_POINTS)  # `setup` returns closer bounds

    class Options(Settings):
        """The lists by subject, the thresholds of the score, and the reply."""

        client = option(
            SITES,
            default=None,
            help="A list to query for the client's address, IPv4 and IPv6: its zone, the answers "
            'that count after "=" (by default all) and its weight after "*" (by default 1; '
            "negative for an allow list), as in zen.example=127.0.0.[2..11;14]*3. Several in "
            "braces, or from a file with one per line.",
        )
        rdns = option(
            SITES,
            default=None,
            help="A list of names to query for the client's reverse name. A negative weight counts "
            "only if the name resolves to the client.",
        )
        helo = option(
            SITES,
            default=None,
            help="A list of names to query for the client's name in HELO or EHLO.",
        )
        sender = option(
            SITES,
            default=None,
            help="A list of names to query for the domain of the sender's address.",
        )
        junk_at = option(
            INTEGER(low=1),
            default=None,
            help="The score from which messages are marked as junk.",
        )
        reject_at = option(
            INTEGER(low=1),
            default=None,
            help="The score from which clients are refused. At connect that disconnects them as "
            "well, since smtpd would keep the connection open otherwise.",
        )
        disconnect_at = option(
            INTEGER(low=1),
            default=None,
            help="The score from which clients are refused and disconnected; 1 if no score is "
            "given at all.",
        )
        mark = option(
            SWITCH,
            default=False,
            flags=("-m",),
            help="Mark as junk, and refuse no client: the same as --junk-at 1 --header.",
        )
        points = option(
            SWITCH,
            default=False,
            help="Add the score, as points, to that of the chain (see smtpd-filters.toml(5)), "
            "instead of acting on it.",
        )
        phase = option(
            choice(*_PHASES),
            default=None,
            help="The phase at which to decide; by default the first at which everything to look "
            "up is known. Authenticated clients are exempt from mail-from on; at earlier phases "
            "no client has authenticated yet.",
        )
        exempt = exempt_option("local", "authenticated", what="Clients that are not looked up")
        allow = allow_option()
        reply = option(
            TEXT,
            default="",
            help="The SMTP reply of a refusal, with its codes and placeholders: %{subject} is the "
            "listed address or name, %{client} the client's address, %{zone} the list, %{text} "
            "the list's own text, %{score} the score. By default "
            '"550 5.7.1 %{subject} is listed by %{zone}; %{text}" (554 at connect).',
        )
        header = option(
            SWITCH,
            default=False,
            help=f"Add a field {FIELD} to messages for each list with an entry, and remove such "
            "fields from incoming messages.",
        )
        untested = option(
            LIST(TEXT),
            default=(),
            help="The zone of a list without test entries (RFC 5782 section 5), which is queried "
            "without a test.",
        )
        key = option(
            LIST(TEXT),
            default=(),
            secret=True,
            help="A part of a list's name that must never be shown. The keys of Spamhaus and "
            "Abusix are recognised, and so is any label of 16 or more letters and digits.",
        )
        timeout = option(
            SECONDS(low=0.01, high=60),
            default=5.0,
            help="How long to wait for the lists altogether. If one is silent until then, the "
            "others decide, as long as its answer could not have changed the outcome; otherwise "
            "--on-error does.",
        )

    settings: Options
    dns = Resolver.setting(
        nameserver="Most lists refuse public ones.",
        timeout=None,
        timing=lambda filter_: (filter_.longest / _SHARES, filter_.longest),
    )
    #: The part of `--deadline` that look-ups may take.
    share = 0.9
    _exempt: Exempt
    _book: Book
    _watch: Watch
    _answers: Answers
    _pace: Callable[[], Pace]
    _kinds: frozenset[str] = frozenset(_KNOWN_AT)
    _phase: str = ""  # before `setup`
    _thresholds: Thresholds
    _reply: Reply

    @property
    def longest(self) -> float:
        """The deadline of a look-up in seconds."""
        # Before `--deadline`, when the removal of a header field would be undone.
        return min(self.settings.timeout, self.share * self.deadline)

    def setup(self) -> Registration:
        """Prepare the lists, the thresholds and the reply."""
        self._exempt = self.settings.exempt.also(self.settings.allow)
        given: dict[str, Sites] = {
            kind: sites for kind in _KNOWN_AT if (sites := getattr(self.settings, kind)) is not None
        }
        if not any(any(sites) for sites in given.values()):
            raise ConfigError("no list given: --client, --rdns, --helo or --sender is required")
        if not all(key.strip(".") for key in self.settings.key):
            raise ConfigError("--key: expected a part of a list's name, not an empty text")
        self._shows = self.settings.header or self.settings.mark
        self._thresholds = configured(self.settings, list(given.values()), self.log)
        self._set_phase(given)
        self._prepare(given)
        return self._registration()

    def _set_phase(self, kinds: Iterable[str]) -> None:
        self._kinds = frozenset(kinds)
        known = max(_PHASES.index(_KNOWN_AT[kind]) for kind in self._kinds)
        self._phase = self.settings.phase or _PHASES[known]
        at = _PHASES.index(self._phase)
        for kind in kinds:
            if _PHASES.index(_KNOWN_AT[kind]) > at:
                raise ConfigError(
                    f"--{kind} requires --phase {_KNOWN_AT[kind]} or later, not {self._phase}"
                )
        if at <= _PHASES.index("helo"):
            self.settings.exempt.note_phase(self._phase, self.log)

    def _registration(self) -> Registration:
        at = _PHASES.index(self._phase)
        handlers = set(HANDLERS_AT[self._phase])
        if self._shows:
            handlers.add("headers")
        # Look-ups start ahead of the phase.
        events = {"refresh", "close"}
        reports = {"link-auth"}
        if at > _PHASES.index("connect"):
            events.add("link_connect")
        if "helo" in self._kinds:
            reports.add("link-identify")
            if at > _PHASES.index("helo"):
                events.add("link_identify")
        if "sender" in self._kinds and self._phase == "rcpt-to":
            handlers.add("mail_from")
            reports.add("tx-begin")
        settings = self.settings
        junk = settings.mark or settings.junk_at is not None
        bounds = self._bounds()
        return Registration(handlers, events=events, reports=reports, junk=junk, points=bounds)

    def _bounds(self) -> tuple[float, float]:
        """Return the least and the most points."""
        if not self.settings.points:
            return 0, 0
        given = [sites for kind in self._kinds if (sites := getattr(self.settings, kind))]
        if any(sites.is_file for sites in given):
            return -MAX_POINTS, MAX_POINTS  # a reload may bring other weights
        weights = [site.weight for sites in given for site in sites]
        # A weight beyond is that of an allow list which overrules everything.
        low, high = (sum(each for each in weights if each * sign > 0) for sign in (-1, 1))
        return max(low, -MAX_POINTS), min(high, MAX_POINTS)

    def _prepare(self, given: dict[str, Sites]) -> None:
        """Prepare the look-ups; these imports are not needed for --help."""
        from smtpd_filters.runtime.pace import pace

        from .answers import Answers
        from .lists import Watch
        from .questions import Book

        settings = self.settings
        self._pace = pace
        self._book = Book(given, settings.key, settings.untested)
        self._watch = Watch(self._book.watched, self.dns, self.log)
        self._answers = Answers(self.dns, self._watch, self._thresholds)
        for sites in given.values():
            sites.reloaded = self._reload
        # RFC 5321 section 3.1: "A 554 response MAY be given in the initial connection opening
        # message instead of the 220".
        code = 554 if self._phase == "connect" else 550
        self._reply = Reply(settings.reply, code, self.dns)

    def _reload(self) -> None:
        """Use the lists of a reloaded file."""
        self._book.renew()
        self._watch.replace(self._book.watched)

    def probes(self) -> Iterator[Probe]:
        """Yield a probe of each list's test entries."""
        return self._watch.probes()

    async def close(self) -> None:
        """Stop testing the lists."""
        self._watch.close()

    async def refresh(self) -> None:
        """Test the lists."""
        await self._watch.test(remind=True)

    def link_connect(self, session: Session) -> None:
        """Start the look-ups of the client's address and reverse name."""
        address = known_address(session)
        if address and not self._exempt.reason(session):
            self._start(self._book.about_client(session, address))

    def link_identify(self, session: Session) -> None:
        """Start the look-ups of the client's HELO name."""
        if not self._exempt.reason(session):
            self._start(self._book.about_name("helo", session.identity or ""))

    def _start(self, questions: Iterable[Question]) -> None:
        for question in questions:
            self.dns.start(question.name, "A")

    # -- phases ----------------------------------------------------------------------------

    async def connect(self, session: Session) -> Answer | Points:
        """Judge the client before smtpd greets it."""
        return await self._judge(session)

    async def helo(self, session: Session, identity: str) -> Answer | Points:
        """Judge the client at its greeting."""
        return await self._judge(session, identity)

    ehlo = helo

    async def mail_from(self, session: Session, address: str) -> Answer | Points:
        """Judge each message, or start the look-ups of its sender if the phase is later."""
        if self._phase == "rcpt-to":
            if not self._exempt.reason(session):
                self._start(self._book.about_sender(address))
            return PROCEED
        return await self._judge(session, sender=address)

    async def rcpt_to(self, session: Session, _address: str) -> Answer | Points:
        """Judge at each recipient; the decision on the first applies to the whole message."""
        return await self._judge(session)

    def remove_forged(self, session: Session, headers: Headers) -> None:
        """Do so for clients that aren't exempt."""
        if not self._exempt.known_reason(session):
            FIELD.remove(headers)

    async def headers(self, session: Session, headers: Headers) -> Proceed:
        """Add a field for each list with an entry."""
        if why := self._exempt.reason(session):
            return exempted(self, why)
        FIELD.remove(headers)
        known: Known | None = session.scratch.get(self)
        if known is None:
            return PROCEED
        inquiry = known.inquiry
        if inquiry.pending:
            # The lists that could not change the decision, which were queried long ago.
            await self._pace().admit(_WAIT * len(inquiry.pending))
            await self._answers.wait(inquiry)
        for listing in reversed(inquiry.listings):
            FIELD.prepend(headers, f"Listed at {listing}")
        return PROCEED

    def _subjects(
        self, session: Session, identity: str | None, sender: str | None
    ) -> tuple[str, str]:
        """Return the HELO name and the sender to query lists about; "" if no list needs it.

        The arguments are those of this phase; None for what smtpd has reported earlier. Raises
        UnavailableError if it has not.
        """
        if "helo" not in self._kinds:
            identity = ""
        elif identity is None and (identity := session.identity) is None:
            raise UnavailableError("the client's greeting is not known", UNKNOWN_STATUS)
        if "sender" not in self._kinds:
            sender = ""
        elif sender is None:
            sender = None if session.tx is None else session.tx.sender
            if sender is None:
                raise UnavailableError("the sender is not known", UNKNOWN_STATUS)
        return identity, sender

    # -- the decision ----------------------------------------------------------------------

    async def _judge(
        self, session: Session, identity: str | None = None, sender: str | None = None
    ) -> Verdict:
        """Return the decision on a client, at once if all answers are cached."""
        if why := self._exempt.reason(session):
            return exempted(self, why)
        address = self._address(session)
        key = self._subjects(session, identity, sender)
        # At connect there is no earlier decision.
        known: Known | None = None if self._phase == "connect" else session.scratch.get(self)
        if known is not None and known.key == key:
            if not known.cause:
                return known.decision
            if self._now() < known.until:
                raise UnavailableError(known.cause, DNS_FAILURE)
        if self._watch.done and self._pace().take(_ASK * self._book.size):
            questions = self._book.about(session, address, *key)
            if self.dns.missing([each.name for each in questions], "A"):
                # The most frequent case.
                for each in questions:
                    each.list.silences = 0
                if known is not None:
                    del session.scratch[self]
                return PROCEED
            inquiry = self._answers.cached(questions)
            if inquiry.finished and self._is_ready(inquiry):
                return self._decide(session, key, inquiry)
        return await self._wait(session, key)

    def _address(self, session: Session) -> str:
        """Return the address to query lists about; "" if none is needed or known.

        Raises UnavailableError if it is needed and smtpd has not reported it.
        """
        about_client = self._kinds & {"client", "rdns"}
        return (client_address(session) if about_client else known_address(session)) or ""

    def _now(self) -> float:
        import asyncio

        return asyncio.get_running_loop().time()

    def _is_ready(self, inquiry: Inquiry) -> bool:
        """Return whether the decision needs no further look-up."""
        level = inquiry.tally.level
        if level == NOTHING:
            return True
        if not self._watch.fresh:
            return False
        return level == JUNK or self._reply.is_known(inquiry)

    async def _wait(self, session: Session, key: tuple[str, str]) -> Verdict:
        while not self._watch.done:
            await self._watch.test()
        inquiry = await self._query(session, key)
        if inquiry.tally.level != NOTHING and not self._watch.fresh:
            # *Tested lists only*. A list that this switches off is not queried again.
            await self._watch.test()
            inquiry = await self._query(session, key)
            if inquiry.tally.level != NOTHING and not self._watch.fresh:
                self._give_up(session, key, inquiry, "the lists can't be tested")
        if inquiry.tally.level > JUNK and not self._reply.is_known(inquiry):
            await self._reply.look_up(inquiry)
        return self._decide(session, key, inquiry)

    async def _query(self, session: Session, key: tuple[str, str]) -> Inquiry:
        """Query the lists, and wait until no pending answer can change the level."""
        await self._pace().admit(_WAIT * self._book.size)
        return await self._answers.enough(self._book.about(session, self._address(session), *key))

    def _decide(self, session: Session, key: tuple[str, str], inquiry: Inquiry) -> Verdict:
        """Return the decision, and keep it for the rest of the message or session."""
        if not inquiry.tally.certain:
            self._give_up(session, key, inquiry, "; ".join(inquiry.troubles))
        decision = self._verdict(session, inquiry)
        # The reason of one that proceeds is logged once.
        kept = PROCEED if type(decision) is Proceed else decision
        session.scratch[self] = Known(key, inquiry, kept)
        return decision

    def _give_up(
        self, session: Session, key: tuple[str, str], inquiry: Inquiry, cause: str
    ) -> NoReturn:
        """Raise UnavailableError, and keep it so that the next recipient doesn't wait for it."""
        session.scratch[self] = Known(key, inquiry, cause=cause, until=self._now() + _RETRY_AFTER)
        raise UnavailableError(cause, DNS_FAILURE)

    def _verdict(self, session: Session, inquiry: Inquiry) -> Verdict:
        if self.settings.points:
            score = max(-MAX_POINTS, min(inquiry.tally.low, MAX_POINTS))
            return Points(score).because(inquiry.reason) if inquiry.listings else PROCEED
        level = inquiry.tally.level
        if level == NOTHING:
            return PROCEED.because(inquiry.reason) if inquiry.tally.score > 0 else PROCEED
        if level == JUNK:
            return MARK.because(inquiry.reason)
        kind = Disconnect if level == DISCONNECT else Reject
        return kind(self._reply.of(inquiry, self._address(session))).because(inquiry.reason)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-dnsbl."""
    return run(Dnsbl, argv=old_style(sys.argv[1:] if argv is None else argv, Dnsbl))
