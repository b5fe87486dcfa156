"""filter-milter under real servers, with OpenDKIM, OpenDMARC and a program of pymilter."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import dkim
import pytest

from smtpd_filters.authentication.dkim.private_keys import parse_private_key
from smtpd_filters.milter import AddHeader, NewBody, ReplyCode, Verdict
from smtpd_filters.milter import vocabulary as v
from smtpd_filters.testing.dns import merge
from smtpd_filters.testing.server import Lab, filter_command, system_version
from smtpd_filters.testing.server import unavailable as no_lab
from tests.e2e.daemon import FILES, Daemon, unavailable
from tests.e2e.milter_set_up import opendkim, opendmarc, pymilter
from tests.e2e.sending import GOOD, ZONE, attempt, greeted, logged, transact
from tests.e2e.test_dkimsign import MESSAGES
from tests.effort import brief
from tests.filters.milter.stub import milter
from tests.filters.test_dkimsign import pem
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.milter import Event
    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start
    from tests.filters.milter.stub import Seen

SENDER = "joe@good.example"
RECORD = parse_private_key(pem()).record()
PUBLISHED = {
    "rsa._domainkey.good.example": {"TXT": RECORD},
    "_dmarc.good.example": {"TXT": "v=DMARC1; p=reject"},
    "good.example": {"TXT": "v=spf1 -all"},
}
LATER = "Temporary failure"
#: 20 MB.
LARGE = b"".join(b"%d " % number + b"x" * 980 + b"\r\n" for number in range(21_000))
#: A program that gives every answer: the subject says which.
SCRIPT = r"""
import sys
import Milter

class Scripted(Milter.Base):
    def __init__(self):
        self.id = Milter.uniqueID()

    def hello(self, name):
        self.helo = name
        if name == "refused.example":
            self.setreply("550", "5.7.1", "not", "you 100%%")
            return Milter.REJECT
        return Milter.CONTINUE

    def envfrom(self, sender, *parameters):
        self.sender, self.parameters, self.subject, self.size = sender, parameters, "", 0
        self.lines = []
        return Milter.TEMPFAIL if "tempfail" in sender else Milter.CONTINUE

    def envrcpt(self, recipient, *parameters):
        return Milter.REJECT if "bob" in recipient else Milter.CONTINUE

    def header(self, name, value):
        if name.lower() == "subject":
            self.subject = value.strip()
        return Milter.DISCARD if self.subject == "discard" else Milter.CONTINUE

    def body(self, chunk):
        self.size += len(chunk)
        return Milter.SKIP if self.subject == "skip" else Milter.CONTINUE

    def eom(self):
        subject = self.subject
        if subject == "progress":
            for _ in range(3):
                self.progress()
        elif subject == "accept":
            return Milter.ACCEPT
        elif subject == "edit":
            self.addheader("X-Added", "yes\n\tfolded")
            self.addheader("X-Top", "first", 0)
            self.addheader("X-Second", "below", 1)
            self.chgheader("Subject", 1, "edited")
            self.chgheader("X-Gone", 1, "")
            self.replacebody("new ")
            self.replacebody("body\r\n")
        elif subject == "void":
            self.addheader("X-Void", "yes")
            self.setreply("554", "5.7.1", "one", "two")
            return Milter.REJECT
        elif subject == "quarantine":
            self.quarantine("held here")
        elif subject == "envelope":
            self.chgfrom("<other@good.example>")
            self.addrcpt("<carol@local.example>")
            self.addrcpt("<dave@local.example>", "NOTIFY=NEVER")
            self.delrcpt("<nobody@local.example>")
        elif subject == "shutdown":
            self.setreply("421", "4.7.0", "closing")
            return Milter.TEMPFAIL
        elif subject == "die":
            import os
            os._exit(1)
        self.addheader("X-Size", str(self.size))
        self.addheader("X-Macros", "%s %s" % (self.getsymval("j"), self.getsymval("i")))
        self.addheader("X-Parameters", " ".join(self.parameters))
        return Milter.CONTINUE

Milter.factory = Scripted
Milter.set_flags(sum((
    Milter.ADDHDRS, Milter.CHGHDRS, Milter.CHGBODY, Milter.QUARANTINE,
    Milter.ADDRCPT, Milter.ADDRCPT_PAR, Milter.DELRCPT, Milter.CHGFROM,
)))
Milter.runmilter("scripted", "inet:%s@127.0.0.1" % sys.argv[1], 60)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The network of the module's servers."""
    need(no_lab())
    need(unavailable("opendkim", "opendmarc"))
    with Lab(merge(ZONE, PUBLISHED)) as made:
        yield made


@pytest.fixture(scope="module")
def verifier(lab: Lab) -> Iterator[Daemon]:
    """OpenDKIM, which verifies."""
    keys = f"rsa._domainkey.good.example {RECORD}\n"
    settings = ("Mode v", f"TestPublicKeys {FILES}/keys", "AlwaysAddARHeader yes")
    with opendkim(lab, *settings, "AuthservID mx.local.example", files={"keys": keys}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def scripted(lab: Lab) -> Iterator[Daemon]:
    """The program of pymilter."""
    with pymilter(lab, SCRIPT) as daemon:
        yield daemon


def signer(lab: Lab, form: str) -> Daemon:
    """Return OpenDKIM, which signs."""
    return opendkim(
        lab,
        "Mode s",
        "Domain good.example",
        "Selector rsa",
        f"KeyFile {FILES}/key",
        f"Canonicalization {form}",
        "InternalHosts 0.0.0.0/0",
        files={"key": pem(form="PKCS1").decode()},
    )


def begin(start: Start, lab: Lab, *milters: Daemon, flags: tuple[str, ...] = ()) -> Smtpd:
    """Start a server with one filter for these milters."""
    words = [word for each in milters for word in ("--milter", each.address)]
    return start(lab=lab, filters={"milter": filter_command("milter", *words, *flags)})


def mail(subject: str, *fields: bytes, body: bytes = b"hello\r\n") -> bytes:
    """Return a message."""
    head = b"".join(field + b"\r\n" for field in fields)
    return b"From: %b\r\nSubject: %b\r\n%b\r\n%b" % (
        SENDER.encode(),
        subject.encode(),
        head,
        body,
    )


def _valid(raw: bytes) -> bool:
    def lookup(name: bytes, timeout: int = 5) -> bytes | None:
        del timeout
        found = PUBLISHED.get(name.decode().rstrip("."))
        return found["TXT"].encode() if found else None

    return bool(dkim.verify(raw, dnsfunc=lookup))


@pytest.mark.parametrize("form", ["simple/simple", "relaxed/relaxed"])
def test_signatures_of_opendkim_are_valid_when_delivered(start: Start, lab: Lab, form: str) -> None:
    with signer(lab, form) as daemon:
        server = begin(start, lab, daemon)
        with greeted(server.connection(GOOD)) as connection:
            for message in MESSAGES.values():
                assert transact(connection, SENDER, message=message).code == 250
        found = [each.content.replace(b"\n", b"\r\n") for each in server.maildir("alice")]
    assert len(found) == len(MESSAGES)
    for raw in found:
        assert raw.startswith((b"DKIM-Filter: ", b"DKIM-Signature: ", b"Return-Path", b"Deliv")), (
            raw
        )
        assert _valid(raw), raw[:3000]
        assert not _valid(raw.replace(b"joe@good", b"jim@good"))


def test_opendkim_verifies_to_the_byte(start: Start, lab: Lab, verifier: Daemon) -> None:
    private = pem(form="PKCS1")
    server = begin(start, lab, verifier)
    # A stray CR in the header is replaced.
    left_out = {"only a header", "Bcc", "odd blanks"}
    messages = [message for name, message in MESSAGES.items() if name not in left_out]
    complete = [
        m.replace(b"To: root, Doe, Jane <", b"To: Jane <").replace(b"Cc: cron (job)\r\n", b"")
        for m in messages
    ]
    with greeted(server.connection(GOOD)) as connection:
        for message in complete:
            form = (b"simple", b"simple")
            signature = dkim.sign(message, b"rsa", b"good.example", private, canonicalize=form)
            assert transact(connection, SENDER, message=signature + message).code == 250
            broken = (signature + message).replace(b"joe@", b"jim@")
            assert transact(connection, SENDER, message=broken).code == 250
    results = [str(each.message["Authentication-Results"]) for each in server.maildir("alice")]
    assert sum("dkim=pass" in each for each in results) == len(complete), results
    assert sum("dkim=fail" in each for each in results) == len(complete), results


def test_opendmarc_sees_the_results_of_opendkim(start: Start, lab: Lab, verifier: Daemon) -> None:
    settings = ("AuthservID mx.local.example", "RejectFailures true", "SPFSelfValidate true")
    with opendmarc(lab, *settings) as judge:
        server = begin(start, lab, verifier, judge)
        message = mail("hello")
        signature = dkim.sign(message, b"rsa", b"good.example", pem(form="PKCS1"))
        outcome = attempt(server, GOOD, sender=SENDER, message=signature + message)
        assert outcome.code == 250, outcome
        outcome = attempt(server, GOOD, sender=SENDER, message=message)
        assert outcome.stage == "."
        assert outcome.code == 550
        assert "rejected by DMARC policy for good.example" in outcome.text
        [delivered] = server.maildir("alice")
    results = delivered.message.get_all("Authentication-Results")
    assert results is not None
    assert "dmarc=pass" in results[0]
    assert "dkim=pass" in results[-1]


@pytest.mark.parametrize("line", [b": x", b"X\xff: y"])
def test_no_from_is_hidden_from_opendmarc(start: Start, lab: Lab, line: bytes) -> None:
    """smtpd takes such a line; OpenDMARC sees no From below it, and no recipient may either."""
    with opendmarc(lab, "RejectFailures true", "SPFSelfValidate true") as judge:
        server = begin(start, lab, judge)
        message = mail("hello")
        outcome = attempt(server, GOOD, sender=SENDER, message=message)
        assert "rejected by DMARC policy for good.example" in outcome.text
        outcome = attempt(server, GOOD, sender=SENDER, message=line + b"\r\n" + message)
        assert outcome.code == 250, outcome
        [delivered] = server.maildir("alice")
    assert b"\n\n" + line + b"\nFrom: " in delivered.content


def test_every_answer_of_a_program(start: Start, lab: Lab, scripted: Daemon) -> None:
    server = begin(start, lab, scripted)

    def said(subject: str, *fields: bytes, **more: object) -> str:
        return attempt(server, sender=SENDER, message=mail(subject, *fields), **more).said  # type: ignore[arg-type]

    assert said("plain").startswith("250 ")
    assert said("progress").startswith("250 ")
    assert said("accept").startswith("250 ")
    assert said("skip").startswith("250 ")
    assert said("edit", b"X-Gone: x").startswith("250 ")
    assert said("void") == "554 5.7.1 one two"
    assert said("discard") == "550 5.7.1 Message rejected"
    assert said("quarantine").startswith("250 ")
    assert said("envelope").startswith("250 ")
    assert said("shutdown") == "421 4.7.0 closing"
    assert said("x", helo="EHLO refused.example") == "550 5.7.1 not you 100%"
    assert attempt(server, sender="tempfail@good.example").said.startswith("451 4.7.1 Service")
    both = attempt(server, sender=SENDER, recipients=("alice@local.example", "bob@local.example"))
    assert both.said == "550 5.7.1 Command rejected"
    found = {
        each.message["X-Subject"] or each.message["Subject"]: each
        for each in server.maildir("alice")
    }
    assert found.keys() == {
        "plain",
        "progress",
        "accept",
        "skip",
        "edited",
        "quarantine",
        "envelope",
    }
    assert found["plain"].message["X-Size"] == "7"
    host, msgid = found["plain"].message["X-Macros"].split()
    assert host == "mx.local.example"
    assert int(msgid, 16)
    assert found["accept"].message["X-Size"] is None
    edited = found["edited"].content
    head, _, body = edited.partition(b"\n\n")
    assert body == b"new body\n"
    assert b"X-Top: first\n" in head[: head.index(b"Received: ")]
    assert b"X-Added: yes\n\tfolded\n" in head
    assert b"X-Gone" not in head
    assert found["quarantine"].message["X-Spam"] == "Yes"
    assert found["quarantine"].message["X-Milter-Quarantine"] == "held here"
    [line] = logged(server, r"not possible: change sender to <other@good.example>; not possible", 1)
    for change in ("add recipient <carol@", "add recipient <dave@", "delete recipient <nobody@"):
        assert change in line


@pytest.mark.parametrize("version", [system_version()], indirect=True)
def test_large_messages_at_once_take_little_memory(
    start: Start, lab: Lab, scripted: Daemon
) -> None:
    server = begin(start, lab, scripted)
    with ThreadPoolExecutor(3) as pool:
        message = mail("accept", body=LARGE)
        sent = [pool.submit(attempt, server, sender=SENDER, message=message) for _ in range(3)]
        assert {each.result().code for each in sent} == {250}
    for process in server.find("filter-milter"):
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) < 80 << 10
    found = server.maildir("alice")
    assert len(found) == 3
    for each in found:
        assert each.content.partition(b"\n\n")[2] == LARGE.replace(b"\r\n", b"\n")


def test_a_milter_that_is_killed_stopped_and_started(start: Start, lab: Lab) -> None:
    with pymilter(lab, SCRIPT) as daemon:
        server = begin(
            start,
            lab,
            daemon,
            flags=tuple(
                f"--{kind}-timeout={brief(2)}" for kind in ("command", "content", "connect")
            ),
        )
        assert attempt(server, sender=SENDER, message=mail("plain")).code == 250
        with greeted(server.connection(GOOD)) as connection:
            assert transact(connection, SENDER, message=mail("plain")).code == 250
            daemon.kill()
            assert LATER in transact(connection, SENDER, message=mail("plain")).text
            daemon.start()
            assert transact(connection, SENDER, message=mail("plain")).code == 250
            died = transact(connection, SENDER, message=mail("die"))
            assert (died.stage, died.code) == (".", 451)
        daemon.kill()
        daemon.start()
        daemon.signal(signal.SIGSTOP)
        assert LATER in attempt(server, sender=SENDER, message=mail("plain")).text
        daemon.signal(signal.SIGCONT)
        assert attempt(server, sender=SENDER, message=mail("plain")).code == 250
        assert len(server.maildir("alice")) == 4


#: What a milter answers to the end of a message, by the local part of the sender, and the reply.
HOSTILE: dict[str, tuple[bytes | None, str]] = {
    "hang-up": (None, "451 4.3.0 Temporary failure"),
    "clamd": (b"UNKNOWN COMMAND\n", "451 4.3.0 Temporary failure"),
    "twice": (2 * Verdict(v.ACCEPT).encode(), "451 4.3.0 Temporary failure"),
    "flood": (1001 * AddHeader(b"X", b"y").encode(), "451 4.3.0 Temporary failure"),
    "garbage": (b"\0\0\0\7m\0\0\0\1x\0", "451 4.3.0 Temporary failure"),
    "escape": (ReplyCode(550, "5.7.1", (b"\x1b[2J\xff|a%",)).encode(), "550 5.7.1 ?[2J?|a%"),
    "fields": (
        AddHeader(b"X-A", b"b\nBcc: c\n\nbody\rx").encode()
        + NewBody(b".\r\n..\n\rfilter-dataline|x").encode()
        + Verdict(v.ACCEPT).encode(),
        "250 ",
    ),
}


def test_hostile_milters(start: Start, lab: Lab, tmp_path: Path) -> None:
    """The server stays up, and each message has its own outcome."""
    tmp_path.chmod(0o755)

    def script(event: Event, seen: Seen) -> bytes | None:
        if event.command != v.END_OF_BODY:
            return stub.usual(event)
        sender = [each.fields[0] for each in seen.events if each.command == v.MAIL][-1]
        return HOSTILE[sender[1:].partition(b"@")[0].decode()][0]

    with milter(script=script, path=tmp_path / "socket") as stub:
        command = filter_command("milter", "--milter", "unix:/srv/stub/socket")
        server = start(lab=lab, filters={"milter": command}, binds={"/srv/stub": tmp_path})
        with greeted(server.connection(GOOD)) as connection:
            for name, (_, reply) in HOSTILE.items():
                found = transact(connection, f"{name}@good.example", message=mail(name))
                assert found.said.startswith(reply), (name, found)
        [delivered] = server.maildir("alice")
    assert delivered.message["X-A"] == "b Bcc: c  body x"
    assert delivered.content.endswith(b"\n\n.\n..\n filter-dataline|x\n")
