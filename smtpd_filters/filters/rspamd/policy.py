"""filter-rspamd: scan messages with Rspamd and apply its reply.

`request` builds the header fields of the HTTP request. `smtpd_filters.lookups.http` sends it and
fails over between daemons. `reply_reader` reads the reply, `reply` parses it, and `edits` applies
it to the message. The log has the score and symbols of each message.

Invariants
----------
*Never unscanned by accident*: a message that can't be scanned is refused temporarily, unless the
operator chose otherwise: `--on-error` decides about every failure between here and the daemon.
*As delivered*: a message is scanned once, when it is complete, and as it will be delivered
(`smtpd_filters.scanning.intake`).
*Bounded*: memory and work are limited, however many messages are pending and whatever a daemon
replies: a small message is sent at once, a large one is read as it is sent, and a reply is read as
it arrives.
"""

from __future__ import annotations

from functools import partial

from smtpd_filters.checks.exemptions import EXEMPT, Exempt, exempt_option
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filter import Filter
from smtpd_filters.lookups.dns.setting import note_timeout
from smtpd_filters.lookups.failover.group import SHARE
from smtpd_filters.lookups.http import Client, Request, SharedClient
from smtpd_filters.lookups.http.kinds import URL, checked
from smtpd_filters.lookups.http.probe import ping
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.main import run
from smtpd_filters.scanning.intake import Content, Intake
from smtpd_filters.scanning.options import (
    connections_option,
    envelope_option,
    headers_option,
    larger_option,
    max_size_option,
    timeout_option,
)
from smtpd_filters.scanning.servers import ServersSetting, client_of
from smtpd_filters.settings import LIST, PATH, SWITCH, TEXT, Settings, choice, option
from smtpd_filters.settings.secrets import read_secret

from .edits import FIELDS, apply
from .edits import Options as Edits
from .kinds import ACTION
from .reply import MAX_JSON, Reply, ReplyError
from .request import Facts, fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smtpd_filters.filter import OnError
    from smtpd_filters.lookups.http.zstd import Codec
    from smtpd_filters.message import Headers, Message
    from smtpd_filters.protocol.decisions import Marked, Proceed, Reject
    from smtpd_filters.runtime.probes import Probe
    from smtpd_filters.session import Session

    from .reply_reader import ReplyReader

#: The path of a scan.
SCAN = "/checkv2"
HTTP_OK = 200


class _ClientSetting(ServersSetting[Client]):
    """The HTTP client, shared by the filters of a process that ask the same daemons alike."""

    def open(self, filter_: Rspamd) -> Client:
        """Return a client; it connects when it is asked."""
        settings = filter_.settings
        return SharedClient(
            filter_.servers,
            timeout=settings.timeout,
            deadline=filter_.deadline * SHARE,
            connections=settings.connections,
            note=filter_.log.event,
            kind="rspamd",
        )

    def probes(self, filter_: Rspamd) -> Iterator[Probe]:
        """Yield a probe for each daemon: its /ping, which costs no scan."""
        from smtpd_filters.runtime.probes import Probe

        for url in filter_.servers:
            yield Probe(f"Rspamd {url}", partial(_ping, url, filter_.settings.timeout))


async def _ping(url: str, seconds: float) -> str:
    """Ping a daemon; return why it can't be used, or ""."""
    reply = await ping(url, seconds)
    if isinstance(reply, Unavailable):
        return reply.cause
    return "" if reply == HTTP_OK else f"status {reply}"


class Rspamd(Filter):
    """Scan messages with Rspamd and apply its reply."""

    name = "rspamd"
    on_error: OnError = "tempfail"  # Never unscanned by accident
    # RFC 5321 section 4.5.3.2.6: a client waits 10 minutes for the reply to its final dot.
    deadline = 60.0
    scans = True

    class Options(Settings):
        """The daemons, the facts in a request, exempt clients, and the use of a reply."""

        url = option(
            LIST(URL),
            default=("http://localhost:11333",),
            flags=("-url",),
            help="A daemon's normal, proxy or controller worker: http://HOST:PORT, or the path of "
            "a unix socket. If given several times, the next daemon is asked when the ones before "
            "it fail; a daemon that failed three times in a row is passed over for 30 seconds.",
        )
        settings_id = option(
            TEXT,
            default="",
            flags=("-settings-id",),
            help="The id of the section of the daemon's settings module to apply.",
        )
        timeout = timeout_option(15.0, "The daemon's own limit, task_timeout, should be lower.")
        connections = connections_option()
        exempt = exempt_option(what="Clients whose mail is not scanned")
        skip = option(EXEMPT, default=Exempt(), help="The same as --exempt.")
        max_size = max_size_option(
            50 << 20,
            "It should not be above the daemon's own limit, max_message, which has the same "
            "default: scanning a message above that limit fails.",
        )
        larger = larger_option()
        headers = headers_option()
        action = option(
            LIST(ACTION),
            default=(),
            help="The outcome of an action of the daemon, such as one added by its configuration: "
            "accept, junk (mark), rewrite (the subject), tempfail or reject. An unknown action is "
            "a failure. By default discard rejects, and quarantine marks.",
        )
        envelope_changes = envelope_option()
        authserv_id = option(
            TEXT,
            default="",
            help="The name in the daemon's results (Authentication-Results); by default that of "
            "smtpd (its admd).",
        )
        mta_tag = option(
            TEXT,
            default="",
            help="A tag for rules and settings of the daemon.",
        )
        deliver_to = option(
            SWITCH,
            default=False,
            help="Send the recipient, if there is only one, to the daemon as the mailbox of "
            "delivery, for settings and statistics per user.",
        )
        pass_all = option(
            SWITCH,
            default=False,
            help="Have the daemon run all its checks, even if the first ones are decisive.",
        )
        compress = option(
            choice("none", "zstd"),
            default="none",
            help="Compress messages to a distant daemon. Requires Python 3.14 or the package "
            "zstandard.",
        )
        password_file = option(
            PATH,
            default=None,
            help="A file whose first line is the password of a controller worker.",
        )

    settings: Options

    _client = _ClientSetting()
    _codec: Codec | None
    #: The URLs of the daemons.
    servers: tuple[str, ...]
    _intake: Intake
    _reader: ReplyReader

    def setup(self) -> None:
        """Prepare requests and edits."""
        settings = self.settings
        self._intake = Intake(
            settings.exempt + settings.skip,
            max_size=settings.max_size,
            larger=settings.larger,
            own=FIELDS,
        )
        self._codec = _codec(settings.compress)
        self._facts = Facts(
            settings_id=settings.settings_id,
            mta_tag=settings.mta_tag,
            authserv_id=settings.authserv_id,
            password=read_secret(settings.password_file, "--password-file"),
            pass_all=settings.pass_all,
            deliver_to=settings.deliver_to,
            compressed=self._codec is not None,
        )
        self._edits = Edits(
            actions=self._actions(),
            envelope=settings.envelope_changes,
            headers=settings.headers,
        )
        try:
            self.servers = tuple(checked(url) for url in settings.url)
        except ValueError as error:
            raise ConfigError(f"-url: {error}") from None
        from .reply_reader import ReplyReader  # imports asyncio

        self._reader = ReplyReader(self._codec)
        note_timeout(self)

    def _actions(self) -> dict[str, str]:
        """Return the outcome of each action in `--action`; raise ConfigError for two outcomes."""
        actions: dict[str, str] = {}
        for name, outcome in self.settings.action:
            if actions.setdefault(name, outcome) != outcome:
                raise ConfigError(
                    f'--action: "{name}" is given twice, as {actions[name]} and as {outcome}; it '
                    "takes one outcome"
                )
        return actions

    async def message(self, session: Session, message: Message) -> Proceed | Marked | Reject:
        """Scan the message, unless its client is exempt."""
        while True:
            content = await self._intake.content(self, session, message)
            if not isinstance(content, Content):
                return content
            reply = await self._scan(session, message, content)
            if await _in_turn(content, reply):
                break
        if isinstance(reply, Unavailable):
            raise UnavailableError(reply.cause)
        try:
            return await apply(reply, message, self._edits)
        except ReplyError as error:
            raise UnavailableError(str(error)) from None

    def remove_forged(self, session: Session, headers: Headers) -> None:
        """Remove results that a client sent, unless it is exempt."""
        if not self._intake.exempt.known_reason(session):
            for name in FIELDS:
                name.remove_foreign(headers)

    async def _scan(
        self, session: Session, message: Message, content: Content
    ) -> Reply | Unavailable:
        """Return the reply of a daemon."""
        headers, left_out = fields(session, self._facts, self.smtpd.get("admd", ""))
        limit = MAX_JSON + 2 * content.size
        codec = self._codec
        if codec is not None:
            packed = lambda: codec.compress(content.chunks())  # noqa: E731  # a body
            request = Request(SCAN, headers, packed, limit=limit)
        else:
            request = Request(SCAN, headers, content.body, size=content.size, limit=limit)
        reader = self._reader
        reply = await self._client.ask(
            request,
            lambda response: reader.read(response, message.new_body, limit),
            client=client_of(session),
        )
        if not isinstance(reply, Unavailable):
            if request.trouble:
                reply.complain(f"after {request.trouble}")
            if left_out:
                reply.complain(f"{left_out} recipients left out")
        return reply


async def _in_turn(content: Content, reply: Reply | Unavailable) -> bool:
    """Wait for the filter's turn; return whether the reply still is about this message.

    Otherwise its signatures might not be valid.
    """
    same = False
    try:
        same = await content.turn()
    finally:
        if not same and not isinstance(reply, Unavailable) and reply.block is not None:
            reply.block.discard()
    return same


def _codec(compress: str) -> Codec | None:
    if compress == "none":
        return None
    from smtpd_filters.lookups.http.zstd import load  # needed with --compress only

    try:
        return load()
    except ConfigError as error:
        raise ConfigError(f"--compress: {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-rspamd."""
    return run(Rspamd, argv=argv)
