"""filter-auth under real servers: signed, forged and forwarded mail, and a DNS that fails."""

from __future__ import annotations

import asyncio
import re
from email import message_from_bytes
from time import time
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.authentication.results import parse
from smtpd_filters.filters.auth.reporting import day_of
from smtpd_filters.stores.sqlite import SQLiteStore
from smtpd_filters.testing.server import filter_command, scratch_path
from tests.authentication.signing import public, rsa_key, signed
from tests.e2e.sending import ALICE, GOOD, GOOD6, NAMELESS, ZONE, attempt, folders, logged
from tests.filters.auth.recorded import rows_on

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

FIELD = "Authentication-Results"
OWN = "mx.local.example"
SPF = f"v=spf1 ip4:{GOOD} ip6:{GOOD6} -all"
TEMPLATE = (
    "v=1; a=rsa-sha256; c={form}; d=good.example; s=sel;\r\n"
    "\th=from:to:subject; bh={{bh}};\r\n\tb={{b}}"
)
HEAD = (
    b"From: Someone <someone@good.example>\r\nTo: Alice <alice@local.example>\r\nSubject: hello\r\n"
)
BODIES = {
    "plain": b"hello\r\n",
    "empty": b"",
    "dots": b".\r\n..\r\n.dot\r\n",
    "trailing blanks": b"a  b \t\r\n \r\n\r\n\r\n",
    "8-bit": bytes(range(0xA0, 0x100)) + b"\r\n",
    "long lines": b"a b" * 300 + b"\r\n" + b"x" * 990 + b"\r\n",
}


def zone(**more: dict[str, Any]) -> dict[str, Any]:
    key = f"v=DKIM1; p={public(rsa_key())}"
    return {
        **ZONE,
        "good.example": {"TXT": SPF},
        "_dmarc.good.example": {"TXT": "v=DMARC1; p=reject; rua=mailto:dmarc@good.example"},
        "sel._domainkey.good.example": {"TXT": key},
        "soft.example": {"TXT": "v=spf1 ~all"},
        "_dmarc.soft.example": {"TXT": "v=DMARC1; p=quarantine"},
        **{name.replace("_", "."): types for name, types in more.items()},
    }


def launch(start: Start, *flags: str, names: dict[str, Any] | None = None) -> Smtpd:
    command = filter_command("auth", "--nameserver=127.0.0.1", f"--authserv-id={OWN}", *flags)
    return start(zone=zone() if names is None else names, filters={"auth": command})


def results(content: bytes) -> dict[str, str]:
    """Return the results of the topmost field, by method or, of SPF, by property."""
    values = message_from_bytes(content).get_all(FIELD)
    assert values
    found = parse(str(values[0]))
    assert found is not None
    assert found.authserv_id == OWN
    return {
        each.properties[0][0] if each.method == "spf" else each.method: each.result
        for each in found.results
    }


PASS = {"smtp.mailfrom": "pass", "dkim": "pass", "dmarc": "pass"}


@pytest.mark.parametrize("form", ["relaxed/relaxed", "simple/simple"])
def test_signed_mail(start: Start, form: str, tmp_path: Path) -> None:
    store = f"--report-to=sqlite:{scratch_path('auth.sqlite')}"
    server = launch(start, "--dmarc-reject=reject", store)
    for source in (GOOD, GOOD6):
        for body in BODIES.values():
            message = signed(HEAD + b"\r\n" + body, TEMPLATE.format(form=form))
            assert attempt(server, source, message=message).stage == ""
    mails = server.maildir("alice")
    assert len(mails) == 2 * len(BODIES)
    for mail in mails:
        assert results(mail.content).items() >= PASS.items()
    # Filters end before the server does, and record what waits.
    server.terminate()
    counts = recorded(server, tmp_path)
    assert counts == {GOOD: len(BODIES), GOOD6: len(BODIES)}


def recorded(server: Smtpd, folder: Path) -> dict[str, int]:
    """Return the numbers of messages in the filter's store, by clients."""
    for name in ("auth.sqlite", "auth.sqlite-wal"):
        path = server.path(scratch_path(name))
        if path.exists():
            (folder / name).write_bytes(path.read_bytes())

    async def read() -> dict[str, int]:
        store = SQLiteStore(str(folder / "auth.sqlite"), timeout=60, note=print)
        try:
            days = [await rows_on(store, day_of(time() - ago)) for ago in (0, 86400)]
        finally:
            await store.aclose()
        return {
            row.source: number
            for day in days
            for published, rows in day.values()
            for row, number in rows
            if (published.domain, row.disposition) == ("good.example", "pass")
        }

    return asyncio.run(read())


def test_mail_that_is_not_what_it_claims(start: Start) -> None:
    server = launch(start, "--dmarc=honour", "--dmarc-reject=reject")
    message = signed(HEAD + b"\r\nhello\r\n", TEMPLATE.format(form="relaxed/relaxed"))
    tampered = message.replace(b"hello\r\n", b"hallo\r\n")
    # The signature is valid, whichever server forwards the message.
    assert attempt(server, NAMELESS, message=message).stage == ""
    outcome = attempt(server, NAMELESS, message=tampered)
    text = "Not authenticated, refused per DMARC policy of good.example"
    assert (outcome.code, outcome.text) == (550, f"5.7.26 {text}")
    quarantined = tampered.replace(b"someone@good.example", b"someone@soft.example")
    assert attempt(server, NAMELESS, message=quarantined).stage == ""
    assert folders(server) == ["", "Junk"]
    found = [results(mail.content) for mail in server.maildir("alice")]
    assert [(each["smtp.mailfrom"], each["dkim"], each["dmarc"]) for each in found] == [
        ("fail", "pass", "pass"),
        ("fail", "fail", "fail"),
    ]
    logged(server, '^auth: .* auth message result=reject reason=".*dmarc=fail good.example', 1)
    logged(server, '^auth: .* auth message result=junk reason=".*dmarc=fail soft.example', 1)


@pytest.mark.parametrize("flags", [(), ("--scrub-only",)])
def test_forged_fields(start: Start, flags: tuple[str, ...]) -> None:
    asking = () if flags else ("--nameserver=127.0.0.1",)
    command = filter_command("auth", f"--authserv-id={OWN}", *flags, *asking)
    server = start(zone=zone(), filters={"auth": command})
    forged = (
        f"{FIELD}: {OWN}; dmarc=pass header.from=good.example\r\n"
        f'{FIELD.lower()} : (a)\r\n "{OWN.upper()}" 1; spf=pass\r\n'
        f"{FIELD}: other.example; spf=pass\r\n"
    ).encode()
    assert attempt(server, NAMELESS, message=forged + HEAD + b"\r\nhello\r\n").stage == ""
    mail = (forged + HEAD + b"\r\nhello\r\n").replace(b"\r\n", b"\n")
    server.submit(mail, "alice", ALICE)
    first, local = (mail.content for mail in server.maildir("alice"))
    values = [str(value) for value in message_from_bytes(first).get_all(FIELD, [])]
    assert values[-1] == "other.example; spf=pass"
    assert len(values) == (1 if flags else 2)
    assert not any("dmarc=pass" in value for value in values)
    found = re.compile(rb"^authentication-results ?:", re.IGNORECASE | re.MULTILINE)
    assert len(found.findall(first)) == len(values)
    assert len(found.findall(local)) == 3


def test_a_user(start: Start) -> None:
    server = launch(start)
    assert attempt(server, NAMELESS, user="alice").stage == ""
    (mail,) = server.maildir("alice")
    assert results(mail.content) == {"auth": "pass"}
    value = str(message_from_bytes(mail.content)[FIELD])
    assert "smtp.auth=alice" in value


FAULTS: dict[str, dict[str, Any]] = {
    "dead.example": {"drop": True},
    "slow.example": {"delay": 60},
    "servfail.example": {"servfail": True},
    "lying.example": {"wrong-id": True},
    "other.example": {"wrong-owner": True},
}


@pytest.mark.parametrize("on_error", ["proceed", "junk", "tempfail"])
def test_a_dns_that_fails(start: Start, on_error: str) -> None:
    names = zone()
    for name, fault in FAULTS.items():
        for owner in (name, f"_dmarc.{name}"):
            names[owner] = {"TXT": "v=spf1 -all", **fault}
    server = launch(
        start, "--dmarc=honour", "--timeout=50ms", f"--on-error={on_error}", names=names
    )
    for name in FAULTS:
        message = HEAD.replace(b"good.example", name.encode()) + b"\r\nhello\r\n"
        outcome = attempt(server, NAMELESS, sender=f"a@{name}", message=message)
        if on_error == "tempfail":
            assert (outcome.code, outcome.stayed) == (451, True)
            assert outcome.text.startswith("4.4.3 ")
        else:
            assert outcome.stage == ""
    expected = {"proceed": [""], "junk": ["Junk"], "tempfail": []}[on_error] * len(FAULTS)
    assert folders(server) == expected
    for mail in server.maildir("alice"):
        found = results(mail.content)
        assert (found["smtp.mailfrom"], found["dmarc"]) == ("temperror", "temperror")
