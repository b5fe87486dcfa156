from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import process_time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.checks.dynamic import BUILTIN, SERVER, embeds_address, is_server
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.dyndns import Dyndns
from smtpd_filters.main import set_up
from smtpd_filters.protocol.decisions import PROCEED, Disconnect, Junk, Proceed, Reject
from smtpd_filters.runtime.log import Log
from smtpd_filters.session import Session
from smtpd_filters.tables import HostTable, NetworkTable, RegexTable
from smtpd_filters.testing import Conversation
from tests.filters.executables import at_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROOT = Path(__file__).parents[2]
HALVES = ("development", "held out")
LISTS = ("residential", "mailservers")


def filter_dyndns(**settings: Any) -> Dyndns:
    policy = Dyndns(Dyndns.Options(**settings))
    set_up(policy, Log())
    return policy


def session(rdns: str | None, address: str | None, username: str | None = None) -> Session:
    client = Session(b"7641df9771b4ed00").expect(("username",))
    src = "unix:/var/run/smtpd.sock" if address is None else f"[{address}]:33174"
    name = "<unknown>" if rdns is None else rdns
    values = (name.encode("utf-8", "surrogateescape"), b"pass", src.encode(), b"127.0.0.1:25")
    client.apply("link-connect", values)
    client.username = username
    return client


BUILT_IN = filter_dyndns()


def looks_dynamic(name: str, address: str) -> bool:
    return type(at_once(BUILT_IN.connect(session(name, address)))) is Junk


def hosts(which: str, half: str) -> list[tuple[str, str]]:
    text = (ROOT / "fixtures" / "dyndns" / f"{which}.txt").read_text()
    _, _, part = text.partition(f"# == {half} ==\n")
    part, _, _ = part.partition("# ==")
    return [(address, name) for address, name in map(str.split, part.splitlines())]


def found(which: str, half: str) -> tuple[int, int]:
    listed = hosts(which, half)
    return sum(looks_dynamic(name, address) for address, name in listed), len(listed)


# -- the rates -----------------------------------------------------------------------------


@pytest.mark.parametrize("which", LISTS)
def test_the_lists_are_long_enough_and_no_provider_is_in_both_halves(which: str) -> None:
    halves = [hosts(which, half) for half in HALVES]
    assert sum(map(len, halves)) >= 250
    assert len(set(halves[0] + halves[1])) == len(halves[0]) + len(halves[1])
    development, held_out = ({domain(name) for _, name in half} for half in halves)
    assert not development & held_out


def domain(name: str) -> str:
    labels = name.lower().split(".")
    second = {"co", "com", "net", "org", "ne", "or", "ac", "edu", "gov"}
    return ".".join(labels[-3 if labels[-2] in second and len(labels[-1]) == 2 else -2 :])


def test_pools_of_providers_never_seen_are_found() -> None:
    hits, names = found("residential", "held out")
    assert hits / names >= 0.95


def test_mail_servers_never_seen_are_spared() -> None:
    alarms, names = found("mailservers", "held out")
    assert alarms / names <= 0.02


def test_the_rates_in_the_documentation_are_those_measured() -> None:
    rows = []
    for which, what in zip(LISTS, ("residential", "mail servers"), strict=True):
        for half in HALVES:
            hits, names = found(which, half)
            rows.append(f".It {what}, {half} Ta {names} Ta {hits} Ta {hits / names:.1%}")
    assert "\n".join(rows) in (ROOT / "docs" / "man" / "filter-dyndns.8").read_text()


# -- addresses in names --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "address", "name"),
    [
        ("decimal", "192.0.2.17", "192-0-2-17.example.net"),
        ("decimal", "192.0.2.17", "host192.0.2.17.example.net"),
        ("decimal", "192.0.2.17", "x192x0x2x17.example.net"),
        ("decimal", "192.0.2.17", "c-192-000-002-017.example.net"),
        ("decimal", "192.0.2.17", "lns-46-192-0-2-17.example.net"),
        ("decimal", "192.0.2.17", "n192000002017.example.net"),
        ("decimal", "62.0.2.17", "n62000002017.example.net"),
        ("decimal", "62.0.2.17", "n062000002017.example.net"),
        ("decimal", "192.168.30.117", "19216830117.example.net"),
        ("decimal", "::ffff:192.0.2.17", "192-0-2-17.example.net"),
        ("reversed", "192.0.2.17", "17.2.0.192.example.net"),
        ("reversed", "192.0.2.17", "017002000192.example.net"),
        ("reversed", "192.168.30.117", "11730168192.example.net"),
        ("shuffled", "192.0.2.17", "17.red-192-0-2.example.net"),
        ("shuffled", "192.0.2.17", "s0-192-17-2.example.net"),
        ("hex", "192.0.2.17", "pC0000211.example.net"),
        ("hex", "192.0.2.17", "c-110200c0.example.net"),
        ("hex", "192.0.2.17", "node42-c00002-17.example.net"),
        ("partial", "192.0.20.17", "0-20-17.example.net"),
        ("partial", "192.0.20.17", "a.17-20-0.example.net"),
        ("partial", "192.51.20.17", "x7.192-51-20.example.net"),
        ("partial", "192.0.20.17", "dsl-20-17.example.net"),
        ("partial", "192.0.20.17", "17-20.dsl.example.net"),
        ("partial", "192.0.20.17", "020017.dsl.example.net"),
        ("ipv6", "2001:db8:12:34:56:78:9a:bc", "2001-db8-12-34-56-78-9a-bc.example.net"),
        ("ipv6", "2001:db8:12:34:56:78:9a:bc", "p20010db8001200340056.example.net"),
        ("ipv6", "2001:db8::1", "1" + ".0" * 23 + ".8.b.d.0.1.0.0.2.example.net"),
        ("ipv6", "2001:db8:12:34:21e:1ff:fe02:3", "021e01fffe020003.example.net"),
        ("ipv6", "2001:db8:12:34:21e:1ff:fe02:3", "x-21e-1ff-fe02-3.example.net"),
        ("ipv6", "2001:db8:12:34::25%em0", "2001-db8-12-34.example.net"),
    ],
)
def test_each_form_of_an_embedded_address_is_told(form: str, address: str, name: str) -> None:
    assert embeds_address(name, address) == form
    assert embeds_address(name.upper(), address) == form


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.18", "192-0-2-17.example.net"),  # another's
        ("192.0.2.17", "mail.example.net"),
        ("192.0.2.17", "mx2.v17.example.net"),
        ("192.0.20.17", "zone-20-17.example.net"),  # two octets and no word of a pool
        ("10.1.0.1", "node1.0.1.example.net"),  # small numbers
        ("10.1.1.2", "host-1-2.example.net"),
        ("192.0.2.17", "192000002018.example.net"),
        ("0.0.0.7", "20070007.example.net"),
        ("2001:db8:12:34::25", "25.example.net"),
        ("2001:db8:12:34::25", "0-0-0-25.example.net"),
        ("2607:f8b0:4864:20::42f", "mail-pf1-x42f.google.com"),
        ("2001:db8::1", "deadbeef-cafe-12345.example.net"),
        ("", "192-0-2-17.example.net"),
        ("192.0.2", "192-0-2.example.net"),
        ("192.0.2.256", "192-0-2-256.example.net"),
        ("2001:db8", "2001-db8.example.net"),
        ("not an address", "not.an.address"),
    ],
)
def test_names_without_the_address_have_no_form(address: str, name: str) -> None:
    assert embeds_address(name, address) is None


# -- servers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("209.85.208.50", "mail-ed1-f50.google.com"),
        ("54.240.27.24", "a27-24.smtp-out.us-west-2.amazonses.com"),
        ("54.203.18.77", "ec2-54-203-18-77.us-west-2.compute.amazonaws.com"),
        ("88.198.24.112", "static.88-198-24-112.clients.your-server.de"),
        ("139.99.52.209", "ip209.ip-139-99-52.net"),
        ("190.2.135.111", "190-2-135-111.hosted-by-worldstream.net"),
        ("198.51.100.7", "mo.198-51-100-7.dsl.example.net"),
        ("198.51.100.7", "cable.example"),
        ("198.51.100.7", "broadband.example"),
        ("198.51.100.7", "home.example.net"),
    ],
)
def test_servers_pass(address: str, name: str) -> None:
    assert not looks_dynamic(name, address)


def test_a_domain_called_mail_and_a_state_called_mo_make_no_server() -> None:
    assert not is_server("host-198-51-100-7.mail.example")
    assert not is_server("71-10-1-2.dhcp.stls.mo.charter.com")
    assert looks_dynamic("71-10-1-2.dhcp.stls.mo.charter.com", "71.10.1.2")


@pytest.mark.parametrize("word", sorted(SERVER))
def test_each_word_of_a_server_spares(word: str) -> None:
    assert looks_dynamic("a-192-0-2-17.example.net", "192.0.2.17")
    assert not looks_dynamic(f"{word}-192-0-2-17.example.net", "192.0.2.17")
    assert not looks_dynamic(f"192-0-2-17.{word}.example.net", "192.0.2.17")


# -- the filter ----------------------------------------------------------------------------

POOL = ("p4fdc0211.dip0.t-ipconnect.de", "79.220.2.17")


@pytest.mark.parametrize(
    ("action", "phase", "decision"),
    [
        ("junk", "connect", Junk),
        ("reject", "connect", Reject),
        ("disconnect", "connect", Disconnect),
        ("junk", "rcpt-to", Junk),
        ("reject", "rcpt-to", Reject),
        ("disconnect", "helo", Disconnect),
        ("reject", "mail-from", Reject),
    ],
)
def test_the_action_is_taken_in_its_phase(
    action: str, phase: str, decision: type[Junk | Reject | Disconnect]
) -> None:
    policy = filter_dyndns(action=action, phase=phase)
    handlers = {"helo": {"helo", "ehlo"}}.get(phase, {phase.replace("-", "_")})
    assert policy.registered == handlers
    assert policy.registration.junk is (decision is Junk)
    for handler in handlers:
        arguments = () if handler == "connect" else ("mx.example.org",)
        answer = at_once(getattr(policy, handler)(session(*POOL), *arguments))
        assert type(answer) is decision
        code = "554" if phase == "connect" else "550"
        assert answer.text.startswith(f"{code} 5.7.1 ") or decision is Junk


def test_the_reason_says_what_was_seen() -> None:
    def reason(name: str, address: str) -> str:
        return at_once(BUILT_IN._judge(session(name, address))).reason

    family = "^p[0-9a-f]+[.]dip0?[.]t-(dialin[.]net|ipconnect[.]de)$"
    assert reason(*POOL) == f"rdns {POOL[0]} matches {family}"
    assert reason("a.dyn.example.net", "192.0.2.1") == (
        "rdns a.dyn.example.net matches the words of a pool"
    )
    assert reason("A-192-0-2-1.example.net.", "192.0.2.1") == (
        "rdns a-192-0-2-1.example.net embeds its address: decimal"
    )


def test_local_clients_and_those_without_a_name_pass() -> None:
    assert at_once(BUILT_IN.connect(session("a.dyn.example.net", None))) == PROCEED
    assert at_once(BUILT_IN.connect(session(None, "192.0.2.1"))) == PROCEED


def test_authenticated_clients_pass_once_they_are_known() -> None:
    policy = filter_dyndns(phase="mail-from")
    assert at_once(policy.mail_from(session(*POOL, username="anna"), "anna@example.org")) == PROCEED
    assert at_once(policy.rcpt_to(session(*POOL, username="anna"), "anna@example.org")) == PROCEED
    assert type(at_once(policy.mail_from(session(*POOL), "anna@example.org"))) is Junk


def test_at_connect_no_report_of_authentication_is_asked_for() -> None:
    client = Session(b"7641df9771b4ed00")
    client.apply("link-connect", (POOL[0].encode(), b"pass", POOL[1].encode() + b":25", b""))
    assert type(at_once(BUILT_IN.connect(client))) is Junk
    assert BUILT_IN.required_reports() == frozenset()
    assert filter_dyndns(phase="mail-from").required_reports() == {"link-auth"}


def test_allowed_networks_and_names_pass() -> None:
    policy = filter_dyndns(
        allow=NetworkTable.of(["79.220.2.0/24"]),
        allow_names=HostTable.of(["*.dyn.example.net", "a.dyn.bücher.example."]),
        extra_patterns=RegexTable.of([r"example\.net$"]),
    )
    assert at_once(policy.connect(session(*POOL))) == PROCEED
    assert at_once(policy.connect(session("A.dyn.example.net", "192.0.2.1"))) == PROCEED
    assert at_once(policy.connect(session("a.dyn.XN--Bcher-kva.example.", "192.0.2.1"))) == PROCEED
    assert type(at_once(policy.connect(session(POOL[0], "79.220.3.17")))) is Junk
    assert type(at_once(policy.connect(session("b.example.net", "192.0.2.1")))) is Junk


def test_own_patterns_replace_those_built_in_and_count_without_exceptions() -> None:
    policy = filter_dyndns(patterns=RegexTable.of([r"\.amazonaws\.com$"]))
    assert (
        type(at_once(policy.connect(session("ec2-1.compute.amazonaws.com", "192.0.2.1")))) is Junk
    )
    assert at_once(policy.connect(session("a.dyn.example.net", "192.0.2.1"))) == PROCEED
    assert type(at_once(policy.connect(session("192-0-2-1.example.net", "192.0.2.1")))) is Junk


def test_extra_patterns_are_beside_those_built_in() -> None:
    policy = filter_dyndns(extra_patterns=RegexTable.of([r"^mail\.example\.net$"]))
    assert type(at_once(policy.connect(session("mail.example.net", "192.0.2.1")))) is Junk
    assert type(at_once(policy.connect(session("a.dyn.example.net", "192.0.2.1")))) is Junk


def test_embedded_addresses_can_be_left_alone() -> None:
    policy = filter_dyndns(no_embedded=True)
    assert at_once(policy.connect(session("a-192-0-2-1.example.net", "192.0.2.1"))) == PROCEED


def test_the_reply_is_the_operators() -> None:
    policy = filter_dyndns(action="reject", reply="550 5.7.1 See https://example.org/dynamic")
    assert (
        at_once(policy._judge(session(*POOL))).text == "550 5.7.1 See https://example.org/dynamic"
    )


@pytest.mark.parametrize("reply", ["go away", "250 2.0.0 Welcome", "550 5.7.1 two\nlines"])
@pytest.mark.parametrize("action", ["junk", "reject"])
def test_a_bad_reply_is_refused_at_the_start(action: str, reply: str) -> None:
    with pytest.raises(ConfigError, match="--reply"):
        Conversation(Dyndns, "--action", action, "--reply", reply)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--extra-patterns {}", "--extra-patterns: no entries in {}"),
    ],
)
def test_what_protects_nothing_is_refused_at_the_start(flags: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Conversation(Dyndns, *flags.split())


def test_no_patterns_but_the_address_is_a_policy() -> None:
    with Conversation(Dyndns, "--patterns", "{}") as smtpd:
        assert smtpd.log == []


def test_the_executable_answers_smtpd() -> None:
    lines = ["config|protocol|0.7", "config|subsystem|smtp-in", "config|ready"]
    clients = [POOL, ("mail.example.org", "192.0.2.1")]
    for number, (name, address) in enumerate(clients):
        link = f"{name}|pass|{address}:33174|198.51.100.1:25"
        head = "0.7|1576146008.006099|smtp-in"
        lines.append(f"report|{head}|link-connect|7641df9771b4ed0{number}|{link}")
        lines.append(f"filter|{head}|connect|7641df9771b4ed0{number}|1ef1c203cc576e5d|{link}")
    command = [sys.executable, "-m", "smtpd_filters.filters.dyndns"]
    done = subprocess.run(
        [*command, "--action", "disconnect", "--reply", "554 5.7.1 Go away"],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    register, answers = done.stdout.split("register|ready\n")
    assert "register|filter|smtp-in|connect\n" in register
    assert answers.splitlines() == [
        "filter-result|7641df9771b4ed00|1ef1c203cc576e5d|disconnect|554 5.7.1 Go away",
        "filter-result|7641df9771b4ed01|1ef1c203cc576e5d|proceed",
    ]
    assert f"rdns {POOL[0]} matches " in done.stderr


# -- hostile names -------------------------------------------------------------------------

HOSTILE = (
    "1" * 255,
    "1." * 127,
    "1-2-3-4-" * 31,
    "dsl-" * 63,
    "dsl9" * 63 + ".",
    "9dsl." * 51,
    "cust9" * 51,
    "9" + ".cust" * 50,
    "9.cust-" * 36,
    "cpc1-a1-" + "0-" * 120,
    "f" * 255,
    "0" * 255,
    ".ip-1-1-1" * 28,
    "." * 255,
    "|" * 255,
    "a|b|192.0.2.1|dsl",
    "\x00\x07\x1b[31m\r\n\t",
    "\udcff" * 255,
    "\u0131\u0130\u017f\u212a.dyn.example.net",  # their lower or upper case is ASCII, or longer
    "٣٢١-١٢٣.example.net",
    "x" * 100_000,
    "",
    ".",
)


@pytest.mark.parametrize("address", ["192.0.2.17", "2001:db8:12:34:21e:1ff:fe02:3"])
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name)[:16])
def test_hostile_names_are_answered_at_once(name: str, address: str) -> None:
    started = process_time()  # not what others take of the machine
    for _ in range(10):
        assert type(at_once(BUILT_IN.connect(session(name, address)))) in (Junk, Proceed)
    # Some milliseconds at worst; what explodes would take minutes.
    assert process_time() - started < 2


@given(
    name=st.text() | st.text("0123456789abcdefx.-dslcust", max_size=255),
    address=st.ip_addresses().map(str) | st.text(max_size=40),
)
@example(name="", address="")
def test_no_name_and_no_address_raises(name: str, address: str) -> None:
    embeds_address(name, address)
    at_once(BUILT_IN.connect(session(name, address)))


@given(address=st.ip_addresses(v=4).map(str))
def test_every_ipv4_address_is_found_in_each_full_form(address: str) -> None:
    octets = address.split(".")
    for name in (
        "-".join(octets),
        ".".join(octets[::-1]),
        "".join(octet.zfill(3) for octet in octets),
    ):
        form = embeds_address(f"{name}.example.net", address)
        # 0.0.2.17 without its leading zeros is too short a number to mean anything.
        assert form is not None or (octets[0] == "0" and name.isdigit())


@given(address=st.ip_addresses(v=6))
def test_every_ipv6_address_is_found_in_its_nibbles(address: Any) -> None:
    nibbles = address.exploded.replace(":", "")
    for name in (nibbles, ".".join(nibbles[::-1]), address.exploded.replace(":", "-")):
        assert embeds_address(f"{name}.example.net", str(address)) or int(address) >> 32 == 0xFFFF


def test_the_patterns_are_extended_regular_expressions_of_smtpd() -> None:
    assert BUILTIN
    for pattern in BUILTIN:
        assert pattern == pattern.lower()
        assert not {"\\", "(?", "*?", "+?"} & {pattern[i : i + 2] for i in range(len(pattern))}
