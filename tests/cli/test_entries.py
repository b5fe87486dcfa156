"""`smtpd-filters store`, on the store of a filter that the tool doesn't know."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters import PROCEED, Filter, Join, Proceed, Put, Session, Store, join
from smtpd_filters.cli import main
from smtpd_filters.cli.entries import shown, typed
from smtpd_filters.stores.sqlite import SQLiteStore
from smtpd_filters.testing import Conversation

KEYS = [
    join("firsttime", b"example.net", b"b@example.org"),
    join("firsttime", b"example.com", b"", b"it's"),
    join("other", b"\xff\x1b"),
]


class Remembers(Filter):
    """Remember some entries."""

    name = "remembers"
    store = Store.setting()

    async def mail_from(self, session: Session, address: str) -> Proceed:
        for key in KEYS:
            await self.store.ask(Put(key, b"\x07x" if session.rdns and address else b"", ttl=90000))
        return PROCEED


@pytest.fixture
def store(tmp_path: Path) -> str:
    address = f"sqlite:{tmp_path}/remembers.sqlite"
    with Conversation(Remembers, "--store", address, "--store-timeout", "25s") as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.net")
        assert smtpd.log == []
    return address


def lines(
    capsys: pytest.CaptureFixture[str], store: str, *words: str, status: int = 0
) -> list[str]:
    assert main(["store", *words, "--store", store]) == status
    out, err = capsys.readouterr()
    assert err == ""
    assert out.isprintable() or out.replace("\n", "").isprintable()
    return sorted(out.splitlines())


def test_all_entries(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = [line.partition(", ") for line in lines(capsys, store, "list", "remembers")]
    assert [line[0] for line in found] == [
        """firsttime example.com '' 'it'"'"'s' value "\\x07x\"""",
        'firsttime example.net b@example.org value "\\x07x"',
        "other '\\xff\\x1b' value \"\\x07x\"",
    ]
    assert {line[2].partition(" ago, ")[2] for line in found} <= {
        "expires in 1d1h",
        "expires in 1d0h",
    }


@pytest.mark.parametrize(
    ("words", "count", "status"),
    [
        (["firsttime"], 2, 0),
        (["firsttime", "example.net"], 1, 0),
        (["firsttime", "example.net", "b@example.org"], 1, 0),
        (["firsttime", "example"], 0, 1),
        (["first"], 0, 1),
        (["first time"], 0, 1),
    ],
)
def test_entries_whose_keys_begin_with_some_parts(
    words: list[str], count: int, status: int, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(lines(capsys, store, "list", "remembers", *words, status=status)) == count


def test_entries_as_json(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = [json.loads(line) for line in lines(capsys, store, "list", "remembers", "--json")]
    assert {tuple(each["key"]) for each in found} == {
        ("firsttime", "example.net", "b@example.org"),
        ("firsttime", "example.com", "", "it's"),
        ("other", "\udcff\x1b"),
    }
    assert found[0]["value"] == "\x07x"
    assert 89000 < found[0]["left"] <= 90000
    assert 0 <= found[0]["age"] < 1000


def test_groups(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def join_two() -> None:
        file = SQLiteStore(store.removeprefix("sqlite:"), timeout=60.0, note=str)
        for member in (b"1", b"2"):
            await file.ask(Join(join("sessions", b"192.0.2.1"), member, 9, ttl=90000))
        await file.aclose()

    asyncio.run(join_two())
    assert lines(capsys, store, "list", "remembers", "sessions") == [
        "sessions 192.0.2.1 group of 2"
    ]
    assert len(lines(capsys, store, "list", "remembers")) == 4
    [found] = lines(capsys, store, "list", "remembers", "sessions", "192.0.2.1", "--json")
    assert json.loads(found) == {"key": ["sessions", "192.0.2.1"], "members": 2}
    lines(capsys, store, "list", "remembers", "sessions", "192.0.2.2", status=1)


def test_an_entry_is_removed(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["forget", "remembers", "firsttime", "example.net", "b@example.org"]
    assert lines(capsys, store, *words) == ["forgotten: firsttime example.net b@example.org"]
    assert lines(capsys, store, *words, status=1) == [
        "not known: firsttime example.net b@example.org"
    ]
    assert len(lines(capsys, store, "list", "remembers")) == 2


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["list"], "NAME is required"),
        (["forget", "remembers", "firsttime"], "forget requires a KEY: all parts, as list prints"),
        (["forget", "remembers", "First", "x"], 'no key begins with "First"'),
    ],
)
def test_a_wrong_command_line(
    words: list[str], error: str, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["store", *words, "--store", store])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"smtpd-filters store: {error}")


@pytest.mark.parametrize(
    "part",
    [b"\xff\x1b", b"\n\t", "j\u202eg \x85".encode(), "\U000e0001".encode(), rb"a\x41\\b", b"\\"],
)
def test_what_is_printed_can_be_pasted(
    part: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pasted.sqlite"
    other = join("pasted", b"user", b"other")

    async def put() -> None:
        file = SQLiteStore(str(path), timeout=60.0, note=str)
        for key in (join("pasted", b"user", part), other):
            await file.ask(Put(key, b"", ttl=90000))
        await file.aclose()

    asyncio.run(put())
    store = f"sqlite:{path}"
    printed = [line.partition(", ")[0] for line in lines(capsys, store, "list", "remembers")]
    [line] = [each for each in printed if each != "pasted user other"]
    words = shlex.split(line)[:3]
    assert len(lines(capsys, store, "list", "remembers", *words)) == 1
    [forgotten] = lines(capsys, store, "forget", "remembers", *words)
    assert forgotten.startswith("forgotten: ")
    assert shlex.split(forgotten)[1:] == words
    assert len(lines(capsys, store, "list", "remembers")) == 1


def test_json_is_taken_as_it_is(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["other", "\udcff\x1b"]
    assert len(lines(capsys, store, "list", "remembers", "--json", *words)) == 1
    escaped = ["other", r"\xff\x1b"]
    lines(capsys, store, "forget", "remembers", "--json", *escaped, status=1)
    lines(capsys, store, "forget", "remembers", "--json", *words)


@given(st.binary(max_size=40))
def test_every_part_is_read_as_it_was_printed(part: bytes) -> None:
    text = shown(part.decode("utf-8", "surrogateescape"))
    assert text.isprintable()
    assert typed(text) == part


@pytest.mark.parametrize("text", ["\\", "\\q", "\\x4", "\\u12", "\\ud800", "\\U00110000", "a\\"])
def test_a_backslash_that_begins_no_escape_stands_for_itself(text: str) -> None:
    assert typed(text) == text.encode()
