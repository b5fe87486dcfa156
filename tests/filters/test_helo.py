from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.chain import Chain
from smtpd_filters.checks.hosts import read_address, read_name, write_address
from smtpd_filters.filters.helo import ASKING, REPLIES, Helo
from smtpd_filters.lookups.outcome import NODATA, NotFound
from smtpd_filters.main import set_up
from smtpd_filters.protocol.decisions import PROCEED
from smtpd_filters.runtime.log import Log
from smtpd_filters.session import Session
from smtpd_filters.tables.networks import parse_address
from smtpd_filters.testing import Conversation, DNSServer, Verdict
from smtpd_filters.testing.dns import host, merge
from tests.effort import brief
from tests.filters.executables import (
    answered,
    at_once,
    come,
    complaint,
    loaded_to_set_up,
    pending_work,
    serve,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

PHASES = ("helo", "mail-from", "rcpt-to")
CHECKS = tuple(name.replace("_", "-") for name in REPLIES)
STRANGER: dict[str, Any] = {"rdns": None, "address": "192.0.2.1"}
STRANGER6: dict[str, Any] = {"rdns": None, "address": "2001:db8::1"}


def only(check: str, action: str = "reject") -> tuple[str, ...]:
    """Flags that turn a check on and the others off."""
    return tuple(f"--{each}={action if each == check else 'off'}" for each in CHECKS)


def verdict(name: str, *flags: str, **client: Any) -> Verdict:
    with Conversation(Helo, *flags) as smtpd:
        return come(smtpd, helo=name, **{**STRANGER, **client})


# -- as it is written ----------------------------------------------------------------------

OFF = ("--unknown=off",)
OWN = (
    "--own-names={ *.own.example, mx2.example.org }",
    "--own-addresses={ 203.0.113.0/24, fd00::/8 }",
)
# What a stranger at 192.0.2.1 says, to mx.example.org at 198.51.100.25, and the checks that fail.
WRITTEN: list[tuple[str, str]] = [
    ("mail.example.net", ""),
    ("MAIL.Example.NET", ""),
    ("mail.example.net.", ""),
    ("under_score.example.net", ""),
    ("a.b-c.x1", ""),
    ("xn--bcher-kva.example", ""),
    ("[192.0.2.1]", ""),
    ("[IPv6:::ffff:192.0.2.1]", ""),
    ("localhost", "own non-fqdn"),
    ("localhost.localdomain", "own"),
    ("WORKSTATION", "non-fqdn"),
    ("workstation.", "non-fqdn"),
    ("mx.example.org", "own"),
    ("MX.Example.Org.", "own"),
    ("mx2.example.org", "own"),
    ("a.own.example", "own"),
    ("own.example", ""),
    ("example.org", ""),
    ("[198.51.100.25]", "own foreign-literal"),
    ("[203.0.113.9]", "own foreign-literal"),
    ("[IPv6:fd12::1]", "own foreign-literal"),
    ("[192.0.2.2]", "foreign-literal"),
    ("[127.0.0.1]", "own foreign-literal"),
    ("[IPv6:2001:db8::1]", "foreign-literal"),
    ("192.0.2.1", "invalid"),
    ("192.0.2.2", "invalid foreign-literal"),
    ("198.51.100.25", "invalid own foreign-literal"),
    ("2001:db8::1", "invalid foreign-literal"),
    ("[2001:db8::1]", "invalid foreign-literal"),
    ("[IPv6:192.0.2.1]", "invalid"),
    ("[192.0.2.1", "invalid"),
    ("[]", "invalid"),
    ("[[192.0.2.1]]", "invalid"),
    ("[192.0.2.1%eth0]", "invalid"),
    ("[192.0.2.256]", "invalid"),
    ("[mail.example.net]", "invalid"),
    ("-mail.example.net", "invalid"),
    ("mail-.example.net", "invalid"),
    ("mail..example.net", "invalid"),
    (".example.net", "invalid"),
    (".", "invalid"),
    ("mail.example.123", "invalid"),
    ("mail example.net", "invalid"),
    ("m\u00fcll.example.net", "invalid"),
    ("\udcff.example.net", "invalid"),
    (f"{'a' * 63}.example", ""),
    (f"{'a' * 64}.example", "invalid"),
    (".".join(["a" * 49] * 5), ""),
    (".".join(["a" * 50] * 5), "invalid"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fails"), WRITTEN, ids=[repr(name)[:40] for name, _ in WRITTEN])
def test_what_is_wrong_as_it_is_written(name: str, fails: str) -> None:
    silent = [check for check in CHECKS if check not in ASKING]
    assert silent
    for check in silent:
        said = verdict(name, *only(check), *(OWN if check == "own" else ()))
        assert said.refused is (check in fails.split()), check
        if said.refused:
            assert said.reply == REPLIES[check.replace("-", "_")]


@pytest.mark.parametrize("address", ["2001:db8::1", "2001:DB8:0::1"])
def test_a_literal_over_ipv6(address: str) -> None:
    client = {**STRANGER6, "address": address, "dest": "[2001:db8::25]:25"}
    assert verdict("[IPv6:2001:db8:0:0:0:0:0:1]", *OFF, **client).verb == "proceed"
    assert verdict("[ipv6:2001:db8::1]", *OFF, **client).verb == "proceed"
    for name in ("[IPv6:2001:db8::2]", "[192.0.2.1]", "[IPv6:2001:db8::25]"):
        assert verdict(name, *only("foreign-literal"), **client).refused
    assert verdict("[IPv6:2001:db8::25]", *only("own"), **client).refused


def test_all_that_is_wrong_is_logged_and_the_first_refusal_told() -> None:
    with Conversation(Helo, *OFF) as smtpd:
        said = come(smtpd, helo="198.51.100.25", **STRANGER)
        assert said.reply.startswith("501 5.5.2 ")
        [line] = smtpd.log
    assert "helo mail-from result=reject" in line
    assert (
        'reason="helo 198.51.100.25 is neither a name nor an address literal; '
        "helo 198.51.100.25 is an address of ours; helo 198.51.100.25 is not 192.0.2.1" in line
    )


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("action", ["off", "log", "junk", "reject"])
@pytest.mark.parametrize(("name", "check"), [
    ("192.0.2.1", "invalid"), ("gate", "non-fqdn"), ("[192.0.2.2]", "foreign-literal"),
    ("mx.example.org", "own"),
])  # fmt: skip
def test_each_check_does_what_it_is_set_to_in_its_phase(
    name: str, check: str, action: str, phase: str
) -> None:
    flags = (*only(check, action), "--phase", phase)
    if action == "off":  # one has to be on
        flags = (*only("elsewhere", "log"), "--phase", phase)
        flags = (*flags, "--nameserver=127.0.0.1:9", "--timeout=10ms")
    with Conversation(Helo, *flags) as smtpd:
        said = come(smtpd, helo=name, **STRANGER)
        assert said.verb == {"off": "proceed", "log": "proceed"}.get(action, action)
        if action in {"junk", "reject"}:
            marked = {"mail-from": "data"}.get(phase, phase) if action == "junk" else phase
            assert said.phase == {"helo": "ehlo"}.get(marked, marked)
        found = [line for line in smtpd.log if f'reason="helo {name} ' in line]
        assert len(found) == (action != "off")


def test_helo_as_well_as_ehlo() -> None:
    assert verdict("gate", *OFF, "--phase=helo", method="helo").phase == "helo"
    assert verdict("gate", *OFF, method="helo").phase == "mail-from"


def test_only_junk_takes_another_phase() -> None:
    for phase in PHASES:
        with Conversation(Helo, "--phase", phase) as smtpd:
            own = {"helo", "ehlo"} if phase == "helo" else {phase}
            assert smtpd.phases == own
            assert ("link-identify" in smtpd.reports) is (phase != "helo")
    with Conversation(Helo, "--own=junk") as smtpd:
        assert smtpd.phases == {"mail-from", "data"}


# -- whom it exempts -----------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", ["gate", "192.0.2.1", "mx.example.org", "[192.0.2.2]"])
@pytest.mark.parametrize("asks", [False, True])
def test_who_is_exempt(name: str, phase: str, *, asks: bool) -> None:
    flags = ["--phase", phase, "--allow", "{ 192.0.2.0/24, 2001:db8::/32 }"]
    flags += ["--unknown=reject", "--nameserver=127.0.0.1:9"] if asks else OFF
    for client in (
        {"local": True},
        {"address": "127.0.0.1"},
        {"address": "::1"},
        STRANGER,
        STRANGER6,
    ):
        assert verdict(name, *flags, **client).verb == "proceed"
    if phase != "helo":
        assert verdict(name, *flags, address="203.0.113.1", user="anna").verb == "proceed"


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("gate", True),
        ("GATE", True),
        ("gate.", True),
        ("web.example.org", True),
        ("WEB.Example.org.", True),
        ("gate2", False),
        ("a.web.example.org", False),
        ("[192.0.2.2]", False),
    ],
)
def test_names_that_are_never_refused(name: str, phase: str, *, allowed: bool) -> None:
    allow = "--allow-names={ gate, web.example.org }"
    flags = (*OFF, "--own-names={ *.example.org, *.web.example.org }", allow, "--phase", phase)
    with Conversation(Helo, *flags, "-v") as smtpd:
        assert come(smtpd, helo=name, **STRANGER).refused is not allowed
        assert any('reason="exempt: ' in line for line in smtpd.log) is allowed


def test_a_name_that_is_never_refused_is_not_looked_up() -> None:
    with DNSServer({}) as server:
        flags = (f"--nameserver={server.address}:{server.port}", "--unknown=reject")
        assert verdict("mail.example.net", *flags).refused
        server.queries.clear()
        assert not verdict("mail.example.net", *flags, "--allow-names=*.example.net").refused
        assert server.queries == []


def test_nobody_has_authenticated_when_he_greets() -> None:
    assert verdict("gate", *OFF, "--phase=helo", user="anna").refused
    assert not verdict("gate", *OFF, user="anna").refused


def test_a_confirmed_client_may_use_its_own_name() -> None:
    flags = (*OFF, "--own-names=*.example.org")
    named = {"rdns": "Web1.Example.org", "fcrdns": "pass"}
    assert not verdict("web1.example.org", *flags, **named).refused
    assert verdict("web1.example.org", *flags, **{**named, "fcrdns": "fail"}).refused
    assert verdict("web2.example.org", *flags, **named).refused
    assert verdict("gate", *flags, rdns="gate", fcrdns="pass").reply == REPLIES["non_fqdn"]


def test_a_host_of_ours_may_use_our_names() -> None:
    flags = (*OFF, "--own-names=*.example.org", "--own-addresses={ 203.0.113.0/24, fd00::/8 }")
    for address, literal in (("203.0.113.7", "[203.0.113.9]"), ("fd00::7", "[IPv6:fd00::9]")):
        for name in ("web1.example.org", "mx.example.org", "localhost.localdomain"):
            assert not verdict(name, *flags, address=address).refused
            assert verdict(name, *flags, address="198.51.100.7").refused
        # It still has to tell the truth.
        assert verdict(literal, *flags, address=address).reply == REPLIES["foreign_literal"]


def test_a_name_of_ours_in_any_spelling() -> None:
    flags = (*only("own"), "--own-names={ bücher.example, @mx2.example.org }")
    for name in (
        "xn--bcher-kva.example", "XN--BCHER-KVA.Example.", "bücher.example", "BÜCHER.EXAMPLE",
        "bu\u0308cher.example", "mx2.example.org", "MX2.EXAMPLE.ORG.", "mx.example.org..",
    ):  # fmt: skip
        assert verdict(name, *flags).reply == REPLIES["own"], name
    for name in ("bucher.example", "xn--bcher-kvb.example", "mx3.example.org"):
        assert not verdict(name, *flags).refused, name
    # As a greeting, a name is in ASCII all the same.
    assert verdict("müller.example", *only("invalid")).reply == REPLIES["invalid"]


def test_each_greeting_is_judged_anew() -> None:
    with Conversation(Helo, *OFF) as smtpd:
        there = smtpd.connect(**STRANGER)
        there.ehlo("gate")
        assert there.mail_from("bob@example.net").refused
        there.tls()
        there.ehlo("gate.example.net")
        assert there.mail_from("bob@example.net").verb == "proceed"


def test_what_is_only_logged_is_logged_once() -> None:
    with Conversation(Helo, *only("non-fqdn", "log"), "--phase=rcpt-to") as smtpd:
        there = smtpd.connect(**STRANGER)
        there.ehlo("gate")
        there.mail_from("bob@example.net")
        for name in ("anna", "bob", "carl"):
            assert there.rcpt_to(f"{name}@example.org").verb == "proceed"
        assert len(smtpd.log) == 1
        assert "result=proceed" in smtpd.log[0]
        assert 'reason="helo gate is not fully qualified"' in smtpd.log[0]


def test_on_a_dry_run_nothing_is_refused() -> None:
    with Conversation(Helo, *OFF, "--dry-run") as smtpd:
        assert come(smtpd, helo="gate", **STRANGER).verb == "proceed"
        assert "result=proceed would=reject" in smtpd.log[0]


# -- what the DNS says ---------------------------------------------------------------------

ZONE = merge(
    host("mail.good.example", "192.0.2.9", "2001:db8::9"),
    {
        "four.example": {"A": ["192.0.2.99", "192.0.2.4"]},
        "six.example": {"AAAA": "2001:db8::6"},
        "mail-only.example": {"MX": "10 mail.good.example."},
        "no-mail.example": {"MX": "0 ."},
        "empty.example": {"TXT": "nothing"},
        "alias.example": {"CNAME": "mail.good.example."},
    },
)


@pytest.fixture
def server() -> Iterator[DNSServer]:
    with DNSServer(ZONE) as running:
        yield running


def asking(server: DNSServer, *flags: str) -> tuple[str, ...]:
    return (f"--nameserver={server.address}:{server.port}", *flags)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("name", "address", "fails"),
    [
        ("mail.good.example", "192.0.2.9", ""),
        ("Mail.Good.Example.", "192.0.2.9", ""),
        ("mail.good.example", "2001:db8::9", ""),
        ("mail.good.example", "192.0.2.8", "elsewhere"),
        ("mail.good.example", "2001:db8::8", "elsewhere"),
        ("alias.example", "192.0.2.9", ""),
        ("four.example", "192.0.2.4", ""),
        ("four.example", "2001:db8::4", "elsewhere"),
        ("six.example", "2001:db8::6", ""),
        ("six.example", "192.0.2.6", "elsewhere"),
        ("mail-only.example", "192.0.2.9", "elsewhere"),
        ("no-mail.example", "192.0.2.9", "unknown elsewhere"),
        ("empty.example", "192.0.2.9", "unknown elsewhere"),
        ("missing.example", "192.0.2.9", "unknown elsewhere"),
        ("missing.example", "2001:db8::9", "unknown elsewhere"),
        ("[192.0.2.9]", "192.0.2.9", ""),
    ],
)
def test_what_the_dns_says_of_a_name(
    server: DNSServer, name: str, address: str, fails: str, phase: str
) -> None:
    assert ASKING
    for check in ASKING:
        flags = asking(server, *only(check), "--phase", phase)
        said = verdict(name, *flags, address=address)
        assert said.refused is (check in fails.split()), check
        if said.refused:
            assert said.reply == REPLIES[check]


def test_addresses_that_nobody_has_looked_at_may_be_the_clients() -> None:
    zone: dict[str, dict[str, Any]] = {
        "pool.example": {"A": [f"10.0.0.{n}" for n in range(200)]},
        "small.example": {"A": [f"10.0.0.{n}" for n in range(100)]},
        "null.example": {"MX": [f"{n} ." for n in range(200)]},
    }
    with DNSServer(zone) as server:
        elsewhere = asking(server, *only("elsewhere"), "--on-error=tempfail")
        assert verdict("pool.example", *elsewhere).reply.startswith("451 4.4.3 ")
        assert verdict("small.example", *elsewhere).reply == REPLIES["elsewhere"]
        assert verdict("small.example", *elsewhere, address="10.0.0.7").verb == "proceed"
        assert verdict("null.example", *asking(server, *only("unknown"))).verb == "proceed"


def test_a_confirmed_name_is_not_looked_up(server: DNSServer) -> None:
    server.queries.clear()
    flags = asking(server, "--unknown=reject", "--elsewhere=reject")
    named = {"rdns": "missing.example", "fcrdns": "pass"}
    assert verdict("missing.example", *flags, **named).verb == "proceed"
    assert verdict("gate", *flags).refused
    assert verdict("[192.0.2.7]", *flags).refused
    assert verdict("mail.good.example", *flags, address="127.0.0.1").verb == "proceed"
    assert server.queries == []


def test_a_name_that_is_only_marked_is_looked_up_all_the_same(server: DNSServer) -> None:
    flags = asking(server, "--non-fqdn=junk", "--unknown=reject")
    with Conversation(Helo, *flags) as smtpd:
        assert come(smtpd, helo="gate", **STRANGER).reply == REPLIES["unknown"]
        assert 'reason="helo gate is not fully qualified; helo gate does not exist"' in smtpd.log[0]


def test_the_look_up_begins_with_the_greeting_and_is_not_repeated(server: DNSServer) -> None:
    server.queries.clear()
    flags = asking(server, "--unknown=reject", "--elsewhere=junk", "--phase=rcpt-to")
    with Conversation(Helo, *flags) as smtpd:
        for _ in range(2):
            there = smtpd.connect(**STRANGER)
            there.ehlo("mail.good.example")
            under_way = set(smtpd.filters[0].dns._under_way)  # type: ignore[attr-defined]
            there.mail_from("bob@example.net")
            for name in ("anna", "bob"):
                assert there.rcpt_to(f"{name}@example.org").verb == "junk"
            there.quit()
            if not _:
                assert under_way == {("mail.good.example", "A"), ("mail.good.example", "AAAA")}
            else:
                assert under_way == set()
    assert sorted(server.queries) == [("mail.good.example", "A"), ("mail.good.example", "AAAA")]


def test_what_is_known_takes_no_task(server: DNSServer) -> None:
    server.queries.clear()
    flags = asking(server, "--unknown=reject", "--elsewhere=reject", "--phase=helo")
    with Conversation(Helo, *flags) as smtpd:
        spawned = pending_work(smtpd)
        for _ in range(3):
            assert not come(smtpd, helo="mail.good.example", address="192.0.2.9", rdns=None).refused
            assert come(smtpd, helo="mail.good.example", address="192.0.2.8", rdns=None).refused
            assert come(smtpd, helo="missing.example", address="192.0.2.8", rdns=None).refused
        assert len(spawned) == 2
    asked = [name for name, _ in server.queries]
    assert asked == ["mail.good.example"] * 2 + ["missing.example"] * 2


def test_only_what_a_check_needs_is_asked(server: DNSServer) -> None:
    server.queries.clear()
    verdict("four.example", *asking(server, *only("elsewhere")))
    assert server.queries == [("four.example", "A")]
    server.queries.clear()
    verdict("six.example", *asking(server, *only("elsewhere")), address="2001:db8::6")
    assert server.queries == [("six.example", "AAAA")]
    server.queries.clear()
    verdict("missing.example", *asking(server, *only("unknown")))
    assert not server.asked("missing.example", "MX")


KINDS = ("servfail", "refused", "drop", "wrong-id", "wrong-name", "wrong-owner", "malformed")
NAME = "mail.good.example"


@pytest.mark.parametrize("on_error", ["proceed", "junk", "tempfail"])
@pytest.mark.parametrize("check", ASKING)
@pytest.mark.parametrize("fault", [*KINDS, "delay"])
def test_a_broken_dns_is_never_held_against_the_client(
    fault: str, check: str, on_error: str
) -> None:
    with DNSServer({NAME: {"A": "192.0.2.99", fault: 60 if fault == "delay" else True}}) as faulty:
        flags = asking(faulty, *only(check), "--timeout=20ms", "--on-error", on_error)
        with Conversation(Helo, *flags, "--phase=rcpt-to") as smtpd:
            said = come(smtpd, helo=NAME, **STRANGER)
            assert said.verb == {"tempfail": "reject"}.get(on_error, on_error)
            if on_error == "tempfail":
                assert said.reply == "451 4.4.3 Temporary failure, please try again later"
            assert 'cause="helo name: ' in smtpd.log[0]


@pytest.mark.parametrize("which", ["A", "AAAA", "MX"])
def test_one_answer_that_fails_is_enough_not_to_know(which: str) -> None:
    zone = {"half.example": {"TXT": "there", "servfail": [which]}}
    with DNSServer(zone) as faulty:
        flags = asking(faulty, *only("unknown"), "--on-error=tempfail")
        assert verdict("half.example", *flags).reply.startswith("451 4.4.3")
        flags = asking(faulty, *only("elsewhere"), "--on-error=tempfail")
        assert verdict("half.example", *flags).reply.startswith(
            "451 4.4.3" if which == "A" else "550 5.7.1"
        )


def test_one_answer_that_comes_is_enough_to_know() -> None:
    with DNSServer({"half.example": {"A": "192.0.2.1", "servfail": ["AAAA"]}}) as faulty:
        flags = asking(faulty, "--unknown=reject", "--elsewhere=reject")
        assert verdict("half.example", *flags, "--on-error=tempfail").verb == "proceed"


def test_a_trial_changes_nothing_when_the_dns_fails() -> None:
    with DNSServer({NAME: {"servfail": True}}) as faulty:
        flags = asking(faulty, *only("unknown", "log"), "--on-error=tempfail")
        with Conversation(Helo, *flags) as smtpd:
            assert come(smtpd, helo=NAME, **STRANGER).verb == "proceed"
            assert 'reason="helo name: ' in smtpd.log[0]


def test_what_is_known_decides_when_the_dns_fails() -> None:
    with DNSServer({"gate": {"servfail": True}}) as faulty:
        flags = asking(faulty, "--non-fqdn=junk", "--unknown=reject")
        with Conversation(Helo, *flags, "--on-error=tempfail") as smtpd:
            assert come(smtpd, helo="gate", **STRANGER).verb == "junk"
            assert "helo gate is not fully qualified; helo name: " in smtpd.log[0]


def test_a_flapping_server_is_good_enough() -> None:
    with DNSServer({NAME: {"A": "192.0.2.1", "flap": True}}) as flapping:
        flags = asking(
            flapping, "--unknown=reject", "--elsewhere=reject", f"--timeout={brief(0.5)}s"
        )
        assert verdict(NAME, *flags, "--on-error=tempfail").verb == "proceed"


def test_a_forged_answer_beside_the_true_one_changes_nothing() -> None:
    with DNSServer({NAME: {"A": "192.0.2.1", "spoof": True}}) as spoofed:
        assert verdict(NAME, *asking(spoofed, *only("elsewhere"))).verb == "proceed"


def test_a_failure_is_not_kept_for_the_session() -> None:
    with DNSServer({NAME: {"servfail": True}}) as server:
        flags = asking(server, *only("unknown"), "--on-error=tempfail")
        with Conversation(Helo, *flags) as smtpd:
            there = smtpd.connect(**STRANGER)
            there.ehlo(NAME)
            assert there.mail_from("bob@example.net").reply.startswith("451 ")
            policy = smtpd.filters[0]
            policy.dns._cache.clear()  # type: ignore[attr-defined]  # a second has passed
            server.zone = {NAME: {"A": "192.0.2.1"}}
            assert there.mail_from("bob@example.net").verb == "proceed"


# -- names and addresses -------------------------------------------------------------------


@given(st.text() | st.text(alphabet="abAB019.-_[]:%ipv6IP", max_size=80))
@example("[IPv6:]")
@example("[ipv6:::]")
@example("\udcff")
def test_whatever_a_client_says_is_read(text: str) -> None:
    name = read_name(text)
    assert name == name.lower()
    assert len(name) <= 253
    address, is_literal = read_address(text)
    assert not (name and address)
    assert not (is_literal and address is None)
    if address is not None:
        assert parse_address(write_address(address)) == address


@given(st.ip_addresses())
def test_each_address_is_read_back(address: Any) -> None:
    tag = "IPv6:" if address.version == 6 else ""
    read, is_literal = read_address(f"[{tag}{address}]")
    assert is_literal
    assert read == parse_address(str(address))


@given(st.text(min_size=1, max_size=300))
def test_no_greeting_ends_the_filter(text: str) -> None:
    line = "".join(c for c in text if c not in "\r\n\0") or "x"
    with Conversation(Helo, *OFF, "--phase=helo") as smtpd:
        assert come(smtpd, helo=line, **STRANGER).verb in {"proceed", "reject"}


# -- the executable ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (only("none"), "nothing to check: every check is off"),
        (
            ("--unknown=off", "--nameserver=192.0.2.53"),
            "--nameserver requires --unknown or --elsewhere other than off",
        ),
        (("--nameserver", "ns.example.org"),
         "--nameserver: name server: 'ns.example.org' is not an IP address"),
        (("--own", "disconnect"), '--own: invalid choice "disconnect"'),
        (("--phase", "connect"), '--phase: invalid choice "connect"'),
        (("--timeout", "0"), "--timeout: must be at least"),
        (("--own-names", "file:/nonexistent"), "--own-names: /nonexistent: No such file"),
        (("--own-names", "[192.0.2.1]"), "--own-names: expected a name"),
        (("--own-names", "http://mx.example.org"), "--own-names: ':' can't"),
        (("--own-addresses", "192.0.2.0/33"), "--own-addresses: "),
        (("--own-names", "{}"), "--own-names: no entries in {}"),
        (("--own-addresses", "{}"), "--own-addresses: no entries in {}"),
        (("--own-addresses", "{ local }"), "--own-addresses: inline table: entry 1: expected an"),
        (("--allow", "mail.example.org"), "--allow: "),
        (("--own=off", "--own-names", "mx.example.org"), "--own-names has no effect with --own"),
        (("--own=off", "--own-addresses", "192.0.2.1"), "--own-addresses has no effect with --own"),
        (("--unknwon=log",), 'unknown flag --unknwon, did you mean "--unknown"?'),
    ],
)  # fmt: skip
def test_bad_flags_are_one_line(flags: tuple[str, ...], expected: str) -> None:
    assert expected in complaint("helo", *flags)


def test_the_executable_answers_smtpd(server: DNSServer) -> None:
    names = ["mail.good.example", "missing.example", "mx.example.org"]
    clients = [("<unknown>|fail|192.0.2.1:33174", "ehlo", name) for name in names]
    flags = asking(server, "--unknown=reject", "--phase=helo")
    answers, log = serve("helo", *flags, clients=clients)
    assert answers == [
        answered(0, "proceed"),
        answered(1, f"reject|{REPLIES['unknown']}"),
        answered(2, f"reject|{REPLIES['own']}"),
    ]
    assert 'reason="helo missing.example does not exist"' in log


def test_without_questions_nothing_is_loaded_for_them() -> None:
    loaded = loaded_to_set_up(Helo, *OFF)
    assert not loaded & {
        "asyncio",
        "dns",
        "socket",
        "ipaddress",
        "smtpd_filters.lookups.dns.transport",
    }


@pytest.mark.parametrize("check", CHECKS)
def test_the_chain_runs_asyncio_only_to_ask(check: str) -> None:
    actions = {name: "log" if name == check.replace("-", "_") else "off" for name in REPLIES}
    policy = Helo(Helo.Options(**actions))
    set_up(policy, Log())
    assert policy.name == "helo"
    assert Chain([(policy, "proceed", 30.0)], Log()).waits is (check in ASKING)


def test_the_resolver_of_the_system_is_asked_unless_told_otherwise() -> None:
    with Conversation(Helo) as smtpd:
        assert come(smtpd, helo="[192.0.2.1]", **STRANGER).verb == "proceed"


class SilentOnMX:
    """A resolver that finds no addresses, and never answers a question for an MX."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def query_all(self, questions: list[tuple[str, str]]) -> list[NotFound]:
        return [NotFound(NODATA, 60)] * len(questions)

    async def mx(self, name: str) -> None:
        self.asked.append(name)
        await asyncio.sleep(0)
        raise AssertionError("it is not resumed")


def test_checks_that_are_cut_off_start_anew() -> None:
    flags = ("--nameserver", "127.0.0.1", "--elsewhere", "log", "--unknown", "reject")
    with Conversation(Helo, *flags) as smtpd:
        helo: Any = smtpd.filters[0]
        session = Session(b"7641df9771b4ed00")
        client = (b"mail.example.net", b"pass", b"192.0.2.1:33174", b"198.51.100.25:25")
        session.apply("link-connect", client)
        greeting = at_once(helo._greeting(session, "x.example"))
        assert at_once(helo._greeting(session, "x.example")) is greeting
        helo.dns = silent = SilentOnMX()
        asking = helo._look_up(session, greeting)
        asking.send(None)
        assert silent.asked == ["x.example"]
        asking.close()  # at its deadline
        again = at_once(helo._greeting(session, "x.example"))
        assert again is not greeting
        assert again.findings.decision() == PROCEED
