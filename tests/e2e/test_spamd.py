"""Tests of filter-spamd between the real smtpd and the real spamd.

The daemon's rules for test mail are in `spamd_set_up`; a request's user chooses its preferences.
"""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.cli import main
from smtpd_filters.testing.dns import merge
from smtpd_filters.testing.server import Lab, Smtpd, file_path, filter_command, versions
from smtpd_filters.testing.server import unavailable as no_lab
from tests.e2e.learning import TEXTS
from tests.e2e.sending import ALICE, BOB, ZONE, Outcome, attempt, content_of, folders, local, logged
from tests.e2e.spamd_set_up import GTUBE, LISTED, SLOW, URIBL, Spamd, mail, unavailable
from tests.e2e.test_messages import BODIES
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Start

    Capture = pytest.CaptureFixture[str]

# What the filter does doesn't depend on the protocol's version.
pytestmark = pytest.mark.parametrize("version", versions()[-1:], indirect=True)

REFUSED = Outcome(".", 554, "5.7.1 Spam message rejected", stayed=True)
USERS = {
    "wrapped": "report_safe 1",
    "text": "report_safe 2",
    "rewritten": "rewrite_header Subject [SPAM]",
    "hurried": "time_limit 1",
}
SPAM = "X-Test-Spam: yes"
#: SpamCop takes reports by mail: here in a mailbox of the server. Only Razor can revoke reports,
#: with its own servers: a plugin does it here.
REPORTS = [
    "spamcop_to_address bob@local.example",
    "spamcop_from_address anna@good.example",
    "spamcop_relayhost 127.0.0.1:25",
    "loadplugin Revoking Revoking.pm",
]
REVOKING = """\
package Revoking;
use strict;
use Mail::SpamAssassin::Plugin;
use Mail::SpamAssassin::Logger;
our @ISA = ("Mail::SpamAssassin::Plugin");
sub plugin_revoke {
    my ($self, $options) = @_;
    $options->{revoke}->{revoke_available} = 1;
    $options->{revoke}->{revoke_return} = 1;
    info("reporter: revoked " . $options->{msg}->get_header("Message-ID"));
}
1;
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The network of the module's servers."""
    need(no_lab())
    with Lab(merge(ZONE, URIBL)) as made:
        yield made


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Spamd]:
    """The module's spamd."""
    need(unavailable())
    with Spamd(lab, users=USERS, cf=REPORTS, plugins={"Revoking.pm": REVOKING}) as started:
        yield started


@pytest.fixture
def scan(start: Start, lab: Lab, daemon: Spamd) -> Start:
    """Start a server whose mail the daemon scans; `flags` are further ones of the filter."""

    def begin(*, flags: tuple[str, ...] = (), server: str = daemon.server, **more: Any) -> Smtpd:
        command = filter_command("spamd", "--spamd", server, *flags)
        more.setdefault("filters", {"spamd": command})
        return start(lab=lab, **more)

    return begin


def delivered(server: Smtpd) -> tuple[list[bytes], bytes]:
    """The fields that the filter has put above smtpd's own, and the message from there on."""
    [mail] = server.maildir("alice")
    lines = mail.content.split(b"\n")
    own = next(at for at, line in enumerate(lines) if line.startswith(b"Received: "))
    first = next(at for at, line in enumerate(lines) if line.startswith(b"Delivered-To:")) + 1
    return lines[first:own], b"\n".join(lines[own:])


def sent(content: bytes) -> bytes:
    """A message from its own first field on."""
    return content[content.index(b"\nFrom: ") + 1 :]


# -- the verdict -----------------------------------------------------------------------------------


def test_ham(scan: Start, daemon: Spamd) -> None:
    server = scan()
    message = mail("X-Spam-Status: No, score=-100", "x-spam-flag: YES", "\tfolded")
    assert attempt(server, message=message).code == 250
    added, content = delivered(server)
    assert sent(content) == local(mail())
    assert added[0].startswith(b"X-Spam-Checker-Version: SpamAssassin ")
    assert [line for line in added if b"YES" in line or b"-100" in line] == []
    [line] = logged(server, r"spamd message result=edit", 1)
    # SpamAssassin knows the sender of the envelope, and smtpd's own Received.
    assert "LOCAL_SENDER" in line
    assert "LOCAL_CLIENT" in line
    assert "LOCAL_CLIENT" in b"".join(added).decode()
    daemon.wait_for(r"clean message .* for \(unknown\):")


@pytest.mark.parametrize("line", [b"--x: y\r\n", b": x\r\n" * 4], ids=["hyphens", "no fields"])
def test_no_line_ends_the_header(scan: Start, line: bytes) -> None:
    """SpamAssassin ends it there, and would leave what follows in its reply."""
    server = scan()
    message = line + mail("X-Spam-Status: No, score=-100")
    assert attempt(server, message=message).code == 250
    added, content = delivered(server)
    assert b"score=-100" not in b"".join(added)
    assert b"MISSING_FROM" not in b"".join(added)
    assert content.endswith(b"\n" + line.replace(b"\r", b"") + local(mail()))


def test_gtube_is_marked(scan: Start) -> None:
    server = scan()
    message = mail(body=GTUBE)
    assert attempt(server, message=message).code == 250
    added, content = delivered(server)
    assert added[0] == b"X-Spam: Yes"
    assert b"X-Spam-Flag: YES" in added
    assert b"\t* 1000 GTUBE BODY: Generic Test for Unsolicited Bulk Email" in added
    assert sent(content) == local(message)
    assert folders(server) == ["Junk"]


def test_gtube_is_refused(scan: Start) -> None:
    server = scan(flags=("--reject-at", "50"))
    assert attempt(server, message=mail(body=GTUBE)) == REFUSED
    assert attempt(server, message=mail(SPAM)).code == 250
    assert folders(server) == ["Junk"]
    [line] = logged(server, r"result=reject", 1)
    assert "GTUBE" in line


def test_a_listed_domain_by_the_lists_in_the_dns(scan: Start, daemon: Spamd) -> None:
    server = scan()
    body = f"Look at http://{LISTED}/offer and buy.\r\n".encode()
    assert attempt(server, message=mail(body=body)).code == 250
    added, _ = delivered(server)
    assert b"URIBL_BLACK" in b"".join(added)
    assert (f"{LISTED}.multi.uribl.com", "A") in daemon.dns.queries


def test_symbols_alone(scan: Start) -> None:
    server = scan(flags=("--headers", "none", "--junk-at", "never"))
    message = mail(SPAM)
    assert attempt(server, message=message).code == 250
    assert delivered(server)[0] == []
    # The release decides whether the header is completed, which is an edit.
    assert "LOCAL_SPAM" in logged(server, r"spamd message result=(proceed|edit)", 1)[0]


@pytest.mark.parametrize(
    ("flags", "subject"),
    [
        (("--user", "rewritten"), "hello"),
        (("--user", "rewritten", "--rewrite-subject"), "[SPAM] hello"),
        (("--user", "wrapped"), "hello"),
        (("--tag", "Spam?", "--tag-at", "6"), "Spam? hello"),
    ],
)
def test_subjects_and_headers(scan: Start, flags: tuple[str, ...], subject: str) -> None:
    """Whatever report_safe is, only spamd's own fields are taken."""
    server = scan(flags=flags)
    message = mail(SPAM)
    assert attempt(server, message=message).code == 250
    added, content = delivered(server)
    names = [line.partition(b":")[0] for line in added if not line.startswith((b" ", b"\t"))]
    assert names == [
        b"X-Spam", b"X-Spam-Checker-Version", b"X-Spam-Flag", b"X-Spam-Level", b"X-Spam-Status",
        b"X-Spam-Report",
    ]  # fmt: skip
    expected = local(message).replace(b"Subject: hello", b"Subject: " + subject.encode())
    if "--rewrite-subject" in flags:
        expected = expected.replace(b"\n\n", b"\nX-Spam-Prev-Subject: hello\n\n", 1)
    assert sent(content) == expected


@pytest.mark.parametrize("user", ["wrapped", "text"])
def test_a_new_message(scan: Start, user: str) -> None:
    server = scan(flags=("--user", user, "--new-message"))
    body = b"8-bit: \xc3\xbc\r\n.dot\r\n" + b"x" * 900 + b"\r\n"
    message = mail(SPAM, body=body)
    assert attempt(server, message=message).code == 250
    [mailed] = server.maildir("alice")
    assert mailed.folder == "Junk"
    assert mailed.message["X-Spam"] == "Yes"
    assert mailed.message["X-Spam-Flag"] == "YES"
    assert "Content analysis details" in mailed.content.decode()
    # smtpd's own field stays, above that of SpamAssassin.
    received = mailed.message.get_all("Received", [])
    assert [("OpenSMTPD" in each, "SpamAssassin" in each) for each in received] == [
        (True, False), (False, True)
    ]  # fmt: skip
    _, attached = mailed.message.iter_parts()
    assert attached.get_content_type() == ("message/rfc822" if user == "wrapped" else "text/plain")
    at = mailed.content.index(b"x-spam-type=original")
    original = mailed.content[mailed.content.index(b"\n\n", at) + 2 :]
    assert original.startswith(
        b"Return-Path: <someone@good.example>\nReceived: from client.example"
    )
    assert sent(original).startswith(local(message) + b"\n----------")


def test_ham_has_no_new_message(scan: Start) -> None:
    server = scan(flags=("--user", "wrapped", "--new-message"))
    assert attempt(server, message=mail()).code == 250
    assert sent(delivered(server)[1]) == local(mail())


def test_users(scan: Start, daemon: Spamd) -> None:
    server = scan(flags=("--user-by-recipient", "local", "--user", "others"))
    since = len(daemon.log)
    assert attempt(server, message=mail()).code == 250
    daemon.wait_for("checking message .* for alice:", since=since)
    both = ["alice@local.example", "bob@local.example"]
    assert attempt(server, recipients=both, message=mail()).code == 250
    daemon.wait_for("checking message .* for others:", since=since)


def test_a_chain_with_a_score(scan: Start, daemon: Spamd) -> None:
    chain = f"""\
[filter.spamd]
spamd = ["{daemon.server}"]
points = true

[chain.scored]
filters = ["spamd"]
junk-at = 4
reject-at = 50
score-header = true
"""
    command = filter_command("chain", "--config", file_path("chains"), "--chain", "scored")
    server = scan(filters={"chain": command}, files={"chains": chain})
    assert attempt(server, message=mail(SPAM)).code == 250
    [mailed] = server.maildir("alice")
    assert mailed.folder == "Junk"
    assert float(mailed.message["X-Smtpd-Filters-Score"].split()[0]) >= 6
    assert attempt(server, message=mail(body=GTUBE)).code == 550


# -- what must not change --------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--compress", "zlib")], ids=["plain", "zlib"])
def test_bodies_pass_unchanged(scan: Start, flags: tuple[str, ...]) -> None:
    """Below the fields of spamd."""
    server = scan(flags=flags)
    messages = {kind: mail(subject=kind, body=body) for kind, body in BODIES.items()}
    for message in messages.values():
        assert attempt(server, message=message).code == 250
    found = {each.message["Subject"]: each.content for each in server.maildir("alice")}
    assert found.keys() == BODIES.keys()
    for kind, message in messages.items():
        assert b"\nX-Spam-Status: " in found[kind]
        assert sent(found[kind]) == local(message), kind


LINE = b"All work and no play makes Jack a dull boy, said the old man.\r\n"


def test_twenty_megabytes_are_not_scanned(scan: Start) -> None:
    server = scan()
    huge = mail("X-Spam-Status: No", body=LINE * (20_000_000 // len(LINE)))
    assert attempt(server, message=huge).code == 250
    added, content = delivered(server)
    assert added == []
    assert sent(content) == local(huge.replace(b"X-Spam-Status: No\r\n", b""))
    [line] = logged(server, "not scanned", 1)
    assert "more than --max-size" in line


def test_messages_above_the_limit_of_spamc(scan: Start) -> None:
    server = scan(flags=("--max-size", "1M", "--larger", "reject"))
    message = mail(SPAM, body=LINE * (530_000 // len(LINE)))
    assert attempt(server, message=message).code == 250
    assert folders(server) == ["Junk"]
    assert sent(delivered(server)[1]) == local(message)
    assert attempt(server, message=message + LINE * 10_000).code == 552


def test_fifty_at_a_time(scan: Start) -> None:
    server = scan()

    def send(number: int) -> int:
        fields = (SPAM,) if number % 2 else ()
        return attempt(server, message=mail(*fields, subject=str(number))).code

    with ThreadPoolExecutor(50) as pool:
        assert set(pool.map(send, range(50))) == {250}
    found = server.maildir("alice")
    assert sorted(int(each.message["Subject"]) for each in found) == list(range(50))
    for each in found:
        assert each.folder == ("Junk" if int(each.message["Subject"]) % 2 else "")
        assert b"\nX-Spam-Status: " in each.content


# -- faults ----------------------------------------------------------------------------------------


def test_a_daemon_that_is_stopped(scan: Start, daemon: Spamd) -> None:
    """It takes connections and answers none."""
    server = scan(flags=("--timeout", "2"))
    daemon.signal(signal.SIGSTOP)
    try:
        refused = attempt(server, message=mail())
    finally:
        daemon.signal(signal.SIGCONT)
    assert (refused.stage, refused.code, refused.stayed) == (".", 451, True)
    assert f"{daemon.server} timeout" in logged(server, "cause=", 1)[0]


def test_a_second_daemon(scan: Start, daemon: Spamd) -> None:
    """Nobody listens where the first one was: its mail goes to the second."""
    server = scan(server="127.0.0.1:9", flags=("--spamd", daemon.server))
    assert attempt(server, message=mail()).code == 250
    [line] = logged(server, "result=edit", 1)
    assert "LOCAL_CLIENT" in line
    assert "after 127.0.0.1:9 connection refused" in line


def test_a_scan_that_ends_early_is_an_error(scan: Start) -> None:
    server = scan(flags=("--user-by-recipient", "local", "--user", "hurried"))
    refused = attempt(server, recipients=[ALICE, BOB], message=mail(body=SLOW))
    assert (refused.stage, refused.code) == (".", 451)
    assert "exceeded SpamAssassin's time_limit" in logged(server, "cause=", 1)[0]
    assert attempt(server, message=mail()).code == 250


def test_unscanned_mail_is_accepted_if_so_chosen(scan: Start) -> None:
    server = scan(server="127.0.0.1:9", flags=("--on-error", "proceed"))
    message = mail("X-Spam-Status: No, score=-100", "\tforged")
    assert attempt(server, message=message).code == 250
    [mailed] = server.maildir("alice")
    assert content_of(mailed.content) == local(mail())


# -- learning --------------------------------------------------------------------------------------


def bayes(server: Smtpd, daemon: Spamd, number: int) -> str:
    """The classifier's rule for alice's mail."""
    since = len(daemon.log)
    message = mail(subject=f"number {number}", body=f"{TEXTS['spam']}\n\n{number}\n".encode())
    outcome = attempt(server, message=message.replace(b"\n", b"\r\n").replace(b"\r\r", b"\r"))
    assert outcome.code == 250
    return daemon.wait_for(r"result: .* - \S*?(BAYES_\d+|(?= ))", since=since)[1]


def test_what_is_learned_is_forgotten(
    scan: Start, daemon: Spamd, tmp_path: Path, capsys: Capture
) -> None:
    server = scan(flags=("--user-by-recipient", "address", "--junk-at", "-100"))
    user = ("--spamd", str(daemon.socket), "--user", "alice@local.example")
    assert bayes(server, daemon, 1) == ""
    # What has been delivered is learned: marked by the filter, with spamd's fields.
    [mailed] = server.maildir("alice")
    assert mailed.message["X-Spam"] == "Yes"
    spam, ham = tmp_path / "spam", tmp_path / "ham"
    spam.write_bytes(mailed.content)
    ham.write_bytes(mail(body=TEXTS["ham"].encode()))
    assert main(["learn", "spam", *user, str(spam)]) == 0
    assert main(["learn", "ham", *user, str(ham)]) == 0
    assert capsys.readouterr().out.count("1 learned, 0 known already") == 2
    assert bayes(server, daemon, 2) == "BAYES_99"
    # A second time there is nothing to learn.
    assert main(["learn", "spam", *user, str(spam)]) == 0
    assert capsys.readouterr().out.startswith("0 learned, 1 known already")
    assert main(["learn", "forget", *user, str(spam)]) == 0
    assert capsys.readouterr().out.startswith("1 learned")
    # Without any spam the classifier says nothing.
    assert bayes(server, daemon, 3) == ""


def test_another_users_classifier_is_not_touched(
    daemon: Spamd, tmp_path: Path, capsys: Capture, version: str
) -> None:
    assert version
    path = tmp_path / "mail"
    path.write_bytes(mail(body=TEXTS["spam"].encode()))
    words = ["learn", "ham", "--spamd", str(daemon.socket), str(path)]
    assert main([*words, "--user", "one@local.example"]) == 0
    assert main([*words, "--user", "two@local.example"]) == 0
    assert capsys.readouterr().out.count("1 learned") == 2
    homes = {each.name for each in (daemon.directory / "users").iterdir()}
    assert {"one@local.example", "two@local.example"} <= homes
    daemon.wait_for("Tell: Setting local for one@")


def test_a_report_and_its_revocation(
    start: Start, lab: Lab, daemon: Spamd, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "mail"
    path.write_bytes(b"X-Spam: Yes\r\n" + mail("Received: from spammer.example by x", SPAM))
    words = ["--spamd", str(daemon.socket), "--user", "anna@good.example", str(path)]
    # As long as the service can't be reached, nothing has been reported.
    assert main(["learn", "report", *words]) == 75
    assert "no service for reports has accepted the message" in capsys.readouterr().err
    server = start(lab=lab)
    assert main(["learn", "report", *words]) == 0
    assert capsys.readouterr().out.startswith("1 learned")
    [report] = server.maildir("bob")
    assert report.message["Subject"] == "report spam"
    [reported] = report.message.iter_parts()
    assert reported.get_content_type() == "message/rfc822"
    assert mail(SPAM).replace(b"\r\n", b"\n") in report.content.replace(
        b"Received: from spammer.example by x\n", b""
    )
    since = len(daemon.log)
    assert main(["learn", "revoke", *words]) == 0
    assert capsys.readouterr().out.startswith("1 learned")
    daemon.wait_for(r"reporter: revoked <20\.1\.300\.tests@good\.example>", since=since)


def test_a_daemon_that_must_not_be_told(
    lab: Lab, tmp_path: Path, capsys: Capture, version: str
) -> None:
    assert version
    path = tmp_path / "mail"
    path.write_bytes(mail())
    with Spamd(lab, tell=False, children=1) as daemon:
        for action in ("spam", "ham", "forget", "report", "revoke"):
            assert main(["learn", action, "--spamd", str(daemon.socket), str(path)]) == 77
            assert "start it with --allow-tell" in capsys.readouterr().err
