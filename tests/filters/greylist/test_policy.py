from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.authentication import spf
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filters.dyndns import Dyndns
from smtpd_filters.filters.greylist import Greylist, clients
from smtpd_filters.scoring.rules import FilterRules, Rules, RuleSettings
from smtpd_filters.stores.address import MEMORY
from smtpd_filters.stores.memory import MemoryStore
from smtpd_filters.testing import Conversation, DNSServer
from tests.filters.executables import complaint

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.testing import Client, Verdict

#: No look-ups: the client is its network.
PLAIN = ("--store", "memory:", "--key", "network")
ANNA, YOU = "anna@example.org", "you@example.net"
FIRST = "451 4.7.1 Greylisted, please try again in 300 seconds"


@pytest.fixture(autouse=True)
def _frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock of filters, which tests advance."""
    monkeypatch.setattr("smtpd_filters.filter.monotonic", lambda: 1000.0)


def come(smtpd: Conversation, sender: str = ANNA, **client: Any) -> Client:
    """Connect a client and begin a message."""
    user = client.pop("user", "")
    helo = client.pop("helo", "mail.example.com")
    peer = smtpd.connect(**client)
    peer.ehlo(helo)
    if user:
        peer.auth(user)
    peer.mail_from(sender)
    return peer


def send(smtpd: Conversation, sender: str = ANNA, recipient: str = YOU, **client: Any) -> Verdict:
    """Send to one recipient; return the verdict on it."""
    return come(smtpd, sender, **client).rcpt_to(recipient)


def passes(smtpd: Conversation, *args: Any, **client: Any) -> bool:
    return send(smtpd, *args, **client).verb == "proceed"


# -- waiting -------------------------------------------------------------------------------


def test_a_client_waits_once() -> None:
    with Conversation(Greylist, *PLAIN) as smtpd:
        assert smtpd.phases == {"rcpt-to", "data"}
        assert send(smtpd).reply == FIRST
        smtpd.advance(100)
        assert send(smtpd).reply == FIRST.replace("300", "200")
        smtpd.advance(199)
        assert send(smtpd).reply == FIRST.replace("300 seconds", "1 seconds")
        smtpd.advance(1)
        client = come(smtpd)
        assert client.rcpt_to(YOU).verb == "proceed"
        assert client.message().verb == "proceed"
        assert passes(smtpd, address="192.0.2.200")
        assert not passes(smtpd, address="198.51.100.1")
        assert not passes(smtpd, "bert@example.org")
        assert not passes(smtpd, recipient="other@example.net")
        assert 'result=reject reason="client 192.0.2.0/24: first attempt"' in smtpd.log[0]
        assert 'reason="client 192.0.2.0/24: retried too early"' in smtpd.log[1]
        assert 'result=proceed reason="client 192.0.2.0/24: waited 300 s"' in smtpd.log[3]


def test_the_operator_sets_the_times_and_the_reply() -> None:
    flags = ("--delay", "10", "--window", "1h", "--lifetime", "1d", "--known-after", "1")
    reply = ("--reply", "450 4.2.0 Come back in %{seconds} s, not before %{seconds} s")
    with Conversation(Greylist, *PLAIN, *flags, *reply) as smtpd:
        assert send(smtpd).reply == "450 4.2.0 Come back in 10 s, not before 10 s"
        smtpd.advance(3601)
        assert not passes(smtpd)
        smtpd.advance(11)
        assert passes(smtpd)
        assert passes(smtpd, "bert@example.org", "other@example.net")  # known
        smtpd.advance(86_401)
        assert not passes(smtpd)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.255", True),
        ("192.0.2.1", "192.0.3.1", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.9", True),
    ],
)
def test_a_client_is_a_network(one: str, other: str, same: bool) -> None:  # noqa: FBT001
    with Conversation(Greylist, *PLAIN) as smtpd:
        send(smtpd, address=one)
        smtpd.advance(301)
        assert passes(smtpd, address=other) is same
    with Conversation(Greylist, *PLAIN, "--ipv4-prefix=32", "--ipv6-prefix=128") as smtpd:
        send(smtpd, address=one)
        smtpd.advance(301)
        assert not passes(smtpd, address=other)
        assert passes(smtpd, address=one)


def test_senders_are_compared_without_what_varies() -> None:
    with Conversation(Greylist, *PLAIN) as smtpd:
        assert not passes(smtpd, "list-return-1-you=example.net@example.org", "You@EXAMPLE.net")
        smtpd.advance(301)
        assert passes(smtpd, "list-return-2-you=example.net@EXAMPLE.org")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0)])
def test_a_retry_passes_whatever_the_order_of_its_recipients(order: tuple[int, ...]) -> None:
    recipients = [f"user{number}@example.net" for number in range(3)]
    with Conversation(Greylist, *PLAIN) as smtpd:
        client = come(smtpd)
        assert {client.rcpt_to(each).reply for each in recipients} == {FIRST}
        smtpd.advance(301)
        client = come(smtpd)
        assert {client.rcpt_to(recipients[at]).verb for at in order} == {"proceed"}


def test_recipients_behind_one_that_has_waited_pass_with_it() -> None:
    with Conversation(Greylist, *PLAIN) as smtpd:
        come(smtpd).rcpt_to("a@example.net")
        smtpd.advance(301)
        client = come(smtpd)
        assert client.rcpt_to("b@example.net").refused
        assert client.rcpt_to("a@example.net").verb == "proceed"
        assert client.rcpt_to("c@example.net").verb == "proceed"
        client = come(smtpd)
        assert client.rcpt_to("d@example.net").refused  # another message
        assert client.rcpt_to("c@example.net").verb == "proceed"


def test_at_data_a_message_is_refused_as_a_whole() -> None:
    with Conversation(Greylist, *PLAIN, "--phase", "data") as smtpd:
        assert smtpd.phases == {"data"}
        for after, refused in ((0, True), (299, True), (2, False)):
            smtpd.advance(after)
            client = come(smtpd)
            client.rcpt_to("a@example.net")
            client.rcpt_to("b@example.net")
            assert client.data().refused is refused
        client = come(smtpd)
        client.rcpt_to("new@example.net")
        client.rcpt_to("b@example.net")
        assert not client.data().refused


def test_bounces_wait_at_data_so_that_senders_can_be_verified() -> None:
    with Conversation(Greylist, *PLAIN) as smtpd:
        for after, refused in ((0, True), (301, False)):
            smtpd.advance(after)
            client = come(smtpd, "")
            assert client.rcpt_to(YOU).verb == "proceed"
            assert client.data().refused is refused
    with Conversation(Greylist, *PLAIN, "--null-sender", "rcpt-to") as smtpd:
        assert smtpd.phases == {"rcpt-to"}
        assert send(smtpd, "").refused
    with Conversation(Greylist, *PLAIN, "--null-sender", "exempt") as smtpd:
        assert smtpd.phases == {"rcpt-to"}
        assert passes(smtpd, "")
        assert not passes(smtpd)
    flags = ("--null-sender", "rcpt-to", "--phase", "data")
    with Conversation(Greylist, *PLAIN, *flags) as smtpd:
        assert smtpd.phases == {"rcpt-to", "data"}
        assert send(smtpd, "").refused
        client = come(smtpd)
        assert client.rcpt_to(YOU).verb == "proceed"
        assert client.data().refused


# -- exemptions ----------------------------------------------------------------------------


def test_who_never_waits(tmp_path: Path) -> None:
    wanted = tmp_path / "wanted"
    wanted.write_text("@wanted.example\n")
    flags = (
        *("--allow", "198.51.100.0/24", "--allow-names", "mx.good.example"),
        *("--allow-senders", f"file:{wanted}", "--allow-recipients", "{ impatient@example.net }"),
    )
    with Conversation(Greylist, *PLAIN, *flags) as smtpd:
        assert passes(smtpd, address="198.51.100.7")
        assert passes(smtpd, rdns="mx.good.example")
        assert not passes(smtpd, rdns="mx.good.example", fcrdns="fail")
        assert passes(smtpd, "news@wanted.example")
        assert passes(smtpd, recipient="impatient@EXAMPLE.net")
        assert passes(smtpd, user="anna")
        assert passes(smtpd, local=True)
        assert not passes(smtpd, recipient="postmaster@example.net")
        wanted.write_text("@others.example\n")
        smtpd.reload()
        assert not passes(smtpd, "news@wanted.example")
    with Conversation(Greylist, *PLAIN, "--exempt-roles") as smtpd:
        assert passes(smtpd, recipient="Postmaster@example.net")
        assert passes(smtpd, recipient="abuse@example.net")
        assert passes(smtpd, recipient="postmaster")
        assert not passes(smtpd, recipient="hostmaster@example.net")
    with Conversation(Greylist, *PLAIN, "--exempt", "authenticated") as smtpd:
        assert passes(smtpd, local=True)  # it has no address
        assert not passes(smtpd, address="127.0.0.1")


def test_at_data_one_recipient_who_does_not_want_it_is_enough() -> None:
    flags = ("--phase", "data", "--allow-recipients", "impatient@example.net")
    with Conversation(Greylist, *PLAIN, *flags) as smtpd:
        client = come(smtpd)
        client.rcpt_to(YOU)
        client.rcpt_to("impatient@example.net")
        assert not client.data().refused


# -- only the suspicious -------------------------------------------------------------------

LISTS: dict[str, dict[str, Any]] = {
    "7.2.0.192.bad.example": {"A": "127.0.0.2"},
    "8.2.0.192.bad.example": {"A": "127.255.255.254"},
    "9.2.0.192.bad.example": {"A": "192.0.2.1"},
    "6.2.0.192.bad.example": {"servfail": True},
    "7.2.0.192.good.example": {"A": "127.0.5.1"},
    "5.2.0.192.good.example": {"A": "127.0.5.1"},
    "4.2.0.192.good.example": {"A": "127.255.255.255"},
}
HONEST = {"rdns": "mail.example.com", "address": "192.0.2.1"}
DYNAMIC = {"rdns": "192-0-2-77.dsl.example.com", "address": "192.0.2.77"}
NAMELESS = {"rdns": None}
LIAR = {"rdns": "mail.example.com", "fcrdns": "fail"}
# smtpd could not look the name up, or not look up its address.
UNKNOWN = [{"rdns": None, "fcrdns": "error"}, {"rdns": "mail.example.com", "fcrdns": "error"}]


@pytest.mark.parametrize(
    ("words", "waiting", "others"),
    [
        (("no-rdns",), [NAMELESS], [HONEST, LIAR, DYNAMIC, *UNKNOWN]),
        (("unconfirmed",), [NAMELESS, LIAR], [HONEST, DYNAMIC, *UNKNOWN]),
        (("dynamic",), [DYNAMIC], [HONEST, NAMELESS, LIAR]),
        (("no-rdns", "dynamic"), [NAMELESS, DYNAMIC], [HONEST, LIAR]),
    ],
)
def test_only_the_suspicious_wait(
    words: tuple[str, ...], waiting: list[dict[str, Any]], others: list[dict[str, Any]]
) -> None:
    with Conversation(Greylist, *PLAIN, *(f"--only-if={word}" for word in words), "-v") as smtpd:
        for client in waiting:
            assert not passes(smtpd, **client)
        for client in others:
            assert passes(smtpd, **client)
        assert 'reason="exempt: not suspicious"' in smtpd.log[-1]


def test_lists_say_who_waits_and_who_does_not() -> None:
    flags = ("--only-if", "listed", "--only-if", "no-rdns", "--dnsbl", "bad.example")
    with DNSServer(LISTS) as server:
        where = (server.address, server.port)
        with Conversation(Greylist, *PLAIN, *flags, nameserver=where) as smtpd:
            for last, waits in ((7, True), (8, False), (9, False), (6, False), (1, False)):
                assert passes(smtpd, address=f"192.0.2.{last}") is not waits
            assert not passes(smtpd, address="192.0.2.1", rdns=None)
        both = (*flags, "--dnswl", "good.example")
        with Conversation(Greylist, *PLAIN, *both, nameserver=where) as smtpd:
            assert passes(smtpd, address="192.0.2.7")
            assert not passes(smtpd, address="192.0.2.4", rdns=None)
        with Conversation(Greylist, *PLAIN, "--dnswl", "good.example", nameserver=where) as smtpd:
            assert passes(smtpd, address="192.0.2.5")
            assert not passes(smtpd, address="192.0.2.4")


def test_an_answer_by_which_a_list_refuses_us_says_nothing_of_a_client() -> None:
    zone: dict[str, dict[str, Any]] = {
        "*.list.dnswl.org": {"A": "127.0.10.3"},
        "*.gone.example": {"A": "203.0.113.66"},
        "*.blocked.example": {"A": "127.0.0.1"},
        "*.mixed.example": {"A": ["127.0.0.2", "127.255.255.254"]},
    }
    lists = ("gone", "blocked", "mixed")
    bad = [f"--dnsbl={name}.example" for name in lists]
    with DNSServer(zone) as server:
        where = (server.address, server.port)
        flags = ("--dnswl", "list.dnswl.org")
        with Conversation(Greylist, *PLAIN, *flags, nameserver=where) as smtpd:
            assert not passes(smtpd)
            assert not passes(smtpd, "other@example.org")
            [line] = [line for line in smtpd.log if "greylist list" in line]
            refused = "answers 127.0.10.3: more queries than are free: use a name server of"
            assert line.startswith(f'greylist list zone=list.dnswl.org error="{refused}')
        with Conversation(Greylist, *PLAIN, *bad, "--only-if", "listed", nameserver=where) as smtpd:
            assert passes(smtpd)
            log = [line.partition("zone=")[2].split(".")[0] for line in smtpd.log[:3]]
            assert log == [*lists]


def test_no_key_of_a_list_is_logged() -> None:
    key = "k3ykk7zqabcdefghij"
    zones = {name: f"{key}.{name}.mail.abusix.zone" for name in ("white", "black")}
    zone: dict[str, dict[str, Any]] = {
        f"*.{zones['white']}": {"A": "127.0.0.2"},
        f"*.{zones['black']}": {"A": "127.255.255.254"},
    }
    flags = ("--dnswl", zones["white"], "--dnsbl", zones["black"], "--only-if", "listed")
    with DNSServer(zone) as server:
        where = (server.address, server.port)
        for used in (flags, flags[:2]):
            with Conversation(Greylist, *PLAIN, *used, "-v", nameserver=where) as smtpd:
                assert passes(smtpd)
                assert key not in "".join(smtpd.log)
                name = "black" if used is flags else "white"
                assert any(f"{name}.mail.abusix.zone" in line for line in smtpd.log)


def test_in_a_chain_the_score_says_who_waits() -> None:
    grey = Greylist(Greylist.Options(store=MEMORY, key="network"))
    dynamic = Dyndns(Dyndns.Options())
    rules = Rules(RuleSettings(greylist_at=2.0), {"dyndns": FilterRules(score={"junk": 2.0})})
    with Conversation([dynamic, grey], rules=rules) as smtpd:
        assert smtpd.phases == {"connect", "rcpt-to", "data"}
        assert passes(smtpd, **HONEST)
        assert send(smtpd, **DYNAMIC).reply == FIRST
        client = come(smtpd, "", **DYNAMIC)
        client.rcpt_to(YOU)
        assert client.data().refused
        smtpd.advance(301)
        assert passes(smtpd, **DYNAMIC)


# -- who a client is -----------------------------------------------------------------------

POOL: dict[str, dict[str, Any]] = {
    "big.example": {"TXT": "v=spf1 ip4:203.0.113.0/24 ip4:198.51.100.0/24 -all"},
    "open.example": {"TXT": "v=spf1 +all", "A": "192.0.2.1", "MX": "10 open.example"},
    "all.open.example": {"TXT": "v=spf1 include:mx1.hosts.example include:open.example -all"},
    "elsewhere.open.example": {"TXT": "v=spf1 redirect=open.example"},
    "halves.open.example": {"TXT": "v=spf1 ip4:0.0.0.0/1 ip4:128.0.0.0/1 -all"},
    "a.open.example": {"TXT": "v=spf1 A:open.example/0 -all"},
    "mx.open.example": {"TXT": "v=spf1 mx:open.example/0 -all"},
    "exists.open.example": {"TXT": "v=spf1 exists:%{d2} -all"},
    "included.example": {"TXT": "v=spf1 include:big.example +all"},
    "address.example": {"TXT": "v=spf1 exists:%{I}.address.example -all"},
    "203.0.113.1.address.example": {"A": "127.0.0.2"},
    "198.51.100.1.address.example": {"A": "127.0.0.2"},
    "mx.helo.example": {"TXT": "v=spf1 ip4:203.0.113.0/24 ip4:198.51.100.0/24 -all"},
    "mx1.hosts.provider.example": {"TXT": "v=spf1 ip4:203.0.113.1 -all"},
    "mx2.hosts.provider.example": {"TXT": "v=spf1 ip4:198.51.100.1 -all"},
    "mx1.hosts.example": {"TXT": "v=spf1 ip4:203.0.113.1 -all"},
    "mx2.hosts.example": {"TXT": "v=spf1 ip4:198.51.100.1 -all"},
    "_dmarc.provider.example": {"TXT": "v=DMARC1; p=none"},
    "slow.example": {"drop": True},
}
ONE, TWO = {"address": "203.0.113.1"}, {"address": "198.51.100.1"}


def waits_again(sender: str, *flags: str, one: Any = ONE, two: Any = TWO, **both: Any) -> bool:
    """Return whether a client that retries from another network waits again."""
    with DNSServer(POOL) as server:
        where = (server.address, server.port)
        with Conversation(Greylist, "--store", "memory:", *flags, nameserver=where) as smtpd:
            for client, after in ((one, 301), (two, 0)):
                peer = come(smtpd, sender, **{"rdns": None, **client, **both})
                peer.rcpt_to(YOU)
                verdict = peer.data() if not sender else peer.rcpt_to(YOU)
                smtpd.advance(after)
            return verdict.refused


@pytest.mark.parametrize(
    ("sender", "flags", "again"),
    [
        ("news@big.example", (), False),
        ("news@big.example", ("--key", "spf"), False),
        ("news@big.example", ("--key", "network"), True),
        ("news@small.example", (), True),
        ("news@open.example", (), True),
        ("news@all.open.example", (), True),
        ("news@elsewhere.open.example", (), True),
        ("news@halves.open.example", (), True),
        ("news@a.open.example", (), True),
        ("news@mx.open.example", (), True),
        ("news@exists.open.example", (), True),
        ("news@included.example", (), False),
        ("news@address.example", (), False),
        ("", (), False),
        ("news@slow.example", ("--timeout", "0.05"), True),
    ],
)
def test_a_domain_whose_spf_passes_is_one_client(
    sender: str,
    flags: tuple[str, ...],
    again: bool,  # noqa: FBT001
) -> None:
    assert waits_again(sender, *flags, helo="mx.helo.example") is again


@pytest.mark.parametrize(
    ("domain", "again"), [("hosts.provider.example", False), ("hosts.example", True)]
)
def test_bounces_of_hosts_with_records_of_their_own_have_one_client(
    domain: str,
    again: bool,  # noqa: FBT001
) -> None:
    one, two = ({**who, "helo": f"mx{n}.{domain}"} for n, who in ((1, ONE), (2, TWO)))
    assert waits_again("", one=one, two=two) is again


def test_a_client_whose_domain_takes_too_long_is_its_network() -> None:
    with DNSServer(POOL) as server:
        where = (server.address, server.port)
        flags = ("--store", "memory:", "--deadline", "200", "--timeout", "50")
        with Conversation(Greylist, *flags, nameserver=where) as smtpd:
            greylist: Any = smtpd.filters[0]
            greylist._clients._seconds = 0.0
            assert send(smtpd, "news@slow.example", **ONE).reply == FIRST
            assert 'reason="client 203.0.113.0/24: first attempt"' in smtpd.log[0]


def test_the_domain_of_a_client_is_found_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[str] = []
    check, now = spf.check, [1000.0]

    def counted(client: str, helo: str, sender: str, **options: Any) -> Any:
        evaluated.append(sender)
        return check(client, helo, sender, **options)

    monkeypatch.setattr(spf, "check", counted)
    monkeypatch.setattr(clients, "monotonic", lambda: now[0])
    with DNSServer(POOL) as server:
        where = (server.address, server.port)
        with Conversation(Greylist, "--store", "memory:", nameserver=where) as smtpd:
            for name in ("one@big.example", "two@BIG.example", "three@small.example"):
                assert not passes(smtpd, name, **ONE)
            assert not passes(smtpd, "four@big.example", **TWO)
            assert evaluated == ["one@big.example", "three@small.example", "four@big.example"]
            now[0] += 61
            assert not passes(smtpd, "five@big.example", **ONE)
    assert evaluated[3:] == ["five@big.example"]


@pytest.mark.parametrize(
    ("names", "fcrdns", "again"),
    [
        (("mx1.out.provider.example", "mx2.provider.example"), "pass", False),
        (("mx1.provider.example", "mx2.provider.example"), "fail", True),
        (("mx1.elsewhere.example", "mx2.elsewhere.example"), "pass", True),
        (("203-0-113-1.dsl.provider.example", "198-51-100-1.dsl.provider.example"), "pass", True),
    ],
)
def test_a_confirmed_name_says_who_a_client_is(
    names: tuple[str, str],
    fcrdns: str,
    again: bool,  # noqa: FBT001
) -> None:
    one, two = ({**who, "rdns": name} for who, name in zip((ONE, TWO), names, strict=True))
    assert waits_again(ANNA, one=one, two=two, fcrdns=fcrdns) is again
    assert waits_again(ANNA, "--key", "spf", one=one, two=two, fcrdns=fcrdns)


# -- the header ----------------------------------------------------------------------------


def field(smtpd: Conversation, *recipients: str, sender: str = ANNA, **client: Any) -> list[str]:
    peer = come(smtpd, sender, **client)
    for each in recipients or (YOU,):
        peer.rcpt_to(each)
    forged = b"X-Greylist: never mind\r\nSubject: hello\r\n\r\nhello\r\n"
    content = peer.message(forged).content
    return [line.decode().partition(": ")[2] for line in content if line.startswith(b"X-Greylist:")]


def test_the_header_says_how_long_a_message_has_waited() -> None:
    with Conversation(Greylist, *PLAIN, "--header", "--exempt-roles") as smtpd:
        send(smtpd)
        smtpd.advance(400)
        waited = "delayed 400 seconds, client 192.0.2.0/24"
        assert field(smtpd, YOU, "other@example.net") == [waited]
        assert field(smtpd) == ["not delayed: client 192.0.2.0/24 passed"]
        assert field(smtpd, "abuse@example.net") == ["not delayed: recipient abuse"]
        assert field(smtpd, user="anna") == ["not delayed: authenticated"]
        assert field(smtpd, local=True) == ["not delayed: local"]
    with Conversation(Greylist, *PLAIN, "--header", "--only-if", "no-rdns") as smtpd:
        assert field(smtpd) == ["not delayed: not suspicious"]


# -- failures and mistakes -----------------------------------------------------------------


def test_a_broken_memory_refuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> Any:
        raise UnavailableError("memory:: disk full")

    monkeypatch.setattr(MemoryStore, "_apply", fail)
    with Conversation(Greylist, *PLAIN) as smtpd:
        assert passes(smtpd)
        assert passes(smtpd)
        assert "disk full" in smtpd.log[0]
    with Conversation(Greylist, *PLAIN, "--on-error", "tempfail") as smtpd:
        assert send(smtpd).reply.startswith("451 4.3")


def test_what_smtpd_has_not_reported_is_not_guessed() -> None:
    with Conversation(Greylist, *PLAIN, "--on-error", "tempfail") as smtpd:
        assert send(smtpd, reported=False).refused
        assert "not known" in smtpd.log[0]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--delay", "1d", "--window", "1d"), "--delay must be shorter than --window"),
        (("--lifetime", "36"), "--lifetime must not be shorter than --window, by default 2d"),
        (("--reply", "550 5.7.1 Never"), "--reply: must be temporary"),
        (("--only-if", "listed"), "--only-if listed and --dnsbl require each other"),
        (("--dnsbl", "bad.example"), "--only-if listed and --dnsbl require each other"),
        (("--dnsbl", "not a zone"), 'expected the name of a DNS list, not "not a zone"'),
        (("--nameserver", "127.0.0.1"), "--nameserver requires --key, --dnsbl or --dnswl"),
        (("--correspondents-of", "server"), "--correspondents-of requires --correspondents"),
        (("--reply", "451 4.7.1 %{secs}"), "--reply: unknown placeholder %{secs}: expected"),
        (("--delay", "0"), "--delay: must be at least 1s"),
        (("--store", "redis:"), "--store"),
    ],
)
def test_mistakes_are_found_at_start(flags: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Conversation(Greylist, *PLAIN, *flags)
    assert text in complaint("greylist", *PLAIN, *flags)
