"""Exempt clients: the setting by itself, and every filter with clients of all kinds."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters import PROCEED, Decision, Filter, Registration, Reject
from smtpd_filters.checks.exemptions import (
    EXEMPT,
    Exempt,
    client_address,
    exempt_option,
    exempted,
    known_address,
)
from smtpd_filters.cli.listing import discover
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filters.auth import Auth
from smtpd_filters.filters.clamav import Clamav
from smtpd_filters.filters.content import Content
from smtpd_filters.filters.correspondents import CorrespondentsFilter
from smtpd_filters.filters.dkimsign import Dkimsign
from smtpd_filters.filters.dnsbl import Dnsbl
from smtpd_filters.filters.dyndns import Dyndns
from smtpd_filters.filters.fcrdns import Fcrdns
from smtpd_filters.filters.greylist import Greylist
from smtpd_filters.filters.helo import Helo
from smtpd_filters.filters.limit import Limit
from smtpd_filters.filters.mailfrom import Mailfrom
from smtpd_filters.filters.milter import Milter
from smtpd_filters.filters.policy import Policy
from smtpd_filters.filters.rcpt import Rcpt
from smtpd_filters.filters.rewrite import Rewriter
from smtpd_filters.filters.rspamd import Rspamd
from smtpd_filters.filters.sender import Sender
from smtpd_filters.filters.senderscore import Senderscore
from smtpd_filters.filters.spamd import Spamd
from smtpd_filters.filters.tls import Tls
from smtpd_filters.filters.trace import Trace
from smtpd_filters.milter import Agreement, vocabulary
from smtpd_filters.milter import Verdict as MilterVerdict
from smtpd_filters.protocol.credentials import SPOILT_REPLY
from smtpd_filters.session import Session
from smtpd_filters.settings import Settings, common_options, from_mapping, parse_flags
from smtpd_filters.tables import NetworkTable
from smtpd_filters.testing import Conversation, DNSServer
from smtpd_filters.testing.rspamd.stub import Answer, RspamdStub
from tests.effort import some
from tests.filters.clamav.stub import Clamd
from tests.filters.dnsbl.zones import addresses, domains
from tests.filters.milter.stub import milter
from tests.filters.policy.scripted import Scripted, action
from tests.filters.spamd.stub import Answer as SpamdAnswer
from tests.filters.spamd.stub import SpamdStub, spam

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.filter import Filter
    from smtpd_filters.testing import Client, Verdict

# -- the setting -----------------------------------------------------------------------------------

REFUSE_ALL = Path(__file__).parent / "refuse-all.txt"
SOCKET = "unix:/var/run/smtpd.sock"
LOOPBACK = ("127.0.0.1:25000", "127.9.9.9:1", "[::1]:25000", "[::ffff:127.0.0.1]:25000")
STRANGERS = (
    *("203.0.113.7:25000", "[2001:db8:1::25]:25000", "[::ffff:203.0.113.7]:25000", "12.7.0.0:1"),
    "198.51.100.25:25000",  # the server's own address
)
#: What smtpd would never report as a source.
MALFORMED = (
    *("", ":", ":25", "local", "localhost:25", "unix", "UNIX:/run/x", " unix:/run/x"),
    *("127.0.0.1", "[::1]", "::1", "127.0.0.999:25", "127.0.0:25", "127.0.0.1.example:25"),
    *("127.x:25", "[::ffff:127.x]:25", "127.0.0.:25", "[::1", "[::1].example:25"),
    *("\udcff:25", "0x7f.0.0.1:25"),
)
ALLOW = NetworkTable.load("{ 192.0.2.0/28, 2001:db8::/64 }")
LISTED = ("192.0.2.7:25000", "[2001:db8::7]:25000", "[::ffff:192.0.2.7]:1", "[2001:db8::7%em0]:1")


def session(src: str, *, user: str = "") -> Session:
    made = Session(b"7641df9700000001").expect(["username"])
    raw = src.encode("utf-8", "surrogateescape")
    made.apply("link-connect", (b"mail.example.net", b"pass", raw, b"198.51.100.25:25"))
    if user:
        made.apply("link-auth", (b"pass", user.encode()))
    return made


def unreported(*, user: str = "") -> Session:
    made = Session(b"7641df9700000001").expect(["username"])
    if user:
        made.apply("link-auth", (b"pass", user.encode()))
    return made


class Usual(Settings):
    exempt = exempt_option("local", "authenticated")


class Nobody(Settings):
    exempt = exempt_option()


def given(*values: str, cls: Any = Usual) -> Exempt:
    flags = [word for value in values for word in ("--exempt", value)]
    own, _ = parse_flags(cls, flags, common=common_options(), prog="filter-x")
    exempt: Exempt = own.exempt
    return exempt


@pytest.mark.parametrize("src", [SOCKET, *LOOPBACK])
def test_a_client_on_this_machine_is_local(src: str) -> None:
    client = session(src)
    assert client.local
    assert client.by_socket is (src == SOCKET)
    assert given().reason(client) == "local"
    assert given(cls=Nobody).reason(client) == ""


@pytest.mark.parametrize("src", [*STRANGERS, *MALFORMED, *LISTED])
def test_any_other_is_not(src: str) -> None:
    assert not session(src).local
    assert not session(src).by_socket
    assert given().reason(session(src)) == ""


def test_a_client_of_which_nothing_was_reported_is_not_local() -> None:
    assert not unreported().local
    for exempt in (given(), given("local"), given("0.0.0.0/0", "::/0"), given("{ local }")):
        assert exempt.reason(unreported()) == ""
    assert given().reason(unreported(user="anna")) == "authenticated"


@pytest.mark.parametrize("src", LISTED)
def test_a_client_in_a_table_is_exempt_by_its_entry(src: str) -> None:
    entry = "192.0.2.0/28" if "192" in src else "2001:db8::/64"
    assert given().also(ALLOW).reason(session(src)) == entry
    assert given("{ 192.0.2.0/28, 2001:db8::/64 }").reason(session(src)) == entry
    assert given().also(None) == given()


def test_local_in_a_table_is_every_local_client() -> None:
    exempt = given("{ local, 192.0.2.1 }", cls=Nobody)
    for src in (SOCKET, *LOOPBACK):
        assert exempt.reason(session(src)) == "local"
    assert exempt.reason(session(STRANGERS[0])) == ""


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((), {"local", "authenticated"}),
        (("192.0.2.1",), {"local", "authenticated"}),
        (("local",), {"local"}),
        (("local", "192.0.2.1"), {"local"}),
        (("192.0.2.1", "authenticated"), {"authenticated"}),
        (("socket", "authenticated"), {"socket", "authenticated"}),
    ],
)
def test_tables_add_to_the_default_and_words_replace_it(
    values: tuple[str, ...], words: set[str]
) -> None:
    for exempt in (given(*values), from_mapping(Usual, {"exempt": list(values)}, "x.toml").exempt):
        assert exempt.words == words
        assert len(exempt.tables) == values.count("192.0.2.1")
        assert bool(exempt.reason(session(SOCKET))) is bool(words & {"local", "socket"})
        assert bool(exempt.reason(session("127.0.0.1:1"))) is ("local" in words)
        assert bool(exempt.reason(session(STRANGERS[0], user="anna"))) is exempt.users
        assert exempt.users is ("authenticated" in words)
        assert bool(exempt.reason(session("192.0.2.1:1"))) is ("192.0.2.1" in values)


def test_what_is_not_to_be_read_is_not() -> None:
    # At connect nobody asks for the report: to read the user would raise.
    blind = Session(b"7641df9700000001")
    blind.apply("link-connect", (b"x", b"pass", b"192.0.2.1:1", b"198.51.100.25:25"))
    assert given().without_users().reason(blind) == ""
    assert given("authenticated").without_users().words == set()
    assert given("local", "authenticated").without_users().words == {"local"}
    assert given().without_users().words == {"local"}


def test_check_users_is_a_word_less() -> None:
    assert given().check_users() == given().without_users()
    assert given("local").check_users().words == {"local"}
    with pytest.raises(ConfigError, match="--check-users contradicts --exempt authenticated"):
        given("authenticated").check_users()


def test_how_it_is_written() -> None:
    value = given("local", "{ 192.0.2.0/24 }", "authenticated")
    assert EXEMPT.show(value) == "local, authenticated, { 192.0.2.0/24 }"
    for word in ("local", "socket", "authenticated"):
        assert EXEMPT.parse(EXEMPT.show(EXEMPT.parse(word))) == EXEMPT.parse(word)
    assert hash(given("local")) == hash(given("local"))
    assert given() != given("local")
    assert given() != "local"
    assert repr(given()) == "<exempt: local, authenticated>"
    with pytest.raises(TypeError, match="expected Exempt"):
        Usual(exempt="local")


@pytest.mark.parametrize("value", ["lokal", "users", "file:/nonexistent", "300.0.0.1", "{ x y }"])
def test_what_is_neither_a_word_nor_a_table_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^filter-x: --exempt: "):
        given(value)
    with pytest.raises(ConfigError, match=r"^x\.toml: exempt: "):
        from_mapping(Usual, {"exempt": [value]}, "x.toml")


@pytest.mark.parametrize("value", ["local", [1], 1, True])
def test_in_a_file_it_is_an_array(value: object) -> None:
    with pytest.raises(ConfigError, match="expected an array of strings"):
        from_mapping(Usual, {"exempt": value}, "x.toml")


def test_its_tables_are_read_again(tmp_path: Path) -> None:
    table = tmp_path / "friends"
    table.write_text("192.0.2.1\n")
    with Conversation(Sender, *NO_DNS, f"--exempt=file:{table}") as smtpd:
        assert come(smtpd, sender="bob").refused
        table.write_text("203.0.113.7\n")
        smtpd.reload()
        assert not come(smtpd, sender="bob").refused
    assert not given().is_file


def test_a_table_that_cannot_be_read_exempts_nobody_and_hides_no_other() -> None:
    down, friends = NetworkTable.of(["192.0.2.1"]), NetworkTable.of(["203.0.113.7"])
    down.unload("connection refused")
    exempt = Exempt((), (down, friends), ("local",))
    assert exempt.reason(session("203.0.113.7:25")) == "203.0.113.7"
    assert exempt.reason(session("127.0.0.1:25")) == "local"
    with pytest.raises(UnavailableError, match="connection refused"):
        exempt.reason(session("192.0.2.1:25"))
    assert exempt.known_reason(session("192.0.2.1:25")) == ""
    assert exempt.known_reason(session("203.0.113.7:25")) == "203.0.113.7"


def test_addresses_that_are_not_known() -> None:
    assert client_address(session(SOCKET)) is None
    assert client_address(session("192.0.2.1:25")) == "192.0.2.1"
    assert client_address(session("[fe80::1%em0]:25")) == "fe80::1%em0"
    for client in (unreported(), *map(session, MALFORMED)):
        assert known_address(client) is None
        with pytest.raises(UnavailableError, match="the client's address is not known") as raised:
            client_address(client)
        assert raised.value.status == "4.3.0"


# -- every filter ----------------------------------------------------------------------------------

NO_DNS = ("--unknown=off", "--null-mx=off", "--bad-mx=off")
OFF = ("--unknown=off",)
MESSAGE = b"From: bob@example.net\r\nSubject: hello\r\n\r\nhello\r\n"
BAD, BAD6, WORSE = "203.0.113.7", "2001:db8:1::7", "203.0.113.8"
ENTRIES: dict[str, dict[str, Any]] = {
    **addresses("bl.example", dict.fromkeys((BAD, BAD6, WORSE, "127.0.0.7"), "127.0.0.4")),
    **domains("names.example", {"bad.example": "127.0.1.2"}),
    "_dmarc.example.net": {"TXT": "v=DMARC1; p=reject"},
    "spf.example": {"TXT": "v=spf1 -all"},
    "7.113.0.203.score.senderscore.com": {"A": "127.0.4.1"},
    "8.113.0.203.score.senderscore.com": {"A": "127.0.4.1"},
    "7.0.0.127.score.senderscore.com": {"A": "127.0.4.1"},
}
EVERY_PHASE = ("connect", "helo", "mail-from", "rcpt-to")
SCORE_PHASES = ("connect", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "quit")


@dataclass(frozen=True)
class Case:
    """A filter that refuses a stranger at one phase.

    `unknown` is what it refuses a client with of which nothing was reported: "as a stranger", or
    "unavailable" if it can't judge without. `flags` may name the words of `servers`. `exempts` are
    the words of `--exempt` that it has by default.
    """

    cls: type[Filter]
    phase: str
    flags: tuple[str, ...]
    unknown: str
    says: dict[str, str] = field(default_factory=dict)
    exempts: frozenset[str] = frozenset({"local", "authenticated"})

    @property
    def where(self) -> str:
        """The phase, when the client says EHLO."""
        return "ehlo" if self.phase == "helo" else self.phase

    def __str__(self) -> str:
        return " ".join((self.cls.name, self.phase, *self.flags))


class Odd(Conversation):
    """One in which smtpd says what no smtpd would."""

    def verify(self) -> None:
        self.oracle.finish()
        self.oracle.verify(odd=True)


def dnsbl(kind: str, zone: str, phase: str) -> Case:
    """A list that is asked at one phase."""
    flags = (f"--{kind}={zone}", "--phase", phase, "--reject-at=1", "--nameserver=ZONE")
    about_client = kind in {"client", "rdns"}
    says = {"helo": "bad.example", "sender": "bob@bad.example", "rdns": "bad.example"}
    return Case(Dnsbl, phase, flags, "unavailable" if about_client else "as a stranger", says)


ACT = ("--action", "reject", "--phase")
CASES = (
    *(Case(Dyndns, at, (*ACT, at), "unavailable", {"rdns": "a.dyn.example.net"})
      for at in EVERY_PHASE),
    *(Case(Fcrdns, at, (*ACT, at, *more), "unavailable", {"rdns": ""})
      for at in EVERY_PHASE for more in ((), ("--verify", "--nameserver=ZONE"))),
    *(Case(Helo, at, ("--phase", at, *OFF), "as a stranger", {"helo": "gate"})
      for at in EVERY_PHASE[1:]),
    *(Case(Helo, at, ("--phase", at, "--unknown=reject", "--nameserver=ZONE"), "as a stranger",
           {"helo": "missing.example"}) for at in EVERY_PHASE[1:]),
    *(Case(Helo, at, ("--phase", at, *OFF), "as a stranger", {"helo": "mx.example.org"})
      for at in EVERY_PHASE[1:]),
    *(Case(Helo, at, ("--phase", at, *OFF), "unavailable", {"helo": "[192.0.2.99]"})
      for at in EVERY_PHASE[1:]),
    *(Case(Helo, at, ("--phase", at, *OFF, "--elsewhere=reject", "--nameserver=ZONE"),
           "unavailable", {"helo": "missing.example"}) for at in EVERY_PHASE[1:]),
    Case(Sender, "mail-from", NO_DNS, "as a stranger", {"sender": "bob"}),
    Case(Sender, "mail-from", ("--nameserver=ZONE",), "as a stranger", {"sender": "b@no.example"}),
    Case(Rcpt, "rcpt-to", (), "as a stranger", {"recipient": "anna@mail"}),
    Case(Rcpt, "rcpt-to", ("--traps=anna@example.org", "--trapped=reject"), "as a stranger"),
    Case(Mailfrom, "mail-from", ("--domains=example.org",), "as a stranger",
         {"sender": "boss@example.org"}),
    Case(Mailfrom, "commit", ("--domains=example.net", "--check-header"), "as a stranger",
         {"sender": "bob@example.com"}),
    *(dnsbl("client", "bl.example", at) for at in EVERY_PHASE),
    *(dnsbl("rdns", "names.example", at) for at in EVERY_PHASE),
    *(dnsbl("helo", "names.example", at) for at in EVERY_PHASE[1:]),
    *(dnsbl("sender", "names.example", at) for at in EVERY_PHASE[2:]),
    *(Case(Senderscore, at, ("-blockBelow=50", "-blockPhase", at, "--nameserver=ZONE"),
           "unavailable", exempts=frozenset({"local"})) for at in SCORE_PHASES),
    *(Case(Greylist, at, ("--store=memory:", "--key=network", "--phase", at), "unavailable")
      for at in ("rcpt-to", "data")),
    Case(Limit, "commit", ("--store=memory:", "--limit=sender bytes 10/1d"), "as a stranger",
         exempts=frozenset()),
    Case(Limit, "commit", ("--store=memory:", "--limit=client+sender bytes 10/1d"), "unavailable",
         exempts=frozenset()),
    Case(Rspamd, "commit", ("-url=STUB",), "as a stranger", exempts=frozenset()),
    Case(Clamav, "commit", ("--clamd=CLAMD",), "as a stranger", exempts=frozenset()),
    Case(Spamd, "commit", ("--spamd=SPAMASSASSIN", "--reject-at=spam"), "as a stranger",
         exempts=frozenset()),
    Case(Milter, "commit", ("--milter=MILTER",), "as a stranger", exempts=frozenset()),
    *(Case(Policy, at, ("--server=SERVER", "--at", at), "unavailable")
      for at in ("mail-from", "rcpt-to")),
    Case(Content, "commit", (f"--header-checks=regexp:{REFUSE_ALL}",), "as a stranger",
         exempts=frozenset()),
    *(Case(Tls, at, (f"--require=any bits=300 {whom}",), "as a stranger",
           exempts=frozenset({"local"}))
      for at, whom in (("mail-from", "sender=@"), ("rcpt-to", "recipient=@"))),
    Case(Auth, "commit", ("--dmarc-reject=reject", "--nameserver=ZONE"), "as a stranger",
         {"sender": "bob@bad.example"}),
    Case(Auth, "commit", ("--spf-fail=reject", "--nameserver=ZONE"), "unavailable",
         {"sender": "bob@spf.example"}),
)  # fmt: skip
#: Filters that judge nobody.
IMPARTIAL = {CorrespondentsFilter, Dkimsign, Rewriter, Trace}


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    """A name server, and daemons that reject everything, by the words of flags."""
    rejected = {vocabulary.END_OF_BODY: MilterVerdict(vocabulary.REJECT).encode()}
    with (
        DNSServer(ENTRIES) as zone,
        RspamdStub() as rspamd,
        Clamd(b"stream: Own.Test FOUND\0") as clamd,
        SpamdStub(SpamdAnswer(spam)) as spamd,
        milter(Agreement(), answers=rejected) as one,
        Scripted(script=lambda _request: action("REJECT")) as policy,
    ):
        rspamd.answer = Answer(b'{"action": "reject", "score": 99, "required_score": 15}')
        yield {
            "ZONE": f"{zone.address}:{zone.port}",
            "STUB": rspamd.url,
            "CLAMD": clamd.address,
            "SPAMASSASSIN": spamd.server,
            "MILTER": one.address,
            "SERVER": f"127.0.0.1:{policy.port}",
        }


@dataclass(frozen=True)
class Setup:
    """A case with its servers."""

    case: Case
    servers: dict[str, str]

    def talk(self, *more: str, kind: type[Conversation] = Conversation) -> Conversation:
        """A conversation with the filter, which answers a failure with a recognisable refusal."""
        flags = [*self.case.flags, "--on-error=tempfail", *more]
        for name, server in self.servers.items():
            flags = [flag.replace(name, server) for flag in flags]
        return kind(self.case.cls, *flags)


@pytest.fixture(params=CASES, ids=str)
def setup(request: pytest.FixtureRequest, servers: dict[str, str]) -> Setup:
    return Setup(request.param, servers)


def come(
    smtpd: Conversation,
    *,
    helo: str = "mail.example.net",
    sender: str = "bob@example.net",
    recipient: str = "anna@example.org",
    user: str = "",
    **client: Any,
) -> Verdict:
    """Send a message: the first refusal, or the last verdict."""
    client = {"address": BAD, **client}
    if client.get("rdns") == "":
        client["rdns"] = None
    there = smtpd.connect(**client)
    return go_on(there, there.greeting, helo, sender, recipient, user)


def go_on(  # noqa: PLR0913  # all that a client says
    there: Client, said: Verdict, helo: str, sender: str, recipient: str, user: str
) -> Verdict:
    steps = (
        lambda: there.ehlo(helo),
        there.tls,
        lambda: there.ehlo(helo),
        *([lambda: there.auth(user)] if user else [lambda: there.auth("bob", ok=False)]),
        lambda: there.mail_from(sender),
        lambda: there.rcpt_to(recipient),
        lambda: there.message(MESSAGE),
        there.quit,
    )
    for step in steps:
        if said.refused and not said.reply.startswith("535"):
            return said
        said = step()
    return said


def upcoming(smtpd: Conversation) -> bytes:
    """The id of the session that the next client will have."""
    return b"%016x" % (0x7641DF97 << 32 | smtpd._clients + 1)


def report(smtpd: Conversation, src: str, session: bytes, rdns: str = "bad.example") -> None:
    raw = src.encode("utf-8", "surrogateescape")
    name = rdns.encode() or b"<unknown>"
    smtpd.report("link-connect", session, name, b"fail", raw, b"198.51.100.25:25")


def is_judged(setup: Setup, said: Verdict, smtpd: Conversation) -> None:
    """Check what a client gets that was never reported."""
    assert said.refused
    if setup.case.unknown == "unavailable":
        replies = ["421 4.3.0", "451 4.3.0", "454 4.3.0", "454 4.7.0"]
        if said.phase == "auth":
            # An AUTH with credentials is made to fail, and the refusal given later.
            replies.append(SPOILT_REPLY)
        assert said.reply.startswith(tuple(replies))
        # Of what fails at auth the log has the place alone.
        cause = "UnavailableError" if said.phase == "auth" else "the client's address is not known"
        # The details are logged once, and each session.
        assert cause in smtpd.log[0]
        assert " result=" in smtpd.log[-1]
    else:
        assert said.phase == setup.case.where
        assert said.reply.startswith("5")


def test_every_filter_is_here() -> None:
    """A new filter needs a row, with what it does about a client that was never reported."""
    found, broken = discover()
    assert not broken
    assert {case.cls for case in CASES} | IMPARTIAL == set(found)


def test_a_stranger_is_refused(setup: Setup) -> None:
    with setup.talk() as smtpd:
        said = come(smtpd, **setup.case.says)
        assert said.phase == setup.case.where
        assert said.reply[:1] in {"4", "5"}
        assert "cause=" not in smtpd.log[-1]


@pytest.mark.parametrize(
    ("words", "client"),
    some(
        product(
            [(), ("local",), ("socket",), ("authenticated",)],
            [{"local": True}, {"address": "127.0.0.7"}, {"address": "::1"}],
        )
    ),
)
def test_a_local_client_is_exempt_if_the_word_says_so(
    setup: Setup, client: dict[str, Any], words: tuple[str, ...]
) -> None:
    hold = set(words) or setup.case.exempts
    exempt = "local" in hold or ("socket" in hold and "local" in client)
    with setup.talk("-v", *(f"--exempt={word}" for word in words)) as smtpd:
        said = come(smtpd, **{**setup.case.says, **client})
        if exempt:
            assert not said.refused
            word = "local" if "local" in hold else "socket"
            assert any(f'reason="exempt: {word}"' in line for line in smtpd.log)
        else:
            assert not any("exempt: " in line for line in smtpd.log)
            # What is about an address or a name of a client has nothing to say about the socket.
            needs = setup.case.unknown == "unavailable" or setup.case.says.get("helo")
            assert said.refused or needs


@pytest.mark.parametrize(
    ("case", "flag"),
    [
        pytest.param(case, flag, id=f"{flag} {case}")
        for flag in ("exempt", "allow", "trusted", "skip")
        for case in CASES
        if flag in case.cls.Options.options
    ],
)
def test_a_client_in_a_table_is_exempt(case: Case, flag: str, servers: dict[str, str]) -> None:
    setup = Setup(case, servers)
    with setup.talk("-v", f"--{flag}={{ {BAD}, {BAD6} }}") as smtpd:
        for address in (BAD, BAD6):
            assert not come(smtpd, **{**setup.case.says, "address": address}).refused
            assert any(f'reason="exempt: {address}"' in line for line in smtpd.log)
        assert come(smtpd, **{**setup.case.says, "address": WORSE}).refused


def test_a_user_is_exempt_once_it_has_authenticated(setup: Setup) -> None:
    late = setup.case.phase in {"mail-from", "rcpt-to", "data", "commit", "quit"}
    with setup.talk("--exempt=authenticated") as smtpd:
        assert come(smtpd, **setup.case.says, user="anna").refused is not late
        assert come(smtpd, **setup.case.says).refused
    with setup.talk("--exempt=local") as smtpd:
        assert come(smtpd, **setup.case.says, user="anna").refused


def test_a_word_that_can_exempt_nobody_is_said_at_the_start(setup: Setup) -> None:
    name = setup.case.cls.name
    phase = dict(pairwise(setup.case.flags)).get("--phase", "")
    phases = {"connect", "helo", "ehlo", "starttls", "auth"}
    if name == "senderscore" and setup.case.phase in phases:
        phase = setup.case.phase
    early = phase in phases
    said = (
        f"{name} --exempt authenticated has no effect at {phase}: no client has authenticated "
        "before mail-from"
    )
    with setup.talk("--exempt=authenticated") as smtpd:
        assert [line for line in smtpd.log if "--exempt" in line] == ([said] if early else [])
    with setup.talk("--exempt=local", "--exempt=authenticated") as smtpd:
        lines = [line for line in smtpd.log if "--exempt" in line]
        assert lines == ([said] if early and setup.case.exempts == {"local"} else [])
    with setup.talk() as smtpd:
        assert not [line for line in smtpd.log if "--exempt" in line]


def test_without_verbose_an_exempt_client_leaves_no_line(setup: Setup) -> None:
    with setup.talk("--exempt=local") as smtpd:
        assert not come(smtpd, **setup.case.says, local=True).refused
        assert smtpd.log == []


# -- facts that are missing or wrong ---------------------------------------------------------------


def test_a_client_of_which_nothing_was_reported_is_judged(setup: Setup) -> None:
    with setup.talk() as smtpd:
        is_judged(setup, come(smtpd, **setup.case.says, reported=False), smtpd)


def test_nobody_is_exempt_for_what_was_reported_of_another(setup: Setup) -> None:
    with setup.talk("--exempt=local", "--exempt={ 0.0.0.0/0, ::/0 }") as smtpd:
        friend = smtpd.connect(local=True)
        is_judged(setup, come(smtpd, **setup.case.says, reported=False), smtpd)
        friend.disconnect()
        is_judged(setup, come(smtpd, **setup.case.says, reported=False), smtpd)


def test_an_invalid_source_exempts_nobody(setup: Setup) -> None:
    with setup.talk("--exempt=local", "--exempt={ 0.0.0.0/0, ::/0 }") as smtpd:
        for src in MALFORMED:
            report(smtpd, src, upcoming(smtpd), setup.case.says.get("rdns", "bad.example"))
            assert come(smtpd, **setup.case.says, reported=False).refused, src


def test_what_was_reported_last_counts(setup: Setup) -> None:
    with setup.talk("--exempt=local", kind=Odd) as smtpd:
        report(smtpd, SOCKET, upcoming(smtpd))
        said = come(smtpd, **setup.case.says)
        assert said.refused
        assert said.phase == setup.case.where


def test_an_id_that_is_used_again_is_another_client(setup: Setup) -> None:
    """Though `link-disconnect` of the first one never came."""
    with setup.talk("--exempt=local", "--exempt=authenticated", kind=Odd) as smtpd:
        session = upcoming(smtpd)
        friend = smtpd.connect(local=True)
        friend.ehlo("mail.example.net")
        friend.auth("anna")
        friend.mail_from("anna@example.org")
        smtpd._clients -= 1
        assert upcoming(smtpd) == session
        said = come(smtpd, **setup.case.says)
        assert said.refused
        assert said.phase == setup.case.where


@pytest.mark.parametrize("phase", ["mail-from", "rcpt-to"])
def test_a_greeting_that_was_not_reported_is_no_pass(phase: str) -> None:
    with Conversation(Helo, *OFF, "--phase", phase, "--on-error=tempfail") as smtpd:
        for local in (False, True):
            there = smtpd.connect(local=local)
            there._identity = "gate"  # smtpd has taken it, and didn't say so
            said = there.mail_from("bob@example.net")
            if phase == "rcpt-to":
                said = there.rcpt_to("anna@example.org")
            assert said.refused is not local
        assert "the client's greeting is not known" in smtpd.log[0]


class Everywhere(Filter):
    """Refuses clients that aren't exempt at one phase; its author knows nothing of reports."""

    class Options(Settings):
        exempt = exempt_option("local", "authenticated")

    settings: Options
    only = ""

    def setup(self) -> Registration:
        return Registration({self.only})

    def _judge(self, session: Session) -> Decision:
        if why := self.settings.exempt.reason(session):
            return exempted(self, why)
        return Reject("550 5.7.1 No")

    def connect(self, session: Session) -> Decision:
        assert session.identity is None
        assert session.tx is None
        return self._judge(session)

    def helo(self, session: Session, identity: str) -> Decision:  # noqa: ARG002
        assert session.tx is None
        return self._judge(session)

    ehlo = helo

    def starttls(self, session: Session) -> Decision:
        return self._judge(session)


class Silent(Filter):
    """Decides later, and reads nothing of the session."""

    def setup(self) -> Registration:
        return Registration(reports=())

    def mail_from(self, session: Session, address: str) -> Decision:  # noqa: ARG002
        return PROCEED


@pytest.mark.parametrize("others", [[], [Silent]], ids=["alone", "in a chain"])
@pytest.mark.parametrize("only", ["connect", "helo", "ehlo"])
def test_exemptions_before_authentication(only: str, others: list[Any]) -> None:
    made = type("Early", (Everywhere,), {"only": only, "__doc__": "Refuses early."})
    with Conversation([made, *others]) as smtpd:
        local, stranger = smtpd.connect(local=True), smtpd.connect(address="192.0.2.9")
        for client in (local, stranger):
            verdict = client.greeting if only == "connect" else getattr(client, only)()
            assert verdict.refused is (client is stranger)


def test_exemptions_at_starttls() -> None:
    made = type("Late", (Everywhere,), {"only": "starttls", "__doc__": "Refuses late."})
    with Conversation(made) as smtpd:
        client = smtpd.connect(address="192.0.2.9")
        client.ehlo()
        assert client.tls().refused


def test_what_a_registration_names_alone_is_read() -> None:
    made = type("Named", (Everywhere,), {"setup": lambda _: Registration({"ehlo"}, reports=())})
    with Conversation(made, errors=True) as smtpd:
        smtpd.connect(address="192.0.2.9").ehlo()
        assert "session.tx needs the report" in smtpd.errors[0]
