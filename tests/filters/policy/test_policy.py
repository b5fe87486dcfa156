"""filter-policy with a scripted server: what it is asked, and what becomes of its actions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.filters.policy import Policy
from smtpd_filters.filters.policy.servers import SERVER
from smtpd_filters.runtime.probes import ask
from smtpd_filters.testing import Conversation
from smtpd_filters.testing.client import Delivery
from tests.filters.executables import complaint
from tests.filters.policy.scripted import Scripted, action

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from smtpd_filters.testing import Client, Verdict

#: As declared by the client, and as measured: the message without the server's own fields is less.
DECLARED = 12345
MESSAGE = b"Subject: test\r\n\r\nbody\r\n"
EVERY = ("connect", "helo", "mail-from", "rcpt-to", "data", "end-of-message")


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as server:
        yield server


def stages(*names: str) -> list[str]:
    return [word for name in names for word in ("--at", name)]


def conversation(server: Scripted, *flags: str) -> Conversation:
    return Conversation(Policy, "--server", server.name, *flags)


def greeted(smtpd: Conversation, user: str = "", **more: Any) -> Client:
    client = smtpd.connect(**more)
    client.ehlo("mail.example.net")
    if user:
        client.auth(user)
    return client


def rcpt(client: Client) -> Verdict:
    client.mail_from("alice@example.net")
    return client.rcpt_to("bob@example.org")


def states(server: Scripted) -> list[str]:
    return [request["protocol_state"] for request in server.seen]


def test_every_stage_and_what_it_says(server: Scripted) -> None:
    with conversation(server, *stages(*EVERY), "--context", "mx") as smtpd:
        client = greeted(smtpd)
        client.mail_from("alice@example.net", parameters=f"SIZE={DECLARED} BODY=8BITMIME")
        client.rcpt_to("bob@example.org")
        client.rcpt_to("carol@example.org")
        client.message(MESSAGE)
        client.quit()
    assert states(server) == [
        "CONNECT", "EHLO", "MAIL", "RCPT", "RCPT", "DATA", "END-OF-MESSAGE"
    ]  # fmt: skip
    connect, ehlo, mail, first, second, data, end = server.seen
    assert (connect["helo_name"], connect["protocol_name"]) == ("", "SMTP")
    assert (ehlo["helo_name"], ehlo["protocol_name"]) == ("mail.example.net", "ESMTP")
    assert (mail["sender"], mail["recipient"], mail["queue_id"]) == ("alice@example.net", "", "")
    assert first["recipient"] == "bob@example.org"
    assert (second["recipient"], second["recipient_count"]) == ("carol@example.org", "0")
    assert first["queue_id"] == second["queue_id"] != ""
    # More than one recipient: none is named.
    assert (data["recipient"], data["recipient_count"]) == ("", "2")
    assert (end["sender"], end["recipient"], end["recipient_count"]) == (
        "alice@example.net", "", "2"
    )  # fmt: skip
    assert connect["size"] == ehlo["size"] == "0"
    assert mail["size"] == first["size"] == data["size"] == str(DECLARED)
    assert len(MESSAGE) - 4 <= int(end["size"]) < 1000
    for request in server.seen:
        assert request["policy_context"] == "mx"
        assert request["client_address"] == mail["client_address"] != ""
    assert len({each["instance"] for each in (mail, first, second, data, end)}) == 1
    assert len({number for number, _ in server.requests}) == 1  # kept


def test_each_message_of_a_session_is_an_instance(server: Scripted) -> None:
    for at in (["rcpt-to"], ["mail-from", "rcpt-to"]):
        server.requests.clear()
        with conversation(server, *stages(*at)) as smtpd:
            client = greeted(smtpd)
            for recipients in (["a@x.example", "b@x.example"], ["a@x.example"]):
                client.mail_from("alice@example.net")
                for each in recipients:
                    client.rcpt_to(each)
                client.message(MESSAGE)
            client.mail_from("alice@example.net")
            client.rset()
            client.mail_from("")
            client.rcpt_to("c@x.example")
        rcpts = [each for each in server.seen if each["protocol_state"] == "RCPT"]
        assert [each["sender"] for each in rcpts] == ["alice@example.net"] * 3 + [""]
        one, two, three, four = (each["instance"] for each in rcpts)
        assert one == two
        assert len({one, three, four}) == 3


def test_the_only_recipient_is_named_at_data(server: Scripted) -> None:
    with conversation(server, *stages("data")) as smtpd:
        client = greeted(smtpd)
        client.mail_from("")
        client.rcpt_to("bob@example.org")
        client.rcpt_to("nobody@example.org", accepted=False)
        client.data()
    [data] = server.seen
    assert (data["recipient"], data["recipient_count"]) == ("bob@example.org", "1")


def test_addresses_have_the_domain_that_smtpd_gives_them(server: Scripted) -> None:
    """Else a client could choose a recipient for whom the server has no quota."""
    with conversation(server, *stages("mail-from", "rcpt-to", "data")) as smtpd:
        client = greeted(smtpd)
        client.mail_from("alice")
        client.rcpt_to("bob")
        client.data()
    asked = [(each["sender"], each["recipient"]) for each in server.seen]
    assert asked == [
        ("alice@mx.example.org", ""),
        *[("alice@mx.example.org", "bob@mx.example.org")] * 2,
    ]


def test_who_has_logged_in_over_tls(server: Scripted) -> None:
    with conversation(server, "--exempt", "socket") as smtpd:
        client = smtpd.connect(tls="TLSv1.3:TLS_AES_256_GCM_SHA384:256")
        client.ehlo("mail.example.net")
        client.auth("alice", mechanism="LOGIN")
        client.mail_from("alice@example.net", parameters="AUTH=al+40example.net")
        client.rcpt_to("bob@example.org")
    [request] = server.seen
    assert request["sasl_sender"] == "al+40example.net"
    assert (request["sasl_method"], request["sasl_username"]) == ("LOGIN", "alice")
    assert request["encryption_cipher"] == "TLS_AES_256_GCM_SHA384"


def test_users_and_this_machine_are_exempt(server: Scripted) -> None:
    server.script = lambda _: action("REJECT")
    with conversation(server, *stages(*EVERY[2:])) as smtpd:
        for client in (
            greeted(smtpd, local=True),
            greeted(smtpd, address="127.0.0.1"),
            greeted(smtpd, user="alice"),
        ):
            client.mail_from("alice@example.net")
            client.rcpt_to("bob@example.org")
            assert client.message(MESSAGE).unchanged
    assert not server.seen


def test_a_client_on_the_socket_has_an_address(server: Scripted) -> None:
    with conversation(server, "--exempt", "authenticated") as smtpd:
        assert not rcpt(greeted(smtpd, local=True)).refused
    [request] = server.seen
    assert (request["client_address"], request["client_name"]) == ("127.0.0.1", "localhost")


def test_a_client_whose_address_is_not_known_is_not_asked_of(server: Scripted) -> None:
    with conversation(server) as smtpd:
        assert rcpt(greeted(smtpd, reported=False)).reply.startswith("451 4.3.0 ")
    assert not server.seen


@pytest.mark.parametrize(
    ("flags", "phases"),
    [
        (["--prepend", "ignore"], {"rcpt-to"}),
        ([], {"rcpt-to", "data-line", "commit"}),
        ([*stages("helo", "data"), "--prepend", "ignore"], {"helo", "ehlo", "data"}),
        (stages("end-of-message"), {"data-line", "commit"}),
    ],
)
def test_only_the_stages_that_are_asked_for(
    server: Scripted, flags: list[str], phases: set[str]
) -> None:
    with conversation(server, *flags) as smtpd:
        assert smtpd.phases == phases


# -- actions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "verb", "reply"),
    [
        ("OK", "proceed", ""),
        ("REJECT 5.1.1 no such user", "reject", "554 5.1.1 no such user"),
        ("DEFER_IF_PERMIT 4.2.0 later", "reject", "450 4.2.0 later"),
        ("552 5.2.2 Mailbox is full", "reject", "552 5.2.2 Mailbox is full"),
        ("421 4.7.0 enough", "disconnect", "421 4.7.0 enough"),
        ("HOLD", "junk", ""),
        ("DISCARD", "reject", "554 5.7.1 Access denied"),
        ("FILTER smtp:[127.0.0.1]:10025", "reject", "451 4.3.5 "),
    ],
)
@pytest.mark.parametrize("at", ["mail-from", "rcpt-to", "data", "end-of-message"])
def test_actions_at_each_stage(server: Scripted, at: str, said: str, verb: str, reply: str) -> None:
    server.script = lambda _: action(said)
    with conversation(server, *stages(at)) as smtpd:
        client = greeted(smtpd)
        verdict = client.mail_from("alice@example.net")
        if at != "mail-from":
            verdict = client.rcpt_to("bob@example.org")
        if at == "data":
            verdict = client.data()
        elif at == "end-of-message":
            verdict = client.message(MESSAGE)
        if verb == "junk" and at in ("mail-from", "end-of-message"):
            # Before a transaction, and after its content: the mark is made in the header.
            if at == "mail-from":
                client.rcpt_to("bob@example.org")
                verdict = client.message(MESSAGE)
            assert isinstance(verdict, Delivery)
            assert verdict.headers.get("X-Spam") == "Yes"
            return
        assert verdict.verb == verb
        assert verdict.reply.startswith(reply)


def test_the_connection_is_closed_at_connect(server: Scripted) -> None:
    server.script = lambda _: action("REJECT")
    with conversation(server, *stages("connect")) as smtpd:
        assert smtpd.connect().greeting.reply == "554 5.7.1 Access denied"


def test_fields_in_the_order_of_postfix(server: Scripted) -> None:
    said = {
        "CONNECT": "PREPEND X-Client: one",
        "MAIL": "PREPEND X-Sender: two",
        "RCPT": "PREPEND X-Recipient: three",
        "DATA": "PREPEND Bad Name: x",
        "END-OF-MESSAGE": "PREPEND X-End: four",
    }
    server.script = lambda request: action(said.get(request["protocol_state"], "DUNNO"))
    with conversation(server, *stages(*EVERY)) as smtpd:
        client = greeted(smtpd)
        for number in range(2):
            client.mail_from("alice@example.net")
            client.rcpt_to("bob@example.org")
            client.rcpt_to("carol@example.org")
            names = client.message(MESSAGE).headers.names()
            assert names[:4] == ["X-Client", "X-Sender", "X-Recipient", "X-End"], number
            assert names.count("X-Recipient") == 1
        said.clear()
        client.mail_from("alice@example.net")
        client.rcpt_to("bob@example.org")
        assert client.message(MESSAGE).headers.names()[:2] == ["X-Client", "Received"]
    assert sum("not a header field" in line for line in smtpd.log) == 1


def test_fields_of_earlier_stages_stay_if_the_last_one_fails(server: Scripted) -> None:
    server.script = lambda request: (
        action("PREPEND X-A: b") if request["protocol_state"] == "RCPT" else (b"", True)
    )
    flags = (*stages("rcpt-to", "end-of-message"), "--on-error", "proceed")
    with conversation(server, *flags) as smtpd:
        client = greeted(smtpd)
        assert not rcpt(client).refused
        assert client.message(MESSAGE).headers.get("X-A") == "b"


def test_fields_are_bounded(server: Scripted) -> None:
    server.script = lambda request: action(f"PREPEND X-{request['recipient']}: {'x' * 3000}")
    with conversation(server) as smtpd:
        client = greeted(smtpd)
        client.mail_from("alice@example.net")
        for number in range(60):
            client.rcpt_to(f"{number}@example.org")
        fields = client.message(MESSAGE).headers.names()
        assert sum(name.endswith("@example.org") for name in fields) == 10
    assert any("too many header fields" in line for line in smtpd.log)


def test_fields_may_be_ignored(server: Scripted) -> None:
    server.script = lambda _: action("PREPEND X-A: b")
    with conversation(server, "--prepend", "ignore") as smtpd:
        client = greeted(smtpd)
        assert not rcpt(client).refused
        assert client.message(MESSAGE).unchanged


def test_a_recipient_is_replaced(server: Scripted) -> None:
    server.script = lambda request: action(
        "REDIRECT postmaster@example.org" if request["recipient"].startswith("x") else "DUNNO"
    )
    with conversation(server, *stages("rcpt-to", "data")) as smtpd:
        client = greeted(smtpd)
        client.mail_from("alice@example.net")
        assert client.rcpt_to("x@example.org").parameter == "<postmaster@example.org>"
        client.message(MESSAGE)
    assert server.seen[-1]["recipient"] == "postmaster@example.org"


def test_what_is_only_logged(server: Scripted) -> None:
    server.script = lambda _: action("WARN \x07 look here")
    with conversation(server) as smtpd:
        assert not rcpt(greeted(smtpd)).refused
    [line] = [line for line in smtpd.log if "rcpt-to action=WARN" in line]
    assert "look here" in line


def test_outcomes_by_option(server: Scripted) -> None:
    server.script = lambda _: action("BCC archive@example.org")
    with conversation(server, "--action", "bcc=proceed", "--action", "Hold=reject") as smtpd:
        client = greeted(smtpd)
        assert rcpt(client).verb == "proceed"
        server.script = lambda _: action("HOLD")
        assert client.rcpt_to("carol@example.org").reply == "554 5.7.1 Access denied"


# -- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--server", "unix:private/policy"], "absolute path of a socket"),
        (["--server", "10023"], "a port"),
        (["--server", "exec:"], "exec:/PATH"),
        (["--server", "exec:policyd"], "exec:/PATH"),
        (["--server", "exec:/bin/'x"], "quotation"),
        (["--server", "exec:/nonexistent/x"], "--server: /nonexistent/x: not a program"),
        ([], "--server"),
        (["--server", "x:1", "--at", "commit"], "invalid choice"),
        (["--server", "x:1", "--action", "hold=rewrite"], "redirect"),
        (["--server", "x:1", "--action", "reject=junk"], "ACTION=OUTCOME"),
        (["--server", "x:1", "--action", "hold=junk", "--action", "hold=reject"], "given twice"),
    ],
)
def test_mistakes_in_the_settings(flags: list[str], words: str) -> None:
    assert words in complaint("policy", *flags)


@pytest.mark.parametrize("prefix", ["", "inet:"])
def test_notations_of_a_port(server: Scripted, prefix: str) -> None:
    with Conversation(Policy, "--server", f"{prefix}{server.name}") as smtpd:
        assert not rcpt(greeted(smtpd)).refused
    assert len(server.seen) == 1


@pytest.mark.parametrize("prefix", ["", "unix:"])
def test_notations_of_a_socket(tmp_path: Path, prefix: str) -> None:
    with Scripted(tmp_path / "s") as server:
        with Conversation(Policy, "--server", f"{prefix}{server.name}") as smtpd:
            assert not rcpt(greeted(smtpd)).refused
        assert len(server.seen) == 1


def test_a_port_alone_is_one_of_this_machine(server: Scripted) -> None:
    with Conversation(Policy, "--server", f"inet:{server.port}") as smtpd:
        assert not rcpt(greeted(smtpd)).refused
    assert len(server.seen) == 1


@pytest.mark.processes
def test_each_server_is_asked_by_check_online(
    server: Scripted, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    mute = Scripted(tmp_path / "mute", script=lambda _: b"")
    request.addfinalizer(mute.stop)

    async def run(*names: str, seconds: float) -> list[str]:
        servers = tuple(map(SERVER.parse, names))
        filter_ = Policy(Policy.Options(server=servers, context="x", timeout=seconds))
        try:
            answers = await ask(Policy._client.probes(filter_))
        finally:
            await filter_._client.aclose()
        assert len(answers) == len(names)
        return [f"{each.subject}: {each.fault}" for each in answers]

    names = (server.name, "/nonexistent", "exec:/bin/cat")
    assert asyncio.run(run(*names, seconds=30)) == [
        f"policy server {server.name}: ",
        "policy server /nonexistent: no such file or directory; does it run, and listen there?",
        "policy server /bin/cat: not an action: 'request=smtpd_access_policy'",
    ]
    said = asyncio.run(run(mute.name, seconds=0.1))
    assert said == [f"policy server {mute.name}: timeout"]
    [asked] = server.seen
    assert (asked["protocol_state"], asked["client_address"]) == ("CONNECT", "127.0.0.1")
    assert (asked["sender"], asked["recipient"], asked["policy_context"]) == ("", "", "x")
