"""The lines of docs/migrating.md in place of milters, under real servers: old and new are compared.

Each milter is asked by filter-milter. Both get the same messages; the page has what differs.
"""

from __future__ import annotations

import re
import shlex
from email.utils import formatdate
from typing import TYPE_CHECKING, NamedTuple

import pytest

from smtpd_filters.testing.dns import merge
from smtpd_filters.testing.rspamd.daemon import Rspamd
from smtpd_filters.testing.rspamd.daemon import unavailable as no_rspamd
from smtpd_filters.testing.server import (
    Lab,
    Smtpd,
    file_path,
    filter_command,
    scratch_path,
    system_version,
)
from smtpd_filters.testing.server import unavailable as no_lab
from tests.e2e import clamd_set_up
from tests.e2e.daemon import FILES, unavailable
from tests.e2e.milter_set_up import clamav_milter, opendkim, opendmarc, spamass_milter, spamd
from tests.e2e.policy_set_up import no_policyd_spf, policyd_spf
from tests.e2e.sending import GOOD, SENDER, ZONE, Outcome, attempt
from tests.e2e.test_milter_daemons import GTUBE, PROXY, RSPAMD
from tests.filters.test_dkimsign import pem
from tests.needed import need
from tests.test_moving import section

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from smtpd_filters.testing.server.smtpd import Delivered

CLAMD = 3310
#: A port at which nobody listens.
NOBODY = 9
LOCAL = "127.0.0.1"
POLICIES = merge(
    ZONE,
    {
        "pass.example": {"TXT": f"v=spf1 ip4:{GOOD} -all"},
        "_dmarc.pass.example": {"TXT": "v=DMARC1; p=reject"},
        "_dmarc.strict.example": {"TXT": "v=DMARC1; p=reject"},
        "_dmarc.middle.example": {"TXT": "v=DMARC1; p=quarantine"},
        "_dmarc.mild.example": {"TXT": "v=DMARC1; p=none"},
        "fail.example": {"TXT": "v=spf1 -all"},
        "soft.example": {"TXT": "v=spf1 ~all"},
        "neutral.example": {"TXT": "v=spf1 ?all"},
        "invalid.example": {"TXT": "v=spf1 nonsense:x"},
        "broken.example": {"servfail": True},
    },
)


class Mail(NamedTuple):
    """A message of the comparison, by its subject, and how it is sent."""

    subject: str
    fields: bytes = b""
    body: bytes = b"hello\r\n"
    author: str = SENDER
    source: str = GOOD
    user: str | None = None
    helo: str = "client.example"

    def send(self, server: Smtpd) -> Outcome:
        """Send it; its author is the sender."""
        author = f"From: {self.author}\r\n" if self.author else ""
        head = f"{author}Date: {formatdate()}\r\nTo: alice@local.example\r\n"
        head += f"Message-ID: <1@good.example>\r\nSubject: {self.subject}\r\n"
        message = head.encode() + self.fields + b"\r\n" + self.body
        sender = self.author or SENDER
        return attempt(
            server,
            self.source,
            sender=sender,
            message=message,
            user=self.user,
            helo=f"EHLO {self.helo}",
        )


class Seen(NamedTuple):
    """What became of all messages."""

    refused: dict[str, int]
    delivered: dict[str, Delivered]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The network of the module's servers."""
    need(no_lab())
    with Lab(POLICIES) as made:
        yield made


def flags(name: str) -> list[str]:
    """The flags of the first line in a part of the page."""
    found = re.search(r'(?m)^filter "\w+" proc-exec "filter-\w+ (.*)"$', section(name))
    assert found
    return shlex.split(found[1])


def seen(
    lab: Lab, command: str, mails: Iterable[Mail], files: Mapping[str, bytes | str] | None = None
) -> Seen:
    """Send messages to a server with this filter."""
    version = system_version()
    if version is None:
        pytest.skip("needs an smtpd of this system")
    with Smtpd(version, lab=lab, filters={"tried": command}, files=files or {}) as server:
        outcomes = {mail.subject: mail.send(server) for mail in mails}
        refused = {name: found.code for name, found in outcomes.items() if found.code != 250}
        return Seen(refused, {mail.message["Subject"]: mail for mail in server.maildir("alice")})


def old(lab: Lab, address: str, mails: Iterable[Mail]) -> Seen:
    """Send them to a server with a milter."""
    return seen(lab, filter_command("milter", "--milter", address), mails)


def test_clamav_milter(lab: Lab) -> None:
    need(clamd_set_up.unavailable() or unavailable("clamav-milter"))
    mails = [
        Mail("clean", fields=b"X-Virus-Status: forged\r\n"),
        Mail("virus", body=clamd_set_up.EICAR + b"\r\n"),
        Mail("virus of a user", body=clamd_set_up.EICAR + b"\r\n", user="bob"),
        Mail("suspicious", body=clamd_set_up.SUSPICIOUS + b"\r\n"),
        Mail("large", body=b"0123456789abcde\r\n" * 40_000 + clamd_set_up.EICAR + b"\r\n"),
    ]
    with clamd_set_up.ClamAV(port=CLAMD, lab=lab):
        settings = ("OnInfected Reject", "AddHeader Replace", "MaxFileSize 500K")
        with clamav_milter(lab, CLAMD, *settings) as daemon:
            before = old(lab, daemon.address, mails)
        own = [
            each.replace("/run/clamav/clamd.ctl", f"{LOCAL}:{CLAMD}")
            for each in flags("clamav-milter")
        ]
        after = seen(lab, filter_command("clamav", *own, "--max-size", "500k"), mails)
    assert before.refused == dict.fromkeys(("virus", "virus of a user", "suspicious"), 550)
    assert after.refused == dict.fromkeys(before.refused, 554)
    for found in (before, after):
        assert found.delivered["clean"].message.get_all("X-Virus-Status") == ["Clean"]
    # Only the beginning was scanned.
    assert before.delivered["large"].message["X-Virus-Status"] == "Clean"
    assert after.delivered["large"].message["X-Virus-Status"] is None


def test_spamass_milter(lab: Lab) -> None:
    need(unavailable("spamass-milter", "spamd"))
    spam = b"X-Test-Spam: yes\r\n"
    mails = [
        Mail("ham", fields=b"X-Spam-Flag: forged\r\n"),
        Mail("spam", fields=spam),
        Mail("spam of a user", fields=spam, user="bob"),
        Mail("local spam", fields=spam, source=LOCAL),
        Mail("large spam", fields=spam, body=b"0123456789abcde\r\n" * 40_000),
    ]
    own = flags("spamass-milter")
    with spamd(lab) as scanner:
        with spamass_milter(lab, scanner.port, "-u", "spamass-milter", "-i", LOCAL) as daemon:
            before = old(lab, daemon.address, mails)
        there = ("--spamd", f"{LOCAL}:{scanner.port}")
        after = seen(lab, filter_command("spamd", *own, *there), mails)
    assert before.refused == after.refused == {}
    for mail in mails:
        one, other = (found.delivered[mail.subject].message for found in (before, after))
        assert one.get_content_type() == other.get_content_type()
        for name in ("X-Spam-Flag", "X-Spam-Status", "X-Spam-Checker-Version"):
            assert one.get_all(name) == other.get_all(name), (mail.subject, name)
    assert after.delivered["spam"].message.get_content_type() == "multipart/mixed"
    marked = {name for name, mail in after.delivered.items() if mail.message["X-Spam"]}
    assert marked == {"spam", "spam of a user"}
    # Without spamd both accept.
    with spamass_milter(lab, NOBODY, "-u", "spamass-milter") as daemon:
        before = old(lab, daemon.address, mails[:1])
    after = seen(lab, filter_command("spamd", *own, "--spamd", f"{LOCAL}:{NOBODY}"), mails[:1])
    assert before.refused == after.refused == {}


def test_opendkim_that_signs(lab: Lab) -> None:
    need(unavailable("opendkim"))
    mails = [
        Mail("user", user="bob"),
        Mail("user with another name", user="bob", author="joe@other.example"),
        Mail("local", source=LOCAL),
        Mail("stranger"),
    ]
    settings = (
        f"KeyTable {FILES}/keys", f"SigningTable refile:{FILES}/signing",
        "Canonicalization relaxed/simple", "OversignHeaders From",
    )  # fmt: skip
    own = {
        "own.key": pem().decode(),
        "keys": f"k good.example:rsa:{FILES}/own.key\n",
        "signing": "*@good.example k\n",
    }
    with opendkim(lab, *settings, files=own) as daemon:
        before = old(lab, daemon.address, mails)
    key, table = scratch_path("key"), scratch_path("keys")
    command = filter_command(
        "dkimsign", *(each.replace("/etc/mail/dkim/keys", table) for each in flags("OpenDKIM"))
    )
    script = (
        f"umask 077\ncp {file_path('key')} {key}\necho good.example rsa {key} >{table}\n"
        f"exec {command}\n"
    )
    files: dict[str, bytes | str] = {"key": pem(), "sign.sh": script}
    after = seen(lab, f"/bin/sh {file_path('sign.sh')}", mails, files)
    assert before.refused == after.refused == {}
    for mail in mails:
        one, other = (tags(found.delivered[mail.subject]) for found in (before, after))
        assert one == other, mail.subject
        assert bool(one) is (mail.subject in {"user", "local"})


def tags(mail: Delivered) -> dict[str, str | list[str]]:
    """What two signatures of a message have in common; {} without one."""
    value = re.sub(r"\s", "", mail.message["DKIM-Signature"] or "")
    found = dict(each.split("=", 1) for each in value.split(";") if each)
    if not found:
        return {}
    assert "t" in found
    names = sorted(found["h"].lower().split(":"))
    return {"names": names, **{tag: found[tag] for tag in ("a", "c", "d", "s", "bh")}}


def test_opendmarc(lab: Lab) -> None:
    need(unavailable("opendmarc"))
    mails = [
        Mail("pass", author="a@pass.example"),
        Mail("reject", author="a@strict.example"),
        Mail("quarantine", author="a@middle.example"),
        Mail("none", author="a@mild.example"),
        Mail("no policy"),
        Mail("no author", author=""),
        Mail("user", author="a@strict.example", user="bob"),
        Mail("local", author="a@strict.example", source=LOCAL),
    ]
    settings = (
        "SPFSelfValidate yes", "RejectFailures yes", "HoldQuarantinedMessages yes",
        "RequiredHeaders yes", "IgnoreAuthenticatedClients yes",
    )  # fmt: skip
    with opendmarc(lab, *settings) as daemon:
        before = old(lab, daemon.address, mails)
    after = seen(lab, filter_command("auth", *flags("OpenDMARC")), mails)
    assert before.refused == after.refused == {"reject": 550, "no author": 550}
    for found in (before, after):
        marked = {name for name, mail in found.delivered.items() if mail.message["X-Spam"]}
        assert marked == {"quarantine"}


def test_policyd_spf(lab: Lab) -> None:
    need(no_policyd_spf())
    mails = [
        Mail("pass", author="a@pass.example"),
        Mail("fail", author="a@fail.example"),
        Mail("softfail", author="a@soft.example"),
        Mail("neutral", author="a@neutral.example"),
        Mail("permerror", author="a@invalid.example"),
        Mail("temperror", author="a@broken.example"),
        Mail("none", author="a@nowhere.example"),
        Mail("greeting", author="a@pass.example", helo="fail.example"),
        Mail("user", author="a@fail.example", user="bob"),
        Mail("local", author="a@fail.example", source=LOCAL),
    ]
    program = policyd_spf(file_path("spf.conf"))
    command = filter_command("policy", "--server", f"exec:{program}")
    page = filter_command("auth", *flags("policyd-spf"))
    rich = ("--spf-fail", "reject", "--spf-softfail", "reject", "--on-error", "tempfail")
    for conf, own, refused in (
        ("", page, {"fail": 550, "greeting": 550}),
        (
            "HELO_reject = False\nMail_From_reject = Softfail\nTempError_Defer = True\n",
            filter_command("auth", *rich, "--received-spf"),
            {"fail": 550, "softfail": 550, "temperror": 450},
        ),
    ):
        before = seen(lab, command, mails, {"spf.conf": f"debugLevel = 0\nTestOnly = 1\n{conf}"})
        after = seen(lab, own, mails)
        assert before.refused == refused
        # The code of a temporary refusal differs.
        assert after.refused == {name: max(451, code) for name, code in refused.items()}
        # policyd-spf states its result for HELO alone in "greeting"; where a name server fails it
        # now and then has "none".
        others = before.delivered.keys() - {"greeting", "temperror"}
        assert {"pass", "neutral", "permerror", "none"} <= others
        for name in others:
            found = result_of_spf(after.delivered[name])
            assert result_of_spf(before.delivered[name]) == found, name
        if "temperror" not in refused:
            assert result_of_spf(after.delivered["temperror"]) == "temperror"


def result_of_spf(mail: Delivered) -> str:
    """The first word of Received-SPF; "" without the field."""
    return (mail.message["Received-SPF"] or "").partition(" ")[0].lower()


#: Actions of the daemon by a field of the message.
ACTIONS = """
for name, action in pairs({["X-Add"] = "add header", ["X-Soft"] = "soft reject"}) do
  rspamd_config:register_symbol({
    name = "TEST_" .. name:gsub("-", "_"):upper(), type = "prefilter",
    callback = function(task)
      if task:get_header(name) then task:set_pre_result(action, "because") end
    end
  })
end
"""


def test_rspamds_milter(lab: Lab) -> None:
    need(no_rspamd())
    mails = [
        Mail("fine", fields=b"X-Spam: forged\r\n"),
        Mail("reject", body=GTUBE),
        Mail("soft reject", fields=b"X-Soft: yes\r\n"),
        Mail("add header", fields=b"X-Add: yes\r\n"),
        Mail("user", user="bob"),
    ]
    local = {
        "milter_headers.conf": 'use = ["x-spamd-bar", "x-spam-status"]; skip_local = false;',
        "../rspamd.local.lua": ACTIONS,
    }
    override = {"greylist.conf": "enabled = false;"}
    with Rspamd(lab, workers=PROXY, override=override, local=local, redis=False) as daemon:
        daemon.wait_for("starting rspamd_proxy process")
        before = old(lab, f"inet:{RSPAMD}@{LOCAL}", mails)
        command = filter_command("rspamd", "-url", daemon.url, "--headers", "minimal")
        after = seen(lab, command, mails)
    assert before.refused == after.refused == {"reject": 554, "soft reject": 451}
    for name, mail in before.delivered.items():
        one, other = mail.message, after.delivered[name].message
        for field in ("X-Spam", "X-Spam-Score", "X-Spamd-Bar"):
            assert one.get_all(field) == other.get_all(field), (name, field)
        assert ("X-Spam-Status" in one) is ("X-Spam-Status" in other)
    marked = {name for name, mail in after.delivered.items() if mail.message["X-Spam"]}
    assert marked == {"add header"}
