"""Tests of each filter under a real server: its decisions, their phases, and the replies."""

from __future__ import annotations

import base64
import re
import signal
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from smtpd_filters.testing.dns import host, merge
from smtpd_filters.testing.server import (
    LabError,
    file_path,
    filter_command,
    password,
    scratch_path,
)
from tests.e2e.sending import (
    ALICE,
    BOB,
    BROKEN,
    DYNAMIC,
    DYNAMIC6,
    GOOD,
    GOOD6,
    LIAR,
    LIAR6,
    MESSAGE,
    NAMELESS,
    NAMELESS6,
    SENDER,
    ZONE,
    Outcome,
    attempt,
    crowd,
    folders,
    local,
    logged,
    policy,
    transact,
)

if TYPE_CHECKING:
    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Spy, Start

STAGES = {"connect": "connect", "helo": "EHLO", "mail-from": "MAIL", "rcpt-to": "RCPT"}
#: As sendmail(8) takes it.
LOCAL = local(MESSAGE)


class Case(NamedTuple):
    """A filter of clients: its flags, the clients it refuses with their replies, and others."""

    flags: tuple[str, ...]
    refused: dict[str, str]
    accepted: tuple[str, ...]
    temporary: bool = False

    def told(self, source: str, phase: str, *, stays: bool) -> tuple[int, str]:
        """Return the code of a refusal and its text."""
        if self.temporary:
            return 450 if stays else 421, f"4.{self.refused[source]}"
        return 554 if phase == "connect" else 550, f"5.{self.refused[source]}"


DYNDNS_TEXT = (
    "7.1 Your reverse DNS name looks dynamically assigned; "
    "please send through your provider's mail server"
)
NAMELESS_TEXT = "7.25 Your IP address has no reverse DNS name"
LIAR_TEXT = "7.25 The reverse DNS name of your IP address does not lead back to the address"
CASES = {
    "dyndns": Case(
        (), {DYNAMIC: DYNDNS_TEXT, DYNAMIC6: DYNDNS_TEXT}, (GOOD, GOOD6, LIAR, NAMELESS6)
    ),
    "fcrdns": Case(
        (),
        {NAMELESS: NAMELESS_TEXT, NAMELESS6: NAMELESS_TEXT, LIAR: LIAR_TEXT, LIAR6: LIAR_TEXT},
        (GOOD, GOOD6, DYNAMIC),
        temporary=True,
    ),
    "fcrdns --verify": Case(
        ("--verify", "--nameserver", "127.0.0.1"),
        {NAMELESS: NAMELESS_TEXT, LIAR6: LIAR_TEXT},
        (GOOD, GOOD6, DYNAMIC, BROKEN),
    ),
}


def named(server: Smtpd, name: str) -> list[str]:
    """Return what a filter has logged, as smtpd wrote it down."""
    return [line for line in server.log if line.startswith(f"{name}: ")]


# -- filters of clients ----------------------------------------------------------------------------


EVERY = [(action, phase) for action in ("junk", "reject", "disconnect") for phase in STAGES]
#: The policy is the same with --verify: each action and each phase once.
SOME = [("junk", "connect"), ("reject", "helo"), ("disconnect", "mail-from"), ("junk", "rcpt-to")]


@pytest.mark.parametrize(
    ("case", "action", "phase"),
    [
        (case, action, phase)
        for case in CASES
        for action, phase in (SOME if "verify" in case else EVERY)
    ],
)
def test_a_client_is_judged(start: Start, case: str, action: str, phase: str) -> None:
    name = case.partition(" ")[0]
    flags, refused, accepted, _ = CASES[case]
    command = filter_command(name, *flags, "--action", action, "--phase", phase)
    server = start(zone=ZONE, filters={name: command})
    for source in accepted:
        assert attempt(server, source).stage == "", source
    server.submit(LOCAL, SENDER, ALICE)
    assert folders(server) == [""] * (len(accepted) + 1)
    for source in refused:
        outcome = attempt(server, source)
        if action == "junk":
            assert outcome.stage == "", source
            continue
        stayed = action == "reject" and phase != "connect"
        code, text = CASES[case].told(source, phase, stays=stayed)
        assert outcome == Outcome(STAGES[phase], code, text, stayed), source
    junk = [mail for mail in server.maildir("alice") if mail.folder]
    assert len(server.maildir("alice")) - len(accepted) - 1 == len(junk)
    assert len(junk) == (len(refused) if action == "junk" else 0)
    assert all(mail.message["X-Spam"] == "Yes" for mail in junk)
    verdicts = logged(server, f"^{name}: .* result={action} ", len(refused))
    assert len(verdicts) == len(refused)


@pytest.mark.parametrize("phase", ["mail-from", "rcpt-to"])
@pytest.mark.parametrize("case", ["dyndns", "fcrdns", "fcrdns --verify"])
def test_an_authenticated_client_is_exempt(start: Start, case: str, phase: str) -> None:
    name = case.partition(" ")[0]
    flags = (*CASES[case].flags, "--action", "reject", "--phase", phase)
    server = start(zone=ZONE, filters={name: filter_command(name, *flags)})
    source = next(iter(CASES[case].refused))
    assert attempt(server, source, user="alice").stage == ""
    assert attempt(server, source).stage == STAGES[phase]
    [mail] = server.maildir("alice")
    assert " with ESMTPSA id " in mail.message["Received"]


def test_a_greeting_with_helo(start: Start) -> None:
    command = filter_command("dyndns", "--action", "disconnect", "--phase", "helo")
    server = start(zone=ZONE, filters={"dyndns": command})
    helo = "HELO client.example"
    assert attempt(server, DYNAMIC, helo=helo) == Outcome(
        "HELO", 550, f"5.{DYNDNS_TEXT}", stayed=False
    )
    assert attempt(server, helo=helo).stage == ""


def test_a_reply_of_ones_own(start: Start) -> None:
    reply = "450 4.7.1 Call us: +1 (555) 0100 | 50% of you are bots"
    flags = ("--action", "reject", "--phase", "rcpt-to", "--reply", reply)
    server = start(zone=ZONE, filters={"dyndns": filter_command("dyndns", *flags)})
    assert attempt(server, DYNAMIC).said == reply


@pytest.mark.parametrize(
    ("flags", "source", "stage"),
    [
        (("--allow", "{ 192.0.2.0/28 }"), DYNAMIC, ""),
        (("--allow", "2001:db8::8"), DYNAMIC6, ""),
        (("--allow", "192.0.2.9"), DYNAMIC, "connect"),
        (("--allow-names", "*.dyn.example"), DYNAMIC, ""),
        (("--patterns", "^mail[.]"), GOOD, "connect"),
        (("--patterns", "^mail[.]", "--no-embedded"), DYNAMIC, ""),
        (("--extra-patterns", "{ ^mail[.], ^liar }"), GOOD, "connect"),
        (("--extra-patterns", "{ ^mail[.], ^liar }"), DYNAMIC, "connect"),
    ],
)
def test_what_is_dynamic(start: Start, flags: tuple[str, ...], source: str, stage: str) -> None:
    command = filter_command("dyndns", "--action", "reject", *flags)
    server = start(zone=ZONE, filters={"dyndns": command})
    assert attempt(server, source).stage == stage


# -- fcrdns and a DNS that fails -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        ("connect", "421 4.4.3 Temporary failure, please try again later"),
        ("mail-from", "451 4.4.3 Temporary failure, please try again later"),
    ],
)
def test_a_broken_dns_is_no_permanent_refusal(start: Start, phase: str, said: str) -> None:
    verify = ("--verify", "--nameserver", "[::1]:53")
    flags = ("--action", "reject", "--phase", phase, "--on-error", "tempfail")
    server = start(zone=ZONE, filters={"fcrdns": filter_command("fcrdns", *flags, *verify)})
    assert attempt(server, BROKEN).said == said
    assert attempt(server, GOOD).stage == ""
    assert attempt(server, NAMELESS).code in (550, 554)
    # It recovers, and with it the client.
    server.lab.dns.zone.update(host("mended.example", BROKEN))
    assert attempt(server, BROKEN).stage == ""
    assert folders(server) == ["", ""]


@pytest.mark.parametrize("require", ["rdns", "fcrdns"])
@pytest.mark.parametrize(("phase", "code"), [("connect", 421), ("mail-from", 450)])
def test_a_broken_dns_is_no_permanent_refusal_without_verify(
    start: Start, phase: str, code: int, require: str
) -> None:
    flags = ("--action", "reject", "--phase", phase, "--require", require)
    server = start(zone=ZONE, filters={"fcrdns": filter_command("fcrdns", *flags)})
    assert attempt(server, BROKEN).said == f"{code} 4.{NAMELESS_TEXT}"
    # It recovers, and with it the client.
    server.lab.dns.zone.update(host("mended.example", BROKEN))
    assert attempt(server, BROKEN).stage == ""


@pytest.mark.parametrize("verify", [(), ("--verify", "--nameserver", "127.0.0.1")])
def test_any_name_will_do(start: Start, verify: tuple[str, ...]) -> None:
    flags = ("--require", "rdns", "--action", "reject")
    server = start(zone=ZONE, filters={"fcrdns": filter_command("fcrdns", *flags, *verify)})
    for source in (GOOD, LIAR, LIAR6, DYNAMIC6):
        assert attempt(server, source).stage == ""
    said = f"554 5.{NAMELESS_TEXT}" if verify else f"421 4.{NAMELESS_TEXT}"
    assert attempt(server, NAMELESS).said == said


def test_smtpd_itself_does_not_tell_a_broken_dns_from_no_name(start: Start, spy: Spy) -> None:
    """Never `error`, whatever fails: without --verify nobody can know better."""
    zone = {
        **ZONE,
        "3.2.0.192.in-addr.arpa": {"PTR": "half.example"},
        "half.example": {"servfail": True},
        "2.2.0.192.in-addr.arpa": {"refused": True},
    }
    server = start(zone=zone, filters={"spy": spy()})
    for source in (BROKEN, "192.0.2.3", "192.0.2.2"):
        with server.connection(source) as connection:
            assert connection.reply() is not None
    told = [line.rest.split("|")[:2] for line in spy.seen(server, "link-connect")]
    assert told == [["<unknown>", "fail"], ["half.example", "fail"], ["<unknown>", "fail"]]


def test_all_names_of_a_client_are_looked_at(start: Start) -> None:
    zone = {
        **ZONE,
        "4.2.0.192.in-addr.arpa": {"PTR": ["liar.example", "true.example"]},
        "true.example": {"A": ["192.0.2.98", "192.0.2.4"]},
    }
    verify = ("--verify", "--nameserver", "127.0.0.1")
    flags = ("--action", "reject", "--phase", "rcpt-to")
    server = start(zone=zone, filters={"fcrdns": filter_command("fcrdns", *flags, *verify)})
    outcomes = crowd(partial(attempt, server), [{"source": "192.0.2.4"}] * 10)
    assert [outcome.stage for outcome in outcomes] == [""] * 10
    assert attempt(server, LIAR).stage == "RCPT"


def test_an_address_in_place_of_a_name_is_confirmed_by_smtpd_alone(start: Start, spy: Spy) -> None:
    """smtpd looks the name up with getaddrinfo(3), which takes an address for itself."""
    zone = {**ZONE, "3.2.0.192.in-addr.arpa": {"PTR": "192.0.2.3"}}
    fcrdns = filter_command("fcrdns", "--action", "reject")
    server = start(zone=zone, filters={"spy": spy(), "fcrdns": fcrdns})
    assert attempt(server, "192.0.2.3").said == f"421 4.{LIAR_TEXT}"
    [told] = spy.seen(server, "link-connect")
    assert told.rest.startswith("192.0.2.3|pass|192.0.2.3:")


def test_a_long_name_that_smtpd_cuts_is_no_refusal(start: Start, spy: Spy) -> None:
    long = f"{'h' * 50}.outbound.good.example"
    zone = merge(ZONE, host(long, "192.0.2.3"))
    fcrdns = filter_command("fcrdns", "--action", "reject")
    server = start(zone=zone, filters={"spy": spy(), "fcrdns": fcrdns})
    assert attempt(server, "192.0.2.3").stage == ""
    [told] = spy.seen(server, "link-connect")
    assert told.rest.split("|")[:2] == [long[:64], "fail"]


def test_a_slow_dns_holds_up_nobody_else(start: Start) -> None:
    slow = {"3.2.0.192.in-addr.arpa": {"PTR": "slow.example"}, "slow.example": {"A": "192.0.2.99"}}
    verify = ("--verify", "--nameserver", "127.0.0.1", "--timeout", "1")
    flags = ("--action", "reject", "--phase", "mail-from", "--on-error", "tempfail")
    server = start(
        zone={**ZONE, **slow}, filters={"fcrdns": filter_command("fcrdns", *flags, *verify)}
    )
    with server.connection("192.0.2.3") as waiting:
        assert waiting.reply() is not None
        assert waiting.command("EHLO slow.example") is not None
        # What smtpd has found out itself it has found out by now.
        server.lab.dns.zone["slow.example"] = {"drop": True}
        waiting.send(b"MAIL FROM:<a@slow.example>\r\n")
        for _ in range(5):
            assert attempt(server).stage == ""
        reply = waiting.reply()
    assert reply is not None
    assert (reply.code, reply.text) == (451, "4.4.3 Temporary failure, please try again later")


# -- mailfrom --------------------------------------------------------------------------------------

OURS = "boss@local.example"
SPOOF_TEXT = "5.7.1 Sender address not allowed from here; please authenticate"
FOREIGN_TEXT = "5.7.1 Sender address not allowed for your user"
FROM_TEXT = "5.7.1 Address in From not allowed from here; please authenticate"
SPOOFED = b"From: The Boss <boss@local.example>\r\nSubject: money\r\n\r\nnow\r\n"


@pytest.mark.parametrize("action", ["junk", "reject", "disconnect"])
def test_a_spoofed_sender(start: Start, action: str) -> None:
    flags = ("--domains", "local.example", "--trusted", "203.0.113.0/24", "--action", action)
    server = start(zone=ZONE, filters={"mailfrom": filter_command("mailfrom", *flags)})
    for source in (GOOD, GOOD6, NAMELESS):
        assert attempt(server, source).stage == ""
        assert attempt(server, source, sender="").stage == ""
    assert attempt(server, "203.0.113.7", sender=OURS).stage == ""
    assert attempt(server, GOOD6, sender=OURS, user="bob").stage == ""
    server.submit(LOCAL, OURS, ALICE)
    assert folders(server) == [""] * 9
    for source in (GOOD, GOOD6):
        for sender in (OURS, "BOSS@Local.Example", "@relay.example:boss@local.example"):
            outcome = attempt(server, source, sender=sender)
            if action == "junk":
                assert outcome.stage == ""
            else:
                assert outcome == Outcome("MAIL", 550, SPOOF_TEXT, stayed=action == "reject")
    assert folders(server)[9:] == ["Junk"] * (6 if action == "junk" else 0)


def test_users_may_use_their_own_addresses(start: Start) -> None:
    files = {"senders": "alice alice@local.example, @alice.example\nbob bob@local.example\n"}
    flags = ("--domains", "local.example", "--senders", file_path("senders"))
    server = start(zone=ZONE, files=files, filters={"mailfrom": filter_command("mailfrom", *flags)})
    for user, sender, code in (
        ("alice", "alice@local.example", 250),
        ("alice", "Anything@Alice.Example", 250),
        ("alice", "bob@local.example", 550),
        ("alice", SENDER, 550),
        ("alice", "", 250),
        ("bob", "bob@local.example", 250),
        ("bob", "alice@local.example", 550),
    ):
        outcome = attempt(server, sender=sender, user=user)
        assert outcome.code == code, (user, sender)
        if code == 550:
            assert outcome == Outcome("MAIL", 550, FOREIGN_TEXT, stayed=True)
    assert attempt(server, sender="alice@local.example").text == SPOOF_TEXT


BARE_FROM = b"From: bob\r\nSubject: hello\r\n\r\nbody\r\n"


def test_a_users_address_is_completed_as_smtpd_does(start: Start) -> None:
    """What the filter takes for a user's address is what smtpd's own `senders` takes for one."""
    files = {"senders": "bob bob@mail.local.example, bob@xn--bcher-kva.example, @sales.example\n"}
    command = filter_command("mailfrom", "--senders", file_path("senders"), "--check-header")
    server = start(
        zone=ZONE,
        files=files,
        declarations=f"table allowed file:{file_path('senders')}\n"
        f'filter "own" proc-exec "{command}"',
        listeners="listen on socket\n"
        'listen on 127.0.0.1 port 25 $tls auth <credentials> hostname "mail.local.example" '
        'filter "own"\n'
        'listen on ::1 port 25 $tls auth <credentials> hostname "mail.local.example" '
        "senders <allowed>\n",
    )
    for sender, taken in (
        ("bob", True),
        ("bob@mail.local.example", True),
        ("BOB@XN--BCHER-KVA.EXAMPLE", True),
        ("anybody@Sales.example", True),
        ("alice", False),
        ("bob@mx.local.example", False),
        ("bob@local.example", False),
    ):
        ours = attempt(server, sender=sender, user="bob", message=BARE_FROM)
        its_own = attempt(server, GOOD6, sender=sender, user="bob", message=BARE_FROM)
        assert (ours.stage, its_own.stage) == (("", "") if taken else ("MAIL", "MAIL")), sender
    delivered = [mail.content for mail in server.maildir("alice")]
    assert len(delivered) == 8
    assert all(b"\nFrom: bob@mail.local.example\n" in content for content in delivered)
    foreign = BARE_FROM.replace(b"bob", b"alice")
    assert attempt(server, sender="bob", user="bob", message=foreign).code == 550


@pytest.mark.parametrize("action", ["junk", "reject", "disconnect"])
def test_a_spoofed_author(start: Start, action: str) -> None:
    flags = ("--domains", "local.example", "--check-header", "--header-action", action)
    server = start(zone=ZONE, filters={"mailfrom": filter_command("mailfrom", *flags)})
    outcome = attempt(server, message=SPOOFED)
    if action == "junk":
        assert outcome.stage == ""
    else:
        assert outcome == Outcome(".", 550, FROM_TEXT, stayed=action == "reject")
    assert attempt(server).stage == ""
    assert attempt(server, message=SPOOFED, user="alice").stage == ""
    server.submit(local(SPOOFED), SENDER, ALICE)
    expected = ["", "", ""]
    assert folders(server) == (["Junk", *expected] if action == "junk" else expected)


# -- trace -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("detail", ["none", "sessions", "commands", "headers", "all"])
def test_what_is_traced(start: Start, detail: str) -> None:
    """Everything from its level on, and at no level a password."""
    server = start(zone=ZONE, filters={"trace": filter_command("trace", "--detail", detail)})
    with server.client(GOOD) as client:
        client.starttls()
        client.login("alice", password("alice"), initial_response_ok=False)
        client.sendmail(SENDER, [ALICE], MESSAGE)
    if detail != "none":
        # Some 70 lines wait for smtpd at a time; what comes then is not logged.
        logged(server, " trace link-disconnect", 1)
    with server.connection(GOOD) as connection:
        connection.reply()
        connection.command("EHLO client.example")
        # Refused without TLS. Some clients go on all the same; smtpd takes that for commands.
        for line in ("AUTH LOGIN", _base64("alice"), _base64(password("alice"))):
            reply = connection.command(line)
            assert reply is not None
            assert reply.code >= 500
        connection.starttls()
        connection.command("EHLO client.example")
        for line in ("AUTH LOGIN", _base64("alice"), _base64(password("alice"))):
            reply = connection.command(line)
        assert reply is not None
        assert reply.code == 235
        connection.command("QUIT")
    assert len(server.maildir("alice")) == 1
    if detail != "none":
        logged(server, " trace link-disconnect", 2)
    shown = "\n".join(named(server, "trace"))
    marks = {
        "sessions": (" trace link-connect rdns=mail.good.example ", " trace tx-commit "),
        "commands": (" trace protocol-client ", " trace filter-response"),
        "headers": ('"From: someone@good.example"',),
        "all": (" trace asked phase=starttls", "line=hello"),
    }
    levels = ["none", *marks]
    for level, texts in marks.items():
        # The lines of a header are lines of a message.
        due = levels.index(level) <= levels.index(detail)
        assert [text in shown for text in texts] == [due] * len(texts), level
    for secret in (password("alice"), password("alice")[1:]):
        assert secret not in shown
    for start_at in range(3):  # base64 of it, wherever it begins
        inner = base64.b64encode(b"\0" * start_at + password("alice").encode())[4:-4].decode()
        assert inner not in shown


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# -- sessions --------------------------------------------------------------------------------------


def test_several_transactions_in_one_connection(start: Start) -> None:
    """A refusal is of its transaction, and of no other; so is the mark of junk."""
    flags = ("--domains", "local.example", "--check-header")
    server = start(zone=ZONE, filters={"mailfrom": filter_command("mailfrom", *flags)})
    with server.connection(GOOD) as connection:
        connection.reply()
        connection.command("EHLO client.example")
        assert transact(connection).stage == ""
        assert transact(connection, OURS).said == f"550 {SPOOF_TEXT}"
        assert transact(connection, "").stage == ""
        assert transact(connection, message=SPOOFED).said == f"550 {FROM_TEXT}"
        assert transact(connection, recipients=(ALICE, BOB)).stage == ""
        connection.command(f"MAIL FROM:<{SENDER}>")
        connection.command("RSET")
        assert transact(connection).stage == ""
    assert folders(server) == [""] * 4
    assert folders(server, "bob") == [""]


@pytest.mark.parametrize(
    "where",
    [
        "envelope",
        "header",
    ],
)
def test_junk_is_one_message_of_a_connection(start: Start, where: str) -> None:
    flags = ("--domains", "local.example", "--check-header", "--action", "junk")
    server = start(zone=ZONE, filters={"mailfrom": filter_command("mailfrom", *flags)})
    with server.connection(GOOD) as connection:
        connection.reply()
        connection.command("EHLO client.example")
        assert transact(connection).stage == ""
        if where == "envelope":
            assert transact(connection, OURS).stage == ""
        else:
            assert transact(connection, message=SPOOFED).stage == ""
        server.settle()
        assert transact(connection).stage == ""
    assert folders(server) == ["", "Junk", ""]


def test_fifty_sessions_at_once(start: Start) -> None:
    """Half of them with TLS; each gets the answer that is due to it."""
    filters = {
        "dyndns": filter_command("dyndns"),
        "fcrdns": filter_command(
            *("fcrdns", "--verify", "--nameserver", "127.0.0.1"),
            *("--action", "reject", "--phase", "rcpt-to"),
        ),
        "mailfrom": filter_command("mailfrom", "--domains", "local.example", "--check-header"),
    }
    server = start(zone=ZONE, filters=filters)
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("", {"source": GOOD}),
        ("", {"source": DYNAMIC6, "user": "bob"}),
        ("RCPT", {"source": LIAR}),
        ("RCPT", {"source": NAMELESS6}),
        ("MAIL", {"source": GOOD6, "sender": OURS}),
        (".", {"source": GOOD6, "message": SPOOFED}),
        ("", {"source": DYNAMIC}),
        ("", {"source": LIAR6, "sender": OURS, "user": "alice"}),
        ("", {"source": GOOD, "sender": ""}),
        ("", {"source": GOOD, "recipients": (ALICE, BOB)}),
    ]
    outcomes = crowd(partial(attempt, server), [client for _, client in kinds] * 5)
    assert [outcome.stage for outcome in outcomes] == [stage for stage, _ in kinds] * 5
    assert sorted(folders(server)) == [""] * 20 + ["Junk"] * 10
    assert folders(server, "bob") == [""] * 5


@pytest.mark.parametrize("user", ["alice", None])
def test_tls_and_the_user_are_on_the_session(start: Start, user: str | None) -> None:
    seen = policy("seen", "--into", scratch_path("seen"))
    server = start(zone=ZONE, filters={"seen": seen})
    assert attempt(server, user=user).stage == ""
    first, last = server.scratch("seen").decode().splitlines()
    tls = r"TLSv1\.[23]:\S+:\d+" if user else "None"
    assert re.fullmatch(rf"mail-from tls={tls} username={user} EHLO client.example", first)
    assert re.fullmatch(rf"commit sender={SENDER} recipients=\['{ALICE}'\]", last)


def test_filters_in_a_chain(start: Start) -> None:
    """The client gets the first refusal, even if other filters would refuse as well."""
    filters = {
        "fcrdns": filter_command("fcrdns", "--phase", "mail-from", "--action", "reject"),
        "mailfrom": filter_command("mailfrom", "--domains", "local.example"),
    }
    server = start(zone=ZONE, filters=filters)
    assert attempt(server, LIAR, sender=OURS).said == f"450 4.{LIAR_TEXT}"
    assert attempt(server, GOOD, sender=OURS).said == f"550 {SPOOF_TEXT}"
    assert len(logged(server, "^mailfrom: .* result=reject ", 1)) == 1
    assert not [line for line in named(server, "mailfrom") if "liar" in line]


# -- life ------------------------------------------------------------------------------------------


def test_tables_are_reloaded(start: Start) -> None:
    flags = ("--allow", f"file:{file_path('allow')}", "--action", "reject")
    server = start(
        zone=ZONE,
        files={"allow": "# nobody yet\n"},
        filters={"dyndns": filter_command("dyndns", *flags)},
    )
    assert attempt(server, DYNAMIC).stage == "connect"
    server.write("allow", f"{DYNAMIC}\n")
    assert attempt(server, DYNAMIC).stage == "connect"
    server.signal_filter("dyndns", signal.SIGHUP)
    server.wait_for("dyndns reload table=allow result=ok")
    assert attempt(server, DYNAMIC).stage == ""
    since = len(server.log)
    server.write("allow", f"{DYNAMIC6}\nnonsense\n")
    server.signal_filter("dyndns", signal.SIGHUP)
    found = server.wait_for(r"dyndns reload .*", since=since)[0]
    assert "allow:2: " in found
    assert " result=kept file=/srv/lab/files/allow entries=1" in found
    assert attempt(server, DYNAMIC).stage == ""
    assert attempt(server, DYNAMIC6).stage == "connect"


def test_filters_end_with_the_server(start: Start) -> None:
    server = start(
        zone=ZONE,
        filters={
            "dyndns": filter_command("dyndns"),
            "fcrdns": filter_command("fcrdns", "--verify", "--nameserver", "127.0.0.1"),
        },
    )
    with server.connection(GOOD) as connection:
        connection.reply()  # a session that is open doesn't hold them up
        server.terminate()
    assert server.leftovers == []
    assert not [line for line in named(server, "dyndns") + named(server, "fcrdns") if "bug" in line]


def test_a_filter_that_is_killed_takes_the_server_with_it(start: Start) -> None:
    """Why no filter of ours may ever die."""
    server = start(filters={"dyndns": filter_command("dyndns")})
    with server.connection() as connection:
        assert connection.reply() is not None
        server.signal_filter("dyndns", signal.SIGKILL)
        server.expect_end()
        assert connection.reply() is None


@pytest.mark.parametrize("number", [signal.SIGPIPE, signal.SIGUSR1, signal.SIGALRM])
def test_stray_signals(start: Start, number: int) -> None:
    server = start(zone=ZONE, filters={"dyndns": filter_command("dyndns")})
    for _ in range(3):
        server.signal_filter("dyndns", number)
        assert attempt(server, DYNAMIC).stage == ""


def test_a_filter_that_is_stopped_for_a_while(start: Start) -> None:
    server = start(zone=ZONE, filters={"dyndns": filter_command("dyndns")})
    with server.connection(DYNAMIC) as connection:
        server.signal_filter("dyndns", signal.SIGSTOP)
        server.signal_filter("dyndns", signal.SIGCONT)
        assert connection.reply() is not None
    assert attempt(server, DYNAMIC).stage == ""


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--acton", "junk"), 'filter-dyndns: unknown flag --acton, did you mean "--action"[?]'),
        (("--action", "bounce"), "filter-dyndns: --action: .*bounce.*"),
        (("--allow", f"file:{file_path('missing')}"), "filter-dyndns: --allow: /.*/missing: .*"),
        (("--reply", "250 fine"), "filter-dyndns: --reply: .*"),
        (("--allow", file_path("bad")), "filter-dyndns: --allow: .*bad:2: .*"),
    ],
)
def test_a_wrong_flag_keeps_the_server_from_starting(
    start: Start, flags: tuple[str, ...], line: str
) -> None:
    with pytest.raises(LabError, match="did not start") as failure:
        start(
            files={"bad": "192.0.2.1\nnonsense\n"},
            filters={"dyndns": filter_command("dyndns", *flags)},
        )
    logged = [text for text in str(failure.value).split("\n") if text.startswith("dyndns: ")]
    assert len(logged) == 1, logged
    assert re.fullmatch(f"dyndns: {line}", logged[0])


def test_help_is_not_a_filter(start: Start) -> None:
    server = start()
    shown = server.lab.run("/srv/lab/bin/filter-dyndns", "--help")
    assert b"--allow-names" in shown.stdout
