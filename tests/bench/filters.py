"""The filters for the benchmark, as small as possible, to show the cost of the framework."""

from __future__ import annotations

from time import process_time

from smtpd_filters.chain import Chain
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.main import run
from smtpd_filters.protocol.decisions import PROCEED
from smtpd_filters.runtime import serve
from smtpd_filters.runtime.log import Log
from smtpd_filters.runtime.watchdog import Watchdog

TYPE_CHECKING = False  # the import of typing would count as ours
if TYPE_CHECKING:
    from smtpd_filters.message import Headers, Message
    from smtpd_filters.protocol.decisions import Proceed
    from smtpd_filters.session import Session


#: Where a server of the benchmark sees the journal's socket.
SOCKET = "/mnt/socket"


class AddHeader(Filter):
    """Add a field to the header and pass the body."""

    name = "add-header"

    def headers(self, _session: Session, headers: Headers) -> Proceed:
        headers.prepend("X-Bench", "passed")
        return PROCEED


class SevenPhases(Filter):
    """Proceed in seven phases, and pass the message, as the practical limit does."""

    name = "seven-phases"

    def setup(self) -> Registration:
        return Registration(reports=(), data=True)

    def connect(self, _session: Session) -> Proceed:
        return PROCEED

    def ehlo(self, _session: Session, _identity: str, /) -> Proceed:
        return PROCEED

    def mail_from(self, _session: Session, _address: str, /) -> Proceed:
        return PROCEED

    def rcpt_to(self, _session: Session, _address: str, /) -> Proceed:
        return PROCEED

    def data(self, _session: Session) -> Proceed:
        return PROCEED

    def commit(self, _session: Session) -> Proceed:
        return PROCEED

    def quit(self, _session: Session) -> Proceed:
        return PROCEED


class Decisions(SevenPhases):
    """Proceed in seven phases, without messages."""

    name = "decisions"

    def setup(self) -> Registration:
        return Registration(reports=())


class SevenLater(SevenPhases):
    """The same on asyncio, because of a handler that may wait and is never called."""

    name = "seven-later"

    async def noop(self, _session: Session, _text: str, /) -> Proceed:
        return PROCEED


class One(SevenPhases):
    """One of six in a process, each in the phases of the practical limit."""

    name = "one"


class Two(SevenPhases):
    """Another one like it."""

    name = "two"


class Three(SevenPhases):
    """Another one like it."""

    name = "three"


class Four(SevenPhases):
    """Another one like it."""

    name = "four"


class Five(SevenPhases):
    """Another one like it."""

    name = "five"


class Six(SevenPhases):
    """Another one like it."""

    name = "six"


class SpendsAMillisecond(Filter):
    """Spend 1 ms of processor time in one phase of each session, as a signature would."""

    name = "spends-a-millisecond"

    def mail_from(self, _session: Session, _address: str, /) -> Proceed:
        end = process_time() + 0.001
        while process_time() < end:
            pass
        return PROCEED


class Whole(Filter):
    """Register for whole messages."""

    name = "whole"

    def message(self, _session: Session, _message: Message) -> Proceed:
        return PROCEED


class Waiting(Filter):
    """Decide in a coroutine that never suspends."""

    name = "waiting"

    async def mail_from(self, _session: Session, _address: str, /) -> Proceed:
        return PROCEED


class First(Filter):
    """Proceed in the phases of a policy on senders and recipients."""

    name = "first"

    def connect(self, _session: Session) -> Proceed:
        return PROCEED

    def mail_from(self, _session: Session, _address: str, /) -> Proceed:
        return PROCEED

    def rcpt_to(self, _session: Session, _address: str, /) -> Proceed:
        return PROCEED

    def commit(self, _session: Session) -> Proceed:
        return PROCEED


class Second(First):
    """Another one like it."""

    name = "second"


class Third(First):
    """Another one like it."""

    name = "third"


class Fourth(First):
    """Another one like it."""

    name = "fourth"


def add_header() -> int:
    """Run `AddHeader`, as an executable's entry point."""
    return run(AddHeader)


def seven_phases() -> int:
    """Run `SevenPhases`."""
    return run(SevenPhases)


def spends_a_millisecond() -> int:
    """Run `SpendsAMillisecond`."""
    return run(SpendsAMillisecond)


def seven_later() -> int:
    """Run `SevenLater`."""
    return run(SevenLater)


def whole() -> int:
    """Run `Whole`."""
    return run(Whole)


def waiting() -> int:
    """Run `Waiting`."""
    return run(Waiting)


def decisions() -> int:
    """Run `Decisions`."""
    return run(Decisions)


def first() -> int:
    """Run `First`."""
    return run(First)


def second() -> int:
    """Run `Second`."""
    return run(Second)


def third() -> int:
    """Run `Third`."""
    return run(Third)


def fourth() -> int:
    """Run `Fourth`."""
    return run(Fourth)


def four() -> int:
    """Run the four of them as a chain in one process."""
    return _chain(First, Second, Third, Fourth)


def six() -> int:
    """Run the six with seven phases as a chain in one process."""
    return _chain(One, Two, Three, Four, Five, Six)


def six_told() -> int:
    """Do as `six`, with a journal."""
    return _chain(One, Two, Three, Four, Five, Six, journal=SOCKET)


def _chain(*kinds: type[Filter], journal: str = "") -> int:
    log, watchdog = Log(verbose=False), Watchdog(5.0)
    chain = Chain([(kind(), kind.on_error, kind.deadline) for kind in kinds], log, watchdog)
    if journal:
        from smtpd_filters.journal.collector import Collector
        from smtpd_filters.journal.sender import Sender

        chain.keep_journal(Collector(Sender(journal, log), "filter-chain", log))
    return serve(chain, log, watchdog)
