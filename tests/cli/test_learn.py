from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.cli import learn, learn_rspamd, mailboxes, main
from smtpd_filters.errors import ConfigError
from smtpd_filters.testing.rspamd.stub import Answer, RspamdStub
from tests.cli.learning import KNOWN, LEARNED, MAIL, ROOT, SHORT, TOOL, maildir, run

if TYPE_CHECKING:
    from smtpd_filters.testing.rspamd.stub import Request
    from tests.cli.learning import Capture, Learn

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


def test_user_and_password(call: Learn, tmp_path: Path) -> None:
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
        (Answer(b"", 1), 75, "status 1: Error"),
        (Answer(b"<html>"), 75, "not an rspamd controller: <html>"),
        (Answer(b'{"success":false}'), 75, "not an rspamd controller: "),
        (Answer(b"\x1b[2J\xff\n", 500), 75, "status 500: \\x1b[2J"),
        (Answer(b"", behaviour="close"), 75, "http://[::]:0: connection closed without a reply"),
        (Answer(b"", behaviour="reset"), 75, "http://[::]:0: Connection reset"),
        (Answer(b"", behaviour="garbage"), 75, "invalid HTTP response"),
        (Answer(LEARNED.body, behaviour="cut"), 75, "not an rspamd controller: "),
        (Answer(b"x", behaviour="endless"), 75, "not an rspamd controller: 1\\r\\nx"),
    ],
)
def test_replies_of_the_daemon(answer: Answer, status: int, said: str, call: Learn) -> None:
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
    ("answer", "suspected"),
    [
        (Answer(KNOWN.body, 404), True),
        (
            Answer(b'{"error":"cannot get learned: error getting reply from redis server x"}', 500),
            True,
        ),
        (
            Answer(
                b'{"error":"cannot upload script from file: bayes_learn.lua to any server"}', 500
            ),
            True,
        ),
        (Answer(b"Not found", 404), False),
        (Answer(b'{"error":"invalid command"}', 500), False),
    ],
)
def test_a_lost_redis_is_suspected(answer: Answer, call: Learn, *, suspected: bool) -> None:
    call.rspamd.answer = answer
    status, _, err = call("spam", stdin=MAIL)
    assert status == 75
    assert err.endswith("; rspamd probably can't reach its Redis: see its log\n") is suspected


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

    monkeypatch.setattr(learn_rspamd.Controller, "learn", learn_)
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
    assert learn_rspamd._endpoint(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost", "ftp://localhost", "http://", "http://:80", "http://a:b", "http://a:"),
        *("http://a:65536", "http://a:123456", "http://a/?x", "http://a\r\nX: y"),
        *("http://a b", "run/sock", "http://a:80:80", "http://[::1", "http://a/#x"),
        *("http://a..b", f"http://{'a' * 64}", "http://.", f"http://{'é' * 60}"),
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="-url: expected"):
        learn_rspamd._endpoint(url)


def test_an_empty_path_is_a_file_that_can_not_be_read(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, err = run("spam", "", capsys=capsys, monkeypatch=monkeypatch)
    assert (status, err) == (66, 'smtpd-filters: "": No such file or directory\n')


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 64, "ham|spam|forget|report|revoke is required"),
        (["eggs"], 64, "invalid choice"),
        (["spam", "--frobnicate"], 64, "--frobnicate"),
        (["spam", "--url", "localhost"], 64, "-url: expected http://HOST:PORT"),
        (["spam", "--url", "http://a:secret@localhost"], 64, "file of --password-file"),
        (["spam", "--timeout", "soon"], 64, "--timeout: "),
        (["spam", "--timeout", "0"], 64, "--timeout: "),
        (["spam", "--jobs", "0"], 64, '--jobs: must be at least 1, not "0"'),
        (["spam", "--jobs", "65"], 64, '--jobs: must be at most 64, not "65"'),
        (["spam", "--jobs", "²"], 64, "--jobs: "),
        (["spam", "--user", "a\nX: b"], 64, "--user: contains a control character"),
        (["spam", "--spamd", "127.0.0.1", "--user", "a\nX: b"], 64, "--user: contains a control"),
        (["spam", "--password-file", "/no/such/file"], 78, "/no/such/file: No such file"),
        (["spam", "--password-file", ""], 78, '--password-file: "": No such file'),
        (["spam", "--password-file", "/dev/null"], 78, "/dev/null: not a regular file"),
        (["spam", "--password-file", "/dev/zero"], 78, "/dev/zero: not a regular file"),
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
    assert "secret" not in err
    assert err.count("\n") == 1


def test_there_is_help(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["learn", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "usage: smtpd-filters learn" in out
    assert "75 if another try may help" in " ".join(out.split())


# -- several -------------------------------------------------------------------------------------


def test_files_behind_two_hyphens(
    call: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "-x").write_bytes(MAIL)
    monkeypatch.chdir(tmp_path)
    words = ["learn", "spam", "-url", call.rspamd.url, "--", "-x"]
    assert main(words) == 0
    assert call.rspamd.requests[0].body == MAIL


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
    assert err.count("Connection refused") == 1
    assert 2 <= err.count("not learned, same cause\n") <= 3
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
    status, out, err = call("spam", str(tmp_path))
    assert (status, out) == (75, "0 learned, 0 known already, 0 skipped, 9 not learned\n")
    assert err.count(": status 500: x\n") == 1
    assert err.count(": not learned, same cause\n") == 8
    assert {line.split(": ")[1] for line in err.splitlines()} == set(map(str, tmp_path.iterdir()))


def test_another_cause_in_between_is_shown(call: Learn, tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"{n}").write_bytes(b"%d" % n)
    call.rspamd.answer = lambda request: Answer(b"y" if request.body == b"1" else b"x", 500)
    _, _, err = call("spam", *(str(tmp_path / f"{n}") for n in range(4)), "--jobs", "1")
    causes = [line.partition(f"{tmp_path}/")[2][3:] for line in err.splitlines()]
    assert causes == [
        "status 500: x",
        "status 500: y",
        "status 500: x",
        "not learned, same cause",
    ]


# -- the terminal --------------------------------------------------------------------------------


def test_the_bar() -> None:
    assert learn.bar(0, 10) == f"[{'.' * 30}] 0/10 0%"
    assert learn.bar(5, 10) == f"[{'#' * 15}{'.' * 15}] 5/10 50%"
    assert learn.bar(12, 10) == f"[{'#' * 30}] 10/10 100%"
    assert learn.bar(7, None) == "7 messages"


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
        return Answer(LEARNED.body, delay=0 if behaviour else 3, behaviour=behaviour)

    rspamd.answer = answer
    box = maildir(tmp_path, **{f"m{n}": b"%d" % n for n in range(50)})
    words = ["learn", "spam", "-url", rspamd.url, "--jobs=2", "--timeout=600", str(box)]
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert asked.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    assert re.fullmatch(
        rb"\d learned, 0 known already, 0 skipped, 0 not learned; interrupted\n", out
    )
    assert len(rspamd.requests) < 10


@pytest.mark.parametrize("stdout", ["a pipe that nobody reads", "/dev/full"])
def test_a_summary_that_cannot_be_written(rspamd: RspamdStub, tmp_path: Path, stdout: str) -> None:
    rspamd.answer = Answer(b"x", 500)
    (tmp_path / "mail").write_bytes(MAIL)
    if stdout == "/dev/full":
        sink = os.open(stdout, os.O_WRONLY)
    else:
        source, sink = os.pipe()
        os.close(source)
    done = subprocess.run(
        [*TOOL, "learn", "spam", "-url", rspamd.url, str(tmp_path / "mail")],
        stdout=sink,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        check=False,
    )
    os.close(sink)
    said = f"smtpd-filters: {tmp_path}/mail: status 500: x\n".encode()
    assert (done.returncode, done.stderr) == (75, said)


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
