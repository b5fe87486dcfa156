from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.tables.remote.lines import (
    ERROR,
    FOUND,
    LINE_MAX,
    NOT_FOUND,
    VALUE_MAX,
    Answer,
    Host,
    LineError,
    Program,
)

#: Texts that one line can have.
LINES = st.text(st.characters(blacklist_characters="\n\0", blacklist_categories=["Cs"]))


@given(st.lists(st.tuples(LINES, st.sampled_from([FOUND, NOT_FOUND, ERROR]), LINES)), st.data())
def test_a_host_and_a_program_understand_each_other(
    exchanges: list[tuple[str, str, str]], data: st.DataObject
) -> None:
    host, program = Host(), Program()
    assert list(program.receive(host.configuration("domains"))) == []
    assert (program.configured, program.table) == (True, "domains")
    assert list(host.receive(program.registration(["domain", "alias"]))) == []
    assert (host.ready, host.services) == (True, {"domain", "alias"})
    sent, expected = b"", []
    for key, status, value in exchanges:
        number, line = host.request(1.5, "domains", "lookup", "alias", key)
        (request,) = program.receive(line)
        assert (request.verb, request.service, request.key) == ("lookup", "alias", key)
        sent += request.answer(status, value)
        expected.append((number, status, value))
    answers: list[Answer] = []
    while sent:
        size = data.draw(st.integers(1, len(sent)))
        answers += host.receive(sent[:size])
        sent = sent[size:]
    assert [(each.number, each.status, each.value) for each in answers] == expected


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (
            "table|0.1|1.5|t|check|auth|58ac03a5|joe:secret|word",
            ("check", "auth", "joe:secret|word"),
        ),
        ("table|0.1|1.5|t|fetch|source|58ac03a5", ("fetch", "source", "")),
        ("table|0.1|1.5|t|update|58ac03a5", ("update", "", "")),
        ("table|0.1|1.5|t|lookup|alias|58ac03a5|", ("lookup", "alias", "")),
    ],
)
def test_requests_of_smtpd(line: str, request_: tuple[str, str, str]) -> None:
    (found,) = Program().receive(f"{line}\n".encode())
    assert (found.verb, found.service, found.key) == request_
    assert found.number == "58ac03a5"
    assert found.answer("ok").startswith(f"{found.verb}-result|58ac03a5|ok".encode())


def test_requests_behind_an_invalid_line_are_answered() -> None:
    program = Program()
    (found,) = program.receive(b"nonsense\ntable|0.1|1.5|t|check|alias|58ac03a5|joe\n")
    assert found.key == "joe"
    assert program.invalid == "an invalid request, 'nonsense'"


def test_answers_of_other_programs() -> None:
    host = Host()
    lines = b"register|alias\nregister|ready\nlookup-result|1|error\ncheck-result|2|found\n"
    answers = list(host.receive(lines))
    assert [(each.verb, each.number, each.status, each.value) for each in answers] == [
        ("lookup", "1", ERROR, ""), ("check", "2", FOUND, ""),
    ]  # fmt: skip


@given(st.binary(max_size=300))
def test_any_bytes_are_lines_or_an_error(data: bytes) -> None:
    for receive in (Host().receive, Program().receive):
        try:
            found = list(receive(data))
        except LineError as error:
            found = []
            text = str(error)
        else:
            text = "-"
        assert len(found) <= data.count(b"\n")
        assert text.isprintable()


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_lines_are_bounded(ending: bytes) -> None:
    with pytest.raises(LineError, match="too long"):
        list(Host().receive(b"x" * (LINE_MAX + 1) + ending))


def test_a_value_is_one_line() -> None:
    (request,) = Program().receive(b"table|0.1|1.5|t|lookup|alias|58ac03a5|joe\n")
    assert request.answer(FOUND, "a\nb") == (
        b"lookup-result|58ac03a5|error|the value is not one line\n"
    )


def test_a_value_is_whole_or_an_error() -> None:
    """The beginning of an alias is another alias."""
    (request,) = Program().receive(b"table|0.1|1.5|t|lookup|alias|1|joe\n")
    whole = "ü" * (VALUE_MAX // 2)
    assert request.answer(FOUND, whole) == f"lookup-result|1|found|{whole}\n".encode()
    assert request.answer(FOUND, f"{whole}ü") == (
        b"lookup-result|1|error|the value is longer than 2047 bytes\n"
    )
    (check,) = Program().receive(b"table|0.1|1.5|t|check|alias|1|joe\n")
    assert check.answer(FOUND, f"{whole}ü") == b"check-result|1|found\n"


def test_lines_behind_one_that_is_too_long_are_read() -> None:
    program = Program()
    request = b"table|0.1|1.0|t|check|domain|1|example.org\n"
    with pytest.raises(LineError):
        list(program.receive(b"x" * (LINE_MAX + 1)))
    for _ in range(3):
        assert list(program.receive(b"x" * LINE_MAX)) == []
    (found,) = program.receive(b"x\n" + request)
    assert found.key == "example.org"
    received = program.receive(b"x" * (LINE_MAX + 1) + b"\n" + request)
    assert next(received).key == "example.org"
    with pytest.raises(LineError):
        next(received)


def test_only_known_services_are_kept() -> None:
    host = Host()
    list(host.receive(b"".join(b"register|%d\n" % each for each in range(1000))))
    list(host.receive(b"register|alias\nregister|ready\nregister|domain\n"))
    assert host.services == {"alias"}
