"""The lines of docs/migrating.md that replace Postfix with Amavis, under real servers.

smtpd, its filters, clamd, spamd, quota-status and a Sieve interpreter get what the page has, except
for what a lab must name otherwise: interfaces, certificates, and the places of the daemons.
"""

from __future__ import annotations

import base64
import re
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import dkim
import pytest

from smtpd_filters.cli import main
from smtpd_filters.testing.dns import merge
from smtpd_filters.testing.server import (
    DOMAIN,
    Lab,
    Smtpd,
    file_path,
    filter_command,
    system_version,
)
from smtpd_filters.testing.server import unavailable as no_lab
from tests.e2e import clamd_set_up, spamd_set_up
from tests.e2e.clamd_set_up import EICAR, ClamAV
from tests.e2e.daemon import STATE
from tests.e2e.learning import TEXTS
from tests.e2e.policy_set_up import MAILBOX, no_quota_status, quota_status
from tests.e2e.sending import ALICE, GOOD, GOOD6, NAMELESS, SENDER, ZONE, attempt, greeted
from tests.e2e.spamd_set_up import GTUBE, Spamd, mail
from tests.e2e.test_milter import RECORD
from tests.filters.test_dkimsign import pem
from tests.needed import need
from tests.test_moving import section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.testing.server.smtpd import Delivered

PAGE = section("Amavis")
#: Its blocks, in their order.
BLOCKS = re.findall(r"(?ms)^```\w*\n(.*?)^```$", PAGE)
CONF, CHAIN, CANONICAL, SIEVE, LEARN = BLOCKS
#: Lines of local.cf: one of the page, and senders who are welcome if their signature is valid.
[THRESHOLD] = re.findall(r"`(required_score \d+)`", PAGE)
WELCOME = "welcomelist_auth *@welcome.example"
CHAINS = "chains.toml"
#: The files that it names.
FILES = {"networks": f"{NAMELESS}/32\n", "sender_canonical": CANONICAL}
#: Interfaces and certificates are those of a lab, where submission has an address for a port.
LISTENERS = {
    "on egress port submission tls-require pki mail.example.org auth ": (
        "on ::1 port 25 $tls auth-optional <credentials> "
    ),
    "on egress ": "on 127.0.0.1 port 25 ",
}
SPAM = "X-Test-Spam: yes"  # 6.5 points
ALMOST = "X-Test-Almost: yes"  # 3.7 points; with 1.8 that any mail has, fewer than the threshold
RULE = ("header LOCAL_ALMOST X-Test-Almost =~ /yes/", "score LOCAL_ALMOST 3.7")
#: Each row of the table, by its beginning, and the tests of what it says; those of other modules
#: are of settings that aren't in the lines of the page.
ROWS = {
    "`permit_mynetworks`": "test_trusted_networks_and_users_send_what_looks_like_spam",
    "`@av_scanners`": "test_a_virus_is_refused_whoever_sends_it",
    "`final_virus_destiny": "test_a_virus_is_refused_whoever_sends_it "
    "test_clamav.py::test_what_is_refused_is_kept",
    "`$banned_filename_re`": "test_a_banned_attachment",
    "`final_bad_header_destiny": "test_a_malformed_header",
    "`X-Virus-Scanned`": "test_mail_that_is_in_order",
    "`sa_tag_level_deflt": "test_mail_that_is_in_order",
    "`sa_tag2_level_deflt": "test_spam_is_tagged_and_filed test_the_threshold_of_spam",
    "`sa_spam_subject_tag`": "test_spam_is_tagged_and_filed",
    "`sa_kill_level_deflt": "test_spam_is_tagged_and_filed",
    "`sa_mail_body_size_limit`": "test_a_message_that_spamc_would_not_send",
    "`sa_local_tests_only`": "test_learning "
    "test_spamd.py::test_a_listed_domain_by_the_lists_in_the_dns",
    "`@local_domains_maps`": "test_mail_that_is_in_order test_another_domain",
    "`sender_canonical_maps": "test_a_sender_is_rewritten",
    "`blacklist_from`": "test_senders_on_the_black_list",
    "`whitelist_from`": "test_a_welcome_sender",
    "Dovecot's quota": "test_a_full_mailbox",
    "`@bypass_spam_checks_maps`": "test_spamd.py::test_users",
    "`max_servers`": "test_spamd.py::test_fifty_at_a_time",
    "`reject_rbl_client`": "test_dnsbl.py::test_who_is_listed",
}


def lines(pattern: str) -> str:
    """The lines of smtpd.conf that begin so."""
    return "".join(f"{line}\n" for line in CONF.splitlines() if re.match(pattern, line))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The network of the servers."""
    for reason in (
        no_lab(),
        no_quota_status(),
        clamd_set_up.unavailable() or None,
        spamd_set_up.unavailable(),
    ):
        need(reason)
    key = {"rsa._domainkey.welcome.example": {"TXT": RECORD}}
    with Lab(merge(ZONE, key)) as made:
        yield made


@pytest.fixture(scope="module")
def dovecot(lab: Lab) -> Iterator[Lab]:
    """The lab of Dovecot, which serves quotas."""
    with quota_status(lab) as daemon:
        yield daemon.inside


@pytest.fixture(scope="module")
def spamd(lab: Lab) -> Iterator[Spamd]:
    """A daemon with one classifier for all, as Amavis has."""
    # Not a folder of pytest's, which only root may enter.
    with TemporaryDirectory(prefix="bayes-") as bayes:
        Path(bayes).chmod(0o777)
        cf = [THRESHOLD, WELCOME, *RULE, f"bayes_path {bayes}/bayes"]
        with Spamd(lab, cf=cf) as daemon:
            yield daemon


@pytest.fixture(scope="module")
def server(dovecot: Lab, lab: Lab, spamd: Spamd) -> Iterator[Smtpd]:
    """The server of the page."""
    assert dovecot.pid
    [command] = re.findall(r'^filter "inbound" proc-exec "filter-(.*)"$', CONF, re.MULTILINE)
    name, *flags = shlex.split(command)
    listeners = lines("listen ")
    for there, here in LISTENERS.items():
        assert there in listeners
        listeners = listeners.replace(there, here)
    with ClamAV() as clamd:
        chain = CHAIN.replace("/run/clamav/clamd.ctl", "/run/clamav/clamd")
        chain = chain.replace("127.0.0.1:783", spamd.server)
        for each in FILES:
            assert f":/etc/mail/{each}" in chain
            chain = chain.replace(f"/etc/mail/{each}", file_path(each))
        with Smtpd(
            system_version(),
            filters={"inbound": filter_command(name, "--config", file_path(CHAINS), *flags)},
            files={CHAINS: chain, **FILES},
            binds={"/run/clamav": clamd.socket.parent},
            declarations=lines("table "),
            listeners=listeners,
            matches=lines("match ") + f'match from any for domain "{DOMAIN}" action "deliver"\n',
            lab=lab,
        ) as made:
            yield made


def test_each_row_of_the_table_has_its_tests() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(ROWS)
    here = Path(__file__)
    for row, (beginning, tests) in zip(rows, ROWS.items(), strict=True):
        assert row.startswith(f"| {beginning}")
        for test in tests.split():
            module, _, name = test.rpartition("::")
            assert f"def {name}(" in (here.parent / (module or here.name)).read_text(), test


def last(server: Smtpd) -> Delivered:
    return server.maildir("alice")[-1]


def virus() -> bytes:
    return (
        mail("X-Kind: virus", body=base64.encodebytes(EICAR).replace(b"\n", b"\r\n"))
        .replace(b"Content-Transfer-Encoding: 8bit", b"Content-Transfer-Encoding: base64")
        .replace(b"text/plain; charset=utf-8", b"application/octet-stream")
    )


def test_mail_that_is_in_order(server: Smtpd) -> None:
    assert attempt(server, message=mail()).stage == ""
    found = last(server)
    assert found.folder == ""
    assert found.message["X-Virus-Scanned"]
    assert found.message["X-Spam-Status"].startswith("No, ")


def test_a_virus_is_refused_whoever_sends_it(server: Smtpd) -> None:
    for user in (None, "alice"):
        source = GOOD if user is None else GOOD6
        refused = attempt(server, source, message=virus(), user=user)
        assert (refused.stage, refused.code) == (".", 554)


def test_spam_is_tagged_and_filed(server: Smtpd, dovecot: Lab) -> None:
    assert attempt(server, message=mail(SPAM)).stage == ""
    found = last(server)
    assert found.folder == "Junk"
    assert found.message["Subject"] == "***SPAM*** hello"
    assert found.message["X-Spam-Flag"] == "YES"
    assert sieve(dovecot, found) == "Junk"
    refused = attempt(server, message=mail(body=GTUBE))
    assert (refused.stage, refused.code) == (".", 554)


def test_the_threshold_of_spam(server: Smtpd) -> None:
    assert attempt(server, message=mail(ALMOST)).stage == ""
    found = last(server)
    assert (found.folder, found.message["Subject"]) == ("", "hello")
    status = re.search(r"score=([\d.]+) required=6\.0", found.message["X-Spam-Status"])
    assert status, found.message["X-Spam-Status"]
    assert 5 < float(status[1]) < 6


def test_a_welcome_sender(server: Smtpd) -> None:
    """By a valid signature, not by an address that anybody can write."""
    sender = b"joe@welcome.example"
    message = mail(SPAM).replace(SENDER.encode(), sender)
    assert attempt(server, message=message).stage == ""
    assert last(server).folder == "Junk"
    signature = dkim.sign(message, b"rsa", b"welcome.example", pem(form="PKCS1"))
    assert attempt(server, message=signature + message).stage == ""
    assert last(server).folder == ""


def test_a_message_that_spamc_would_not_send(server: Smtpd) -> None:
    large = mail(SPAM, body=(b"x" * 70 + b"\r\n") * 8000)
    assert attempt(server, message=large).stage == ""
    assert last(server).folder == ""
    assert "X-Spam-Status" not in last(server).message
    assert last(server).message["X-Virus-Status"] == "Clean"


def test_a_malformed_header(server: Smtpd) -> None:
    refused = attempt(server, message=b"From: a@good.example\r\nnot a field\r\n\r\nhello\r\n")
    assert (refused.stage, refused.code) == (".", 550)


def test_another_domain(server: Smtpd) -> None:
    refused = attempt(server, recipients=["alice@elsewhere.example"], message=mail())
    assert (refused.stage, refused.code) == ("RCPT", 550)


def sieve(dovecot: Lab, found: Delivered) -> str:
    """The folder into which the Sieve script of the page files a message."""
    for name, content in (("script.sieve", SIEVE.encode()), ("mail", found.content)):
        dovecot.run("tee", f"{STATE}/{name}", input=content)
    user = [word for name in ("uid", "gid") for word in ("-o", f"mail_{name}=2000")]
    place = ("-o", f"mail_location=maildir:{STATE}/mails")
    done = dovecot.run("sieve-test", *user, *place, f"{STATE}/script.sieve", f"{STATE}/mail")
    [stored] = re.findall(rb"store message in folder: (\S+)", done.stdout)
    return str(stored.decode())


def test_other_mail_is_not_filed(server: Smtpd, dovecot: Lab) -> None:
    assert attempt(server, message=mail()).stage == ""
    assert sieve(dovecot, last(server)) == "INBOX"


def test_trusted_networks_and_users_send_what_looks_like_spam(server: Smtpd) -> None:
    assert attempt(server, NAMELESS, message=mail(body=GTUBE)).stage == ""
    assert "X-Spam-Status" not in last(server).message
    assert attempt(server, GOOD6, message=mail(body=GTUBE), user="alice").stage == ""


def test_a_sender_is_rewritten(server: Smtpd) -> None:
    assert attempt(server, NAMELESS, sender="root@web.lan", message=mail()).stage == ""
    assert last(server).message["Return-Path"] == "<root-web.lan@example.org>"


def test_senders_on_the_black_list(server: Smtpd) -> None:
    for sender in ("anyone@spammer.example", "joe@example.net"):
        refused = attempt(server, sender=sender, message=mail())
        assert (refused.stage, refused.code) == ("RCPT", 550)


def test_a_banned_attachment(server: Smtpd) -> None:
    kind = "Content-Disposition: attachment; filename=invoice.pdf.exe"
    refused = attempt(server, message=mail(kind))
    assert (refused.stage, refused.code) == (".", 550)
    assert attempt(server, NAMELESS, message=mail(kind)).stage == ""


def test_a_full_mailbox(server: Smtpd) -> None:
    with server.connection(GOOD) as connection:
        greeted(connection)
        connection.command(f"MAIL FROM:<{SENDER}> SIZE={MAILBOX * 2}")
        refused = connection.command(f"RCPT TO:<{ALICE}>")
    assert refused is not None
    assert f"{refused.code} {refused.text}" == "552 5.2.2 Mailbox is full"


def test_learning(spamd: Spamd, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, kind in ((tmp_path, "ham"), (tmp_path / ".Junk", "spam")):
        for part in ("cur", "new", "tmp"):
            (folder / part).mkdir(parents=True)
        (folder / "cur" / "1:2,S").write_bytes(mail(body=TEXTS[kind].encode()))
    commands = [shlex.split(line) for line in LEARN.splitlines()]
    assert len(commands) == 2
    for program, *words in commands:
        assert program == "smtpd-filters"
        place = [
            str(spamd.socket)
            if word == "127.0.0.1:783"
            else word.replace("/var/mail/anna", str(tmp_path))
            for word in words
        ]
        assert main(place) == 0
    assert capsys.readouterr().out.count("1 learned") == 2
