"""However the bytes of both sides are cut into reads, the other side gets the same lines."""

from __future__ import annotations

from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.protocol.vocabulary import PHASES
from smtpd_filters.supervise.engine import Engine
from smtpd_filters.supervise.layout import TRACKED, Layout
from smtpd_filters.supervise.link import Link
from smtpd_filters.supervise.program_side import GROWTH, GROWTH_FACTOR, MAX_LINE
from tests.effort import part
from tests.runtime.process import TOKENS, sid
from tests.supervise.hostile import nowhere

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TIME = b"1700000000.000001"
#: A time stamp of another width, with which no line fits the layout of the others: of a machine
#: that started in 1970, as it has no clock of its own, and whose clock is set later.
EARLY = b"99.000001"
REGISTRATION = (
    *("report|smtp-in|link-connect", "report|smtp-in|tx-mail", "report|smtp-in|link-disconnect"),
    *(f"filter|smtp-in|{name}" for name in (*PHASES, "data-line")),
)
CONFIG = (
    b"config|smtpd-version|7.8.0\nconfig|protocol|0.7\nconfig|subsystem|smtp-in\nconfig|ready\n"
)
BODIES = (
    [b"Subject: x", b"", b"text", b"."],
    [b"."],
    [b"", b"..", b"a", b"|.", b"filter|0.7|1|smtp-in|data-line|0|0|.", b"."],
    [b"x" * 900] * 20 + [b"."],
    # With `EARLY` one line is as long as the final dot is with `TIME`.
    [b"a", b"x" * 7 + b"|.", b"b", b"c", b"."],
    [b"long " * 15000, b"."],
)
#: Steps of a session, each of which ends with an answer of the program.
STEPS: tuple[tuple[str, ...], ...] = (
    ("link-connect", "connect"),
    ("link-identify", "ehlo"),
    ("mail-from",),
    ("tx-begin", "tx-mail", "rcpt-to"),
    ("data",),
    ("data-line",),
    ("commit",),
    ("tx-reset", "quit"),
    ("link-disconnect",),
)
VALUES = {
    "link-connect": b"|mail.example.net|pass|192.0.2.1:25|192.0.2.2:25",
    "link-identify": b"|EHLO|mail.example.net",
    "tx-begin": b"|0a0b0c0d",
    "tx-mail": b"|0a0b0c0d|ok|a@example.net",
    "tx-reset": b"|0a0b0c0d",
    "link-disconnect": b"",
}


def test_late_answers_for_many_sessions_that_have_ended() -> None:
    """Clients hang up during slow look-ups: the program's answers are no fault of it."""
    engine, link = Engine(nowhere()), Link()
    engine.attach(link)
    engine.from_smtpd(CONFIG)
    engine.from_program(link, b"register|filter|smtp-in|ehlo\nregister|ready\n")
    engine.admit(link)
    engine.answers.clear()
    names = [sid(number) for number in range(10_000)]
    for name in names:
        for row in (
            b"report|0.7|%b|smtp-in|link-connect|%b|h|pass|192.0.2.1:25|192.0.2.2:25\n",
            b"filter|0.7|%b|smtp-in|ehlo|%b|00000000000000a2|x\n",
            b"report|0.7|%b|smtp-in|link-disconnect|%b\n",
        ):
            engine.from_smtpd(row % (TIME, name))
    late = b"".join(b"filter-result|%b|00000000000000a2|proceed\n" % name for name in names)
    engine.from_program(link, late)
    assert link.fault == ""
    assert not link.late
    assert engine.answers == []
    engine.from_program(link, late[:58])
    assert "answer without a request" in link.fault


def step(number: int, names: Sequence[str], body: Sequence[bytes], *times: bytes) -> list[bytes]:
    """What smtpd writes in a step of a session, as lines, which have these times in turn."""
    rows = []
    for name in names:
        kind = b"report" if name in VALUES else b"filter"
        end = b"|smtp-in|%b|%b" % (name.encode(), sid(number))
        if name in VALUES:
            rows.append((kind, end + VALUES[name]))
        elif name == "data-line":
            rows += [(kind, end + b"|%b|%b" % (TOKENS[name], line)) for line in body]
        else:
            rows.append((kind, end + b"|%b|argument" % TOKENS[name]))
    return [b"%b|0.7|%b%b\n" % (kind, time, end) for (kind, end), time in zip(rows, cycle(times))]


def pieces(data: bytes, cuts: Iterable[int]) -> Iterable[bytes]:
    """The data in reads; after the cuts in one piece."""
    for size in cuts:
        if not data:
            return
        yield data[:size]
        data = data[size:]
    if data:
        yield data


def answers(data: bytes, body_of: dict[bytes, list[bytes]]) -> bytes:
    """What a program writes that lets everything pass, and returns messages at their end."""
    out = b""
    for row in data.splitlines(keepends=True):
        if row.startswith(b"filter|"):
            _, _, _, _, phase, session, token, rest = row.split(b"|", 7)
            if phase == b"data-line":
                lines = body_of.setdefault(session, [])
                lines.append(b"filter-dataline|%b|%b|%b" % (session, token, rest))
                if rest == b".\n":
                    out += b"".join(body_of.pop(session))
            else:
                out += b"filter-result|%b|%b|proceed\n" % (session, token)
    return out


def ready(*registrations: str) -> tuple[Engine, Link]:
    """An engine with a program that has registered for these."""
    engine, link = Engine(nowhere()), Link()
    engine.attach(link)
    engine.from_smtpd(CONFIG)
    rows = [b"register|%b\n" % each.encode() for each in (*registrations, "ready")]
    engine.from_program(link, b"".join(rows))
    engine.admit(link)
    engine.answers.clear()
    link.out.clear()
    return engine, link


def converse(
    sessions: Sequence[tuple[Sequence[bytes], Sequence[bytes]]], cuts: Sequence[int] | None
) -> tuple[dict[bytes, list[bytes]], dict[bytes, list[bytes]]]:
    """Play the sessions in step; return what smtpd and the program got, by session.

    Reads are cut at these sizes, or at each line.
    """
    engine, link = ready(*REGISTRATION)
    got: list[bytes] = []
    told: list[bytes] = []
    kept: dict[bytes, list[bytes]] = {}
    for names in STEPS:
        rows = [
            row
            for number, (body, times) in enumerate(sessions)
            for row in step(number, names, body, *times)
        ]
        for read in rows if cuts is None else pieces(b"".join(rows), cuts):
            engine.from_smtpd(read)
        given = b"".join(link.out)
        link.out.clear()
        told += given.splitlines(keepends=True)
        back = answers(given, kept)
        for read in back.splitlines(keepends=True) if cuts is None else pieces(back, cuts):
            engine.from_program(link, read)
        assert not link.fault
        got += b"".join([*engine.answers, *engine.lines]).splitlines(keepends=True)
        engine.answers.clear()
        engine.lines.clear()
    left = engine.sessions, link.sessions, link.open, link.messages, link.returning
    assert not any((*left, engine.transit.known))
    return by_session(got, 1), by_session(told, 5)


def by_session(rows: Iterable[bytes], field: int) -> dict[bytes, list[bytes]]:
    """Sort lines by the session, which is in this field."""
    found: dict[bytes, list[bytes]] = {}
    for row in rows:
        found.setdefault(row.rstrip(b"\n").split(b"|", field + 1)[field], []).append(row)
    return found


@settings(max_examples=part(300), deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(BODIES),
            st.one_of(
                st.just([TIME]), st.lists(st.sampled_from((TIME, EARLY)), min_size=1, max_size=9)
            ),
        ),
        min_size=1,
        max_size=5,
    ),
    st.lists(st.integers(1, 2000), max_size=8),
)
def test_cuts_make_no_difference(
    sessions: list[tuple[list[bytes], list[bytes]]], cuts: list[int]
) -> None:
    assert converse(sessions, cuts) == converse(sessions, None)


@pytest.mark.parametrize(("first", "then"), [(EARLY, TIME), (TIME, EARLY)])
def test_a_clock_that_is_set_within_a_message_changes_nothing(first: bytes, then: bytes) -> None:
    """The message arrives in one read that begins with a line of another width."""
    engine, link = ready("filter|smtp-in|data-line")
    body = BODIES[4]
    rows = step(0, ("link-connect",), (), then)
    rows += step(0, ("data-line",), body, first, *[then] * len(body))
    engine.from_smtpd(b"".join(rows))
    given = b"".join(link.out).splitlines()
    assert [row.split(b"|", 7)[7] for row in given] == body
    engine.from_program(link, answers(b"".join(link.out), {}))
    assert not link.fault
    returned = b"".join(engine.lines).splitlines()
    assert [row.split(b"|", 3)[3] for row in returned] == body


def test_each_phase_and_tracked_report_has_a_place_of_its_own() -> None:
    layout = Layout(28, PHASES.values())
    assert {fields[0] for fields in layout.requests.values()} == {*PHASES.values()}
    assert {fields[0] for fields in layout.reports.values()} == {*TRACKED}


def started() -> tuple[Engine, Link]:
    """An engine with a program and two open requests, of sessions 0 and 1."""
    engine, link = ready("filter|smtp-in|ehlo")
    for names in (("link-connect",), ("ehlo",)):
        engine.from_smtpd(b"".join(row for n in (0, 1) for row in step(n, names, (), TIME)))
    engine.answers.clear()
    return engine, link


def test_lines_that_are_cut_short_are_no_requests_and_no_reports() -> None:
    engine, link = started()
    link.out.clear()
    for name in ("tx-reset", "link-connect", "ehlo"):
        for rest in (b"", b"|", b"|" + sid(0)[:9], b"|" + sid(0)):
            engine.from_smtpd(b"filter|0.7|%b|smtp-in|%b%b\n" % (TIME, name.encode(), rest))
            engine.from_smtpd(b"report|0.7|%b|smtp-in|%b%b\n" % (TIME, name.encode(), rest))
    assert not link.out
    assert len(link.open) == 2


#: Lines with fields that are empty, too short, too long or split, or without the last of them.
ODD_LINES = st.builds(
    lambda fields, left: b"|".join(fields[:left]) + b"\n",
    st.tuples(
        st.sampled_from((b"filter", b"report", b"f")),
        st.just(b"0.7"),
        st.sampled_from((TIME, TIME, EARLY)),
        st.just(b"smtp-in"),
        st.sampled_from([name.encode() for name in (*PHASES, "data-line", *VALUES)]),
        st.sampled_from((b"", b"a", sid(0), sid(0)[1:], sid(0) + b"x", b"|" * 16)),
        st.sampled_from((b"", b"t", TOKENS["commit"], TOKENS["data-line"], b"|" * 16)),
        st.sampled_from((b"", b".", b"text", b"PLAIN AGEAYg==", b"a|b", b"\0")),
    ),
    st.sampled_from((8, 8, 8, 7, 6, 5, 4)),
)


@settings(max_examples=part(300), deadline=None)
@given(st.lists(st.lists(ODD_LINES, min_size=1, max_size=6), max_size=20))
def test_odd_lines_raise_nothing_and_lose_no_session(reads: list[list[bytes]]) -> None:
    engine, link = ready(*REGISTRATION)
    for rows in reads:
        engine.from_smtpd(b"".join(rows))
        assert not engine.smtpd.stalled
    engine.lost(link, "killed")
    engine.expecting = False
    engine.settle()
    assert not any(session.phase for session in engine.sessions.values())


def test_a_line_without_a_session_is_no_request_of_one_with_an_empty_id() -> None:
    engine, link = ready("filter|smtp-in|commit")
    engine.from_smtpd(b"report|0.7|%b|smtp-in|link-connect||host\n" % TIME)
    assert list(link.sessions) == [b""]
    engine.from_smtpd(b"filter|0.7|%b|smtp-in|commit\n" % TIME)
    assert not link.out
    assert not link.open


def test_lines_with_other_ids_belong_to_no_message_of_the_session() -> None:
    """The first 16 bytes of their session are one that is known."""
    engine, _ = ready("filter|smtp-in|data-line")
    engine.from_smtpd(b"".join(step(0, ("link-connect",), (), TIME)))
    start = b"filter|0.7|%b|smtp-in|data-line|" % TIME
    engine.from_smtpd(start + sid(0) + b"x" * 17 + b"|.\n")
    assert engine.sessions[sid(0)].message is None
    engine.from_smtpd(start + sid(0) + b"|short|" + b"y" * 10 + b"|.\n")
    message = engine.sessions[sid(0)].message
    assert message is not None
    assert message.prefix == b"filter-dataline|" + sid(0) + b"|short|"


def test_two_answers_that_are_as_long_together_as_two_should_be() -> None:
    engine, link = started()
    one, two = (b"filter-result|%b|%b" % (sid(n), TOKENS["ehlo"]) for n in (0, 1))
    engine.from_program(link, one + b"|x|proceed\n" + two[:-2] + b"|proceed\n")
    assert "answer without a request" in link.fault or "unknown decision" in link.fault
    assert not engine.answers


def test_one_answer_twice_in_one_read() -> None:
    engine, link = started()
    answer = b"filter-result|%b|%b|proceed\n" % (sid(0), TOKENS["ehlo"])
    engine.from_program(link, answer + answer)
    assert "answer without a request" in link.fault
    assert engine.answers == [answer]
    engine.lost(link, link.fault)
    assert [row.split(b"|")[1] for row in engine.answers] == [sid(0), sid(1)]


def test_a_second_dot_in_one_read_of_smtpd() -> None:
    engine, link = ready("filter|smtp-in|data-line")
    engine.from_smtpd(
        b"".join(step(0, ("link-connect", "data-line"), [b"a", b".", b"b", b"."], TIME))
    )
    given = b"".join(link.out)
    assert [row.rsplit(b"|", 1)[1] for row in given.splitlines()] == [b"a", b"."]
    engine.from_program(link, answers(given, {}))
    assert b"".join(engine.lines).count(b"|.\n") == 1


def test_messages_that_take_turns_on_their_way_back_are_no_flood() -> None:
    engine, link = ready("filter|smtp-in|data-line")
    body = [b"x" * 10_000] * 50
    count = 40
    size = sum(map(len, body))
    assert count * size > GROWTH + GROWTH_FACTOR * size, "if each were charged with all"
    returned = []
    for number in range(count):
        rows = step(number, ("data-line",), body, TIME)
        for row in rows:  # one message after the other
            engine.from_smtpd(row)
        start = b"filter-dataline|%b|%b|" % (sid(number), TOKENS["data-line"])
        returned.append([start + line + b"\n" for line in body])
    for turn in zip(*returned, strict=True):
        engine.from_program(link, b"".join(turn))
    assert not link.fault


def test_a_report_of_a_session_with_a_short_id_is_not_one_of_another_session() -> None:
    engine, link = started()
    before = list(engine.sessions)
    rest = b"|abcd|0a0b0c0d|ok|a@example.net\n"
    assert rest[17:18] == b"|", "the id would end there if it had its usual length"
    engine.from_smtpd(b"report|0.7|%b|smtp-in|tx-mail%b" % (TIME, rest))
    assert list(engine.sessions) == [*before, b"abcd"]
    assert not link.fault


BACK = tuple(b"filter-dataline|%b|%b|" % (sid(n), TOKENS["data-line"]) for n in (0, 1))


def with_messages(*registrations: str) -> tuple[Engine, Link]:
    """An engine with two messages, of sessions 0 and 1; the first is complete."""
    engine, link = ready("filter|smtp-in|data-line", "filter|smtp-in|ehlo", *registrations)
    for number in (0, 1, 2):
        engine.from_smtpd(b"".join(step(number, ("link-connect",), (), TIME)))
    for number, body in enumerate(([b"a", b"."], [b"b"])):
        engine.from_smtpd(b"".join(step(number, ("data-line",), body, TIME)))
    engine.from_smtpd(b"".join(step(2, ("ehlo",), (), TIME)))
    return engine, link


def written(engine: Engine) -> bytes:
    """What smtpd gets: answers first, since they may overtake lines."""
    return b"".join([*engine.answers, *engine.lines])


ANSWER = b"filter-result|%b|%b|" % (sid(2), TOKENS["ehlo"])
ONE, TWO = BACK


@pytest.mark.parametrize("wire", [b"proceed\n", b"reject|550 5.7.1 no\n", b"junk\n"])
@pytest.mark.parametrize(
    "rows",
    [
        [ONE + b"a\n", ANSWER, TWO + b"b\n"],
        [ONE + b"a\n", TWO + b"b\n", ONE + b".\n", ANSWER],
        [ONE + b"a\n", ANSWER, TWO + b"b\n", ONE + b".\n", TWO + b"b\n"],
        [ANSWER, ONE + b"a\n", TWO + b"b\n", ONE + b".\n"],
        [TWO + b"b\n", ONE + b"a\n", TWO + b"x\n", ONE + b".\n", ANSWER],
    ],
)
def test_lines_of_messages_and_an_answer_in_one_read(rows: list[bytes], wire: bytes) -> None:
    rows = [row + wire if row is ANSWER else row for row in rows]
    engine, link = with_messages()
    engine.from_program(link, b"".join(rows))
    assert not link.fault
    out = written(engine).splitlines(keepends=True)
    assert out[0] == ANSWER + wire
    assert by_session(out, 1) == by_session(rows, 1)


@pytest.mark.parametrize("fields", [2, 3])
def test_an_answer_without_some_fields(fields: int) -> None:
    engine, link = with_messages()
    engine.from_program(link, b"|".join(ANSWER.split(b"|")[:fields]) + b"\n")
    assert link.fault.startswith("incomplete answer: filter-result")
    assert not engine.answers


@pytest.mark.parametrize(
    "rows",
    [
        [TWO + b".\n"],
        [TWO + b"b\n", TWO + b".\n"],
        [ONE + b"a\n", TWO + b".\n", ONE + b".\n"],
    ],
)
def test_the_end_of_a_message_before_smtpd_has_ended_it(rows: list[bytes]) -> None:
    engine, link = with_messages()
    engine.from_program(link, b"".join(rows))
    assert link.fault.startswith("end of a message before its end: filter-dataline|")
    assert TWO + b".\n" not in written(engine)


def test_a_line_without_an_end() -> None:
    engine, link = with_messages()
    for _ in range(4):
        engine.from_program(link, b"x" * (MAX_LINE // 4))
    assert link.fault == ""
    engine.from_program(link, b"x")
    assert link.fault == "line without an end: " + "x" * 60


@pytest.mark.parametrize("line", [b"y" * 5000, b"y" * 5000 + b"\0"])
def test_a_flood(line: bytes) -> None:
    engine, link = with_messages()
    flood = (ONE + line + b"\n") * 100
    for _ in range(GROWTH // len(flood)):
        engine.from_program(link, flood)
    assert link.fault == ""
    for _ in range(3):
        engine.from_program(link, flood)
    assert link.fault.startswith("flood of lines: filter-dataline|")
    assert len(written(engine)) < GROWTH + 2 * len(flood)


def test_a_registration_that_smtpd_would_exit_on() -> None:
    engine, link = Engine(nowhere()), Link()
    engine.attach(link)
    engine.from_smtpd(CONFIG)
    engine.from_program(link, b"register|filter|smtp-in|lunch\nregister|ready\n")
    assert link.fault == "registration of an unknown event: register|filter|smtp-in|lunch"
    assert not link.ready
    assert engine.answers == []


def test_a_line_as_long_as_the_final_dot() -> None:
    """The first lines of a message, which arrive in one read."""
    engine, link = ready("filter|smtp-in|data-line")
    engine.from_smtpd(b"".join(step(0, ("link-connect",), (), TIME)))
    for body in ([b"a", b"b"], [b"c", b"."]):
        engine.from_smtpd(b"".join(step(0, ("data-line",), body, TIME)))
    given = b"".join(link.out)
    assert [row.rsplit(b"|", 1)[1] for row in given.splitlines()] == [b"a", b"b", b"c", b"."]
    engine.from_program(link, answers(given, {}))
    assert engine.lines[-1].endswith(b"|.\n")
