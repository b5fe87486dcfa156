"""filter-content under real servers: attachments refused, removed and logged, and privacy."""

from __future__ import annotations

import base64
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.server import (
    file_path,
    filter_command,
    scratch_path,
    system_version,
)
from tests.authentication.signing import verified
from tests.e2e.sending import ZONE, attempt, crowd, logged
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


LARGE = {
    "35 MB": attached(EXE + b"\0" * (25 << 20), b"Content-Type: x/y; name=a.bin\n"),
    "10,000 parts": mixed(*[b"Content-Type: x/y; name=a.exe\n\nMZ\n"] * 10_000),
    "100 levels": b"Content-Type: message/rfc822\n\n" * 100
    + b"Content-Type: x/y; name=a.exe\n\nMZ\n",
}
CLEAN = attached(
    b"%PDF-1.4\n" + bytes(range(256)) * (100 << 10), b"Content-Type: application/pdf\n"
)
#: Kilobytes that the filter has at most; the messages are larger, and there are several at once.
MEMORY = 90 << 10


@pytest.mark.parametrize("version", [system_version()], indirect=True)
def test_large_messages_at_once(start: Start) -> None:
    """Each is judged to its end, in bounded memory, and what is clean is delivered as it was."""
    server = start(filters={"content": filter_command("content")})
    clients = [{"server": server, "message": wire(each)} for each in (*LARGE.values(), CLEAN)]
    *refused, delivered = crowd(attempt, clients)
    assert [each.code for each in refused] == [550] * 3
    assert refused[0].text == "5.7.1 Attachments of this kind are not accepted"
    assert (delivered.stage, delivered.code) == ("", 250)
    [mail] = server.maildir("alice")
    assert mail.content.partition(b"\n\n")[2] == CLEAN.partition(b"\n\n")[2]
    for process in server.find("filter-content"):
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) < MEMORY
