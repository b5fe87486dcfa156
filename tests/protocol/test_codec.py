"""Encoding and decoding are inverse, and decoding never raises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.protocol import codec
from smtpd_filters.protocol.events import (
    Config,
    Line,
    Lines,
    Malformed,
    Register,
    Report,
    Request,
    Result,
)
from smtpd_filters.protocol.versions import DIALECTS, Dialect, dialect
from smtpd_filters.protocol.vocabulary import PHASES, REPORTS

S, T = b"7641df9771b4ed00", b"1ef1c203cc576e5d"
ALL = [*DIALECTS.values(), dialect((0, 4))]

IDS = st.integers(1, 16).flatmap(
    lambda n: st.text("0123456789abcdefABCDEF", min_size=n, max_size=n)
)
TIMES = st.sampled_from((b"1576146008.006099", b"0", b"99999999999.999999"))
TEXT = st.binary(max_size=30).filter(lambda text: b"\n" not in text)
#: A field that is not the last: a bar would end it.
PLAIN = TEXT.filter(lambda text: b"|" not in text)


@st.composite
def reports(draw: st.DrawFn) -> Report:
    form = draw(st.sampled_from(list(REPORTS.values())))
    wide = form.fields[form.wide] if form.fields else ""
    if form.name in {"link-auth", "tx-mail", "tx-rcpt"}:
        wide = form.fields[-1]
    values = [draw(TEXT if field == wide else PLAIN) for field in form.fields]
    if form.optional and len(form.fields) > 1:
        # Which of two fields is missing is undecidable if the last one contains bars.
        values[-1] = draw(PLAIN)
    session = draw(IDS).encode()
    return Report((form.name, b"smtp-in", draw(TIMES), session, tuple(values)))


@pytest.mark.parametrize("spoken", ALL, ids=str)
@given(report=reports())
def test_reports_are_read_as_they_were_written(spoken: Dialect, report: Report) -> None:
    line = codec.encode_report(report, spoken)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert codec.decode(line[:-1], spoken) == report


@pytest.mark.parametrize("spoken", ALL, ids=str)
@given(
    phase=st.sampled_from(list(PHASES.values())),
    session=IDS,
    token=IDS,
    time=TIMES,
    argument=TEXT,
)
def test_requests_are_read_as_they_were_written(  # noqa: PLR0913  # all its fields
    spoken: Dialect, phase: object, session: str, token: str, time: bytes, argument: bytes
) -> None:
    request = Request((phase, time, session.encode(), token.encode(), argument))  # type: ignore[arg-type]
    name = request.phase.wire if request.phase else b""
    line = codec.encode_request(request, name, spoken)
    assert codec.decode(line[:-1], spoken) == request


@pytest.mark.parametrize("spoken", ALL, ids=str)
@given(lines=st.lists(TEXT.filter(lambda text: text != b"."), max_size=5), end=st.booleans())
def test_lines_are_read_as_they_were_written(
    spoken: Dialect, lines: list[bytes], *, end: bool
) -> None:
    written = codec.encode_lines(Lines(S, T, lines, end=end), b"1.000001", spoken)
    read = [codec.decode(row, spoken) for row in written.split(b"\n")[:-1]]
    expected = [Lines(S, T, [line], end=False) for line in lines]
    assert read == expected + [Lines(S, T, [], end=True)] * end


@given(
    key=st.text(min_size=1).filter(lambda key: not {"|", "\n"} & {*key} and key != "ready"),
    value=st.text().filter(lambda value: "\n" not in value),
)
def test_the_hand_shake_is_read_as_it_was_written(key: str, value: str) -> None:
    for config in (Config(key, value), Config("ready")):
        line = codec.encode_config(config)
        assert codec.decode(line[:-1], ALL[0]) == config


@pytest.mark.parametrize("spoken", ALL, ids=str)
@given(line=st.binary(max_size=80))
def test_any_line_is_read(spoken: Dialect, line: bytes) -> None:
    for word in (b"", b"report|", b"filter|", b"config|", b"report|0.7|1|smtp-in|tx-mail|"):
        codec.decode(word + line, spoken)
    for word in (b"", b"filter-result|", b"filter-dataline|", b"register|"):
        codec.decode_answer(word + line, spoken)


def say(text: bytes) -> object:
    return codec.decode(text, DIALECTS[0, 7])


HEAD = b"report|0.7|1576146008.006099|smtp-in|"


@pytest.mark.parametrize(
    ("line", "name", "values"),
    [
        (b"link-connect|S|a|b|pass|1:2|3:4", "link-connect", (b"a|b", b"pass", b"1:2", b"3:4")),
        (b"link-auth|S|pass|user|name", "link-auth", (b"pass", b"user|name")),
        (b"link-disconnect|S", "link-disconnect", ()),
        (b"timeout|S", "timeout", ()),
        (b"tx-reset|S", "tx-reset", (b"",)),
        (b"tx-rollback|S|0000000a", "tx-rollback", (b"0000000a",)),
        (b"tx-mail|S|00000000|permfail|", "tx-mail", (b"00000000", b"permfail", b"")),
        (b"filter-response|S|quit|proceed", "filter-response", (b"quit", b"proceed", b"")),
        (
            b"filter-response|S|quit|reject|550 a|b",
            "filter-response",
            (b"quit", b"reject", b"550 a|b"),
        ),
        (b"protocol-client|S|NOOP |x|", "protocol-client", (b"NOOP |x|",)),
    ],
)
def test_reports_as_smtpd_writes_them(line: bytes, name: str, values: tuple[bytes, ...]) -> None:
    assert say(HEAD + line.replace(b"|S", b"|" + S, 1)) == Report(
        (name, b"smtp-in", b"1576146008.006099", S, values)
    )


def test_user_names_hold_bars_before_0_7_as_well() -> None:
    line = b"report|0.6|1.0|smtp-in|link-auth|" + S + b"|user|name|fail"
    read = codec.decode(line, DIALECTS[0, 6])
    assert isinstance(read, Report)
    assert read.values == (b"fail", b"user|name")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"config",
        b"config|x",
        b"report|",
        HEAD + b"tx-mail",
        HEAD + b"tx-mail|nothex|1|ok|a",
        HEAD + b"tx-mail|" + S + b"|00000000|ok",
        HEAD + b"link-connect|" + S,
        HEAD + b"tx-begin|" + S,
        b"filter|",
        b"filter|0.7|1.0|smtp-in|connect|" + S,
        b"filter|0.7|1.0|smtp-in|connect|xyz|" + T + b"|",
        b"filter|0.7|1.0|smtp-in|connect|" + S + b"|" + b"0" * 17 + b"|",
    ],
)
def test_an_invalid_line_is_malformed(line: bytes) -> None:
    read = say(line)
    assert isinstance(read, Malformed)
    assert read.line == line
    assert read.token == b""


@pytest.mark.parametrize("line", [b"smtp-in|connect|S|T", b"smtp-out|connect|S|T|x"])
def test_a_request_that_can_be_answered_is_answered_though_malformed(line: bytes) -> None:
    read = say(b"filter|0.7|1.0|" + line.replace(b"S", S).replace(b"T", T))
    assert isinstance(read, Malformed)
    assert (read.session, read.token) == (S, T)


def test_bars_behind_a_report_without_fields_are_no_matter() -> None:
    assert say(HEAD + b"timeout|" + S + b"|x|y") == say(HEAD + b"timeout|" + S)


def test_a_malformed_line_is_kept_but_not_all_of_it() -> None:
    read = say(b"x" * 10000)
    assert isinstance(read, Malformed)
    assert 50 < len(read.line) < 1000


def test_an_unknown_report_is_nothing_and_an_unknown_phase_something() -> None:
    assert say(HEAD + b"tx-new|" + S + b"|x") is None
    read = say(b"filter|0.7|1.0|smtp-in|new|" + S + b"|" + T + b"|x|y")
    assert read == Request((None, b"1.0", S, T, b"x|y"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"register|ready", Register("ready")),
        (b"register|report|smtp-out|tx-mail", Register("report", "smtp-out", "tx-mail")),
        (b"register|filter|smtp-in|data-line", Register("filter", "smtp-in", "data-line")),
        (b"filter-result|S|T|proceed", Result(S, T, b"proceed", None)),
        (b"filter-result|S|T|reject|550 a|b", Result(S, T, b"reject", b"550 a|b")),
        (b"filter-result|S|T|rewrite|", Result(S, T, b"rewrite", b"")),
        (b"filter-dataline|S|T|", Line(S, T, b"")),
        (b"filter-dataline|S|T|a|b|", Line(S, T, b"a|b|")),
    ],
)
def test_answers_are_read(line: bytes, expected: object) -> None:
    line = line.replace(b"S", S).replace(b"T", T)
    assert codec.decode_answer(line, DIALECTS[0, 7]) == expected


def test_before_0_5_the_token_stands_first() -> None:
    ancient = dialect((0, 4))
    line = b"filter-result|" + T + b"|" + S + b"|proceed"
    assert codec.decode_answer(line, ancient) == Result(S, T, b"proceed", None)
    line = b"filter-dataline|" + T + b"|" + S + b"|x"
    assert codec.decode_answer(line, ancient) == Line(S, T, b"x")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"filter-result",
        b"filter-result|S|T",
        b"filter-result|S|x|proceed",
        b"filter-dataline|S|T",
        b"filter-dataline||T|x",
        b"register",
        b"register|ready|x",
        b"register|report|smtp-in",
        b"register|nothing|smtp-in|x",
        b"report|0.7|1.0|smtp-in|filter-report|S|x",
    ],
)
def test_answers_that_smtpd_would_not_take(line: bytes) -> None:
    line = line.replace(b"S", S).replace(b"T", T)
    assert isinstance(codec.decode_answer(line, DIALECTS[0, 7]), Malformed)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        *((S, True), (b"0", True), (b"ABCDEFabcdef0123", True)),
        *((text, False) for text in (b"", b"0" * 17, b"0x1f", b" 1", b"1\r", b"g")),
    ],
)
def test_ids_are_hexadecimal(text: bytes, known: bool) -> None:  # noqa: FBT001  # a case
    assert codec.is_id(text) is known


def test_events_are_values() -> None:
    one, other = Lines(S, T, [b"x"], end=True), Lines(S, T, [b"x"], end=False)
    assert one == Lines(S, T, [b"x"], end=True)
    assert one != other
    assert one != Line(S, T, b"x")
    assert (one == 1) is False
    assert hash(Line(S, T, b"x")) == hash(Line(S, T, b"x"))
    assert repr(Config("a", "b")) == "Config(key='a', value='b')"
    report = Report(("timeout", b"smtp-in", b"1.0", S, ()))
    assert repr(report).startswith("Report(name='timeout', subsystem=b'smtp-in', time=b'1.0'")
    assert (report.time, report.subsystem) == (b"1.0", b"smtp-in")
    match report:
        case Report(name, _, _, session, _):
            assert (name, session) == ("timeout", S)
    request = Request((PHASES["quit"], b"1.0", S, T, b""))
    assert (request.time, request.argument) == (b"1.0", b"")
