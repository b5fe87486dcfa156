"""filter-spamd: scan messages with SpamAssassin's spamd and apply its verdict.

`scan` makes the request and sends it, over the client of `smtpd_filters.lookups.stream`, which
fails over between daemons. `reply` parses the reply, and `edits` applies it to the message.
`thresholds` has the scores from which something is done. The log has the score and rules of each
message.

Invariants
----------
*Never unscanned by accident*: a message that can't be scanned is refused temporarily, unless the
operator chose otherwise: `--on-error` decides about every failure between here and the daemon, and
about a scan that SpamAssassin ended early.
*No forged verdict*: a client's own X-Spam fields are removed, even if the scan fails or the message
is too large for one.
*As delivered*: a message is scanned once, when it is complete, and as it will be delivered
(`smtpd_filters.scanning.intake`).
*Bounded*: memory and work are limited, however many messages are pending and whatever a daemon
replies.
"""

from __future__ import annotations

from smtpd_filters.checks.exemptions import exempt_option, only_option
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.lookups.dns.setting import note_timeout
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.lookups.spamd import PORT
from smtpd_filters.lookups.stream import ADDRESS, Address
from smtpd_filters.main import run
from smtpd_filters.message.disguise import Name
from smtpd_filters.protocol.decisions import JUNK, MARKED, PROCEED, Points
from smtpd_filters.scanning.edits import Edits
from smtpd_filters.scanning.intake import Content, Intake
from smtpd_filters.scanning.options import (
    connections_option,
    larger_option,
    max_size_option,
    timeout_option,
)
from smtpd_filters.scanning.outcomes import refusal
from smtpd_filters.scanning.servers import StreamSetting, client_of
from smtpd_filters.settings import LIST, SWITCH, TEXT, Settings, choice, option

from .thresholds import NEVER, SPAM, THRESHOLD, Threshold, check_order

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.filter import OnError
    from smtpd_filters.lookups.stream.connection import Connection
    from smtpd_filters.message import Headers, Message
    from smtpd_filters.protocol.decisions import Junk, Marked, Proceed, Reject
    from smtpd_filters.session import Session

    from .reply import Reply

#: The beginning of the names of spamd's fields.
FIELDS = Name("X-Spam-", prefix=True)
#: The text of a refusal.
REJECTED = "Spam message rejected"
#: The bounds of `--points`. Rules of SpamAssassin's own lists take or give 100 and 1000 points; a
#: chain that had to expect so much could never refuse before the message.
LEAST, MOST = -10.0, 100.0
#: Rules that are logged.
_LOGGED = 50


async def _ping(connection: Connection) -> None:
    from .scan import ping  # imports asyncio

    await ping(connection)


class Spamd(Filter):
    """Scan messages with SpamAssassin's spamd and apply its verdict."""

    name = "spamd"
    on_error: OnError = "tempfail"  # Never unscanned by accident
    # RFC 5321 section 4.5.3.2.6: a client waits 10 minutes for the reply to its final dot.
    deadline = 120.0
    scans = True
    points = (LEAST, MOST)

    class Options(Settings):
        """The daemons, the user, exempt clients, and the use of a verdict."""

        spamd = option(
            LIST(ADDRESS(PORT)),
            default=(Address("127.0.0.1", PORT),),
            help="A daemon: its host and port, or the path of its socket. If given several times, "
            "the next daemon is asked when the ones before it fail; a daemon that failed three "
            "times in a row is passed over for 30 seconds.",
        )
        user = option(
            TEXT,
            default="",
            help="The user whose preferences and classifier spamd uses; by default its own.",
        )
        user_by_recipient = option(
            choice("no", "address", "local"),
            default="no",
            help="Use the recipient as the user, if there is only one: its whole address, or the "
            "part before the @. With several recipients --user applies.",
        )
        junk_at = option(
            THRESHOLD,
            default=Threshold(SPAM),
            help="The score from which a message is marked as junk; spam stands for spamd's "
            "own threshold (required_score).",
        )
        reject_at = option(
            THRESHOLD,
            default=Threshold(NEVER),
            help="The score from which a message is rejected; spam stands for spamd's own "
            "threshold.",
        )
        tag = option(TEXT, default="", help="A text to put before the subject of spam.")
        tag_at = option(
            THRESHOLD,
            default=Threshold(SPAM),
            help="The score from which --tag is put before the subject.",
        )
        headers = option(
            choice("spamd", "none"),
            default="spamd",
            help="The header fields to add to each scanned message: all of spamd's own, as its "
            "configuration defines them, or none. Junk has X-Spam: Yes in any case.",
        )
        rewrite_subject = option(
            SWITCH,
            default=False,
            help="Take over the subject if spamd rewrites it (its rewrite_header).",
        )
        new_message = option(
            SWITCH,
            default=False,
            help="Replace spam with the message that spamd makes of it, which has a report, and "
            "the original as an attachment (its report_safe). By default only the header is "
            "edited.",
        )
        points = option(
            SWITCH,
            default=False,
            help=f"Add spamd's score to that of the chain, as at least {LEAST:g} and at most "
            f"{MOST:g} points, instead of marking or rejecting the message.",
        )
        exempt = exempt_option(what="Clients whose mail is not scanned")
        only = only_option()
        max_size = max_size_option(500 << 10, "The default is that of spamc.")
        larger = larger_option()
        timeout = timeout_option(
            60.0, "SpamAssassin's own limit, time_limit, should be lower: it is 300 by default."
        )
        connections = connections_option(5)
        compress = option(
            choice("none", "zlib"), default="none", help="Compress messages to a distant daemon."
        )

    settings: Options

    #: The addresses of the daemons.
    servers: tuple[Address, ...]
    _client = StreamSetting(ping=_ping, kind="spamd")
    _intake: Intake
    _command: str

    def setup(self) -> Registration:
        """Prepare requests and thresholds."""
        settings = self.settings
        if not settings.spamd:
            raise ConfigError("--spamd: at least one daemon is needed")
        self.servers = tuple(dict.fromkeys(settings.spamd))
        # At start, not at the first mail: they import asyncio, and an upgrade may remove them.
        from . import edits, scan  # noqa: F401

        self._intake = Intake(
            settings.exempt.only(settings.only),
            max_size=settings.max_size,
            larger=settings.larger,
            own=(FIELDS,),
            shown=scan.valid,
        )
        self._check(settings)
        # CHECK is as costly for spamd as the others, and doesn't show whether it ended early.
        if settings.new_message:
            self._command = "PROCESS"
        elif settings.headers == "none" and not settings.rewrite_subject:
            self._command = "SYMBOLS"
        else:
            self._command = "HEADERS"
        note_timeout(self)
        return Registration(points=(LEAST, MOST) if settings.points else (0, 0))

    def _check(self, settings: Options) -> None:
        """Raise ConfigError for settings that contradict each other."""
        given = settings.given
        for name in ("junk_at", "reject_at"):
            if settings.points and name in given:
                raise ConfigError(f"--points: cannot be combined with --{name.replace('_', '-')}")
        if "tag_at" in given and not settings.tag:
            raise ConfigError("--tag-at requires --tag")
        check_order([("--junk-at", settings.junk_at), ("--reject-at", settings.reject_at)])
        if settings.tag:
            check_order([("--tag-at", settings.tag_at), ("--reject-at", settings.reject_at)])

    async def message(
        self, session: Session, message: Message
    ) -> Proceed | Junk | Marked | Reject | Points:
        """Scan the message, unless its client is exempt."""
        while True:
            content = await self._intake.content(self, session, message)
            if not isinstance(content, Content):
                return content
            reply = await self._scan(session, message, content)
            if await self._in_turn(content, reply):
                break
        if isinstance(reply, Unavailable):
            raise UnavailableError(reply.cause)
        try:
            await self._intake.remove_forged(message)
            return await self._apply(reply, message)
        finally:
            reply.discard()

    def remove_forged(self, session: Session, headers: Headers) -> None:
        """Do so for clients that aren't exempt."""
        if not self._intake.exempt.known_reason(session):
            FIELDS.remove_foreign(headers)

    async def _scan(
        self, session: Session, message: Message, content: Content
    ) -> Reply | Unavailable:
        """Return the reply of a daemon."""
        from .scan import Scan, recipient  # loaded by `setup`

        settings = self.settings
        user = recipient(session, settings.user_by_recipient)
        scan = Scan(
            self._command,
            content,
            session,
            message.headers.text(),
            user=user or settings.user,
            new_body=message.new_body if settings.new_message else None,
        )
        if settings.compress == "zlib":
            await scan.compress()
        notes: list[str] = []
        reply = await self._client.ask(scan.exchange, trouble=notes, client=client_of(session))
        if not isinstance(reply, Unavailable):
            reply.notes += [f"after {note}" for note in notes]
        return reply

    async def _in_turn(self, content: Content, reply: Reply | Unavailable) -> bool:
        """Wait for the filter's turn; return whether the reply still is about this message.

        Fields of the filters in front change no score, but a new message would lack them.
        """
        same = False
        try:
            same = await content.turn(headers=self.settings.new_message)
        finally:
            if not same and not isinstance(reply, Unavailable):
                reply.discard()
        return same

    async def _apply(
        self, reply: Reply, message: Message
    ) -> Proceed | Junk | Marked | Reject | Points:
        """Edit the message and return the decision."""
        settings = self.settings
        reason = summary(reply)

        def reaches(threshold: Threshold) -> bool:
            return threshold.reached(reply.score, is_spam=reply.is_spam)

        if reaches(settings.reject_at) and not settings.points:
            return refusal("reject", REJECTED).because(reason)
        await self._edit(reply, message)
        tagged = settings.tag and reaches(settings.tag_at)
        if tagged:
            message.begin_mark()
            await Edits(message.headers, _ignore).tag_subject(settings.tag)
        if settings.points:
            return Points(min(max(reply.score, LEAST), MOST)).because(reason)
        if reaches(settings.junk_at):
            return JUNK.because(reason)
        return (MARKED if tagged else PROCEED).because(reason)

    async def _edit(self, reply: Reply, message: Message) -> None:
        """Apply spamd's own edits."""
        from smtpd_filters.runtime.pace import pace  # asyncio is already loaded

        from .edits import add_fields, replace_block, replace_subject  # loaded by `setup`

        settings, headers = self.settings, message.headers
        # Each edit is one pass over the lines.
        added = reply.header.count(b"\n") if reply.header else len(reply.fields)
        await pace().admit(headers.text().count(b"\n") + added)
        if reply.header is not None and reply.body is not None:
            replace_block(headers, reply.header)
            body, reply.body = reply.body, None
            message.replace_body(body)
            return
        if settings.headers == "spamd":
            add_fields(headers, reply.fields)
        if settings.rewrite_subject and reply.is_spam and reply.subject:
            replace_subject(headers, reply.subject)


def summary(reply: Reply) -> str:
    """Return the verdict for the log: `score 7.2/5 RULE,OTHER_RULE`."""
    rules = ",".join(reply.symbols[:_LOGGED])
    if len(reply.symbols) > _LOGGED:
        rules += f" and {len(reply.symbols) - _LOGGED} more"
    words = [f"score {reply.score:g}/{reply.required:g}", rules, *reply.notes]
    return "; ".join(filter(None, (" ".join(filter(None, words[:2])), *words[2:])))


def _ignore(_note: str) -> None:
    """Ignore a note: the names of the fields are valid."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-spamd."""
    return run(Spamd, argv=argv)
