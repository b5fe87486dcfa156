from __future__ import annotations

import errno
import os
import re
import stat
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from smtpd_filters.chain import Chain
from smtpd_filters.cli.player import Process
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.trace import LEVELS, Trace
from smtpd_filters.main import set_up
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.protocol.vocabulary import PHASES, REPORTS
from smtpd_filters.recording import Recording
from smtpd_filters.recording.anonymiser import _VOCABULARY, Disguise
from smtpd_filters.recording.disk_thread import File
from smtpd_filters.recording.format import FROM_SMTPD
from smtpd_filters.recording.redaction import MASK, mask, mask_command, mask_credentials
from smtpd_filters.recording.replay import Replay
from smtpd_filters.recording.writer import Recorder, Rows
from smtpd_filters.runtime.log import FilterLog, Log
from smtpd_filters.runtime.wiretap import TappedChannel
from tests.effort import SHARE, part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).parents[2]
FIXTURES = sorted((ROOT / "fixtures" / "protocol").glob("*/*.session"))
TRACE = [sys.executable, "-m", "smtpd_filters.filters.trace"]
A, B = b"7641df9771b4ed00", b"1ef1c203cc576e5d"
TOKEN = b"1ed8ad9ef3440500"
SECRETS = (b"AHVzZXIAc2VjcmV0", b"aHVudGVyMg==", b"aGlkZGVu")


def everything(smtpd: SmtpdConnection) -> SmtpdConnection:
    smtpd.reports.update(REPORTS)
    smtpd.phases.update([*PHASES, "data-line"])
    return smtpd


def session(
    smtpd: SmtpdConnection, name: bytes = A, *, lines: list[bytes], sender: bytes = b"a@b.example"
) -> bytes:
    """All that smtpd says of a client with one message."""
    return b"".join(
        [
            smtpd.report(
                "link-connect", name, b"mx.b.example", b"pass", b"192.0.2.1:25", b"192.0.2.9:25"
            ),
            smtpd.request("connect", name, TOKEN, b"mx.b.example|192.0.2.1"),
            smtpd.report("link-identify", name, b"EHLO", b"mx.b.example"),
            smtpd.request("mail-from", name, TOKEN, sender),
            smtpd.report("tx-begin", name, b"0badcafe"),
            smtpd.report("tx-mail", name, b"0badcafe", b"ok", sender),
            smtpd.request("data", name, TOKEN),
            smtpd.lines(name, TOKEN, lines),
            smtpd.request("commit", name, TOKEN),
            smtpd.report("tx-commit", name, b"0badcafe", b"100"),
            smtpd.report("tx-reset", name, b"0badcafe"),
            smtpd.report("link-disconnect", name),
        ]
    )


def recorder(directory: Path, **options: Any) -> Recorder:
    heard = Recorder(str(directory), FilterLog(options.pop("log", Log()), "trace"), **options)
    heard.received(SmtpdConnection().configure())
    heard.sent(b"register|report|smtp-in|link-connect\nregister|ready\n")
    return heard


def settle(heard: Recorder) -> None:
    """Wait until the disk has done all its tasks."""
    done = threading.Event()
    heard._disk.do(File("nothing"), done.set)
    assert done.wait(30)


def recordings(directory: Path) -> list[Recording]:
    return [Recording.read(path) for path in sorted(directory.iterdir())]


def read_all(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.iterdir()))


def play(recording: Recording, *flags: str, command: list[str] | None = None) -> tuple[Replay, str]:
    """Play to a process of filter-trace; what came of it, and its log."""
    replay = Replay(recording)
    process = Process([*(command or TRACE), *flags], 30)
    assert process._log is not None
    try:
        process.play(replay, lambda: None)
        process._process.wait(60)
        process._log.seek(0)
        log = process._log.read().decode("ascii")
    finally:
        process.close()
    replay.oracle.verify()
    assert process._process.returncode == 0
    return replay, log


def as_recording(data: bytes, smtpd: SmtpdConnection | None = None) -> Recording:
    """A recording of what smtpd says, without answers."""
    said = (smtpd or SmtpdConnection()).configure() + data
    return Recording(entries=[(FROM_SMTPD, line) for line in said.split(b"\n")[:-1]])


# -- what is asked of smtpd --------------------------------------------------------------


def registered(**values: Any) -> tuple[set[str], set[str]]:
    policy = Trace(Trace.Options(**values))
    set_up(policy, Log())
    chain = Chain([(policy, "proceed", 30.0)], Log())
    assert len(set(chain.phases)) == len(chain.phases)
    assert len(set(chain.reports)) == len(chain.reports)
    return set(chain.phases), set(chain.reports)


@pytest.mark.parametrize("detail", ["none", "sessions", "commands"])
def test_up_to_commands_no_phase_is_asked_for(detail: str) -> None:
    phases, reports = registered(detail=detail)
    assert phases == set()
    # The session that goes with a transaction's reports begins with tx-begin.
    unseen = {"tx-begin", "tx-reset"} if detail == "sessions" else set()
    assert reports == LEVELS[detail] | {"link-connect", "link-disconnect"} | unseen


def test_what_a_level_needs_is_asked_for() -> None:
    assert registered(detail="headers") == ({"data-line", "commit"}, set(REPORTS))
    assert registered(detail="all") == ({*PHASES, "data-line"}, set(REPORTS))
    assert registered(detail="none", pass_data=True)[0] == {"data-line"}


def test_recording_asks_for_everything(tmp_path: Path) -> None:
    expected = ({*PHASES, "data-line"}, set(REPORTS))
    assert registered(detail="none", record=str(tmp_path)) == expected


@pytest.mark.parametrize("flag", ["no_body", "anonymise"])
def test_what_only_a_recording_has_needs_one(flag: str) -> None:
    with pytest.raises(ConfigError, match="requires --record"):
        Trace(Trace.Options(**{flag: True})).setup()


@pytest.mark.parametrize("path", ["trace", "./trace"])
def test_a_directory_is_named_by_its_whole_path(path: str) -> None:
    with pytest.raises(ConfigError, match=f'--record: expected an absolute path, not "{path}"'):
        Trace(Trace.Options(record=path)).setup()


def test_a_directory_that_cannot_be_made_is_said_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--record: .*/missing/dir: No such file"):
        Trace(Trace.Options(record=str(tmp_path / "missing" / "dir"))).setup()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=r"--record: .*/file: not a directory"):
        Trace(Trace.Options(record=str(file))).setup()


def test_a_directory_that_cannot_be_written_to_is_said_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write anywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="not writable"):
        Trace(Trace.Options(record=str(tmp_path))).setup()


# -- what is passed on -------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", FIXTURES[::SHARE], ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_every_recording_passes_unchanged(path: Path) -> None:
    replay, _ = play(Recording.read(path), "--detail", "all")
    assert replay.outcomes
    for step in replay.outcomes:
        assert step.verdict is not None or step.recorded is None or path.stem.startswith("rep")
        if step.verdict is None:
            continue
        if step.phase == "data-line":
            # 6.8 would cut what is longer than 1,997 bytes, so it is broken.
            split = path.stem == "line-5000" and path.parent.name == "6.8.0p2"
            assert step.verdict.verb == ("changed" if split else "unchanged")
        else:
            assert step.verdict.verb == "proceed"


@pytest.mark.parametrize("flags", [("--pass-data",), ("--detail", "headers")], ids=str)
def test_a_large_message_passes_unchanged(flags: tuple[str, ...]) -> None:
    smtpd = everything(SmtpdConnection())
    body = [b"..%06d|report|" % at + bytes(range(0x80, 0xFF)) for at in range(part(140_000))]
    lines = [b"Subject: large", b"", *body]
    assert sum(map(len, lines)) > part(20_000_000)
    replay, log = play(as_recording(session(smtpd, lines=lines)), *flags)
    (message,) = [step for step in replay.outcomes if step.phase == "data-line"]
    assert message.verdict is not None
    assert message.verdict.lines == tuple(lines)
    assert "0badcafe size=100" in log


# -- the log -----------------------------------------------------------------------------


def test_sessions_are_logged() -> None:
    smtpd = everything(SmtpdConnection())
    data = session(smtpd, lines=[b"Subject: x", b"", b"report|0.7|1|smtp-in|timeout|%s" % A])
    _, log = play(as_recording(data), "--pass-data")
    name = A.decode()
    ends = "src=192.0.2.1:25 dest=192.0.2.9:25"
    assert log.splitlines() == [
        f"{name} trace link-connect rdns=mx.b.example fcrdns=pass {ends}",
        f"{name} trace link-identify method=EHLO identity=mx.b.example",
        f"{name} trace tx-mail msgid=0badcafe result=ok address=a@b.example",
        f"{name} trace tx-commit msgid=0badcafe size=100",
        f"{name} trace link-disconnect",
    ]


def test_a_null_sender_shows() -> None:
    smtpd = everything(SmtpdConnection())
    _, log = play(as_recording(session(smtpd, lines=[b"x: y"], sender=b"")))
    assert "tx-mail msgid=0badcafe result=ok address=<>" in log


def test_headers_are_logged_and_bodies_not() -> None:
    data = session(everything(SmtpdConnection()), lines=[b"Subject: caf\xe9", b"\tx", b"", b"body"])
    _, log = play(as_recording(data), "--detail", "headers")
    assert '7641df9771b4ed00 trace header line="Subject: caf\\xe9"' in log
    assert 'trace header line="\\tx"' in log
    assert "body" not in log


def test_all_shows_requests_and_lines() -> None:
    data = session(everything(SmtpdConnection()), lines=[b"Subject: x", b"", b"body"])
    _, log = play(as_recording(data), "--detail", "all")
    assert "trace asked phase=mail-from argument=a@b.example" in log
    assert "trace data-line line=body" in log


def test_older_servers_are_understood() -> None:
    smtpd = everything(SmtpdConnection((0, 5)))
    data = smtpd.report("link-auth", A, b"pass", b"user|bar")
    _, log = play(as_recording(data, smtpd))
    assert log.endswith("trace link-auth result=pass username=user|bar\n")


def with_secrets(smtpd: SmtpdConnection) -> bytes:
    """All the ways in which credentials come, masked by smtpd or not."""
    plain, password, other = SECRETS
    return b"".join(
        [
            smtpd.report("link-connect", A, b"x.example", b"pass", b"192.0.2.1:1", b"192.0.2.9:2"),
            smtpd.report("protocol-client", A, b"auth\tplain " + plain),
            smtpd.request("auth", A, TOKEN, b"PLAIN " + plain),
            smtpd.report("filter-response", A, b"auth", b"rewrite", b"PLAIN " + plain),
            smtpd.report("protocol-client", A, b"AUTH LOGIN " + other),
            smtpd.request("auth", A, TOKEN, b"LOGIN " + other),
            smtpd.report("protocol-client", A, other),
            smtpd.report("protocol-client", A, password),
            smtpd.request("auth", A, TOKEN, b"XOAUTH2" + other),
            smtpd.report("protocol-client", A, b"AUTH" + plain),
            smtpd.report("link-disconnect", A),
        ]
    )


def test_credentials_are_neither_logged_nor_recorded(tmp_path: Path) -> None:
    recording = as_recording(with_secrets(everything(SmtpdConnection())))
    _, log = play(recording, "--detail", "all", "-v", "--record", str(tmp_path))
    written = read_all(tmp_path)
    assert 'phase=auth argument="PLAIN ********"' in log
    assert b"|auth|7641df9771b4ed00|70c3" in written
    assert written.count(MASK) == 8
    for secret in SECRETS:
        assert secret not in written
        assert secret.decode() not in log


# -- masks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (b"", b""),
        (b".", b"."),
        (b"MAIL FROM:<a@b>", b"MAIL FROM:<a@b>"),
        (b"  noop x", b"  noop x"),
        (b"AUTH", b"AUTH"),
        (b"AUTH LOGIN", b"AUTH LOGIN"),
        (b"AUTH PLAIN x y", b"AUTH PLAIN ********"),
        (b"auth  plain  x", b"AUTH plain ********"),
        (b"AUTH secret", b"AUTH ********"),
        (b"AUTHPLAIN x", MASK),
        (b"c2VjcmV0", MASK),
    ],
)
def test_commands_are_masked(command: bytes, shown: bytes) -> None:
    assert mask_command(command) == shown


@pytest.mark.parametrize(
    ("argument", "shown"),
    [(b"", b""), (b"LOGIN", b"LOGIN"), (b"PLAIN x", b"PLAIN ********"), (b"secret", MASK)],
)
def test_credentials_are_masked(argument: bytes, shown: bytes) -> None:
    assert mask_credentials(argument) == shown


@pytest.mark.parametrize(
    "row",
    [
        b"report|0.7|1.0|smtp-in|filter-response|%s|auth|proceed" % A,
        b"report|0.7|1.0|smtp-in|filter-response|%s|auth|reject|535 no" % A,
        b"report|0.7|1.0|smtp-in|timeout|%s" % A,
        b"filter|0.7|1.0|smtp-in|data-line|%s|%s|AUTH PLAIN secret" % (A, TOKEN),
        b"filter-result|%s|%s|rewrite|<a@b>" % (A, TOKEN),
        b"filter-result|%s|%s|proceed" % (A, TOKEN),
        b"config|ready",
    ],
)
def test_other_lines_are_not_masked(row: bytes) -> None:
    assert mask(row) == row


def test_rewritten_credentials_are_masked() -> None:
    row = b"filter-result|%s|%s|rewrite|PLAIN secret" % (A, TOKEN)
    assert mask(row) == b"filter-result|%s|%s|rewrite|PLAIN ********" % (A, TOKEN)


# -- recordings --------------------------------------------------------------------------


def stripped(entries: list[tuple[str, bytes]]) -> list[list[bytes]]:
    """What smtpd said, without tokens and times: `Replay` has one for all lines of a message."""
    rows = [line.split(b"|", 7) for direction, line in entries if direction == FROM_SMTPD]
    return [
        row if row[0] == b"config" else row[:2] + row[3:6] + row[6 + (row[0] == b"filter") :]
        for row in rows
    ]


@pytest.mark.parametrize("stem", ["ehlo-message", "concurrent-2", "8bit-body", "pipes-in-body"])
@pytest.mark.parametrize("server", ["6.8.0p2", "7.8.0p1"])
def test_what_is_recorded_is_what_was_played(stem: str, server: str, tmp_path: Path) -> None:
    original = Recording.read(ROOT / "fixtures" / "protocol" / server / f"{stem}.session")
    play(original, "--detail", "none", "--record", str(tmp_path))
    (recorded,) = recordings(tmp_path)
    assert stripped(recorded.entries) == stripped(original.entries)
    assert recorded.server_version == original.to_filter()[0].split(b"|")[2].decode()
    again, _ = play(recorded, "--detail", "all")
    assert again.outcomes
    assert not [step for step in again.outcomes if step.differs]


def test_a_file_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    directory = tmp_path / "made"
    heard = recorder(directory)
    heard.received(session(SmtpdConnection(), lines=[b"x: y"]))
    heard.close()
    (path,) = directory.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_how_the_bytes_are_cut_changes_nothing(size: int, tmp_path: Path) -> None:
    data = session(SmtpdConnection(), lines=[b"Subject: x", b"", b"..", b"body"])
    heard = recorder(tmp_path)
    for at in range(0, len(data), size):
        heard.received(data[at : at + size])
    heard.close()
    (recorded,) = recordings(tmp_path)
    assert b"".join(line + b"\n" for line in recorded.to_filter()[6:]) == data


def test_what_comes_with_the_hand_shake_is_recorded(tmp_path: Path) -> None:
    smtpd = SmtpdConnection()
    data = session(smtpd, lines=[b"x: y"])
    heard = Recorder(str(tmp_path), FilterLog(Log(), "trace"))
    heard.received(smtpd.configure() + data)
    heard.sent(b"register|ready\nfilter-result|%b|%b|proceed\n" % (A, TOKEN))
    heard.close()
    (recorded,) = recordings(tmp_path)
    assert stripped(recorded.entries)[6:] == stripped(as_recording(data).entries)[6:]
    assert recorded.from_filter()[-1].endswith(b"|proceed")


def test_without_bodies_headers_stay(tmp_path: Path) -> None:
    smtpd = SmtpdConnection()
    heard = recorder(tmp_path, body=False)
    for lines in ([b"Subject: x", b" folded", b"", b"body: 1"], [b"A: 1", b"body2"], [b"B: 1"]):
        heard.received(session(smtpd, lines=lines))
        heard.sent(b"".join(b"filter-dataline|%b|%b|%b\n" % (A, TOKEN, each) for each in lines))
        heard.sent(b"filter-dataline|%b|%b|.\n" % (A, TOKEN))
    heard.close()
    (recorded,) = recordings(tmp_path)
    assert recorded.meta["body"] == "left out"
    expected = [b"Subject: x", b" folded", b"", b".", b"A: 1", b".", b"B: 1", b"."]
    told = [line for line in recorded.to_filter() if b"|data-line|" in line]
    assert [line.split(b"|", 7)[7] for line in told] == expected
    answers = [line for line in recorded.from_filter() if line.startswith(b"filter-dataline")]
    assert [line.split(b"|", 3)[3] for line in answers] == expected


def test_a_report_within_a_message_does_not_end_its_body(tmp_path: Path) -> None:
    smtpd = SmtpdConnection()
    heard = recorder(tmp_path, body=False)
    heard.received(smtpd.report("link-connect", A, b"x", b"pass", b"192.0.2.1:1", b"192.0.2.2:2"))
    heard.received(smtpd.lines(A, TOKEN, [b"A: 1", b"", b"secret: 1"], end=False))
    heard.received(smtpd.report("tx-data", A, b"0badcafe", b"ok"))
    heard.sent(b"".join(b"filter-dataline|%b|%b|%b\n" % (A, TOKEN, line) for line in (b"A: 1",)))
    heard.received(smtpd.lines(A, TOKEN, [b"secret: 2"], end=False))
    # The client goes away; the next one has the same name.
    heard.received(smtpd.request("quit", A, TOKEN))
    heard.received(smtpd.lines(A, TOKEN, [b"B: 1"]))
    heard.close()
    written = read_all(tmp_path)
    assert b"secret" not in written
    assert written.count(b"A: 1") == 2
    assert written.count(b"B: 1") == 1


def test_sessions_that_begin_later_go_to_the_next_file(tmp_path: Path) -> None:
    smtpd = SmtpdConnection()
    heard = recorder(tmp_path, max_size=2000)
    first = session(smtpd, A, lines=[b"x: %s" % (b"y" * 1000)]).splitlines(keepends=True)
    heard.received(b"".join(first[:-1]))
    heard.received(b"".join(session(smtpd, B, lines=[b"z: %s" % (b"y" * 1000)]) for _ in range(3)))
    heard.received(first[-1])
    heard.received(session(smtpd, B, lines=[b"last: one"]))
    heard.close()
    found = recordings(tmp_path)
    assert len(found) > 1
    for recorded in found:
        assert recorded.to_filter()[:6] == SmtpdConnection().configure().split(b"\n")[:6]
        began = [line for line in recorded.to_filter() if b"|link-connect|" in line]
        ended = [line for line in recorded.to_filter() if b"|link-disconnect|" in line]
        assert len(began) == len(ended)
    assert found[0].to_filter()[6:][-1] == first[-1].rstrip(b"\n")
    assert not heard._open


def test_only_the_newest_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.session").write_text("not ours")
    smtpd = SmtpdConnection()
    heard = recorder(tmp_path, max_size=1000, max_files=3)
    for at in range(10):
        heard.received(session(smtpd, b"%016x" % at, lines=[b"x: %s" % (b"y" * 1000)]))
    heard.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert "notes.session" in names
    assert len(names) == 4
    assert Recording.read(tmp_path / names[2]).sessions() == ["0000000000000009"]


def test_files_of_a_clock_that_was_ahead_go_first(tmp_path: Path) -> None:
    """Otherwise they would stay the newest, and of the others the latest would be deleted."""
    stamps = ("99991230T000000Z", "99991231T000000Z", "19991231T000000Z", "20001231T000000Z")
    before = [f"{stamp}-1-1000000.session" for stamp in stamps]
    for name in before:
        (tmp_path / name).touch()
    smtpd = SmtpdConnection()
    heard = recorder(tmp_path, max_size=1000, max_files=4)
    for at in range(len(before)):
        heard.received(session(smtpd, b"%016x" % at, lines=[b"x: %s" % (b"y" * 1000)]))
        settle(heard)
        left = {path.name for path in tmp_path.iterdir()}
        assert [name for name in before if name in left] == before[at + 1 :]
    heard.close()


def test_a_file_has_a_bound_whatever_a_session_sends(tmp_path: Path) -> None:
    smtpd = SmtpdConnection()
    heard = recorder(tmp_path, max_size=4000)
    heard.received(smtpd.report("link-connect", A, b"x", b"pass", b"192.0.2.1:1", b"192.0.2.2:2"))
    for _ in range(100):
        heard.received(smtpd.lines(A, TOKEN, [b"y" * 500], end=False))
    heard.close()
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 10_000
    assert Recording.read(path).entries[-1][1] == b"cut off: the file is full"


def test_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    smtpd = SmtpdConnection()
    heard = recorder(tmp_path, max_size=500, max_files=100, max_open=3)
    for at in range(10):
        said = session(smtpd, b"%016x" % at, lines=[b"x: %s" % (b"y" * 500)]).splitlines(
            keepends=True
        )
        heard.received(b"".join(said[:-1]))
        assert len(heard._open) <= 3
    heard.close()
    assert len(recordings(tmp_path)) == 10


def test_sessions_that_never_end_are_not_remembered_for_ever(tmp_path: Path) -> None:
    smtpd = SmtpdConnection()
    heard = recorder(tmp_path, max_sessions=3)
    for at in range(10):
        heard.received(smtpd.request("noop", b"%016x" % at, TOKEN))
        assert len(heard._sessions) <= 3
    heard.close()
    assert len(recordings(tmp_path)) == 4


def test_the_oldest_servers_put_the_token_first(tmp_path: Path) -> None:
    heard = recorder(tmp_path)
    heard.received(b"filter|0.4|1.0|smtp-in|quit|%s|%s|\n" % (TOKEN, A))
    heard.sent(b"filter-result|%s|%s|proceed\n" % (TOKEN, A))
    heard.received(b"report|0.4|1.0|smtp-in|link-disconnect|%s\n" % A)
    heard.received(b"nonsense\n")
    heard.close()
    (recorded,) = recordings(tmp_path)
    assert len(recorded.to_filter()) == 6 + 2
    assert not heard._sessions.keys() - {A}
    assert len(recorded.from_filter()) == 2 + 1


class _Full:
    """os.write on a disk that takes so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write = os.write

    def __call__(self, fd: int, data: bytes) -> int:
        if fd == 2:
            return self.write(fd, data)
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = self.write(fd, data[: self.room])
        self.room -= done
        return done


def test_a_full_disk_pauses_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    smtpd = SmtpdConnection()
    now = [0.0]
    heard = recorder(tmp_path, clock=lambda: now[0])
    heard.received(session(smtpd, A, lines=[b"x: y"]))
    settle(heard)
    disk = _Full(100)
    monkeypatch.setattr(os, "write", disk)
    heard.received(session(smtpd, B, lines=[b"lost: 1"]))
    settle(heard)
    disk.room = 1 << 20
    heard.received(session(smtpd, A, lines=[b"lost: 2"]))
    now[0] = 61.0
    disk.room = 10
    heard.received(session(smtpd, A, lines=[b"lost: 3"]))
    settle(heard)
    heard.received(b"")
    now[0] = 122.0
    disk.room = 1 << 20
    heard.received(session(smtpd, A, lines=[b"kept: 1"]))
    heard.close()
    first, second = recordings(tmp_path)
    assert first.sessions() == [A.decode()]
    assert b"lost" not in read_all(tmp_path)
    assert b"kept" in second.to_bytes()
    said = capfd.readouterr().err
    assert said.count("recording paused") == 1
    assert 'error="No space left on device"' in said


def test_a_disk_that_is_full_at_the_end_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    heard = recorder(tmp_path)
    heard.received(session(SmtpdConnection(), lines=[b"x: y"]))
    settle(heard)
    monkeypatch.setattr(os, "write", _Full(3))
    heard.close()
    assert "recording paused" in capfd.readouterr().err
    assert recordings(tmp_path)


def test_without_a_thread_the_recording_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    started = 0

    def start(_thread: threading.Thread) -> None:
        nonlocal started
        started += 1
        raise RuntimeError("can't start new thread")

    smtpd = SmtpdConnection()
    now = [0.0]
    heard = recorder(tmp_path, clock=lambda: now[0])
    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", start)
        for at in (0.0, 1.0, 59.0, 61.0):
            now[0] = at
            heard.received(session(smtpd, A, lines=[b"lost: 1"]))
            heard.received(b"")
    # Once, and once more after a minute.
    assert started == 2
    now[0] = 130.0
    heard.received(session(smtpd, A, lines=[b"kept: 1"]))
    heard.close()
    (recording,) = recordings(tmp_path)
    assert b"lost" not in read_all(tmp_path)
    assert b"kept" in recording.to_bytes()
    said = capfd.readouterr().err
    assert said.count("recording paused") == 1
    assert """error="can't start new thread\"""" in said


def test_a_directory_that_goes_away_is_no_matter(tmp_path: Path, capfd: Capture) -> None:
    directory = tmp_path / "gone"
    heard = recorder(directory)
    directory.rmdir()
    heard.received(session(SmtpdConnection(), lines=[b"x: y"]))
    settle(heard)
    heard.received(session(SmtpdConnection(), lines=[b"x: y"]))
    heard.close()
    assert capfd.readouterr().err.count("recording paused") == 1


class _Hanging:
    """os.write on a disk that takes nothing until it is freed."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.write = os.write

    def __call__(self, fd: int, data: bytes) -> int:
        if fd != 2:
            assert self.free.wait(30)
        return self.write(fd, data)


def test_a_disk_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    smtpd = SmtpdConnection()
    now = [0.0]
    disk = _Hanging()
    monkeypatch.setattr(os, "write", disk)
    heard = recorder(tmp_path, max_pending=5000, clock=lambda: now[0])
    heard.received(smtpd.report("link-connect", B, b"x", b"pass", b"192.0.2.1:1", b"192.0.2.2:2"))
    for _ in range(20):
        heard.received(smtpd.lines(B, TOKEN, [b"y" * 1000], end=False))
    pending = heard._disk.pending
    assert 5000 < pending < 9000
    # A minute later it hangs still.
    now[0] = 61.0
    heard.received(session(smtpd, A, lines=[b"lost: 1"]))
    assert heard._disk.pending == pending
    disk.free.set()
    settle(heard)
    now[0] = 122.0
    heard.received(session(smtpd, A, lines=[b"kept: 1"]))
    heard.close()
    first, second = recordings(tmp_path)
    assert first.sessions() == [B.decode()]
    assert first.entries[-1][1] == b"cut off: the disk does not keep up"
    assert b"lost" not in read_all(tmp_path)
    assert second.sessions() == [A.decode()]
    said = capfd.readouterr().err
    assert said.count("recording paused") == 1
    assert 'error="the disk does not keep up"' in said


def test_at_the_end_a_disk_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    disk = _Hanging()
    monkeypatch.setattr(os, "write", disk)
    heard = recorder(tmp_path, closing=0.01)
    heard.received(session(SmtpdConnection(), lines=[b"x: y"]))
    heard.close()
    assert 'error="the disk does not keep up"' in capfd.readouterr().err
    disk.free.set()
    assert heard._disk.finish(30)


def test_the_mail_goes_on_and_the_process_ends_while_a_disk_hangs(tmp_path: Path) -> None:
    hanging = (
        "import os, stat, sys, threading; write = os.write\n"
        "def hang(fd, data):\n"
        "    status = os.fstat(fd)\n"
        "    is_log = status.st_ino == os.fstat(2).st_ino\n"
        "    if stat.S_ISREG(status.st_mode) and not is_log: threading.Event().wait()\n"
        "    return write(fd, data)\n"
        "os.write = hang\n"
        "from smtpd_filters.filters.trace import main; sys.exit(main())"
    )
    smtpd = everything(SmtpdConnection())
    lines = [b"Subject: x", b"", *[b"line %06d" % at for at in range(2000)]]
    data = session(smtpd, A, lines=lines) + session(smtpd, B, lines=lines)
    replay, log = play(
        as_recording(data),
        "--detail=none",
        f"--record={tmp_path}",
        command=[sys.executable, "-c", hanging],
    )
    messages = [step.verdict for step in replay.outcomes if step.phase == "data-line"]
    assert [each.lines for each in messages if each] == [tuple(lines)] * 2
    assert log.count("recording paused") == 1


def test_a_full_disk_does_not_stop_the_mail(tmp_path: Path) -> None:
    limited = (
        "import resource, sys;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192));"
        "from smtpd_filters.filters.trace import main; sys.exit(main())"
    )
    smtpd = everything(SmtpdConnection())
    lines = [b"Subject: x", b"", *[b"line %06d" % at for at in range(2000)]]
    data = session(smtpd, A, lines=lines) + session(smtpd, B, lines=lines)
    replay, log = play(
        as_recording(data),
        "--detail=none",
        f"--record={tmp_path}",
        command=[sys.executable, "-c", limited],
    )
    messages = [step.verdict for step in replay.outcomes if step.phase == "data-line"]
    assert [each.lines for each in messages if each] == [tuple(lines)] * 2
    assert log.count("recording paused") == 1
    assert 'error="File too large"' in log
    for path in tmp_path.iterdir():
        Recording.read(path)  # nothing is cut off within a line


# -- pseudonyms --------------------------------------------------------------------------

NAMES = st.from_regex(r"[Zz]q[a-zA-Z]{5,12}", fullmatch=True)
IPV4 = st.ip_addresses(v=4).filter(lambda ip: not ip.is_loopback).map(str)
IPV6 = st.ip_addresses(v=6, network="2a00::/12").map(str)


def names_in(words: list[str], ips: list[str], smtpd: SmtpdConnection) -> bytes:
    """A session with these in every place where a name can be."""
    one, two, three, four = (word.encode() for word in words)
    v4, v6 = (ip.encode() for ip in ips)
    host = b"%b.%b.%b" % (one, two, three)
    address = b"%b+%b@%b.%b" % (one, four, two, three)
    return b"".join(
        [
            smtpd.report("link-connect", A, host, b"pass", v4 + b":25", b"[%b]:25" % v6),
            smtpd.request("connect", A, TOKEN, host + b"|" + v4),
            smtpd.report("protocol-server", A, b"220 %b ESMTP OpenSMTPD" % host),
            smtpd.report("link-greeting", A, host),
            smtpd.request("ehlo", A, TOKEN, b"[%b]" % v4),
            smtpd.report("link-identify", A, b"EHLO", b"[IPv6:%b]" % v6),
            smtpd.report("protocol-server", A, b"250-%b Hello %b [%b], pleased" % (one, host, v4)),
            smtpd.report("link-auth", A, b"pass", one + b"|" + two),
            smtpd.report("protocol-client", A, b"MAIL FROM:<%b> AUTH=%b" % (address, one)),
            smtpd.report("protocol-client", A, b"VRFY %b" % one),
            smtpd.report("protocol-client", A, b"%b %b" % (one, two)),
            smtpd.report("filter-report", A, b"proc", one, b"%b says |%b" % (two, three)),
            smtpd.report("filter-response", A, b"mail-from", b"reject", b"550 5.7.1 no %b" % one),
            smtpd.report("filter-response", A, b"ehlo", b"rewrite", host),
            smtpd.request("mail-from", A, TOKEN, address),
            smtpd.report("tx-mail", A, b"0badcafe", b"ok", address),
            smtpd.report("tx-rcpt", A, b"0badcafe", b"ok", b"%b" % one),
            smtpd.request("noop", A, TOKEN, three),
            smtpd.lines(
                A,
                TOKEN,
                [
                    b"Received: from %b (%b [%b])" % (host, two, v4),
                    b"\tby %b; Sat, 21 Nov 2026 02:00:45 +0000" % v6,
                    b'From: "%b, %b" <%b>' % (one, two, address),
                    b"Subject: =?utf-8?Q?%b=C3=A4?= of %b_%b" % (one, two, three),
                    b"X-%b: %b" % (three, four),
                    b"",
                    b"Dear %b" % one,
                ],
            ),
            b"report|0.7|1.0|smtp-in|unheard-of|%b|%b\n" % (A, one),
            b"filter|0.7|1.0|smtp-in|unheard-of|%b|%b|%b\n" % (A, TOKEN, one),
            b"filter|0.7|1.0|smtp-in|quit|%b|%b\n" % (A, one),
        ]
    )


@given(st.lists(NAMES, min_size=4, max_size=4), st.tuples(IPV4, IPV6).map(list), st.booleans())
@example(["zqalice", "zqexample", "zqorg", "Zqbob"], ["1.2.3.4", "2a00:1::1"], True)  # noqa: FBT003
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_no_name_is_left(words: list[str], ips: list[str], old: bool) -> None:  # noqa: FBT001
    smtpd = SmtpdConnection((0, 5) if old else (0, 7))
    with tempfile.TemporaryDirectory() as name:
        heard = Recorder(name, FilterLog(Log(), "trace"), body=False, disguise=Disguise())
        heard.received(smtpd.configure(admd=f"{words[0]}.{words[1]}"))
        heard.received(b"config|%b\nconfig|owner|%b\n" % (words[0].encode(), words[1].encode()))
        heard.sent(b"register|filter|smtp-in|connect\nregister|ready\n")
        heard.received(names_in(words, ips, smtpd))
        heard.sent(b"filter-dataline|%b|%b|To: %b\n" % (A, TOKEN, words[2].encode()))
        heard.sent(b"filter-result|%b|%b|reject|550 %b\n" % (A, TOKEN, words[2].encode()))
        heard.sent(b"filter-result|%b|%b|proceed\n" % (A, TOKEN))
        heard.sent(b"%b|%b|x|y\n" % (words[3].encode(), A))
        heard.close()
        written = read_all(Path(name)).lower()
        (recorded,) = recordings(Path(name))
    for word in words:
        assert word.lower().encode() not in written
    for ip in ips:
        assert not re.search(rb"(?<![0-9a-f.:])%b(?![0-9a-f.:])" % re.escape(ip.encode()), written)
    # What is written is as legible to a filter as what was said.
    lines = [line for line in recorded.to_filter() if b"|link-connect|" in line]
    assert lines[0].count(b"|") == names_in(words, ips, smtpd).split(b"\n")[0].count(b"|")
    assert lines[0].endswith(b"]:25")


def test_a_word_has_one_pseudonym() -> None:
    disguise = Disguise(b"key")
    name = disguise.text(b"mail.example.org")
    assert name.startswith(b"mail.")
    assert disguise.text(b"<Bob@EXAMPLE.org>").endswith(
        name.removeprefix(b"mail").replace(b".", b"@", 1) + b">"
    )
    assert disguise.text(b"bob") != disguise.text(b"alice")
    assert Disguise(b"key").text(b"bob") == disguise.text(b"bob")
    assert Disguise().text(b"bob") != disguise.text(b"bob")


@pytest.mark.parametrize(
    "text",
    [
        b"<unknown>",
        b"[127.0.0.1]",
        b"[::1]",
        b"localhost",
        b"Sat, 21 Nov 2026 02:00:45 +0000 (UTC)",
        b"Content-Type: text/plain; charset=utf-8",
        b"",
    ],
)
def test_what_is_nobodys_stays(text: bytes) -> None:
    assert Disguise().text(text) == text


@given(st.binary(max_size=60))
def test_any_text_can_be_disguised(text: bytes) -> None:
    disguise = Disguise(b"key")
    shown = disguise.text(text)
    assert (b"|" in shown, b"\n" in shown) == (b"|" in text, b"\n" in text)
    assert disguise.text(text) == shown


def test_addresses_get_addresses() -> None:
    disguise = Disguise(b"key")
    assert re.fullmatch(rb"2[45][0-9](\.[0-9]{1,3}){3}", disguise.text(b"192.0.2.1"))
    assert re.fullmatch(rb"2001:db8(:[0-9a-f]{4}){6}", disguise.text(b"2a00::1"))
    assert disguise.text(b"x 192.0.2.1.") == b"x " + disguise.text(b"192.0.2.1") + b"."
    assert b"999.999" not in disguise.text(b"999.999.999.999")
    assert disguise._endpoint(b"unix:/run/bob.sock").startswith(b"unix:/")
    assert disguise._endpoint(b"nonsense") == disguise.text(b"nonsense")


def test_pseudonyms_are_remembered_within_bounds() -> None:
    disguise = Disguise(b"key", remembered=10)
    first = disguise.text(b"bob")
    for at in range(100):
        disguise.text(b"word%d" % at)
        assert len(disguise._words) <= 10
    assert disguise.text(b"bob") == first


def test_the_vocabulary_is_in_lower_case() -> None:
    assert {word.lower() for word in _VOCABULARY} == _VOCABULARY


# -- the tap -----------------------------------------------------------------------------


def test_rows_are_cut_at_line_ends() -> None:
    rows = Rows()
    assert rows.whole(b"a\nb") == b"a\n"
    assert rows.whole(b"") == b""
    assert rows.whole(b"c\n") == b"bc\n"


class _Broken:
    reports = frozenset[str]()
    phases = frozenset[str]()

    def received(self, data: bytes) -> None:
        raise ValueError(data)

    def sent(self, data: bytes) -> None:
        raise AssertionError(data)

    def close(self) -> None:
        raise AssertionError


def test_a_tap_that_fails_is_told_no_more(capfd: Capture) -> None:
    source, feed = os.pipe()
    drain, sink = os.pipe()
    channel = TappedChannel(source, sink, [_Broken()], Log())
    os.write(feed, b"hello")
    assert channel.read() == b"hello"
    channel.unread = 0
    assert channel.read() is None
    channel.write([], [])
    channel.write([b"answer"], [])
    assert os.read(drain, 100) == b"answer"
    channel.close()
    os.close(feed)
    os.close(drain)
    said = capfd.readouterr().err
    assert said.count("tap failed") == 1
    assert "ValueError" in said


def test_the_manual_says_what_each_level_is() -> None:
    manual = (ROOT / "docs" / "man" / "filter-trace.8").read_text()
    assert LEVELS
    for level in LEVELS:
        assert f"\n.It Cm {level}\n" in manual
