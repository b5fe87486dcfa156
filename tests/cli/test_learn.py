from __future__ import annotations

import io
import json
import os
import pty
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.cli import controller, learn, mailboxes, main
from smtpd_filters.errors import ConfigError
from smtpd_filters.testing.rspamd_stub import Answer, RspamdStub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.testing.rspamd_stub import Request

    Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).parents[2]
TOOL = [sys.executable, "-c", "import sys; from smtpd_filters.cli import main; sys.exit(main())"]
MAIL = b"From: bob@example.net\nSubject: hello\n\n.body\xff\n\n"
LEARNED = Answer(b'{"success":true}')
KNOWN = Answer(b'{"error":"<1@example.org> has been already learned as spam, ignore it"}', 208)
# As rspamd 3.4 says it: with the length of a content that isn't there.
SHORT = Answer(b"", 204, headers=(("Content-Length", "83"),))


@pytest.fixture
def rspamd() -> Iterator[RspamdStub]:
    with RspamdStub(LEARNED) as stub:
        yield stub


def run(
    *words: str, stdin: bytes = b"", capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    """What `learn` with these words comes to: status, stdout, stderr."""
    with Piped(stdin) as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        try:
            status = main(["learn", *words])
        except SystemExit as ended:
            status = int(ended.code or 0)
    return status, *capsys.readouterr()


class Piped(io.TextIOWrapper):
    """A stdin with these bytes."""

    def __init__(self, data: bytes) -> None:
        source, sink = os.pipe()
        self._writer = threading.Thread(target=self._write, args=(sink, data))
        self._writer.start()
        super().__init__(os.fdopen(source, "rb"))

    @staticmethod
    def _write(sink: int, data: bytes) -> None:
        with os.fdopen(sink, "wb") as file:
            file.write(data)

    def close(self) -> None:
        self.buffer.read()
        super().close()
        self._writer.join()


class Learn:
    """Calls `learn`, with a daemon that answers."""

    def __init__(
        self, rspamd: RspamdStub, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.rspamd = rspamd
        self._rest: dict[str, Any] = {"capsys": capsys, "monkeypatch": monkeypatch}

    def __call__(self, *words: str, stdin: bytes = b"", url: str = "") -> tuple[int, str, str]:
        return run(*words, "-url", url or self.rspamd.url, stdin=stdin, **self._rest)


@pytest.fixture
def call(rspamd: RspamdStub, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Learn:
    return Learn(rspamd, capsys, monkeypatch)


# -- one message ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ham", "spam"])
def test_a_message_from_stdin(kind: str, call: Learn) -> None:
    assert call(kind, stdin=MAIL) == (0, "", "")
    [request] = call.rspamd.requests
    assert request.head.startswith(f"POST /learn{kind} HTTP/1.0\r\n".encode())
    assert request.body == MAIL
    assert dict(request.headers) == {
        "Host": call.rspamd.url.removeprefix("http://"),
        "Connection": "close",
        "Content-Length": str(len(MAIL)),
    }


def test_who_and_whose(call: Learn, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_bytes(b"a b\xc3\xa9\r\nno more\n")
    words = ("spam", "--password-file", str(secret), "--user", "anna@example.org")
    assert call(*words, stdin=MAIL) == (0, "", "")
    [request] = call.rspamd.requests
    assert request.get("Password") == "a b\xc3\xa9"
    assert request.get("Deliver-To") == "anna@example.org"


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (LEARNED, 0, ""),
        (Answer(b'{ "success": true }'), 0, ""),
        (Answer(b'{"success":true}', chunked=False, headers=(("Connection", "close"),)), 0, ""),
        (KNOWN, 0, ""),
        (SHORT, 0, ""),
        (Answer(b'{"error":"Unauthorized"}', 401), 77, "wrong password (status 401: "),
        (Answer(b'{"error":"Unauthorized"}', 403), 77, "wrong password (status 403: "),
        (Answer(b'{"error":"Empty body is not permitted"}', 400), 65, "status 400: "),
        (Answer(b"", 413), 65, "status 413: "),
        (Answer(b'{"error":"invalid command"}', 500), 75, "status 500: "),
        (Answer(b"Not found", 404), 75, "status 404: Not found"),
        # rspamd 3.4 without its Redis: nothing has been learned.
        (Answer(KNOWN.body, 404), 75, "status 404: "),
        (Answer(b"<html>"), 75, "no rspamd: <html>"),
        (Answer(b'{"success":false}'), 75, "no rspamd: "),
        (Answer(b"\x1b[2J\xff\n", 500), 75, "status 500: \\x1b[2J"),
        (Answer(b"", behaviour="close"), 75, "http://[::]:0: closed without a reply"),
        (Answer(b"", behaviour="reset"), 75, "http://[::]:0: Connection reset"),
        (Answer(b"", behaviour="garbage"), 75, "the reply is no HTTP"),
        (Answer(LEARNED.body, behaviour="cut"), 75, "no rspamd: "),
        (Answer(b"x", behaviour="endless"), 75, "no rspamd: 1\\r\\nx"),
    ],
)
def test_what_the_daemon_says(answer: Answer, status: int, said: str, call: Learn) -> None:
    call.rspamd.answer = answer
    got, out, err = call("spam", stdin=MAIL)
    assert (got, out) == (status, "")
    if said:
        said = said.replace("http://[::]:0", call.rspamd.url)
        assert err.startswith(f"smtpd-filters: stdin: {said}")
        assert err.count("\n") == 1
        assert err.isascii() or "�" in err
        assert len(err) < 300
    else:
        assert err == ""


@pytest.mark.parametrize(
    "answer",
    [
        Answer(LEARNED.body, behaviour="drop"),
        Answer(LEARNED.body, behaviour="stall"),
        Answer(LEARNED.body * 100, behaviour="trickle", delay=0.01),
    ],
    ids=lambda answer: str(answer.behaviour),
)
def test_a_daemon_that_does_not_reply(answer: Answer, call: Learn) -> None:
    call.rspamd.answer = answer
    got, out, err = call("spam", "--timeout", "0.2", stdin=MAIL)
    assert (got, out) == (75, "")
    assert err == f"smtpd-filters: stdin: {call.rspamd.url}: no reply within 0.2 s\n"


def test_a_daemon_that_is_not_there(call: Learn) -> None:
    call.rspamd.stop()
    said = f"smtpd-filters: stdin: {call.rspamd.url}: Connection refused\n"
    assert call("spam", stdin=MAIL) == (75, "", said)


def test_a_daemon_that_replies_before_the_end(call: Learn) -> None:
    call.rspamd.answer = Answer(b'{"error":"Unauthorized"}', 401, behaviour="early")
    status, _, err = call("spam", stdin=b"x" * (8 << 20))
    # What it says may be lost with the connection.
    assert (status, "wrong password" in err) in ((77, True), (75, False))


def test_an_empty_message(call: Learn, tmp_path: Path) -> None:
    assert call("spam") == (65, "", "smtpd-filters: stdin: an empty message\n")
    (tmp_path / "empty").touch()
    status, _, err = call("spam", str(tmp_path / "empty"))
    assert (status, err) == (65, f"smtpd-filters: {tmp_path}/empty: an empty message\n")
    assert not call.rspamd.requests


@pytest.mark.parametrize("more", [0, 1, 1000])
def test_a_large_message_from_stdin(more: int, call: Learn) -> None:
    data = MAIL * (mailboxes.MEMORY_LIMIT // len(MAIL) + 1)
    data = data[: mailboxes.MEMORY_LIMIT] + b"x" * more
    assert call("spam", stdin=data) == (0, "", "")
    assert call.rspamd.requests[0].body == data


def test_a_directory_for_stdin(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = os.open(ROOT, os.O_RDONLY)
    try:

        class Directory:
            @staticmethod
            def fileno() -> int:
                return descriptor

        monkeypatch.setattr(sys, "stdin", Directory)
        assert main(["learn", "ham"]) == 66
    finally:
        os.close(descriptor)
    assert capsys.readouterr().err == "smtpd-filters: stdin: is a directory\n"


def test_a_stdin_that_is_closed(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["learn", "ham"]) == 66
    assert capsys.readouterr().err == "smtpd-filters: stdin: is closed\n"


def test_a_bug_of_ours_is_shown(
    call: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn_(_controller: object, _mail: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(controller.Controller, "learn", learn_)
    with pytest.raises(ZeroDivisionError):
        call("spam", str(maildir(tmp_path, one=b"1", two=b"2")))


def test_over_a_unix_socket(call: Learn, tmp_path: Path) -> None:
    path = f"{tmp_path}/controller.sock"
    with RspamdStub(LEARNED, listen=path) as stub:
        for url in (path, f"unix:{path}"):
            assert call("spam", stdin=MAIL, url=url) == (0, "", "")
        assert [request.get("Host") for request in stub.requests] == ["localhost"] * 2
    assert call("spam", stdin=MAIL, url=path)[0] == 75


def test_over_tls(call: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = str(tmp_path / "key"), str(tmp_path / "certificate")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    got = []

    def serve(listening: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listening.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    got.append(secure.recv(1 << 16))
                    while len(got[-1].partition(b"\r\n\r\n")[2]) < len(MAIL):
                        got[-1] += secure.recv(1 << 16)
                    secure.sendall(LEARNED.wire())
            except ssl.SSLError:
                got.append(b"no trust")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=serve, args=[listening])
        server.start()
        url = f"https://localhost:{listening.getsockname()[1]}/rspamd"
        status, _, err = call("spam", stdin=MAIL, url=url)
        assert (status, "CERTIFICATE_VERIFY_FAILED" in err) == (75, True)
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        assert call("spam", stdin=MAIL, url=url) == (0, "", "")
        server.join()
    assert got[0] == b"no trust"
    assert got[1].startswith(b"POST /rspamd/learnspam HTTP/1.0\r\n")
    assert got[1].endswith(MAIL)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost", ("localhost", "localhost", 11334, "")),
        ("http://localhost:80", ("localhost:80", "localhost", 80, "")),
        ("https://mx.example.org/", ("mx.example.org", "mx.example.org", 443, "")),
        ("http://192.0.2.1:1/a/b/", ("192.0.2.1:1", "192.0.2.1", 1, "/a/b")),
        ("http://[2001:db8::1]:11334", ("[2001:db8::1]:11334", "2001:db8::1", 11334, "")),
        ("http://[::1]", ("[::1]", "::1", 11334, "")),
        ("/run/rspamd/controller.sock", ("localhost", "", 0, "")),
    ],
)
def test_urls(url: str, expected: tuple[str, str, int, str]) -> None:
    assert controller._endpoint(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost", "ftp://localhost", "http://", "http://:80", "http://a:b", "http://a:"),
        *("http://a:65536", "http://a:123456", "http://u:p@a/", "http://a/?x", "http://a\r\nX: y"),
        *("http://a b", "run/sock", "http://a:80:80", "http://[::1", "http://a/#x"),
        *("http://a..b", f"http://{'a' * 64}", "http://.", f"http://{'é' * 60}"),
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="-url: expected"):
        controller._endpoint(url)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 64, "kind"),
        (["eggs"], 64, "invalid choice"),
        (["spam", "--frobnicate"], 64, "--frobnicate"),
        (["spam", "--url", "localhost"], 64, "-url: expected http://HOST:PORT"),
        (["spam", "--timeout", "soon"], 64, "--timeout: "),
        (["spam", "--timeout", "0"], 64, "--timeout: "),
        (["spam", "--jobs", "0"], 64, "--jobs: expected a number from 1 to 64"),
        (["spam", "--jobs", "65"], 64, "--jobs: "),
        (["spam", "--jobs", "²"], 64, "--jobs: "),
        (["spam", "--user", "a\nX: b"], 64, "Deliver-To: a control character"),
        (["spam", "--password-file", "/no/such/file"], 78, "/no/such/file: No such file"),
        (["spam", "--password-file", "/dev/null"], 78, "/dev/null: the first line is empty"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str],
    status: int,
    said: str,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    got, out, err = run(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert (got, out) == (status, "")
    assert err.startswith("smtpd-filters")
    assert said in err
    assert err.count("\n") == 1


def test_there_is_help(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["learn", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "usage: smtpd-filters learn" in out
    assert "75 when another try may help" in " ".join(out.split())


# -- several -------------------------------------------------------------------------------------


def maildir(path: Path, **messages: bytes) -> Path:
    for name in ("cur", "new", "tmp"):
        (path / name).mkdir(parents=True)
    for name, data in messages.items():
        (path / ("cur" if name.endswith("S") else "new") / name.replace("_", ":2,")).write_bytes(
            data
        )
    return path


def bodies(rspamd: RspamdStub) -> list[bytes]:
    return sorted(request.body for request in rspamd.requests)


def test_files(call: Learn, tmp_path: Path) -> None:
    names = []
    for n in range(20):
        (tmp_path / f"{n}").write_bytes(b"%d " % n + MAIL)
        names.append(str(tmp_path / f"{n}"))
    status, out, err = call("ham", *names)
    assert (status, err) == (0, "")
    assert out == "20 learned, 0 known already, 0 skipped, 0 not learned\n"
    assert bodies(call.rspamd) == sorted(b"%d " % n + MAIL for n in range(20))
    assert call.rspamd.most_at_once <= 4


def test_files_behind_two_hyphens(
    call: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "-x").write_bytes(MAIL)
    monkeypatch.chdir(tmp_path)
    words = ["learn", "spam", "-url", call.rspamd.url, "--", "-x"]
    assert main(words) == 0
    assert call.rspamd.requests[0].body == MAIL


def test_a_maildir(call: Learn, tmp_path: Path) -> None:
    box = maildir(tmp_path, one=b"1", two=b"2", three_S=b"3", four_S=b"From 4")
    (box / "tmp" / "five").write_bytes(b"5")
    (box / "cur" / ".hidden").write_bytes(b"6")
    (box / "dovecot-uidlist").write_bytes(b"7")
    (box / ".Junk").mkdir()
    status, out, err = call("spam", str(box), "--jobs", "2")
    assert (status, err) == (0, "")
    assert out.startswith("4 learned,")
    assert bodies(call.rspamd) == [b"1", b"2", b"3", b"From 4"]
    assert call.rspamd.most_at_once <= 2


def test_a_directory_of_messages(call: Learn, tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(b"1")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b.eml").write_bytes(b"2")
    assert call("spam", str(tmp_path))[1].startswith("1 learned,")


DATE = b"Sat Nov 21 06:00:00 2026"
MBOX = (
    b"From bob " + DATE + b"\nSubject: 1\n\n>From here\n>>From there\n> From\n\n"
    b"From anna@example.org Sat Nov  1 6:00 +0000 2026\nSubject: 2\n\n"
    b"A line that only looks like one:\n\nFrom now on, Sat Nov 21, 6:00 is late\n\n"
    b"From x " + DATE + b"\n\n"
    b"From \nSubject: 4\n\nbody\nFrom inside " + DATE + b"\nno newline at the end"
)


@pytest.mark.parametrize("stdin", [False, True])
def test_an_mbox(call: Learn, tmp_path: Path, *, stdin: bool) -> None:
    path = tmp_path / "mbox"
    path.write_bytes(MBOX)
    if stdin:
        status, out, err = call("spam", "--mbox", stdin=MBOX)
        assert (status, out) == (65, "")
        assert err == "smtpd-filters: stdin:3: an empty message\n"
    else:
        status, out, err = call("spam", str(path), "--jobs", "1")
        assert (status, err) == (65, f"smtpd-filters: {path}:3: an empty message\n")
        assert out == "3 learned, 0 known already, 0 skipped, 1 not learned\n"
    assert [request.body for request in call.rspamd.requests] == [
        b"Subject: 1\n\nFrom here\n>From there\n> From\n",
        MBOX[MBOX.index(b"Subject: 2") : MBOX.index(b"\nFrom x")],
        b"Subject: 4\n\nbody\nFrom inside " + DATE + b"\nno newline at the end",
    ]


@pytest.mark.parametrize(
    "data",
    [MBOX, b"From here on\nSubject: x\n\nbody\n\nFrom y " + DATE + b"\nno header\n"],
)
def test_a_message_from_stdin_is_one(data: bytes, call: Learn) -> None:
    assert call("spam", stdin=data) == (0, "", "")
    assert [request.body for request in call.rspamd.requests] == [data]


def test_a_file_that_begins_as_no_mbox_does(call: Learn, tmp_path: Path) -> None:
    data = b"From the start, " + DATE[:-4] + b"was late\n\nFrom y " + DATE + b"\nbody\n"
    (tmp_path / "mail").write_bytes(data)
    assert call("spam", str(tmp_path / "mail"))[0] == 0
    assert [request.body for request in call.rspamd.requests] == [data]


@pytest.mark.parametrize("data", [b"", MAIL, b"\n" + MBOX])
def test_an_mbox_that_is_none(data: bytes, call: Learn) -> None:
    assert call("spam", "--mbox", stdin=data) == (65, "", "smtpd-filters: stdin: no mbox\n")
    assert not call.rspamd.requests


@pytest.mark.parametrize(
    ("line", "separates"),
    [
        (b"From bob@example.net Sat Nov 21 06:00:00 2026\n", True),
        (b"From bob@example.net Sat Nov 21 06:00:00 2026\r\n", True),
        (b"From - Sat Nov 21 06:00:00 2026\n", True),
        (b"From Sat Nov 21 06:00:00 2026\n", True),
        (b'From "a b"@example.net  Sun Nov  1 06:00 2026\n', True),
        (b"From bob Sat Nov 21 06:00:00 CET 2026\n", True),
        (b"From bob Sat Nov 21 06:00:00 2026 +0100\n", True),
        (b"From bob Sat Nov 21 06:00:00 2026 remote from mx\n", True),
        (b"From \n", True),
        (b"From \r\n", True),
        (b"From bob\n", False),
        (b"From bob@example.net Saturday 21 Nov\n", False),
        (b"From Mon to Fri we are here.\n", False),
        (b"From: bob@example.net Sat Nov 21 06:00:00 2026\n", False),
        (b"from bob Sat Nov 21 06:00:00 2026\n", False),
        (b">From bob Sat Nov 21 06:00:00 2026\n", False),
        (b" From bob Sat Nov 21 06:00:00 2026\n", False),
        (b"From bob Sat Nov 21 06:00:00 20261\n", False),
        (b"From bob Sat Nov 21 06:00:00 2026", False),
    ],
)
def test_what_separates(line: bytes, *, separates: bool, tmp_path: Path) -> None:
    path = tmp_path / "box"
    path.write_bytes(line)
    assert mailboxes.is_mbox(str(path)) == separates
    data = b"From x " + DATE + b"\n1\n\n" + line + b"2\n"
    assert len(list(mailboxes.split("x", io.BytesIO(data)))) == 1 + separates


def test_a_large_message_of_an_mbox(call: Learn, tmp_path: Path) -> None:
    separator = b"From x " + DATE + b"\n"
    limit = mailboxes.MEMORY_LIMIT
    # Also lines that are longer than what is read at once, whose rest looks like a line of its own.
    odd = b"x" * (64 << 10) + b"From y " + DATE + b"\n" + b"y" * (64 << 10) + b"\n\n"
    mails = [b"1\n", odd * (2 * limit // len(odd)) + b"2\n", b"3\n", b"z" * limit, b"\n\n"]
    path = tmp_path / "mbox"
    path.write_bytes(b"".join(separator + mail + b"\n" for mail in mails[:3]))
    with path.open("ab") as file:
        file.write(separator + mails[3] + b"\n\n" + separator + mails[4] + b"\n")
    mails[3] += b"\n"
    # One at a time: a spooled message that is never learned would be an open file.
    assert call("spam", str(path), "--jobs", "1")[:2] == (
        0,
        "5 learned, 0 known already, 0 skipped, 0 not learned\n",
    )
    assert [request.body for request in call.rspamd.requests] == mails


def test_several_outcomes(call: Learn, tmp_path: Path) -> None:
    def answer(request: Request) -> Answer:
        return {b"2": KNOWN, b"3": SHORT, b"4": Answer(b"x", 500)}.get(request.body[:1], LEARNED)

    call.rspamd.answer = answer
    for n in range(6):
        (tmp_path / f"{n}").write_bytes(b"%d" % n)
    (tmp_path / "0").write_bytes(b"")
    status, out, err = call("spam", str(tmp_path), f"{tmp_path}/none")
    assert status == 75
    assert out == "2 learned, 1 known already, 1 skipped, 3 not learned\n"
    assert sorted(err.splitlines()) == [
        f"smtpd-filters: {tmp_path}/0: an empty message",
        f"smtpd-filters: {tmp_path}/4: status 500: x",
        f"smtpd-filters: {tmp_path}/none: No such file or directory",
    ]


@pytest.mark.parametrize(
    ("statuses", "status"),
    [([], 0), ([65], 65), ([65, 66], 66), ([66, 75, 65], 75), ([75, 77], 77)],
)
def test_the_status_of_several(statuses: list[int], status: int) -> None:
    tally = learn.Tally(None)
    tally.add("learned")
    for each in statuses:
        tally.fail("x", "y", each)
    assert tally.status == status


def test_a_wrong_password_ends_it(call: Learn, tmp_path: Path) -> None:
    for n in range(100):
        (tmp_path / f"{n}").write_bytes(MAIL)
    call.rspamd.answer = Answer(b"", 401)
    status, out, err = call("spam", str(tmp_path), "--jobs", "2")
    assert status == 77
    assert len(call.rspamd.requests) <= 2
    assert out.endswith("; given up\n")
    assert "wrong password" in err


def test_a_dead_daemon_is_not_asked_for_long(call: Learn, tmp_path: Path) -> None:
    for n in range(100):
        (tmp_path / f"{n}").write_bytes(MAIL)
    call.rspamd.stop()
    status, out, err = call("spam", str(tmp_path), "--jobs", "2")
    assert status == 75
    assert 3 <= err.count("Connection refused") <= 4
    assert out.endswith("; given up\n")


def test_failures_in_between_do_not_end_it(call: Learn, tmp_path: Path) -> None:
    seen = []

    def answer(request: Request) -> Answer:
        seen.append(request)
        return LEARNED if len(seen) % 3 == 0 else Answer(b"", behaviour="close")

    call.rspamd.answer = answer
    for n in range(9):
        (tmp_path / f"{n}").write_bytes(MAIL)
    status, out, _ = call("spam", str(tmp_path), "--jobs", "1")
    assert (status, out) == (75, "3 learned, 0 known already, 0 skipped, 6 not learned\n")


def test_messages_that_are_refused_do_not_end_it(call: Learn, tmp_path: Path) -> None:
    for n in range(9):
        (tmp_path / f"{n}").write_bytes(MAIL)
    call.rspamd.answer = Answer(b"x", 500)
    status, out, _ = call("spam", str(tmp_path))
    assert (status, out) == (75, "0 learned, 0 known already, 0 skipped, 9 not learned\n")


def test_what_cannot_be_read(call: Learn, tmp_path: Path) -> None:
    # Nobody writes into it: to open it would wait.
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "good").write_bytes(MAIL)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    with listening:
        names = [f"{tmp_path}/{name}" for name in ("socket", "fifo", "none", "good")]
        status, out, err = call("spam", *names, "/dev/null")
    assert status == 66
    assert out.startswith("1 learned, ")
    assert err.count("\n") == 4
    assert f"{tmp_path}/none: No such file or directory" in err
    assert f"{tmp_path}/fifo: Not a regular file, nor a directory" in err
    assert "/dev/null: Not a regular file, nor a directory" in err


# -- mail that moves meanwhile -------------------------------------------------------------------


def test_mail_that_moves_meanwhile(call: Learn, tmp_path: Path) -> None:
    box = maildir(tmp_path, one=b"1", two=b"2", three_S=b"3")
    mails = {
        Path(mail.name).name: mail
        for mail in mailboxes.messages([str(box)])
        if isinstance(mail, mailboxes.Mail)
    }
    (box / "new" / "one").rename(box / "cur" / "one:2,S")
    (box / "cur" / "three:2,S").rename(box / "cur" / "three:2,RS")
    (box / "new" / "two").unlink()
    for name, content in (("one", b"1"), ("three:2,S", b"3")):
        file, size = mails[name].open()
        with file:
            assert (file.read(), size) == (content, 1)
    with pytest.raises(mailboxes.Gone):
        mails["two"].open()
    tally = learn.Tally(None)
    daemon = controller.Controller(call.rspamd.url, "spam", password="", user="", timeout=5)
    learn._learn_one(daemon, mails["two"], tally)
    assert (tally.done, tally.status) == (0, 0)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    for directory in ("new", "old"):
        with pytest.raises(mailboxes.Gone):
            mailboxes.Mail("x", path=str(tmp_path / directory / "x")).open()


def test_another_file_of_the_same_name(tmp_path: Path) -> None:
    box = maildir(tmp_path, one_S=b"1")
    with pytest.raises(mailboxes.Gone):
        mailboxes.Mail("x", path=str(box / "old" / "one")).open()


def test_what_is_seen_meanwhile_is_learned(call: Learn, tmp_path: Path) -> None:
    box = maildir(tmp_path, one=b"1")
    mails = mailboxes.messages([str(box)])
    first = next(mails)
    assert isinstance(first, mailboxes.Mail)
    (box / "new" / "two").write_bytes(b"2")
    (box / "new" / "two").rename(box / "cur" / "two:2,S")
    assert [mail.name for mail in mails if isinstance(mail, mailboxes.Mail)] == [
        str(box / "cur" / "two:2,S")
    ]
    assert not call.rspamd.requests


def test_a_file_that_gets_shorter(call: Learn, tmp_path: Path) -> None:
    path = tmp_path / "mail"
    path.write_bytes(MAIL)

    class Shrinking(mailboxes.Mail):
        def open(self) -> tuple[Any, int]:
            file, size = super().open()
            return file, size + 1

    call.rspamd.answer = Answer(b"", behaviour="drop")
    daemon = controller.Controller(call.rspamd.url, "spam", password="", user="", timeout=5)
    with pytest.raises(controller.Refused, match="shorter"):
        daemon.learn(Shrinking("x", path=str(path)))


# -- mbox, whatever is in it ---------------------------------------------------------------------

LINES = st.sampled_from(
    [
        *(b"From x", b">From x", b">>From", b"", b"body", b" From", b"\r", b"\xff"),
        *(b"From x " + DATE, b"From ", b"From \r", b">From x " + DATE),
    ]
)


@given(st.lists(st.lists(LINES, min_size=1, max_size=5), min_size=1, max_size=4))
def test_an_mbox_gives_back_what_was_put_into_it(contents: list[list[bytes]]) -> None:
    mails = [b"".join(line + b"\n" for line in lines) for lines in contents]
    box = b""
    for mail in mails:
        quoted = re.sub(rb"(?m)^(>*From )", rb">\1", mail)
        box += b"From a@example.net " + DATE + b"\n" + quoted + b"\n"
    found = []
    for one in mailboxes.split("x", io.BytesIO(box)):
        file, size = one.open()
        with file:
            found.append(file.read())
            assert size == len(found[-1])
    assert found == mails


def test_an_mbox_of_nothing() -> None:
    assert list(mailboxes.split("x", io.BytesIO(b""))) == []
    assert list(mailboxes.split("x", io.BytesIO(b"no separator\n"))) == []
    assert list(mailboxes.split("x", io.BytesIO(b"no date\n\nFrom x " + DATE + b"\n1"))) == []


# -- the terminal --------------------------------------------------------------------------------


def test_the_bar() -> None:
    assert learn.bar(0, 10) == f"[{'.' * 30}] 0/10 0%"
    assert learn.bar(5, 10) == f"[{'#' * 15}{'.' * 15}] 5/10 50%"
    assert learn.bar(12, 10) == f"[{'#' * 30}] 10/10 100%"
    assert learn.bar(7, None) == "7 messages"


def test_counting(tmp_path: Path) -> None:
    box = str(maildir(tmp_path / "box", one=b"1", two_S=b"2"))
    (tmp_path / "mail").write_bytes(MAIL)
    mail, none = str(tmp_path / "mail"), str(tmp_path / "none")
    assert mailboxes.count([box, mail, none]) == 4
    (tmp_path / "mbox").write_bytes(MBOX)
    assert mailboxes.count([box, str(tmp_path / "mbox")]) is None


def test_a_terminal_shows_a_bar(rspamd: RspamdStub, tmp_path: Path) -> None:
    box = maildir(tmp_path, **{f"m{n}": b"%d" % n for n in range(12)})
    rspamd.answer = Answer(LEARNED.body, delay=0.1)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*TOOL, "learn", "spam", "-url", rspamd.url, "--jobs", "2", str(box)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=ROOT,
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # the other end is closed
            pass
        os.close(ours)
        out = process.communicate()[0]
    assert process.returncode == 0
    assert out == b"12 learned, 0 known already, 0 skipped, 0 not learned\n"
    assert re.search(rb"\r\x1b\[K\[#*\.*\] \d+/12 \d+%", shown)
    assert shown.endswith(b"\r\x1b[K")


# -- as a program --------------------------------------------------------------------------------


# Tests that run in the background have the signal ignored, and so would their children.
INTERRUPTIBLE = (
    "import signal, sys; from smtpd_filters.cli import main; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main())"
)


@pytest.mark.parametrize("behaviour", ["", "drop", "stall"])
def test_an_interrupt_ends_it(rspamd: RspamdStub, tmp_path: Path, behaviour: str) -> None:
    asked = threading.Event()

    def answer(_request: Request) -> Answer:
        asked.set()
        return Answer(LEARNED.body, delay=0 if behaviour else 0.5, behaviour=behaviour)

    rspamd.answer = answer
    box = maildir(tmp_path, **{f"m{n}": b"%d" % n for n in range(50)})
    words = ["learn", "spam", "-url", rspamd.url, "--jobs=2", "--timeout=600", str(box)]
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert asked.wait(30)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
    assert re.fullmatch(
        rb"\d learned, 0 known already, 0 skipped, 0 not learned; interrupted\n", out
    )
    assert len(rspamd.requests) < 10


def test_it_starts_without_what_it_does_not_use() -> None:
    # Dovecot waits for it with each message that somebody moves.
    program = (
        "import sys; from smtpd_filters.cli import main; "
        "main(['learn', 'spam', '-url', 'http://127.0.0.1:1']); "
        "print(json.dumps(sorted(sys.modules))) if (json := __import__('json')) else 0"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=MAIL, capture_output=True, cwd=ROOT, check=True
    )
    loaded = set(json.loads(done.stdout))
    heavy = {"asyncio", "http.client", "aiohttp", "ssl", "email", "urllib.parse", "tempfile"}
    assert not loaded & (heavy | {"dns", "pathlib", "logging", "subprocess"})
    assert b"Connection refused" in done.stderr


# -- from Dovecot --------------------------------------------------------------------------------

DOVECOT = ROOT / "packaging" / "dovecot"
SCRIPT = DOVECOT / "rspamd-learn"


@pytest.fixture
def script(tmp_path: Path, rspamd: RspamdStub) -> Path:
    """The script with settings for this test, and the tool on its PATH."""
    (tmp_path / "smtpd-filters").write_text(f'#!/bin/sh\nexec {shlex.join(TOOL)} "$@"\n')
    (tmp_path / "smtpd-filters").chmod(0o755)
    (tmp_path / "password").write_text("secret\n")
    text = SCRIPT.read_text()
    for name, value in (
        ("URL", rspamd.url),
        ("PASSWORD_FILE", str(tmp_path / "password")),
        ("PER_USER", "yes"),
    ):
        text, changed = re.subn(rf"(?m)^{name}=.*", f"{name}={value}", text)
        assert changed == 1
    made = tmp_path / "rspamd-learn"
    made.write_text(text)
    made.chmod(0o755)
    return made


def test_dovecots_script_is_one() -> None:
    assert os.access(SCRIPT, os.X_OK)
    done = subprocess.run(["/bin/sh", "-n", SCRIPT], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("kind", ["spam", "ham"])
@pytest.mark.parametrize("user", ["anna@example.org", "o'neil $x", "-v", ""])
def test_dovecots_script(script: Path, rspamd: RspamdStub, kind: str, user: str) -> None:
    done = subprocess.run(
        [script, kind, user],
        input=MAIL,
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={"PATH": f"{script.parent}:/usr/bin:/bin"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    [request] = rspamd.requests
    assert (request.path, request.body) == (f"/learn{kind}", MAIL)
    assert request.get("Password") == "secret"
    assert request.get("Deliver-To") == (user or None)


def test_dovecots_script_as_it_is(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    (tmp_path / "smtpd-filters").write_text(f'#!/bin/sh\nprintf "%s|" "$@" >{seen}\nexit 75\n')
    (tmp_path / "smtpd-filters").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run([SCRIPT, "spam", "anna"], input=MAIL, check=False, env=env)
    assert done.returncode == 75
    assert seen.read_text() == "learn|-url|http://localhost:11334|--timeout|10|spam|"


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_dovecots_configuration_names_what_is_there(version: str) -> None:
    text = (DOVECOT / f"dovecot-{version}.conf").read_text()
    assert "sieve_pipe_bin_dir = /etc/dovecot/learn\n" in text
    named = set(re.findall(r"/etc/dovecot/learn/(\S+)", text))
    assert named == {"report-spam.sieve", "report-ham.sieve"}
    for name in named:
        assert f'pipe :copy "{SCRIPT.name}"' in (DOVECOT / name).read_text()
