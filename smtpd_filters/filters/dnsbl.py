"""filter-dnsbl: ask DNS lists about clients, and act on the sum of what they say.

The law:

1. The score is the sum of the weights of all entries that match (`_dnsbl_score`); thresholds say
   what is done. Nobody waits for an answer that can't change that.
2. Only what a list says of who was asked about counts: no answer outside 127.0.0.0/8, and nothing
   that it says of who asks (`_dnsbl_codes`).
3. Nothing is done on the word of a list that hasn't been seen to list what it must and not to list
   what it may not, lately (`_dnsbl_lists`).
4. A list that doesn't answer is nobody's guilt: what is certain without it is done, and where it
   could have made the difference `--on-error` decides.
5. Who is local, has authenticated or is in `--allow` is not asked about. An allow list is believed
   about a reverse name only if that leads back to the client.
6. A key in the name of a list is in no reply, header or line of the log.

Questions are asked as soon as their subject is known, all at once; what is in the cache is answered
from there without a task. The formats and the test entries are those of RFC 5782.
"""

from __future__ import annotations

import sys
from itertools import pairwise

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filter import Filter
from smtpd_filters.filters import _dnsbl_codes as codes
from smtpd_filters.filters._asking import make_resolver, nameserver_option
from smtpd_filters.filters._checks import DNS_FAILURE, exempt
from smtpd_filters.filters._client import allow_option
from smtpd_filters.filters._dnsbl_inquiry import Inquiry, Question
from smtpd_filters.filters._dnsbl_options import SITES, old_style
from smtpd_filters.filters._dnsbl_reply import Template
from smtpd_filters.filters._dnsbl_score import DISCONNECT, JUNK, NOTHING, Thresholds
from smtpd_filters.lookups import names
from smtpd_filters.program import run
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Iterator, Sequence
    from typing import NoReturn, TypeAlias

    from smtpd_filters.filters._dnsbl_lists import List, Watch
    from smtpd_filters.filters._dnsbl_sites import Site
    from smtpd_filters.lookups.dns import Resolver
    from smtpd_filters.lookups.outcome import NotFound, Outcome
    from smtpd_filters.message import Headers
    from smtpd_filters.session import Session

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
_REPLY = "%{subject} is listed by %{zone}"
#: Seconds for which a refusal waits for its text.
_TEXT_TIME = 2.0
# A look-up of one server asks in two rounds, and waits twice as long in the second.
_SHARES = 3
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
            default=(),
            help="A list to ask about the client's address, IPv4 and IPv6: its zone, which answers "
            'count behind "=" (all, if left out) and its weight behind "*" (1, if left out; '
            "negative to let clients in), as in zen.example=127.0.0.[2..11;14]*3. Several in "
            "braces, or from a file: a line each.",
        )
        rdns = option(
            SITES,
            default=(),
            help="A list of names to ask about the client's reverse name. A negative weight counts "
            "only if the name leads back to the client.",
        )
        helo = option(
            SITES,
            default=(),
            help="A list of names to ask about the name that the client gives in HELO or EHLO.",
        )
        sender = option(
            SITES,
            default=(),
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
            "Clients that authenticate are spared from mail-from on; before that nobody has "
            "authenticated yet.",
        )
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
        nameserver = nameserver_option("Most lists refuse public ones.")
        timeout = option(
            SECONDS(low=0.01, high=60),
            default=5.0,
            help="How long to wait for the lists altogether. One that hasn't answered by then is "
            "done without, or --on-error decides if it could have made the difference.",
        )

    settings: Options

    _resolver: Resolver
    _watch: Watch
    _not_found: type[NotFound]
    _lists: dict[str, list[List]]
    _phase: str = ""  # until it is set up
    _thresholds: Thresholds
    _template: Template
    _bare: Template

    def setup(self) -> None:
        """Make the lists, and get a resolver ready."""
        settings = self.settings
        given = {kind: getattr(settings, kind) for kind in _KNOWN_AT}
        if not any(given.values()):
            raise ConfigError("no list is given: --client, --rdns, --helo or --sender is needed")
        self._set_thresholds()
        self._set_phase([kind for kind, sites in given.items() if sites])
        code = 554 if self._phase == "connect" else 550
        # RFC 5321 section 3.1: "A 554 response MAY be given in the initial connection opening
        # message instead of the 220".  X.7.1 is "Delivery not authorized, message refused".
        self._bare = Template(f"{code} 5.7.1 {_REPLY}")
        self._template = Template(settings.reply or f"{code} 5.7.1 {_REPLY}; %{{text}}")
        self._ask_ahead()

    def _set_thresholds(self) -> None:
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
        self.marks = junk is not None
        self._shows = settings.header or settings.mark

    def _set_phase(self, kinds: list[str]) -> None:
        first = max((_KNOWN_AT[kind] for kind in kinds), key=_PHASES.index)
        self._phase = self.settings.phase or first
        for kind in kinds:
            if _PHASES.index(_KNOWN_AT[kind]) > _PHASES.index(self._phase):
                raise ConfigError(f"--{kind}: what it asks about isn't known at {self._phase} yet")
        self.phases = set(_HANDLERS[self._phase])
        if self._shows:
            self.phases.add("headers")

    def _ask_ahead(self) -> None:
        """Get ready to look up; who only wants to know the flags doesn't wait for these imports."""
        from smtpd_filters.filters._dnsbl_lists import List, Watch
        from smtpd_filters.lookups.outcome import NotFound
        from smtpd_filters.runtime.log import Log

        settings = self.settings
        self._not_found = NotFound
        # Earlier than `--deadline`, behind which a header that was taken away would be put back.
        longest = min(settings.timeout, _OF_DEADLINE * self.deadline)
        self._resolver = make_resolver(settings.nameserver, longest / _SHARES, longest)
        keys = codes.labels_of(settings.key)
        untested = {zone.lower().rstrip(".") for zone in settings.untested}
        self._lists = {}
        asked: list[tuple[List, str]] = []
        for kind in _KNOWN_AT:
            sites: dict[str, list[Site]] = {}
            for site in getattr(settings, kind):
                sites.setdefault(site.zone, []).append(site)
            made = self._lists[kind] = [List(zone, of, keys) for zone, of in sites.items()]
            for each in made:
                each.tested = untested.isdisjoint({each.zone, each.shown})
                kinds = (codes.V4, codes.V6) if kind == "client" else (codes.NAME,)
                asked += [(each, about) for about in kinds]
        if not all(any(key in each.zone for each, _ in asked) for key in keys):
            # One that is misspelt would be shown.
            raise ConfigError("--key: one of them is in the name of no list")
        self._watch = Watch(asked, self._resolver, Log())

    def required_reports(self) -> frozenset[str]:
        """Ask who has authenticated, and for what is asked about after it was said."""
        if not self._phase:
            return frozenset({"link-auth", "link-identify", "tx-begin"})
        reports = {"link-auth"}
        if self._lists["helo"]:
            reports.add("link-identify")
        if self._lists["sender"] and self._phase == "rcpt-to":
            reports.add("tx-begin")
        return frozenset(reports)

    async def close(self) -> None:
        """End what is being looked up."""
        self._watch.close()
        await self._resolver.aclose()

    async def refresh(self) -> None:
        """Test the lists."""
        await self._watch.test(remind=True)

    def arrived(self, session: Session) -> None:
        """Start to ask about the client, unless it is decided about in the same breath."""
        if self._phase != "connect" and not exempt(session, self.settings.allow):
            for question in self._about_client(session):
                self._resolver.start(question.name, "A")

    def identified(self, session: Session) -> None:
        """Start to ask about its name."""
        if self._lists["helo"] and not exempt(session, self.settings.allow):
            for question in self._about("helo", session.identity or ""):
                self._resolver.start(question.name, "A")

    # -- phases ----------------------------------------------------------------------------

    def connect(
        self, session: Session
    ) -> Proceed | Junk | Reject | Disconnect | Awaitable[Proceed | Junk | Reject | Disconnect]:
        """Decide before smtpd greets the client."""
        return self._judge(session)

    def helo(
        self, session: Session, identity: str
    ) -> Proceed | Junk | Reject | Disconnect | Awaitable[Proceed | Junk | Reject | Disconnect]:
        """Decide when the client greets."""
        return self._judge(session, identity)

    ehlo = helo

    def mail_from(
        self, session: Session, address: str
    ) -> Proceed | Junk | Reject | Disconnect | Awaitable[Proceed | Junk | Reject | Disconnect]:
        """Decide for each message."""
        return self._judge(session, self._identity(session), address)

    def rcpt_to(
        self, session: Session, _address: str
    ) -> Proceed | Junk | Reject | Disconnect | Awaitable[Proceed | Junk | Reject | Disconnect]:
        """Decide for each recipient; the first one's answer holds for all of a message."""
        tx = session.tx if self._lists["sender"] else None
        return self._judge(session, self._identity(session), (tx and tx.sender) or "")

    def headers(self, session: Session, headers: Headers) -> Proceed | Awaitable[Proceed]:
        """Say in the message which lists have an entry."""
        if exempt(session, self.settings.allow):
            return PROCEED
        headers.remove(FIELD)
        known: Known | None = session.scratch.get(self)
        if known is None:
            return PROCEED
        if known.inquiry.out:
            return self._show_later(headers, known.inquiry)
        return self._show(headers, known.inquiry)

    async def _show_later(self, headers: Headers, inquiry: Inquiry) -> Proceed:
        """Wait for the lists that could not change the decision; they were asked long ago."""
        await self._answers(inquiry)
        return self._show(headers, inquiry)

    def _show(self, headers: Headers, inquiry: Inquiry) -> Proceed:
        for listing in reversed(inquiry.listings):
            headers.prepend(FIELD, f"Listed at {listing}")
        return PROCEED

    def _identity(self, session: Session) -> str:
        return (session.identity or "") if self._lists["helo"] else ""

    # -- what is asked ---------------------------------------------------------------------

    def _questions(self, session: Session, identity: str, sender: str) -> list[Question]:
        """Give all that is to be asked for a decision."""
        questions = list(self._about_client(session))
        if self._lists["helo"]:
            questions += self._about("helo", identity)
        if self._lists["sender"]:
            questions += self._about("sender", sender.rpartition("@")[2])
        return questions

    def _about_client(self, session: Session) -> Iterator[Question]:
        address = session.address
        if self._lists["client"] and address is not None:
            about, reverse, address = _reversed(address)
            for each in self._lists["client"]:
                if not each.is_off(about):
                    yield Question(each, address, f"{reverse}{each.zone}")
        if self._lists["rdns"] and session.rdns:
            yield from self._about("rdns", session.rdns, trusted=session.fcrdns == "pass")

    def _about(self, kind: str, name: str, *, trusted: bool = True) -> Iterator[Question]:
        subject = _domain(name)
        if subject:
            for each in self._lists[kind]:
                if not each.is_off(codes.NAME):
                    yield Question(each, subject, f"{subject}.{each.zone}", trusted=trusted)

    # -- the decision ----------------------------------------------------------------------

    def _judge(
        self, session: Session, identity: str = "", sender: str = ""
    ) -> Verdict | Awaitable[Verdict]:
        """Decide at once if all is known, else give the coroutine that will."""
        if exempt(session, self.settings.allow):
            return PROCEED
        key = identity if self._lists["helo"] else "", sender if self._lists["sender"] else ""
        known: Known | None = session.scratch.get(self)
        if known is not None and known.key == key:
            if not known.cause:
                return known.decision
            if self._now() < known.until:
                raise UnavailableError(known.cause, DNS_FAILURE)
        if self._watch.done:
            questions = self._questions(session, *key)
            if self._is_unknown_to(questions):
                session.scratch.pop(self, None)
                return PROCEED
            inquiry = self._ask(questions)
            if inquiry.over and self._is_ready(inquiry):
                return self._decide(session, key, inquiry)
        return self._wait(session, key)

    def _is_unknown_to(self, questions: Sequence[Question]) -> bool:
        """Whether all lists are known to have no entry, which is what they mostly have."""
        for question in questions:
            if type(self._resolver.known(question.name, "A")) is not self._not_found:
                return False
            question.list.silences = 0
        return True

    def _now(self) -> float:
        import asyncio

        return asyncio.get_running_loop().time()

    def _ask(self, questions: Sequence[Question]) -> Inquiry:
        """Take in what is known already."""
        inquiry = Inquiry(questions, self._thresholds)
        for question in list(inquiry.out):
            outcome = self._resolver.known(question.name, "A")
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
        return level == JUNK or self._text(inquiry) is not None

    def _text(self, inquiry: Inquiry) -> str | None:
        """What the list says of whom it lists; None if that isn't known yet."""
        from smtpd_filters.lookups.outcome import Found

        if not self._template.wants_text:
            return ""
        listing = inquiry.gravest
        outcome = self._resolver.known(listing.question.name, "TXT")
        if outcome is None:
            return None
        text = b" ".join(outcome.records) if isinstance(outcome, Found) else b""
        return codes.redact(text.decode("utf-8", "replace"), listing.question.list.secrets)

    async def _wait(self, session: Session, key: tuple[str, str]) -> Verdict:
        if not self._watch.done:
            await self._watch.test()
        inquiry = await self._hear(session, key)
        if inquiry.tally.level != NOTHING and not self._watch.fresh:
            # Law 3.  A list that is off behind this is not asked the second time.
            await self._watch.test()
            inquiry = await self._hear(session, key)
            if inquiry.tally.level != NOTHING and not self._watch.fresh:
                self._give_up(session, key, inquiry, "the lists can't be tested")
        if inquiry.tally.level > JUNK and self._text(inquiry) is None:
            await self._look_up_text(inquiry)
        return self._decide(session, key, inquiry)

    async def _hear(self, session: Session, key: tuple[str, str]) -> Inquiry:
        """Ask, and wait until no answer that is still out can change what will be done."""
        inquiry = self._ask(self._questions(session, *key))
        if not inquiry.over:
            await self._answers(inquiry, early=True)
        return inquiry

    async def _answers(self, inquiry: Inquiry, *, early: bool = False) -> None:
        """Wait for the answers that are out, with `early` only for those that matter."""
        import asyncio

        waiting: dict[asyncio.Future[Outcome[str]], Question] = {
            asyncio.ensure_future(self._resolver.query(question.name, "A")): question
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

    async def _look_up_text(self, inquiry: Inquiry) -> None:
        import asyncio

        try:
            async with asyncio.timeout(_TEXT_TIME):
                await self._resolver.txt(inquiry.gravest.question.name)
        except TimeoutError:
            pass

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
        text = self._text(inquiry)
        listing = inquiry.gravest
        template = self._template if text or self.settings.reply else self._bare
        told = template.fill(
            {
                "subject": listing.question.subject,
                "client": session.address or "",
                "zone": listing.question.list.shown,
                "text": text or "",
                "score": str(inquiry.tally.score),
            }
        )
        kind = Disconnect if level == DISCONNECT else Reject
        return kind(told).because(inquiry.reason)


def _reversed(address: str) -> tuple[str, str, str]:
    """Give what lists are asked about, an address as they have it with its dot, and as it is."""
    if ":" in address:
        address = names.canonical(address)
    if ":" in address:
        return codes.V6, names.reverse(address, zone=""), address
    return codes.V4, ".".join(reversed(address.split("."))) + ".", address


def _domain(name: str) -> str:
    """Give a name as lists are asked about it; "" for what is none, such as an address."""
    try:
        name = names.domain(name)
    except ValueError:
        return ""
    last = name.rpartition(".")
    # RFC 3696 section 2: a top-level domain isn't all numeric.
    return name if last[1] and not last[2].isdigit() else ""


def main(argv: Sequence[str] | None = None) -> int:
    """The executable filter-dnsbl."""
    return run(Dnsbl, argv=old_style(sys.argv[1:] if argv is None else argv, Dnsbl))


if __name__ == "__main__":
    sys.exit(main())
