"""filter-dkimsign under real servers: what is delivered verifies with three verifiers."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from time import time
from typing import TYPE_CHECKING

import dkim
import pytest

from smtpd_filters.authentication.dkim.private_keys import parse_private_key
from smtpd_filters.lookups.outcome import Found
from smtpd_filters.testing.server import file_path, filter_command, scratch_path
from tests.authentication.signing import verified
from tests.e2e import opendkim
from tests.e2e.sending import ZONE, greeted, logged, transact
from tests.filters.test_dkimsign import pem
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from smtpd_filters.authentication.dkim.signatures import Signature
    from smtpd_filters.lookups.outcome import Outcome
    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

HEAD = (
    b"From: Joe <joe@good.example>\r\nTo: root, Doe, Jane <jane@good.example>\r\nCc: cron (job)\r\n"
)
MESSAGES = {
    "plain": HEAD + b"Subject: plain\r\n\r\nhello\r\n",
    "empty": HEAD + b"Subject: empty\r\n\r\n",
    "only a header": HEAD + b"Subject: only a header\r\n",
    "blank lines": HEAD + b"Subject: blank lines\r\n\r\n\r\n\r\nx\r\n\r\n\r\n",
    "dots": HEAD + b"Subject: dots\r\n\r\n.\r\n..\r\n.x\r\n...\r\n. \r\n",
    "8-bit": HEAD + b"Subject: J\xc3\xb6rg \xff\r\n\r\n" + bytes(range(128, 256)) + b"\r\n",
    "trailing blanks": HEAD + b"Subject: blanks  \r\n\r\nx  \t\r\n \r\n\t y\t\tz\r\n",
    "folds": HEAD + b"Subject: a\r\n  folded\r\n\tfield\r\n \r\n\r\nhello\r\n",
    "odd blanks": HEAD + b"Subject: odd\f\r\nReferences: a\r\r\nReply-To: \v\r\n\r\nx\f\r\n",
    "Bcc": HEAD + b"Bcc: secret@good.example\r\nSubject: bcc\r\n\r\nhello\r\n",
    "998": HEAD + b"Subject: long\r\n\r\n" + b"x" * 998 + b"\r\n" + b"y" * 1996 + b"\r\n",
    "large": HEAD + b"Subject: large\r\n\r\n" + b"a line of text\r\n" * 20_000,
}  # fmt: skip
#: Names of fields with blanks before their colons.
SPACED = (
    b"From : joe\r\nTo\t: root\r\nBcc : secret@good.example\r\nSubject \t: spaced\r\n  folded\r\n"
    b"X-Other : x\r\nDate : Tue, 1 Dec 2026 08:00:00 +0000\r\n\r\nhello\r\n"
)
TABLE = "good.example rsa {rsa}\ngood.example ed {ed}\n"


@cache
def keys() -> dict[str, Outcome[bytes]]:
    """Return the records of both keys."""
    found: dict[str, Outcome[bytes]] = {}
    for selector, ed25519 in (("rsa", False), ("ed", True)):
        text = parse_private_key(pem(ed25519=ed25519)).record()
        found[f"{selector}._domainkey.good.example"] = Found((text.encode(),), 60)
    return found


@pytest.fixture
def signing(start: Start) -> Callable[..., Smtpd]:
    """Start a server with the filter; its keys are readable to it alone."""

    def begin(*flags: str) -> Smtpd:
        copies = {name: scratch_path(name) for name in ("rsa", "ed")}
        run = filter_command("dkimsign", "--keys", scratch_path("table"), *flags)
        script = "umask 077\n" + "".join(
            f"cp {file_path(name)} {copy}\n" for name, copy in copies.items()
        )
        script += f"cat >{scratch_path('table')} <<.\n{TABLE.format(**copies)}.\nexec {run}\n"
        files = {"rsa": pem(), "ed": pem(ed25519=True), "sign.sh": script}
        return start(zone=ZONE, files=files, filters={"sign": f"/bin/sh {file_path('sign.sh')}"})

    return begin


def delivered(server: Smtpd, *messages: bytes) -> list[bytes]:
    """Send messages; return them as they are delivered, with CRLF."""
    with greeted(server.connection()) as connection:
        for message in messages:
            assert transact(connection, "joe@good.example", message=message).code == 250
    found = {mail.message["Subject"]: mail.content for mail in server.maildir("alice")}
    assert len(found) == len(messages)
    return [content.replace(b"\n", b"\r\n") for content in found.values()]


@pytest.mark.parametrize("form", ["simple/simple", "relaxed/simple", "relaxed/relaxed"])
def test_what_is_delivered_verifies(signing: Callable[..., Smtpd], form: str) -> None:
    server = signing("-c", form, "-t", "--oversign", "from:to:subject")
    found = delivered(server, *MESSAGES.values())
    assert len(found) == len(MESSAGES)
    for raw in found:
        assert b"\nTo: root@" in raw
        assert b"\nBcc:" not in raw
        assert _results(raw) == [("ed", "pass"), ("rsa", "pass")]
        assert _by_dkimpy(raw)
        changed = raw.replace(b"joe@good", b"jim@good")
        assert {result for _, result in _results(changed)} == {"fail"}


@pytest.mark.parametrize("form", ["simple/simple", "relaxed/relaxed"])
def test_names_with_blanks_are_corrected(signing: Callable[..., Smtpd], form: str) -> None:
    """Rspamd and dkimpy reject a signature that covers such a field; see also test_rspamd."""
    server = signing("-c", form, "-t", "--oversign", "from:to:subject:date")
    (raw,) = delivered(server, SPACED)
    head = raw.partition(b"\r\n\r\n")[0]
    assert b"\r\nFrom: joe@" in head
    assert b"\r\nTo: root@" in head
    assert b"\r\nSubject: spaced\r\n  folded\r\n" in head
    assert head.count(b"\r\nDate") == 1
    assert b"Bcc" not in head
    assert not re.search(rb"(?m)^[!-9;-~]+[ \t]+:", head)
    assert _results(raw) == [("ed", "pass"), ("rsa", "pass")]
    assert _by_dkimpy(raw)


def test_opendkim_agrees(signing: Callable[..., Smtpd], tmp_path: Path) -> None:
    program = shutil.which("opendkim")
    need(None if program else "opendkim is missing")
    assert program
    server = signing("-c", "relaxed/simple")
    (tmp_path / "keys").write_text(
        "".join(
            f"{name} {found.records[0].decode()}\n"
            for name, found in keys().items()
            if isinstance(found, Found) and name.startswith("rsa.")
        )
    )
    conf = tmp_path / "opendkim.conf"
    conf.write_text(f"Mode v\nSyslog no\nTestPublicKeys {tmp_path / 'keys'}\n")
    for number, raw in enumerate(delivered(server, *MESSAGES.values(), SPACED)):
        for text, expected in ((raw, "succeeded"), (raw.replace(b"joe@", b"jim@"), "failed")):
            # Debian's OpenDKIM has no Ed25519, and reports the first signature alone.
            path = tmp_path / f"{number}.eml"
            path.write_bytes(_without(text, b"s=ed;").replace(b"\r\n", b"\n"))
            done = subprocess.run(
                [program, "-x", conf, "-t", path], capture_output=True, text=True, check=False
            )
            assert expected in done.stdout + done.stderr, text[:2000]


@pytest.mark.parametrize("form", ["simple/simple", "relaxed/relaxed"])
def test_signatures_of_opendkim_are_valid(tmp_path: Path, form: str) -> None:
    program = shutil.which("opendkim")
    need(None if program else "opendkim is missing")
    assert program
    with opendkim.daemon(program, tmp_path, pem(form="PKCS1"), form) as path:
        for name, message in MESSAGES.items():
            if name in {"only a header", "odd blanks"}:  # which it takes for white space
                continue
            raw = opendkim.sign(path, message)
            assert _results(raw) == [("rsa", "pass")], name
            assert _results(raw.replace(b"joe@", b"jim@")) == [("rsa", "fail")], name


def test_a_line_that_the_server_cuts(signing: Callable[..., Smtpd], version: str) -> None:
    server = signing("-c", "relaxed/relaxed")
    (raw,) = delivered(server, HEAD + b"Subject: long\r\n\r\n" + b"x" * 1998 + b"\r\n")
    if version.startswith("6."):
        assert b"DKIM-Signature" not in raw
        assert logged(server, r"not signed.*too long for this smtpd", 1)
    else:
        assert {result for _, result in _results(raw)} == {"pass"}


def _results(raw: bytes) -> list[tuple[str, str]]:
    found: tuple[Signature, ...] = verified(raw, keys(), now=time(), authors=())
    return sorted((each.selector, each.result) for each in found)


def _by_dkimpy(raw: bytes) -> bool:
    def lookup(name: bytes, timeout: int = 5) -> bytes | None:
        del timeout
        found = keys().get(name.decode().rstrip("."))
        return found.records[0] if isinstance(found, Found) else None

    return all(dkim.DKIM(raw).verify(idx=number, dnsfunc=lookup) for number in (0, 1))


def _without(raw: bytes, mark: bytes) -> bytes:
    """Return a message without the signature that has this text."""
    lines = raw.split(b"\r\n")
    kept: list[bytes] = []
    field: list[bytes] = []
    for at, line in enumerate([*lines, b""]):
        if field and not line.startswith((b" ", b"\t")):
            if not (field[0].startswith(b"DKIM-Signature:") and mark in b"".join(field)):
                kept += field
            field = []
            if not line:
                return b"\r\n".join([*kept, *lines[at:]])
        field.append(line)
    return raw
