"""filter-dnsbl under a real server, with lists that work and lists that don't."""

from __future__ import annotations

import re
from pathlib import Path
from select import select
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.testing.server import file_path, filter_command
from tests.e2e.sending import (
    ALICE,
    DYNAMIC,
    DYNAMIC6,
    GOOD,
    GOOD6,
    LIAR,
    MESSAGE,
    NAMELESS,
    NAMELESS6,
    SENDER,
    ZONE,
    Outcome,
    attempt,
    folders,
    greeted,
    local,
    logged,
)
from tests.filters.dnsbl.zones import UNLISTED, addresses, domains, under

if TYPE_CHECKING:
    from smtpd_filters.testing.server.client import Connection
    from tests.e2e.conftest import Start

BL, OTHER, NAMES = "bl.lists.example", "other.lists.example", "names.lists.example"
BAD, BAD6 = DYNAMIC, DYNAMIC6
TEXT = "See https://bl.lists.example/why"
LISTS: dict[str, dict[str, Any]] = {
    **ZONE,
    **addresses(BL, {BAD: {"A": "127.0.0.4", "TXT": TEXT}, BAD6: {"A": "127.0.0.4", "TXT": TEXT}}),
    **addresses(OTHER, {LIAR: "127.0.0.2"}),
    **domains(NAMES, {"bad.example": "127.0.1.2", "liar.example": "127.0.1.2"}),
}
STAGES = {"connect": "connect", "helo": "EHLO", "mail-from": "MAIL", "rcpt-to": "RCPT"}
#: What becomes of a client about whom nothing could be found out.
TEMPORARY = "451 4.4.3 Temporary failure, please try again later"


def dnsbl(*flags: str) -> dict[str, str]:
    return {"dnsbl": filter_command("dnsbl", *flags)}


def ask_for_alice(connection: Connection) -> None:
    """Get as far as the first recipient, whose reply is still to come."""
    greeted(connection).command(f"MAIL FROM:<{SENDER}>")
    connection.send(f"RCPT TO:<{ALICE}>\r\n".encode())


@pytest.mark.parametrize(
    ("action", "phase"),
    [
        ("junk", "connect"),
        ("junk", "mail-from"),
        ("junk", "rcpt-to"),
        ("reject", "connect"),
        ("reject", "helo"),
        ("reject", "mail-from"),
        ("reject", "rcpt-to"),
        ("disconnect", "connect"),
        ("disconnect", "rcpt-to"),
    ],
)
def test_who_is_listed(start: Start, action: str, phase: str) -> None:
    flags = ("--client", f"{BL}=127.0.0.[2..11;14]*3", f"--{action}-at", "3", "--phase", phase)
    server = start(zone=LISTS, filters=dnsbl(*flags))
    for source in (GOOD, GOOD6, LIAR):
        assert attempt(server, source).stage == "", source
    server.submit(local(MESSAGE), SENDER, ALICE)
    assert folders(server) == [""] * 4
    for source in (BAD, BAD6):
        outcome = attempt(server, source)
        if action == "junk":
            assert outcome.stage == ""
            continue
        stays = action == "reject" and phase != "connect"
        code = 554 if phase == "connect" else 550
        told = f"5.7.1 {source} is listed by {BL}; {TEXT}"
        assert outcome == Outcome(STAGES[phase], code, told, stays)
    assert folders(server).count("Junk") == (2 if action == "junk" else 0)
    assert len(logged(server, f"^dnsbl: .* result={action} reason=.score 3: ", 2)) == 2


@pytest.mark.parametrize(
    ("kind", "stage", "subject", "client"),
    [
        ("rdns", "connect", "liar.example", {"source": LIAR}),
        ("helo", "EHLO", "bad.example", {"helo": "EHLO bad.example"}),
        ("helo", "HELO", "bad.example", {"helo": "HELO bad.example"}),
        ("sender", "MAIL", "bad.example", {"sender": "eve@bad.example"}),
    ],
)
def test_names(start: Start, kind: str, stage: str, subject: str, client: dict[str, Any]) -> None:
    server = start(zone=LISTS, filters=dnsbl(f"--{kind}", NAMES, "--reject-at", "1"))
    outcome = attempt(server, **client)
    assert (outcome.stage, outcome.text) == (stage, f"5.7.1 {subject} is listed by {NAMES}")
    assert attempt(server).stage == ""


def test_a_sum_of_all_kinds(start: Start) -> None:
    lists = ("--client", BL, "--client", f"{OTHER}*-1", "--rdns", NAMES, "--helo", NAMES)
    flags = (*lists, "--sender", NAMES, "--reject-at", "2", "--phase", "rcpt-to", "--timeout", "9s")
    server = start(zone=LISTS, filters=dnsbl(*flags))
    helo, sender = "EHLO bad.example", "eve@bad.example"
    assert attempt(server, BAD).stage == ""
    assert attempt(server, BAD, helo=helo).stage == "RCPT"
    assert attempt(server, GOOD, helo=helo, sender=sender).stage == "RCPT"
    # rDNS +1 and HELO +1, allowed -1; its reverse name doesn't lead back to it.
    assert attempt(server, LIAR, helo=helo).stage == ""
    assert attempt(server, LIAR, helo=helo, sender=sender).stage == "RCPT"


def test_marked_with_the_lists_that_say_so(start: Start) -> None:
    server = start(zone=LISTS, filters=dnsbl("-m", "--client", f"{BL}*2", "--client", f"{OTHER}"))
    forged = b"X-Spam-DNSBL: Listed at nobody\r\n" + MESSAGE
    for source in (BAD, GOOD):
        assert attempt(server, source, message=forged).stage == ""
    said = {mail.folder: mail.message.get_all("X-Spam-DNSBL") for mail in server.maildir("alice")}
    assert said == {"Junk": [f"Listed at {BL} ({BAD}, 127.0.0.4, +2)"], "": None}


def test_an_authenticated_client_is_exempt(start: Start) -> None:
    flags = ("--client", BL, "--phase", "mail-from")
    server = start(zone=LISTS, filters=dnsbl(*flags))
    assert attempt(server, BAD, user="alice").stage == ""
    assert attempt(server, BAD).stage == "MAIL"


KEY = "k3ykk7zqabcdefghij"


def test_a_key_is_never_shown(start: Start) -> None:
    zone = f"{KEY}.zen.dq.spamhaus.net"
    entries = addresses(
        zone,
        {
            BAD: {"A": "127.0.0.4", "TXT": f"https://check.example/{KEY}"},
            LIAR: {"A": "127.255.255.255"},
            NAMELESS: {"servfail": True},
            UNLISTED: {"servfail": True},
        },
    )
    broken = {under(zone, "::ffff:7f00:1"): {"A": "127.0.0.2"}}
    lists = ("--client", f"{zone}*2", "--client", OTHER, "--junk-at", "1", "--header", "-v")
    flags = ("--phase", "rcpt-to", "--on-error", "tempfail", "--timeout", "3s")
    server = start(
        zone={**LISTS, **entries, **broken},
        filters=dnsbl(*lists, *flags, "--untested", "zen.dq.spamhaus.net", "--reject-at", "2"),
    )
    assert attempt(server, BAD).said == (
        f"550 5.7.1 {BAD} is listed by zen.dq.spamhaus.net; https://check.example/***"
    )
    assert attempt(server, NAMELESS).said == TEMPORARY
    assert attempt(server, GOOD).stage == ""
    server.maildir("alice")
    server.terminate()
    assert not [line for line in server.log if line.startswith("dnsbl: ") and KEY in line]


# -- lists that fail -------------------------------------------------------------------------------


FAULTS: dict[str, dict[str, Any]] = {
    "silent": {"drop": True},
    "slow": {"A": "127.0.0.4", "delay": 60},
    "SERVFAIL": {"servfail": True},
    "refused": {"refused": True},
    "lying": {"A": "127.0.0.4", "wrong-name": True},
    "outside": {"A": "203.0.113.66"},
    "blocked": {"A": "127.255.255.254"},
    "malformed": {"malformed": True},
}


#: Every fault, and every outcome of one that comes late and of one that comes at once.
OUTCOMES = [(NAMELESS, fault, "tempfail") for fault in FAULTS]
OUTCOMES += [(NAMELESS6, fault, "tempfail") for fault in ("slow", "SERVFAIL")]
OUTCOMES += [
    (source, fault, on_error)
    for source, fault in ((NAMELESS, "slow"), (NAMELESS6, "lying"))
    for on_error in ("proceed", "junk")
]


@pytest.mark.parametrize(("source", "fault", "on_error"), OUTCOMES)
def test_a_list_that_fails_for_a_client(
    start: Start, source: str, fault: str, on_error: str
) -> None:
    """What is chosen for it, and nothing for others."""
    flags = ("--phase", "rcpt-to", "--timeout", "2s", "--on-error", on_error)
    server = start(
        zone={**LISTS, under(BL, source): FAULTS[fault]},
        filters=dnsbl("--client", f"{BL}*2", "--client", OTHER, *flags),
    )
    with server.connection(source) as waiting:
        ask_for_alice(waiting)
        assert attempt(server, GOOD).stage == ""
        assert attempt(server, BAD).stage == "RCPT"
        reply = waiting.reply()
    assert reply is not None
    assert (
        f"{reply.code} {reply.text}" == TEMPORARY if on_error == "tempfail" else reply.code == 250
    )
    assert logged(server, f"^dnsbl: .* cause=.*{BL}: ", 1)
    if on_error == "junk":
        assert attempt(server, source).stage == ""
        assert folders(server).count("Junk") == 1


def test_a_list_that_is_silent_holds_up_nobody_else(start: Start) -> None:
    flags = ("--phase", "rcpt-to", "--timeout", "60s")
    server = start(
        zone={**LISTS, under(BL, NAMELESS): {"drop": True}}, filters=dnsbl("--client", BL, *flags)
    )
    with server.connection(NAMELESS) as waiting:
        ask_for_alice(waiting)
        assert attempt(server, GOOD).stage == ""
        assert attempt(server, BAD).stage == "RCPT"
        assert select([waiting.socket], [], [], 0) == ([], [], [])


@pytest.mark.parametrize("on_error", ["proceed", "tempfail"])
@pytest.mark.parametrize("flags", [("--nameserver", "127.0.0.1:9"), ()], ids=["gone", "silent"])
def test_a_dead_name_server(start: Start, flags: tuple[str, ...], on_error: str) -> None:
    zone = LISTS if flags else {**ZONE, "*.lists.example": {"drop": True}}
    lists = ("--client", BL, "--client", OTHER, "--phase", "rcpt-to", "--timeout", "1s")
    server = start(zone=zone, filters=dnsbl(*lists, "--on-error", on_error, *flags))
    for source in (BAD, BAD6, GOOD):
        outcome = attempt(server, source)
        assert outcome.said == TEMPORARY if on_error == "tempfail" else outcome.stage == ""
    assert logged(server, "^dnsbl: dnsbl no list answers cause=.*not switched off", 1)


def test_a_list_that_flaps(start: Start) -> None:
    """Every second question is dropped: it takes longer, with the same result."""
    flap = {name: {**entry, "flap": True} for name, entry in LISTS.items() if name.endswith(BL)}
    flags = ("--client", BL, "--timeout", "2s", "--on-error", "tempfail")
    server = start(zone={**LISTS, **flap}, filters=dnsbl(*flags))
    for _ in range(2):
        assert attempt(server, BAD).said.startswith(f"554 5.7.1 {BAD} is listed by {BL}")
        assert attempt(server, BAD6).said.startswith(f"554 5.7.1 {BAD6} is listed by {BL}")
        assert attempt(server, GOOD).stage == ""


@pytest.mark.parametrize(
    ("zone", "cause"),
    [
        ({f"*.{BL}": {"A": "127.0.0.2"}}, "lists 127.0.0.1, which must not be listed"),
        ({}, "doesn't list 127.0.0.2, its test entry"),
        ({f"*.{BL}": {"A": "203.0.113.66"}}, "answers 203.0.113.66, outside 127.0.0.0/8"),
        ({f"*.{BL}": {"A": "127.255.255.254"}}, "answers 127.255.255.254: it refuses"),
        ({f"*.{BL}": {"drop": True}}, "127.0.0.1:53 timeout"),
    ],
    ids=["everybody", "nobody", "parked", "blocked", "silent"],
)
def test_a_list_that_is_not_fit_to_be_asked(start: Start, zone: dict[str, Any], cause: str) -> None:
    others = {name: entry for name, entry in LISTS.items() if not name.endswith(BL)}
    flags = ("--client", f"{BL}*9", "--client", OTHER, "--timeout", "3s")
    server = start(zone={**others, **zone}, filters=dnsbl(*flags, "--on-error", "tempfail"))
    for source in (GOOD, GOOD6, BAD, BAD6):
        assert attempt(server, source).stage == ""
    assert attempt(server, LIAR).said == f"554 5.7.1 {LIAR} is listed by {OTHER}"
    [line] = logged(server, f"^dnsbl: dnsbl list zone={BL} about=IPv4 switched=off ", 1)
    assert cause in line.replace('\\"', '"')
    assert not server.lab.dns.asked(under(BL, GOOD), "A")


def test_a_dry_run(start: Start) -> None:
    server = start(zone=LISTS, filters=dnsbl("--client", BL, "--header", "--dry-run"))
    assert attempt(server, BAD).stage == ""
    [mail] = server.maildir("alice")
    assert mail.folder == ""
    assert mail.message["X-Spam-DNSBL"] is None
    assert logged(server, "result=proceed would=disconnect", 1)


def test_as_the_filter_before_was_started(start: Start) -> None:
    server = start(zone=LISTS, filters={"dnsbl": filter_command("dnsbl", "-m", BL, OTHER)})
    assert attempt(server, BAD).stage == ""
    assert attempt(server, GOOD).stage == ""
    assert sorted(folders(server)) == ["", "Junk"]


def test_the_example_of_the_manual_page(start: Start) -> None:
    """As it stands there, quotes and line breaks and all."""
    page = (Path(__file__).parents[2] / "docs" / "man" / "filter-dnsbl.8").read_text()
    [example] = re.findall(r'proc-exec "filter-dnsbl ([^"]*--sender[^"]*)"', page)
    lists = re.search(r"^\.Pa /etc/mail/lists :\n\.Bd .*\n((?:.*\n)*?)\.Ed$", page, re.MULTILINE)
    assert lists
    arguments = example.replace("\\e\n", "\\\n").replace("/etc/mail/lists", file_path("lists"))
    zone = {
        **ZONE,
        **addresses("zen.spamhaus.org", {BAD: "127.0.0.4"}),
        **addresses("bl.spamcop.net", {NAMELESS: "127.0.0.2"}),
        **addresses("bl.mailspike.net"),
        **addresses("list.dnswl.org"),
        **domains("dbl.spamhaus.org", {"bad.example": "127.0.1.2", "liar.example": "127.0.1.102"}),
    }
    server = start(
        zone=zone,
        files={"lists": lists[1]},
        declarations=f'filter "dnsbl" proc-exec "{filter_command("dnsbl")} {arguments}"',
        listeners='listen on lo port 25 hostname "mx.local.example" filter "dnsbl"',
    )
    assert attempt(server, GOOD).stage == ""
    assert attempt(server, LIAR).stage == ""
    assert folders(server) == ["", ""]
    assert attempt(server, NAMELESS).stage == ""
    assert folders(server).count("Junk") == 1
    assert attempt(server, BAD).said == f"550 5.7.1 {BAD} is listed by zen.spamhaus.org"
    said = attempt(server, GOOD, sender="eve@bad.example").said
    assert said == "550 5.7.1 bad.example is listed by dbl.spamhaus.org"
