"""filter-clamav: have messages scanned by ClamAV's daemon, and refuse those with a virus.

`protocol` has clamd's commands and the parser of its replies, `exchange` sends a message over a
connection of `smtpd_filters.lookups.stream`, and `quarantine` keeps copies.

Invariants
----------
*Never unscanned by accident*: a message that can't be scanned is refused temporarily, unless the
operator chose otherwise: `--on-error` decides about every failure between here and the daemon, and
about each of its replies that isn't a verdict; `--larger` about messages above `--max-size`.
*As delivered*: a message is scanned whole, header included, as it will be delivered
(`smtpd_filters.scanning.intake`).
*No forged result*: X-Virus fields that a client sent are removed from mail that passes, also from
mail that could not be scanned.
"""

from __future__ import annotations

import sys

from smtpd_filters.checks.exemptions import exempt_option, only_option
from smtpd_filters.errors import ConfigError, UnavailableError, uncreated
from smtpd_filters.filter import Filter
from smtpd_filters.lookups.dns.setting import note_timeout
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.lookups.stream import ADDRESS, Address
from smtpd_filters.main import run
from smtpd_filters.message.disguise import Name
from smtpd_filters.message.spool import SpoolError
from smtpd_filters.protocol.decisions import JUNK, PROCEED, Junk, Proceed, Reject
from smtpd_filters.scanning.intake import Content, Intake
from smtpd_filters.scanning.options import (
    connections_option,
    larger_option,
    max_size_option,
    timeout_option,
)
from smtpd_filters.scanning.outcomes import refusal
from smtpd_filters.scanning.servers import StreamSetting, client_of
from smtpd_filters.settings import LIST, PATH, SIZE, Settings, choice, option, table
from smtpd_filters.tables import RegexTable

from .quarantine import Quarantine, about

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.filter import OnError
    from smtpd_filters.lookups.stream.connection import Connection
    from smtpd_filters.message import Headers, Message
    from smtpd_filters.sandbox import Needs
    from smtpd_filters.scanning.edits import Edits
    from smtpd_filters.session import Session

#: clamd's port, and where the filter of this name that is written in Go looks for it.
PORT = 3310
#: What heuristics and the signatures of unwanted applications are called: they may be wrong about
#: harmless mail, and one of them only says that a limit of the scanner was exceeded.
SUSPICIOUS = r"{ ^heuristics\., ^pua\. }"
#: The fields that state results, and the beginning of the names of all such fields.
SCANNED, STATUS = "X-Virus-Scanned", "X-Virus-Status"
FIELDS = Name("X-Virus-", prefix=True)
# The texts are those of the filter of this name that is written in Go.
FOUND, FAILED = "Virus found", "4.7.1"


async def _ping(connection: Connection) -> None:
    from .exchange import ping  # imports asyncio

    await ping(connection)


class Clamav(Filter):
    """Have messages scanned by ClamAV's daemon, and refuse those with a virus."""

    name = "clamav"
    on_error: OnError = "tempfail"  # Never unscanned by accident
    # clamd's MaxScanTime is 2 minutes; RFC 5321 section 4.5.3.2.6: a client waits 10 minutes for
    # the reply to its final dot, but smtpd only 5.
    deadline = 150.0
    scans = True

    class Options(Settings):
        """The daemons, the messages to scan, and what becomes of a finding."""

        clamd = option(
            LIST(ADDRESS(PORT)),
            default=(Address("localhost", PORT),),
            help="The address of clamd: HOST:PORT, or the path of its socket. If given several "
            "times, the next daemon is asked when the ones before it fail; a daemon that failed "
            "three times in a row is passed over for 30 seconds.",
        )
        action = option(
            choice("reject", "junk", "header"),
            default="reject",
            help="What to do with a message in which a signature matches: refuse it, mark it as "
            "junk, or only name the signature in a header field.",
        )
        suspicious = option(
            table(RegexTable),
            default=None,
            help="Regular expressions for the names of signatures that only make a message "
            "suspicious, in place of the built-in ones: those of heuristics and of potentially "
            "unwanted applications, Heuristics.* and PUA.*.",
        )
        suspicious_action = option(
            choice("accept", "header", "junk", "reject"),
            default="junk",
            help="What to do with a suspicious message: the same as --action, or accept it.",
        )
        exempt = exempt_option(what="Clients whose mail is not scanned")
        only = only_option()
        timeout = timeout_option(60.0, "clamd's own limit, MaxScanTime, is 2 minutes.")
        connections = connections_option(10)
        max_size = max_size_option(
            25 << 20,
            "It should not be above the daemon's own limit, StreamMaxLength, which is 25M in "
            "Debian: scanning a message above that limit fails.",
        )
        larger = larger_option("reject")
        headers = option(
            choice("none", "found", "all"),
            default="found",
            help="The messages that get the header fields X-Virus-Scanned and X-Virus-Status: "
            "none, those in which a signature matches, or all.",
        )
        quarantine = option(
            PATH,
            default=None,
            help="A directory for copies of refused messages, in the form of a maildir, which "
            "smtpd's user must be able to write to.",
        )
        quarantine_size = option(
            SIZE(low=1 << 20),
            default=100 << 20,
            help="The size of this directory above which no further copies are made.",
        )

    settings: Options

    #: The addresses of the daemons.
    servers: tuple[Address, ...]
    _client = StreamSetting(ping=_ping, kind="clamd")
    _intake: Intake
    _quarantine: Quarantine | None
    _suspicious: RegexTable

    def setup(self) -> None:
        """Prepare the intake and the quarantine."""
        settings = self.settings
        if not settings.clamd:
            raise ConfigError("--clamd: at least one daemon is needed")
        self.servers = tuple(dict.fromkeys(settings.clamd))
        self._intake = Intake(
            settings.exempt.only(settings.only),
            max_size=settings.max_size,
            larger=settings.larger,
            own=(FIELDS,),
        )
        self._suspicious = settings.suspicious or RegexTable.load(SUSPICIOUS)
        self._quarantine = None
        if settings.quarantine is not None:
            try:
                self._quarantine = Quarantine(settings.quarantine, settings.quarantine_size)
            except ConfigError as error:
                raise ConfigError(f"--quarantine: {error}") from None
        elif "quarantine_size" in settings.given:
            raise ConfigError("--quarantine-size requires --quarantine")
        from . import exchange  # noqa: F401  # at start, not at the first message

        note_timeout(self)

    def needs(self, needs: Needs) -> None:
        """Declare the quarantine."""
        if self._quarantine is not None:
            needs.to_write(self._quarantine.path)

    async def message(self, session: Session, message: Message) -> Proceed | Junk | Reject:
        """Scan the message, unless its client is exempt."""
        from .exchange import scan  # loaded by `setup`

        while True:
            content = await self._intake.content(self, session, message)
            if not isinstance(content, Content):
                return content
            trouble: list[str] = []
            found = await self._client.ask(
                scan(content), trouble=trouble, client=client_of(session)
            )
            # Fields of the filters in front change no verdict about a virus.
            if await content.turn(headers=False):
                break
        if isinstance(found, Unavailable):
            raise UnavailableError(found.cause, FAILED)
        edits = await self._intake.remove_forged(message)
        after = f", after {trouble[0]}" if trouble else ""
        if not found:
            if self.settings.headers == "all":
                await self._state(edits, session, "Clean")
            return PROCEED.because(f"clean{after}") if after or self.log.verbose else PROCEED
        return await self._found(session, content, edits, found, after)

    async def _found(
        self, session: Session, content: Content, edits: Edits, name: str, after: str
    ) -> Proceed | Junk | Reject:
        settings = self.settings
        suspicious = self._suspicious.match(name)
        outcome = settings.suspicious_action if suspicious else settings.action
        reason = f"{'suspicious' if suspicious else 'virus'} {name}{after}"
        if outcome == "reject":
            if self._quarantine is not None and not self.dry_run:
                reason += await self._keep(session, content, name)
            return refusal(outcome, f"{FOUND}: {name}").because(reason)
        if outcome != "accept" and settings.headers != "none":
            await self._state(edits, session, f"Infected ({name})")
        return (JUNK if outcome == "junk" else PROCEED).because(reason)

    def remove_forged(self, session: Session, headers: Headers) -> None:
        """Do so for clients that aren't exempt."""
        if not self._intake.exempt.known_reason(session):
            FIELDS.remove_foreign(headers)

    async def _state(self, edits: Edits, session: Session, status: str) -> None:
        """Add the fields with the result."""
        await edits.settle()
        await edits.add_on_top(STATUS, status)
        here = f" at {session.server_name}" if session.server_name else ""
        await edits.add_on_top(SCANNED, f"ClamAV using filter-clamav{here}")

    async def _keep(self, session: Session, content: Content, name: str) -> str:
        """Keep a copy of a refused message; return what the log says about it."""
        assert self._quarantine is not None  # noqa: S101  # the caller's condition
        try:
            kept = await self._quarantine.keep(about(session, name), content.size, content.chunks())
        except (OSError, SpoolError) as error:
            cause = uncreated(error) if isinstance(error, OSError) else str(error)
            self.log.limited("quarantine", "no copy kept", session.id, cause=cause)
            return ", no copy kept"
        return f", kept as {kept}" if kept else ", no copy kept: the quarantine is full"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-clamav."""
    if argv is None:
        # Where the process has its words from: `--supervised` starts it again with them.
        given = sys.argv[1:]
        words = sys.argv[1:] = _translated(given)
        sys.orig_argv[len(sys.orig_argv) - len(given) :] = words
        return run(Clamav, argv=words)
    return run(Clamav, argv=_translated(argv))


def _translated(argv: Sequence[str]) -> list[str]:
    """Return the flags for the command line of the filter of this name that is written in Go.

    It takes the word "version", or the address of clamd; here flags may follow.
    """
    words = list(argv)
    if words == ["version"]:
        return ["--version"]
    if words and not words[0].startswith("-"):
        return ["--clamd", *words]
    return words
