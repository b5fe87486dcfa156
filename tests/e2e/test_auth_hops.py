"""Mail that real servers pass on: signed, sealed, changed on the way, and checked at the last.

One smtpd has a listener for each hop, and passes a message on to the next by SMTP:

- SIGN signs with DKIM;
- HOP checks, and seals with ARC, as a server that forwards mail;
- CHANGE changes the body, as a mailing list does;
- LIST checks, changes the body and seals, and passes on from an address that isn't the sender's;
- LAST checks and delivers, and trusts the seals of HOP and LIST;
- DOUBT does as well, and trusts other seals.

The domain of the recipient chooses the way.
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

import pytest

from smtpd_filters.authentication.dkim.private_keys import parse_private_key
from smtpd_filters.authentication.results import parse
from smtpd_filters.testing.server import (
    Smtpd,
    file_path,
    filter_command,
    scratch_path,
    script_command,
)
from tests.e2e.sending import DYNAMIC, GOOD, ZONE, greeted, logged, transact
from tests.e2e.test_dkimsign import MESSAGES
from tests.filters.test_dkimsign import pem

SIGN, HOP, CHANGE, LAST, LIST, DOUBT = 25, 2526, 2527, 2528, 2529, 2530
SENDER = "joe@good.example"
#: The ways from SIGN, by the domain of the recipient.
DIRECT, FORWARDED, CHANGED, LATE, TRUSTED, DOUBTED = WAYS = (
    "direct.example", "forwarded.example", "changed.example", "late.example", "trusted.example",
    "doubted.example",
)  # fmt: skip
# By default a server waits for some seconds before it connects to a route again.
DECLARATIONS = f"""
mta limit conn-delay-route 0
mta limit reconn-delay-route 0
filter "hop" chain {{ "hop-auth", "seal" }}
filter "list" chain {{ "hop-auth", "change", "seal" }}
action "to-hop" relay host smtp://127.0.0.1:{HOP} src {GOOD} helo mail.good.example
action "to-change" relay host smtp://127.0.0.1:{CHANGE} src {GOOD} helo mail.good.example
action "to-last" relay host smtp://127.0.0.1:{LAST} src {GOOD} helo mail.good.example
action "to-list" relay host smtp://127.0.0.1:{LIST} src {GOOD} helo mail.good.example
action "on-to-last" relay host smtp://127.0.0.1:{LAST} src {DYNAMIC} helo list.example
action "on-to-doubt" relay host smtp://127.0.0.1:{DOUBT} src {DYNAMIC} helo list.example
"""
LISTENERS = f"""
listen on 127.0.0.1 port {SIGN} tag SIGN filter "sign"
listen on 127.0.0.1 port {HOP} tag HOP filter "hop"
listen on 127.0.0.1 port {CHANGE} tag CHANGE filter "change"
listen on 127.0.0.1 port {LAST} tag LAST filter "auth"
listen on 127.0.0.1 port {LIST} tag LIST filter "list"
listen on 127.0.0.1 port {DOUBT} tag DOUBT filter "doubt"
"""
MATCHES = f"""
match tag LAST from any for any action "deliver"
match tag DOUBT from any for any action "deliver"
match tag LIST from any for domain {DOUBTED} action "on-to-doubt"
match tag LIST from any for any action "on-to-last"
match tag SIGN from any for domain {{ {TRUSTED}, {DOUBTED} }} action "to-list"
match tag CHANGE from any for any action "to-last"
match tag HOP from any for domain {LATE} action "to-change"
match tag HOP from any for any action "to-last"
match tag SIGN from any for domain {DIRECT} action "to-last"
match tag SIGN from any for domain {CHANGED} action "to-change"
match tag SIGN from any for any action "to-hop"
"""
SENT = {name: MESSAGES[name] for name in ("plain", "empty", "dots", "8-bit", "trailing blanks")}
#: A filter that changes the last line of a body.
CHANGER = """
import sys
for line in sys.stdin:
    kind, *fields = line.rstrip("\\n").split("|")
    if kind == "config" and fields[0] == "ready":
        print("register|filter|smtp-in|data-line\\nregister|ready", flush=True)
    elif kind == "filter":
        session, token, text = fields[4], fields[5], "|".join(fields[6:])
        if text == ".":
            print(f"filter-dataline|{session}|{token}|a footer")
        print(f"filter-dataline|{session}|{token}|{text}", flush=True)
"""


class Mail(NamedTuple):
    """A delivered message: its way, its subject, its folder, and the results at the last hop."""

    way: str
    subject: str
    folder: str
    content: bytes
    results: dict[str, str]
    properties: dict[str, str]


Mails: TypeAlias = dict[str, list[Mail]]


@pytest.fixture(scope="module")
def collected() -> dict[str, Mails]:
    """The mail of each version, which is sent once."""
    return {}


@pytest.fixture
def mails(version: str, collected: dict[str, Mails]) -> Mails:
    """Return what is delivered of all messages sent all ways."""
    if version not in collected:
        collected[version] = send_all(version)
    return collected[version]


def send_all(version: str) -> Mails:
    """Send all messages all ways; return those that are delivered, by their ways."""
    record = parse_private_key(pem()).record()
    zone = ZONE | {
        "good.example": {"TXT": f"v=spf1 ip4:{GOOD} -all"},
        "_dmarc.good.example": {"TXT": "v=DMARC1; p=reject"},
        "rsa._domainkey.good.example": {"TXT": record},
        "rsa._domainkey.hop.example": {"TXT": record},
    }
    key = scratch_path("key")
    asking = "--nameserver=127.0.0.1"

    def signing(*flags: str) -> str:
        run = filter_command("dkimsign", "-k", key, "-s", "rsa", *flags)
        return f"/bin/sh {file_path('sign.sh')} '{run}'"

    script = f'umask 077\ncp {file_path("key")} {key}.$$\nmv {key}.$$ {key}\neval exec "$1"\n'
    with Smtpd(
        version,
        zone=zone,
        files={"key": pem(), "sign.sh": script, "change.py": CHANGER},
        filters={
            "sign": signing("-d", "good.example", "-c", "relaxed/relaxed"),
            "hop-auth": filter_command("auth", asking, "--authserv-id=hop.example"),
            "seal": signing("-d", "hop.example", "--arc-seal", "hop.example"),
            "change": script_command(file_path("change.py")),
            "auth": filter_command(
                "auth", asking, "--authserv-id=last.example", "--dmarc-reject=reject",
                "--trusted-sealers=hop.example",
            ),
            "doubt": filter_command(
                "auth", asking, "--authserv-id=last.example", "--dmarc=honour",
                "--trusted-sealers=other.example",
            ),
        },
        declarations=DECLARATIONS,
        listeners=LISTENERS,
        matches=MATCHES,
    ) as server:  # fmt: skip
        with greeted(server.connection()) as connection:
            for message in SENT.values():
                recipients = [f"alice@{way}" for way in WAYS]
                outcome = transact(connection, SENDER, recipients, message)
                assert outcome.code == 250
        found: Mails = {way: [] for way in WAYS}
        for mail in server.maildir("alice"):
            content = mail.content
            (to,) = re.findall(rb"(?m)^Delivered-To: alice@(\S+)", content)
            way = to.decode()
            value = str(mail.message["Authentication-Results"])
            content_of = parse(value)
            assert content_of is not None
            assert content_of.authserv_id == "last.example"
            results = {
                each.properties[0][0] if each.method == "spf" else each.method: each.result
                for each in content_of.results
            }
            properties = dict(pair for each in content_of.results for pair in each.properties)
            subject = str(mail.message["Subject"])
            found[way].append(Mail(way, subject, mail.folder, content, results, properties))
        logged(server, r"auth: .* result=edit .*overridden by ARC sealer hop", len(SENT))
        logged(server, r"doubt: .* result=junk .*policy=reject\"", len(SENT))
        return found


def test_signed_mail_passes_at_the_next_server(mails: Mails) -> None:
    assert len(mails[DIRECT]) == len(SENT)
    for mail in mails[DIRECT]:
        assert mail.results.items() >= {
            "smtp.mailfrom": "pass", "dkim": "pass", "dmarc": "pass",
        }.items()  # fmt: skip
        assert "arc" not in mail.results


def test_forwarded_mail_has_a_valid_chain(mails: Mails) -> None:
    assert len(mails[FORWARDED]) == len(SENT)
    for mail in mails[FORWARDED]:
        assert mail.results.items() >= {"dkim": "pass", "arc": "pass", "dmarc": "pass"}.items()
        assert mail.properties["header.oldest-pass"] == "0"
        assert b"\nARC-Seal: i=1;" in mail.content
        assert re.search(rb"ARC-Authentication-Results: i=1;\s+hop\.example;", mail.content)


def test_mail_changed_on_its_way_fails(mails: Mails) -> None:
    for mail in mails[CHANGED]:
        assert b"\na footer\n" in mail.content
        assert mail.results["dkim"] == "fail"
        assert "arc" not in mail.results
        # SPF passes: the client of the last hop is one of the domain's.
        assert mail.results["dmarc"] == "pass"
    for mail in mails[LATE]:
        # Changed behind the server that sealed it.
        assert (mail.results["dkim"], mail.results["arc"]) == ("fail", "fail"), mail.subject
        assert "header.oldest-pass" not in mail.properties
    for way in (CHANGED, LATE):
        assert {mail.subject for mail in mails[way]} == {mail.subject for mail in mails[DIRECT]}


def test_a_trusted_sealer_overrides_the_policy_and_not_the_result(mails: Mails) -> None:
    """A list breaks SPF and DKIM under p=reject: its seal decides, and only where it is trusted."""
    for way, folder, disposition in ((TRUSTED, "", "none"), (DOUBTED, "Junk", "reject")):
        assert {mail.subject for mail in mails[way]} == {mail.subject for mail in mails[DIRECT]}
        for mail in mails[way]:
            assert b"\na footer\n" in mail.content
            assert mail.results.items() >= {
                "smtp.mailfrom": "fail", "dkim": "fail", "arc": "pass", "dmarc": "fail",
            }.items()  # fmt: skip
            assert mail.properties["policy.dmarc"] == disposition
            assert mail.folder == folder
            assert (b"overridden by a trusted ARC sealer" in mail.content) == (way == TRUSTED)
