"""Each bridge: what no daemon edits is unchanged, and a daemon of another kind is an error."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.server import Lab, filter_command, system_version
from smtpd_filters.testing.server import unavailable as no_lab
from tests.e2e import clamd_set_up, spamd_set_up
from tests.e2e.clamd_set_up import ClamAV
from tests.e2e.milter_set_up import pymilter
from tests.e2e.sending import GOOD, ZONE, attempt, content_of, greeted, local, transact
from tests.e2e.spamd_set_up import Spamd
from tests.e2e.test_messages import BODIES, HEAD
from tests.e2e.test_milter import SCRIPT
from tests.filters.policy.scripted import Scripted
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Start

CLAMD = 3310
#: What the program of pymilter does nothing about, though it is sent everything.
SUBJECT = b"Subject: accept\r\n"
MIXED = b'Content-Type: multipart/mixed; boundary="x"\r\n'
#: The header of each message below HEAD and SUBJECT, and its body; None: the header alone.
MESSAGES: dict[str, tuple[bytes, bytes | None]] = {
    **{kind: (b"", body) for kind, body in BODIES.items()},
    "header alone": (b"", None),
    "8-bit header": (b"X-Name: " + bytes(range(128, 256)) + b"\r\n", b"hello\r\n"),
    "folded header": (b"X-Folded:\r\n" + b" folded\r\n" * 300, b"hello\r\n"),
    "empty fields": (b"X-A:\r\nX-B: \r\nX-C: \r\n \t\r\n", b"hello\r\n"),
    "no part": (MIXED, b"--\r\n--x--\r\n--x\r\n"),
    "an unfinished part": (MIXED, b"--x\r\nContent-Type: text/plain\r\n"),
    "parts in themselves": (MIXED, (b"--x\r\n" + MIXED + b"\r\n") * 50),
    "no boundary": (b"Content-Type: multipart/mixed; boundary\r\n", b"--\r\n--\r\n"),
    "an open quote": (b'Content-Type: multipart/mixed; boundary="\r\n\t"x\r\n', b'--"x\r\n'),
    "invalid base64": (b"Content-Transfer-Encoding: base64\r\n", b"=\r\n====\r\nQ\xff!\r\nQUJD"
                       + b"=" * 900 + b"\r\n"),
    "invalid quoted-printable": (b"Content-Transfer-Encoding: quoted-printable\r\n",
                                 b"=\r\n=G1=\r\n==0A=0\r\n=\r\n"),
    "unknown charset": (b'Content-Type: text/plain; charset="\xff"; charset=x\r\n', b"hello\r\n"),
}  # fmt: skip
#: 6.8 cuts such a line if a filter gives it back.
VERY_LONG = b"z" * 20_000 + b"\r\n"
COMMANDS = {
    "clamav": ("--clamd", "PEER"),
    "spamd": ("--spamd", "PEER", "--headers", "none", "--junk-at", "never"),
    "milter": ("--milter", "inet:PEER"),
    "policy": ("--server", "PEER", "--at", "mail-from", "--at", "data", "--at", "end-of-message"),
}


WAITS = {
    "clamav": ("--timeout", "1"),
    "spamd": ("--timeout", "1"),
    "milter": ("--connect-timeout", "1", "--command-timeout", "1"),
    "policy": ("--timeout", "1"),
}


@pytest.fixture(scope="module")
def peers() -> Iterator[tuple[Lab, dict[str, str]]]:
    """The daemons of all bridges, by their addresses in a lab."""
    for reason in (no_lab(), clamd_set_up.unavailable() or None, spamd_set_up.unavailable()):
        need(reason)
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(ZONE))
        stack.enter_context(ClamAV(port=CLAMD, lab=lab))
        spamd = stack.enter_context(Spamd(lab))
        milter = stack.enter_context(pymilter(lab, SCRIPT))
        policy = stack.enter_context(Scripted(listener=lab.new_socket))
        yield (
            lab,
            {
                "clamav": f"127.0.0.1:{CLAMD}",
                "spamd": spamd.server,
                "milter": f"127.0.0.1:{milter.port}",
                "policy": policy.name,
            },
        )


@pytest.mark.parametrize("name", COMMANDS)
def test_what_nobody_edits(start: Start, peers: tuple[Lab, dict[str, str]], name: str) -> None:
    lab, addresses = peers
    flags = [word.replace("PEER", addresses[name]) for word in COMMANDS[name]]
    server = start(lab=lab, filters={"bridge": filter_command(name, *flags)})
    messages = {
        kind: HEAD + SUBJECT + fields + (b"" if body is None else b"\r\n" + body)
        for kind, (fields, body) in MESSAGES.items()
    }
    if server.version != "6.8":
        messages["a very long line"] = HEAD + SUBJECT + b"\r\n" + VERY_LONG
    sent = {}
    with greeted(server.connection(GOOD)) as connection:
        for number, (kind, message) in enumerate(messages.items()):
            numbered = b"X-Number: %d\r\n" % number + message
            outcome = transact(connection, message=numbered)
            assert outcome.code == 250, (kind, outcome)
            sent[number] = kind, numbered
    found = server.maildir("alice")
    assert len(found) == len(sent)
    for mail in found:
        kind, message = sent.pop(int(mail.message["X-Number"]))
        assert content_of(mail.content) == local(message), kind


#: The scripted policy server isn't among them: it fails for any request that isn't one.
WRONG = [(name, other) for name in COMMANDS for other in ("clamav", "spamd", "milter")]


@pytest.mark.parametrize("version", [system_version()], indirect=True)
@pytest.mark.parametrize(("name", "other"), [pair for pair in WRONG if len({*pair}) > 1])
def test_the_daemon_of_another_bridge(
    start: Start, peers: tuple[Lab, dict[str, str]], name: str, other: str
) -> None:
    """Nothing is accepted, whatever it answers, and smtpd stays up."""
    lab, addresses = peers
    flags = [word.replace("PEER", addresses[other]) for word in COMMANDS[name]]
    server = start(lab=lab, filters={"bridge": filter_command(name, *flags, *WAITS[name])})
    message = HEAD + b"\r\nhello\r\n"
    assert attempt(server, GOOD, message=message).code == 451
    assert attempt(server, GOOD, message=message).code == 451
    assert server.maildir("alice") == []
