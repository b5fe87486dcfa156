"""`smtpd-filters learn --spamd` with a scripted spamd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.cli import learn_spamd, main
from tests.cli.learning import MAIL, run
from tests.filters.spamd.stub import Answer, SpamdStub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.learning import Capture

SET = b"SPAMD/1.1 0 EX_OK\r\nDidSet: local\r\n\r\n\r\n"
SOON = "0.2"
NOTHING = b"SPAMD/1.1 0 EX_OK\r\n\r\n\r\n"
NOT_ENABLED = (
    b"SPAMD/1.0 69 Service Unavailable: TELL commands are not enabled, set the --allow-tell "
    b"switch.\r\n"
)


@pytest.fixture
def spamd() -> Iterator[SpamdStub]:
    with SpamdStub(Answer(SET)) as server:
        yield server


class Learn:
    """Calls `learn --spamd`."""

    def __init__(self, spamd: SpamdStub, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spamd = spamd
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *words: str, stdin: bytes = MAIL) -> tuple[int, str, str]:
        return run(
            *words,
            "--spamd",
            self.spamd.server,
            stdin=stdin,
            capsys=self._capsys,
            monkeypatch=self._monkeypatch,
        )


@pytest.fixture
def call(spamd: SpamdStub, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Learn:
    return Learn(spamd, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("action", "fields", "reply"),
    [
        ("spam", {"Message-class": "spam", "Set": "local"}, "DidSet: local"),
        ("ham", {"Message-class": "ham", "Set": "local"}, "DidSet: local"),
        ("forget", {"Remove": "local"}, "DidRemove: local"),
        ("report", {"Message-class": "spam", "Set": "local, remote"}, "DidSet: local,remote"),
        (
            "revoke",
            {"Message-class": "ham", "Set": "local", "Remove": "remote"},
            "DidSet: local\r\nDidRemove: remote",
        ),
    ],
)
def test_actions(call: Learn, action: str, fields: dict[str, str], reply: str) -> None:
    call.spamd.answer = Answer(f"SPAMD/1.1 0 EX_OK\r\n{reply}\r\n\r\n\r\n".encode())
    assert call(action, "--user", "anna") == (0, "", "")
    [request] = call.spamd.requests
    assert request.command == "TELL"
    assert request.body == MAIL
    assert request.fields == {"Content-length": str(len(MAIL)), "User": "anna", **fields}


@pytest.mark.parametrize(
    ("action", "answer", "status", "said"),
    [
        ("spam", Answer(NOTHING), 0, ""),
        ("forget", Answer(NOTHING), 0, ""),
        ("report", Answer(SET), 75, "no service for reports has accepted the message: see spamd's"),
        ("revoke", Answer(SET), 75, "no service for reports has accepted the message: see spamd's"),
        ("spam", Answer(NOT_ENABLED), 77,
         "spamd doesn't accept messages to learn: start it with --allow-tell"),
        ("spam", Answer(b"SPAMD/1.0 69 Service Unavailable: x\r\n"), 75, "spamd: error 69 Service"),
        ("spam", Answer(b"SPAMD/1.0 65 \x1b[2J\r\n"), 65, "spamd: error 65 ?[2J"),
        ("spam", Answer(b"SPAMD/1.0 76 Bad header line\r\n", "early"), 75, "spamd: error 76 Bad"),
        ("spam", Answer(b"HTTP/1.1 400 Bad Request\r\n\r\n"), 75, "spamd: not a reply of spamd"),
        ("spam", Answer(b"SPAMD/1.1 0 EX_OK\r\nDidSet: lo"), 75, "spamd: cut reply"),
        ("spam", Answer(SET, "endless"), 75, "spamd: oversized reply"),
        ("spam", Answer(b"", "close"), 75, "{server}: connection closed without a reply"),
        ("spam", Answer(b"", "reset"), 75, "{server}: Connection reset by peer"),
        ("spam", Answer(b"", "stall"), 75, f"{{server}}: no reply within {SOON} s"),
        ("spam", Answer(SET, "keep"), 75, f"{{server}}: no reply within {SOON} s"),
    ],
)  # fmt: skip
def test_replies(call: Learn, action: str, answer: Answer, status: int, said: str) -> None:
    call.spamd.answer = answer
    got, out, err = call(action, *(("--timeout", SOON) if SOON in said else ()))
    assert (got, out) == (status, "")
    if said:
        said = said.format(server=call.spamd.server)
        assert err.startswith(f"smtpd-filters: stdin: {said}")
        assert err.count("\n") == 1
    else:
        assert err == ""


def test_a_daemon_that_is_not_there(call: Learn) -> None:
    call.spamd.stop()
    said = f"smtpd-filters: stdin: {call.spamd.server}: Connection refused\n"
    assert call("spam") == (75, "", said)


def test_files_over_a_socket(tmp_path: Path, capsys: Capture) -> None:
    for name in ("one", "two"):
        (tmp_path / "mail").mkdir(exist_ok=True)
        (tmp_path / "mail" / name).write_bytes(MAIL + name.encode() + b"\n")
    (tmp_path / "mail" / "large").write_bytes(b"Subject: x\n\n" + b"x" * (500 << 10))
    with SpamdStub(Answer(SET), path=tmp_path / "socket") as spamd:
        assert main(["learn", "spam", "--spamd", spamd.server, str(tmp_path / "mail")]) == 0
    said = capsys.readouterr().out
    assert said == "2 learned, 0 known already, 1 skipped, 0 not learned\n"


def test_learning_stops_where_it_is_not_enabled(tmp_path: Path, capsys: Capture) -> None:
    for number in range(20):
        (tmp_path / f"{number}").write_bytes(MAIL)
    with SpamdStub(Answer(NOT_ENABLED)) as spamd:
        words = ["learn", "spam", "--spamd", spamd.server, "--jobs", "1", str(tmp_path)]
        assert main(words) == 77
        assert len(spamd.requests) == 1
    assert capsys.readouterr().out.endswith("1 not learned; given up\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("forget",), "forget requires --spamd"),
        (("report",), "report requires --spamd"),
        (("spam", "--spamd", "localhost", "-url", "http://localhost"), "-url is for Rspamd"),
        (("spam", "--spamd", "a b"), "--spamd"),
        (("spam", "--spamd", "/"), "--spamd: /: a directory, not spamd's socket"),
    ],
)
def test_usage(
    words: tuple[str, ...], said: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, err = run(*words, stdin=MAIL, capsys=capsys, monkeypatch=monkeypatch)
    assert status == 64
    assert said in err


# -- as scanned ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (b"X-Spam: Yes\nSubject: x\n", b"Subject: x\n"),
        (b"Subject: x\nX-SPAM: Yes\n\tfolded\nTo: y\n", b"Subject: x\nTo: y\n"),
        (b"X-Smtpd-Filters-Score: 7 (junk-at 5)\r\n\tx=7\r\nTo: y\r\n", b"To: y\r\n"),
        # Without a mark of SpamAssassin, it leaves the fields of others.
        (b"X-Spam-Status: Yes, score=1\n\ttests=[]\nTo: y\n", b"To: y\n"),
        (
            b"X-Spam: Yes\nX-Spam-Checker-Version: SpamAssassin 4\nX-Spam-Flag: YES\nTo: y\n",
            b"X-Spam-Checker-Version: SpamAssassin 4\nX-Spam-Flag: YES\nTo: y\n",
        ),
        (b"X-Spamming: no\n", b"X-Spamming: no\n"),
        (b"", b""),
    ],
)
def test_a_header_as_it_was_scanned(call: Learn, header: bytes, kept: bytes) -> None:
    assert learn_spamd.cleaned(header) == kept
    for empty in (b"\n", b"\r\n"):
        assert call("spam", stdin=header + empty + b"X-Spam: Yes\n") == (0, "", "")
        assert call.spamd.requests[-1].body == kept + empty + b"X-Spam: Yes\n"


@given(st.lists(st.sampled_from([b"X-Spam: Yes", b"\tx", b"", b"a\rb", b"To: y\r"])))
def test_other_lines_stay(lines: list[bytes]) -> None:
    kept = learn_spamd.cleaned(b"\n".join(lines)).split(b"\n")
    assert [line for line in kept if line and line != b"\tx"] == [
        line for line in lines if line not in (b"", b"\tx", b"X-Spam: Yes")
    ]
