r"""A filter under test: a conversation with an smtpd that is not there.

`Conversation` is smtpd's side, within the process and without descriptors.  It asks the filter
only what it registered for, reports what happens in the order in which smtpd reports it, and does
with an answer what smtpd does: behind a refused ``MAIL`` there is no transaction, a rewritten
sender is reported by its old address, junk comes with an ``X-Spam`` field, and so on.  Every byte
passes the oracle (`smtpd_filters.testing.oracle`): a test fails when a real smtpd would exit, hang
or do something else than the filter meant.

>>> from smtpd_filters import PROCEED, Filter, Proceed, Reject, Session, Settings, option
>>> from smtpd_filters.settings import TEXT
>>> from smtpd_filters.testing import Conversation
>>>
>>> class Postmaster(Filter):
...     '''Refuse mail that claims to be from a postmaster.'''
...
...     class Options(Settings):
...         domain = option(TEXT, default="example.org", help="Whose postmaster may write.")
...
...     def mail_from(self, session: Session, address: str) -> Proceed | Reject:
...         user, _, domain = address.partition("@")
...         if user == "postmaster" and domain != self.settings.domain:
...             return Reject("550 5.7.1 No postmaster of ours").because(f"from {address}")
...         return PROCEED
>>>
>>> with Conversation(Postmaster, "--domain", "example.net") as smtpd:
...     client = smtpd.connect(rdns="mail.example.com", address="192.0.2.1")
...     client.ehlo("mail.example.com").verb
...     client.mail_from("postmaster@example.org").reply
...     client.mail_from("postmaster@example.net").verb
...     client.rcpt_to("you@example.org").verb
...     client.message(b"Subject: hello\r\n\r\n.\r\n").body
...     client.quit().verb
...     smtpd.log[0].partition(" reply=")[0]
'proceed'
'550 5.7.1 No postmaster of ours'
'proceed'
'proceed'
b'.\n'
'proceed'
'7641df9700000001 postmaster mail-from result=reject reason="from postmaster@example.org"'

Each step of a client gives a `Verdict`: ``verb`` is what the filter decided, ``reply`` the line
with which the client was refused, ``parameter`` what smtpd goes on with, ``asked`` whether the
filter asked for the phase at all.  A message gives a `Delivery` as well: the lines that came back.
A step that smtpd would not take at that point is a `RuntimeError`: the test is wrong, or the client
was refused before.

Coroutines run on an event loop of the conversation's own, until they have answered; time is the
real one, so let a filter that is to miss its deadline have a short one (``"--deadline", "0.01"``).
A plain handler that does not return is not interrupted here, as it would be in a process.

`play` plays a recording to a filter, and `DNSServer` answers what the filter looks up.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd_filters.chain import Chain
from smtpd_filters.filter import Filter
from smtpd_filters.message import Headers
from smtpd_filters.message.dots import stuff, unstuff
from smtpd_filters.protocol.events import Line, Result
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.runtime.engine import Engine
from smtpd_filters.runtime.jobs import Job
from smtpd_filters.runtime.log import Log, fold_traceback
from smtpd_filters.session import text
from smtpd_filters.settings import common_options, parse_flags

from .oracle import Oracle
from .replay import Replay, Step
from .verdict import (
    MARK,
    SAYS_PROTOCOL,
    Tokens,
    Verdict,
    failure,
    response,
    verdict,
    wire,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike
    from types import TracebackType
    from typing import Any, Self

    from smtpd_filters.protocol.decisions import Decision
    from smtpd_filters.recording import Recording
    from smtpd_filters.runtime.policy import Later
    from smtpd_filters.settings import Settings

    #: A filter's class, or one with its settings, or several of these for a chain.
    Filters = type[Filter] | Filter | Sequence[Filter]

TLS = "TLSv1.3:TLS_AES_256_GCM_SHA384:256"
#: The host that the client talks to.
HOST = "mx.example.org"


class _Captured(Log):
    """A log that keeps its lines."""

    def __init__(self, *, verbose: bool) -> None:
        super().__init__(verbose=verbose)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


class Served:
    """Filters behind an engine: bytes in, bytes out, coroutines run until they are done.

    What `Conversation` and `play` have in common.
    """

    def __init__(self, filters: Filters, flags: Sequence[str], settings: Settings | None) -> None:
        """Raises ConfigError as the executable would before it is ready."""
        chosen, verbose, refuse_long_lines = _configured(filters, flags, settings)
        self.log = _Captured(verbose=verbose)
        self.chain = Chain(chosen, self.log)
        self.engine = Engine(self.chain, self.log, refuse_long_lines=refuse_long_lines)
        self.engine.spawn = self._spawn
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._unhandled)
        #: Done when a coroutine has come to its end.
        self._ended = self._loop.create_future()
        self.refresh()

    def refresh(self) -> None:
        """Have the filters look after what is not of a session, until they have."""
        for filter_ in self.chain.refreshing:
            self._loop.run_until_complete(self.chain.refresh(filter_))

    def receive(self, data: bytes) -> None:
        """Hand over what smtpd wrote.  The loop runs, as it does around a filter's process."""
        if self.chain.later:
            self._loop.run_until_complete(self._receive(data))
        else:
            self.engine.receive(data)

    async def _receive(self, data: bytes) -> None:
        self.engine.receive(data)

    def output(self) -> bytes:
        """What the filter has written."""
        parts = [self.engine.output()]
        while self.engine.sending:
            self.engine.pump()
            parts.append(self.engine.output())
        return b"".join(parts)

    def run(self) -> bool:
        """Run coroutines until one of them has come to its end; whether there are any."""
        if not self.engine.busy:
            return False
        self._loop.run_until_complete(self._ended)
        self._ended = self._loop.create_future()
        return True

    def close(self) -> None:
        """End as at the end of input, and leave nothing behind."""
        self.engine.abandon()
        try:
            self._loop.run_until_complete(self.chain.close())
            self._loop.run_until_complete(asyncio.sleep(0))  # what is cancelled now, was begun
            while left := asyncio.all_tasks(self._loop):
                for task in left:
                    task.cancel()
                self._loop.run_until_complete(asyncio.wait(left))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()

    def _spawn(self, work: Later, done: Callable[[Decision], None]) -> Job:
        def decided(decision: Decision) -> None:
            done(decision)
            if not self._ended.done():
                self._ended.set_result(None)

        return Job(self._loop, work, decided, self._ended.set_exception)

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = fold_traceback(error) if error is not None else str(context.get("message"))
        self.log.limited("unhandled", "smtpd-filters", "a task of a policy failed", error=text)


def _configured(
    filters: Filters, flags: Sequence[str], settings: Settings | None
) -> tuple[list[tuple[Filter, Any, float]], bool, bool]:
    """Make the filters as their executables do; whether to be verbose, and to refuse long lines."""
    if not isinstance(filters, type):
        if flags or settings is not None:
            raise TypeError("flags and settings are for a class; an instance has its own")
        instances = [filters] if isinstance(filters, Filter) else list(filters)
        chosen = [(each, each.on_error, each.deadline) for each in instances]
        verbose = refuse = False
    else:
        common = common_options(filters.outcomes(), filters.on_error, filters.deadline)
        own, general = parse_flags(
            filters.Options, flags, common=common, prog=f"filter-{filters.name}"
        )
        made: Any = settings if settings is not None else own
        on_error: Any = general.on_error
        instance = filters(made)
        instance.dry_run, instance.deadline = general.dry_run, general.deadline
        chosen = [(instance, on_error, general.deadline)]
        verbose, refuse = general.verbose, general.long_lines == "refuse"
    for filter_, _, _ in chosen:
        filter_.setup()
    return chosen, verbose, refuse


class Conversation:
    """A filter, or a chain of them, and the smtpd that it serves.

    ``filters``: a class, which is given ``flags`` as in smtpd.conf or ``settings`` made in code;
    or an instance made with its settings; or several instances, for a chain.  `setup` is called
    here.  ``protocol`` is the version spoken, ``smtpd_version`` that of the server, by default one
    that speaks the protocol.  ``admd`` is the authserv-id.

    Raises ConfigError as the executable would at its start.
    """

    def __init__(
        self,
        filters: Filters,
        *flags: str,
        settings: Settings | None = None,
        protocol: tuple[int, int] = (0, 7),
        smtpd_version: str = "",
        admd: str = HOST,
    ) -> None:
        self._served = Served(filters, flags, settings)
        self._smtpd = SmtpdConnection(protocol, smtpd_version)
        self.oracle = Oracle()
        self.protocol = self._smtpd.dialect.version
        self.admd = admd
        #: What the filter registered.
        self.phases = self._smtpd.phases
        self.reports = self._smtpd.reports
        self.filters: list[Filter] = self._served.chain.filters
        self._tokens = Tokens()
        self._clients = 0
        self._messages = 0
        self._clock = 0
        self._results: dict[bytes, Result] = {}
        self._lines: dict[bytes, list[bytes]] = {}
        self._ended: set[bytes] = set()

    @property
    def log(self) -> list[str]:
        """The lines that the filter has written to smtpd's log."""
        return self._served.log.lines

    def __enter__(self) -> Self:
        self._send(self._smtpd.configure(admd=self.admd))
        if not self._smtpd.ready:
            raise AssertionError("the filter is not ready")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._served.close()
        finally:
            if kind is None:
                self.verify()

    def verify(self) -> None:
        """AssertionError that lists what smtpd would not have survived or done otherwise.

        Called at the end of the ``with`` block.
        """
        self.oracle.finish()
        self.oracle.verify()

    def reload(self) -> None:
        """Have the filter read its tables anew, as SIGHUP does."""
        self._served.chain.reload()

    def refresh(self) -> None:
        """Have the filter do what it does at the start and every `Filter.refresh_interval`."""
        self._served.refresh()

    def connect(  # noqa: PLR0913  # all that can be said of a client
        self,
        rdns: str | None = "mail.example.com",
        address: str = "192.0.2.1",
        *,
        fcrdns: str = "pass",
        port: int = 33174,
        local: bool = False,
        dest: str = "198.51.100.25:25",
        tls: str = "",
    ) -> Client:
        """Let a client come; `Client.greeting` is the verdict on its connection.

        ``rdns`` None is a client without a reverse name (then ``fcrdns`` is fail, unless it is
        error).  ``local`` is one at smtpd's own socket.  ``tls`` is the cipher of a connection that
        is encrypted from its start, such as `TLS`.
        """
        self._clients += 1
        session = b"%016x" % (0x7641DF97 << 32 | self._clients)
        name = wire(rdns or "<unknown>")
        if rdns is None and fcrdns == "pass":
            fcrdns = "fail"
        host = f"[{address}]" if ":" in address else address
        source = f"{host}:{port}".encode()
        if local:
            host, source = "local", b"unix:/var/run/smtpd.sock"
            dest = "unix:/var/run/smtpd.sock"
        client = Client(self, session, name, host)
        self.report("link-connect", session, name, fcrdns.encode(), source, dest.encode())
        client.begin(host.encode(), tls)
        return client

    # -- what clients use ----------------------------------------------------------------

    def report(self, name: str, session: bytes, *values: bytes) -> None:
        """Report what happened, if the filter asked to be told."""
        if name in self.reports:
            self._send(self._smtpd.report(name, session, *values, time=self._time()))

    def ask(self, phase: str, session: bytes, argument: bytes) -> Verdict:
        """Ask the filter, if it wants to be; the answer is waited for."""
        if phase not in self.phases:
            return verdict(phase, argument, None)
        token = self._tokens[phase]
        self._send(self._smtpd.request(phase, session, token, argument, self._time()))
        self._wait(lambda: session in self._results, phase)
        said = verdict(phase, argument, self._results.pop(session))
        self.report("filter-response", session, *response(phase, said))
        return said

    def write_lines(self, session: bytes, lines: list[bytes]) -> None:
        """Send lines of a message, dot-stuffed."""
        if "data-line" in self.phases:
            token = self._tokens["data-line"]
            data = self._smtpd.lines(session, token, lines, end=False, time=self._time())
            self._send(data)
        else:
            self._lines.setdefault(session, []).extend(lines)

    def end_lines(self, session: bytes) -> list[bytes]:
        """Send the dot; the lines that came back."""
        if "data-line" in self.phases:
            token = self._tokens["data-line"]
            self._send(self._smtpd.lines(session, token, [], end=True, time=self._time()))
            self._wait(lambda: session in self._ended, "data-line")
            self._ended.discard(session)
        return self._lines.pop(session, [])

    def forget_lines(self, session: bytes) -> None:
        """The message has come to nothing."""
        self._lines.pop(session, None)

    def message_id(self) -> bytes:
        """A new message id."""
        self._messages += 1
        return b"%08x" % (0x1F2E3D00 + self._messages)

    # -- bytes ---------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        self.oracle.from_smtpd(data)
        self._served.receive(data)
        self._collect()

    def _collect(self) -> None:
        data = self._served.output()
        self.oracle.from_filter(data)
        for answer in self._smtpd.receive(data):
            if isinstance(answer, Result):
                self._results[answer.session] = answer
            elif isinstance(answer, Line):
                if answer.line == b".":
                    self._ended.add(answer.session)
                else:
                    self._lines.setdefault(answer.session, []).append(answer.line)

    def _wait(self, done: Callable[[], bool], phase: str) -> None:
        while not done():
            if not self._served.run():
                raise AssertionError(f"{phase} is never answered")
            self._collect()

    def _time(self) -> bytes:
        self._clock += 1
        return b"1700000000.%06d" % (self._clock % 1_000_000)


@dataclass(frozen=True, slots=True)
class Delivery(Verdict):
    """What became of a message: the verdict at ``commit``, and the message as it came back.

    `Verdict.phase` is "data" when the client was refused there already.
    """

    #: The message as it was sent, without dot-stuffing, with smtpd's own fields at the top.
    sent: tuple[bytes, ...] = field(default=(), repr=False)
    #: The message as it came back, without dot-stuffing and line ends.
    content: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def unchanged(self) -> bool:
        """Whether every byte came back as it was sent."""
        return self.sent == self.content

    @property
    def headers(self) -> Headers:
        """The header block as it is delivered."""
        return Headers.parse(list(self.content[: self._end_of_headers]))

    @property
    def body(self) -> bytes:
        """The body as it is delivered, each line ended by a line feed."""
        return b"".join([line + b"\n" for line in self.content[self._end_of_headers + 1 :]])

    @property
    def _end_of_headers(self) -> int:
        return self.content.index(b"") if b"" in self.content else len(self.content)

    @property
    def bytes(self) -> bytes:
        """The message as it is delivered, each line ended by a line feed."""
        return b"".join([line + b"\n" for line in self.content])


class Client:
    """An SMTP client, as smtpd takes it.  Made by `Conversation.connect`."""

    def __init__(self, smtpd: Conversation, session: bytes, rdns: bytes, host: str) -> None:
        self._smtpd = smtpd
        self._session = session
        self._trace = text(rdns), host
        #: The session's id: what to look for in `Conversation.log`.
        self.id = session.decode()
        self.closed = False
        #: The verdict on the connection itself.
        self.greeting = Verdict("connect", "proceed", asked=False)
        self._identity = ""
        self._msgid = b""
        self._recipients: list[str] = []
        #: The client is within DATA; the lines that it has sent so far.
        self._sent: list[bytes] | None = None
        self._session_junk = self._message_junk = False

    def begin(self, host: bytes, tls: str) -> None:
        """Ask about the connection and greet the client."""
        rdns = wire(self._trace[0])
        self.greeting = self._ask("connect", rdns + b"|" + host)
        if self.greeting.refused:
            return
        if tls:
            self._report("link-tls", wire(tls))
        self._report("protocol-server", b"220 %s ESMTP OpenSMTPD" % HOST.encode())
        self._report("link-greeting", HOST.encode())

    def helo(self, name: str = "mail.example.com") -> Verdict:
        """Say HELO."""
        return self._greet("HELO", name)

    def ehlo(self, name: str = "mail.example.com") -> Verdict:
        """Say EHLO."""
        return self._greet("EHLO", name)

    def _greet(self, method: str, name: str) -> Verdict:
        self._need(not self._identity, "Already identified")
        self._command(f"{method} {name}")
        said = self._ask(method.lower(), wire(name))
        if not said.refused:
            self._identity = said.parameter
            self._report("link-identify", method.encode(), wire(said.parameter))
        return said

    def tls(self, cipher: str = TLS) -> Verdict:
        """Say STARTTLS.  The client must greet again behind it."""
        self._need(bool(self._identity), "Command not allowed at this point")
        self._command("STARTTLS")
        said = self._ask("starttls", b"")
        if not said.refused:
            self._report("link-tls", wire(cipher))
            self._identity = ""
        return said

    def auth(
        self, user: str, password: str = "", *, ok: bool = True, mechanism: str = "PLAIN"
    ) -> Verdict:
        """Authenticate; ``ok`` says whether smtpd finds the password right."""
        self._need(bool(self._identity), "Command not allowed at this point")
        self._command(f"AUTH {mechanism} ********")
        credentials = base64.b64encode(b"\0%b\0%b" % (wire(user), wire(password)))
        initial = b" " + credentials if mechanism == "PLAIN" else b""
        said = self._ask("auth", mechanism.encode() + initial)
        if said.refused:
            return said
        self._report("link-auth", b"pass" if ok else b"fail", wire(user))
        return said if ok else _refused(said, "535 Authentication failed")

    def mail_from(self, address: str = "") -> Verdict:
        """Say MAIL FROM, without the angle brackets; "" is the null sender."""
        self._need(bool(self._identity), "Command not allowed at this point")
        self._need(not self._msgid, "Already in transaction")
        self._command(f"MAIL FROM:<{address}>")
        said = self._ask("mail-from", wire(address))
        if not said.refused:
            self._msgid = self._smtpd.message_id()
            self._report("tx-begin", self._msgid)
            # The old address, even when it was rewritten: that is what smtpd does.
            self._report("tx-mail", self._msgid, b"ok", wire(address))
        return said

    def rcpt_to(self, address: str, *, accepted: bool = True) -> Verdict:
        """Say RCPT TO; ``accepted`` says whether smtpd itself takes the recipient."""
        self._need(bool(self._msgid), "Command not allowed at this point")
        self._command(f"RCPT TO:<{address}>")
        msgid = self._msgid
        said = self._ask("rcpt-to", wire(address))
        if not said.refused and not accepted:
            said = _refused(said, f"550 Invalid recipient: <{address}>")
        if said.refused:
            if not self.closed:
                self._report("tx-rcpt", msgid, failure(said), wire(address))
            return said
        self._recipients.append(said.parameter)
        self._report("tx-envelope", msgid, msgid + b"%08x" % len(self._recipients))
        self._report("tx-rcpt", msgid, b"ok", wire(address))
        return said

    def data(self) -> Verdict:
        """Say DATA."""
        self._need(bool(self._recipients), "No recipient specified")
        self._command("DATA")
        said = self._ask("data", b"")
        if said.refused:
            if not self.closed:
                self._report("tx-data", self._msgid, failure(said))
            return said
        self._report("tx-data", self._msgid, b"ok")
        self._sent = []
        self._write(self._own_fields())
        return said

    def write(self, content: bytes) -> None:
        """Send whole lines of the message, not dot-stuffed; their ends may be CRLF or LF."""
        self._need(self._sent is not None, "Command not allowed at this point")
        lines = content.replace(b"\r\n", b"\n").split(b"\n")
        if lines[-1] == b"":
            del lines[-1]
        self._write(lines)

    def message(self, content: bytes = b"Subject: test\r\n\r\nbody\r\n") -> Delivery:
        """Send the message, or the rest of it, and the final dot; what came back.

        Says DATA first, if that was not done yet.
        """
        if self._sent is None:
            said = self.data()
            if said.refused:
                return Delivery("data", said.verb, said.reply)
        self.write(content)
        sent, self._sent = self._sent or [], None
        returned = self._smtpd.end_lines(self._session)
        self._command(".")
        msgid = self._msgid
        self._sent = []
        said = self._ask("commit", b"")
        self._sent = None
        if not self.closed:
            if said.refused:
                self._report("tx-data", msgid, failure(said))
                self._roll_back()
            else:
                size = b"%d" % sum(len(line) + 1 for line in returned)
                self._report("tx-commit", msgid, size)
                self._reset()
        return Delivery(
            "commit",
            said.verb,
            said.reply,
            asked=said.asked,
            lines=tuple(returned),
            sent=tuple(sent),
            content=tuple(unstuff(returned)),
        )

    def rset(self) -> Verdict:
        """Say RSET."""
        self._need(bool(self._identity), "Command not allowed at this point")
        self._command("RSET")
        said = self._ask("rset", b"")
        if not said.refused:
            self._roll_back()
        return said

    def noop(self, text: str = "") -> Verdict:
        """Say NOOP.  Servers before 7.0 do not ask about one with an argument."""
        self._command(f"NOOP {text}".rstrip())
        if text and self._smtpd.protocol < SAYS_PROTOCOL:
            return Verdict("noop", "proceed", parameter=text, asked=False)
        return self._ask("noop", wire(text))

    def quit(self) -> Verdict:
        """Say QUIT."""
        self._command("QUIT")
        said = self._ask("quit", b"")
        if not said.refused:
            self._close()
        return said

    def disconnect(self) -> None:
        """Go away without a word, wherever the client stands."""
        self._need(not self.closed, "the connection is closed")
        self._close()

    def timeout(self) -> None:
        """Say nothing until smtpd hangs up."""
        self._need(not self.closed, "the connection is closed")
        self._report("timeout")
        self._close()

    # -- as smtpd goes on ----------------------------------------------------------------

    def _need(self, allowed: bool, why: str) -> None:  # noqa: FBT001  # it reads like an assertion
        if self.closed or not allowed:
            state = "the connection is closed" if self.closed else f"smtpd says 503 {why}"
            raise RuntimeError(f"no such step at this point: {state}")

    def _command(self, text: str) -> None:
        self._need(self._sent is None, "within DATA")
        self._report("protocol-client", wire(text))

    def _report(self, name: str, *values: bytes) -> None:
        self._smtpd.report(name, self._session, *values)

    def _ask(self, phase: str, argument: bytes) -> Verdict:
        said = self._smtpd.ask(phase, self._session, argument)
        if said.verb == "junk":
            # Before a transaction it marks the session.
            if self._msgid:
                self._message_junk = True
            else:
                self._session_junk = True
        if said.closes:
            if self._msgid and phase == "rcpt-to":
                self._report("tx-rcpt", self._msgid, failure(said), argument)
            elif self._msgid and phase in {"data", "commit"}:
                self._report("tx-data", self._msgid, failure(said))
            self._close()
        return said

    def _own_fields(self) -> list[bytes]:
        """What smtpd puts at the top of a message."""
        rdns, host = self._trace
        lines = [
            f"Received: from {self._identity} ({rdns} [{host.strip('[]')}])",
            f"\tby {HOST} (OpenSMTPD) with ESMTP id {self._msgid.decode()}",
            f"\tfor <{self._recipients[0]}>;",
            "\tTue, 14 Nov 2023 22:13:20 +0000 (UTC)",
        ]
        mark = [MARK] if self._session_junk or self._message_junk else []
        return mark + [wire(line) for line in lines]

    def _write(self, lines: list[bytes]) -> None:
        assert self._sent is not None  # noqa: S101  # the callers have seen to it
        self._sent += lines
        self._smtpd.write_lines(self._session, stuff(lines))

    def _roll_back(self) -> None:
        if self._msgid:
            self._report("tx-rollback", self._msgid)
            self._reset()

    def _reset(self) -> None:
        msgid, self._msgid = self._msgid, b""
        self._recipients = []
        self._message_junk = False
        self._report("tx-reset", msgid)

    def _close(self) -> None:
        self._roll_back()
        self._report("link-disconnect")
        self._smtpd.forget_lines(self._session)
        self._sent = None
        self.closed = True


def play(
    recording: Recording | str | PathLike[str],
    filters: Filters,
    *flags: str,
    settings: Settings | None = None,
    protocol: tuple[int, int] | None = None,
) -> list[Step]:
    """Play a recording to a filter; its verdicts, each beside the one recorded.

    The filter is given as to `Conversation`; ``protocol`` is the version to be spoken, by default
    the recorded one.  A step's ``verdict`` is None where it did not come to the question any more.
    Raises AssertionError when smtpd would not have survived it.
    """
    from smtpd_filters.recording import Recording  # the name is the parameter's

    if not isinstance(recording, Recording):
        recording = Recording.read(recording)
    played = Replay(recording, protocol=protocol)
    served = Served(filters, flags, settings)
    try:
        served.receive(played.handshake())
        played.receive(served.output())
        for step in played.steps():
            served.receive(step.data)
            played.receive(served.output())
            while step.waiting:
                if not served.run():
                    raise AssertionError(f"{step.phase} is never answered")
                played.receive(served.output())
    finally:
        served.close()
    played.finish()
    played.oracle.verify()
    return played.outcomes


def _refused(said: Verdict, reply: str) -> Verdict:
    """The same decision of the filter, but smtpd itself refuses."""
    return Verdict(said.phase, said.verb, reply, said.parameter, asked=said.asked)
