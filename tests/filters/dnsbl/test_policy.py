"""filter-dnsbl with the test kit and a real DNS server."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest

from smtpd_filters.cli.listing import describe
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.dnsbl import Dnsbl
from smtpd_filters.filters.dnsbl.lists import FRESH
from smtpd_filters.filters.dnsbl.options import old_style
from smtpd_filters.protocol.decisions import MAX_POINTS, Proceed
from smtpd_filters.runtime.pace import TURN, Pace
from smtpd_filters.scoring.rules import Rules, RuleSettings
from smtpd_filters.session import Session
from smtpd_filters.settings import from_mapping
from smtpd_filters.testing import Conversation, DNSServer
from tests.effort import brief, part, some
from tests.filters import executables
from tests.filters.dnsbl.zones import UNLISTED, addresses, domains, under
from tests.runtime.process import FilterProcess, sid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from smtpd_filters.testing import Verdict

ZONE, OTHER, ALLOW, NAMES = "bl.example", "other.example", "wl.example", "names.example"
BAD, BAD6, WORSE, GOOD = "192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.9"
# A list that lets every score be reached, and has no entry.
REACH = ("--client", f"{OTHER}=127.0.0.250*9")
SAID = "See https://bl.example/q"
ENTRIES: dict[str, dict[str, Any]] = {
    **addresses(
        ZONE,
        {
            BAD: {"A": "127.0.0.4", "TXT": SAID},
            BAD6: {"A": "127.0.0.4", "TXT": SAID},
            WORSE: {"A": ["127.0.0.2", "127.0.0.4"]},
        },
    ),
    **addresses(OTHER, {WORSE: "127.0.0.9"}),
    **addresses(ALLOW, {GOOD: "127.0.5.2", BAD6: "127.0.5.2"}),
    **domains(NAMES, {"bad.example": "127.0.1.2", "mail.bad.example": "127.0.1.4"}),
}
STEPS = ("connect", "ehlo", "mail-from", "rcpt-to", "data")


@pytest.fixture
def server() -> Iterator[DNSServer]:
    with DNSServer(ENTRIES) as running:
        yield running


@contextmanager
def talking(server: DNSServer, *flags: str, kind: type[Dnsbl] = Dnsbl) -> Iterator[Conversation]:
    nameserver = f"{server.address}:{server.port}"
    with Conversation(kind, "--nameserver", nameserver, *flags) as smtpd:
        yield smtpd


def come(smtpd: Conversation, address: str = BAD, **client: Any) -> Verdict:
    return executables.come(smtpd, address=address, **client)


def hasten(smtpd: Conversation) -> None:
    """Give look-ups a time that a test lets pass, after the lists were tested.

    A list is off if its test takes too long, which it may on a busy machine.
    """
    [filter_] = smtpd.filters
    assert isinstance(filter_, Dnsbl)
    seconds = brief(1.5)
    filter_.dns._timeout, filter_.dns._deadline = seconds / 3, seconds


def short() -> tuple[str, str]:
    """Return the flag with a time that a test lets pass."""
    return "--timeout", f"{brief(1.5)}s"


def verdict(server: DNSServer, *flags: str, **client: Any) -> Verdict:
    with talking(server, *flags) as smtpd:
        return come(smtpd, **client)


# -- what is done ----------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [BAD, BAD6])
@pytest.mark.parametrize("phase", ["connect", "helo", "mail-from", "rcpt-to"])
@pytest.mark.parametrize("action", ["junk", "reject", "disconnect"])
def test_the_action_is_taken_in_its_phase(
    server: DNSServer, action: str, phase: str, address: str
) -> None:
    flags = ("--client", f"{ZONE}*2", f"--{action}-at", "2", "--phase", phase)
    said = verdict(server, *flags, address=address)
    marked = {"mail-from": "data"}.get(phase, phase) if action == "junk" else phase
    assert said.phase == {"helo": "ehlo"}.get(marked, marked)
    closes = action == "disconnect" or (action, phase) == ("reject", "connect")
    assert said.verb == ("disconnect" if closes else action)
    code = 554 if phase == "connect" else 550
    told = f"{code} 5.7.1 {address} is listed by {ZONE}; {SAID}"
    assert said.reply == ("" if action == "junk" else told)
    assert verdict(server, *flags, address=GOOD).verb == "proceed"


@pytest.mark.parametrize(
    ("flags", "score"),
    [
        (("--client", f"{ZONE}*3"), 3),
        (("--client", f"{ZONE}=127.0.0.2*3"), 3),
        (("--client", f"{ZONE}=127.0.0.[2;3]*3", "--client", f"{ZONE}=127.0.0.4*4"), 7),
        (("--client", f"{{ {ZONE}*3, {OTHER}*2 }}"), 5),
        (("--client", f"{ZONE}*3, {OTHER}=127.0.0.2*2"), 3),
        (("--client", f"{ZONE}*3", "--client", f"{OTHER}*-1"), 2),
        (("--client", f"{ZONE}=127.0.0.[10..255]*3"), 0),
    ],
)
def test_the_score_is_the_sum_of_what_matches(
    server: DNSServer, flags: tuple[str, ...], score: int
) -> None:
    for threshold in range(1, 9):
        said = verdict(server, *flags, *REACH, "--reject-at", str(threshold), address=WORSE)
        assert said.refused is (score >= threshold), threshold


def test_the_severest_threshold_that_is_reached_holds(server: DNSServer) -> None:
    flags = ("--junk-at", "2", "--reject-at", "4", "--disconnect-at", "6", "--phase", "rcpt-to")
    verbs = {
        weight: verdict(server, "--client", f"{ZONE}*{weight}", *REACH, *flags).verb
        for weight in (1, 2, 3, 4, 5, 6, 7)
    }
    assert list(verbs.values()) == [
        "proceed",
        "junk",
        "junk",
        "reject",
        "reject",
        "disconnect",
        "disconnect",
    ]


def test_without_a_threshold_who_is_listed_is_disconnected(server: DNSServer) -> None:
    said = verdict(server, "--client", ZONE, "--phase", "rcpt-to")
    assert (said.verb, said.reply[:9]) == ("disconnect", "550 5.7.1")


def test_an_allow_list_outweighs(server: DNSServer) -> None:
    flags = ("--client", f"{ZONE}*3", "--client", f"{ALLOW}=127.0.[2..15].[2;3]*-3")
    assert verdict(server, *flags, "--reject-at", "3", address=BAD6).verb == "proceed"
    assert verdict(server, *flags, "--reject-at", "3", address=BAD).refused


CLIENT = {"rdns": "mail.bad.example", "helo": "mail.bad.example", "sender": "eve@bad.example"}


@pytest.mark.parametrize(
    ("kind", "at", "subject"),
    [
        ("rdns", "connect", "mail.bad.example"),
        ("helo", "ehlo", "mail.bad.example"),
        ("sender", "mail-from", "bad.example"),
    ],
)
def test_lists_of_names(server: DNSServer, kind: str, at: str, subject: str) -> None:
    clean = {"rdns": "mail.good.example", "helo": "mail.good.example", "sender": "x@good.example"}
    said = verdict(server, f"--{kind}", NAMES, **{**clean, kind: CLIENT[kind]})
    assert said.phase == at
    assert said.reply.endswith(f"5.7.1 {subject} is listed by {NAMES}")
    others = {**CLIENT, kind: clean[kind]}
    assert verdict(server, f"--{kind}", NAMES, **others).verb == "proceed"
    late = verdict(
        server, f"--{kind}", NAMES, "--phase", "rcpt-to", **{**clean, kind: CLIENT[kind]}
    )
    assert (late.phase, late.refused) == ("rcpt-to", True)


def test_lists_of_all_kinds_are_one_sum(server: DNSServer) -> None:
    flags = [f"--{kind}={NAMES}*2" for kind in ("rdns", "helo", "sender")]
    flags += ["--client", f"{ZONE}*3", "--reject-at"]
    with talking(server, *flags, "9") as smtpd:
        said = come(smtpd, **CLIENT)
        assert said.phase == "mail-from"
        assert said.reply == f"550 5.7.1 {BAD} is listed by {ZONE}; {SAID}"
        assert (
            f'reason="score 9: listed at {ZONE} ({BAD}, 127.0.0.4, +3), '
            f"{NAMES} (mail.bad.example, 127.0.1.4, +2), {NAMES} (mail.bad.example, 127.0.1.4, "
            f'+2), {NAMES} (bad.example, 127.0.1.2, +2)"'
        ) in smtpd.log[0]
    assert verdict(server, *flags, "10", *REACH, **CLIENT).verb == "proceed"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("rdns", None),
        ("helo", "[192.0.2.1]"),
        ("helo", "192.0.2.1"),
        ("helo", "localhost"),
        ("helo", "a b"),
        ("helo", "bad..example"),
        ("helo", "x" * 64 + ".example"),
        ("sender", ""),
        ("sender", "postmaster"),
        ("sender", "a@[192.0.2.1]"),
        ("sender", "a@bä\udcffd.example"),
        ("sender", "a@bad example"),
    ],
)
def test_what_is_no_name_is_not_asked_about(server: DNSServer, kind: str, name: str | None) -> None:
    with talking(server, f"--{kind}", NAMES, "--phase", "rcpt-to") as smtpd:
        server.queries.clear()
        client: dict[str, Any] = {"rdns": "mail.x.example", kind: name}
        assert come(smtpd, **client).verb == "proceed"
        assert server.queries == []


def test_an_internationalised_domain_is_asked_about_in_the_form_of_the_dns(
    server: DNSServer,
) -> None:
    with talking(server, "--sender", NAMES, "--phase", "rcpt-to") as smtpd:
        server.queries.clear()
        assert come(smtpd, sender="a@BÄD.example").verb == "proceed"
        assert server.queries == [(f"xn--bd-via.example.{NAMES}", "A")]


LONG = ".".join(["x" * 60] * 4)


@pytest.mark.parametrize(
    "name",
    [
        *(f"{LONG[-size:].lstrip('.')}.spam.example" for size in range(210, 242)),
        f"{LONG}.x.spam.example",  # a name that is too long by itself
        f"{'x' * 64}.spam.example",
        f"a.{'x' * 64}.b.spam.example",
        f"x\udcff{'y' * 60}.spam.example",
    ],
)
@pytest.mark.parametrize("kind", ["rdns", "helo", "sender"])
def test_no_name_is_too_long_for_a_list(kind: str, name: str) -> None:
    lists = domains(NAMES, {"spam.example": "127.0.1.2", "*.spam.example": "127.0.1.2"})
    with DNSServer(lists) as server, talking(server, f"--{kind}", NAMES) as smtpd:
        come(smtpd)
        server.queries.clear()
        said = come(smtpd, **{kind: f"a@{name}" if kind == "sender" else name})
        (asked, _), *_ = server.queries
        assert said.refused
        subject = asked.removesuffix(f".{NAMES}")
        assert name.endswith(subject)
        assert said.reply.split()[2] == subject
        if len(name) <= 253 and name.isascii() and "x" * 64 not in name:
            # One label more would have been too much.
            assert subject == name or len(asked) > 253 - 61


def test_a_name_that_is_cut_for_a_list_speaks_for_nobody() -> None:
    lists = {
        **addresses(ZONE, {BAD: "127.0.0.2"}),
        **domains(ALLOW, {"x.example": "127.0.0.2", "*.x.example": "127.0.0.2"}),
    }
    with DNSServer(lists) as server:
        flags = ("--client", f"{ZONE}*2", "--sender", f"{ALLOW}*-2", "--reject-at", "2")
        assert verdict(server, *flags, sender="a@b.x.example").verb == "proceed"
        assert verdict(server, *flags, sender=f"a@{LONG}.x.example").refused


def test_a_list_whose_zone_leaves_no_room_is_refused_at_the_start() -> None:
    zone = ".".join(["z" * 62] * 2)
    longest = f"{'a' * 63}.{'b' * 63}.{zone}"
    assert len(longest) == 253
    with DNSServer(domains(zone, {longest[: -len(zone) - 1]: "127.0.0.2"})) as server:
        assert verdict(server, "--helo", zone, helo=longest[: -len(zone) - 1]).refused
    with pytest.raises(ConfigError, match="longer than 125 characters"):
        Conversation(Dnsbl, "--helo", f"z{zone}")


def test_an_allow_list_believes_a_reverse_name_only_if_it_is_confirmed() -> None:
    zone = {
        **addresses(ZONE, {BAD: "127.0.0.2"}),
        **domains(ALLOW, {"mail.x.example": "127.0.0.2"}),
    }
    with DNSServer(zone) as lists:
        flags = ("--client", f"{ZONE}*2", "--rdns", f"{ALLOW}*-2")
        assert verdict(lists, *flags, rdns="mail.x.example").verb == "proceed"
        assert verdict(lists, *flags, rdns="mail.x.example", fcrdns="fail").refused


# -- exempt clients --------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["connect", "helo", "mail-from", "rcpt-to"])
def test_local_and_allowed_clients_are_not_asked_about(server: DNSServer, phase: str) -> None:
    flags = ("--client", ZONE, "--phase", phase, "--allow", "{ 192.0.2.0/24, 2001:db8::/32 }")
    with talking(server, *flags, "--header") as smtpd:
        server.queries.clear()
        assert come(smtpd, address=BAD).verb == "proceed"
        assert come(smtpd, address=BAD6).verb == "proceed"
        assert come(smtpd, address="127.0.0.2").verb == "proceed"
        assert come(smtpd, local=True, rdns=None).verb == "proceed"
        assert server.queries == []


@pytest.mark.parametrize("phase", ["mail-from", "rcpt-to"])
def test_authenticated_clients_pass_where_they_are_known(server: DNSServer, phase: str) -> None:
    flags = ("--client", ZONE, "--phase", phase)
    assert verdict(server, *flags, user="anna").verb == "proceed"
    assert verdict(server, *flags).refused


# -- replies to the client -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("550 5.7.1 Go away", "550 5.7.1 Go away"),
        ("451 Later, %{client}", f"451 Later, {BAD}"),
        (
            "554 5.7.1 %{subject}/%{client}/%{zone}/%{score}: %{text}",
            f"554 5.7.1 {BAD}/{BAD}/{ZONE}/3: {SAID}",
        ),
        ("550 5.7.1 100 % %{zone} %zone %{", f"550 5.7.1 100 % {ZONE} %zone %{{"),
    ],
)
def test_a_reply_of_ones_own(server: DNSServer, template: str, told: str) -> None:
    flags = ("--client", f"{ZONE}*3", "--reply", template, "--phase", "rcpt-to")
    assert verdict(server, *flags).reply == told


def test_the_text_is_asked_for_only_when_somebody_is_told(server: DNSServer) -> None:
    name = under(ZONE, BAD)
    for flags in (("--junk-at", "1"), ("--reply", "550 5.7.1 No")):
        server.queries.clear()
        verdict(server, "--client", ZONE, *flags)
        assert server.asked(name, "A") == 1
        assert not server.asked(name, "TXT")
    verdict(server, "--client", ZONE)
    assert server.asked(name, "TXT") == 1


@pytest.mark.parametrize(
    ("txt", "told"),
    [
        ("", ""),
        ("a\r\n250 b\0\x7f c", "; a 250 b?? c"),
        ("%{zone} %{text}", "; %{zone} %{text}"),
        ("\N{SNOWMAN} gone", "; ? gone"),
        ("x" * 250, "; " + "x" * 250),
    ],
)
def test_what_a_list_says_is_made_safe(txt: str, told: str) -> None:
    entry = {"A": "127.0.0.2", **({"TXT": txt} if txt else {})}
    with DNSServer(addresses(ZONE, {BAD: entry})) as lists:
        said = verdict(lists, "--client", ZONE)
        assert said.reply == f"554 5.7.1 {BAD} is listed by {ZONE}{told}"


@pytest.mark.parametrize("behaviour", ["servfail", "drop"])
def test_a_client_is_refused_without_the_text_if_there_is_none(behaviour: str) -> None:
    zone = addresses(ZONE, {BAD: {"A": "127.0.0.2", behaviour: ["TXT"]}})
    with DNSServer(zone) as lists:
        said = verdict(lists, "--client", ZONE, *short())
        assert said.reply == f"554 5.7.1 {BAD} is listed by {ZONE}"


def test_the_list_with_the_most_to_say_is_named(server: DNSServer) -> None:
    flags = ("--client", ZONE, "--client", f"{OTHER}*5", "--reject-at", "6")
    assert f"listed by {OTHER}" in verdict(server, *flags, address=WORSE).reply


KEY = "k3ykk7zqabcdefghij"


@pytest.mark.parametrize(
    ("zone", "public", "flags"),
    [
        (f"{KEY}.zen.dq.spamhaus.net", "zen.dq.spamhaus.net", ()),
        (f"{KEY}.lists.example", "lists.example", ()),
        ("pass.lists.example", "lists.example", ("--key", "PASS")),
        ("pass.word.lists.example", "lists.example", ("--key", "pass.word")),
        ("x-pass.lists.example", "lists.example", ("--key", "pass")),
    ],
)
def test_a_key_is_shown_to_nobody(zone: str, public: str, flags: tuple[str, ...]) -> None:
    key = zone.partition(".")[0]
    entries = addresses(
        zone,
        {
            BAD: {"A": "127.0.0.2", "TXT": f"https://check.example/?k={key.upper()}"},
            WORSE: {"A": "127.255.255.254"},
            GOOD: {"servfail": True},
        },
    )
    flags = ("--client", f"{zone}*3", "--junk-at", "2", "--header", "--phase", "rcpt-to", *flags)
    with DNSServer(entries) as lists:
        refusing = (*flags, "--reject-at", "3", "--on-error", "tempfail", "--timeout", "3s", "-v")
        with talking(lists, *refusing) as smtpd:
            said = [come(smtpd, address=address).reply for address in (BAD, WORSE, GOOD)]
            assert said[0] == f"550 5.7.1 {BAD} is listed by {public}; https://check.example/?k=***"
            assert said[1].startswith("451 4.4.3")
            log = "\n".join(smtpd.log)
            lists.zone[under(zone, UNLISTED)] = {"A": "127.0.0.2"}
        with talking(lists, *flags) as smtpd:
            there = smtpd.connect(address=BAD)
            there.ehlo()
            there.mail_from()
            there.rcpt_to("anna@example.org")
            message = there.message().bytes.decode()
            log += "\n".join(smtpd.log)
    assert f"zone={public} about=IPv4 switched=off" in log
    assert f"{public}: answers 127.255.255.254" in log
    assert key not in (log + message + "".join(said)).lower()


# -- the header ------------------------------------------------------------------------------------


def deliver(smtpd: Conversation, message: bytes, **client: Any) -> Any:
    there = smtpd.connect(**client)
    there.ehlo()
    there.mail_from("eve@bad.example")
    there.rcpt_to("anna@example.org")
    return there.message(message)


@pytest.mark.parametrize("phase", ["connect", "rcpt-to"])
def test_the_header_says_who_lists(server: DNSServer, phase: str) -> None:
    lists = ("--client", f"{ZONE}=127.0.0.4*2", "--client", OTHER, "--client", f"{ALLOW}*-1")
    flags = (*lists, "--rdns", NAMES, "--junk-at", "9", "--header", "--phase", phase)
    forged = b"X-Spam-DNSBL: Listed at nobody\r\nSubject: x\r\nx-spam-dnsbl: no\r\n\r\nhi\r\n"
    with talking(server, *flags) as smtpd:
        said = deliver(smtpd, forged, address=BAD6, rdns="mail.bad.example")
        assert said.headers.get_all("X-Spam-DNSBL") == [
            f"Listed at {ZONE} ({BAD6}, 127.0.0.4, +2)",
            f"Listed at {ALLOW} ({BAD6}, 127.0.5.2, -1)",
            f"Listed at {NAMES} (mail.bad.example, 127.0.1.4, +1)",
        ]
        assert said.headers.get("X-Spam") is None
        said = deliver(smtpd, forged, address="198.51.100.7")
        assert said.headers.get_all("X-Spam-DNSBL") == []


class Hasty(Dnsbl):
    """Its look-ups get a small part of the deadline, so that the rest suffices on any machine."""

    share = 0.01


def test_a_forged_header_is_removed_though_no_time_is_left() -> None:
    flags = ("--client", "gone.example", "--untested", "gone.example", "--junk-at", "1")
    forged = b"X-Spam-DNSBL: Listed at nobody\r\nSubject: x\r\n\r\nhi\r\n"
    with DNSServer({"*": {"drop": True}}) as dead:
        late = ("--header", "--phase", "rcpt-to", "--timeout", "5", "--deadline", "30")
        with talking(dead, *flags, *late, kind=Hasty) as smtpd:
            said = deliver(smtpd, forged, address="198.51.100.7")
        assert said.headers.get_all("X-Spam-DNSBL") == []


def test_the_header_is_about_its_own_message(server: DNSServer) -> None:
    flags = ("--sender", f"{NAMES}*2", "--header", "--untested", NAMES)
    with talking(server, *flags, "--junk-at", "2") as smtpd:
        there = smtpd.connect()
        there.ehlo()
        shown = []
        for sender in ("bob@good.example", "eve@bad.example", "bob@good.example", ""):
            there.mail_from(sender)
            there.rcpt_to("anna@example.org")
            shown.append(there.message().headers.get_all("X-Spam-DNSBL"))
        assert shown == [[], [f"Listed at {NAMES} (bad.example, 127.0.1.2, +2)"], [], []]


def test_the_header_is_for_those_who_want_it(server: DNSServer) -> None:
    with talking(server, "--client", ZONE, "--junk-at", "1") as smtpd:
        assert "data-line" not in smtpd.phases
    with talking(server, "--client", ZONE, "-m") as smtpd:
        said = deliver(smtpd, b"Subject: x\r\n\r\nhi\r\n", address=BAD)
        assert said.headers.get("X-Spam") == "Yes"
        assert said.headers.get("X-Spam-DNSBL") == f"Listed at {ZONE} ({BAD}, 127.0.0.4, +1)"


# -- when it asks, and how often -------------------------------------------------------------------


def test_it_asks_as_soon_as_it_knows_whom_about() -> None:
    """What is asked at RCPT has been answered since the client came."""
    flags = ("--client", ZONE, "--helo", NAMES, "--sender", NAMES, "--phase", "rcpt-to")
    with DNSServer(ENTRIES) as lists, talking(lists, *flags) as smtpd:
        [policy] = smtpd.filters
        assert isinstance(policy, Dnsbl)
        asked: list[str] = []
        start = policy.dns.start

        def start_and_note(name: str, rdtype: Any) -> None:
            asked.append(name)
            start(name, rdtype)

        policy.dns.start = start_and_note  # type: ignore[method-assign]
        there = smtpd.connect(address=BAD)
        assert asked == [under(ZONE, BAD)]
        there.ehlo("mail.good.example")
        assert asked == [under(ZONE, BAD), f"mail.good.example.{NAMES}"]
        there.mail_from("bob@example.net")
        assert asked[2:] == [f"example.net.{NAMES}"]
        assert there.rcpt_to("anna@example.org").refused
        assert len(asked) == 3
        assert all(lists.asked(name, "A") == 1 for name in asked)
        exempt = smtpd.connect(address="127.0.0.1")
        exempt.ehlo()
        exempt.mail_from("bob@example.net")
        assert len(asked) == 3


def test_what_is_known_is_answered_at_once(server: DNSServer) -> None:
    """Without a coroutine, so without a task."""
    with talking(server, "--client", f"{ZONE}*3", "--reject-at", "3") as smtpd:
        [policy] = smtpd.filters
        assert isinstance(policy, Dnsbl)
        come(smtpd)
        come(smtpd, address=GOOD)
        server.queries.clear()
        waited = policy._wait
        policy._wait = None  # type: ignore[method-assign,assignment]
        assert come(smtpd).refused
        assert come(smtpd, address=GOOD).verb == "proceed"
        policy._wait = waited  # type: ignore[method-assign]
        assert server.queries == []


def test_it_waits_for_no_answer_that_cannot_change_the_outcome() -> None:
    slow = {under(OTHER, each): {"drop": True} for each in (BAD, WORSE, GOOD, BAD6)}
    with DNSServer({**ENTRIES, **slow}) as lists:
        flags = ("--client", f"{ZONE}*3", "--client", f"{OTHER}*2", "--client", f"{ALLOW}*-5")
        with talking(lists, *flags, "--reject-at", "3", "--timeout", "60s") as smtpd:
            [policy] = smtpd.filters
            assert isinstance(policy, Dnsbl)
            assert come(smtpd, address=BAD).refused  # it can only add
            assert come(smtpd, address=GOOD).verb == "proceed"  # it can't make up for the others
            assert come(smtpd, address=BAD6).verb == "proceed"  # nor here: 3 - 5 + 2
            still_asked = {name for name, _ in policy.dns._under_way}
            assert still_asked >= {under(OTHER, each).lower() for each in (BAD, GOOD, BAD6)}


def test_it_waits_for_an_allow_list_that_could_change_it() -> None:
    late = {under(ALLOW, BAD): {"A": "127.0.0.2", "delay": 0.2}}
    with DNSServer({**ENTRIES, **late}) as lists:
        flags = ("--client", f"{ZONE}*3", "--client", f"{ALLOW}*-1", "--reject-at", "3")
        assert verdict(lists, *flags, address=BAD).verb == "proceed"


def test_the_recipients_of_a_message_get_one_answer(server: DNSServer) -> None:
    flags = ("--client", ZONE, "--sender", NAMES, "--reject-at", "2", "--phase", "rcpt-to")
    with talking(server, *flags) as smtpd:
        there = smtpd.connect(address=BAD)
        there.ehlo()
        there.mail_from("eve@bad.example")
        assert [there.rcpt_to(f"{name}@example.org").verb for name in "abc"] == ["reject"] * 3
        there.rset()
        there.mail_from("eve@good.example")
        assert there.rcpt_to("anna@example.org").verb == "proceed"
    assert server.asked(under(ZONE, BAD), "A") >= 1


def test_a_list_that_can_change_nothing_is_not_even_asked(server: DNSServer) -> None:
    server.queries.clear()
    assert verdict(server, "--client", f"{ALLOW}*-2").verb == "proceed"
    assert not server.asked(under(ALLOW, BAD), "A")


def test_sessions_that_come_at_once_are_asked_about_in_turns(
    server: DNSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[int] = []
    renew = Pace.renew

    def watched(pace: Pace) -> None:
        spent.append(pace.spent)
        renew(pace)

    monkeypatch.setattr(Pace, "renew", watched)
    lists = "{ " + ", ".join(f"l{number}.example" for number in range(20)) + " }"
    # 2,000 answers take their time on a busy machine.
    count = part(100)
    flags = ["--timeout", "60s", "--deadline", "120s", "--phase", "connect", "--client", lists]
    flags += [flag for number in range(20) for flag in ("--untested", f"l{number}.example")]
    with talking(server, *flags) as smtpd:
        [policy] = smtpd.filters
        assert isinstance(policy, Dnsbl)

        async def come() -> list[object]:
            sessions = [Session(b"%016x" % number) for number in range(count)]
            for number, session in enumerate(sessions):
                source = b"192.0.2.%d:1" % number
                session.expect(("username",))
                session.apply("link-connect", (b"<unknown>", b"fail", source, b"198.51.100.1:25"))
            waiting: list[Any] = [policy.connect(session) for session in sessions]
            return list(await asyncio.gather(*waiting))

        said = smtpd._served._loop.run_until_complete(come())
        assert {type(each) for each in said} == {Proceed}
    assert max(spent) <= 2 * TURN
    assert sum(spent) >= count * 20 * 60


def test_who_is_listed_but_not_for_enough_is_logged_once() -> None:
    # The other one could make it enough, and has nothing to say, later.
    late = {under(OTHER, BAD): {"TXT": "nothing", "delay": 0.05}}
    flags = ("--client", ZONE, "--client", OTHER, "--reject-at", "2", "--phase", "rcpt-to")
    with DNSServer({**ENTRIES, **late}) as lists, talking(lists, *flags) as smtpd:
        there = smtpd.connect(address=BAD)
        there.ehlo()
        there.mail_from("bob@example.net")
        there.rcpt_to("anna@example.org")
        there.rcpt_to("bert@example.org")
        [line] = smtpd.log
        assert f'result=proceed reason="score 1: listed at {ZONE} ({BAD}, 127.0.0.4, +1)"' in line


def test_a_new_greeting_is_asked_about(server: DNSServer) -> None:
    with talking(server, "--helo", NAMES, "--phase", "mail-from") as smtpd:
        there = smtpd.connect()
        there.ehlo("mail.good.example")
        there.tls()
        there.ehlo("mail.bad.example")
        assert there.mail_from("bob@example.net").refused


# -- lists that can't be relied on -----------------------------------------------------------------


REJECT = ("--reject-at", "1", "--phase", "rcpt-to")


@pytest.mark.parametrize(
    "answer",
    [
        "127.255.255.252",
        "127.255.255.254",
        "127.255.255.255",
        "127.255.255.1",
        "127.0.0.1",
        "203.0.113.66",
        ["127.0.0.2", "127.255.255.254"],
    ],
)
def test_what_is_no_statement_about_the_client_never_counts(answer: str | list[str]) -> None:
    with DNSServer(addresses(ZONE, {BAD: {"A": answer}})) as lists:
        assert verdict(lists, "--client", ZONE, *REJECT).verb == "proceed"
        said = verdict(lists, "--client", ZONE, *REJECT, "--on-error", "tempfail")
        assert said.reply.startswith("451 4.4.3 ")
        assert verdict(lists, "--client", ZONE, *REJECT, "--on-error", "junk").verb == "junk"


def test_the_log_says_what_to_do() -> None:
    zone = "zen.spamhaus.org"
    everything = {f"*.{zone}": {"A": "127.255.255.254"}}
    with DNSServer(everything) as lists, talking(lists, "--client", zone) as smtpd:
        assert come(smtpd, address=BAD).verb == "proceed"
        assert not lists.asked(under(zone, BAD), "A")
        log = "\n".join(smtpd.log)
        assert len(smtpd.log) == 2
    for about in ("IPv4", "IPv6"):
        line = f'dnsbl list zone={zone} about={about} switched=off cause="answers 127.255.255.254: '
        assert line in log


def test_the_log_has_the_name_that_the_filter_has_in_a_chain(tmp_path: Path) -> None:
    file = tmp_path / "chain.toml"
    with DNSServer({}) as empty:
        file.write_text(
            '[chain.x]\nfilters = ["strict", "shown"]\n'
            f'[filter.strict]\nuse = "dnsbl"\nclient = "{ZONE}"\n'
            f'nameserver = ["{empty.address}:{empty.port}"]\n'
            '[filter.shown]\nuse = "trace"\n'
        )
        with FilterProcess(["-m", "smtpd_filters.cli.chain", "-f", str(file)]) as smtpd:
            smtpd.hand_shake()
            smtpd.connect(sid(1))
            smtpd.ask("connect", sid(1), b"x|192.0.2.1")
            smtpd.until_logged(f"strict list zone={ZONE} about=IPv4 switched=off")
            smtpd.until_logged(f"{sid(1).decode()} shown link-connect")
            smtpd.finish()


def test_a_list_that_lists_everybody_refuses_nobody() -> None:
    world = {f"*.{OTHER}": {"A": "127.0.0.2"}}
    with DNSServer({**ENTRIES, **world}) as lists:
        flags = ("--client", f"{OTHER}*9", "--client", ZONE, *REJECT)
        with talking(lists, *flags) as smtpd:
            assert come(smtpd, address=GOOD).verb == "proceed"
            assert come(smtpd, address="2001:db8::99").verb == "proceed"
            assert come(smtpd, address=BAD).refused
            assert "listed at bl.example (192.0.2.1, 127.0.0.4, +1)" in smtpd.log[-1]
            # The list works again.
            del lists.zone[f"*.{OTHER}"]
            lists.zone.update(addresses(OTHER, {GOOD: "127.0.0.2"}))
            forget(smtpd)
            smtpd.refresh()
            assert come(smtpd, address=GOOD).refused
        log = smtpd.log
    assert (
        len([line for line in log if "switched=off" in line and "it lists everything" in line]) == 2
    )
    assert len([line for line in log if "switched=on" in line]) == 2


def forget(smtpd: Conversation) -> None:
    """Let what is cached expire."""
    [policy] = smtpd.filters
    assert isinstance(policy, Dnsbl)
    policy.dns._cache.clear()


def test_a_list_that_begins_to_list_everybody_is_found_out_before_it_refuses() -> None:
    with DNSServer(dict(ENTRIES)) as lists, talking(lists, "--client", ZONE, *REJECT) as smtpd:
        [policy] = smtpd.filters
        assert isinstance(policy, Dnsbl)
        lists.zone = {f"*.{ZONE}": {"A": "127.0.0.2"}}
        forget(smtpd)
        policy._watch._last -= 3600
        assert come(smtpd, address=GOOD).verb == "proceed"
        assert come(smtpd, address=BAD).verb == "proceed"


def test_a_list_that_begins_to_refuse_us_is_switched_off() -> None:
    with DNSServer(dict(ENTRIES)) as lists, talking(lists, "--client", ZONE, *REJECT) as smtpd:
        [policy] = smtpd.filters
        assert isinstance(policy, Dnsbl)
        lists.zone = {f"*.{ZONE}": {"A": "127.255.255.254"}}
        forget(smtpd)
        policy._watch._tried -= 3600
        assert come(smtpd, address=BAD).verb == "proceed"
        assert policy._watch._running is not None
        assert not policy._watch._running.done()  # without anybody waiting for it
        smtpd.refresh()
        lists.queries.clear()
        assert come(smtpd, address=WORSE).verb == "proceed"
        assert lists.queries == []
        log = "\n".join(smtpd.log)
    assert f'zone={ZONE} about=IPv4 switched=off cause="answers 127.255.255.254: ' in log


def test_a_list_without_entries_for_testing_is_asked_if_it_is_told_so() -> None:
    with DNSServer({under(ZONE, BAD): {"A": "127.0.0.2"}}) as lists:
        assert verdict(lists, "--client", ZONE).verb == "proceed"
        assert verdict(lists, "--client", ZONE, "--untested", ZONE.upper()).refused


# -- files of lists that are read again ------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lists"


def test_a_list_is_added_and_taken_away(server: DNSServer, file: Path) -> None:
    file.write_text(f"{ZONE}*3\n")
    with talking(server, "--client", f"file:{file}", "--reject-at", "3") as smtpd:
        assert come(smtpd, WORSE).reply.startswith(f"554 5.7.1 {WORSE} is listed by {ZONE}")
        file.write_text(f"{ZONE}*2\n{OTHER}*4\n")
        smtpd.reload()
        # Nobody waits for the new one's test, nor is refused on its word before it.
        come(smtpd, GOOD)
        smtpd.refresh()
        said = come(smtpd, WORSE)
        assert said.reply.startswith(f"554 5.7.1 {WORSE} is listed by {OTHER}")
        assert come(smtpd, BAD).verb == "proceed"
        file.write_text("# none any more\n")
        smtpd.reload()
        assert come(smtpd, WORSE).verb == "proceed"
        log = "\n".join(line for line in smtpd.log if line.startswith("dnsbl list "))
    assert f"dnsbl list zone={OTHER} about=IPv4 switched=on" in log
    assert f"zone={ZONE}" not in log
    assert f"dnsbl reload table=client result=ok file={file} entries=2" in smtpd.log
    assert f"dnsbl reload table=client result=ok file={file} entries=0" in smtpd.log


def test_a_signal_has_lists_read_again(server: DNSServer, file: Path) -> None:
    file.write_text(f"{ZONE}\n")
    nameserver = f"{server.address}:{server.port}"
    module = ("-m", "smtpd_filters.filters.dnsbl")
    flags = ("--client", f"file:{file}", "--nameserver", nameserver)
    with FilterProcess([*module, *flags]) as smtpd:
        smtpd.hand_shake()
        for number, zone in enumerate((ZONE, OTHER), 1):
            link = (b"<unknown>", b"fail", f"{WORSE}:1".encode(), b"198.51.100.25:25")
            smtpd.report("link-connect", sid(number), *link)
            said = smtpd.ask("connect", sid(number), f"<unknown>|{WORSE}".encode())
            assert f"{WORSE} is listed by {zone}".encode() in (said.argument or b"")
            file.write_text(f"{OTHER}\n")
            smtpd.kill(signal.SIGHUP)
            # It is asked once it has been tested.
            smtpd.until_logged(f"list zone={OTHER} about=IPv6 switched=on")
        smtpd.finish()


def test_what_is_wrong_in_a_file_leaves_the_lists_as_they_are(
    server: DNSServer, file: Path
) -> None:
    file.write_text(f"{ZONE}\n")
    flags = ("--client", f"file:{file}", "--untested", ZONE)
    with talking(server, *flags) as smtpd:
        file.write_text(f"{KEY}.example*x\n")
        smtpd.reload()
        assert come(smtpd).refused
        # That one isn't asked any more is no reason to keep it.
        file.write_text(f"{OTHER}\n")
        smtpd.reload()
        assert come(smtpd).verb == "proceed"
        kept, ok = [line for line in smtpd.log if line.startswith("dnsbl reload table=client ")]
        assert f'error="{file}:1: expected a weight' in kept
        assert KEY not in kept
        assert kept.endswith(f" result=kept file={file} entries=1")
        assert ok.endswith(f" result=ok file={file} entries=1")


def test_a_list_that_is_new_is_off_until_it_has_been_tested(
    file: Path,
) -> None:
    """One that lists the world must not have its way for as long as its test takes."""
    world = under(OTHER, UNLISTED)
    zone: dict[str, dict[str, Any]] = {
        **ENTRIES,
        under(OTHER, GOOD): {"A": "127.0.0.2"},
        world: {"A": "127.0.0.2", "delay": 0.2},
    }
    file.write_text(f"{ZONE}\n")
    with (
        DNSServer(zone) as lists,
        talking(lists, "--client", f"file:{file}", "--phase", "rcpt-to") as smtpd,
    ):
        assert come(smtpd, GOOD).verb == "proceed"
        file.write_text(f"{ZONE}\n{OTHER}\n")
        smtpd.reload()
        assert come(smtpd, GOOD).verb == "proceed"
        assert not lists.asked(under(OTHER, GOOD), "A")
        smtpd.refresh()  # waits for the test
        assert come(smtpd, GOOD).verb == "proceed"
        assert lists.asked(world, "A") == 1
        # And it stays off when the file is read again.
        file.write_text(f"{ZONE}\n{OTHER}*2\n")
        smtpd.reload()
        assert come(smtpd, GOOD).verb == "proceed"
        assert not lists.asked(under(OTHER, GOOD), "A")
        log = "\n".join(smtpd.log)
    assert f'zone={OTHER} about=IPv4 switched=off cause="lists 127.0.0.1' in log
    assert f"dnsbl reload table=client result=ok file={file} entries=2" in smtpd.log[-1]


def test_lists_are_tested_again_before_a_client_is_refused(server: DNSServer) -> None:
    with talking(server, "--client", ZONE, *REJECT) as smtpd:
        [policy] = smtpd.filters
        assert isinstance(policy, Dnsbl)
        first = come(smtpd, address=BAD)
        assert first.reply.startswith("550 5.7.1 ")
        watch = policy._watch
        watch._tried = watch._last = stale = watch._last - FRESH
        assert come(smtpd, address=BAD).reply == first.reply
        assert watch._last > stale


@pytest.mark.parametrize(
    ("behaviour", "on_error"),
    some(
        [
            *product(("drop", "servfail"), ("proceed", "junk")),
            *product(("drop", "servfail", "refused", "malformed", "wrong-name"), ["tempfail"]),
        ]
    ),
)
def test_one_that_does_not_answer_is_left_to_on_error_if_it_could_matter(
    behaviour: str, on_error: str
) -> None:
    broken = {under(OTHER, each): {behaviour: True} for each in (BAD, GOOD)}
    with DNSServer({**ENTRIES, **broken}) as lists:
        flags = ("--client", ZONE, *REJECT, "--on-error", on_error, "--client")
        with talking(lists, *flags, OTHER) as smtpd:
            hasten(smtpd)
            assert come(smtpd, address=BAD).reply.startswith("550 5.7.1 ")
            said = come(smtpd, address=GOOD)
            assert said.verb == {"tempfail": "reject"}.get(on_error, on_error)
            assert said.reply == (
                "451 4.4.3 Temporary failure, please try again later"
                if on_error == "tempfail"
                else ""
            )
            [cause] = [line for line in smtpd.log if "cause=" in line]
            assert f'cause="{OTHER}: ' in cause
        # An allow list can't refuse anybody, nor matter where nothing is to be outweighed.
        with talking(lists, *flags, f"{OTHER}*-1") as smtpd:
            hasten(smtpd)
            assert come(smtpd, address=GOOD).verb == "proceed"
            said = come(smtpd, address=BAD)
            assert said.verb == {"tempfail": "reject"}.get(on_error, on_error)
            assert "5.7.1" not in said.reply


def test_what_is_certain_is_done_all_the_same() -> None:
    broken = {under(OTHER, BAD): {"servfail": True}}
    with DNSServer({**ENTRIES, **broken}) as lists:
        flags = ("--client", ZONE, "--client", f"{OTHER}*3", "--phase", "rcpt-to", "--junk-at", "1")
        for on_error in ("proceed", "tempfail"):
            said = verdict(lists, *flags, "--reject-at", "4", "--on-error", on_error)
            assert said.verb == "junk"


def test_each_recipient_does_not_wait_again() -> None:
    with DNSServer({**ENTRIES, under(ZONE, BAD): {"drop": True}}) as lists:
        flags = ("--client", ZONE, "--phase", "rcpt-to", *short())
        with talking(lists, *flags, "--on-error", "tempfail") as smtpd:
            there = smtpd.connect(address=BAD)
            there.ehlo()
            there.mail_from("bob@example.net")
            assert there.rcpt_to("anna@example.org").reply.startswith("451 4.4.3")
            lists.queries.clear()
            for number in range(30):
                forget(smtpd)
                assert there.rcpt_to(f"anna{number}@example.org").reply.startswith("451 4.4.3")
            assert lists.queries == []


def test_each_message_does_not_wait_again() -> None:
    flags = ("--client", ZONE, "--phase", "mail-from", *short())
    silent = {under(ZONE, BAD): {"drop": True}}
    with DNSServer({**ENTRIES, **silent}) as lists, talking(lists, *flags) as smtpd:
        there = smtpd.connect(address=BAD)
        there.ehlo()
        assert there.mail_from("bob@example.net").verb == "proceed"
        lists.queries.clear()
        for number in range(30):
            there.rset()
            forget(smtpd)
            assert there.mail_from(f"bob{number}@example.net").verb == "proceed"
        assert lists.queries == []


def test_nobody_is_refused_on_the_word_of_lists_that_cannot_be_tested() -> None:
    tests: dict[str, dict[str, Any]] = {name: {"drop": True} for name in addresses(ZONE)}
    broken = {**tests, under(ZONE, UNLISTED): {"drop": True}, under(ZONE, BAD): {"A": "127.0.0.2"}}
    with DNSServer(broken) as lists:
        assert verdict(lists, "--client", ZONE, *REJECT, *short()).verb == "proceed"
        said = verdict(lists, "--client", ZONE, *REJECT, *short(), "--on-error", "tempfail")
        assert said.reply.startswith("451 4.4.3 ")
        assert verdict(lists, "--client", ZONE, *REJECT, *short(), address=GOOD).verb == "proceed"


@pytest.mark.parametrize("zone", [{}, {"*.example": {"drop": True}}], ids=["gone", "silent"])
def test_a_dead_name_server_is_left_to_on_error(zone: Mapping[str, Mapping[str, Any]]) -> None:
    with DNSServer(zone) as dead:
        if not zone:
            dead.endpoints = [("127.0.0.1", 9)]  # a port that the system gives nobody
        said = verdict(dead, "--client", ZONE, *REJECT, *short(), "--on-error", "tempfail")
    assert said.reply.startswith("451 4.4.3 ")


def test_a_dry_run_refuses_nobody(server: DNSServer) -> None:
    with talking(server, "--client", ZONE, "--dry-run") as smtpd:
        assert come(smtpd).verb == "proceed"
        assert "result=proceed would=disconnect" in smtpd.log[0]


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        ("{ %s", "--client: inline table: no closing brace in ..."),
        ("{ '%s }", "--client: inline table: no closing quote in ..."),
        ("{ %s{ }", "--client: inline table: an entry with unbalanced braces needs quotes: ..."),
        ("ldap:%s", "--client: the lists can't be in a database or on a server"),
        ("mysql:%s", '--client: ...: tables of type "mysql" are not supported'),
        ("%s", "--client: the name of the list is not a domain name"),
        ("%s=1", "--client: only answers in 127.0.0.0/8 can count"),
    ],
)
def test_a_key_is_not_shown_with_what_is_wrong(lists: str, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Conversation(
            Dnsbl, "--client", lists % (KEY if lists == "%s" else f"{KEY}.zen.dq.spamhaus.net")
        )
    assert str(raised.value) == f"filter-dnsbl: {reason}"


def test_a_key_of_no_list_is_a_slip() -> None:
    with pytest.raises(ConfigError) as raised:
        Conversation(Dnsbl, "--client", f"{KEY}.lists.example", "--key", f"{KEY}z")
    assert str(raised.value) == "--key: one of the keys is in no list's name"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("", "no list given"),
        ("--client bl.example*x", "--client: expected a weight"),
        ("--client zen", "--client: the name of the list is not a domain name: zen"),
        ("--client 'a.example, zen'", "the name of the list is not a domain name: zen"),
        ("--client file:FOLDER/missing", "--client: FOLDER/missing: No such file"),
        ("--client bl.example --junk-at 0", "--junk-at: must be at least 1"),
        ("--client bl.example --junk-at 3 --reject-at 2", "--junk-at 3: must be below"),
        ("--client bl.example --reject-at 3 --disconnect-at 3", "--reject-at 3: must be below"),
        ("--client bl.example -m --reject-at 3", "-m: cannot be combined with"),
        (
            "--client a.example*2 --rdns 'b.example, c.example*-9' --reject-at 5",
            "--reject-at 5: cannot be reached, the weights of the lists add up to 3 at most",
        ),
        ("--client a.example --junk-at 2 --reject-at 3", "--junk-at 2: cannot be reached"),
        ("--helo bl.example --phase connect", "--helo requires --phase helo or later"),
        ("--sender bl.example --phase helo", "--sender requires --phase mail-from or later"),
        ("--client bl.example --reply '250 fine'", "--reply: expected a code"),
        ("--client bl.example --reply '550 %{what}'", "--reply: unknown placeholder %{what}"),
        ("--client bl.example --reply '550 4.7.1 no'", "--reply: the code and the enhanced code"),
        ("--client bl.example --nameserver ns.example", "--nameserver: name server: "),
        ("--client bl.example --phase data", "--phase: invalid choice"),
        ("--client bl.example --key ''", "--key: expected a part of a list's name"),
        ("--client bl.example --untested b1.example", "--untested: b1.example is not the zone of"),
    ],
)
def test_what_is_wrong_is_said_at_the_start(flags: str, reason: str, tmp_path: Path) -> None:
    flags, reason = (text.replace("FOLDER", str(tmp_path)) for text in (flags, reason))
    with pytest.raises(ConfigError) as failure, Conversation(Dnsbl, *shlex.split(flags)):
        pass
    assert reason in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--client a.example --junk-at 9 --header", []),
        ("--client a.example*3 --junk-at 2 --reject-at 3", []),
        (
            "--client a.example --junk-at 1 --reject-at 9",
            ["--reject-at 9: cannot be reached, the weights of the lists add up to 1 at most"],
        ),
        (
            "-w a.example",
            ["--disconnect-at 1: cannot be reached, the weights of the lists add up to 0 at most"],
        ),
        (
            "--client FILE --reject-at 2",
            ["--reject-at 2: cannot be reached, the weights of the lists add up to 1 at most"],
        ),
        (
            "--client a.example --junk-at 1 --reply '550 5.7.1 no'",
            ["--reply has no effect: no score refuses"],
        ),
        ("--client a.example --reply '550 5.7.1 no'", []),
    ],
)
def test_what_can_never_be_done_is_said_at_the_start(
    flags: str, said: list[str], tmp_path: Path
) -> None:
    lists = tmp_path / "lists"
    lists.write_text("a.example\n")
    argv = shlex.split(flags.replace("FILE", f"file:{lists}"))
    with (
        DNSServer({}) as empty,
        Conversation(Dnsbl, *old_style(argv, Dnsbl), "--nameserver", empty.address) as smtpd,
    ):
        assert [line for line in smtpd.log if "--re" in line or "--dis" in line] == [
            f"dnsbl {line}" for line in said
        ]


def test_the_phase_is_the_first_at_which_all_is_known() -> None:
    for flags, phase in [
        (("--client", ZONE), {"connect"}),
        (("--client", ZONE, "--rdns", NAMES), {"connect"}),
        (("--client", ZONE, "--helo", NAMES), {"helo", "ehlo"}),
        (("--helo", NAMES, "--sender", NAMES), {"mail-from"}),
    ]:
        with DNSServer({}) as empty, talking(empty, *flags) as smtpd:
            assert smtpd.phases == phase


def test_only_what_is_needed_is_reported() -> None:
    always = {"link-connect", "link-disconnect", "link-auth"}
    with DNSServer({}) as empty:
        with talking(empty, "--client", ZONE) as smtpd:
            assert smtpd.reports == always
        with talking(empty, "--helo", NAMES, "--phase", "rcpt-to") as smtpd:
            assert smtpd.reports == {*always, "link-identify"}
        with talking(empty, "--sender", NAMES, "--phase", "rcpt-to") as smtpd:
            assert "tx-mail" in smtpd.reports


def test_what_it_may_register_is_known_before_its_settings() -> None:
    listed = describe(Dnsbl)
    assert {"connect", "helo", "ehlo", "mail-from", "rcpt-to", "data-line"} <= set(listed.phases)
    assert {"link-auth", "link-identify", "tx-mail"} <= set(listed.reports)
    assert "no list given" in listed.remark


def test_settings_in_toml() -> None:
    table = {
        "client": ["zen.example=127.0.0.[2..11]*3", f"{ALLOW}*-2"],
        "sender": NAMES,
        "reject-at": 3,
        "header": True,
    }
    settings = from_mapping(Dnsbl.Options, table, "here")
    assert settings.client is not None
    assert [str(site) for site in settings.client] == table["client"]
    assert settings.reject_at == 3
    with pytest.raises(ConfigError, match="here: client: expected a weight"):
        from_mapping(Dnsbl.Options, {"client": ["a.example*b"]}, "here")


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("bl.example", "--client=bl.example"),
        ("-m a.example b.example", "-m --client=a.example --client=b.example"),
        ("-v -m -w wl.example", "-v -m --client=wl.example*-1000000"),
        ("-m -d names.example a.example", "-m --rdns=names.example --client=a.example"),
        ("-m -w -d wl.example", "-m --rdns=wl.example*-1000000"),
        ("--junk-at 2 bl.example*2", "--junk-at 2 --client=bl.example*2"),
        ("--client a.example --header b.example", "--client a.example --header --client=b.example"),
        ("--reply", "--reply"),
        ("--unknown x", "--unknown --client=x"),
    ],
)
def test_the_command_line_of_the_filter_before(before: str, now: str) -> None:
    assert old_style(before.split(), Dnsbl) == now.split()


def test_as_the_filter_before_was_started(server: DNSServer) -> None:
    flags = old_style(["-m", ZONE, "-w", ALLOW], Dnsbl)
    assert verdict(server, *flags, address=BAD).verb == "junk"
    assert verdict(server, *flags, address=BAD6).verb == "proceed"
    assert verdict(server, *old_style([ZONE], Dnsbl), address=BAD).verb == "disconnect"


# -- the manual page -------------------------------------------------------------------------------

PAGE = Path(__file__).parents[3] / "docs" / "man" / "filter-dnsbl.8"


def literal(text: str) -> str:
    """What a literal block of mdoc shows."""
    return text.replace("\\e\n", "\n").replace("\\e", "\\")


def examples() -> list[str]:
    """The arguments in the examples of the manual page, as sh(1) gets them."""
    return re.findall(r'proc-exec "filter-dnsbl ([^"]*)"', literal(PAGE.read_text()))


@pytest.fixture
def lists_file(tmp_path: Path) -> Path:
    shown = re.search(
        r"^\.Pa /etc/mail/lists :\n\.Bd .*\n((?:.*\n)*?)\.Ed$", PAGE.read_text(), re.MULTILINE
    )
    assert shown
    (tmp_path / "lists").write_text(shown[1])
    return tmp_path / "lists"


def test_each_example_of_the_manual_page_starts(server: DNSServer, lists_file: Path) -> None:
    assert len(examples()) == 4
    for example in examples():
        flags = shlex.split(example.replace("/etc/mail/lists", str(lists_file)))
        with talking(server, *flags) as smtpd:
            assert smtpd.phases


@pytest.mark.parametrize(
    ("client", "verb"),
    [
        ({"address": "192.0.2.100"}, "proceed"),
        ({"address": "192.0.2.101"}, "reject"),  # Spamhaus
        ({"address": "192.0.2.102"}, "junk"),  # SpamCop alone
        ({"address": "192.0.2.103"}, "reject"),  # SpamCop and Mailspike
        ({"address": "192.0.2.104"}, "proceed"),  # the two, and highly trusted
        ({"address": "192.0.2.105"}, "junk"),  # the two, and trusted a little
        ({"address": "192.0.2.106"}, "proceed"),  # Spamhaus refuses to answer
        ({"address": "2001:db8::101"}, "reject"),
        ({"rdns": "bad.example"}, "junk"),
        ({"sender": "eve@bad.example"}, "reject"),
        ({"sender": "eve@abused.example"}, "proceed"),
    ],
)
def test_what_the_example_of_the_manual_page_does(
    lists_file: Path, client: dict[str, Any], verb: str
) -> None:
    two = {f"192.0.2.{number}": "127.0.0.2" for number in (102, 103, 104, 105)}
    zone = {
        **addresses(
            "zen.spamhaus.org",
            {
                "192.0.2.101": "127.0.0.4",
                "2001:db8::101": "127.0.0.3",
                "192.0.2.106": "127.255.255.255",
            },
        ),
        **addresses("bl.spamcop.net", two),
        **addresses(
            "bl.mailspike.net", {f"192.0.2.{number}": "127.0.0.11" for number in (103, 104, 105)}
        ),
        **addresses("list.dnswl.org", {"192.0.2.104": "127.0.5.3", "192.0.2.105": "127.0.5.1"}),
        **domains(
            "dbl.spamhaus.org", {"bad.example": "127.0.1.2", "abused.example": "127.0.1.102"}
        ),
    }
    flags = shlex.split(examples()[0].replace("/etc/mail/lists", str(lists_file)))
    with DNSServer(zone) as lists:
        given: dict[str, Any] = {"address": "198.51.100.9", "rdns": "mail.example.net", **client}
        assert verdict(lists, *flags, **given).verb == verb


# -- points --------------------------------------------------------------------------------


SCORED = Rules(RuleSettings(score_header=True))


@pytest.mark.parametrize(
    ("address", "points"),
    [(BAD, "3"), (WORSE, "8"), (GOOD, "-2"), (UNLISTED, "0")],
)
def test_its_score_is_one_of_points(server: DNSServer, address: str, points: str) -> None:
    lists = ("--client", f"{ZONE}*3", "--client", f"{OTHER}*5", "--client", f"{ALLOW}*-2")
    flags = (*lists, "--points", "--nameserver", f"{server.address}:{server.port}")
    with Conversation(Dnsbl, *flags, rules=SCORED) as smtpd:
        assert smtpd.filters[0].registration.points == (-2.0, 8.0)
        client = smtpd.connect(address=address)
        assert client.greeting.verb == "proceed"
        client.ehlo()
        client.mail_from("a@example.org")
        client.rcpt_to("b@example.org")
        score = client.message().headers.get("X-Smtpd-Filters-Score")
    assert score == (points if points == "0" else f"{points} dnsbl={points}")
    assert [
        line for line in smtpd.log if "points=" in line and f"points={points}" not in line
    ] == []


def test_as_points_the_least_score_counts_if_a_list_is_silent(server: DNSServer) -> None:
    server.zone["*.silent.example"] = {"drop": True}
    lists = ("--client", f"{ZONE}*3", "--client", "silent.example*2")
    flags = (*lists, "--untested", "silent.example", "--points", *short())
    with Conversation(
        Dnsbl, *flags, "--nameserver", f"{server.address}:{server.port}", rules=SCORED
    ) as smtpd:
        assert smtpd.connect(address=BAD).greeting.verb == "proceed"
    assert " dnsbl connect result=proceed points=3 " in smtpd.log[-1]


def test_a_list_in_a_file_may_get_any_weight(tmp_path: Path, server: DNSServer) -> None:
    path = tmp_path / "lists"
    path.write_text(f"{ZONE}*3\n")
    flags = ("--client", f"file:{path}", "--points")
    with Conversation(
        Dnsbl, *flags, "--nameserver", f"{server.address}:{server.port}", rules=SCORED
    ) as smtpd:
        assert smtpd.filters[0].registration.points == (float(-MAX_POINTS), float(MAX_POINTS))


def test_points_have_no_thresholds_beside_them() -> None:
    with pytest.raises(ConfigError, match="--points: cannot be combined with --junk-at"):
        Conversation(Dnsbl, "--client", ZONE, "--points", "--junk-at", "1")
