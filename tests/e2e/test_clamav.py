"""Tests of filter-clamav between the real smtpd and the real clamd.

clamd's database has the signature of EICAR's file; what the real daemon never does, such as
replying nonsense, is in `tests.filters.clamav`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.testing.server import Lab, Smtpd, filter_command, scratch_path, system_version
from smtpd_filters.testing.server import unavailable as no_lab
from tests.e2e.clamd_set_up import EICAR, NAME, SUSPICIOUS, ClamAV, attachment, unavailable
from tests.e2e.conftest import Start
from tests.e2e.sending import ZONE, Outcome, attempt, content_of, folders, local, logged
from tests.e2e.test_chain_file import CHAINS, command
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 3310
REFUSED = f"5.7.1 Virus found: {NAME}"
#: Where the daemon's socket is for filters.
THERE = "/srv/clamd"
LIMIT = 25 << 20
#: What smtpd would add.
STAMPS = f"Date: {formatdate()}\r\nMessage-ID: <1@good.example>\r\n".encode()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The network of the module's servers."""
    need(no_lab())
    with Lab(ZONE) as made:
        yield made


@pytest.fixture(scope="module")
def clamd(lab: Lab) -> Iterator[ClamAV]:
    """The module's daemon, on a socket and at a port."""
    need(unavailable())
    with ClamAV(limit=LIMIT, port=PORT, lab=lab) as started:
        yield started


@pytest.fixture
def scan(start: Start, lab: Lab, clamd: ClamAV) -> Start:
    """Start a server whose mail the daemon scans; `flags` are further ones of the filter."""

    def begin(*, flags: tuple[str, ...] = (), daemon: ClamAV = clamd, **arguments: Any) -> Smtpd:
        given = filter_command("clamav", "--clamd", f"{THERE}/clamd", *flags)
        arguments.setdefault("filters", {"clamav": given})
        return start(lab=lab, binds={THERE: daemon.socket.parent}, **arguments)

    return begin


def mail(body: bytes = b"\r\nhello\r\n", subject: str = "hello") -> bytes:
    """A message; `body` begins with further header fields or an empty line."""
    head = f"From: someone@good.example\r\nTo: alice@local.example\r\nSubject: {subject}\r\n"
    return head.encode() + STAMPS + body


INFECTED = mail(b"\r\n" + EICAR + b"\r\n")


@pytest.mark.parametrize("infected", [INFECTED, mail(attachment())], ids=["body", "attachment"])
def test_a_virus_is_refused(scan: Start, infected: bytes) -> None:
    server = scan()
    assert attempt(server, message=infected) == Outcome(".", 554, REFUSED, stayed=True)
    message = mail()
    assert attempt(server, message=message).code == 250
    [delivered] = server.maildir("alice")
    assert content_of(delivered.content) == local(message)
    [line] = logged(server, r"clamav message result=reject", 1)
    assert f'reason="virus {NAME}"' in line


def test_by_the_argument_of_the_filter_in_go(scan: Start, clamd: ClamAV) -> None:
    del clamd
    server = scan(filters={"clamav": filter_command("clamav", f"127.0.0.1:{PORT}")})
    assert attempt(server, message=INFECTED).said == f"554 {REFUSED}"
    assert attempt(server, message=mail()).code == 250
    assert folders(server) == [""]


def test_marks(scan: Start) -> None:
    server = scan(flags=("--headers", "all", "--action", "header"))
    forged = b"X-Virus-Status: Clean, I swear\r\n"
    assert attempt(server, message=forged + mail()).code == 250
    assert attempt(server, message=forged + INFECTED).code == 250
    assert attempt(server, message=mail(b"\r\n" + SUSPICIOUS + b"\r\n")).code == 250
    found = {
        str(each.message["X-Virus-Status"]): (each.folder, each.message.get_all("X-Virus-Status"))
        for each in server.maildir("alice")
    }
    assert found == {
        "Clean": ("", ["Clean"]),
        f"Infected ({NAME})": ("", [f"Infected ({NAME})"]),
        "Infected (PUA.Own.Test.UNOFFICIAL)": ("Junk", ["Infected (PUA.Own.Test.UNOFFICIAL)"]),
    }


def test_only_mail_from_outside(scan: Start) -> None:
    server = scan(flags=("--only", "untrusted"))
    assert attempt(server, message=INFECTED).code == 554
    assert attempt(server, message=INFECTED, user="alice").code == 250
    assert attempt(server, "127.0.0.1", message=INFECTED).code == 250


def test_what_is_refused_is_kept(scan: Start) -> None:
    server = scan(flags=("--quarantine", scratch_path("quarantine")))
    assert attempt(server, message=INFECTED).code == 554
    [line] = logged(server, r"clamav.*kept as ", 1)
    name = line.partition("kept as ")[2].partition('"')[0]
    kept = server.scratch(f"quarantine/new/{name}")
    assert kept.startswith(f"X-Virus-Status: Infected ({NAME})\nX-Envelope-From: <".encode())
    assert kept.endswith(local(INFECTED))


@pytest.mark.parametrize("version", [system_version()], indirect=True)
def test_a_message_above_the_daemons_limit(start: Start, lab: Lab) -> None:
    """It answers in the middle of the message, and closes: an error, for this message alone."""
    need(unavailable())
    with ClamAV(limit=1 << 20) as small:
        given = filter_command("clamav", "--clamd", f"{THERE}/clamd")
        server = start(lab=lab, filters={"clamav": given}, binds={THERE: small.socket.parent})
        large = mail(b"\r\n" + (b"x" * 70 + b"\r\n") * 60_000)
        for _ in range(5):
            assert attempt(server, message=large).code == 451
            assert attempt(server, message=mail()).code == 250
        logged(server, "StreamMaxLength is below --max-size", 1)
        assert len(server.maildir("alice")) == 5


def test_in_a_chain_with_a_score(scan: Start) -> None:
    """A virus refuses by itself, a suspicious message by its points and those of another filter."""
    chain = f"""
        [filter.dyndns]
        action = "junk"
        score = 2.5

        [filter.clamav]
        clamd = ["{THERE}/clamd"]
        score = {{ junk = 2.5, reject = 10 }}

        [chain.scored]
        filters = ["dyndns", "clamav"]
        junk-at = 3
        reject-at = 5
    """
    server = scan(
        filters={"chain": command("--chain", "scored")},
        files={CHAINS: "\n".join(line.strip() for line in chain.splitlines())},
    )
    suspicious = mail(b"\r\n" + SUSPICIOUS + b"\r\n")
    assert attempt(server, message=INFECTED).code // 100 == 5
    assert attempt(server, message=suspicious).code == 250
    assert attempt(server, "192.0.2.8", message=suspicious).code // 100 == 5
    assert attempt(server, "192.0.2.8", message=mail()).code == 250
    assert folders(server) == ["", ""]


@pytest.mark.parametrize("version", [system_version()], indirect=True)
def test_large_messages_at_once_take_little_memory(scan: Start, clamd: ClamAV) -> None:
    del clamd
    server = scan(flags=("--max-size", "25M"))
    line = b"The quick brown fox jumps over the lazy dog, again and again and so on\r\n"
    head, mark, rest = attachment().partition(b"see attachment\r\n")
    clean = mail(b"\r\n" + line * ((20 << 20) // len(line)))
    infected = mail(head + mark + line * ((20 << 20) // len(line)) + rest)
    with ThreadPoolExecutor(2) as pool:
        sent = [pool.submit(attempt, server, message=each) for each in (clean, infected)]
        codes = [each.result().code for each in sent]
    assert codes == [250, 554]
    for process in server.find("filter-clamav"):
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0])
        assert peak < 100 << 10, peak
    [one] = server.maildir("alice")
    assert content_of(one.content) == local(clean)
