"""filter-dnsbl: ask DNS lists about clients, and act on the sum of what they say.

The law:

1. The score is the sum of the weights of all entries that match (`score`); thresholds say
   what is done. Nobody waits for an answer that can't change that.
2. Only what a list says of who was asked about counts: no answer outside 127.0.0.0/8, and nothing
   that it says of who asks (`codes`).
3. Nothing is done on the word of a list that hasn't been seen to list what it must and not to list
   what it may not, lately (`lists`).
4. A list that is silent never counts against the client: the others decide, as long as its answer
   could not have changed the outcome; otherwise `--on-error` does.
5. Exempt clients are not asked about: by default those that are local or have authenticated. An
   allow list is believed about a reverse name only if that leads back to the client.
6. A key in the name of a list is in no reply, header or line of the log.

Questions are asked as soon as their subject is known, all at once; what is in the cache is answered
from there without a task. The formats and the test entries are those of RFC 5782.
"""

from __future__ import annotations

import sys
from itertools import pairwise

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
from smtpd_filters.protocol.decisions import JUNK as MARK
from smtpd_filters.protocol.decisions import PROCEED, Disconnect, Junk, Proceed, Reject
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

from .inquiry import Inquiry, Question
from .options import SITES, old_style
from .reply import Reply
from .score import DISCONNECT, JUNK, NOTHING, Thresholds

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence
    from typing import NoReturn, TypeAlias

    from smtpd_filters.lookups.outcome import Outcome
    from smtpd_filters.message import Headers
    from smtpd_filters.protocol.decisions import Answer
    from smtpd_filters.runtime.pace import Pace
    from smtpd_filters.session import Session

    from .lists import Watch
    from .options import Sites
    from .questions import Asked, Book

    Verdict: TypeAlias = Proceed | Junk | Reject | Disconnect

#: The header field, and the name of the first version's.
FIELD = "X-Spam-DNSBL"
_HANDLERS = {
    "connect": {"connect"},
    "helo": {"helo", "ehlo"},
    "mail-from": {"mail_from"},
    "rcpt-to": {"rcpt_to"},
}
_PHASES = tuple(_HANDLERS)
#: The first phase at which the subject of a kind of list is known.
_KNOWN_AT = {"client": "connect", "rdns": "connect", "helo": "helo", "sender": "mail-from"}
# A look-up of one server asks in two rounds, and waits twice as long in the second.
_SHARES = 3
# What it takes to ask a list whose answer is mostly known, and to wait for one: units of `pace`.
_ASK = 5
_WAIT = 60
# Of `--deadline`.
_OF_DEADLINE = 0.9
#: Seconds for which a client that nothing could be found out about isn't asked about again.
_SPARE = 30.0


class Known:
    """What was asked in a session about whom, and decided, or why nothing could be.

    `until` is when (by the loop's clock) that is to be tried again.
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

    class Options(Settings):
        """Which lists are asked about what, and what is done about the sum of their answers."""

        client = option(
            SITES,
            default=None,
            help="A list to ask about the client's address, IPv4 and IPv6: its zone, which answers "
            'count behind "=" (all, if left out) and its weight behind "*" (1, if left out; '
            "negative to let clients in), as in zen.example=127.0.0.[2..11;14]*3. Several in "
            "braces, or from a file: a line each.",
        )
        rdns = option(
            SITES,
            default=None,
            help="A list of names to ask about the client's reverse name. A negative weight counts "
            "only if the name leads back to the client.",
        )
        helo = option(
            SITES,
            default=None,
            help="A list of names to ask about the name that the client gives in HELO or EHLO.",
        )
        sender = option(
            SITES,
            default=None,
            help="A list of names to ask about the domain of the sender's address.",
        )
        junk_at = option(
            INTEGER(low=1),
            default=None,
            help="The score from which on messages are marked as junk.",
        )
        reject_at = option(
            INTEGER(low=1),
            default=None,
            help="The score from which on clients are refused. At connect that disconnects them "
            "as well, since smtpd would go on otherwise.",
        )
        disconnect_at = option(
            INTEGER(low=1),
            default=None,
            help="The score from which on clients are refused and disconnected; 1 if no score is "
            "given for anything.",
        )
        mark = option(
            SWITCH,
            default=False,
            flags=("-m",),
            help="Mark, and refuse nobody: the same as --junk-at 1 --header.",
        )
        phase = option(
            choice(*_PHASES),
            default=None,
            help="When to decide; by default as soon as everything that is asked about is known. "
            "Clients that authenticate are exempt from mail-from on; before that nobody has "
            "authenticated yet.",
        )
        exempt = exempt_option("local", "authenticated", what="Clients that no list is asked about")
        allow = allow_option()
        reply = option(
            TEXT,
            default="",
            help="The reply of a refusal, with its codes and with places: %{subject} is the "
            "address or name that is listed, %{client} the client's address, %{zone} the list, "
            '%{text} what the list says about it, %{score} the sum. By default "550 5.7.1 '
            '%{subject} is listed by %{zone}; %{text}" (554 at connect).',
        )
        header = option(
            SWITCH,
            default=False,
            help=f"Add a field {FIELD} to messages for each list that has an entry, and remove "
            "such fields that come with them.",
        )
        untested = option(
            LIST(TEXT),
            default=(),
            help="The zone of a list without entries for testing (RFC 5782 section 5), which is "
            "asked without a test.",
        )
        key = option(
            LIST(TEXT),
            default=(),
            secret=True,
            help="A part of the name of a list that is never to be shown. The keys of Spamhaus and "
            "Abusix are known, and any label of 16 or more letters and digits.",
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

    _exempt: Exempt
    _book: Book
    _watch: Watch
    _pace: Callable[[], Pace]
    _kinds: frozenset[str] = frozenset(_KNOWN_AT)
    _phase: str = ""  # until it is set up
    _thresholds: Thresholds
    _reply: Reply

    @property
    def longest(self) -> float:
        """Seconds for a look-up altogether."""
        # Earlier than `--deadline`, behind which a header that was taken away would be put back.
        return min(self.settings.timeout, _OF_DEADLINE * self.deadline)

    def setup(self) -> Registration:
        """Make the lists."""
        self._exempt = self.settings.exempt.also(self.settings.allow)
        given: dict[str, Sites] = {
            kind: sites for kind in _KNOWN_AT if (sites := getattr(self.settings, kind)) is not None
        }
        if not any(any(sites) for sites in given.values()):
            raise ConfigError("no list is given: --client, --rdns, --helo or --sender is needed")
        if not all(key.strip(".") for key in self.settings.key):
            raise ConfigError("--key: expected a part of the name of a list, not nothing")
        self._set_thresholds(given.values())
        self._set_phase(given)
        self._get_ready(given)
        return self._registration()

    def _set_thresholds(self, given: Iterable[Sites]) -> None:
        settings = self.settings
        junk, reject, disconnect = settings.junk_at, settings.reject_at, settings.disconnect_at
        if settings.mark:
            if junk or reject or disconnect:
                raise ConfigError("-m: not with --junk-at, --reject-at or --disconnect-at")
            junk = 1
        elif not (junk or reject or disconnect):
            disconnect = 1
        steps = (("--junk-at", junk), ("--reject-at", reject), ("--disconnect-at", disconnect))
        named = [(flag, score) for flag, score in steps if score]
        for (milder, low), (severer, high) in pairwise(named):
            if low >= high:
                raise ConfigError(f"{milder} {low}: is never done with {severer} {high}")
        self._thresholds = Thresholds(junk, reject, disconnect)
        self._shows = settings.header or settings.mark
        self._check_reach(named, given)
        if settings.reply and not (reject or disconnect):
            self.log.event("--reply has no effect: no score refuses")

    def _check_reach(self, named: Sequence[tuple[str, int]], given: Iterable[Sites]) -> None:
        """Say which of the thresholds, in rising order, no client can reach.

        That is a ConfigError if nothing can ever be done, unless the field is: to ask for that
        alone, one names a score beyond reach.
        """
        lists = list(given)
        most = sum(max(site.weight, 0) for sites in lists for site in sites)
        beyond = [f"{flag} {score}" for flag, score in named if score > most]
        if not beyond or self._shows:
            return
        said = f"{beyond[0]}: is never reached, the weights of the lists make {most} at the most"
        asked = {"junk_at", "reject_at", "disconnect_at"} & self.settings.given
        if len(beyond) < len(named) or not asked or any(sites.is_file for sites in lists):
            # More may come with the files; to let some in is all that some lists are for.
            self.log.event(said)
        else:
            raise ConfigError(said)

    def _set_phase(self, kinds: Iterable[str]) -> None:
        self._kinds = frozenset(kinds)
        known = max(_PHASES.index(_KNOWN_AT[kind]) for kind in self._kinds)
        self._phase = self.settings.phase or _PHASES[known]
        at = _PHASES.index(self._phase)
        for kind in kinds:
            if _PHASES.index(_KNOWN_AT[kind]) > at:
                raise ConfigError(f"--{kind}: what it asks about isn't known at {self._phase} yet")
        if at <= _PHASES.index("helo"):
            self.settings.exempt.note_phase(self._phase, self.log)

    def _registration(self) -> Registration:
        at = _PHASES.index(self._phase)
        handlers = set(_HANDLERS[self._phase])
        if self._shows:
            handlers.add("headers")
        # What will be needed is looked up ahead.
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
        return Registration(handlers, events=events, reports=reports, junk=junk)

    def _get_ready(self, given: dict[str, Sites]) -> None:
        """Get ready to look up; who only wants to know the flags doesn't wait for these imports."""
        from smtpd_filters.runtime.pace import pace

        from .lists import Watch
        from .questions import Book

        settings = self.settings
        self._pace = pace
        self._book = Book(given, settings.key, settings.untested)
        self._watch = Watch(self._book.asked, self.dns, self.log)
        for sites in given.values():
            sites.renewed = self._renew
        # RFC 5321 section 3.1: "A 554 response MAY be given in the initial connection opening
        # message instead of the 220".
        code = 554 if self._phase == "connect" else 550
        self._reply = Reply(settings.reply, code, self.dns)

    def _renew(self) -> None:
        """Take in lists from a file that was read again."""
        self._book.renew()
        self._watch.replace(self._book.asked)

    async def close(self) -> None:
        """Stop testing the lists."""
        self._watch.close()

    async def refresh(self) -> None:
        """Test the lists."""
        await self._watch.test(remind=True)

    def link_connect(self, session: Session) -> None:
        """Start to look the client up."""
        address = known_address(session)
        if address and not self._exempt.reason(session):
            self._start(self._book.about_client(session, address))

    def link_identify(self, session: Session) -> None:
        """Start to look its name up."""
        if not self._exempt.reason(session):
            self._start(self._book.about_name("helo", session.identity or ""))

    def _start(self, asked: Iterable[Asked]) -> None:
        for _, _, name, _ in asked:
            self.dns.start(name, "A")

    # -- phases ----------------------------------------------------------------------------

    async def connect(self, session: Session) -> Answer:
        """Decide before smtpd greets the client."""
        return await self._judge(session)

    async def helo(self, session: Session, identity: str) -> Answer:
        """Decide when the client greets."""
        return await self._judge(session, identity)

    ehlo = helo

    async def mail_from(self, session: Session, address: str) -> Answer:
        """Decide for each message, or start to look its sender up if that is early."""
        if self._phase == "rcpt-to":
            if not self._exempt.reason(session):
                self._start(self._book.about_sender(address))
            return PROCEED
        return await self._judge(session, sender=address)

    async def rcpt_to(self, session: Session, _address: str) -> Answer:
        """Decide for each recipient; the first one's decision holds for all of a message."""
        return await self._judge(session)

    async def headers(self, session: Session, headers: Headers) -> Proceed:
        """Add a field for each list that has an entry."""
        if why := self._exempt.reason(session):
            return exempted(self, why)
        headers.remove(FIELD)
        known: Known | None = session.scratch.get(self)
        if known is None:
            return PROCEED
        inquiry = known.inquiry
        if inquiry.out:
            # The lists that could not change the decision, which were asked long ago.
            await self._pace().admit(_WAIT * len(inquiry.out))
            await self._answers(inquiry)
        for listing in reversed(inquiry.listings):
            headers.prepend(FIELD, f"Listed at {listing}")
        return PROCEED

    def _subjects(
        self, session: Session, identity: str | None, sender: str | None
    ) -> tuple[str, str]:
        """Give the HELO name and the sender that lists are asked about; "" for what they are not.

        The arguments are what the client says at this phase; None for what it has said before.
        Raises UnavailableError for what smtpd has not reported.
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
        """Decide about a client, at once if all is known."""
        if why := self._exempt.reason(session):
            return exempted(self, why)
        address = self._address(session)
        key = self._subjects(session, identity, sender)
        # At connect nothing was decided before.
        known: Known | None = None if self._phase == "connect" else session.scratch.get(self)
        if known is not None and known.key == key:
            if not known.cause:
                return known.decision
            if self._now() < known.until:
                raise UnavailableError(known.cause, DNS_FAILURE)
        if self._watch.done and self._pace().take(_ASK * self._book.size):
            asked = self._book.about(session, address, *key)
            if self.dns.missing([name for _, _, name, _ in asked], "A"):
                # Which is what is mostly so.
                for each in asked:
                    each[0].silences = 0
                if known is not None:
                    del session.scratch[self]
                return PROCEED
            inquiry = self._ask(asked)
            if inquiry.over and self._is_ready(inquiry):
                return self._decide(session, key, inquiry)
        return await self._wait(session, key)

    def _address(self, session: Session) -> str:
        """Give the address that lists are asked about; "" where none is needed, or there is none.

        Raises UnavailableError if it is needed and smtpd has not reported it.
        """
        about_client = self._kinds & {"client", "rdns"}
        return (client_address(session) if about_client else known_address(session)) or ""

    def _now(self) -> float:
        import asyncio

        return asyncio.get_running_loop().time()

    def _ask(self, asked: Iterable[Asked]) -> Inquiry:
        """Take in what is known already."""
        inquiry = Inquiry([Question(*each) for each in asked], self._thresholds)
        for question in list(inquiry.out):
            outcome = self.dns.known(question.name, "A")
            if outcome is not None:
                self._take(inquiry, question, outcome)
        return inquiry

    def _take(self, inquiry: Inquiry, question: Question, outcome: Outcome[str]) -> None:
        if inquiry.take(question, outcome).odd:
            self._watch.suspect()

    def _is_ready(self, inquiry: Inquiry) -> bool:
        """Whether what will be done can be done without asking for more."""
        level = inquiry.tally.level
        if level == NOTHING:
            return True
        if not self._watch.fresh:
            return False
        return level == JUNK or self._reply.is_known(inquiry)

    async def _wait(self, session: Session, key: tuple[str, str]) -> Verdict:
        while not self._watch.done:
            await self._watch.test()
        inquiry = await self._hear(session, key)
        if inquiry.tally.level != NOTHING and not self._watch.fresh:
            # Law 3.  A list that is off behind this is not asked the second time.
            await self._watch.test()
            inquiry = await self._hear(session, key)
            if inquiry.tally.level != NOTHING and not self._watch.fresh:
                self._give_up(session, key, inquiry, "the lists can't be tested")
        if inquiry.tally.level > JUNK and not self._reply.is_known(inquiry):
            await self._reply.look_up(inquiry)
        return self._decide(session, key, inquiry)

    async def _hear(self, session: Session, key: tuple[str, str]) -> Inquiry:
        """Ask, and wait until no answer that is still out can change what will be done."""
        await self._pace().admit(_WAIT * self._book.size)
        inquiry = self._ask(self._book.about(session, self._address(session), *key))
        if not inquiry.over:
            await self._answers(inquiry, early=True)
        return inquiry

    async def _answers(self, inquiry: Inquiry, *, early: bool = False) -> None:
        """Wait for the answers that are out, with `early` only for those that matter."""
        import asyncio

        waiting: dict[asyncio.Future[Outcome[str]], Question] = {
            asyncio.ensure_future(self.dns.query(question.name, "A")): question
            for question in inquiry.out
        }
        try:
            while waiting and not (early and inquiry.over):
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for answered in done:
                    self._take(inquiry, waiting.pop(answered), answered.result())
        finally:
            # The look-ups themselves go on, for the cache.
            for future in waiting:
                future.cancel()

    def _decide(self, session: Session, key: tuple[str, str], inquiry: Inquiry) -> Verdict:
        """Make the decision, and keep it for the rest of the message or session."""
        if not inquiry.tally.certain:
            self._give_up(session, key, inquiry, "; ".join(inquiry.troubles))
        decision = self._done(session, inquiry)
        # One that proceeds gives its reason once.
        kept = PROCEED if type(decision) is Proceed else decision
        session.scratch[self] = Known(key, inquiry, kept)
        return decision

    def _give_up(
        self, session: Session, key: tuple[str, str], inquiry: Inquiry, cause: str
    ) -> NoReturn:
        """Leave it to `--on-error`, and don't make the next recipient wait for the same."""
        session.scratch[self] = Known(key, inquiry, cause=cause, until=self._now() + _SPARE)
        raise UnavailableError(cause, DNS_FAILURE)

    def _done(self, session: Session, inquiry: Inquiry) -> Verdict:
        level = inquiry.tally.level
        if level == NOTHING:
            return PROCEED.because(inquiry.reason) if inquiry.tally.score > 0 else PROCEED
        if level == JUNK:
            return MARK.because(inquiry.reason)
        kind = Disconnect if level == DISCONNECT else Reject
        return kind(self._reply.of(inquiry, self._address(session))).because(inquiry.reason)


def main(argv: Sequence[str] | None = None) -> int:
    """The executable filter-dnsbl."""
    return run(Dnsbl, argv=old_style(sys.argv[1:] if argv is None else argv, Dnsbl))
