from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.chain import Chain
from smtpd_filters.filters.sender import (
    ADDRESSES_MAX,
    ASKING,
    BOGONS,
    EXCHANGERS_MAX,
    REPLIES,
    Sender,
    domain_of,
)
from smtpd_filters.main import set_up
from smtpd_filters.runtime.log import Log
from smtpd_filters.tables import NetworkTable
from smtpd_filters.testing import Conversation, DNSServer, Verdict
from tests.effort import brief, some
from tests.filters.executables import (
    answered,
    come,
    complaint,
    loaded_to_set_up,
    pending_work,
    serve,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

CHECKS = tuple(name.replace("_", "-") for name in REPLIES)
STRANGERS: tuple[dict[str, Any], ...] = (
    {"rdns": None, "address": "192.0.2.1"},
    {"rdns": None, "address": "2001:db8::1"},
)
# Addresses on the public Internet, of which nothing but these zones speaks here.
PUBLIC, PUBLIC6 = "1.2.3.4", "2a00:1:2:3::4"
BAD_MX = REPLIES["bad_mx"]
LATER = "451 4.4.3 Temporary failure, please try again later"


def only(check: str, action: str = "reject") -> tuple[str, ...]:
    """Flags that turn a check on and the others off."""
    return tuple(f"--{each}={action if each == check else 'off'}" for each in CHECKS)


def verdict(sender: str, *flags: str, **client: Any) -> Verdict:
    with Conversation(Sender, *flags) as smtpd:
        return come(smtpd, sender=sender, **{**STRANGERS[0], **client})


# -- as it is written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sender", "fails"),
    [
        ("bob@example.net", ""),
        ("bob@EXAMPLE.NET", ""),
        ("@relay.example,@other.example:bob@example.net", ""),
        ('"bob@home"@example.net', ""),
        ("bob@[192.0.2.1]", ""),
        ("bob@[IPv6:2001:db8::1]", ""),
        ("bob@[2001:db8::1]", ""),
        ("bob@[x]", "non-fqdn"),
        ("bob@[x.example]", "non-fqdn"),
        ("bob@[10.1]", "non-fqdn"),
        ("bob@[192.0.2.1", "non-fqdn"),
        ("bob@[fe80::1%em0]", "non-fqdn"),
        ("", ""),
        ("bob", "non-fqdn"),
        ('"bob@example.net"', "non-fqdn"),
        ("bob@localhost", "non-fqdn"),
        ("bob@gate.", "non-fqdn"),
        ("@relay.example:bob@gate", "non-fqdn"),
        ("bob@", "non-fqdn"),
    ],
)
@pytest.mark.parametrize("client", STRANGERS)
def test_what_is_not_fully_qualified(sender: str, fails: str, client: dict[str, Any]) -> None:
    said = verdict(sender, *only("non-fqdn"), **client)
    assert said.refused is bool(fails)
    if fails:
        assert said.reply == "504 5.5.2 Your sender address is not fully qualified"


@pytest.mark.parametrize("action", ["log", "junk", "reject"])
def test_a_check_does_what_it_is_set_to(action: str) -> None:
    with Conversation(Sender, *only("non-fqdn", action)) as smtpd:
        said = come(smtpd, sender="bob@gate", **STRANGERS[0])
        assert said.verb == {"log": "proceed"}.get(action, action)
        assert 'reason="sender bob@gate is not fully qualified"' in smtpd.log[0]
        assert smtpd.phases == {"mail-from", *({"data"} if action == "junk" else ())}


def test_only_what_is_needed_is_asked_of_smtpd() -> None:
    with Conversation(Sender) as smtpd:
        assert smtpd.phases == {"mail-from"}
        assert smtpd.reports == {"link-connect", "link-disconnect", "link-auth"}


# -- what the DNS says ---------------------------------------------------------------------

ZONE: dict[str, dict[str, Any]] = {
    "mx.public.example": {"A": PUBLIC, "AAAA": PUBLIC6},
    "mx6.public.example": {"AAAA": PUBLIC6},
    "mx.loop.example": {"A": "127.0.0.1"},
    "mx.private.example": {"A": ["10.1.2.3", "192.168.1.1"]},
    "mx.local6.example": {"AAAA": ["fd00::1"]},
    "mx.mixed.example": {"A": [PUBLIC, "10.0.0.1"]},
    # Domains in order.
    "good.example": {"MX": "10 mx.public.example."},
    "good6.example": {"MX": "10 mx6.public.example."},
    "plain.example": {"A": PUBLIC},
    "plain6.example": {"AAAA": PUBLIC6},
    "alias.example": {"CNAME": "good.example."},
    "second.example": {"MX": ["10 mx.missing.example.", "20 mx.public.example."]},
    "dns64.example": {"AAAA": "64:ff9b::1.2.3.4"},
    "not-null.example": {"MX": ["0 .", "10 mx.public.example."]},
    # Domains that don't exist or accept no mail.
    "empty.example": {"TXT": "nothing"},
    "null.example": {"MX": "0 .", "A": PUBLIC},
    "null-odd.example": {"MX": "10 ."},
    # Domains whose exchangers are nowhere.
    "loop.example": {"MX": "10 mx.loop.example."},
    "private.example": {"MX": "10 mx.private.example."},
    "local6.example": {"MX": "10 mx.local6.example."},
    "several.example": {"MX": ["10 mx.loop.example.", "20 mx.private.example."]},
    "number.example": {"MX": "10 127.0.0.1."},
    "localhost.example": {"MX": "10 localhost."},
    "plain-loop.example": {"A": "127.0.0.1"},
    "unresolved.example": {"MX": ["10 mx.missing.example.", "20 empty.example."]},
    "odd.example": {"MX": "10 -.example."},
    # One of several.
    "one-of-two.example": {"MX": ["10 mx.loop.example.", "20 mx.public.example."]},
    "mixed.example": {"MX": "10 mx.mixed.example."},
    "plain-mixed.example": {"A": [PUBLIC], "AAAA": ["fe80::1"]},
}


@pytest.fixture
def server() -> Iterator[DNSServer]:
    with DNSServer(ZONE) as running:
        yield running


def asking(server: DNSServer, *flags: str) -> tuple[str, ...]:
    return (f"--nameserver={server.address}:{server.port}", *flags)


GOOD = (
    "good.example", "GOOD.example", "good6.example", "plain.example", "plain6.example",
    "alias.example", "second.example", "dns64.example", "not-null.example", "[1.2.3.4]",
    "[IPv6:2a00::1]",
)  # fmt: skip
UNKNOWN = ("missing.example", "empty.example", "deep.missing.example", "gate", "no..example")
NULL = ("null.example", "null-odd.example")
BAD = (
    "loop.example", "private.example", "local6.example", "several.example", "number.example",
    "localhost.example", "plain-loop.example", "unresolved.example", "odd.example",
    "[127.0.0.1]", "[10.0.0.1]", "[IPv6:::1]", "[IPv6:::127.0.0.1]", "[::127.0.0.1]",
    "[IPv6:10.0.0.1]", "[::ffff:10.0.0.1]",
)  # fmt: skip
MIXED = ("one-of-two.example", "mixed.example", "plain-mixed.example")
FAILS = {
    **dict.fromkeys((*GOOD, *MIXED), ""),
    **dict.fromkeys(UNKNOWN, "unknown"),
    **dict.fromkeys(NULL, "null-mx"),
    **dict.fromkeys(BAD, "bad-mx"),
}


@pytest.mark.parametrize("client", STRANGERS)
@pytest.mark.parametrize("domain", FAILS)
def test_what_the_dns_says_of_a_domain(
    server: DNSServer, domain: str, client: dict[str, Any]
) -> None:
    for check in ("unknown", "null-mx", "bad-mx"):
        said = verdict(f"bob@{domain}", *asking(server, *only(check)), **client)
        assert said.refused is (check == FAILS[domain]), check
        if said.refused:
            assert said.reply == REPLIES[check.replace("-", "_")]
    # And by default.
    said = verdict(f"bob@{domain}", *asking(server, "--non-fqdn=off"), **client)
    assert said.refused is bool(FAILS[domain])


@pytest.mark.parametrize("domain", FAILS)
def test_one_bad_exchanger_is_enough_if_told_so(server: DNSServer, domain: str) -> None:
    said = verdict(f"bob@{domain}", *asking(server, *only("bad-mx"), "--any-bad-mx"))
    assert said.refused is (domain in (*BAD, *MIXED))


@pytest.mark.parametrize(
    ("sender", "reply", "reason"),
    [
        ("a@missing.example", "550 5.1.8 ", "sender domain missing.example does not exist"),
        ("a@empty.example", "550 5.1.8 ", "sender domain empty.example has neither MX nor address"),
        ("a@null.example", "550 5.7.27 ", "sender domain null.example has a Null MX"),
        ("a@loop.example", "550 5.1.8 ",
         "sender domain loop.example has its exchanger at 127.0.0.1 (in 127.0.0.0/8)"),
        ("a@unresolved.example", "550 5.1.8 ",
         "sender domain unresolved.example has no exchanger with an address"),
        ("a@[10.0.0.1]", "550 5.1.8 ", "sender a@[10.0.0.1] is in 10.0.0.0/8"),
    ],
)  # fmt: skip
def test_the_codes_and_the_reason(server: DNSServer, sender: str, reply: str, reason: str) -> None:
    with Conversation(Sender, *asking(server)) as smtpd:
        said = come(smtpd, sender=sender, **STRANGERS[0])
        assert said.phase == "mail-from"
        assert said.reply.startswith(reply)
        assert f'reason="{reason}"' in smtpd.log[0]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("action", ["off", "log", "junk"])
def test_each_check_can_be_tried(server: DNSServer, check: str, action: str) -> None:
    sender = {
        "non-fqdn": "bob@gate", "unknown": "bob@missing.example", "null-mx": "bob@null.example",
        "bad-mx": "bob@loop.example",
    }[check]  # fmt: skip
    flags = [f"--{check}={action}", *(("--unknown=off",) if check == "non-fqdn" else ())]
    with Conversation(Sender, *asking(server, *flags)) as smtpd:
        said = come(smtpd, sender=sender, **STRANGERS[0])
        assert said.verb == ("junk" if action == "junk" else "proceed")
        assert [line for line in smtpd.log if " reason=" in line] == (
            [] if action == "off" else smtpd.log
        )


def test_other_networks(server: DNSServer) -> None:
    flags = asking(server, *only("bad-mx"), "--bad-networks={ 1.2.3.0/24, 2a00::/16 }")
    assert verdict("bob@good.example", *flags).refused
    assert verdict("bob@good6.example", *flags).refused
    assert verdict("bob@[1.2.3.4]", *flags).refused
    assert not verdict("bob@loop.example", *flags).refused


def test_an_empty_table_of_networks_is_taken_at_its_word(server: DNSServer, tmp_path: Path) -> None:
    table = tmp_path / "networks"
    table.write_text("# none is bad\n")
    flags = asking(server, *only("bad-mx"), f"--bad-networks=file:{table}")
    with Conversation(Sender, *flags) as smtpd:
        assert come(smtpd, sender="bob@loop.example", **STRANGERS[0]).verb == "proceed"
        table.write_text("127.0.0.0/8\n")
        smtpd.reload()
        assert come(smtpd, sender="bob@loop.example", **STRANGERS[0]).refused


def test_only_so_many_exchangers_are_looked_at() -> None:
    zone: dict[str, dict[str, Any]] = {
        "many.example": {"MX": [f"{n} mx{n}.many.example." for n in range(1, 61)]},
        **{f"mx{n}.many.example": {"A": "127.0.0.1"} for n in range(1, 12)},
        **{f"mx{n}.many.example": {"A": PUBLIC} for n in range(EXCHANGERS_MAX + 1, 61)},
    }
    with DNSServer(zone) as server:
        # There is an eleventh, at which nobody has looked.
        with Conversation(Sender, *asking(server)) as smtpd:
            assert come(smtpd, sender="bob@many.example", **STRANGERS[0]).reply == LATER
            cause = "mail exchanger: more than 10, and none of those looked up is usable"
            assert f'cause="{cause}"' in smtpd.log[0]
        assert len(set(server.queries)) == 1 + 2 * EXCHANGERS_MAX
        assert not server.asked("mx11.many.example", "A")
        # One is enough here, among those that were looked at.
        assert verdict("bob@many.example", *asking(server, "--any-bad-mx")).reply == BAD_MX
        server.zone["mx1.many.example"] = {"A": PUBLIC}
        assert verdict("bob@many.example", *asking(server)).verb == "proceed"


def test_only_so_many_addresses_are_looked_at() -> None:
    private = [f"10.0.0.{n}" for n in range(ADDRESSES_MAX)]
    zone: dict[str, dict[str, Any]] = {
        "many.example": {"MX": ["10 mx1.many.example.", "20 mx2.many.example."]},
        "mx1.many.example": {"A": private},
        "mx2.many.example": {"A": "10.0.1.1"},
        "all.example": {"MX": "10 mx1.many.example."},
        "huge.example": {"MX": "10 mx.huge.example."},
        "mx.huge.example": {"A": [f"127.0.{n}.1" for n in range(200)]},
        "nowhere.example": {"MX": [f"{n} mx{n}.nowhere.example." for n in range(11)]},
    }
    with DNSServer(zone) as server:
        flags = asking(server)
        assert verdict("bob@many.example", *flags).reply == LATER
        assert verdict("bob@all.example", *flags).reply == BAD_MX
        assert verdict("bob@huge.example", *flags).reply == LATER
        assert verdict("bob@nowhere.example", *flags).reply == LATER
        assert verdict("bob@huge.example", *asking(server, "--any-bad-mx")).reply == BAD_MX


def test_a_null_mx_is_the_only_exchanger(server: DNSServer) -> None:
    many = [f"{n} ." for n in range(200)]
    server.zone.update({"null.many.example": {"MX": many}, "two.example": {"MX": many[:2]}})
    assert verdict("bob@null.many.example", *asking(server)).reply == LATER
    assert verdict("bob@two.example", *asking(server)).reply == REPLIES["null_mx"]


def test_only_what_a_check_needs_is_asked(server: DNSServer) -> None:
    for check, asked in (
        ("null-mx", [("good.example", "MX")]),
        ("unknown", [("good.example", "MX")]),
        ("bad-mx", [
            ("good.example", "MX"), ("mx.public.example", "A"), ("mx.public.example", "AAAA"),
        ]),
    ):  # fmt: skip
        server.queries.clear()
        verdict("bob@good.example", *asking(server, *only(check)))
        assert [server.queries[0], *sorted(server.queries[1:])] == asked
    server.queries.clear()
    verdict("bob@plain.example", *asking(server, *only("null-mx")))
    assert server.queries == [("plain.example", "MX")]


def test_what_is_known_takes_no_task(server: DNSServer) -> None:
    server.queries.clear()
    with Conversation(Sender, *asking(server)) as smtpd:
        spawned = pending_work(smtpd)
        for _ in range(3):
            assert not come(smtpd, sender="bob@good.example", **STRANGERS[0]).refused
            assert come(smtpd, sender="bob@null.example", **STRANGERS[1]).refused
        assert len(spawned) == 2
    types = [rdtype for _, rdtype in server.queries]
    assert (types[0], {*types[1:3]}, types[3:]) == ("MX", {"A", "AAAA"}, ["MX"])


# -- whom it exempts -----------------------------------------------------------------------


@pytest.mark.parametrize("sender", ["bob", "bob@gate", "bob@missing.example", "bob@null.example"])
def test_who_is_exempt(server: DNSServer, sender: str) -> None:
    server.queries.clear()
    flags = asking(server, "--allow", "{ 192.0.2.0/24, 2001:db8::/32 }")
    clients: tuple[dict[str, Any], ...] = (
        {"local": True},
        {"address": "127.0.0.1"},
        {"address": "::1"},
        {"address": "203.0.113.1", "user": "anna"},
        *STRANGERS,
    )
    for client in clients:
        assert verdict(sender, *flags, **client).verb == "proceed"
    assert server.queries == []
    assert verdict(sender, *flags, address="203.0.113.1").refused


def test_users_are_checked_if_the_operator_wants_it(server: DNSServer) -> None:
    user = {"user": "anna", **STRANGERS[0]}
    for sender in ("bob", "bob@missing.example", "bob@null.example"):
        assert not verdict(sender, *asking(server), **user).refused
        assert verdict(sender, *asking(server, "--check-users"), **user).refused
        assert verdict(sender, *asking(server, "--exempt=local"), **user).refused
        assert not verdict(sender, *asking(server, "--check-users"), local=True).refused
    assert not verdict("bob@good.example", *asking(server, "--check-users"), **user).refused


def test_nobody_asks_who_has_authenticated_if_users_are_checked(server: DNSServer) -> None:
    with Conversation(Sender, *asking(server)) as smtpd:
        assert "link-auth" in smtpd.reports
    with Conversation(Sender, *asking(server, "--check-users")) as smtpd:
        assert "link-auth" not in smtpd.reports
    line = "--check-users contradicts --exempt authenticated"
    assert line in complaint("sender", "--check-users", "--exempt=authenticated")


@pytest.mark.parametrize(
    ("sender", "allowed"),
    [
        ("root", True),
        ("ROOT+cron", True),
        ('"root"', True),
        ("bob@missing.example", True),
        ("Anyone@MISSING.example", True),
        ("@relay.example:bob@missing.example", True),
        ("bob@missing.example.", True),
        ("boss@null.example", True),
        ("bob@null.example", False),
        ("bob@sub.missing.example", False),
        ("bob", False),
    ],
)
@pytest.mark.parametrize("stranger", STRANGERS)
def test_senders_that_are_never_refused(
    server: DNSServer, sender: str, stranger: dict[str, Any], *, allowed: bool
) -> None:
    server.queries.clear()
    allow = "--allow-senders={ root, @missing.example, boss@null.example }"
    with Conversation(Sender, *asking(server, allow, "-v")) as smtpd:
        assert come(smtpd, sender=sender, **stranger).refused is not allowed
        assert (" mail-from result=proceed reason=" in smtpd.log[0]) is allowed
    assert not (allowed and server.queries)


def test_the_null_sender_passes_whatever_the_dns_does() -> None:
    assert verdict("", f"--nameserver={NOBODY}", "--timeout=10ms").verb == "proceed"


def test_on_a_dry_run_nothing_is_refused(server: DNSServer) -> None:
    with Conversation(Sender, *asking(server, "--dry-run")) as smtpd:
        assert come(smtpd, sender="bob@missing.example", **STRANGERS[0]).verb == "proceed"
        assert "result=proceed would=reject" in smtpd.log[0]


# -- a DNS that fails ----------------------------------------------------------------------

KINDS = ("servfail", "refused", "drop", "wrong-id", "wrong-name", "wrong-owner", "malformed")
LATER = "451 4.4.3 Temporary failure, please try again later"
# Faults that only end with the time-out.
SILENT = ("drop", "wrong-id", "wrong-name", "malformed", "delay")
# Of a port that the system gives nobody.
NOBODY = "127.0.0.1:9"


def broken(name: str, fault: str) -> dict[str, dict[str, Any]]:
    zone = {
        "good.example": {"MX": "10 mx.public.example."},
        "mx.public.example": {"A": PUBLIC},
    }
    return {**zone, name: {**zone[name], fault: 60 if fault == "delay" else True}}


@pytest.mark.parametrize(
    ("fault", "name", "timeout", "on_error"),
    some(
        # Where somebody answers too, there has to be time for it.
        (fault, name, timeout if fault in SILENT else 15, on_error)
        for name, timeout, outcomes in (
            ("good.example", 0.02, ("", "proceed", "junk", "tempfail")),
            ("mx.public.example", 1.5, ("",)),
        )
        for fault in (*KINDS, "delay")
        for on_error in outcomes
    ),
)
def test_a_broken_dns_is_a_temporary_failure(
    fault: str, name: str, timeout: float, on_error: str
) -> None:
    with DNSServer(broken(name, fault)) as faulty:
        policy = [f"--on-error={on_error}"] if on_error else []
        flags = asking(faulty, f"--timeout={brief(timeout)}s", *policy)
        with Conversation(Sender, *flags) as smtpd:
            said = come(smtpd, sender="bob@good.example", **STRANGERS[0])
            if on_error in {"", "tempfail"}:
                assert said.reply == LATER
            else:
                assert said.verb == on_error
            where = "sender domain" if name == "good.example" else "mail exchanger"
            assert f'cause="{where}: ' in smtpd.log[0]
            assert "bob" not in smtpd.log[0]


@pytest.mark.parametrize("check", ["unknown", "bad-mx"])
def test_without_an_mx_both_addresses_have_to_be_known(check: str) -> None:
    zone = {
        "half.example": {"TXT": "there", "servfail": ["A"]},
        "good.example": {"A": PUBLIC, "servfail": ["AAAA"]},
        "loop.example": {"A": "127.0.0.1", "servfail": ["AAAA"]},
    }
    with DNSServer(zone) as faulty:
        flags = asking(faulty, *only(check))
        assert verdict("bob@half.example", *flags).reply == LATER
        assert verdict("bob@good.example", *flags).verb == "proceed"
        said = verdict("bob@loop.example", *flags)
        assert said.reply == ("" if check == "unknown" else LATER)


@pytest.mark.parametrize(
    ("hosts", "flags", "reply"),
    [
        # What is known decides, in whichever direction.
        (["mx.public.example", "mx.broken.example"], (), ""),
        (["mx.loop.example", "mx.broken.example"], (), LATER),
        (["mx.missing.example", "mx.broken.example"], (), LATER),
        (["mx.public.example", "mx.broken.example"], ("--any-bad-mx",), ""),
        (["mx.loop.example", "mx.broken.example"], ("--any-bad-mx",), REPLIES["bad_mx"]),
        (["mx.missing.example", "mx.broken.example"], ("--any-bad-mx",), LATER),
    ],
)
def test_when_one_exchanger_is_not_known(
    hosts: list[str], flags: tuple[str, ...], reply: str
) -> None:
    zone: dict[str, dict[str, Any]] = {
        "two.example": {"MX": [f"10 {host}." for host in hosts]},
        "mx.public.example": {"A": PUBLIC},
        "mx.loop.example": {"A": "127.0.0.1"},
        "mx.broken.example": {"servfail": True},
    }
    with DNSServer(zone) as faulty:
        said = verdict("bob@two.example", *asking(faulty, *flags))
        assert said.reply == reply


def test_a_trial_changes_nothing_when_the_dns_fails() -> None:
    with DNSServer({"good.example": {"servfail": True}}) as faulty:
        trial = [f"--{check}=log" for check in CHECKS]
        with Conversation(Sender, *asking(faulty, *trial)) as smtpd:
            assert come(smtpd, sender="bob@good.example", **STRANGERS[0]).verb == "proceed"
            assert smtpd.log[0].count("sender domain: ") == 1


def test_a_flapping_server_is_good_enough() -> None:
    with DNSServer(broken("good.example", "flap")) as flapping:
        flags = asking(flapping, f"--timeout={brief(0.5)}s")
        assert verdict("bob@good.example", *flags).verb == "proceed"


def test_a_forged_answer_beside_the_true_one_changes_nothing() -> None:
    with DNSServer(broken("mx.public.example", "spoof")) as spoofed:
        assert verdict("bob@good.example", *asking(spoofed)).verb == "proceed"


def test_nobody_listening_is_a_temporary_failure() -> None:
    assert verdict("bob@good.example", f"--nameserver={NOBODY}").reply == LATER


def test_the_deadline_of_the_filter_holds_whatever_the_time_out() -> None:
    with DNSServer(broken("good.example", "drop")) as dead:
        flags = asking(dead, "--timeout=60s", "--deadline=30ms")
        with Conversation(Sender, *flags) as smtpd:
            said = come(smtpd, sender="bob@good.example", **STRANGERS[0])
            assert said.reply.startswith("451 4.")
            assert ' error="not done after 0.03 s"' in smtpd.log[-1]


# -- what is where -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "bad"),
    [
        ("127.0.0.1", True), ("10.255.255.255", True), ("172.31.0.1", True), ("172.32.0.1", False),
        ("192.168.0.1", True), ("100.64.0.1", True), ("100.128.0.1", False), ("0.0.0.0", True),  # noqa: S104
        ("169.254.1.1", True), ("224.0.0.1", True), ("255.255.255.255", True), ("9.9.9.9", False),
        ("192.0.2.1", True), ("::1", True), ("::", True), ("::ffff:10.0.0.1", True),
        ("::ffff:9.9.9.9", False), ("fe80::1", True), ("fd00::1", True), ("ff02::1", True),
        ("2001:db8::1", True), ("2001:4860::1", False), ("2a00::1", False),
        ("64:ff9b::909:909", False), ("64:ff9b::7f00:1", True), ("64:ff9b::c0a8:101", True),
        ("2002:909:909::1", False), ("2002:a00:1::1", True), ("2002:ac1f:1::1", True),
        ("2002:ac20:1::1", False), ("::7f00:1", True), ("::909:909", True),
        ("::ffff:0:7f00:1", True), ("::1:909:909", False),
    ],
)  # fmt: skip
def test_the_built_in_networks(address: str, *, bad: bool) -> None:
    assert (NetworkTable.of(BOGONS).match(address) is not None) is bad


@given(st.text())
def test_whatever_a_sender_is_it_has_a_domain_or_none(text: str) -> None:
    domain = domain_of(text)
    assert "@" not in domain or not text.isascii()
    assert domain == domain_of(f"x@{domain}")


def test_an_internationalised_domain_is_looked_up_in_the_form_of_the_dns() -> None:
    assert domain_of("a@BÜCHER.Example.") == "xn--bcher-kva.example"
    assert domain_of('@relay.example:"a@b"@XN--BCHER-KVA.example') == "xn--bcher-kva.example"
    assert domain_of('"a@example.org"') == ""


@given(st.text(max_size=80))
def test_no_sender_ends_the_filter(text: str) -> None:
    sender = "".join(c for c in text if c not in "\r\n\0")
    with Conversation(Sender, *only("non-fqdn")) as smtpd:
        assert come(smtpd, sender=sender, **STRANGERS[0]).verb in {"proceed", "reject"}


# -- the executable ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (only("none"), "nothing to check: every check is off"),
        ((*only("non-fqdn"), "--nameserver=192.0.2.53"), "--nameserver requires "),
        (("--bad-mx=off", "--any-bad-mx"), "--any-bad-mx has no effect with --bad-mx off"),
        (("--bad-mx=off", "--bad-networks=10/8"), "--bad-networks has no effect with --bad-mx off"),
        (("--nameserver", "ns.example.org"),
         "--nameserver: name server: 'ns.example.org' is not an IP address"),
        (("--null-mx", "tempfail"), '--null-mx: invalid choice "tempfail"'),
        (("--bad-networks", "10/33"), "--bad-networks: "),
        (("--allow", "file:/nonexistent"), "--allow: /nonexistent: No such file or directory"),
        (("--unknwon=log",), 'unknown flag --unknwon, did you mean "--unknown"?'),
    ],
)  # fmt: skip
def test_bad_flags_are_one_line(flags: tuple[str, ...], expected: str) -> None:
    assert expected in complaint("sender", *flags)


def test_the_executable_answers_smtpd(server: DNSServer) -> None:
    senders = ["bob@good.example", "bob@missing.example", "", "bob@gate"]
    clients = [("<unknown>|fail|192.0.2.1:33174", "mail-from", sender) for sender in senders]
    answers, log = serve("sender", *asking(server), clients=clients)
    assert answers == [
        answered(0, "proceed"),
        answered(1, f"reject|{REPLIES['unknown']}"),
        answered(2, "proceed"),
        answered(3, f"reject|{REPLIES['non_fqdn']}"),
    ]
    assert 'reason="sender domain missing.example does not exist"' in log


def test_without_questions_nothing_is_loaded_for_them() -> None:
    loaded = loaded_to_set_up(Sender, *only("non-fqdn"))
    assert not loaded & {
        "asyncio",
        "dns",
        "socket",
        "ipaddress",
        "smtpd_filters.lookups.dns.transport",
    }


@pytest.mark.parametrize("check", REPLIES)
def test_the_chain_runs_asyncio_only_to_ask(check: str) -> None:
    actions = {name: "log" if name == check else "off" for name in REPLIES}
    policy = Sender(Sender.Options(**actions))
    set_up(policy, Log())
    assert policy.name == "sender"
    assert Chain([(policy, "proceed", 30.0)], Log()).waits is (check in ASKING)


def test_the_resolver_of_the_system_is_asked_unless_told_otherwise() -> None:
    with Conversation(Sender) as smtpd:
        assert come(smtpd, sender="", **STRANGERS[0]).verb == "proceed"
