"""Tests of filter-rspamd between the real smtpd and the real Rspamd, which has a Redis.

The daemon's rules for test mail are in `rspamd_set_up`. The real daemon fails only by being killed;
`smtpd_filters.testing.rspamd.stub` plays its other faults.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import dkim
import pytest

from smtpd_filters.filters.dkimsign import Dkimsign
from smtpd_filters.testing import Conversation
from smtpd_filters.testing.rspamd.daemon import Rspamd, unavailable
from smtpd_filters.testing.rspamd.stub import CLEAN, Answer, RspamdStub
from smtpd_filters.testing.server import DOMAIN, Lab, LabError, Smtpd, file_path, filter_command
from smtpd_filters.testing.server import unavailable as no_lab
from tests.authentication import signing
from tests.e2e.conftest import Start
from tests.e2e.rspamd_set_up import (
    LUA,
    SEALED,
    SELECTOR,
    SIGNED,
    configuration,
    key,
    mail,
    stub_in,
    zone,
)
from tests.e2e.sending import (
    ALICE,
    GOOD,
    SENDER,
    Outcome,
    attempt,
    content_of,
    folders,
    local,
    logged,
)
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.lookups.outcome import Outcome as Found

GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n"
EIGHT_BIT = bytes(range(1, 10)) + bytes(range(11, 13)) + bytes(range(14, 256)) + b"\r\n"
UNKNOWN = "198.51.100.9"  # a client that isn't exempt from greylisting
ELSEWHERE = f"alice@{SEALED}"
MARK = b"X-Scanned: yes\n"
PATIENCE = 60.0  # seconds for a client that tries again and again


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The network of the module's servers."""
    need(no_lab())
    with Lab(zone()) as made:
        yield made


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Rspamd]:
    """The module's rspamd."""
    need(unavailable())
    with Rspamd(lab, **configuration()) as started:
        yield started


@pytest.fixture
def scan(start: Start, lab: Lab, daemon: Rspamd) -> Start:
    """Start a server whose mail the daemon scans; `flags` are further ones of the filter."""

    def begin(*, flags: tuple[str, ...] = (), url: str = daemon.url, **arguments: Any) -> Smtpd:
        command = filter_command("rspamd", "-url", url, *flags)
        arguments.setdefault("filters", {"rspamd": command})
        arguments.setdefault("domains", (DOMAIN, SEALED))
        return start(lab=lab, **arguments)

    return begin


def only(server: Smtpd) -> bytes:
    """The one message that has been delivered."""
    [delivered] = server.maildir("alice")
    return delivered.content


def fields(content: bytes) -> list[str]:
    """The names of a message's header fields, in their order."""
    head = content.partition(b"\n\n")[0].decode("latin-1")
    return re.findall(r"^([^\s:]+):", head, re.MULTILINE)


def sent(content: bytes) -> bytes:
    """A message from its own first field on: without what was put above it on its way."""
    at = content.index(b"\nFrom: ") + 1
    return content[at:]


# -- what the daemon says --------------------------------------------------------------------------


def test_a_clean_mail(scan: Start) -> None:
    server = scan()
    message = mail()
    assert attempt(server, message=message).code == 250
    content = only(server)
    assert sent(content) == local(message)
    assert MARK in content
    assert "X-Spam" not in fields(content)


def test_gtube_is_rejected(scan: Start) -> None:
    server = scan()
    outcome = attempt(server, message=mail(body=GTUBE))
    # The daemon's own words, and its milter's code.
    assert outcome == Outcome(".", 554, "5.7.1 Gtube pattern", stayed=True)
    assert attempt(server, message=mail()).code == 250
    assert len(server.maildir("alice")) == 1
    [line] = logged(server, r"rspamd.*reject", 1)
    assert "score 20" in line


def test_a_header_is_added(scan: Start) -> None:
    server = scan()
    message = mail(score=9)
    assert attempt(server, message=message).code == 250
    [delivered] = server.maildir("alice")
    assert delivered.folder == "Junk"
    assert delivered.message["X-Spam"] == "Yes"
    assert sent(delivered.content) == local(message)
    assert attempt(server, message=mail()).code == 250
    assert folders(server) == ["Junk", ""]


def test_a_subject_is_rewritten(scan: Start) -> None:
    server = scan()
    assert attempt(server, message=mail(score=13)).code == 250
    subject = "=?utf-8?q?Gr=C3=BC=C3=9Fe?="
    assert attempt(server, message=mail(score=13, subject=subject)).code == 250
    # Two deliveries may overtake each other.
    mails = {str(each.message["Subject"]): each for each in server.maildir("alice")}
    assert mails.keys() == {"[spam] hello", "[spam] Grüße"}
    second = mails["[spam] Grüße"]
    # On the wire it is ASCII, and where the old one was.
    assert second.content.isascii()
    expected = fields(local(mail(score=13)))
    assert [name for name in fields(second.content) if name in expected[:4]] == expected[:4]


def test_what_users_submit_is_refused_in_place_of_marked(scan: Start) -> None:
    """With the flags of docs/examples/submission.conf."""
    example = (Path(__file__).parents[2] / "docs/examples/submission.conf").read_text("utf-8")
    found = re.search(
        r'^filter "scan-users" proc-exec "filter-rspamd (.*)"$', example, re.MULTILINE
    )
    assert found
    server = scan(flags=tuple(shlex.split(found[1])))
    for score in (9, 13):
        outcome = attempt(server, message=mail(score=score), user="alice")
        assert (outcome.stage, outcome.code) == (".", 554)
    assert attempt(server, message=mail(), user="alice").code == 250
    assert folders(server) == [""]


def test_a_clean_mail_in_the_grey_area_is_accepted(scan: Start) -> None:
    """A client exempt from greylisting: the action is still called greylist."""
    server = scan()
    assert attempt(server, message=mail(score=5, body=b"not greylisted\r\n")).code == 250
    assert "X-Spam" not in fields(only(server))


def test_a_soft_reject_by_greylisting(scan: Start) -> None:
    server = scan()
    sender = f"grey-{server.version}@grey.example"
    message = mail(sender=sender, score=3, body=f"greylisted by {server.version}\r\n".encode())
    outcome = attempt(server, UNKNOWN, sender=sender, message=message)
    assert outcome == Outcome(".", 451, "4.7.1 Try again later", stayed=True)
    deadline = time.monotonic() + PATIENCE
    while attempt(server, UNKNOWN, sender=sender, message=message).code != 250:
        assert time.monotonic() < deadline
    assert sent(only(server)) == local(message)


@pytest.mark.parametrize(
    ("name", "score", "code"),
    [(None, 6, 250), ("strict", 6, 554), (None, 30, 554), ("lenient", 30, 250)],
)
def test_settings_by_id(scan: Start, name: str | None, score: int, code: int) -> None:
    server = scan(flags=("-settings-id", name) if name else ())
    assert attempt(server, message=mail(score=score)).code == code


def test_a_header_is_removed(scan: Start) -> None:
    """The first, the last, all; names in any case."""
    server = scan()
    reply = {"remove_headers": {"x-first": 1, "X-LAST": -1, "X-All": 0, "X-Two": [1, 3], "X-No": 5}}
    lines = [f"X-{name}: {number}" for number in (1, 2, 3) for name in ("First", "Last", "All")]
    lines += [f"X-Two: {number}" for number in (1, 2, 3)] + ["X-No: 1"]
    assert attempt(server, message=mail(*lines, reply=reply)).code == 250
    message = server.maildir("alice")[0].message
    assert message.get_all("X-First") == ["2", "3"]
    assert message.get_all("X-Last") == ["1", "2"]
    assert message.get_all("X-All") is None
    assert message.get_all("X-Two") == ["2"]
    assert message.get_all("X-No") == ["1"]


def test_headers_are_added(scan: Start) -> None:
    """At the bottom, at the top; with folds."""
    server = scan()
    reply = {
        "add_headers": {
            "X-Bottom": "b",
            "X-Top": {"value": "t", "order": 1},
            "X-Folded": {"value": "one\n\ttwo", "order": -1},
            "X-Many": [{"value": "1", "order": -1}, {"value": "2", "order": -1}],
        }
    }
    message = mail(reply=reply)
    assert attempt(server, message=message).code == 250
    content = only(server)
    head = content.partition(b"\n\n")[0] + b"\n"
    names = fields(content)
    assert names.index("Received") < names.index("X-Top") < names.index("From")
    assert names.index("X-Bottom") > names.index("X-Test-Reply")
    assert b"\nX-Folded: one\n\ttwo\n" in head
    assert head.index(b"X-Many: 1\n") < head.index(b"X-Many: 2\n")


def test_an_earlier_filters_mark_survives(scan: Start, daemon: Rspamd) -> None:
    """The daemon removes what X-Spam it finds: the client's, not smtpd's own."""
    filters = {
        "first": filter_command("dyndns", "--action", "junk"),
        "rspamd": filter_command("rspamd", "-url", daemon.url),
    }
    server = scan(filters=filters)
    message = mail("X-Spam: No")
    assert attempt(server, "192.0.2.8", message=message).code == 250
    assert attempt(server, GOOD, message=message).code == 250
    marked, plain = server.maildir("alice")
    assert (marked.folder, marked.message.get_all("X-Spam")) == ("Junk", ["Yes"])
    assert (plain.folder, plain.message.get_all("X-Spam")) == ("", None)


def test_the_daemon_gets_client_and_envelope(scan: Start, daemon: Rspamd) -> None:
    server = scan()
    since = len(daemon.log)
    assert attempt(server, GOOD, message=mail()).code == 250
    line = daemon.wait_for(r"rspamd_task_write_log: .*", since=since).string
    assert f"ip: {GOOD}" in line
    assert f"from: <{SENDER}>" in line
    assert f"rcpts: <{ALICE}>" in line
    assert "R_SPF_ALLOW" in line
    assert re.search(r"qid: <[0-9a-f]{8}>", line)
    since = len(daemon.log)
    assert attempt(server, GOOD, message=mail(), user="alice").code == 250
    assert "user: alice" in daemon.wait_for(r"rspamd_task_write_log: .*", since=since).string


def test_the_daemon_is_reached_by_its_socket(scan: Start, daemon: Rspamd) -> None:
    there = "/srv/rspamd"
    url = f"{there}/{daemon.socket.name}"
    server = scan(url=url, binds={there: daemon.socket.parent})
    assert attempt(server, message=mail()).code == 250
    assert MARK in only(server)


def test_the_controller_scans_with_a_password(scan: Start, daemon: Rspamd) -> None:
    files = {"password": f"{daemon.password}\n", "wrong-password": "wrong\n"}
    for name, code in (("password", 250), ("wrong-password", 451)):
        flags = ("--password-file", file_path(name))
        server = scan(url=daemon.controller_url, flags=flags, files=files)
        assert attempt(server, message=mail()).code == code, name
        server.terminate()


# -- signatures ------------------------------------------------------------------------------------


def published(name: bytes, timeout: int = 5) -> bytes:
    """Look up a key as dkimpy wants it: in the zone."""
    del timeout
    owner = name.decode().rstrip(".")
    if owner in {f"{SELECTOR}._domainkey.{domain}" for domain in (SIGNED, SEALED)}:
        return key()[1].encode()
    return b""


def wire(content: bytes) -> bytes:
    """A delivered message as it would be sent on."""
    return content_of(content).replace(b"\n", b"\r\n")


def verified(content: bytes, index: int = 0) -> bool:
    """Whether the signature of this number from the top is good: as dkimpy says, and as we do."""
    found = signing.verified(wire(content), records(), now=time.time())
    theirs = bool(dkim.DKIM(wire(content)).verify(index, dnsfunc=published))
    assert (found[index].result == "pass") == theirs
    return theirs


def records() -> dict[str, Found[bytes]]:
    """The keys in the zone, for our own verifier."""
    names = (f"{SELECTOR}._domainkey.{domain}" for domain in (SIGNED, SEALED))
    return signing.records(**dict.fromkeys(names, key()[1]))


@pytest.mark.parametrize("way", ["socket", "submission"])
def test_outgoing_mail_is_signed(scan: Start, way: str) -> None:
    server = scan()
    sender = f"alice@{SIGNED}"
    # Without control characters: rspamd and dkimpy disagree about which of them are white space.
    body = bytes(range(32, 127)) + b" \t " + bytes(range(128, 256)) + b" \r\n..\r\n\r\n\r\n"
    message = mail(sender=sender, body=body)
    if way == "socket":
        server.submit(local(message), sender, ALICE)
    else:
        assert attempt(server, sender=sender, message=message, user="alice").code == 250
    content = only(server)
    assert fields(content).count("DKIM-Signature") == 1
    assert re.search(rf"\bd={SIGNED};\s+s={SELECTOR};", content.decode("latin-1"))
    assert verified(content)


@pytest.mark.parametrize("way", ["socket", "submission"])
@pytest.mark.parametrize(
    "to",
    [
        b"To: root",
        b"To: root (Charlie),\r\n\tAnna <anna>, bob@example.net\r\nCc: Doe, Alice <a@b.example>",
        b'Cc: "root, they say" <root>\r\nTo: undisclosed-recipients:;',
        "To: J\u00f6rg <j\u00f6rg>, ,".encode(),
        b"To: " + b", ".join([b"user%d" % n for n in range(1000)]),
    ],
    ids=["root", "folded", "quoted", "8 bit", "many"],
)
def test_a_signature_is_good_of_addresses_without_a_domain(
    scan: Start, way: str, to: bytes
) -> None:
    server = scan()
    sender = f"alice@{SIGNED}"
    plain = mail(sender=sender, body=b".x\r\n", score=-20)
    message = plain.replace(b"To: alice@local.example", to)
    if way == "socket":
        server.submit(local(message), sender, ALICE)
    else:
        assert attempt(server, sender=sender, message=message, user="alice").code == 250
    content = only(server)
    assert fields(content).count("DKIM-Signature") == 1
    assert re.search(rb"(?im)^\s*h=[^;]*\bto\b", content)
    assert verified(content)


def test_a_line_that_begins_an_mbox_file_costs_nothing(scan: Start) -> None:
    server = scan()
    line = b"From someone@good.example Mon Sep 17 00:00:00 2001\r\n"
    for message in (mail(), line + mail()):
        assert attempt(server, message=message).code == 250
    scores = [
        re.search(r"score (-?[\d.]+)/", each) for each in logged(server, r"rspamd.*result=edit", 2)
    ]
    assert scores[0]
    assert scores[1]
    assert scores[0][1] == scores[1][1]
    assert sum(line.strip() in each.content for each in server.maildir("alice")) == 1


def test_incoming_mail_is_not_signed(scan: Start) -> None:
    server = scan()
    assert attempt(server, sender=f"alice@{SIGNED}", message=mail(sender=f"a@{SIGNED}")).code == 250
    assert "DKIM-Signature" not in fields(only(server))


def test_a_clients_own_signature_is_left_alone(scan: Start) -> None:
    server = scan()
    sender = f"alice@{SIGNED}"
    message = mail(sender=sender)
    signature = dkim.sign(message, SELECTOR.encode(), SIGNED.encode(), key()[0].encode())
    assert attempt(server, sender=sender, message=signature + message, user="alice").code == 250
    content = only(server)
    assert local(signature) in content
    number = fields(content).count("DKIM-Signature")
    assert number == 2
    for index in range(number):
        assert verified(content, index), index


def test_arc_sets_are_in_order(scan: Start) -> None:
    """From the top: the seal, the signature, the results. Some validators take no other order."""
    server = scan()
    for _ in range(5):
        assert attempt(server, recipients=[ELSEWHERE], message=mail()).code == 250
    delivered = server.maildir("alice")
    assert len(delivered) == 5
    for each in delivered:
        found = [name for name in fields(each.content) if name.startswith("ARC-")]
        assert found == ["ARC-Seal", "ARC-Message-Signature", "ARC-Authentication-Results"]
        verdict, _, reason = dkim.ARC(wire(each.content)).verify(dnsfunc=published)
        assert verdict == dkim.CV_Pass, reason
        ours = signing.chain(wire(each.content), records(), now=time.time())
        assert (ours.result, ours.oldest) == ("pass", 0)


def test_a_second_arc_set(scan: Start) -> None:
    """A sealed message that is sent on is sealed again, above the first set."""
    server = scan()
    assert attempt(server, recipients=[ELSEWHERE], message=mail()).code == 250
    once = wire(only(server))
    assert attempt(server, recipients=[ELSEWHERE], message=once).code == 250
    twice = server.maildir("alice")[1].content
    assert re.findall(rb"^ARC-Seal: i=(\d)", twice, re.MULTILINE) == [b"2", b"1"]
    verdict, _, reason = dkim.ARC(wire(twice)).verify(dnsfunc=published)
    assert verdict == dkim.CV_Pass, reason
    ours = signing.chain(wire(twice), records(), now=time.time())
    assert ours.result == "pass", ours.reason


# -- what must not change --------------------------------------------------------------------------

BODIES = {
    "8-bit": EIGHT_BIT + EIGHT_BIT[::-1][2:] + b"\r\n",
    "none": b"",
    "dots": b".\r\n..\r\n...\r\n.x\r\n",
    "bars": b"|\r\nfilter|0.7|1|smtp-in|data-line|a|b|.\r\n",
    "lone CR": b"one\rtwo\r\r\n\r\rx\r\n",
    "long lines": b"x" * 998 + b"\r\n" + b"y" * 1996 + b"\r\n",
    "empty lines": b"\r\n\r\n\r\n",
}


def test_bodies_pass_unchanged(scan: Start) -> None:
    server = scan()
    messages = {kind: mail(subject=kind, body=body) for kind, body in BODIES.items()}
    for message in messages.values():
        assert attempt(server, message=message).code == 250
    delivered = {each.message["Subject"]: each.content for each in server.maildir("alice")}
    assert delivered.keys() == BODIES.keys()
    for kind, message in messages.items():
        assert MARK in delivered[kind]
        assert sent(delivered[kind]) == local(message), kind


def test_a_binary_attachment_passes_unchanged(scan: Start) -> None:
    server = scan()
    body = b"--x\r\nContent-Type: application/octet-stream\r\n"
    body += b"Content-Transfer-Encoding: binary\r\n\r\n"
    body += b"".join(
        EIGHT_BIT[at:] + EIGHT_BIT[:at].replace(b"\n", b"") + b"\r\n" for at in range(99)
    )
    message = mail("Content-Disposition: inline", body=body + b"--x--\r\n")
    assert attempt(server, message=message).code == 250
    assert sent(only(server)) == local(message)


def test_twenty_megabytes(scan: Start) -> None:
    server = scan()
    body = b"".join(b"%07d %s\r\n" % (number, b"x" * (number % 130)) for number in range(280_000))
    assert len(body) > 20_000_000
    message = mail(body=body)
    assert attempt(server, message=message).code == 250
    content = only(server)
    assert MARK in content
    assert sent(content) == local(message)


def test_fifty_at_a_time(scan: Start) -> None:
    server = scan()

    def send(number: int) -> int:
        return attempt(server, message=mail(subject=str(number), score=9 * (number % 2))).code

    with ThreadPoolExecutor(50) as pool:
        assert set(pool.map(send, range(100))) == {250}
    delivered = server.maildir("alice")
    assert sorted(int(each.message["Subject"]) for each in delivered) == list(range(100))
    for each in delivered:
        assert each.folder == ("Junk" if int(each.message["Subject"]) % 2 else "")
        assert MARK in each.content


# -- faults ----------------------------------------------------------------------------------------


def insist(server: Smtpd, message: bytes, over: Event | None = None) -> list[int]:
    """Send a message until it is accepted, as a client's queue would; return the codes."""
    codes: list[int] = []
    deadline = time.monotonic() + PATIENCE
    while not codes or codes[-1] != 250:
        assert time.monotonic() < deadline, codes
        if codes and over is not None:
            over.wait(PATIENCE)
        codes.append(attempt(server, message=message).code)
    return codes


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_the_daemon_dies_under_load(scan: Start, lab: Lab, how: str) -> None:
    """No mail is lost, none is accepted unscanned, and smtpd stays."""
    with Rspamd(lab, **configuration(), redis=False) as mortal:
        server = scan(url=mortal.url)
        back = Event()
        going = Event()

        def send(number: int) -> list[int]:
            if number == 60:
                going.set()
            return insist(server, mail(subject=str(number)), back)

        with ThreadPoolExecutor(50) as pool:
            answers = [pool.submit(send, number) for number in range(200)]
            assert going.wait(PATIENCE)
            if how == "killed":
                mortal.kill()
                # Refused while it is away, so that this is no test of a fast start.
                assert attempt(server, message=mail(subject="away")).code == 451
                mortal.start()
            else:
                mortal.restart()
            back.set()
            codes = [answer.result() for answer in answers]
        assert {code for each in codes for code in each} <= {250, 451}
        delivered = server.maildir("alice")
        assert sorted(int(each.message["Subject"]) for each in delivered) == list(range(200))
        assert [each for each in delivered if MARK not in each.content] == []


def test_unscanned_mail_is_accepted_if_so_chosen(scan: Start) -> None:
    server = scan(url=DEAD, flags=("--on-error", "proceed"))
    message = mail()
    assert attempt(server, message=message).code == 250
    content = only(server)
    assert MARK not in content
    assert sent(content) == local(message)


#: The address of a daemon that isn't there: the system gives this port to nobody.
DEAD = "http://127.0.0.1:9"


def test_a_second_daemon(scan: Start, daemon: Rspamd) -> None:
    """Nobody listens where the first one was: its mail goes to the second."""
    server = scan(url=DEAD, flags=("-url", daemon.url))
    for number in range(5):
        assert attempt(server, message=mail(subject=str(number))).code == 250
    assert all(MARK in each.content for each in server.maildir("alice"))


@pytest.fixture
def stub(lab: Lab) -> Iterator[RspamdStub]:
    """A stub of the daemon inside the lab, with a reply that tests can set."""
    with stub_in(lab) as made:
        yield made


def test_a_daemon_that_fails_is_passed_over(scan: Start, stub: RspamdStub, daemon: Rspamd) -> None:
    """The first daemon takes every connection and answers none: soon nobody waits for it."""
    stub.answer = Answer.of(CLEAN, behaviour="drop")
    server = scan(url=stub.url, flags=("-url", daemon.url, "--timeout", "3"))
    for number in range(20):
        assert attempt(server, message=mail(subject=str(number))).code == 250
    assert stub.asked <= 5
    assert all(MARK in each.content for each in server.maildir("alice"))
    server.wait_for(r"rspamd.*result=edit")


FAULTS: dict[str, Answer] = {
    "status 500": Answer.of({"error": "out of order", "error_domain": "x"}, status=500),
    "status 403": Answer(b"Forbidden", status=403),
    "error in 200": Answer.of({"error": "cannot scan"}),
    "no JSON": Answer(b"<html>"),
    "half of the JSON": Answer(b'{"action": "no act'),
    "no action": Answer.of({"score": 1.0, "required_score": 15.0}),
    "unknown action": Answer.of({**CLEAN, "action": "make coffee"}),
    "empty": Answer(b""),
    "cut": Answer.of(CLEAN, behaviour="cut"),
    "closed": Answer.of(CLEAN, behaviour="close"),
    "reset": Answer.of(CLEAN, behaviour="reset"),
    "reset in the middle": Answer.of(CLEAN, behaviour="reset-half"),
    "endless": Answer.of(CLEAN, behaviour="endless"),
    "no HTTP": Answer.of(CLEAN, behaviour="garbage"),
    "no answer": Answer.of(CLEAN, behaviour="drop"),
    "stalled": Answer.of(CLEAN, behaviour="stall"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_is_an_error(scan: Start, stub: RspamdStub, fault: str) -> None:
    """The client is asked to come again, the log says why, and the next mail is served."""
    server = scan(url=stub.url, flags=("--timeout", "1"))
    stub.answer = FAULTS[fault]
    refused = attempt(server, message=mail(subject="refused"))
    assert (refused.stage, refused.code, refused.stayed) == (".", 451, True)
    assert refused.text.startswith("4.")
    server.wait_for(r"(?i)rspamd.*(unavailable|error|result)")
    stub.answer = CLEAN
    insist(server, mail(subject="accepted"))
    assert [each.message["Subject"] for each in server.maildir("alice")] == ["accepted"]
    assert server.alive()


# -- the daemon itself -----------------------------------------------------------------------------


#: Messages whose signatures Rspamd rejects, by docs/decisions/signatures.md, and the bodies' forms
#: with which it does.
REJECTED = (
    (mail(body=b"a\rb\r\n"), {"simple", "relaxed"}),
    (mail("Subject: another"), {"simple", "relaxed"}),
    (mail(body=b"one\f\r\n\f\r\ntwo\r\n"), {"relaxed"}),
    (mail(body=b" \t\r\n \r\n"), {"relaxed"}),
)


def by_dkimsign(message: bytes, path: Path, *flags: str, form: str = "relaxed") -> bytes:
    """Return a message that filter-dkimsign has signed or sealed."""
    path.write_text(key()[0])
    path.chmod(0o600)
    own = ("-k", str(path), "-s", SELECTOR, "-d", "good.example", "-c", f"relaxed/{form}")
    results = b"Authentication-Results: mx.good.example; spf=pass\r\n" if flags else b""
    with Conversation(Dkimsign, *own, *flags) as smtpd:
        client = smtpd.connect(address=GOOD)
        client.ehlo("client.example")
        client.mail_from(SENDER)
        client.rcpt_to(ALICE)
        lines = client.message(results + message).content
    return b"\r\n".join([*lines, b""])


def test_a_daemon_without_a_lab(tmp_path: Path) -> None:
    """It listens in this process's network, gets its rules, and leaves nothing behind."""
    need(no_lab())
    published = {
        "good.example": {"TXT": "v=spf1 -all"},
        f"{SELECTOR}._domainkey.good.example": {"TXT": key()[1]},
    }
    with Rspamd(zone=published, lua=LUA, override={"greylist.conf": "enabled = false;"}) as one:

        def ask(url: str, message: bytes | None = None, **fields: str) -> dict[str, Any]:
            data = mail(score=3) if message is None else message
            request = Request(url, data=data, headers=fields)  # noqa: S310  # it is http
            with urlopen(request, timeout=PATIENCE) as response:  # noqa: S310
                said: dict[str, Any] = json.load(response)
                return said

        reply = ask(f"{one.url}/checkv2", IP=GOOD, From=SENDER)
        assert {"TEST_SCORE", "R_SPF_FAIL"} <= reply["symbols"].keys()
        assert ("good.example", "TXT") in one.dns.queries
        # It agrees with us about our own signatures and seals.
        for flags, passes, fails in (
            ((), "R_DKIM_ALLOW", "R_DKIM_REJECT"),
            (("--arc-seal", "mx.good.example"), "ARC_ALLOW", "ARC_REJECT"),
        ):
            spaced = mail().replace(b"From:", b"From :").replace(b"Subject:", b"Subject\t:")
            for message in (mail(), spaced):
                ours = by_dkimsign(message, tmp_path / "key", *flags)
                for text, symbol in ((ours, passes), (ours.replace(b"hello", b"hallo"), fails)):
                    assert symbol in ask(f"{one.url}/checkv2", text)["symbols"]
        for message, forms in REJECTED:
            for form in ("simple", "relaxed"):
                symbols = ask(
                    f"{one.url}/checkv2", by_dkimsign(message, tmp_path / "key", form=form)
                )
                expected = "R_DKIM_REJECT" if form in forms else "R_DKIM_ALLOW"
                assert expected in symbols["symbols"], (message, form)
        where = one.url, one.controller_url
        with pytest.raises(HTTPError):
            ask(f"{one.controller_url}/checkv2")
        assert ask(f"{one.controller_url}/checkv2", Password=one.password)["action"]
        one.kill()
        assert not one.alive()
        with pytest.raises(URLError):
            ask(f"{one.url}/checkv2")
        one.start()
        assert (one.url, one.controller_url) == where
        one.restart()
        assert "TEST_SCORE" in ask(f"{one.url}/checkv2")["symbols"]
        directory = one.directory
        mine = one.processes()
        assert len(mine) >= 4, mine
    assert not directory.exists()
    assert not any(Path(f"/proc/{process.pid}").exists() for process in mine)


def test_a_daemon_that_cannot_start_reports_the_cause() -> None:
    need(no_lab())
    with pytest.raises(LabError, match="ucl parser error"), Rspamd(local={"actions.conf": "}"}):
        pass
