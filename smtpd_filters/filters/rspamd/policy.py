"""filter-rspamd: scan messages with Rspamd and apply its reply.

`request` builds the header fields of the HTTP request. `smtpd_filters.lookups.http` sends it and
fails over between daemons. `reply_reader` reads the reply, `reply` parses it, and `edits` applies
it to the message. The log has the score and symbols of each message.

Invariants
----------
*Never unscanned by accident*: a message that can't be scanned is refused temporarily, unless the
operator chose otherwise: `--on-error` decides about every failure between here and the daemon.
*As delivered*: a message is scanned once, when it is complete, and as it will be delivered, with
From, To and Cc as smtpd completes them after all filters, so that the daemon's signatures are
valid there (`smtpd_filters.message.completion`). A first line of an mbox file is left out.
*Bounded*: memory and work are limited, however many messages are pending and whatever a daemon
replies: a small message is sent at once, a large one is read as it is sent, and a reply is read as
it arrives.
"""

from __future__ import annotations

from smtpd_filters.checks.exemptions import EXEMPT, Exempt, exempt_option, exempted
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filter import Filter
from smtpd_filters.lookups.dns.setting import note_timeout
from smtpd_filters.lookups.http import Client, Request, SharedClient
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.main import run
from smtpd_filters.message.completion import complete
from smtpd_filters.protocol.decisions import PROCEED, Marked, Proceed, Reject
from smtpd_filters.settings import (
    INTEGER,
    LIST,
    MAX_DEADLINE,
    PATH,
    SECONDS,
    SIZE,
    SWITCH,
    TEXT,
    Settings,
    Shared,
    choice,
    option,
)
from smtpd_filters.settings.secrets import read_secret

from .edits import Options as Edits
from .edits import apply
from .kinds import ACTION, URL, checked
from .reply import MAX_JSON, ReplyError
from .request import Facts, fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smtpd_filters.filter import Outcome
    from smtpd_filters.lookups.http.zstd import Codec
    from smtpd_filters.message import Headers, Message
    from smtpd_filters.sandbox import Needs
    from smtpd_filters.session import Session

    from .reply_reader import Intake

#: The path of a scan.
SCAN = "/checkv2"
#: Bytes of a message that is sent at once; most mail is smaller.
SMALL = 64 << 10
#: The start of an mbox file's first line.
_MBOX = b"From "
#: Chunks that are read in a row, while all other sessions wait.
ROW = 16
# RFC 3463 section 3.4: X.3.4 is "Message too big for system"; since the failure is transient,
# another exchanger may accept the message.
TOO_LARGE = Reject("451 4.3.4 Message too large to be scanned, please try again later")


class _ClientSetting(Shared[Client]):
    """The HTTP client, shared by the filters of a process that ask the same daemons alike."""

    def key(self, filter_: Rspamd) -> tuple[object, ...]:
        """Return the daemons, the times and the number of connections."""
        settings = filter_.settings
        urls = filter_._urls  # noqa: SLF001  # one module
        return urls, settings.timeout, filter_.deadline, settings.connections

    def declare(self, filter_: Rspamd, needs: Needs) -> None:
        """Declare a descriptor for each connection; the option `url` declares the daemons."""
        settings = filter_.settings
        needs.to_open(settings.connections * len(settings.url))

    def open(self, filter_: Rspamd) -> Client:
        """Return a client; it connects when it is asked."""
        settings = filter_.settings
        return SharedClient(
            filter_._urls,  # noqa: SLF001  # one module
            timeout=settings.timeout,
            deadline=filter_.deadline * filter_.share,
            connections=settings.connections,
        )

    async def close(self, opened: Client) -> None:
        """Close the client, of which `aclose` raises RuntimeError."""
        await Client.aclose(opened)


class Rspamd(Filter):
    """Scan messages with Rspamd and apply its reply."""

    name = "rspamd"
    on_error: Outcome = "tempfail"  # Never unscanned by accident
    # RFC 5321 section 4.5.3.2.6: a client waits 10 minutes for the reply to its final dot.
    deadline = 60.0
    #: The part of `--deadline` for the daemons' replies; the rest is for the filter's own work.
    share = 0.95

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
        timeout = option(
            SECONDS(low=0.01, high=MAX_DEADLINE),
            default=15.0,
            help="How long to wait for a daemon's reply before the next one is asked. The daemon's "
            "own limit, task_timeout, should be lower. The limit for all daemons together is "
            "--deadline.",
        )
        connections = option(
            INTEGER(low=1, high=10000),
            default=64,
            help="How many messages are sent to a daemon at a time; further ones wait.",
        )
        exempt = exempt_option(what="Clients whose mail is not scanned")
        skip = option(EXEMPT, default=Exempt(), help="The same as --exempt.")
        max_size = option(
            SIZE(low=1 << 10),
            default=50 << 20,
            help="The size up to which messages are scanned. It should not be above the daemon's "
            "own limit, max_message, which has the same default: scanning a message above that "
            "limit fails.",
        )
        larger = option(
            choice("skip", "tempfail"),
            default="skip",
            help="What to do with a larger message: accept it without a scan, or refuse it with a "
            "temporary code.",
        )
        headers = option(
            choice("minimal", "extended"),
            default="extended",
            help="The header fields of a message that the daemon marks: X-Spam alone, or "
            "X-Spam-Score and X-Spam-Status as well. The header fields that the daemon itself adds "
            "are added in any case.",
        )
        action = option(
            LIST(ACTION),
            default=(),
            help="The outcome of an action of the daemon, such as one added by its configuration: "
            "accept, junk (mark), rewrite (the subject), tempfail or reject. An unknown action is "
            "a failure. By default discard rejects, and quarantine marks.",
        )
        envelope_changes = option(
            choice("log", "tempfail"),
            default="log",
            help="What to do when the daemon requests another sender or other recipients, which "
            "smtpd accepts from no filter: log it and continue, or refuse the message with a "
            "temporary code.",
        )
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

    _exempt: Exempt
    _client = _ClientSetting()
    _codec: Codec | None
    _urls: tuple[str, ...]
    _intake: Intake

    def setup(self) -> None:
        """Prepare requests and edits."""
        settings = self.settings
        self._exempt = settings.exempt + settings.skip
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
            self._urls = tuple(checked(url) for url in settings.url)
        except ValueError as error:
            raise ConfigError(f"-url: {error}") from None
        from .reply_reader import Intake  # imports asyncio

        self._intake = Intake(self._codec)
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
        if why := self._exempt.reason(session):
            return exempted(self, why)
        if session.server_name:
            complete(message.headers, session.server_name)
        head = _without_mbox_line(message.headers)
        size, whole = await _measure(message.iter_bytes(head=head))
        if size > self.settings.max_size:
            reason = f"not scanned: {size} bytes are more than --max-size"
            return (PROCEED if self.settings.larger == "skip" else TOO_LARGE).because(reason)
        headers, left_out = fields(session, self._facts, self.smtpd.get("admd", ""))
        limit = MAX_JSON + 2 * size
        codec = self._codec
        if codec is not None:
            packed = lambda: codec.compress(message.iter_bytes(head=head))  # noqa: E731  # a body
            request = Request(SCAN, headers, packed, limit=limit)
        else:
            # Only a small message is in memory.
            body = (lambda: message.iter_bytes(head=head)) if whole is None else whole
            request = Request(SCAN, headers, body, size=size, limit=limit)
        intake = self._intake
        reply = await self._client.ask(
            request, lambda response: intake.read(response, message.new_body, limit)
        )
        if isinstance(reply, Unavailable):
            raise UnavailableError(reply.cause)
        if request.trouble:
            reply.complain(f"after {request.trouble}")
        if left_out:
            reply.complain(f"{left_out} recipients left out")
        try:
            return await apply(reply, message, self._edits)
        except ReplyError as error:
            raise UnavailableError(str(error)) from None


def _without_mbox_line(headers: Headers) -> list[bytes] | None:
    """Return the lines of a header block without the first line of an mbox file; None if not found.

    A client may send that line (RFC 4155), and smtpd delivers it below its own Received field.
    There the daemon would parse it as the end of the header, and raise the score for every missing
    field.
    """
    lines = headers.lines()
    for at, line in enumerate(lines):
        # "From :" is a field in obsolete syntax: RFC 5322 section 4.5.2.
        if line.startswith(_MBOX) and not line[len(_MBOX) :].lstrip(b" \t").startswith(b":"):
            end = at + 1
            while end < len(lines) and lines[end].startswith((b" ", b"\t")):
                end += 1
            return lines[:at] + lines[end:]
    return None


async def _measure(chunks: Iterator[bytes]) -> tuple[int, bytes | None]:
    """Return the size of a message in bytes, and the message itself if it is small."""
    size = 0
    parts: list[bytes] = []
    for at, chunk in enumerate(chunks, 1):
        size += len(chunk)
        if size <= SMALL:
            parts.append(chunk)
        elif at % ROW == 0:
            from asyncio import sleep  # already loaded

            await sleep(0)
    return size, b"".join(parts) if size <= SMALL else None


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
