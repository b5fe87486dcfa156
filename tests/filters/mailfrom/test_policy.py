from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.mailfrom.policy import Mailfrom, SendersTable
from smtpd_filters.main import set_up
from smtpd_filters.protocol.decisions import PROCEED
from smtpd_filters.runtime.counters import COUNTERS
from smtpd_filters.runtime.log import Log
from smtpd_filters.session import Session
from smtpd_filters.testing import Conversation
from tests.filters.executables import answered, at_once, complaint, serve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.testing import Client, Delivery

OWN = ("--domains", "example.org")
TRUSTED = ("--trusted", "{ 198.51.100.0/24, 2001:db8:1::/48 }")
SENDERS = ("--senders", '{ anna = "anna@example.org, @lists.example.com", bob = @example.org }')
ELSEWHERE = "x@example.net"


def greeted(smtpd: Conversation, user: str = "", **client: object) -> Client:
    come = smtpd.connect(**client)  # type: ignore[arg-type]
    come.ehlo()
    if user:
        come.auth(user)
    return come


def sent(*flags: str, fields: str, user: str = "", **client: object) -> Delivery:
    """What becomes of a message with these fields, from an address nobody minds."""
    with Conversation(Mailfrom, *flags) as smtpd:
        come = greeted(smtpd, user, **client)
        assert not come.mail_from("anna@example.org" if user == "anna" else ELSEWHERE).refused
        come.rcpt_to("postmaster@example.org")
        content = f"{fields}\nSubject: x\n\nbody\n".encode("utf-8", "surrogateescape")
        return come.message(content)


# -- who may use an own address ------------------------------------------------------------

STRANGER = {"address": "192.0.2.1"}
STRANGER_6 = {"address": "2001:db8:2::1"}
NEIGHBOUR = {"address": "198.51.100.7"}
NEIGHBOUR_6 = {"address": "2001:db8:1::7"}
LOCAL = {"local": True}
LOOPBACK, LOOPBACK_6 = {"address": "127.0.0.1"}, {"address": "::1"}
ANNA, CARL = {"user": "anna"}, {"user": "carl"}


@pytest.mark.parametrize(
    ("client", "flags", "sender", "refused"),
    [
        (STRANGER, (), "anna@example.org", True),
        (STRANGER_6, (), "anna@example.org", True),
        (STRANGER, (), "anna@example.net", False),
        (STRANGER, (), "anna@sub.example.org", False),
        (STRANGER, (), "anna@example.org.example.net", False),
        (STRANGER, (), "anna@notexample.org", False),
        (STRANGER, (), "", False),
        (NEIGHBOUR, (), "anna@example.org", False),
        (NEIGHBOUR_6, (), "anna@example.org", False),
        (LOCAL, (), "anna@example.org", False),
        (LOCAL, SENDERS, "anna@example.org", False),
        (LOOPBACK, (), "anna@example.org", False),
        (LOOPBACK_6, (), "anna@example.org", False),
        (LOOPBACK, SENDERS, "anna@example.org", False),
        (LOOPBACK, ("--exempt=socket",), "anna@example.org", True),
        (LOCAL, ("--exempt=socket",), "anna@example.org", False),
        (LOCAL, ("--exempt=authenticated",), "anna@example.org", True),
        (ANNA, ("--exempt=local",), "anna@example.org", True),
        # A program on this machine that sends for a user, such as webmail.
        ({"user": "anna", **LOOPBACK}, SENDERS, "boss@example.org", True),
        ({"user": "anna", **LOOPBACK}, SENDERS, "anna@example.org", False),
        ({"user": "anna", **LOCAL}, SENDERS, "boss@example.org", True),
        (ANNA, (), "boss@example.org", False),
        (ANNA, (), "anna@example.net", False),
        (ANNA, SENDERS, "anna@example.org", False),
        (ANNA, SENDERS, "Anna+tag@Example.ORG", False),
        (ANNA, SENDERS, "everybody@lists.example.com", False),
        (ANNA, SENDERS, "boss@example.org", True),
        (ANNA, SENDERS, "anna@example.net", True),
        (ANNA, SENDERS, "", False),
        (CARL, SENDERS, "carl@example.org", True),
        ({"user": "ANNA"}, SENDERS, "anna@example.org", False),
        ({"user": "anna", **NEIGHBOUR}, SENDERS, "boss@example.org", True),
        ({"user": "a|b"}, SENDERS, "boss@example.org", True),
    ],
)
def test_who_may_use_which_sender(
    client: dict[str, object], flags: tuple[str, ...], sender: str, *, refused: bool
) -> None:
    with Conversation(Mailfrom, *OWN, *TRUSTED, *flags) as smtpd:
        said = greeted(smtpd, **client).mail_from(sender)  # type: ignore[arg-type]
        assert said.refused is refused
        assert said.verb == ("reject" if refused else "proceed")


def test_a_failed_authentication_gives_no_rights() -> None:
    with Conversation(Mailfrom, *OWN) as smtpd:
        client = greeted(smtpd)
        client.auth("anna", ok=False)
        assert client.mail_from("anna@example.org").refused
        client.auth("anna")
        assert not client.mail_from("anna@example.org").refused


@pytest.mark.parametrize("action", ["junk", "reject", "disconnect"])
@pytest.mark.parametrize("user", ["", "anna"])
def test_the_action_is_taken_at_mail_from(action: str, user: str) -> None:
    with Conversation(Mailfrom, *OWN, *SENDERS, "--action", action) as smtpd:
        client = greeted(smtpd, user)
        said = client.mail_from("boss@example.org")
        if action != "junk":
            assert smtpd.phases == {"mail-from"}
            assert said.verb == action
            assert said.reply.startswith("550 5.7.1 ")
            return
        # Only from there on is there a message to mark.
        assert smtpd.phases == {"mail-from", "data"}
        assert said.verb == "proceed"
        assert client.rcpt_to("anna@example.org").verb == "proceed"
        assert client.message().headers.get("X-Spam") == "Yes"
        client.mail_from("anna@example.org" if user else ELSEWHERE)
        client.rcpt_to("anna@example.org")
        assert client.message().headers.get("X-Spam") is None


def test_each_message_of_a_connection_is_judged() -> None:
    with Conversation(Mailfrom, *OWN) as smtpd:
        client = greeted(smtpd)
        for _ in range(2):
            assert client.mail_from("anna@example.org").refused
            assert not client.mail_from(ELSEWHERE).refused
            client.rset()


def test_only_the_report_of_authentication_is_asked_for() -> None:
    with Conversation(Mailfrom, *OWN) as smtpd:
        assert set(smtpd.reports) == {"link-connect", "link-disconnect", "link-auth"}


def test_the_reason_is_logged() -> None:
    with Conversation(Mailfrom, *OWN, *SENDERS) as smtpd:
        greeted(smtpd).mail_from("anna@example.org")
        greeted(smtpd, "anna").mail_from("boss@example.org")
        assert 'reason="sender anna@example.org is own: example.org"' in smtpd.log[0]
        assert 'reason="sender boss@example.org is not of user anna"' in smtpd.log[1]


def test_the_reply_is_the_operators() -> None:
    with Conversation(Mailfrom, *OWN, "--reply", "553 5.7.1 Use our own server") as smtpd:
        assert greeted(smtpd).mail_from("a@example.org").reply == "553 5.7.1 Use our own server"


# -- which addresses are own ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "own", "foreign"),
    [
        (("--domains", "{ example.org, *.example.com }"),
         ["a@example.org", "a@b.example.com"], ["a@example.com", "a@c.b.example.com"]),
        ((*OWN, "--subdomains"),
         ["a@example.org", "a@b.example.org", "a@d.c.b.example.org"], ["a@org", "a@xexample.org"]),
        (("--addresses", "{ boss@example.net, @example.org }"),
         ["BOSS@example.net", '"boss"@example.net', "boss+x@example.net", "a@example.org"],
         ["a@example.net", "bos@example.net"]),
        (("--patterns", r"^(boss|chef)@.*\.example\.(org|net)$"),
         ["Boss@mx.EXAMPLE.net", '"chef"@a.b.example.org'],
         ["boss@example.net", "a@b.example.org"]),
        (("--domains", "bücher.example"), ["a@bücher.example", "a@xn--bcher-kva.example"], []),
        (("--domains", "xn--bcher-kva.example"),
         ["a@bücher.example", "a@XN--bcher-kva.example"], ["a@xn--ü.example", "a@xn--.example"]),
        (("--domains", "{ example.org, [192.0.2.25] }"), ["a@[192.0.2.25]"], ["a@[192.0.2.26]"]),
        (("--domains", "@example.org"), ["a@example.org"], ["a@example.com"]),
        (("--domains", "bücher.example"),
         ["a@BÜCHER.example", "a@bu\u0308cher.example", "a@XN--Bcher-KVA.EXAMPLE",
          "a@b\udcfccher.example", "a@xn--BCHER-2pa.example", "a@b\u200bücher.example",
          "a@bücher\u3002example", "a@bücher.example\uff0e"],
         ["a@bucher.example", "a@xn--bcher-kvb.example"]),
        # Programs disagree about ß; which of the domains is ours, only we know.
        (("--domains", "faß.example"),
         ["a@faß.example", "a@FASS\u00ad.example".replace("SS", "ẞ"), "a@xn--fa-hia.example"],
         ["a@fass.example"]),
        (("--domains", "fass.example"), ["a@fass.example", "a@faß.example"],
         ["a@xn--fa-hia.example"]),
        (("--addresses", "jörg@example.net"),
         ["JÖRG@example.net", "jo\u0308rg+x@example.net", "x:jörg@example.net"],
         ["jorg@example.net"]),
        (("--patterns", r"@.*\.bücher\.example$"),
         ["a@x.BÜCHER.example", "a@x.xn--bcher-kva.example"], ["a@bücher.example"]),
        (("--patterns", r"@.*\.xn--bcher-kva\.example$"),
         ["a@x.BÜCHER.example", "a@x.xn--bcher-kva.example"], ["a@bücher.example"]),
        ((*OWN, "--subdomains"), ["a@" + "ü" * 1200 + ".example.org"], []),
        ((*OWN, "--subdomains"), ["a@" + "b." * 115 + "example.org"], []),
        (("--domains", "{ " + "b." * 14 + "example.org, " + "c." * 15 + "example.org }",
          "--subdomains"),
         ["a@x." + "b." * 14 + "example.org", "a@" + "c." * 15 + "example.org"],
         ["a@x." + "c." * 15 + "example.org"]),
    ],
)  # fmt: skip
def test_own_addresses(flags: tuple[str, ...], own: list[str], foreign: list[str]) -> None:
    assert own or foreign
    with Conversation(Mailfrom, *flags) as smtpd:
        client = greeted(smtpd)
        for address in own:
            assert client.mail_from(address).refused, address
        for address in foreign:
            assert not client.mail_from(address).refused, address
            client.rset()


@pytest.mark.parametrize(
    "spelling",
    [
        "Anna@Example.ORG",
        "anna@example.org.",
        "@relay.example.net:anna@example.org",
        "@a.example,@b.example:anna@example.org",
        '"anna"@example.org',
        '"an\\na"@example.org',
        '"anna@example.net"@example.org',
        "anna",
        '"anna"',
        '"anna@example.net"',
        "\udcff@example.org",
    ],
)
def test_spellings_of_an_own_address(spelling: str) -> None:
    with Conversation(Mailfrom, *OWN) as smtpd:
        assert greeted(smtpd).mail_from(spelling).refused


@pytest.mark.parametrize(
    "spelling",
    [
        '"anna@example.org"@example.net',
        "@example.org:anna@example.net",
        "anna%example.org@example.net",
        "example.org@example.net",
    ],
)
def test_foreign_addresses_that_look_own(spelling: str) -> None:
    with Conversation(Mailfrom, *OWN) as smtpd:
        assert not greeted(smtpd).mail_from(spelling).refused


def test_without_a_list_of_own_addresses_strangers_are_free() -> None:
    with Conversation(Mailfrom, *SENDERS) as smtpd:
        assert not greeted(smtpd).mail_from("anna").refused
        assert greeted(smtpd, "carl").mail_from("anna").refused


# -- users and their addresses -------------------------------------------------------------

BOB = ("--senders", "{ bob = 'bob@mx.example.org, bob@bücher.example, \"b b\"@example.org' }")


@pytest.mark.parametrize(
    ("sender", "refused"),
    [
        # smtpd completes it with the name of the server, and then takes it.
        ("bob", False),
        ('"bob"', False),
        ("bob+tag", False),
        ("bob@mx.example.org", False),
        ("boss", True),
        ("bob@example.org", True),
        ("bob@bücher.example", False),
        ("bob@xn--bcher-kva.example", False),
        ("bob@XN--BCHER-KVA.EXAMPLE", False),
        ("bob@BÜCHER.example.", False),
        ('"b b"@example.org', False),
        ("b@example.org", True),
        # What merely looks like it to some is no permission.
        ("bob@b\udcfccher.example", True),
        ("bob@xn--BCHER-2pa.example", True),
        ("bob@bücher.example.net", True),
    ],
)
def test_an_address_of_a_user_in_any_spelling(sender: str, *, refused: bool) -> None:
    with Conversation(Mailfrom, *BOB) as smtpd:
        assert greeted(smtpd, "bob").mail_from(sender).refused is refused


def test_old_readings_of_a_domain_give_no_rights() -> None:
    flags = ("--senders", "{ bob = bob@fass.example, carl = carl@faß.example }")
    with Conversation(Mailfrom, *flags) as smtpd:
        assert greeted(smtpd, "bob").mail_from("bob@faß.example").refused
        assert greeted(smtpd, "carl").mail_from("carl@fass.example").refused
        assert not greeted(smtpd, "carl").mail_from("carl@xn--fa-hia.example").refused


@pytest.mark.parametrize(
    ("field", "refused"),
    [
        ("bob", False),
        ("Bob <bob>", False),
        ("Bob <bob@mx.example.org>", False),
        ("Bob @ Work <bob@mx.example.org>", False),
        ("Bob@Work <bob@mx.example.org>", False),
        ("Bob @ Work. Sales <bob@mx.example.org>", False),
        ('"Bob @ Work" <bob@mx.example.org>', False),
        ("=?utf-8?q?Bob_=40_Work?= <bob@mx.example.org>", False),
        ('"ceo@example.net" <bob@mx.example.org>', False),
        ("\"'bob@mx.example.org'\" <bob@mx.example.org>", False),
        ("Bob <bob@BÜCHER.example>", False),
        ("boss", True),
        ("Bob <boss>", True),
        ("ceo@example.net <bob@mx.example.org>", True),
        ("bob@mx.example.org, boss@mx.example.org", True),
        ('"boss@own.example" <bob@mx.example.org>', True),
        ("boss @ own.example <bob@mx.example.org>", True),
        ("boss@localhost <bob@mx.example.org>", True),
    ],
)
def test_from_fields_of_a_user(field: str, *, refused: bool) -> None:
    flags = (*BOB, "--domains", "{ own.example, localhost }", "--check-display")
    with Conversation(Mailfrom, *flags) as smtpd:
        client = greeted(smtpd, "bob")
        client.mail_from("bob")
        client.rcpt_to("a@example.org")
        done = client.message(f"From: {field}\n\nbody\n".encode())
        assert done.refused is refused
        assert done.unchanged or refused


def test_before_smtpd_has_said_its_name_an_address_is_not_completed() -> None:
    smtpd = Conversation(Mailfrom, "--senders", "{ bob = bob@mx.example.org, eve = eve }")
    with smtpd:
        session = smtpd.connect()
        session.ehlo()
        assert {"link-auth", "link-greeting"} <= set(smtpd.reports)
        policy = Mailfrom(
            Mailfrom.Options(senders=SendersTable.load("{ bob = bob@mx.example.org }"))
        )
        set_up(policy, Log())
        missed = Session(b"1").expect(["username", "server_name"])
        missed.apply("link-auth", (b"pass", b"bob"))
        assert at_once(policy.mail_from(missed, "bob")).reason == "sender bob is not of user bob"
        missed.apply("link-greeting", (b"mx.example.org",))
        assert at_once(policy.mail_from(missed, "bob")) is PROCEED


# -- From: ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ("From: boss@example.org", True),
        ("FROM : boss@example.org", True),
        ("From: The Boss\n\t<Boss@Example.ORG>", True),
        ("From: x@example.net", False),
        ("From: x@example.net\nFrom: boss@example.org", True),
        ("From: boss", True),
        ("X-From: boss@example.org", False),
        ('From: "boss@example.org" <x@example.net>', False),
        ("Sender: boss@example.org", False),
        ("From: " + "x" * 40_000, True),
    ],
)
@pytest.mark.parametrize("action", ["junk", "reject", "disconnect"])
def test_from_is_judged_when_the_message_is_complete(
    fields: str, action: str, *, refused: bool
) -> None:
    fields = fields.replace("x" * 900, "x" * 900 + "\n ")
    done = sent(*OWN, "--check-header", "--header-action", action, fields=fields)
    if not refused:
        assert done.unchanged
        assert done.verb == "proceed"
    elif action == "junk":
        assert done.verb == "proceed"
        assert done.headers.get("X-Spam") == "Yes"
    else:
        assert done.verb == action
        assert done.reply.startswith("550 5.7.1 Address in From ")


@pytest.mark.parametrize(
    "client", [NEIGHBOUR, NEIGHBOUR_6, LOCAL, ANNA], ids=["v4", "v6", "local", "auth"]
)
def test_whoever_may_use_an_own_sender_may_write_it_into_from(client: dict[str, object]) -> None:
    done = sent(*OWN, *TRUSTED, "--check-header", fields="From: boss@example.org", **client)  # type: ignore[arg-type]
    assert done.unchanged
    assert not done.refused


def test_users_may_write_their_own_addresses_only() -> None:
    flags = (*OWN, *SENDERS, "--check-display")
    assert not sent(*flags, fields="From: anna@example.org", user="anna").refused
    foreign = 'From: "anna@example.net" <anna@example.org>'
    assert not sent(*flags, fields=foreign, user="anna").refused
    for field in (
        "From: boss@example.org",
        "From: anna@example.net",
        "From: anna@example.org, boss@example.org",
        'From: "boss@example.org" <anna@example.org>',
    ):
        done = sent(*flags, fields=field, user="anna")
        assert done.reply == "550 5.7.1 Address in From not allowed for your user"


@pytest.mark.parametrize("field", ["From: boss@example.org", "From: x@example.net", "Subject: x"])
def test_a_header_that_is_not_read_to_its_end_is_a_spoof(field: str) -> None:
    padding = "X: y\n" * 17_000
    done = sent(*OWN, "--check-header", fields=f"From: x@example.net\n{padding}{field}")
    assert done.reply.startswith("550 5.7.1 Address in From ")
    assert not sent(
        *OWN, "--check-header", fields=f"From: x@example.net\n{padding[:30_000]}X: y"
    ).refused
    # Who may use every address may write any header.
    assert not sent(*OWN, "--check-header", fields=f"{padding}{field}", user="anna").refused


def test_the_null_sender_is_no_excuse_for_from() -> None:
    with Conversation(Mailfrom, *OWN, "--check-header") as smtpd:
        client = greeted(smtpd)
        assert not client.mail_from("").refused
        client.rcpt_to("anna@example.org")
        assert client.message(b"From: boss@example.org\n\n").refused


def test_names_are_looked_at_when_asked_for() -> None:
    named = 'From: "boss@example.org" <x@example.net>'
    assert not sent(*OWN, "--check-header", fields=named).refused
    assert sent(*OWN, "--check-display", fields=named).refused


@pytest.mark.parametrize(
    "author",
    [
        f'"{"a" * 1100}"@example.org',
        f'"{"ä" * 600}"@example.org',
        f"a@{'b.' * 600}example.org",
        "=?utf-7?q?a+2AA-?=@example.org",
    ],
)
def test_no_author_is_too_long_for_patterns(author: str) -> None:
    flags = ("--patterns", r"[@.]example\.org$", "--check-header")
    assert sent(*flags, fields=f"From: Boss <{author}>").refused
    assert not sent(*flags, fields="From: a@example.net").refused


@pytest.mark.parametrize(
    ("flag", "author"),
    [
        ("--addresses={ boss@example.org }", f"boss+{'x' * 200}@example.org"),
        ("--addresses={ boss@example.org }", f"Boss <boss+{'x' * 200}@example.org>"),
        ("--addresses={ boss@example.org }", f"boss{' ' * 200}@example.org"),
        ("--addresses={ boss@example.org }", f"\uff42oss+{'x' * 2000}@example.org"),
        ("--addresses={ boss@example.org }", f'"\uff42oss+{"x" * 2000}"@example.org'),
        ("--patterns=^boss-.*@example\\.org$", f"boss-{'x' * 200}@example.org"),
    ],
)
def test_no_local_part_is_too_long_to_be_own(flag: str, author: str) -> None:
    assert sent(flag, "--check-header", fields=f"From: {author}").verb == "reject"
    foreign = author.replace("boss", "chief").replace("\uff42oss", "chief")[-300:]
    assert sent(flag, "--check-header", fields=f"From: {foreign}").verb == "proceed"


def test_the_header_action_is_that_of_the_envelope_unless_given() -> None:
    fields = "From: boss@example.org"
    assert sent(*OWN, "--check-header", fields=fields).verb == "reject"
    flags = ("--check-header", "--action", "disconnect")
    assert sent(*OWN, *flags, fields=fields).verb == "disconnect"


@pytest.mark.parametrize(
    "field", ["'boss@example.org'", "boss@example.org- x", "*boss@example.org*"]
)
@pytest.mark.parametrize("own", ["@example.org", "boss@example.org"])
def test_marks_around_an_address_hide_it_from_no_check(field: str, own: str) -> None:
    assert sent("--addresses", own, "--check-header", fields=f"From: {field}").refused


# -- flags ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "--domains, --addresses, --patterns or --senders is required"),
        (("--trusted", "10/8"), "--domains, --addresses, --patterns or --senders is required"),
        (("--domains", "{}"), "--domains: no entries in {}"),
        (("--addresses", "{ }", *OWN), "--addresses: no entries in { }"),
        (("--patterns", "{,}", *OWN), "--patterns: no entries in {,}"),
        (("--subdomains", *SENDERS), "--subdomains requires --domains"),
        ((*OWN, "--header-action", "junk"), "--header-action requires --check-header"),
        ((*OWN, "--action", "tempfail"), '--action: invalid choice "tempfail"'),
        ((*OWN, "--reply", "go away"), "--reply: a reply is a 4xx or 5xx code"),
        ((*OWN, "--trusted", "{ 10/8, 300.1.1.1 }"), "--trusted: inline table: entry 2"),
        (("--patterns", "(a"), "--patterns: "),
        (("--domains", "file:/nonexistent/own"), "--domains: /nonexistent/own: No such file"),
        (("--senders", "{ anna = ' , ' }"), "--senders: inline table: entry 1: no address"),
        (
            ("--domains", "{ example.org, http://example.org/ }"),
            "--domains: inline table: entry 2: ':' can't be in a domain",
        ),
        (("--domains", "boss@example.org"), "--domains: an address, not a"),
        (
            ("--addresses", "example.org"),
            '--addresses: did you mean "@example.org"?',
        ),
        (
            ("--senders", "{ anna = anna@example.org, bob = 'bob@example.org, example.org' }"),
            '--senders: inline table: entry 2: did you mean "@example.org"?',
        ),
        (
            ("--senders", "{ anna = anna@example.org@example.net }"),
            '--senders: inline table: entry 1: more than one "@"',
        ),
    ],
)
def test_bad_flags_are_one_line(flags: tuple[str, ...], expected: str) -> None:
    assert expected in complaint("mailfrom", *flags)


@pytest.mark.parametrize(
    ("flags", "used"),
    [
        (("--action", "junk"), False),
        (("--action", "junk", "--check-header", "--header-action", "reject"), True),
        (("--check-header", "--header-action", "junk"), True),
        ((), True),
    ],
)
def test_a_reply_that_nobody_is_given_is_said_at_the_start(
    flags: tuple[str, ...], *, used: bool
) -> None:
    with Conversation(Mailfrom, *OWN, "--reply", "550 5.7.1 no", *flags) as smtpd:
        said = "mailfrom --reply has no effect with --action junk"
        assert smtpd.log == ([] if used else [said])


@pytest.mark.parametrize("inline", [False, True])
def test_a_user_on_several_lines_may_use_the_addresses_of_all(
    tmp_path: Path, *, inline: bool
) -> None:
    table = tmp_path / "senders"
    table.write_text(
        "anna anna@example.org\nbob bob@example.org\nAnna a@example.com, @example.net\n"
    )
    spec = (
        "{ anna = anna@example.org, bob = bob@example.org, Anna = 'a@example.com, @example.net' }"
    )
    with Conversation(Mailfrom, "--senders", spec if inline else f"file:{table}") as smtpd:
        for sender in ("anna@example.org", "a@example.com", "x@example.net"):
            assert not greeted(smtpd, **ANNA).mail_from(sender).refused
        assert greeted(smtpd, **ANNA).mail_from("bob@example.org").refused


def test_what_one_user_may_use_is_bounded(tmp_path: Path) -> None:
    table = tmp_path / "senders"
    # A line has at most 32,768 characters, and so have several lines for one user.
    table.write_text("anna a@example.org\n" * 2185 + "bob b@example.org\n")
    said = complaint("mailfrom", "--senders", f"file:{table}")
    assert f"--senders: {table}:2185: one user has more than 32768 characters of addresses" in said


def test_a_bad_line_of_senders_is_named(tmp_path: Path) -> None:
    table = tmp_path / "senders"
    table.write_text("# users\nanna anna@example.org, @example.net\nbob\n")
    said = complaint("mailfrom", "--senders", f"file:{table}")
    assert f"--senders: {table}:3: expected a key and a value" in said
    table.write_text(f"anna anna@{'x' * 1100}\n")
    said = complaint("mailfrom", "--senders", f"file:{table}")
    assert f"--senders: {table}:1: longer than 1023 bytes in 'anna@xxx" in said


def test_a_table_with_an_entry_that_covers_nothing_keeps_its_content(tmp_path: Path) -> None:
    domains = tmp_path / "domains"
    domains.write_text("example.org\n")
    with Conversation(Mailfrom, "--domains", f"file:{domains}") as smtpd:
        domains.write_text("example.com\nhttp://example.org/\n")
        smtpd.reload()
        assert f"{domains}:2: ':' can't be in a domain" in smtpd.log[-1]
        assert greeted(smtpd).mail_from("a@example.org").refused
        assert not greeted(smtpd).mail_from("a@example.com").refused


def test_tables_are_reloaded(tmp_path: Path) -> None:
    domains, senders = tmp_path / "domains", tmp_path / "senders"
    domains.write_text("example.org\n")
    senders.write_text("anna anna@example.org\n")
    flags = ("--domains", f"file:{domains}", "--senders", f"file:{senders}")
    with Conversation(Mailfrom, *flags) as smtpd:
        assert greeted(smtpd, "anna").mail_from("boss@example.org").refused
        assert not greeted(smtpd).mail_from("a@example.com").refused
        domains.write_text("example.com\n")
        senders.write_text("anna anna@example.org, boss@example.org\n")
        smtpd.reload()
        assert not greeted(smtpd, "anna").mail_from("boss@example.org").refused
        assert greeted(smtpd).mail_from("a@example.com").refused
        senders.write_text("anna\n")
        smtpd.reload()
        assert not greeted(smtpd, "anna").mail_from("boss@example.org").refused


def test_the_executable_answers_smtpd() -> None:
    link = "mail.example.net|pass|192.0.2.1:33174"
    clients = [(link, "mail-from", "anna@example.org"), (link, "mail-from", "")]
    answers, log = serve("mailfrom", *OWN, clients=clients)
    refusal = "550 5.7.1 Sender address not allowed from here; please authenticate"
    assert answers == [answered(0, f"reject|{refusal}"), answered(1, "proceed")]
    assert "sender anna@example.org is own: example.org" in log


def test_users_are_not_exempt_from_their_own_list() -> None:
    line = "--exempt authenticated: cannot be combined with --senders"
    assert line in complaint("mailfrom", *SENDERS, "--exempt=authenticated")


def test_something_must_be_guarded_in_code_as_well() -> None:
    policy = Mailfrom(Mailfrom.Options())
    with pytest.raises(ConfigError, match="nothing to guard"):
        set_up(policy, Log())


def test_labels_of_a_name_cost_a_remote_table_few_queries(tmp_path: Path) -> None:
    database = tmp_path / "mail.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE domains (name TEXT)")
    look_ups = COUNTERS.of("table")
    query = f"sqlite:{database}?query=SELECT name FROM domains WHERE name = ?"  # noqa: S608  # our own path
    with Conversation(Mailfrom, "--domains", query, "--subdomains") as smtpd:
        before = sum(look_ups.buckets)
        assert not greeted(smtpd).mail_from("a@" + "b." * 115 + "example.net").refused
        assert sum(look_ups.buckets) - before == 17
