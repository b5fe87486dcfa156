"""Random sessions of filters that ask servers, which fail at any byte (`failing_servers`).

A legal smtpd plays sessions that end anywhere, with several messages. The server is asked over
pairs of sockets in an event loop that takes one round at a time and has a clock of its own, so
that all is decided by choices from outside (`tests.protocol.hostile`).
"""

from __future__ import annotations

import asyncio
import gc
import re
import socket
from functools import partial
from itertools import cycle, islice, product
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_filters.chain import Chain
from smtpd_filters.filters.clamav.policy import Clamav
from smtpd_filters.filters.milter.policy import Milter
from smtpd_filters.filters.milter.probe import NoAgreementError
from smtpd_filters.filters.policy.policy import Policy
from smtpd_filters.filters.rspamd.policy import Rspamd
from smtpd_filters.filters.spamd.policy import Spamd
from smtpd_filters.lookups.stream.connection import UnconnectedError, over
from smtpd_filters.main import set_up
from smtpd_filters.message import Spool
from smtpd_filters.milter.vocabulary import RCPT
from smtpd_filters.oracle import Oracle
from smtpd_filters.protocol.events import Line, Malformed, Result
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.protocol.vocabulary import PHASES
from smtpd_filters.runtime.engine import Engine
from smtpd_filters.runtime.jobs import Job
from smtpd_filters.runtime.messages import PATIENCE
from smtpd_filters.runtime.pace import Pace
from smtpd_filters.settings import Pool, common_options, parse_flags
from tests.protocol.hostile import SERVERS, Choices
from tests.runtime.ends import Lines, Rounds, held_by

from . import failing_servers as servers
from .failing_servers import AGREEMENTS, BAD, LINE, SUBJECT, VIRUS, Edits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from typing import TypeVar

    from smtpd_filters.filter import Filter
    from smtpd_filters.lookups.stream.connection import Connection
    from smtpd_filters.runtime.coroutines import Pending

    T = TypeVar("T")

#: Seconds that a filter may take, one exchange, and all of them; a time after which all have ended.
DEADLINE, TIMEOUT, LONG = 30, 10, 400.0


class Bridge(NamedTuple):
    """A filter, its servers by what they are called, and its flags."""

    filter: type[Filter]
    peer: type[servers.Peer]
    #: Each of these is asked, or one after the other until one answers.
    paths: tuple[str, ...]
    flags: tuple[str, ...]
    each: bool = False


def _servers(flag: str, *paths: str) -> tuple[str, ...]:
    return tuple(word for path in paths for word in (flag, path))


MILTER = (
    *("--connect-timeout", "8", "--command-timeout", f"{TIMEOUT}"),
    *("--content-timeout", "15", "--discard", "reject"),
)
PATIENT = ("--timeout", f"{TIMEOUT}")
BRIDGES = {
    "milter": Bridge(
        Milter, servers.MilterPeer, ("/m",), (*_servers("--milter", "unix:/m"), *MILTER), each=True
    ),
    "milters": Bridge(
        Milter,
        servers.MilterPeer,
        ("/ma", "/mb"),
        (*_servers("--milter", "unix:/ma", "unix:/mb"), *MILTER),
        each=True,
    ),
    "policy": Bridge(
        Policy,
        servers.PolicyPeer,
        ("/pa", "/pb"),
        (*_servers("--server", "unix:/pa", "unix:/pb"), *PATIENT),
    ),
    "program": Bridge(
        Policy, servers.PolicyPeer, ("/bin/sh",), (*_servers("--server", "exec:/bin/sh"), *PATIENT)
    ),
    "clamav": Bridge(
        Clamav,
        servers.ClamdPeer,
        ("/ca", "/cb"),
        (*_servers("--clamd", "/ca", "/cb"), *PATIENT),
    ),
    "spamd": Bridge(
        Spamd,
        servers.SpamdPeer,
        ("/sa", "/sb"),
        (*_servers("--spamd", "/sa", "/sb"), *PATIENT, "--reject-at", "spam"),
    ),
    "rspamd": Bridge(
        Rspamd, servers.RspamdPeer, ("/ra", "/rb"), (*_servers("--url", "/ra", "/rb"), *PATIENT)
    ),
}
#: The filters of each conversation, in their order.
CHAINS = {name: (name,) for name in BRIDGES} | {
    "milter and clamav": ("milter", "clamav"),
    "rspamd and milters": ("rspamd", "milters"),
    "program and spamd": ("program", "spamd"),
}
#: Stages of policy servers.
STAGES = (("rcpt-to",), ("connect", "mail-from", "rcpt-to", "data"), ("rcpt-to", "end-of-message"))
CLIENTS = ("192.0.2.1", "192.0.2.77", "198.51.100.3", "203.0.113.9", "2001:db8::1", "2001:db8:1::1")
BODY = (b"body", b"", b"..", b"...x", b"\xff\xfe", b"b" * 900, b"cr\rx", b"a|b", b"From x")
#: The lines of a refusal.
REFUSAL = re.compile(rb"[45]\d\d [45]\.\d{1,3}\.\d{1,3} [ -~]+|[45]\d\d [ -~]+")
#: The names of fields that a filter adds.
ADDED = re.compile(rb"(?i)x-(mark|spam|virus)[a-z-]*:")


def without_added(lines: list[bytes]) -> list[bytes]:
    """Return the lines of a message without the fields that a filter has added."""
    kept, added = [], False
    end = lines.index(b"")
    for line in lines[:end]:
        added = added if line[:1] in b" \t" else ADDED.match(line) is not None
        if not added:
            kept.append(line)
    return kept + lines[end:]


class Client:
    """A client of the smtpd, and how far it has come."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        #: The phase of the pending request, "" without one; "." while a message is returned.
        self.waiting = ""
        self.stage = "connect"
        self.gone = False
        self.address = self.msgid = b""
        #: How many recipients were accepted, and whether one of them is to be refused.
        self.accepted = 0
        self.bad = False
        self.sent: list[bytes] = []
        self.got: list[bytes] = []
        self.virus = False


class Server:
    """A legal smtpd, which checks each answer."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pick = world.pick
        protocol = self.pick(tuple(SERVERS))
        self.side = SmtpdConnection(protocol, self.pick(SERVERS[protocol]))
        self.oracle = Oracle()
        self.clients: list[Client] = []
        #: How many of them are there at a time.
        self.most = self.pick((1, 2, 6))
        self._tokens = {
            name: b"%016x" % (0xA0 + at) for at, name in enumerate((*PHASES, "data-line"))
        }
        self._messages = self._clock = 0
        #: What has happened to messages: "passed", "edited", "refused".
        self.seen: set[str] = set()
        #: The bodies of messages by their number.
        self.bodies: dict[bytes, bytes] = {}

    def start(self) -> None:
        """Begin the conversation."""
        self.send(self.side.configure())
        assert self.side.ready

    def send(self, data: bytes) -> None:
        """Write to the filter."""
        self.oracle.from_smtpd(data)
        self.world.receive(data)
        self.collect()

    def collect(self) -> None:
        """Read the filter's output."""
        data = self.world.engine.output()
        self.oracle.from_filter(data)
        clients = {each.name: each for each in self.clients if not each.gone}
        for answer in self.side.receive(data):
            assert not isinstance(answer, Malformed), answer
            client = clients.get(getattr(answer, "session", b""))
            if client is None:
                continue
            if isinstance(answer, Result):
                phase, client.waiting = client.waiting, ""
                assert phase not in ("", "."), answer
                self.decided(client, phase, answer.verb, answer.argument or b"")
            elif isinstance(answer, Line):
                self._line(client, answer.line)

    def _line(self, client: Client, line: bytes) -> None:
        if line != b".":
            client.got.append(line)
            return
        assert client.waiting == "."
        client.waiting, client.stage = "", "commit"

    # -- decisions -----------------------------------------------------------------------

    def decided(self, client: Client, phase: str, verb: bytes, argument: bytes) -> None:
        """Continue after an answer."""
        refused = verb in (b"reject", b"disconnect")
        if refused:
            self._check_refusal(client, phase, argument)
        elif client.address.startswith(BAD) and phase == "rcpt-to":
            assert not self.world.refuses_recipients, "a recipient that is to be refused"
            client.bad = True
        if verb == b"disconnect" or (refused and phase == "connect"):
            self.leave(client)
        else:
            self._go_on(client, phase, refused=refused)

    def _check_refusal(self, client: Client, phase: str, reply: bytes) -> None:
        assert REFUSAL.fullmatch(reply), reply
        self.seen.add("refused")
        if not self.world.faulty and self.world.loop.now == self.world.began:
            # Nothing has failed or taken time; the spool may be full.
            assert reply.startswith((b"5", b"452")), (phase, reply)
        if reply.startswith(b"5"):
            # One that was accepted while the server failed may be refused later.
            bad = client.bad or (phase == "rcpt-to" and client.address.startswith(BAD))
            assert bad or (phase == "commit" and client.virus), (phase, reply)

    def _go_on(self, client: Client, phase: str, *, refused: bool) -> None:
        match phase:
            case "connect":
                client.stage = "greet"
            case "ehlo" if not refused:
                client.stage = "idle"
                self.report(client, "link-identify", b"EHLO", b"mail.example")
            case "mail-from" if not refused:
                self._begin(client)
            case "rcpt-to":
                status = b"permfail" if refused else b"ok"
                self.report(client, "tx-rcpt", client.msgid, status, client.address)
                client.accepted += not refused
            case "data":
                self.report(client, "tx-data", client.msgid, b"permfail" if refused else b"ok")
                if not refused:
                    client.stage = "lines"
                    self._new_message(client)
            case "commit":
                self._commit(client, refused=refused)

    def _begin(self, client: Client) -> None:
        self._messages += 1
        client.msgid, client.stage = b"%08x" % self._messages, "mail"
        client.accepted, client.bad = 0, False
        self.report(client, "tx-begin", client.msgid)
        self.report(client, "tx-mail", client.msgid, b"ok", client.address)

    def _new_message(self, client: Client) -> None:
        client.got, client.virus = [], self.pick((False, False, True))
        number = b"id-" + client.msgid
        client.sent = [b"Subject: x", b"To: y@example", b"From: z@example", b""]
        if self.pick((0, 0, 0, 1)):
            client.sent[1:1] = [b"X-Long: " + b"w" * 900] * 80
        client.sent += [number, VIRUS if client.virus else b"clean"]
        if "data-line" in self.side.phases:
            self.lines(client, client.sent[:], end=False)

    def _commit(self, client: Client, *, refused: bool) -> None:
        if refused:
            self.report(client, "tx-rollback", client.msgid)
        else:
            if "data-line" in self.side.phases:
                number = client.sent[client.sent.index(b"") + 1]
                got = without_added(client.got)
                if got != client.sent:
                    self.seen.add("edited")
                assert got in self.world.results(number, client.sent), (got, client.sent)
                if self.world.scans:
                    assert not client.virus, "a virus"
                    assert self.world.judged_by_all(number)
            self.seen.add("passed")
            self.report(client, "tx-commit", client.msgid, b"100")
        self._end(client)

    def _end(self, client: Client) -> None:
        self.report(client, "tx-reset", client.msgid)
        client.msgid, client.stage = b"", "idle"

    # -- what happens --------------------------------------------------------------------

    def act(self) -> None:
        """Do anything that is legal now."""
        there = [each for each in self.clients if not each.gone]
        if not there or (len(there) < self.most and self.pick((0, 0, 0, 0, 0, 1))):
            self.connect()
            return
        idle = [each for each in there if not each.waiting]
        if self.pick(range(40)) == 1:
            self.leave(self.pick(there))
        elif idle:
            self.step(self.pick(idle))

    def step(self, client: Client) -> None:
        """Go on with a client's session."""
        match client.stage:
            case "greet":
                self.ask(client, "ehlo", b"mail.example")
            case "idle":
                client.address = self.pick((b"a@b.example", b"", b"c@d.example"))
                self.ask(client, "mail-from", client.address)
            case "mail" if client.accepted and self.pick((True, True, False)):
                if self.pick(range(9)) == 1:
                    self.report(client, "tx-rollback", client.msgid)
                    self._end(client)
                else:
                    self.ask(client, "data", b"")
            case "mail":
                client.address = self.pick((b"r@s.example", b"bad@s.example", b"t@s.example"))
                self.ask(client, "rcpt-to", client.address)
            case "lines":
                self._content(client)
            case "commit":
                self.ask(client, "commit", b"")

    def _content(self, client: Client) -> None:
        first, count = self.pick(range(len(BODY))), self.pick((0, 1, 3, 20, 150))
        lines = list(islice(cycle(BODY), first, first + count))
        client.sent += lines
        end = self.pick((True, False))
        if "data-line" not in self.side.phases:
            client.stage = "commit" if end else "lines"
            return
        if end:
            head = client.sent.index(b"")
            body = b"\n".join(client.sent[head + 1 :])
            self.bodies[client.sent[head + 1]] = body
            client.waiting = "."
        self.lines(client, lines, end=end)

    def lines(self, client: Client, lines: list[bytes], *, end: bool) -> None:
        """Send lines of a message."""
        token = self._tokens["data-line"]
        data = self.side.lines(client.name, token, lines, end=end, time=self._time())
        if data:
            self.send(data)

    def connect(self) -> None:
        """Connect a client."""
        client = Client(b"%016x" % (0x7641DF97 << 32 | len(self.clients) + 1))
        self.clients.append(client)
        address = self.pick(CLIENTS)
        shown = f"[{address}]:2525" if ":" in address else f"{address}:2525"
        where = (b"mail.example", b"pass", shown.encode(), b"192.0.2.200:25")
        self.report(client, "link-connect", *where)
        self.report(client, "link-greeting", b"mx.example")
        self.ask(client, "connect", f"mail.example|{address}".encode())

    def ask(self, client: Client, phase: str, argument: bytes) -> None:
        """Send a request, if its phase is registered."""
        if phase == "commit":
            client.waiting = ""
        if phase not in self.side.phases:
            self.decided(client, phase, b"proceed", b"")
            return
        client.waiting = phase
        self.send(
            self.side.request(phase, client.name, self._tokens[phase], argument, self._time())
        )

    def report(self, client: Client, name: str, *values: bytes) -> None:
        """Send a report, if it is registered."""
        if name in self.side.reports:
            self.send(self.side.report(name, client.name, *values, time=self._time()))

    def leave(self, client: Client) -> None:
        """Disconnect a client."""
        if client.gone:
            return
        client.gone = True
        if client.msgid:
            self.report(client, "tx-rollback", client.msgid)
            self.report(client, "tx-reset", client.msgid)
        self.report(client, "link-disconnect")

    def _time(self) -> bytes:
        self._clock += 1
        return b"1700000000.%06d" % self._clock


def _edited(sent: list[bytes], every: Iterable[Edits]) -> list[bytes]:
    """Return the lines of a message with the edits of milters."""
    lines = sent[:]
    for edits in every:
        if edits.subject:
            lines[0] = b"Subject: " + SUBJECT
        if edits.to:
            lines = [line for line in lines if line != b"To: y@example"]
        if edits.body:
            head = lines.index(b"")
            lines[head:] = _with_line(lines[head:])
    return lines


def _with_line(body: list[bytes]) -> list[bytes]:
    """Return the lines of a body that a milter has replaced, in which a CR becomes a blank."""
    return [line.replace(b"\r", b" ") for line in body] + [LINE]


class Programs:
    """What starts programs, in place of `Children`."""

    most, rest = 8, 1.0

    def __init__(
        self, label: str, connect: Callable[[str, float | None], Awaitable[socket.socket]]
    ) -> None:
        self.label = label
        self._connect = connect

    async def connect(self) -> Connection:
        """Start one."""
        try:
            return over(await self._connect(self.label, None))
        except OSError as error:
            raise UnconnectedError(error) from None

    async def aclose(self) -> None:
        """End them, whose connections are closed."""


class World:
    """Filters in an engine, their clients, their servers, and what happens to all."""

    def __init__(self, name: str, choices: Choices, patch: Any) -> None:
        self.bridges = [BRIDGES[each] for each in CHAINS[name]]
        self.choices = choices
        self.loop = Rounds()
        self.began = self.loop.now
        self.unhandled: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.unhandled.append(context))
        self.log = Lines()
        self.bugs: list[BaseException] = []
        #: The paths of servers that have got a message whole, by its number.
        self.judged: dict[bytes, set[str]] = {}
        #: What milters have edited in a message that they accepted, by its number and their paths.
        self.edited: dict[tuple[bytes, str], list[Edits]] = {}
        self.log.defect = self._defect  # type: ignore[assignment,method-assign]
        self.peers: list[servers.Peer] = []
        self.spool = Spool(memory=self.pick((1 << 25, 3000)), message=1 << 22)
        self.pace = Pace(self.pick((5000, 150)))
        #: Whether servers fail.
        self.faulty = self.pick((True, True, True, False))
        self.way = self.pick(("answered", "gone", "broken"))
        #: Whether all servers refuse connections, and how many connections take time.
        self.refuses = False
        self.connecting = 0
        #: Whether nothing passes that no server has accepted.
        self.strict = self.pick((True, True, False))
        #: Whether no message passes that a server has not accepted.
        self.scans = self.strict and any(each.filter is not Policy for each in self.bridges)
        #: What milters want.
        self.agreement = self.pick(AGREEMENTS)
        #: Whether no recipient passes that a server refuses.
        self.refuses_recipients = self.strict and any(
            each.filter is Policy or (each.filter is Milter and self.agreement.answers(RCPT))
            for each in self.bridges
        )
        self.connections = self.pick((1, 2, 6))
        self._patch(patch)
        self.loop.round(self._begin)
        self.server = Server(self)
        self.server.start()

    def pick(self, options: Sequence[T]) -> T:
        """One of these."""
        return self.choices.of(options)

    def _defect(self, *what: str) -> None:
        self.bugs.append(AssertionError(what))

    def _flags(self, bridge: Bridge) -> list[str]:
        flags = [
            *bridge.flags,
            *("--connections", str(self.connections)),
            *("--on-error", "tempfail" if self.strict else "proceed"),
            *("--deadline", str(DEADLINE)),
        ]
        if bridge.filter is Policy:
            flags += _servers("--at", *self.pick(STAGES))
        return flags

    def _patch(self, patch: Any) -> None:
        def probe(*_: object) -> Any:
            if self.pick((0, 0, 1)):
                raise NoAgreementError("injected")
            return self.agreement

        patch.setattr("smtpd_filters.filters.milter.probe.probe", probe)
        for module in ("filters.milter.gate", "filters.milter.dialogue", "runtime.messages"):
            patch.setattr(f"smtpd_filters.{module}.monotonic", self.loop.time)
        patch.setattr("smtpd_filters.lookups.stream.connection._connect_unix", self._connect)
        create: dict[int, Callable[..., Awaitable[Any]]] = {
            socket.AF_UNIX: self.loop.create_unix_connection,
            socket.AF_INET: self.loop.create_connection,
        }

        async def unix(factory: Any, path: str, **_: object) -> Any:
            sock = await self._connect(path, None)
            return await create[sock.family](factory, sock=sock)

        patch.setattr(self.loop, "create_unix_connection", unix)
        patch.setattr(
            "smtpd_filters.filters.policy.client.Children",
            lambda label, _command: Programs(label, self._connect),
        )

    def _begin(self) -> None:
        ready = []
        for bridge in self.bridges:
            cls = bridge.filter
            common = common_options(cls.outcomes(), cls.on_error, cls.deadline)
            own, general = parse_flags(
                cls.Options, self._flags(bridge), common=common, prog=f"filter-{cls.name}"
            )
            ready.append(set_up(cls(own), self.log, general, Pool()))
        self.filters = [each[0] for each in ready]
        for client in self._clients():
            client._clock = self.loop.time
            client._pings._clock = self.loop.time
        self.chain = Chain(ready, self.log)
        self.engine = Engine(self.chain, self.log, spool=self.spool, reserve=1)
        self.engine.spawn = self._spawn

    def _spawn(self, pending: Pending, done: Callable[[Any], None], price: int) -> Job:
        def failed(error: BaseException) -> None:
            self.bugs.append(error)
            done(None)

        return Job(self.loop, pending, done, failed, self.pace if price else None, price)

    def _clients(self) -> list[Any]:
        clients = [getattr(each, "_client", None) for each in self.filters]
        return [each for each in clients if each is not None]

    async def _connect(self, path: str, _seconds: float | None) -> socket.socket:
        """Connect to a server."""
        if self.faulty:
            match self.pick(range(12)):
                case 1:
                    raise servers.refused()
                case 2:
                    await self._wait(self.pick((1, 100)))
                case 3:
                    await asyncio.sleep(0)
                case 4:
                    raise OSError(24, "Too many open files")
        if self.refuses:
            raise servers.refused()
        bridge = next(each for each in self.bridges if path in each.paths)
        peer = bridge.peer(self.choices, partial(self._judged, path), faults=self.faulty)
        if isinstance(peer, servers.MilterPeer):
            peer.agreement = self.agreement
            peer.accepted = partial(self._accepted, path)
        self.peers.append(peer)
        return peer.filters

    async def _wait(self, seconds: float) -> None:
        self.connecting += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self.connecting -= 1

    def _judged(self, path: str, text: bytes) -> None:
        """Check that a server got a message as it was sent, with the edits of milters."""
        text = text.replace(b"\r\n", b"\n")
        body = text if path.startswith("/m") else text.partition(b"\n\n")[2]
        if not body:
            return
        body = b"\n".join(
            b"." + line if line.startswith(b".") else line for line in body.split(b"\n")[:-1]
        )
        number = body.partition(b"\n")[0]
        sent = self.server.bodies[number]
        lines = sent.split(b"\n")
        edited = [_with_line(lines), _with_line(_with_line(lines))]
        assert body.split(b"\n") in (lines, *edited), (number, body[:200])
        self.judged.setdefault(number, set()).add(path)

    def judged_by_all(self, number: bytes) -> bool:
        """Return whether a message has been judged by all that have to."""
        judged = self.judged.get(number, set())
        return all(
            (all if each.each else any)(path in judged for path in each.paths)
            for each in self.bridges
            if each.filter is not Policy
        )

    def _accepted(self, path: str, number: bytes, edits: Edits) -> None:
        self.edited.setdefault((number, path), []).append(edits)

    def results(self, number: bytes, sent: list[bytes]) -> list[list[bytes]]:
        """Return what a message may become: each milter may have been asked twice."""
        paths = [path for each in self.bridges if each.filter is Milter for path in each.paths]
        passed = [] if self.strict else [Edits()]
        edits = [self.edited.get((number, path), []) + passed for path in paths]
        return [_edited(sent, each) for each in product(*edits)]

    def receive(self, data: bytes) -> None:
        """Have the engine read, in a round of the loop."""
        self.loop.round(lambda: self.engine.receive(data))

    # -- what happens --------------------------------------------------------------------

    def happen(self) -> None:
        """Do one thing."""
        match self.pick(range(16)):
            case 0 | 1 | 2 | 3 | 4:
                for each in self.peers[-8:]:
                    each.act()
                self.settle(3)
            case 5:
                self.settle(1)
            case 7 if not self.pick(range(6)):
                self.loop.now += self.pick((0.3, 2.0, TIMEOUT, 40.0))
                self.settle(2)
            case 8 if self.faulty and self.peers and self.pick((True, False, False)):
                self.pick(self.peers[-8:]).break_off()
            case 6 | 9:
                self.serve(12)
            case 10 if self.faulty and self.peers and self.pick((True, False, False)):
                self.pick(self.peers[-8:]).speak()
            case _:
                self.server.act()

    def serve(self, rounds: int) -> None:
        """Have the servers read and answer."""
        self.peers = [each for each in self.peers if not each.closed or each.left]
        for _ in range(rounds):
            moved = [each.act() for each in self.peers]
            self.settle(2)
            if not any(moved):
                break

    def settle(self, rounds: int) -> None:
        """Process all that needs no new event."""
        for _ in range(rounds):
            if self.engine.working:
                self.loop.round(self.engine.work)
            if self.engine.stalled:
                self.loop.round(self.engine.resume)
            self.loop.round()
            self.server.collect()

    # -- the end -------------------------------------------------------------------------

    def finish(self) -> None:
        """End everything, and check what is left."""
        if self.way == "broken" and not self.connecting:
            # No request waits for the time-out of a server that has ended its connection.
            self.refuses = True
            for each in self.peers:
                each.close()
            self._check_answered(TIMEOUT / 2)
        elif self.way == "answered":
            # A message waits for its turn to be judged, and then is asked about.
            self._check_answered(1.6 * (PATIENCE + DEADLINE))
        for client in self.server.clients:
            self.server.leave(client)
        self.settle(30)
        self._check_sessions()
        self.server.oracle.finish()
        self.server.oracle.verify()
        for _ in range(4):
            self.loop.now += LONG
            self.settle(10)
        self._check_turns()
        closing = self.loop.create_task(self.chain.close())
        self.settle(20)
        assert closing.done()
        closing.result()
        self._check()

    def _check_answered(self, seconds: float) -> None:
        """Check that each request is answered within so many seconds."""
        for _ in range(16):
            self.loop.now += seconds / 16
            self.settle(30)
        waiting = [
            (each.name, each.waiting)
            for each in self.server.clients
            if each.waiting and not each.gone
        ]
        assert not waiting, waiting

    def _check_sessions(self) -> None:
        held = held_by(self.engine, self.spool, self.pace)
        # Each connection to a milter belongs to a session, but for a ping.
        links = [each for each in self.peers if each.left and isinstance(each, servers.MilterPeer)]
        held["links"] = links[sum(len(each.paths) for each in self.bridges if each.each) :]
        assert not any(held.values()), held

    def _check_turns(self) -> None:
        turns = [each.turns for client in self._clients() for each in client.hosts]
        for milter in self.filters:
            if isinstance(milter, Milter):
                turns += [each.links._turns for each in milter._milters]
        for each in turns:
            assert each._free == self.connections, (each._free, self.connections)
            assert not any((each._held, each._waiting, each._levels))

    def _check(self) -> None:
        gc.collect()
        held = {
            "asyncio": asyncio.all_tasks(self.loop),
            "timers": self.loop.timers,
            "connections": [each for each in self.peers if each.left],
        }
        assert not any(held.values()), held
        assert not self.bugs, self.bugs
        assert not self.unhandled, self.unhandled
        for line in self.log.lines:
            assert "Traceback" not in line, line
            assert " bug" not in line, line

    def close(self) -> None:
        """Close all."""
        for peer in self.peers:
            peer.close()
        self.loop.round()
        self.loop.close()
        for peer in self.peers:
            servers.shut(peer.filters)


def play(name: str, data: bytes, patch: Any) -> World:
    """Run one conversation of a bridge, chosen by these bytes."""
    world = World(name, Choices(data), patch)
    try:
        while world.choices.left:
            world.happen()
        world.finish()
    finally:
        world.close()
        patch.undo()
    return world
