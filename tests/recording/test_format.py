from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.errors import ConfigError
from smtpd_filters.recording import Recording
from smtpd_filters.recording.format import (
    END,
    FROM_FILTER,
    FROM_SMTPD,
    REMARK,
    encode_entry,
    encode_meta,
)
from tests.effort import SHARE
from tests.loading import loaded

FIXTURES = sorted((Path(__file__).parents[2] / "fixtures" / "protocol").glob("*/*.session"))

SMALL = (
    b"# server: OpenSMTPD 7.8.0p1\n"
    b"# client: one: two\n"
    b"# policy: proceed\n"
    b"< config|smtpd-version|7.8.0-portable\n"
    b"< config|protocol|0.7\n"
    b"< config|ready\n"
    b"> register|ready\n"
    b"# a remark: here\n"
    b"< report|0.7|1.5|smtp-in|link-connect|00000000000000a1|x|pass|1.2.3.4:5|1.2.3.4:25\n"
    b"< filter|0.7|1.6|smtp-in|data-line|00000000000000a2|0000000000000001|caf\xe9\r|\n"
    b"> filter-dataline|00000000000000a2|0000000000000001|caf\xe9\r|\n"
    b"# EOF on stdin\n"
)


def test_fixtures_of_both_servers_exist() -> None:
    assert {path.parent.name for path in FIXTURES} == {"6.8.0p2", "7.8.0p1"}
    assert len(FIXTURES) > 100


def test_each_fixture_is_described() -> None:
    readme = FIXTURES[0].parent.parent.parent / "README.md"
    described = re.findall(r"^\| `(.+?)` \| .+ \|$", readme.read_text(), re.MULTILINE)
    assert sorted(described) == sorted({path.stem for path in FIXTURES})


@pytest.mark.parametrize(
    "path", FIXTURES[::SHARE], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_fixture_round_trips(path: Path, tmp_path: Path) -> None:
    recording = Recording.read(path)
    copy = tmp_path / "copy"
    recording.write(copy)
    assert copy.read_bytes() == path.read_bytes()
    assert list(recording.meta) == ["server", "client", "policy"]
    assert recording.server_version == path.parent.name
    assert recording.protocol == {"6.8.0p2": "0.6", "7.8.0p1": "0.7"}[path.parent.name]
    assert recording.entries[-1] == (REMARK, END)
    assert recording.sessions()


def test_parts() -> None:
    recording = Recording.read(SMALL)
    assert recording.meta == {
        "server": "OpenSMTPD 7.8.0p1",
        "client": "one: two",
        "policy": "proceed",
    }
    assert recording.entries[3] == (FROM_FILTER, b"register|ready")
    assert recording.entries[4] == (REMARK, b"a remark: here")
    assert recording.from_filter() == [
        b"register|ready",
        b"filter-dataline|00000000000000a2|0000000000000001|caf\xe9\r|",
    ]
    assert len(recording.to_filter()) == 5
    assert recording.sessions() == ["00000000000000a1", "00000000000000a2"]
    assert recording.to_bytes() == SMALL


def test_two_sessions_of_a_real_recording() -> None:
    path = next(path for path in FIXTURES if path.stem == "concurrent-2")
    assert len(Recording.read(path).sessions()) == 2


def test_version_without_head_is_smtpds_own() -> None:
    recording = Recording.read(b"< config|smtpd-version|6.8.0p2\n< config|ready\n")
    assert recording.server_version == "6.8.0p2"
    assert recording.protocol is None


def test_version_unknown() -> None:
    recording = Recording.read(b"< config\n< config|protocol\n< config|ready\n")
    assert recording.server_version is None
    assert recording.protocol is None
    assert recording.sessions() == []


def test_protocol_by_first_event() -> None:
    assert Recording.read(b"< config|ready\n< filter|0.6|1|smtp-in|x\n").protocol == "0.6"
    assert Recording.read(b"< report|\n").protocol == ""


@pytest.mark.parametrize(
    ("version", "session"),
    [("0.4", "bb"), ("0.5", "aa"), ("0.7", "aa"), ("1.0", "aa"), ("x", "aa"), ("0.x", "aa")],
)
def test_tokens_precede_sessions_before_0_5(version: str, session: str) -> None:
    line = f"< filter|{version}|1|smtp-in|helo|aa|bb|name\n"
    assert Recording.read(line.encode()).sessions() == [session]


def test_a_line_without_a_session_is_ignored() -> None:
    assert Recording.read(b"< filter|0.7|1|smtp-in|helo|aa\n< report|0.7|1\n").sessions() == []


def test_a_repeated_key_is_a_remark() -> None:
    content = b"# a: 1\n# a: 2\n# b: 3\n"
    recording = Recording.read(content)
    assert recording.meta == {"a": "1"}
    assert recording.entries == [(REMARK, b"a: 2"), (REMARK, b"b: 3")]
    assert recording.to_bytes() == content


def test_invalid_utf_8_survives_in_the_head() -> None:
    content = b"# client: \xff\xfe caf\xc3\xa9\r\n"
    assert Recording.read(content).to_bytes() == content


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"< a\n\n", "x.session:2: not a recording"),
        (b"# a: b\nfoo\n", "x.session:2: not a recording"),
        (b"<a\n", "x.session:1: not a recording"),
        (b"> a\n> b", "x.session:2: the last line is cut off"),
    ],
)
def test_errors_name_the_line(content: bytes, place: str) -> None:
    with pytest.raises(ConfigError, match=f"^{place}"):
        Recording.read(content, "x.session")


def test_errors_name_the_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ConfigError, match=f"^{missing}: No such file"):
        Recording.read(missing)
    with pytest.raises(ConfigError, match=f"^{missing}/below: No such file"):
        Recording().write(missing / "below")
    broken = tmp_path / "broken"
    broken.write_bytes(b"?\n")
    with pytest.raises(ConfigError, match=f"^{broken}:1: not a recording"):
        Recording.read(str(broken))


@pytest.mark.parametrize(
    "recording",
    [
        Recording(entries=[(FROM_SMTPD, b"a\nb")]),
        Recording(entries=[("!", b"a")]),
        Recording(meta={"a b": "c"}),
        Recording(meta={"a": "b\nc"}),
        Recording(entries=[(REMARK, b"a: b")]),
    ],
)
def test_an_irreversible_entry_is_not_written(recording: Recording) -> None:
    with pytest.raises(ValueError, match=r"line break|direction|key"):
        recording.to_bytes()


def test_encoded_pieces_equal_the_file() -> None:
    recording = Recording.read(SMALL)
    pieces = [encode_meta(recording.meta)]
    pieces += [encode_entry(direction, line) for direction, line in recording.entries]
    assert b"".join(pieces) == SMALL


LINES = st.binary().map(lambda line: line.replace(b"\n", b""))


@given(
    meta=st.dictionaries(
        st.from_regex(r"[A-Za-z][A-Za-z0-9_-]*", fullmatch=True),
        st.binary().map(lambda value: value.replace(b"\n", b"").decode("utf-8", "surrogateescape")),
        max_size=4,
    ),
    entries=st.lists(st.tuples(st.sampled_from([FROM_SMTPD, FROM_FILTER, REMARK]), LINES)),
)
def test_write_and_read_are_inverse(meta: dict[str, str], entries: list[tuple[str, bytes]]) -> None:
    recording = Recording(meta, [(FROM_SMTPD, b"config|ready"), *entries])
    again = Recording.read(recording.to_bytes())
    assert list(again.meta.items()) == list(meta.items())
    assert again.entries == recording.entries


@given(st.lists(st.tuples(st.sampled_from([b"# ", b"< ", b"> ", b"# a: ", b""]), LINES)))
def test_everything_readable_round_trips(parts: list[tuple[bytes, bytes]]) -> None:
    content = b"".join(mark + line + b"\n" for mark, line in parts)
    try:
        recording = Recording.read(content)
    except ConfigError:
        return
    assert recording.to_bytes() == content
    recording.sessions()
    assert recording.protocol is None or isinstance(recording.protocol, str)
    assert recording.server_version is None or isinstance(recording.server_version, str)


def test_import_is_cheap() -> None:
    heavy = {"dataclasses", "typing", "pathlib", "json", "logging", "asyncio", "inspect"}
    assert not heavy & loaded("import smtpd_filters.recording")
