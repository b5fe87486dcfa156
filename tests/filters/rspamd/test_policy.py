from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters import PROCEED, Message, Proceed, Session
from smtpd_filters.checks.exemptions import EXEMPT, Exempt
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.rspamd import Rspamd
from smtpd_filters.filters.rspamd.kinds import ACTION
from smtpd_filters.lookups.http import zstd
from smtpd_filters.scanning.intake import SMALL
from smtpd_filters.scoring.rules import FilterRules, Rules, RuleSettings
from smtpd_filters.settings import from_mapping
from smtpd_filters.testing import Conversation, Delivery
from smtpd_filters.testing.rspamd.stub import BEHAVIOURS, CLEAN, Answer, RspamdStub
from tests.effort import brief, part
from tests.loading import loaded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from smtpd_filters.testing import Client

LATER = "451 4.3.0 Temporary failure, please try again later"
#: How the line of such a refusal ends.
SAID = f' reply="{LATER}"'
MESSAGE = b"From: bob@example.net\r\nSubject: hello\r\n\r\nbody\r\n"
ROOT = Path(__file__).parents[3]

try:
    CODEC = zstd.load()
except ConfigError:
    CODEC = None  # type: ignore[assignment]
needs_zstd = pytest.mark.skipif(CODEC is None, reason="needs Python 3.14 or zstandard")


def said(**changes: Any) -> dict[str, Any]:
    """A reply of the daemon's."""
    return {**CLEAN, **changes}


@pytest.fixture
def stub() -> Iterator[RspamdStub]:
    with RspamdStub() as server:
        yield server


def deliver(
    smtpd: Conversation, content: bytes = MESSAGE, user: str = "", **client: Any
) -> Delivery:
    there = smtpd.connect(**client)
    there.ehlo()
    if user:
        there.auth(user)
    return send(there, content)


def send(client: Client, content: bytes = MESSAGE) -> Delivery:
    client.mail_from("bob@example.net")
    client.rcpt_to("anna@example.org")
    return client.message(content)


def scanned(stub: RspamdStub, *flags: str, content: bytes = MESSAGE, **client: Any) -> Delivery:
    with Conversation(Rspamd, "-url", stub.url, *flags) as smtpd:
        return deliver(smtpd, content, **client)


def logged(smtpd: Conversation) -> list[str]:
    """The log, without sessions and times."""
    return [line.partition(" ")[2].partition(" took=")[0] for line in smtpd.log]


# -- what is scanned -----------------------------------------------------------------------


def test_the_flags_of_the_filter_that_has_had_this_name() -> None:
    with Conversation(Rspamd, "-settings-id", "outgoing") as smtpd:
        settings: Any = smtpd.filters[0].settings
        assert settings.url == ("http://localhost:11333",)
        assert settings.settings_id == "outgoing"


def test_a_clean_message_passes_as_it_came(stub: RspamdStub) -> None:
    with Conversation(Rspamd, "-url", stub.url, "-settings-id", "out") as smtpd:
        delivery = deliver(smtpd)
        assert delivery.verb == "proceed"
        assert delivery.unchanged
        assert logged(smtpd) == ['rspamd message result=proceed reason="no action, score 0/15"']
    (request,) = stub.requests
    assert request.body == b"".join(line + b"\n" for line in delivery.sent)
    assert request.get("Settings-ID") == "out"
    assert request.get("MTA-Name") == "mx.example.org"
    assert request.get("Rcpt") == "<anna@example.org>"
    assert request.get("Pass") is None


@pytest.mark.parametrize(
    "content",
    [
        b"Subject: x\r\n\r\n.\r\n..\r\n.dot\r\nno dot.\r\n",
        b"Subject: x\r\n\r\n" + bytes(sorted(set(range(256)) - {10, 13})) + b"\r\n",
        b"Subject: x\r\n",
        b"",
        b"\r\nonly a body\r\n",
        b"Subject: x\r\n\r\n" + b"\r\n" * 100,
        b"Subject: x\r\n\r\n" + b"x" * 2000 + b"\r\n",
    ],
    ids=["dots", "binary", "no body", "empty", "no header", "empty lines", "long line"],
)
def test_the_daemon_sees_every_byte(stub: RspamdStub, content: bytes) -> None:
    delivery = scanned(stub, content=content)
    assert delivery.verb == "proceed"
    assert delivery.unchanged
    assert stub.requests[0].body == b"".join(line + b"\n" for line in delivery.sent)


def test_addresses_are_completed_as_smtpd_does_it(stub: RspamdStub) -> None:
    content = (
        b"From: root (Charlie)\r\nTo: anna,\r\n\tbob@example.net\r\nSubject: x\r\n\r\n.body\r\n"
    )
    delivery = scanned(stub, content=content)
    (request,) = stub.requests
    assert request.body.endswith(
        b"\nFrom: root@mx.example.org (Charlie)\nTo: anna@mx.example.org,\n\tbob@example.net\n"
        b"Subject: x\n\n.body\n"
    )
    assert delivery.bytes == request.body
    assert delivery.content == delivery.delivered


@pytest.mark.parametrize("end", [b"", b"x\r\n" * SMALL])
def test_no_field_is_hidden_by_a_stray_cr(stub: RspamdStub, end: bytes) -> None:
    """Rspamd 3.4 ends the header at two of them; smtpd delivers them within it."""
    content = b"X: a\r\rb\r\r\r\n\tc\r\r\nFrom: bob@example.net\r\n\r\nbo\rdy\r\n" + end
    delivery = scanned(stub, content=content)
    assert b"\nX: a  b  \n\tc \nFrom: bob@example.net\n\nbo\rdy\n" in stub.requests[0].body
    assert delivery.bytes == stub.requests[0].body


def test_what_is_not_scanned_is_not_completed(stub: RspamdStub) -> None:
    delivery = scanned(stub, "--skip", "192.0.2.1", content=b"To: root\r\n\r\nbody\r\n")
    assert delivery.unchanged
    assert delivery.headers.get("To") == "root@mx.example.org"  # by smtpd


MBOX = b"From bob@example.net Mon Sep 17 00:00:00 2001\r\n"


@pytest.mark.parametrize("size", [10, SMALL])
def test_a_line_that_begins_an_mbox_file_is_not_scanned(stub: RspamdStub, size: int) -> None:
    body = b"From bob\r\n" + b"x\r\n" * size
    delivery = scanned(stub, content=MBOX + b"From : b@c.example\r\nSubject: x\r\n\r\n" + body)
    assert delivery.unchanged
    (request,) = stub.requests
    assert request.body.splitlines() == [
        line for line in delivery.sent if line not in MBOX.splitlines()
    ]
    assert b"\nFrom : b@c.example\n" in request.body


def test_no_content_hides_behind_the_line_of_an_mbox_file(stub: RspamdStub) -> None:
    """To some programs the line ends the header: what continues it would be the body."""
    delivery = scanned(stub, content=MBOX + b" <html>hidden\r\nSubject: x\r\n\r\nbody\r\n")
    (request,) = stub.requests
    assert request.body.splitlines() == list(delivery.sent)


@pytest.mark.parametrize("size", [SMALL - 400, SMALL, 300_000, 3 << 20])
def test_a_large_message_is_read_as_it_is_sent(stub: RspamdStub, size: int) -> None:
    line = b".0123456789" * 7 + b"\r\n"
    content = b"Subject: large\r\n\r\n" + line * (size // len(line))
    delivery = scanned(stub, content=content)
    assert delivery.unchanged
    (request,) = stub.requests
    assert request.body == b"".join(line + b"\n" for line in delivery.sent)
    assert request.get("Content-Length") == str(len(request.body))


def test_connections_are_kept(stub: RspamdStub) -> None:
    with Conversation(Rspamd, "-url", stub.url) as smtpd:
        for _ in range(5):
            assert deliver(smtpd).verb == "proceed"
    assert (stub.asked, stub.connections) == (5, 1)


def test_a_socket_that_goes_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "rspamd.sock"
    stub = RspamdStub(listen=str(path))
    with Conversation(Rspamd, "-url", str(path)) as smtpd:
        assert deliver(smtpd).reply == LATER
        for _ in range(2):
            with stub:
                assert deliver(smtpd).verb == "proceed"
            assert deliver(smtpd).reply == LATER
        path.write_bytes(b"")
        assert deliver(smtpd).reply == LATER
        causes = [line.partition(" cause=")[2] for line in logged(smtpd) if " cause=" in line]
    assert causes[0] == f'"{path} no such file or directory"{SAID}'
    # With what is said of the same again.
    assert {cause.removesuffix(SAID) for cause in causes[1:]} >= {f'"{path} connection refused"'}


def test_a_daemon_on_a_socket(tmp_path: Path) -> None:
    with RspamdStub(listen=str(tmp_path / "rspamd.sock")) as stub:
        assert scanned(stub).verb == "proceed"
        assert stub.asked == 1


# -- facts in the request -------------------------------------------------------------------


def test_facts_of_the_session(stub: RspamdStub) -> None:
    with Conversation(Rspamd, "-url", stub.url) as smtpd:
        client = smtpd.connect("mail.example.com", "2001:db8::1")
        client.ehlo("first.example.com")
        client.tls("TLSv1.3:TLS_AES_256_GCM_SHA384:256")
        client.ehlo("helo.example.com")
        client.auth("anna")
        send(client)
    (request,) = stub.requests
    for name, value in {
        "IP": "2001:db8::1",
        "Hostname": "mail.example.com",
        "Helo": "helo.example.com",
        "User": "anna",
        "TLS-Version": "TLSv1.3",
        "TLS-Cipher": "TLS_AES_256_GCM_SHA384",
        "From": "<bob@example.net>",
    }.items():
        assert request.get(name) == value


def test_addresses_without_a_domain_are_of_the_listener(stub: RspamdStub) -> None:
    with Conversation(Rspamd, "-url", stub.url, admd="other.example") as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("root")
        client.rcpt_to("anna")
        client.message(MESSAGE)
    (request,) = stub.requests
    assert request.get("From") == "<root@mx.example.org>"
    assert request.get("Rcpt") == "<anna@mx.example.org>"
    assert request.get("MTA-Name") == "other.example"


def test_a_failed_authentication_sends_no_user(stub: RspamdStub) -> None:
    with Conversation(Rspamd, "-url", stub.url) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.auth("anna", ok=False)
        send(client)
    assert stub.requests[0].get("User") is None


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--authserv-id", "mx"], "MTA-Name", "mx"),
        (["--mta-tag", "tag"], "MTA-Tag", "tag"),
        (["--pass-all"], "Pass", "all"),
        (["--deliver-to"], "Deliver-To", "anna@example.org"),
        ([], "Flags", "milter,body_block"),
    ],
)
def test_facts_by_option(stub: RspamdStub, flags: list[str], name: str, value: str) -> None:
    scanned(stub, *flags)
    assert stub.requests[0].get(name) == value


def test_a_password_is_sent_and_never_shown(stub: RspamdStub, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("q1 q2\nsecond line\n")
    file.chmod(0o600)
    with Conversation(Rspamd, "-url", stub.url, "--password-file", str(file)) as smtpd:
        deliver(smtpd)
        stub.answer = Answer(b'{"error": "q1 is wrong"}', status=403)
        deliver(smtpd)
        assert "q1 q2" not in "".join(smtpd.log)
    assert stub.requests[0].get("Password") == "q1 q2"


def test_recipients_left_out_are_logged(stub: RspamdStub) -> None:
    with Conversation(Rspamd, "-url", stub.url) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("bob@example.net")
        for n in range(400):
            client.rcpt_to(f"{'x' * 200}{n}@example.org")
        assert client.message(MESSAGE).verb == "proceed"
        assert "recipients left out" in smtpd.log[0]
    told = len(stub.requests[0].get_all("Rcpt"))
    assert 200 < told < 400


# -- what is done with a reply -------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "refusal"),
    [
        ({"action": "reject"}, "554 5.7.1 Spam message rejected"),
        ({"action": "soft reject"}, "451 4.7.1 Try again later"),
        (
            {"action": "reject", "messages": {"smtp_message": "Gtube\r\n250 ok \u00fc"}},
            "554 5.7.1 Gtube 250 ok ?",
        ),
        ({"action": "greylist"}, ""),
        ({"action": "no action"}, ""),
    ],
)
def test_actions(stub: RspamdStub, reply: dict[str, Any], refusal: str) -> None:
    stub.answer = said(**reply)
    assert scanned(stub).reply == refusal


def test_score_and_symbols_are_logged(stub: RspamdStub) -> None:
    symbols = {"A": {"score": 0.5}, "B": {"score": 12}, "C": {"score": 0.0}}
    stub.answer = said(action="reject", score=12.5, symbols=symbols)
    with Conversation(Rspamd, "-url", stub.url) as smtpd:
        deliver(smtpd)
        (line,) = logged(smtpd)
        assert 'result=reject reason="reject, score 12.5/15, B(12), A(0.5)" reply="554 ' in line


def test_the_header_is_edited(stub: RspamdStub) -> None:
    stub.answer = said(
        action="rewrite subject",
        subject="[SPAM] hello",
        milter={"add_headers": {"X-Seen": "by rspamd"}, "remove_headers": {"from": 0}},
    )
    headers = scanned(stub).headers
    assert headers.get("Subject") == "[SPAM] hello"
    assert headers.get("X-Seen") == "by rspamd"
    assert "From" not in headers


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--headers", "minimal"], {"X-Spam"}),
        (["--headers", "extended"], {"X-Spam", "X-Spam-Score", "X-Spam-Status"}),
        ([], {"X-Spam", "X-Spam-Score", "X-Spam-Status"}),
    ],
)
def test_a_message_is_marked(stub: RspamdStub, flags: list[str], names: set[str]) -> None:
    stub.answer = said(action="add header", score=7.5)
    headers = scanned(stub, *flags).headers
    assert {name for name in headers.names() if name.startswith("X-")} == names
    assert headers.get("X-Spam") == "Yes"


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        ({"action": "add header"}, "junk"),
        ({"action": "quarantine"}, "junk"),
        ({"action": "rewrite subject", "subject": "[SPAM] hello"}, "junk"),
        ({"action": "rewrite subject"}, "proceed"),
        ({"action": "add header", "milter": {"spam_header": {"X-Flag": "YES"}}}, "junk"),
        ({"action": "add header", "milter": {"no_action": True}}, "edit"),
        ({"action": "no action"}, "proceed"),
    ],
)
def test_a_mark_is_logged_as_junk(stub: RspamdStub, reply: dict[str, Any], result: str) -> None:
    stub.answer = said(**reply)
    with Conversation(Rspamd, "-url", stub.url) as smtpd:
        assert deliver(smtpd).verb == "proceed"
        assert f" message result={result} reason=" in smtpd.log[0]
    with Conversation(Rspamd, "-url", stub.url, "--dry-run") as smtpd:
        assert deliver(smtpd).unchanged
        assert ("would=junk" in smtpd.log[0]) is (result == "junk")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_new_body_takes_the_place_of_the_old_one(stub: RspamdStub, *, chunked: bool) -> None:
    new = b"new\n.\n" * 50_000
    stub.answer = Answer.of(CLEAN, new, chunked=chunked)
    delivery = scanned(stub)
    assert delivery.headers.get("Subject") == "hello"
    assert delivery.body == new


@pytest.mark.parametrize(
    ("outcome", "refusal"),
    [("accept", ""), ("junk", ""), ("reject", "554 5.7.1 "), ("tempfail", "451 4.7.1 ")],
)
def test_an_action_of_the_operators_own(stub: RspamdStub, outcome: str, refusal: str) -> None:
    stub.answer = said(action="my own = action")
    delivery = scanned(stub, "--action", f"my own = action={outcome}")
    assert delivery.reply.startswith(refusal)
    assert ("X-Spam" in delivery.headers) is (outcome == "junk")


@pytest.mark.parametrize("choice", ["log", "tempfail"])
def test_changes_of_the_envelope(stub: RspamdStub, choice: str) -> None:
    stub.answer = said(milter={"add_rcpt": ["spy@example.org"]})
    with Conversation(Rspamd, "-url", stub.url, "--envelope-changes", choice) as smtpd:
        assert deliver(smtpd).refused is (choice == "tempfail")
        assert "add_rcpt spy@example.org" in smtpd.log[0]


def test_a_dry_run_changes_nothing(stub: RspamdStub) -> None:
    with Conversation(Rspamd, "-url", stub.url, "--dry-run") as smtpd:
        for reply in ({"action": "reject"}, {"action": "add header"}):
            stub.answer = said(**reply)
            delivery = deliver(smtpd)
            assert delivery.verb == "proceed"
            assert delivery.unchanged
        stub.answer = Answer.of(CLEAN, b"new\n")
        assert deliver(smtpd).unchanged
        assert "would=reject" in smtpd.log[0]


# -- whose mail is scanned -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "client", "is_scanned"),
    [
        ([], {"user": "anna"}, True),
        (["--skip", "authenticated"], {"user": "anna"}, False),
        (["--skip", "authenticated"], {}, True),
        (["--skip", "local"], {"local": True}, False),
        (["--skip", "local"], {"address": "127.0.0.1"}, False),
        (["--skip", "local"], {}, True),
        ([], {"local": True}, True),
        (["--skip", "{ 192.0.2.0/24, 2001:db8::/32 }"], {}, False),
        (["--skip", "2001:db8::/32"], {}, True),
        (["--skip", "local", "--skip", "192.0.2.1"], {}, False),
        (["--skip", "local", "--skip", "authenticated"], {"user": "anna"}, False),
        (["--skip", "192.0.2.0/24"], {"local": True}, True),
    ],
)
def test_exempt_clients_are_not_scanned(
    stub: RspamdStub, flags: list[str], client: dict[str, Any], *, is_scanned: bool
) -> None:
    stub.answer = said(action="reject")
    assert scanned(stub, *flags, **client).refused is is_scanned
    assert stub.asked == is_scanned


def test_a_table_of_those_skipped_is_read_again(stub: RspamdStub, tmp_path: Path) -> None:
    table = tmp_path / "trusted"
    table.write_text("198.51.100.1\n")
    with Conversation(Rspamd, "-url", stub.url, "--skip", f"file:{table}") as smtpd:
        deliver(smtpd)
        assert stub.asked == 1
        table.write_text("192.0.2.1\n")
        smtpd.reload()
        deliver(smtpd)
        assert stub.asked == 1


@pytest.mark.parametrize("larger", ["skip", "tempfail"])
def test_messages_that_are_too_large(stub: RspamdStub, larger: str) -> None:
    stub.answer = said(action="reject")
    flags = ("-url", stub.url, "--max-size", "100k", "--larger", larger)
    with Conversation(Rspamd, *flags) as smtpd:
        delivery = deliver(smtpd, b"Subject: x\r\n\r\n" + (b"x" * 99 + b"\r\n") * 1024)
        assert stub.asked == 0
        expected = "451 4.3.4 Message too large to be scanned, please try again later"
        assert delivery.reply == ("" if larger == "skip" else expected)
        assert delivery.unchanged
        assert "not scanned: " in smtpd.log[0]
        assert deliver(smtpd).refused  # by the daemon
    assert stub.asked == 1


@pytest.mark.parametrize("exempt", [False, True])
def test_no_forged_result_passes_in_a_message_that_is_too_large(
    stub: RspamdStub, *, exempt: bool
) -> None:
    content = b"X-Spam-Status: No, forged\r\nSubject: x\r\n\r\n" + b"x\r\n" * 1000
    flags = ("--max-size", "1k", *(("--skip", "192.0.2.1") if exempt else ()))
    delivery = scanned(stub, *flags, content=content)
    assert stub.asked == 0
    assert ("X-Spam-Status" in delivery.headers) == exempt


# -- errors --------------------------------------------------------------------------------

ERRORS = {
    "status": Answer(b"", status=500),
    "error": Answer.of({"error": "cannot scan", "error_domain": "x"}, status=503),
    "error and 200": Answer.of({"error": "cannot scan"}),
    "not found": Answer.of(CLEAN, status=404),
    "invalid JSON": Answer(b'{"action": "no action"'),
    "no JSON": Answer(b"<html>"),
    "no object": Answer(b"[]"),
    "empty": Answer(b""),
    "no action": Answer.of({"score": 1}),
    "unknown action": Answer.of({"action": "dance"}),
    "an invalid action": Answer.of({"action": 5}),
    "bad offset": Answer.of(CLEAN, headers=(("Message-Offset", "9999"),)),
    "no offset": Answer.of(CLEAN, headers=(("Message-Offset", "x"),)),
    "strange coding": Answer.of(CLEAN, headers=(("Content-Encoding", "br"),)),
    "unasked zstd": Answer.of(CLEAN, headers=(("Compression", "zstd"),)),
    "a byte now and then": Answer.of(CLEAN, behaviour="trickle", delay=0.02),
    "oversized": Answer(b'{"action": "no action"}' + b" " * (8 << 20)),
    **{
        name: Answer.of(CLEAN, behaviour=name)
        for name in BEHAVIOURS.keys() - {"", "trickle", "early", "close-after", "stale"}
    },
}


@pytest.mark.parametrize("error", sorted(ERRORS))
def test_an_error_is_never_an_accepted_message(stub: RspamdStub, error: str) -> None:
    stub.answer = ERRORS[error]
    silent = error in {"drop", "stall", "a byte now and then"}
    flags = ("-url", stub.url, "--timeout", f"{brief(0.3)}s" if silent else "30s")
    with Conversation(Rspamd, *flags) as smtpd:
        delivery = deliver(smtpd)
        assert delivery.reply == LATER
        (line,) = smtpd.log
        assert " rspamd message result=reject cause=" in line
        why = line.partition(stub.url)[2].removeprefix(f" status {ERRORS[error].status}")
        why = why.removesuffix(SAID)
        assert not re.search("[0-9]", why)  # nothing of this message
        assert "Traceback" not in line
        # Once per cause and interval; of another session what became of it.
        deliver(smtpd)
        (again,) = logged(smtpd)[1:]
        short = line.partition(' cause="')[2].removesuffix(SAID).rstrip('"')[:60]
        assert again.removesuffix(SAID) == (
            f'rspamd message result=reject reason="failed as logged before" cause="{short}"'
        )


@pytest.mark.parametrize("error", ["status", "invalid JSON", "cut", "unknown action"])
def test_on_error_decides(stub: RspamdStub, error: str) -> None:
    stub.answer = ERRORS[error]
    delivery = scanned(stub, "--on-error", "proceed")
    assert delivery.verb == "proceed"
    assert delivery.unchanged
    delivery = scanned(stub, "--on-error", "junk")
    assert delivery.verb == "proceed"
    assert delivery.headers.get("X-Spam") == "Yes"


def test_a_daemon_that_is_not_there(stub: RspamdStub) -> None:
    stub.stop()
    with Conversation(Rspamd, "-url", stub.url) as smtpd:
        assert deliver(smtpd).reply == LATER
        cause = f'cause="{stub.url} connection refused"'
        assert logged(smtpd) == [f"rspamd message result=reject {cause}{SAID}"]
        # It comes back.
        stub.start()
        assert deliver(smtpd).verb == "proceed"


class Hasty(Rspamd):
    """A daemon gets a small part of the deadline, so that the rest suffices on any machine."""

    name = "rspamd"
    share = 0.01


def test_a_daemon_that_is_too_slow_for_the_deadline(stub: RspamdStub) -> None:
    stub.answer = Answer.of(CLEAN, behaviour="drop")
    with Conversation(Hasty, "-url", stub.url, "--deadline", "30s") as smtpd:
        assert deliver(smtpd).reply == LATER
        cause = f'cause="{stub.url} timeout"'
        assert logged(smtpd) == [f"rspamd message result=reject {cause}{SAID}"]


def test_the_next_daemon_is_asked(stub: RspamdStub) -> None:
    with RspamdStub(Answer(b"", status=500)) as broken:
        flags = ("-url", broken.url, "-url", stub.url)
        with Conversation(Rspamd, *flags) as smtpd:
            assert deliver(smtpd).verb == "proceed"
            reason = f"no action, score 0/15, after {broken.url} status 500"
            assert logged(smtpd) == [f'rspamd message result=proceed reason="{reason}"']
        assert (broken.asked, stub.asked) == (1, 1)


def test_a_dead_daemon_costs_a_few_messages_a_time_out(stub: RspamdStub) -> None:
    with RspamdStub(Answer(behaviour="drop")) as dead:
        flags = ("-url", dead.url, "-url", stub.url, "--timeout", f"{brief(0.7)}s")
        with Conversation(Rspamd, *flags) as smtpd:
            for _ in range(8):
                assert deliver(smtpd).verb == "proceed"
            waited = [f"after {dead.url} timeout" in line for line in logged(smtpd)]
        assert waited == [True] * 3 + [False] * 5
        assert stub.asked == 8


def test_a_daemon_that_comes_back_is_asked_first_again(stub: RspamdStub) -> None:
    now = 0.0
    with (
        RspamdStub(Answer.of(CLEAN, behaviour="cut")) as first,
        Conversation(Rspamd, "-url", first.url, "-url", stub.url) as smtpd,
    ):
        asking: Any = smtpd.filters[0]
        asking._client._clock = lambda: now
        reports = []
        for _ in range(5):
            deliver(smtpd)
            reports.append("after" in smtpd.log[-1])
        assert (first.asked, stub.asked) == (3, 5)
        now = 29.9
        deliver(smtpd)
        assert (first.asked, stub.asked) == (3, 6)
        now = 30.0  # it still fails: one message finds out
        deliver(smtpd)
        deliver(smtpd)
        assert (first.asked, stub.asked) == (4, 8)
        now = 60.0
        first.answer = CLEAN
        deliver(smtpd)
        deliver(smtpd)
        assert (first.asked, stub.asked) == (6, 8)
    # The log says so of each message that was given to both.
    assert reports == [True, True, True, False, False]


def test_a_daemon_that_restarts_in_mid_reply(stub: RspamdStub) -> None:
    answers = iter([Answer.of(CLEAN, behaviour="reset-half"), Answer.of(said(action="reject"))])
    stub.answer = lambda _: next(answers)
    assert scanned(stub).reply == "554 5.7.1 Spam message rejected"
    assert stub.asked == 2


# -- compression ---------------------------------------------------------------------------


async def decompressed(frame: bytes) -> bytes:
    async def pieces() -> AsyncIterator[bytes]:
        yield frame

    return b"".join([piece async for piece in CODEC.decompress(pieces(), 8 << 20)])


@needs_zstd
@pytest.mark.parametrize("size", [1, part(3 << 20)])
def test_messages_are_compressed(stub: RspamdStub, size: int) -> None:
    packed = b"".join(CODEC.compress([json.dumps(said(action="reject")).encode()]))
    stub.answer = Answer(packed, headers=(("Compression", "zstd"),))
    content = b"Subject: x\r\n\r\n" + b"line\r\n" * (size // 6)
    delivery = scanned(stub, "--compress", "zstd", content=content)
    assert delivery.reply == "554 5.7.1 Spam message rejected"
    (request,) = stub.requests
    assert request.get("Compression") == "zstd"
    plain = asyncio.run(decompressed(request.body))
    assert plain == b"".join(line + b"\n" for line in delivery.sent)
    assert len(request.body) < 1000


@needs_zstd
def test_a_reply_to_a_compressed_message_may_be_plain(stub: RspamdStub) -> None:
    assert scanned(stub, "--compress", "zstd").verb == "proceed"


@needs_zstd
def test_the_offset_of_a_new_body_counts_what_is_decompressed(stub: RspamdStub) -> None:
    plain = Answer.of(CLEAN, b"new\n" * 1000)
    packed = b"".join(CODEC.compress([plain.body]))
    stub.answer = Answer(packed, headers=(*plain.headers, ("Compression", "zstd")))
    assert scanned(stub, "--compress", "zstd").body == b"new\n" * 1000


@needs_zstd
@pytest.mark.parametrize("body", [b"{}", b"\x28\xb5\x2f\xfd", "bomb"])
def test_a_broken_compressed_reply_is_an_error(stub: RspamdStub, body: bytes | str) -> None:
    if isinstance(body, str):
        body = b"".join(CODEC.compress([bytes(64 << 20)]))
    stub.answer = Answer(body, headers=(("Compression", "zstd"),))
    assert scanned(stub, "--compress", "zstd").reply == LATER


def test_a_lack_of_zstd_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"^--compress: zstd needs"):
        Conversation(Rspamd, "--compress", "zstd")


# -- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["-url", "localhost:11333"], "-url: expected http:"),
        (["-url", "http://u:p@localhost"], "-url: invalid URL"),
        (["--skip", "authentcated"], "--skip: expected local|socket|authenticated|TABLE"),
        (["--skip", "file:/nonexistent"], "--skip: "),
        (["--action", "dance"], "--action: expected NAME=OUTCOME"),
        (["--action", "dance=fly"], "--action: expected NAME=OUTCOME"),
        (["--action", "a=junk", "--action", "a=reject"], '--action: "a" is given twice, as junk'),
        (["--max-size", "50"], '--max-size: must be at least 1k, not "50"'),
        (["--timeout", "1d"], '--timeout: must be at most 5m, not "1d"'),
        (["--headers", "all"], "--headers: "),
        (["--password-file", "/nonexistent"], "--password-file: /nonexistent: No such file"),
        (["--password-file", "/dev/null"], "--password-file: /dev/null: not a regular file"),
        (["--on-error", "reject"], "--on-error: "),
    ],
)
def test_errors_at_start(flags: list[str], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Conversation(Rspamd, *flags)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_from_a_file() -> None:
    table = {
        "url": ["http://a:1", "/run/b"],
        "skip": ["local", "{ 192.0.2.0/24 }"],
        "action": ["dance=junk"],
    }
    settings = from_mapping(Rspamd.Options, table, "chain.toml")
    assert settings.url == ("http://a:1", "/run/b")
    assert settings.action == (("dance", "junk"),)
    assert settings.skip.words == {"local"}
    assert [len(table) for table in settings.skip.tables] == [1]
    assert EXEMPT.show(settings.skip) == "local, { 192.0.2.0/24 }"
    assert ACTION.show(settings.action[0]) == "dance=junk"


@pytest.mark.parametrize(
    "table", [{"skip": "local"}, {"skip": [1]}, {"skip": ["locale"]}, {"action": ["dance"]}]
)
def test_errors_of_keys_in_a_chain_file(table: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^chain\.toml: (skip|action): expected "):
        from_mapping(Rspamd.Options, table, "chain.toml")


def test_settings_made_in_code_are_checked() -> None:
    skip = Exempt(["local"]) + Exempt(["authenticated"])
    assert Rspamd.Options(skip=skip).skip == Exempt(["local", "authenticated"])
    with pytest.raises(TypeError, match="skip"):
        Rspamd.Options(skip="local")


def test_help_needs_no_package() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-m", "smtpd_filters.filters.rspamd", "--help"],
        capture_output=True,
        check=True,
        timeout=60,
        text=True,
        cwd=ROOT,
    )
    assert "-settings-id" in done.stdout
    assert done.stderr == ""


def test_importing_it_does_not_import_what_is_heavy() -> None:
    heavy = {"aiohttp", "asyncio", "json", "typing", "zstandard"}
    assert not heavy & loaded("import smtpd_filters.filters.rspamd")


def test_filters_that_ask_the_same_daemons_alike_share_their_connections(stub: RspamdStub) -> None:
    def named(name: str, **settings: Any) -> Rspamd:
        filter_ = Rspamd(Rspamd.Options(url=(stub.url,), **settings))
        filter_.name = name
        return filter_

    alike = [named("one"), named("two", mta_tag="x")]
    with Conversation([*alike, named("three", connections=3)]) as smtpd:
        one, two, three = [each._client for each in smtpd.filters if isinstance(each, Rspamd)]
        assert one is two
        assert one is not three
        deliver(smtpd)
    assert stub.asked == 3


def test_a_filter_cannot_close_the_client_that_others_share(stub: RspamdStub) -> None:
    class Closing(Rspamd):
        """Closes what it shares."""

        on_error = "proceed"

        async def message(self, session: Session, message: Message) -> Proceed:  # noqa: ARG002
            await self._client.aclose()
            return PROCEED

    closing = Closing(Rspamd.Options(url=(stub.url,)))
    with Conversation([closing, Rspamd(Rspamd.Options(url=(stub.url,)))], errors=True) as smtpd:
        deliver(smtpd)
        assert "a filter can't close its HTTP client" in "".join(smtpd.log)
    assert stub.asked == 1


def test_points_in_place_of_a_mark_leave_the_daemons_other_edits(stub: RspamdStub) -> None:
    """A forged result must not come back with the mark that is undone."""
    field = "Authentication-Results"
    stub.answer = said(
        action="add header",
        milter={"remove_headers": {field: 0}, "add_headers": {field: "mx.example.org; none"}},
    )
    of = Rules(RuleSettings(score_header=True), {"rspamd": FilterRules(score={"junk": 2})})
    with Conversation([(Rspamd, "-url", stub.url)], rules=of) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("bob@example.net")
        client.rcpt_to("alice@example.org")
        mail = client.message(b"Authentication-Results: mx.example.org; dmarc=pass\r\n\r\n")
    assert mail.headers.get_all(field) == ["mx.example.org; none"]
    assert mail.headers.get("X-Spam") is None
