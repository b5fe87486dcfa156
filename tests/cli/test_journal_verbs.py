"""`why`, `stats` and `tail`: what they show of a journal, and what they escape."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.cli import main, stats
from smtpd_filters.cli import tail as tail_verb
from smtpd_filters.errors import user_name
from smtpd_filters.journal.archive import Archive
from smtpd_filters.journal.places import KEY
from smtpd_filters.journal.privacy import Privacy
from smtpd_filters.journal.wire import encode
from tests.journal.made import PASSED, REFUSED, parse, refused, stored

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]

COMMAND = [sys.executable, "-c", "import sys; from smtpd_filters.cli import main; sys.exit(main())"]
#: What a client may try to do to a terminal.
HOSTILE = "\x1b[2J\x1b]0;title\x07\u202eevil\u2066\r\n\x00\x9b31m<b>&|\udcff"


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def tool(*words: str) -> tuple[int, str, str]:
        try:
            status = main([*words, "--directory", str(tmp_path)])
        except SystemExit as end:
            status = int(str(end.code))
        said = capsys.readouterr()
        return status, said.out, said.err

    return tool


@pytest.fixture
def now() -> float:
    return time.time()


@pytest.fixture
def archive(tmp_path: Path, now: float) -> Archive:
    made = Archive(
        str(tmp_path), Privacy("plain"), days=30, size=1 << 30, floor=0, subjects=True, note=print
    )
    at = int(now * 1000)
    made.write([stored(1, t=at), refused(2, t=at, r=[["bob@example.net", 2]])], now)
    made.close()
    return made


def test_why_tells_who_what_and_which_setting(archive: Archive, run: Run) -> None:
    del archive
    status, said, errors = run("why", "bob@example.net")
    assert (status, errors) == (0, "")
    newest, oldest = said.split("\n\n")
    assert " refused from <alice@example.org> to <bob@example.net> client 192.0.2.1 by dnsbl" in (
        newest
    )
    assert "dnsbl refused it: listed in zen.example [550 5.7.1 Listed] (1.5 ms)" in newest
    assert "fcrdns let it pass" in newest
    assert "decided   dnsbl at connect" in newest
    assert " accepted from <alice@example.org>" in oldest
    assert "smtpd     accepted it as 00000001, 1,234 bytes" in oldest


def test_a_clock_that_was_a_year_ahead_hides_no_messages(
    archive: Archive, run: Run, now: float
) -> None:
    later = now + 365 * 86400
    archive.write([stored(n, t=int(later * 1000), f="early@example.org") for n in range(9)], later)
    archive.close()
    _, said, _ = run("tail", "--follow=false", "--number", "2")
    assert said.count("alice@example.org") == 2
    assert "early" not in said
    assert run("why", "early@example.org")[1].count(" accepted from ") == 9


def test_why_finds_a_story_by_the_id_that_it_prints(archive: Archive, run: Run) -> None:
    del archive
    oldest = run("why", "bob@example.net")[1].split("\n\n")[1]
    found = oldest.rstrip().rpartition("journal ")[2]
    assert run("why", found) == (0, oldest, "")
    assert run("why", f"{found}0")[0] == 1


@pytest.mark.parametrize(
    "words", [["why", "j\u00fcrgen"], ["why", "@example.de"], ["tail", "--follow=false"]]
)
def test_a_terminal_whose_encoding_lacks_a_character(
    words: list[str], archive: Archive, tmp_path: Path, now: float
) -> None:
    sender = "j\u00fcrgen\u20ac@example.de"
    archive.write([stored(3, t=int(now * 1000), f=sender)], now)
    archive.close()
    done = subprocess.run(
        [*COMMAND, *words, "--directory", str(tmp_path)],
        env={**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"j\xfcrgen\\u20ac@example.de" in done.stdout


@pytest.mark.parametrize(
    "what", ["\udcff", "a" * 60_000, "'", "\\", "%", "\x00", "\x1b[2J", "1.2.3.4/99"]
)
def test_why_something_odd(what: str, archive: Archive, run: Run) -> None:
    del archive
    status, said, errors = run("why", what)
    assert (status, errors) == (1, "")
    assert said.isprintable() or said[:-1].isprintable()


def test_why_bytes_that_are_no_text(archive: Archive, run: Run, now: float) -> None:
    archive.write([stored(3, t=int(now * 1000), f="caf\\xe9@example.com")], now)
    archive.close()
    assert run("why", "caf\udce9@example.com")[0] == 0


def test_why_as_json(archive: Archive, run: Run) -> None:
    del archive
    _, said, _ = run("why", "192.0.2.1", "--json")
    first, second = json.loads(said)
    assert first["decided_by"] == "dnsbl"
    assert first["reply"] == "550 5.7.1 Listed"
    assert first["cause"] == "listed in zen.example"
    assert second["outcome"] == "accepted"


def test_why_a_filter_exempts_a_client(archive: Archive, run: Run, now: float) -> None:
    rows = [
        ["fcrdns dnsbl", "connect", "proceed", 1, 80, 1, 0, "exempt: authenticated"],
        ["rcpt", "rcpt-to", "proceed", 2, 100, 3, 50, "exempt: 192.0.2.0/24"],
    ]
    archive.write([stored(7, rows, t=int(now * 1000), f="carol@example.org")], now)
    archive.close()
    _, said, _ = run("why", "carol@example.org")
    for name in ("fcrdns", "dnsbl"):
        assert f"{name} exempts it (the client is authenticated) (0.0 ms)\n" in said
    assert "rcpt exempts it (192.0.2.0/24), 3 times (0.1 ms)\n" in said
    _, said, _ = run("why", "carol@example.org", "--json")
    [story] = json.loads(said)
    assert [each["exempt"] for each in story["verdicts"]] == [
        "authenticated", "authenticated", "192.0.2.0/24"
    ]  # fmt: skip


def test_what_is_not_there(archive: Archive, run: Run, tmp_path: Path) -> None:
    del archive
    assert run("why", "nobody@example.org")[:2] == (
        1,
        "nobody@example.org: nothing in the journal within 2d (--since)\n",
    )
    assert run("why", "nobody", "--json")[:2] == (1, "[]\n")
    for path in tmp_path.iterdir():
        path.unlink()
    status, said, error = run("why", "x")
    assert (status, said) == (2, "")
    hint = "; has smtpd-filters journal run, with this --directory?\n"
    assert error.endswith(f": no files of a journal{hint}")
    tmp_path.rmdir()
    status, said, error = run("why", "x")
    assert (status, said) == (2, "")
    assert error.endswith(f": No such file or directory{hint}")


def test_hostile_texts_are_escaped(archive: Archive, run: Run, now: float) -> None:
    row = [*REFUSED[:7], HOSTILE, "550 " + HOSTILE, HOSTILE, 0, "", HOSTILE]
    head = {
        "v": 1, "k": "tx", "p": "x", "s": "1f", "m": "1f", "t": int(now * 1000), "e": "rollback",
        "c": [f"{HOSTILE}:1", HOSTILE, HOSTILE, HOSTILE], "h": [HOSTILE, HOSTILE], "l": HOSTILE,
        "u": [HOSTILE, HOSTILE], "f": HOSTILE, "r": [[HOSTILE, 2]] * 2, "i": HOSTILE,
        "j": HOSTILE, "a": [HOSTILE],
    }  # fmt: skip
    parts = [parse(data) for data in encode(head, [PASSED, row], 60_000)]
    archive.write([{**part, "p": ["x"]} for part in parts], now)
    archive.close()
    for words in (
        ["why", "example", "--color=never"], ["why", "1f"], ["why", HOSTILE.strip("\x00")],
        ["tail", "--follow=false"], ["tail", "--follow=false", "--full"],
        ["stats"], ["stats", "--by", "reason"], ["stats", "--by", "senders"],
        ["stats", "--by", "clients"], ["stats", "--by", "users"],
        ["tail", "--json", "--follow=false"],
    ):  # fmt: skip
        _, said, errors = run(*words)
        assert said or errors
        assert all(each.isprintable() or each == "\n" for each in said + errors), words


def test_stats_count_outcomes_and_verdicts(archive: Archive, run: Run) -> None:
    del archive
    status, said, _ = run("stats")
    assert status == 0
    assert "       1  50.0 % refused\n" in said
    assert "       0   0.0 % refused temporarily (deferred)\n" in said
    chart = said.split("\n\n")[1].split("\n")
    # That of today, unless midnight has passed since they were written.
    [day] = [line for line in chart if not line.endswith(" 0")]
    assert day.endswith(f"        2 {'a' * 25}{'r' * 25}")
    assert "dnsbl                connect    reject                    1    1.5 ms    1.5 ms" in said
    _, said, _ = run("stats", "--by", "reason")
    assert "       1 refused             dnsbl          listed in zen.example\n" in said
    _, said, _ = run("stats", "--by", "clients")
    assert said.endswith("       2 192.0.2.1  1 accepted, 1 refused\n")
    _, said, _ = run("stats", "--json")
    assert json.loads(said)["outcomes"]["accepted"] == 1


@pytest.mark.parametrize(
    ("flags", "hours"),
    [
        (("--since=7d",), 24),
        (("--since=7d", "--by=hour"), 1),
        (("--since=6h",), 6),
        (("--since=6h", "--by=hour"), 1),
    ],
)
def test_stats_have_steps_of_hours_or_days(
    flags: tuple[str, ...], hours: int, archive: Archive, run: Run
) -> None:
    del archive
    assert json.loads(run("stats", "--json", *flags)[1])["step"] == 3600 * hours
    chart = run("stats", *flags)[1].split("\n\n")[1].splitlines()
    if hours == 24:  # of the calendar
        assert all(re.match(r"\d{4}-\d\d-\d\d  +\d", line) for line in chart)
    else:
        assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d ", line) for line in chart)
        # One more, since the time begins within an hour.
        assert len(chart) == (6 if "6h" in flags[0] else 7 * 24) // hours + 1


def test_why_tells_both_parts_of_a_message_at_midnight(
    archive: Archive, run: Run, now: float
) -> None:
    yesterday = now - 86400
    for rows, at in (([PASSED, REFUSED], yesterday), ([PASSED], now)):
        archive.write([stored(9, rows, f="late@example.org", t=int(at * 1000))], at)
    archive.close()
    said = run("why", "late@example.org")[1]
    assert said.count("late@example.org") == 2
    assert said.count("dnsbl refused it") == 1


def test_hours_that_come_twice_have_their_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        one = 1792886400.0 - 3600  # 2026-10-25 01:00 CEST
        found = [hour for hour, _ in stats.hours([(one + 3600 * at, {}) for at in range(4)])]
    finally:
        monkeypatch.undo()
        time.tzset()
    day = "2026-10-25 "
    assert found == [day + each for each in ("01:00", "02:00+0200", "02:00+0100", "03:00")]


def test_the_days_of_the_chart_are_those_of_the_calendar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one of 23 hours, on which summer time begins."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        noon = 1774695600.0  # on 2026-03-28
        steps = [(noon + 3600 * hour, {"accepted": 1}) for hour in range(48)]
        found = list(stats.days(steps))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found == [
        ("2026-03-28", {"accepted": 12}),
        ("2026-03-29", {"accepted": 23}),
        ("2026-03-30", {"accepted": 13}),
    ]


def test_tail_chooses(archive: Archive, run: Run) -> None:
    del archive
    for flags, count in (
        ([], 2),
        (["--outcome", "refused"], 1),
        (["--filter", "dnsbl"], 1),
        (["--filter", "fcrdns"], 0),
        (["--match", "LISTED"], 1),
        (["--number", "1"], 1),
        (["--number", "0"], 0),
    ):
        status, said, _ = run("tail", "--follow=false", *flags)
        assert (status, said.count("\n")) == (0, count), flags


def test_tail_follows(
    archive: Archive, run: Run, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = []

    def sleep(_seconds: float) -> None:
        rounds.append(1)
        if len(rounds) == 3:
            raise KeyboardInterrupt
        archive.write([stored(10 + len(rounds), f=f"new{len(rounds)}@example.org")], now)
        archive.close()

    monkeypatch.setattr(tail_verb, "sleep", sleep)
    status, said, _ = run("tail", "--number", "0")
    assert status == 130
    assert [line.partition("from <")[2][:4] for line in said.splitlines()] == ["new1", "new2"]


def test_tail_says_that_it_waits(
    tmp_path: Path, run: Run, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = Archive(
        str(tmp_path), Privacy("plain"), days=30, size=1 << 30, floor=0, subjects=True, note=print
    )
    empty.open(now)
    rounds = []

    def sleep(_seconds: float) -> None:
        rounds.append(1)
        if len(rounds) == 3:
            raise KeyboardInterrupt
        if len(rounds) == 1:
            empty.write([stored(7, f="first@example.org"), stored(8)], now)

    monkeypatch.setattr(tail_verb, "sleep", sleep)
    # Nothing is waited for.
    assert run("tail", "--follow=false") == (0, "", "")
    status, said, error = run("tail")
    empty.close()
    assert status == 130
    assert error.splitlines()[0] == (
        "smtpd-filters tail: the journal has no message yet; waiting for one"
    )
    assert "first@example.org" in said
    assert said.count("\n") == 2


def test_tail_shows_what_comes_after_the_clock_was_set_back(
    archive: Archive, run: Run, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.write([stored(9)], now + 300 * 86400)

    def sleep(_seconds: float) -> None:
        archive.write([stored(10, f="later@example.org")], now)
        monkeypatch.setattr(tail_verb, "sleep", ending)

    def ending(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tail_verb, "sleep", sleep)
    said = run("tail", "--number", "0")[1]
    archive.close()
    assert "later@example.org" in said


def test_colours(archive: Archive, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    del archive
    assert "\x1b[31mrefused\x1b[0m" in run("tail", "--follow=false", "--color", "always")[1]
    assert "\x1b" not in run("tail", "--follow=false")[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" in run("why", "alice@example.org")[1]
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in run("why", "alice@example.org")[1]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run("why", "alice@example.org")[1]


def test_a_journal_without_a_place_for_its_socket_leaves_nothing(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    status, _, error = run("journal", "--socket", str(missing / "socket"))
    assert status == 2
    assert f"--socket: the directory {missing} is missing; " in error
    assert f"install -d -o {'USER' if os.geteuid() == 0 else user_name()} -m 755 {missing}" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "\n", "short"])
def test_a_key_that_everybody_can_guess_is_refused(content: str, run: Run, tmp_path: Path) -> None:
    """The journal was killed when it made the key."""
    key = tmp_path / KEY
    key.write_text(content)
    status, out, err = run("journal", "--addresses", "hashed", "--socket", f"{tmp_path}/socket")
    assert (status, out) == (2, "")
    assert f"{key}: a key of less than 16 characters; remove it" in err
    assert not (tmp_path / "socket").exists()


def test_a_full_disk_leaves_no_key(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    status, _, err = run("journal", "--addresses", "hashed", "--socket", f"{tmp_path}/socket")
    text = f"smtpd-filters journal: {tmp_path / KEY}: No space left on device\n"
    assert (status, err) == (2, text)
    assert not (tmp_path / KEY).exists()


def test_why_says_that_it_can_not_read_the_key(archive: Archive, run: Run, tmp_path: Path) -> None:
    del archive
    (tmp_path / KEY).mkdir()
    status, out, err = run("why", "bob@example.net")
    assert (status, "refused" in out) == (0, True)
    assert err == f"smtpd-filters: {tmp_path / KEY}: Is a directory: no hashed address is found\n"


@pytest.mark.parametrize("verb", [["stats"], ["why", "alice@example.org"]])
def test_a_full_disk_for_the_output_is_not_the_journal(
    verb: list[str], archive: Archive, tmp_path: Path
) -> None:
    del archive
    with open("/dev/full", "wb") as full:  # noqa: PTH123  # a device
        done = subprocess.run(
            [*COMMAND, *verb, "--directory", str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            timeout=60,
            check=False,
        )
    text = b"smtpd-filters: standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, text)


@pytest.mark.parametrize(
    "words", [["why", "bob@example.net"], ["stats"], ["tail", "--follow=false"]]
)
def test_a_file_that_can_not_be_read_is_not_an_empty_one(
    words: list[str], run: Run, tmp_path: Path
) -> None:
    day = tmp_path / time.strftime("%Y-%m-%d.sqlite", time.gmtime())
    day.write_text("damaged")
    status, _, err = run(*words)
    assert status == 2
    assert err == f"smtpd-filters: {day}: not read: file is not a database\n"
