"""The log: an event is one line, nothing blocks, repetitions are limited."""

from __future__ import annotations

import importlib
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters import PROCEED, Decision, Filter, Reject, Rewrite, Session
from smtpd_filters.runtime import log as logging
from smtpd_filters.runtime.log import FilterLog, Log, fold_traceback, quote, show
from smtpd_filters.testing import Conversation

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Logbook


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("192.0.2.1:25", "192.0.2.1:25"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "x"', '"say \\"x\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("a\nb\r\0", '"a\\nb\\r\\x00"'),
        ("ä€😀", '"\\u00e4\\u20ac\\U0001f600"'),
        ("\udcff", '"\\xff"'),
    ],
)
def test_quoting(value: str, shown: str) -> None:
    assert quote(value) == shown


@given(st.characters(min_codepoint=0x7F, exclude_categories=["Cs"]))
def test_what_is_escaped_is_escaped_as_in_python(char: str) -> None:
    inner = quote(char).strip('"')
    assert inner in {ascii(char)[1:-1], f"\\u{ord(char):04x}"}
    assert inner.encode().decode("unicode_escape") == char


@given(st.text())
def test_a_quoted_value_is_printable_ascii_and_ends_where_it_ends(value: str) -> None:
    shown = quote(value)
    assert shown.isascii()
    assert shown.isprintable()
    inner = shown[1:-1].replace("\\\\", "").replace('\\"', "") if shown[0] == '"' else shown
    assert '"' not in inner


def test_an_event_is_one_line(logbook: Logbook) -> None:
    logbook.log.event("dyndns", "rcpt-to", "7641df9771b4ed00", result="junk", reason="", x="a b")
    logbook.log.event("dyndns", "reload")
    assert logbook.lines == [
        '7641df9771b4ed00 dyndns rcpt-to result=junk x="a b"',
        "dyndns reload",
    ]


@given(st.text())
def test_any_event_is_one_line_of_printable_ascii(text: str) -> None:
    ends = os.pipe()
    try:
        Log(fd=ends[1]).event(text, text, text, key=text)
        data = os.read(ends[0], 1 << 16)
    finally:
        for end in ends:
            os.close(end)
    assert data.endswith(b"\n")
    assert data[:-1].decode("ascii").isprintable()


def test_a_long_line_is_cut(logbook: Logbook) -> None:
    logbook.log.event("who", "what", text="x" * 100_000)
    (line,) = logbook.lines
    # What a pipe takes at once, or lines of several processes would run into one another.
    assert len(line) + 1 <= min(os.pathconf("/", "PC_PIPE_BUF"), 4096)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return b""


def test_a_full_pipe_does_not_block() -> None:
    ends = os.pipe()
    log = Log(fd=ends[1])
    try:
        for _ in range(2000):
            log.event("who", "what", text="x" * 1000)
        dropped = log.dropped
        assert dropped > 1000
        os.set_blocking(ends[0], False)
        data = b"".join(iter(lambda: _read(ends[0]), b""))
        # Whole lines only, and it goes on once there is room.
        assert set(data.splitlines()) == {b"who what text=" + b"x" * 1000}
        log.event("who", "again")
        assert os.read(ends[0], 1 << 16) == b"who again\n"
        assert log.dropped == dropped
    finally:
        for end in ends:
            os.close(end)


def test_a_log_whose_reader_has_closed() -> None:
    ends = os.pipe()
    os.close(ends[0])
    log = Log(fd=ends[1])
    log.event("who", "what")
    os.close(ends[1])
    log.event("who", "what")
    assert log.dropped == 2


def test_a_pipe_that_would_block(monkeypatch: pytest.MonkeyPatch, logbook: Logbook) -> None:
    def full(_fd: int, _data: bytes) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "write", full)
    logbook.log.event("who", "what")
    assert logbook.log.dropped == 1


def test_a_kind_is_logged_once_per_interval(logbook: Logbook) -> None:
    for number in range(5):
        logbook.log.limited("dns", "fcrdns", "no answer", f"{number:016x}")
        logbook.log.limited("disk", "fcrdns", "no room", f"{number:016x}")
    assert len(logbook.lines) == 2
    logbook.now += logging.INTERVAL
    logbook.log.limited("dns", "fcrdns", "no answer", "a" * 16)
    logbook.log.limited("dns", "fcrdns", "no answer", "b" * 16)
    assert logbook.lines[2:] == ["a" * 16 + " fcrdns no answer repeated=4"]
    logbook.now += logging.INTERVAL
    logbook.log.limited("dns", "fcrdns", "no answer")
    assert logbook.lines[3:] == ["fcrdns no answer repeated=1"]
    logbook.now += logging.INTERVAL
    logbook.log.limited("dns", "fcrdns", "no answer")
    assert logbook.lines[4:] == ["fcrdns no answer"]


def test_a_failure_leaves_a_line_in_each_phase_of_each_session(logbook: Logbook) -> None:
    def fail(session: str, verb: str = "reject", phase: str = "connect") -> None:
        result = {"result": verb}
        logbook.log.failure("dns", "fcrdns", phase, session, result, cause="timeout", reply="451 x")

    for session in ("a", "a", "b", "b", "c"):
        fail(session)
    again = 'reason="failed as logged before" cause=timeout reply="451 x"'
    assert logbook.lines == [
        'a fcrdns connect result=reject cause=timeout reply="451 x"',
        f"b fcrdns connect result=reject {again}",
        f"c fcrdns connect result=reject {again}",
    ]
    # What became of it otherwise is news, and so is another phase.
    fail("a", "junk")
    fail("a", phase="mail-from")
    fail("a", phase="mail-from")
    assert logbook.lines[3:] == [
        f"a fcrdns connect result=junk {again}",
        f"a fcrdns mail-from result=reject {again}",
    ]
    logbook.now += logging.INTERVAL
    fail("b")
    said = 'b fcrdns connect result=reject cause=timeout reply="451 x" repeated=7'
    assert logbook.lines[5:] == [said]


def test_the_cause_in_a_short_line_is_cut(logbook: Logbook) -> None:
    for session in ("a", "b"):
        logbook.log.failure(
            "disk", "smtpd-filters", "message refused", session, {}, reason="x" * 99
        )
    assert logbook.lines == [
        f"a smtpd-filters message refused reason={'x' * 99}",
        f'b smtpd-filters message refused reason="failed as logged before" cause={"x" * 60}',
    ]


def test_failures_are_remembered_within_bounds(logbook: Logbook) -> None:
    for number in range(3 * logging.MAX_FAILURES):
        for _ in range(2):
            logbook.log.failure("dns", "who", "connect", f"{number:016x}", {"result": "junk"})
    assert len(logbook.lines) == 3 * logging.MAX_FAILURES
    assert len(logbook.log._failures) <= logging.MAX_FAILURES


def test_a_filter_logs_under_its_name_within_the_limits_of_the_process(logbook: Logbook) -> None:
    one, other = FilterLog(logbook.log, "one"), FilterLog(logbook.log, "other")
    one.event("note", "a" * 16, key="a value")
    for _ in range(2):
        one.limited("dns", "no answer")
        FilterLog(logbook.log, "one").limited("dns", "no answer")
        other.limited("dns", "no answer")
    assert logbook.lines == [
        "a" * 16 + ' one note key="a value"',
        "one no answer",
        "other no answer",
    ]
    assert not one.verbose
    assert FilterLog(Log(verbose=True), "one").verbose


def test_a_filter_logs_any_value(logbook: Logbook) -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError

    session = Session(b"a" * 16)
    log = FilterLog(logbook.log, "one")
    log.event("note", session, count=0, what="x", session=None, odd=Odd(), empty="", who="y")
    log.limited("note", "again", session, kind=1.5)
    assert logbook.lines == [
        "a" * 16 + ' one note count=0 what=x odd="(no text)" who=y',
        "a" * 16 + " one again kind=1.5",
    ]


def test_kinds_are_bounded_and_make_room(logbook: Logbook) -> None:
    log = logbook.log
    for number in range(3 * logging.MAX_KINDS):
        log.limited(f"kind {number}" * 1000, "who", "what")
    assert len(logbook.lines) == logging.MAX_KINDS + 1
    assert len(log._since) == logging.MAX_KINDS + 1
    assert max(map(len, log._since)) <= logging.MAX_TEXT
    logbook.now += logging.INTERVAL
    log.limited("new", "who", "new")
    log.limited("newer", "who", "newer")
    assert logbook.lines[-2:] == ["who new", "who newer"]
    assert len(log._since) == 2


def test_a_verdict(logbook: Logbook) -> None:
    session = Session(b"7641df9771b4ed00")
    logbook.log.verdict(session, "one", "helo", Rewrite("new").because("why"), 0.0123)
    logbook.log.verdict(session, "one", "connect", PROCEED, 1)
    assert logbook.lines == [
        "7641df9771b4ed00 one helo result=rewrite reason=why reply=new took=12.3ms",
        "7641df9771b4ed00 one connect result=proceed took=1000.0ms",
    ]


@pytest.mark.parametrize("decision", [Rewrite("PLAIN abc"), Reject("535 5.7.8 abc")])
def test_at_auth_a_verdict_is_without_its_text(
    decision: Rewrite | Reject, logbook: Logbook
) -> None:
    logbook.log.verdict(Session(b"1"), "one", "auth", decision, 0)
    assert "abc" not in logbook.lines[0]


def fail(depth: int) -> None:
    if depth:
        fail(depth - 1)
    raise ValueError("a\nb")


def caught(depth: int) -> BaseException:
    try:
        fail(depth)
    except ValueError as error:
        return error
    raise AssertionError


def test_a_traceback_is_folded() -> None:
    folded = fold_traceback(caught(1))
    assert folded.startswith("ValueError: a\nb [test_log.py:")
    assert folded.endswith(":fail]")
    assert folded.count(" > ") == 2
    assert fold_traceback(caught(50)).count(" > ") == 7
    assert fold_traceback(caught(0), text=False).startswith("ValueError [")
    assert fold_traceback(ValueError()) == "ValueError:  []"


def test_a_traceback_in_one_line_has_the_modules_but_no_machinery_of_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outer_policy.py").write_text("import inner_policy\n")
    (tmp_path / "inner_policy.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError) as caught:
        importlib.import_module("outer_policy")
    folded = fold_traceback(caught.value)
    assert folded.endswith(" > outer_policy.py:1:<module> > inner_policy.py:1:<module>]")
    assert "frozen" not in folded


def test_a_traceback_begins_with_the_frames_of_the_filter() -> None:
    class Compares(Filter):
        """Forgets to wait."""

        async def ehlo(self, _session: Session, _identity: str) -> Decision:
            answer: Any = self._ask()
            try:
                return PROCEED if answer > 3 else Reject("550 5.7.1 No")
            finally:
                answer.close()

        async def _ask(self) -> int:
            return 4

    with Conversation(Compares, errors=True) as smtpd:
        smtpd.connect().ehlo()
    kind = "TypeError: '>' not supported between instances of 'coroutine' and 'int'"
    assert re.search(
        rf"{kind} \(is an await missing\?\) \[test_log\.py:\d+:ehlo\]$", smtpd.errors[0]
    )


def test_frames_that_ran_out_of_memory_are_released() -> None:
    class Big:
        alive = 0

        def __init__(self) -> None:
            Big.alive += 1

        def __del__(self) -> None:
            Big.alive -= 1

    def hold() -> None:
        big = Big()
        raise MemoryError(big.alive)

    with pytest.raises(MemoryError) as caught:
        hold()
    assert Big.alive == 1
    assert "hold" in fold_traceback(caught.value)
    assert Big.alive == 0


def test_an_error_that_cannot_be_shown() -> None:
    class Mute(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise KeyboardInterrupt

    assert show(Mute()) == "(no text)"
    assert len(show(ValueError("x" * 10_000))) == logging.MAX_TEXT


def test_unraisable_exceptions_are_logged(logbook: Logbook) -> None:
    class Seen:
        exc_value: BaseException | None = caught(0)

    logbook.log.unraisable(Seen())
    Seen.exc_value = None
    logbook.now += logging.INTERVAL
    logbook.log.unraisable(Seen())
    assert "ValueError" in logbook.lines[0]
    assert logbook.lines[1].endswith("error=unknown")


@pytest.mark.parametrize("session", [None, 42, b"x", object()])
def test_an_event_of_no_session_is_written_without_one(session: Any, logbook: Logbook) -> None:
    log = FilterLog(logbook.log, "helo")
    log.event("x", session, key="value")
    event: Any = 42
    log.event(event)
    log.limited("kind", "y", session)
    assert logbook.lines == ["helo x key=value", "helo 42", "helo y"]
