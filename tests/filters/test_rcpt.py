from __future__ import annotations

import asyncio
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.rcpt import PATIENCE, Rcpt, wait
from smtpd_filters.testing import Conversation, DNSServer, Verdict
from tests.effort import brief
from tests.filters.executables import loaded_to_set_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from smtpd_filters.testing import Client

OURS = ("--domains", "{ example.org, *.example.org, intranet }")
SENDER = "bob@example.net"
ANNA = "anna@example.org"
TRAPS = ("--traps", "{ trap@example.org, @old.example.org }")
ADDRESSES = ("192.0.2.1", "2001:db8::1")
EVERY = ("log", "junk", "reject")


def greeted(smtpd: Conversation, user: str = "", **client: Any) -> Client:
    there = smtpd.connect(**client)
    there.ehlo()
    if user:
        there.auth(user)
    return there


def begun(smtpd: Conversation, sender: str = SENDER, **client: Any) -> Client:
    there = greeted(smtpd, **client)
    there.mail_from(sender)
    return there


def verdict(*flags: str, to: str = ANNA, sender: str = SENDER, **client: Any) -> Verdict:
    with Conversation(Rcpt, *flags) as smtpd:
        return begun(smtpd, sender, **client).rcpt_to(to)


def reasons(smtpd: Conversation) -> list[str]:
    return [line.partition(' reason="')[2].partition('"')[0] for line in smtpd.log]


# -- addresses that can't be meant ---------------------------------------------------------


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("action", EVERY)
def test_a_recipient_without_a_full_domain(action: str, address: str) -> None:
    with Conversation(Rcpt, *OURS, "--non-fqdn", action) as smtpd:
        said = begun(smtpd, address=address).rcpt_to("anna@mail")
        assert said.verb == {"log": "proceed"}.get(action, action)
        text = "504 5.5.2 The recipient's address is not fully qualified"
        assert said.reply == (text if action == "reject" else "")
        assert reasons(smtpd) == ["recipient anna@mail is not fully qualified"]


@pytest.mark.parametrize(
    ("to", "passes"),
    [
        ("anna@example.org", True),
        ("anna@Example.ORG.", True),
        ("anna@example.com", True),
        ("anna@intranet", True),
        ("anna@INTRANET", True),
        ("anna@localhost", False),
        ("anna@mail.", False),
        ("anna", False),
        ("anna@", False),
        ('"anna@example.org"', False),
        ('"anna b"@example.org', True),
        ("@relay.example:anna@mail", False),
        ("@relay.example:anna@example.org", True),
        ("postmaster", True),
        ("Postmaster", True),
        ("postmaster@mail", False),
        ("anna@[192.0.2.25]", True),
        ("anna@[IPv6:2001:db8::25]", True),
        ("anna@[2001:db8::25]", True),
        ("anna@[x]", False),
        ("anna@[x.example]", False),
        ("anna@[192.0.2]", False),
    ],
)
def test_which_domains_are_full(to: str, *, passes: bool) -> None:
    assert (verdict(*OURS, to=to).verb == "proceed") is passes


def test_what_is_off_is_not_looked_at() -> None:
    assert verdict("--non-fqdn", "off", to="anna@mail").verb == "proceed"


# -- spam traps ----------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["trap@example.org", "TRAP+1@Example.org", "anyone@old.example.org"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_who_writes_to_a_trap_is_marked_from_then_on(to: str, address: str) -> None:
    with Conversation(Rcpt, *TRAPS) as smtpd:
        there = begun(smtpd, address=address)
        assert there.rcpt_to(ANNA).verb == "proceed"
        assert there.rcpt_to(to).verb == "junk"
        assert there.rcpt_to("carl@example.org").verb == "junk"
        assert there.message().headers.get("X-Spam") == "Yes"
        there.mail_from(SENDER)
        assert there.rcpt_to(ANNA).verb == "junk"
        assert there.message().headers.get("X-Spam") == "Yes"
        assert smtpd.phases == {"rcpt-to"}
        # Another connection is another client.
        assert begun(smtpd, address=address).rcpt_to(ANNA).verb == "proceed"
        assert f"recipient {to} is a spam trap: " in reasons(smtpd)[0]
        assert reasons(smtpd)[1] == f"has written to the spam trap {to}"


@pytest.mark.parametrize(
    "to",
    ["trap@mx.example.org", "trap", '"trap"', "TRAP@BÜCHER.example", "x@xn--bcher-kva.example"],
)
def test_a_trap_in_any_spelling(to: str) -> None:
    # smtpd completes an address without a domain with its name.
    traps = ("--traps", "{ trap@mx.example.org, @bücher.example }", "--trapped", "reject")
    with Conversation(Rcpt, *traps, "--non-fqdn", "off") as smtpd:
        assert begun(smtpd).rcpt_to(to).refused
        assert not begun(smtpd).rcpt_to("trap@example.org").refused
        assert "link-greeting" in smtpd.reports


def test_our_domains_in_any_spelling() -> None:
    for to in ("a@bücher", "a@BÜCHER", "a@xn--bcher-kva."):
        assert verdict("--domains", "@bücher", to=to).verb == "proceed"
    assert verdict("--domains", "bücher", to="a@bucher").refused


def test_a_trap_that_smtpd_does_not_know_is_a_trap() -> None:
    with Conversation(Rcpt, *TRAPS) as smtpd:
        there = begun(smtpd)
        assert there.rcpt_to("trap@example.org", accepted=False).refused
        assert there.rcpt_to(ANNA).verb == "junk"


def test_who_writes_to_a_trap_is_refused_from_then_on() -> None:
    reply = "550 5.7.1 Refused by local policy"
    with Conversation(Rcpt, *TRAPS, "--trapped", "reject") as smtpd:
        there = begun(smtpd)
        assert there.rcpt_to(ANNA).verb == "proceed"
        assert there.rcpt_to("trap@example.org").reply == reply
        assert there.rcpt_to("carl@example.org").reply == reply
        # The recipient that was taken before gets nothing either.
        said = there.data()
        assert (said.verb, said.reply) == ("reject", reply)
        there.rset()
        there.mail_from("other@example.net")
        assert there.rcpt_to(ANNA).reply == reply
        honest = begun(smtpd)
        honest.rcpt_to(ANNA)
        assert honest.message().verb == "proceed"


def test_a_trap_that_is_only_logged_changes_nothing() -> None:
    with Conversation(Rcpt, *TRAPS, "--trapped", "log") as smtpd:
        there = begun(smtpd)
        assert there.rcpt_to("trap@example.org").verb == "proceed"
        assert there.rcpt_to(ANNA).verb == "proceed"
        assert there.rcpt_to("x@old.example.org").verb == "proceed"
        assert reasons(smtpd) == ["recipient trap@example.org is a spam trap: trap@example.org"]


def test_a_bounce_to_a_trap_is_no_spammers() -> None:
    with Conversation(Rcpt, *TRAPS, "--trapped", "reject") as smtpd:
        there = begun(smtpd, sender="")
        assert there.rcpt_to("trap@example.org").verb == "proceed"
        assert there.message().verb == "proceed"
        there.mail_from(SENDER)
        assert there.rcpt_to(ANNA).verb == "proceed"


# -- many recipients -----------------------------------------------------------------------


def code(said: Verdict) -> int:
    """The code of a refusal, 0 when there was none."""
    return int(said.reply[:3] or 0)


def named(count: int) -> list[str]:
    return [f"user{number}@example.org" for number in range(count)]


@pytest.mark.parametrize("action", EVERY)
def test_more_recipients_than_a_message_may_have(action: str) -> None:
    flags = ("--max-recipients", "3", "--many-recipients", action)
    with Conversation(Rcpt, *flags) as smtpd:
        there = begun(smtpd)
        assert [there.rcpt_to(each).verb for each in named(3)] == ["proceed"] * 3
        said = [there.rcpt_to(f"more{number}@example.org") for number in range(2)]
        assert [each.verb for each in said] == [{"log": "proceed"}.get(action, action)] * 2
        reply = "452 4.5.3 Too many recipients, send the others another message"
        assert said[0].reply == (reply if action == "reject" else "")
        # One line for all of them suffices.
        assert len(smtpd.log) == (1 if action == "log" else 2)
        assert reasons(smtpd)[0] == "3 recipients already"
        # What was taken is delivered, and the rest may come in another message.
        assert there.message().verb == "proceed"
        there.mail_from(SENDER)
        assert there.rcpt_to("more0@example.org").verb == "proceed"


def test_recipients_that_smtpd_refused_are_none_of_the_message() -> None:
    with Conversation(Rcpt, "--max-recipients", "1") as smtpd:
        there = begun(smtpd)
        for each in named(3):
            assert there.rcpt_to(each, accepted=False).verb == "proceed"
        assert there.rcpt_to(ANNA).verb == "proceed"
        assert code(there.rcpt_to("carl@example.org")) == 452


# -- the null sender -----------------------------------------------------------------------


@pytest.mark.parametrize("action", EVERY)
def test_a_bounce_to_several(action: str) -> None:
    with Conversation(Rcpt, "--null-sender", action) as smtpd:
        there = begun(smtpd, sender="")
        assert there.rcpt_to(ANNA).verb == "proceed"
        said = [there.rcpt_to(each) for each in named(2)]
        assert [each.verb for each in said] == [{"log": "proceed"}.get(action, action)] * 2
        reply = "550 5.5.3 A message without a sender has one recipient"
        assert said[0].reply == (reply if action == "reject" else "")
        assert len(smtpd.log) == (1 if action == "log" else 2)
        assert reasons(smtpd)[0] == "null sender with several recipients"


@pytest.mark.parametrize("sender", ["x:", '"x":', "x:@", "@"])
def test_a_bounce_whose_sender_has_another_form(sender: str) -> None:
    with Conversation(Rcpt, "--null-sender", "reject", "--traps", ANNA) as smtpd:
        there = begun(smtpd, sender=sender)
        assert [there.rcpt_to(each).verb for each in (ANNA, *named(1))] == ["proceed", "reject"]


@pytest.mark.parametrize("route", ["x:", '"x":', '"x:', '"x@y.example":'])
def test_a_trap_behind_a_route(route: str) -> None:
    with Conversation(Rcpt, "--traps", ANNA, "--trapped", "reject") as smtpd:
        assert begun(smtpd).rcpt_to(f"{route}{ANNA}").verb == "reject"


def test_a_sender_may_have_several_recipients() -> None:
    with Conversation(Rcpt, "--null-sender", "reject") as smtpd:
        there = begun(smtpd)
        assert [there.rcpt_to(each).verb for each in named(3)] == ["proceed"] * 3


# -- guessing ------------------------------------------------------------------------------


def guess(there: Client, times: int) -> None:
    for number in range(times):
        said = there.rcpt_to(f"guess{number}@example.org", accepted=False)
        # It is smtpd that says so, in its own words.
        assert said.reply == f"550 Invalid recipient: <guess{number}@example.org>"


@pytest.mark.parametrize("address", ADDRESSES)
def test_who_guesses_too_often_is_disconnected(address: str) -> None:
    with Conversation(Rcpt, "--max-unknown", "3") as smtpd:
        there = begun(smtpd, address=address)
        guess(there, 2)
        assert there.rcpt_to(ANNA).verb == "proceed"
        there.rset()
        # Over all messages of the connection.
        there.mail_from(SENDER)
        guess(there, 1)
        said = there.rcpt_to(ANNA)
        assert said.verb == "disconnect"
        assert said.reply == "421 4.7.0 Too many unknown recipients, closing the connection"
        assert reasons(smtpd) == ["3 unknown recipients"]
        assert begun(smtpd, address=address).rcpt_to(ANNA).verb == "proceed"


def test_twenty_is_too_often() -> None:
    with Conversation(Rcpt) as smtpd:
        there = begun(smtpd)
        guess(there, 20)
        assert there.rcpt_to(ANNA).verb == "disconnect"


@pytest.mark.parametrize(("action", "lines"), [("log", 1), ("junk", 2), ("off", 0)])
def test_who_guesses_may_stay(action: str, lines: int) -> None:
    with Conversation(Rcpt, "--max-unknown", "2", "--unknown-recipients", action) as smtpd:
        there = begun(smtpd)
        guess(there, 2)
        for each in named(2):
            assert there.rcpt_to(each).verb == ("junk" if action == "junk" else "proceed")
        assert reasons(smtpd) == ["2 unknown recipients"] * lines


def test_what_it_refused_itself_is_no_guess() -> None:
    flags = ("--max-unknown", "2", "--null-sender", "reject", "--max-recipients", "1")
    with Conversation(Rcpt, *flags) as smtpd:
        there = begun(smtpd)
        for _ in range(4):
            assert code(there.rcpt_to("anna@mail")) == 504
        assert there.rcpt_to(ANNA).verb == "proceed"
        for each in named(3):
            assert code(there.rcpt_to(each)) == 452
        guess_one = there.rcpt_to("anna@mail")
        assert guess_one.verb == "reject"


def test_its_own_refusals_are_told_from_smtpds() -> None:
    with Conversation(Rcpt, "--max-unknown", "2") as smtpd:
        there = begun(smtpd)
        guess(there, 1)
        for _ in range(3):
            assert code(there.rcpt_to("anna@mail")) == 504
        guess(there, 1)
        assert there.rcpt_to("anna@mail").verb == "disconnect"


def test_what_it_refused_for_the_moment_makes_no_guess_undone() -> None:
    with Conversation(Rcpt, "--max-unknown", "2", "--max-recipients", "1") as smtpd:
        there = begun(smtpd)
        there.rcpt_to(ANNA)
        for each in named(3):
            assert code(there.rcpt_to(each)) == 452
        there.rset()
        there.mail_from(SENDER)
        guess(there, 2)
        assert there.rcpt_to(ANNA).verb == "disconnect"


# -- waiting -------------------------------------------------------------------------------


def test_the_wait_grows_to_its_bound() -> None:
    waits = [wait(guessed, 20, 1.0, 20.0) for guessed in range(20)]
    assert waits == [0.0] * 10 + [1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0, 20.0, 20.0, 20.0]


@given(
    st.integers(0, 1 << 40),
    st.integers(1, 1 << 40),
    st.floats(1e-3, 240),
    st.floats(1e-3, 240),
)
def test_the_wait_is_bounded(guessed: int, limit: int, first: float, most: float) -> None:
    seconds = wait(guessed, limit, first, most)
    assert 0 <= seconds <= most
    # Nobody waits who has not guessed.
    assert seconds == 0 or guessed >= 1
    assert wait(guessed + 1, limit, first, most) >= seconds


def asked_for(smtpd: Conversation, guessed: int) -> float:
    """How long the filter would have a client wait that has guessed so often."""
    filter_: Any = smtpd.filters[0]
    there = begun(smtpd)
    session = smtpd._served.engine.session(there.id.encode())
    session.refused_recipients = guessed
    seconds: float = filter_._wait(session)
    return seconds


@pytest.mark.parametrize(
    ("flags", "longest"),
    [
        ((), 20.0),
        (("--dry-run",), 0.0),
        (("--max-delay", "5s"), 5.0),
        (("--deadline", "8s"), 8 * PATIENCE),
        (("--deadline", "1ms"), 0.001 * PATIENCE),
    ],
)
def test_nobody_waits_longer_than_that(flags: tuple[str, ...], longest: float) -> None:
    with Conversation(Rcpt, "--delay", "1s", *flags) as smtpd:
        assert asked_for(smtpd, 9) == 0
        assert asked_for(smtpd, 19) == longest


@pytest.mark.parametrize(("said", "longest"), [("8", 6.0), ("", 20.0), ("soon", 20.0)])
def test_nobody_waits_longer_than_smtpd_does(said: str, longest: float) -> None:
    with Conversation(Rcpt, "--delay", "1s") as smtpd:
        smtpd.filters[0].smtpd = {"smtp-session-timeout": said}
        assert asked_for(smtpd, 19) == longest


def test_who_guesses_waits_and_nobody_else() -> None:
    with Conversation(Rcpt, "--max-unknown", "4", "--delay", "50ms") as smtpd:
        there = begun(smtpd)
        guess(there, 2)
        started = perf_counter()
        assert there.rcpt_to(ANNA).verb == "proceed"
        assert perf_counter() - started >= 0.05
        guess(there, 1)
        started = perf_counter()
        assert there.rcpt_to("carl@example.org").verb == "proceed"
        assert perf_counter() - started >= 0.1
        spawned: list[object] = []
        smtpd._served.engine.spawn = lambda *work: spawned.append(work)  # type: ignore[assignment]
        assert begun(smtpd).rcpt_to(ANNA).verb == "proceed"
        assert spawned == []


def test_who_is_refused_waits_as_well() -> None:
    with Conversation(Rcpt, "--max-unknown", "4", "--delay", "50ms") as smtpd:
        there = begun(smtpd)
        guess(there, 2)
        started = perf_counter()
        assert code(there.rcpt_to("anna@mail")) == 504
        assert perf_counter() - started >= 0.05


def test_the_deadline_is_kept(naps: list[float]) -> None:
    flags = ("--max-unknown", "4", "--delay", "200s", "--max-delay", "200s")
    with Conversation(Rcpt, *flags, "--deadline", "80s", "--on-error", "tempfail") as smtpd:
        there = begun(smtpd)
        guess(there, 3)
        assert there.rcpt_to(ANNA).verb == "proceed"
    assert set(naps) == {80 * PATIENCE}


def test_nobody_waits_on_a_dry_run() -> None:
    with Conversation(Rcpt, "--max-unknown", "4", "--delay", "20s", "--dry-run") as smtpd:
        there = begun(smtpd)
        for _ in range(6):
            assert there.rcpt_to("guess@example.org", accepted=False).verb == "proceed"
        assert " result=proceed would=disconnect " in smtpd.log[-1]


def test_a_dry_run_refuses_nothing_so_nothing_is_its_own() -> None:
    with Conversation(Rcpt, "--max-unknown", "3", "--dry-run") as smtpd:
        there = begun(smtpd)
        for _ in range(3):
            assert there.rcpt_to("anna@mail", accepted=False).verb == "proceed"
        assert there.rcpt_to(ANNA).verb == "proceed"
        assert "would=disconnect" in smtpd.log[-1]
        assert reasons(smtpd)[-1] == "3 unknown recipients"


# -- whom to spare -------------------------------------------------------------------------

SPARED: list[dict[str, Any]] = [
    {"local": True, "rdns": None},
    {"address": "127.0.0.1"},
    {"address": "::1"},
    {"user": "anna"},
    {"address": "198.51.100.7"},
    {"address": "2001:db8:1::7"},
]


@pytest.mark.parametrize("client", SPARED)
def test_who_is_spared(client: dict[str, Any]) -> None:
    allow = ("--allow", "{ 198.51.100.0/24, 2001:db8:1::/48 }")
    flags = ("--trapped", "reject", "--max-unknown", "1", "--max-recipients", "1", *TRAPS, *allow)
    with Conversation(Rcpt, *flags) as smtpd:
        there = begun(smtpd, **client)
        assert there.rcpt_to("anna@mail").verb == "proceed"
        assert there.rcpt_to("trap@example.org").verb == "proceed"
        guess(there, 3)
        assert there.rcpt_to(ANNA).verb == "proceed"
        assert there.message().verb == "proceed"
        assert smtpd.log == []


@pytest.mark.parametrize("client", SPARED)
def test_users_may_be_checked(client: dict[str, Any]) -> None:
    allow = ("--allow", "{ 198.51.100.0/24, 2001:db8:1::/48 }")
    said = verdict("--check-users", *allow, to="anna@mail", **client)
    assert said.refused is ("user" in client)


def test_no_more_is_asked_of_smtpd_than_is_needed() -> None:
    transaction = {"tx-begin", "tx-mail", "tx-rcpt", "tx-reset"}
    always = {"link-connect", "link-disconnect"}
    few = ("--unknown-recipients", "off", "--null-sender", "off")
    for flags, reports in [
        ((), always | transaction | {"link-auth"}),
        (few, always | {"link-auth"}),
        ((*few, "--check-users"), always),
        ((*few, "--max-recipients", "9"), always | transaction | {"link-auth"}),
    ]:
        with Conversation(Rcpt, *flags) as smtpd:
            assert smtpd.reports == reports
            assert smtpd.phases == {"rcpt-to"}
            # Nor is anything looked at that was not asked for.
            there = begun(smtpd)
            assert there.rcpt_to(ANNA).verb == "proceed"
            assert there.rcpt_to("anna@mail").verb == "reject"
    with Conversation(Rcpt, *TRAPS, "--trapped", "reject") as smtpd:
        assert smtpd.phases == {"rcpt-to", "data"}


# -- domains that can't get mail -----------------------------------------------------------

ZONE: dict[str, dict[str, Any]] = {
    "mail.example": {"MX": ["10 mx.mail.example"]},
    "host.example": {"A": ["192.0.2.80"]},
    "host6.example": {"AAAA": ["2001:db8::80"]},
    "null.example": {"MX": ["0 ."]},
    "nulls.example": {"MX": [f"{n} ." for n in range(200)]},
    "text.example": {"TXT": ["no mail here"]},
    "alias.example": {"CNAME": ["mail.example"]},
    "fails.example": {"servfail": True},
    "half.example": {"TXT": ["-"], "A": ["192.0.2.80"], "servfail": ["AAAA"]},
    "sick.example": {"TXT": ["-"], "servfail": ["A", "AAAA"]},
    "drops.example": {"drop": True},
    "lies.example": {"MX": ["10 mx.mail.example"], "wrong-id": True},
    "other.example": {"MX": ["10 mx.mail.example"], "wrong-owner": True},
    "flaps.example": {"MX": ["10 mx.mail.example"], "flap": True},
    "slow.example": {"MX": ["10 mx.mail.example"], "delay": 0.05},
    "late.example": {"MX": ["10 mx.mail.example"], "delay": 60},
}
SHORT = ("--timeout", "50ms")  # where no answer comes that could be late


@pytest.fixture
def server() -> Iterator[DNSServer]:
    with DNSServer(ZONE) as running:
        yield running


def looking(server: DNSServer, *flags: str) -> tuple[str, ...]:
    nameserver = f"{server.address}:{server.port}"
    check = () if "--unknown-domain" in flags else ("--unknown-domain", "reject")
    return (*OURS, *check, "--nameserver", nameserver, *flags)


GONE = "550 5.1.2 The recipient's domain does not exist"
EMPTY = "550 5.1.2 The recipient's domain has no mail exchanger and no address"
NULL = "556 5.1.10 The recipient's domain accepts no mail (null MX)"


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    ("domain", "reply", "reason"),
    [
        ("mail.example", "", ""),
        ("Mail.Example.", "", ""),
        ("host.example", "", ""),
        ("host6.example", "", ""),
        ("alias.example", "", ""),
        ("half.example", "", ""),
        ("flaps.example", "", ""),
        ("slow.example", "", ""),
        # Not all of them were looked at.
        ("nulls.example", "", ""),
        ("null.example", NULL, "domain null.example has a null MX"),
        ("text.example", EMPTY, "domain text.example has neither MX nor address"),
        ("gone.example", GONE, "domain gone.example does not exist"),
        ("b\u00fccher.example", GONE, "domain xn--bcher-kva.example does not exist"),
        ("a_very$odd.example", GONE, "domain a_very$odd.example does not exist"),
        ("example.org", "", ""),
        ("deep.example.org", "", ""),
        ("[192.0.2.25]", "", ""),
    ],
)
def test_a_domain_that_gets_no_mail(
    server: DNSServer, domain: str, reply: str, reason: str, address: str
) -> None:
    with Conversation(Rcpt, *looking(server, "--timeout", f"{brief(0.5)}s")) as smtpd:
        said = begun(smtpd, address=address).rcpt_to(f"x@{domain}")
        assert said.reply == reply
        assert reasons(smtpd) == ([reason] if reason else [])


def test_our_own_domains_are_not_looked_up(server: DNSServer) -> None:
    server.queries.clear()
    for to in (ANNA, "a@b.example.org", "a@intranet", "postmaster", "a@[192.0.2.25]"):
        assert verdict(*looking(server), to=to).verb == "proceed"
    # Nor is what is refused anyway.
    assert code(verdict(*looking(server), to="anna@mail")) == 504
    assert server.queries == []


def test_a_domain_is_looked_up_once(server: DNSServer) -> None:
    server.queries.clear()
    with Conversation(Rcpt, *looking(server)) as smtpd:
        there = begun(smtpd)
        for number in range(3):
            assert there.rcpt_to(f"user{number}@host.example").verb == "proceed"
    assert sorted(server.queries) == [
        ("host.example", "A"),
        ("host.example", "AAAA"),
        ("host.example", "MX"),
    ]


@pytest.mark.parametrize("on_error", ["proceed", "junk", "tempfail"])
@pytest.mark.parametrize(
    "domain",
    [
        "fails.example",
        "sick.example",
        "drops.example",
        "lies.example",
        "other.example",
        "late.example",
    ],
)
def test_what_the_dns_does_not_say_is_no_verdict(
    server: DNSServer, domain: str, on_error: str
) -> None:
    with Conversation(Rcpt, *looking(server, *SHORT, "--on-error", on_error)) as smtpd:
        there = begun(smtpd)
        said = there.rcpt_to(f"x@{domain}")
        assert said.verb == {"tempfail": "reject"}.get(on_error, on_error)
        if on_error == "tempfail":
            assert said.reply == "451 4.4.3 Temporary failure, please try again later"
        assert "cause=" in smtpd.log[0]
        # A refusal for the moment is no guess.
        assert there.rcpt_to(ANNA).verb == "proceed"


def test_nobody_listening_is_a_temporary_failure() -> None:
    # The system gives this port to nobody.
    flags = (*OURS, "--unknown-domain=reject", "--nameserver=127.0.0.1:9", "--on-error=tempfail")
    assert verdict(*flags, to="x@mail.example").reply.startswith("451 4.4.3 ")


def test_a_trial_fails_for_nobody(server: DNSServer) -> None:
    flags = looking(server, "--unknown-domain", "log", "--on-error", "tempfail")
    assert verdict(*flags, *SHORT, to="x@drops.example").verb == "proceed"
    assert verdict(*flags, to="x@gone.example").verb == "proceed"


def test_waiting_and_looking_up_together(server: DNSServer) -> None:
    flags = looking(server, "--max-unknown", "4", "--delay", "60ms")
    with Conversation(Rcpt, *flags) as smtpd:
        there = begun(smtpd)
        guess(there, 2)
        for domain, due in (("gone.example", 550), ("mail.example", 0), ("slow.example", 0)):
            started = perf_counter()
            said = there.rcpt_to(f"x@{domain}")
            assert code(said) == due
            assert perf_counter() - started >= 0.06
        assert code(there.rcpt_to("x@null.example")) == 556


def test_what_is_needed_is_asked_for_before_the_wait(
    server: DNSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = asyncio.sleep

    async def until_it_is_asked(_seconds: float) -> None:
        while not server.asked("host.example", "MX"):
            await sleep(0.001)

    flags = looking(server, "--max-unknown", "4", "--delay", "10s", "--deadline", "60s")
    with Conversation(Rcpt, *flags) as smtpd:
        there = begun(smtpd)
        guess(there, 2)
        server.queries.clear()
        monkeypatch.setattr(asyncio, "sleep", until_it_is_asked)
        assert there.rcpt_to("x@host.example").verb == "proceed"
        monkeypatch.undo()


def test_what_is_being_looked_up_is_given_up_with_the_client(server: DNSServer) -> None:
    with Conversation(Rcpt, *looking(server, "--timeout", "5s")) as smtpd:
        there = begun(smtpd)
        other = begun(smtpd)
        key = there.id.encode()
        served = smtpd._served
        token = smtpd._tokens["rcpt-to"]
        smtpd._send(smtpd._smtpd.request("rcpt-to", key, token, b"x@late.example", b"1.000000"))
        assert served.engine.busy
        assert other.rcpt_to("x@mail.example").verb == "proceed"
        smtpd.report("link-disconnect", key)
        assert other.rcpt_to("y@host.example").verb == "proceed"


# -- flags ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--unknown-domain", "reject"), "--unknown-domain requires --domains"),
        (("--nameserver", "127.0.0.1"), "--nameserver requires "),
        (
            (*OURS, "--unknown-domain", "log", "--nameserver", "localhost"),
            "--nameserver: name server: ",
        ),
        (("--delay", "1s", "--unknown-recipients", "log"), "--delay requires --unknown-recipients"),
        (("--domains", "http://example.org/"), "--domains: ':' can't be"),
        (("--traps", "example.org"), '--traps: did you mean "@example.org"'),
        (("--max-unknown", "0"), "--max-unknown: must be at least 1"),
        (("--max-delay", "5m"), "--max-delay: must be at most"),
        (("--delay", "30s"), "--delay: must be at most --max-delay, which is 20 s, not 30 s"),
        ((*TRAPS, "--trapped", "off"), "--traps has no effect with --trapped off"),
        (("--trapped", "reject"), "--trapped requires --traps"),
        (("--trapped", "junk"), "--trapped requires --traps"),  # though it is the default
        (("--many-recipients", "reject"), "--many-recipients requires --max-recipients"),
        (("--many-recipients", "log"), "--many-recipients requires --max-recipients"),
        (("--domains", "<domains>"), "--domains: '<domains>': tables of smtpd.conf can't be used "),
        (
            ("--domains", "a.org,b.org"),
            "--domains: ',' can't be in .*: 'a.org,b.org'; write several entries in braces and q",
        ),
        (
            ("--domains", "{", "a.org,", "b.org", "}"),
            r"--domains: inline table: no closing brace in '{' \(put quotes around the braces, or ",
        ),
        (
            ("--domains", "{a.org,", "b.org}"),
            r"--domains: inline table: no closing brace in '{a.org,' \(put quotes around the ",
        ),
        (("--domains", "{ a.org, b.org"), "no closing brace in '{ a.org, b.org'$"),
        (("--traps", "{ }"), "--traps: no entries in { }"),
        (
            ("--max-recipients", "9", "--many-recipients", "off"),
            "--max-recipients has no effect with --many-recipients off",
        ),
        (
            ("--non-fqdn", "off", "--null-sender", "off", "--unknown-recipients", "off"),
            "nothing to check",
        ),
    ],
)
def test_what_does_not_fit_together_is_said_at_the_start(
    flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Conversation(Rcpt, *flags)


@pytest.mark.parametrize("flags", ["--trapped off", "--many-recipients off", "--domains {}"])
def test_what_is_turned_off_needs_nothing(flags: str) -> None:
    with Conversation(Rcpt, *flags.split()) as smtpd:
        assert "rcpt-to" in smtpd.phases


@pytest.mark.parametrize("flags", [(), (*TRAPS, *OURS, "--trapped", "reject")])
def test_nothing_of_asyncio_is_loaded_by_who_does_not_wait(flags: tuple[str, ...]) -> None:
    assert not {"asyncio", "dns", "typing", "dataclasses"} & loaded_to_set_up(Rcpt, *flags)


def test_nothing_that_asks_the_dns_is_loaded_to_delay() -> None:
    loaded = loaded_to_set_up(Rcpt, "--delay", "1s", waits=True)
    assert not {"dns", "smtpd_filters.lookups.dns.transport"} & loaded


@given(st.text(max_size=60), st.sampled_from(["", SENDER]))
def test_any_recipient_gets_a_decision(to: str, sender: str) -> None:
    to = "".join(char for char in to if char.isprintable())
    flags = (*OURS, *TRAPS, "--trapped", "reject", "--null-sender", "reject")
    with Conversation(Rcpt, *flags) as smtpd:
        there = begun(smtpd, sender)
        there.rcpt_to(ANNA)
        there.rcpt_to(to)
        assert " error=" not in "\n".join(smtpd.log)
