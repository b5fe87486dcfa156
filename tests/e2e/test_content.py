"""filter-content under real servers: attachments refused, removed and logged, and privacy."""

from __future__ import annotations

import base64
from time import time
from typing import TYPE_CHECKING

from smtpd_filters.testing.server import file_path, filter_command, scratch_path
from tests.authentication.signing import verified
from tests.e2e.sending import ZONE, attempt, logged
from tests.e2e.test_dkimsign import keys
from tests.filters.test_dkimsign import pem
from tests.mime.reading import EXE, attached, mixed, zipped

if TYPE_CHECKING:
    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

PROGRAM = mixed(b"Content-Disposition: attachment; filename=a.exe\n\nMZ\n")
ZIPPED = attached(zipped(("x/a.exe", EXE)), b"Content-Type: application/zip; name=a.zip\n")
REVEALING = (
    b"Received: from [192.168.1.7] by laptop; Thu, 1 Jan 2026 00:00:00 +0000\nUser-Agent: Mail/1\n"
    b"From: Joe <joe@good.example>\nSubject: private\nMIME-Version: 1.0 (Mac OS X Mail)\n\nhello\n"
)


def wire(message: bytes) -> bytes:
    return message.replace(b"\n", b"\r\n")


def signed(start: Start) -> Smtpd:
    """A server with filter-content ahead of filter-dkimsign."""
    copy = scratch_path("rsa")
    run = filter_command("dkimsign", "-d", "good.example", "-s", "rsa", "-k", copy)
    script = f"umask 077\ncp {file_path('rsa')} {copy}\nexec {run}\n"
    filters = {
        "content": filter_command("content", "--private"),
        "sign": f"/bin/sh {file_path('sign.sh')}",
    }
    return start(zone=ZONE, files={"rsa": pem(), "sign.sh": script}, filters=filters)


def test_programs_are_refused_and_private_mail_is_signed(start: Start) -> None:
    server = signed(start)
    for message in (PROGRAM, ZIPPED):
        refused = attempt(server, message=wire(message))
        assert refused.said == "550 5.7.1 Attachments of this kind are not accepted"
        assert refused.stayed
    logged(server, r'content message result=reject reason="dangerous: a\.exe( in a\.zip)?"', 2)
    joe = "joe@good.example"
    assert attempt(server, sender=joe, message=wire(REVEALING), user="alice").code == 250
    assert attempt(server, sender=joe, message=wire(REVEALING)).code == 250
    private, other = (mail.content for mail in server.maildir("alice"))
    assert b"User-Agent" not in private
    assert b"192.168.1.7" not in private
    assert b"\nMIME-Version: 1.0\n" in private
    assert b"User-Agent: Mail/1\n" in other
    assert b"192.168.1.7" in other
    for raw in (private, other):
        results = verified(wire(raw), keys(), now=time(), authors=())
        assert [each.result for each in results] == ["pass"]


RULES = """
[[rule]]
name = "programs"
extension = "dangerous"
action = "remove"
note = "{name} was removed."

[[rule]]
name = "zips"
content = "zip"
action = "reject"
log-only = true
"""
ODD = b"Content-Type: x/y; name=b.txt\nX-Odd:   y\n\n..a\n\t\xff\n.\n-- \nlast\n"


def test_a_part_is_removed_and_the_rest_stays(start: Start) -> None:
    flags = ("--dangerous=off", "--rules", file_path("rules.toml"))
    checks = f"--header-checks=pcre:{file_path('checks')}"
    server = start(
        files={"rules.toml": RULES, "checks": r"/^X-Tag: (\w+)/ REPLACE X-Tag: <$1>" + "\n"},
        filters={"content": filter_command("content", *flags, checks)},
    )
    program = b"Content-Type: x/y; name=a.exe\nContent-Transfer-Encoding: base64\n\n"
    mail = b"X-Tag: one two\n" + mixed(ODD, program + base64.encodebytes(EXE), ODD)
    archive = attached(zipped(("a.txt", b"x")), b"Content-Type: application/zip\n")
    for message in (mail, archive):
        assert attempt(server, message=wire(message)).code == 250
    logged(server, "content rule rule=zips reason=zip would=reject", 1)
    edited, unchanged = (mail.content.partition(b"\n\n") for mail in server.maildir("alice"))
    note = b"Content-Disposition: inline\n\na.exe was removed.\n"
    before, after = mixed(ODD, program, ODD).partition(b"\n\n")[2].split(program)
    assert edited[2].startswith(before + b"Content-Type: text/plain; charset=utf-8\n")
    assert edited[2].endswith(note + after)
    assert b"\nX-Tag: <one>\n" in edited[0]
    assert unchanged[2] == archive.partition(b"\n\n")[2]
