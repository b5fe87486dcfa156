"""filter-milter under a real server, with the scanners that people run as milters."""

from __future__ import annotations

from email.utils import formatdate
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.rspamd.daemon import Rspamd
from smtpd_filters.testing.rspamd.daemon import unavailable as no_rspamd
from smtpd_filters.testing.server import Lab, Smtpd, filter_command, system_version
from smtpd_filters.testing.server import unavailable as no_lab
from tests.e2e import clamd_set_up
from tests.e2e.daemon import unavailable
from tests.e2e.milter_set_up import (
    amavisd_milter,
    clamav_milter,
    spamass_milter,
    spamd,
)
from tests.e2e.sending import SENDER, ZONE, Outcome, attempt
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from smtpd_filters.testing.server.smtpd import Delivered

CLAMD = 3310
RSPAMD = 11332
#: In two halves: other scanners would take this file for the message.
GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*" + b"GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n"
PROXY = f"""
worker "rspamd_proxy" {{
  bind_socket = "127.0.0.1:{RSPAMD}";
  milter = true;
  timeout = 60s;
  upstream "local" {{ default = true; self_scan = true; }}
}}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The network of the module's servers."""
    need(no_lab())
    with Lab(ZONE) as made:
        yield made


def serve(lab: Lab, address: str, *flags: str) -> AbstractContextManager[Smtpd]:
    """Return a server of the system's release with one milter."""
    version = system_version()
    if version is None:
        pytest.skip("needs an smtpd of this system")
    command = filter_command("milter", "--milter", address, *flags)
    return Smtpd(version, lab=lab, filters={"milter": command})


def send(server: Smtpd, *fields: bytes, body: bytes = b"hello\r\n") -> Outcome:
    """Send a message with these fields."""
    head = b"".join(
        field + b"\r\n"
        for field in (
            f"From: {SENDER}\r\nDate: {formatdate()}".encode(),
            b"To: alice@local.example\r\nMessage-ID: <20.1.300.tests@good.example>",
            *fields,
        )
    )
    return attempt(server, message=head + b"\r\n" + body)


def only(server: Smtpd) -> Delivered:
    """Return the only message that was delivered."""
    [found] = server.maildir("alice")
    return found


def test_clamav_milter(lab: Lab) -> None:
    need(clamd_set_up.unavailable() or unavailable("clamav-milter"))
    with clamd_set_up.ClamAV(port=CLAMD, lab=lab):
        settings = ("OnInfected Reject", "RejectMsg virus %v", "AddHeader Replace")
        with (
            clamav_milter(lab, CLAMD, *settings) as daemon,
            serve(lab, daemon.address) as server,
        ):
            forged = b"X-Virus-Status: forged"
            assert send(server, b"Subject: clean", forged).code == 250
            large = b"0123456789abcde\r\n" * 60_000
            assert send(server, b"Subject: large", body=large).code == 250
            infected = send(server, b"Subject: bad", body=clamd_set_up.EICAR + b"\r\n")
            assert infected.stage == "."
            assert infected.said == f"550 5.7.1 virus {clamd_set_up.NAME}"
            found = {mail.message["Subject"]: mail for mail in server.maildir("alice")}
            assert found.keys() == {"clean", "large"}
            assert found["clean"].message.get_all("X-Virus-Status") == ["Clean"]
            assert found["large"].content.endswith(large.replace(b"\r\n", b"\n"))
        with (
            clamav_milter(lab, CLAMD, "OnInfected Quarantine", "AddHeader Replace") as daemon,
            serve(lab, daemon.address) as server,
        ):
            assert send(server, body=clamd_set_up.EICAR + b"\r\n").code == 250
            held = only(server).message
            assert held["X-Spam"] == "Yes"
            assert held["X-Milter-Quarantine"] == "quarantined by clamav-milter"
            assert held["X-Virus-Status"].startswith("Infected")


def test_clamd_in_place_of_its_milter(lab: Lab) -> None:
    need(clamd_set_up.unavailable())
    with (
        clamd_set_up.ClamAV(port=CLAMD, lab=lab),
        serve(lab, f"inet:{CLAMD}@127.0.0.1") as server,
    ):
        assert send(server).code == 451
        server.wait_for(r'not a milter: it sends \\"UNKN\\"')


def test_spamass_milter(lab: Lab) -> None:
    need(unavailable("spamass-milter", "spamd"))
    with spamd(lab) as scanner:
        with (
            spamass_milter(lab, scanner.port) as daemon,
            serve(lab, daemon.address) as server,
        ):
            assert send(server, b"Subject: ham", b"X-Spam-Flag: forged").code == 250
            spam = send(server, b"Subject: spam", b"X-Test-Spam: yes", body=b"buy\r\n")
            assert spam.code == 250
            found = {mail.message["Subject"]: mail for mail in server.maildir("alice")}
            ham, wrapped = found["ham"].message, found["spam"]
            assert ham["X-Spam-Status"].startswith("No, ")
            assert ham.get_all("X-Spam-Flag") is None
            assert wrapped.message["X-Spam-Flag"] == "YES"
            # report_safe: the new body has a report, and the message as an attachment.
            assert wrapped.message.get_content_type() == "multipart/mixed"
            attached = list(wrapped.message.walk())[-1].get_payload()
            assert "buy" in str(attached)
        with (
            spamass_milter(lab, scanner.port, "-r", "15") as daemon,
            serve(lab, daemon.address) as server,
        ):
            refused = send(server, b"Subject: spam", b"X-Test-Spam: yes")
            assert refused.said == "550 5.7.1 Blocked by SpamAssassin"


def test_amavisd_milter(lab: Lab) -> None:
    need(unavailable("amavisd-milter", "amavisd"))
    mixed = b'Content-Type: multipart/mixed; boundary="x"'
    attached = (
        b"--x\r\n\r\nhello\r\n--x\r\nContent-Type: application/octet-stream\r\n"
        b'Content-Disposition: attachment; filename="run.exe"\r\n\r\nMZ\r\n--x--\r\n'
    )
    with amavisd_milter(lab) as daemon, serve(lab, daemon.address) as server:
        assert send(server, b"Subject: fine").code == 250, daemon.log[-20:]
        refused = send(server, b"Subject: bad", b"MIME-Version: 1.0", mixed, body=attached)
        assert refused.stage == "."
        assert refused.said.startswith("554 5.7.0 Reject, id=")
        assert "BANNED" in refused.text
        assert only(server).message["Subject"] == "fine"


def test_rspamds_own_milter(lab: Lab) -> None:
    need(no_rspamd())
    override = {"greylist.conf": "enabled = false;"}
    local = {"milter_headers.conf": 'use = ["x-spam-status"]; skip_local = false;'}
    with (
        Rspamd(lab, workers=PROXY, override=override, local=local, redis=False) as daemon,
        serve(lab, f"inet:127.0.0.1:{RSPAMD}") as server,
    ):
        daemon.wait_for("starting rspamd_proxy process")
        assert send(server, b"Subject: fine").code == 250
        refused = send(server, b"Subject: bad", body=GTUBE)
        assert refused.stage == "."
        assert refused.code == 554
        assert "X-Spam-Status" in only(server).message
