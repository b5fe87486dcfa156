from __future__ import annotations

import json
import shlex
import sqlite3
import struct
import subprocess
import sys
from time import monotonic

import pytest

from smtpd_filters.addresses.tags import TAGS
from smtpd_filters.cli import main
from smtpd_filters.cli.store_search import find_delimiter
from smtpd_filters.cli.table import ABSENT, UNAVAILABLE
from smtpd_filters.startup import STRAY
from smtpd_filters.tables.remote.lines import Host
from smtpd_filters.tables.remote.proc import TableProgram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BY_NAME = "SELECT COLUMN FROM users WHERE name = ?"
ENDLESS = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i = ?"
)
TOOL = [sys.executable, "-c", "from smtpd_filters.cli import main; raise SystemExit(main())"]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "mail.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (name TEXT, address TEXT)")
        connection.execute("INSERT INTO users VALUES ('joe', 'joe@example.org'), ('ann', NULL)")
    connection.close()
    return path


def spec(database: Path, kind: str, statement: str) -> str:
    return f"sqlite:{database}?{kind}={statement}"


def query(database: Path, what: str = "address") -> str:
    return spec(database, "query", BY_NAME.replace("COLUMN", what))


def test_get(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "get", query(database), "JOE", "--kind", "mapping", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found.pop("milliseconds") < 10_000
    assert found == {
        "key": "JOE",
        "found": True,
        "entry": "JOE",
        "value": "joe@example.org",
        "from": "sqlite, by key",
        "cause": "",
    }
    assert main(["table", "get", query(database), "bob", "--kind", "mapping"]) == ABSENT
    assert capsys.readouterr().out.startswith("bob: not found (from sqlite, by key, ")
    assert main(["table", "get", "{ 192.0.2.0/24 }", "192.0.2.7", "--kind", "networks"]) == 0
    assert capsys.readouterr().out.startswith("192.0.2.7: found as 192.0.2.0/24 (from memory, ")


def test_tags_begin_as_in_smtpd_conf(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TAGS, "delimiter", "+")
    path = tmp_path / "smtpd.conf"
    path.write_text('smtp sub-addr-delim "-"\n')
    monkeypatch.setattr(
        "smtpd_filters.cli.table.find_delimiter", lambda: find_delimiter((str(path),))
    )
    table = tmp_path / "addresses"
    table.write_text("joe@example.org\n")
    for key, found in (("joe-news@example.org", 0), ("joe+news@example.org", ABSENT)):
        command = ["table", "get", f"file:{table}", key, "--kind", "addresses"]
        assert main(command) == found, capsys.readouterr()


def test_what_is_unavailable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ldap.conf"
    socket = str(tmp_path / "s").replace("/", "%2F")
    lines = (f"url ldapi://{socket}", "basedn x", "filter (a=%u)", "attributes a")
    file.write_text("\n".join(lines))
    for words in (["get", f"ldap:{file}", "a"], ["check", f"ldap:{file}"]):
        assert main(["table", *words]) == UNAVAILABLE
        assert "unavailable: " in capsys.readouterr().out
    assert main(["table", "list", f"ldap:{file}", "--kind", "networks"]) == UNAVAILABLE


def test_list_and_check(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing = spec(database, "list", "SELECT name, address FROM users")
    assert main(["table", "list", listing, "--kind", "mapping"]) == 0
    assert capsys.readouterr().out == "joe joe@example.org\n"
    assert main(["table", "list", "{ a = b, c = d }", "--kind", "mapping", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"key": "a", "value": "b"},
        {"key": "c", "value": "d"},
    ]
    assert main(["table", "check", listing, "--kind", "mapping"]) == 0
    assert capsys.readouterr().out == f"{listing}: 1 entries\n"
    assert main(["table", "check", query(database), "--kind", "mapping"]) == 0
    assert ": answers, in " in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ("get", "{ a }"),
        ("list", "{ a }", "key"),
        ("serve", "{ a }", "--service", "auth"),
        ("serve", "{ a }", "--service", "nonsense"),
        ("serve", "{ a }", "--service", "source"),
        ("serve", "{ a }", "--service", "alias"),
        ("serve", "{ a = b }", "--kind", "mapping", "--service", "domain"),
        ("serve", "file:/missing"),
    ],
)
def test_mistakes(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["table", *words])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("smtpd-filters table: ")


@pytest.mark.parametrize(
    ("content", "flags", "hint"),
    [
        ("joe joe@example.org\n", [], "(--kind mapping fits)\n"),
        ("joe@example.org\n", [], "(--kind addresses fits)\n"),
        ("192.0.2.0/24\n", [], "(--kind networks fits)\n"),
        ("joe joe@example.org\n", ["--kind", "hosts"], "'joe joe@example.org'\n"),
        ("", [], "such as # empty\n"),
    ],
)
def test_a_kind_that_was_not_given(
    content: str, flags: list[str], hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table"
    path.write_text(content)
    with pytest.raises(SystemExit):
        main(["table", "get", f"file:{path}", "joe", *flags])
    assert capsys.readouterr().err.endswith(hint)


def served(*words: str, lines: Sequence[str]) -> list[str]:
    """The lines of a program, between its registration and its end."""
    asked = Host.configuration("t").decode() + "".join(f"{line}\n" for line in lines)
    done = subprocess.run(
        [*TOOL, "table", "serve", *words], input=asked.encode(), capture_output=True, check=True
    )
    assert done.stderr == b""
    return done.stdout.decode().splitlines()


def request(verb: str, service: str, number: int, key: str) -> str:
    return f"table|0.1|1.5|t|{verb}|{service}|{number:08x}|{key}"


def test_services_of_different_kinds(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = database.with_name("sqlite.conf")
    queries = (
        "query_domain SELECT 'example.org' WHERE ? = 'example.org'",
        "query_alias SELECT address FROM users WHERE name = ?",
        "query_mailaddrmap SELECT name FROM users WHERE name = ?",
    )
    file.write_text("\n".join((f"dbpath {database}", *queries)))
    lines = served(
        *(f"sqlite:{file}", "--service", "domain,alias,mailaddrmap"),
        lines=[
            request("check", "domain", 1, "example.org"),
            request("lookup", "alias", 2, "joe"),
            request("lookup", "mailaddrmap", 3, "joe"),
        ],
    )
    assert sorted(lines[-3:]) == [
        "check-result|00000001|found",
        "lookup-result|00000002|found|joe@example.org",
        "lookup-result|00000003|found|joe",
    ]
    for service, value in (("alias", "joe@example.org"), ("mailaddrmap", "joe")):
        assert main(["table", "get", f"sqlite:{file}", "joe", "--service", service]) == 0
        assert capsys.readouterr().out.startswith(f"joe: is {value} (")


def test_serve(database: Path) -> None:
    lines = served(
        *(query(database), "--kind", "mapping", "--service", "alias,mailaddrmap"),
        lines=[
            request("lookup", "alias", 1, "joe"),
            request("lookup", "mailaddrmap", 2, "bob|x"),
            request("lookup", "domain", 3, "example.org"),
            "table|0.1|1.5|t|fetch|alias|00000004",
            "table|0.1|1.5|t|update|00000005",
            "nonsense",
            request("check", "alias", 6, "joe"),
        ],
    )
    assert lines[:3] == ["register|alias", "register|mailaddrmap", "register|ready"]
    assert sorted(lines[3:]) == [
        "check-result|00000006|found",
        "fetch-result|00000004|error|fetch of alias is not offered",
        "lookup-result|00000001|found|joe@example.org",
        "lookup-result|00000002|not-found",
        "lookup-result|00000003|error|lookup of domain is not offered",
        "update-result|00000005|ok",
    ]


def test_serve_never_answers_with_a_part_of_a_value(tmp_path: Path) -> None:
    file = tmp_path / "aliases"
    members = ",".join(f"member-{number}@example.org" for number in range(100))
    file.write_text(f"few {members[:999]}\nall {members}\n")
    lines = served(
        *(f"file:{file}", "--service", "alias"),
        lines=[request("lookup", "alias", 1, "few"), request("lookup", "alias", 2, "all")],
    )
    assert sorted(lines[-2:]) == [
        f"lookup-result|00000001|found|{members[:999]}",
        "lookup-result|00000002|error|the value is longer than 2047 bytes",
    ]


@pytest.mark.parametrize("kind", ["file", "query", "list"])
def test_serve_updates(database: Path, kind: str) -> None:
    """`smtpdctl update table` loads a file and a list again; signals don't end the program."""
    file = database.with_name("names")
    file.write_text("example.net\n")
    statements = {
        "query": "SELECT name FROM users WHERE name = ?",
        "list": "SELECT name FROM users",
    }
    table = f"file:{file}" if kind == "file" else spec(database, kind, statements[kind])
    command = [*TOOL, "table", "serve", table, "--service", "domain"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin and program.stdout  # noqa: PT018  # for the type checker

        def asked(line: str) -> str:
            assert program.stdin and program.stdout  # noqa: PT018  # as above
            program.stdin.write(line + "\n")
            program.stdin.flush()
            return program.stdout.readline().strip()

        assert asked(Host.configuration("t").decode().strip()) == "register|domain"
        assert program.stdout.readline() == "register|ready\n"
        for number in STRAY:
            program.send_signal(number)
        assert (
            asked(request("check", "domain", 1, "example.com")) == "check-result|00000001|not-found"
        )
        file.write_text("example.com\n")
        with sqlite3.connect(database) as connection:
            connection.execute("INSERT INTO users (name) VALUES ('example.com')")
        connection.close()
        assert asked("table|0.1|1.5|t|update|00000002") == "update-result|00000002|ok"
        assert asked(request("check", "domain", 3, "example.com")) == "check-result|00000003|found"
        file.unlink()
        database.unlink()
        answer = asked("table|0.1|1.5|t|update|00000004")
        if kind != "query":
            assert answer.startswith("update-result|00000004|error|")
            assert "No such file" in answer
            again = asked(request("check", "domain", 5, "example.com"))
            assert again == "check-result|00000005|found"
        program.stdin.close()


def test_serve_ends_at_the_start_under_an_smtpd_that_is_too_old(database: Path) -> None:
    # PROC_TABLE_OPEN in a struct imsg_hdr (type, len, flags, peerid, pid); a version, a name.
    frame = (
        struct.pack("=IHHII", 0, 52, 0, 0, 4711)
        + struct.pack("=I", 2)
        + b"mailboxes".ljust(32, b"\0")
    )
    with subprocess.Popen(
        [*TOOL, "table", "serve", query(database, "name"), "--service", "domain"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as program:
        assert program.stdin is not None
        program.stdin.write(frame)
        program.stdin.flush()
        # The input stays open, as smtpd's does.
        assert program.wait(30) == 2
        assert program.stdout is not None
        assert program.stdout.read() == b""
        assert program.stderr is not None
        assert b"smtpd is older than 7.6" in program.stderr.read()


def test_serve_answers_in_time_and_outlives_its_source(database: Path) -> None:
    """smtpd waits for each answer, and ends if the program does."""
    endless = spec(database, "query", ENDLESS)
    started = monotonic()
    lines = served(endless, lines=[request("check", "domain", 1, "example.org")])
    assert lines[-1] == "check-result|00000001|error|no answer within 1.5 s"
    assert monotonic() - started < 30


def test_a_table_of_a_table(
    database: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TableProgram, "timeout", 60.0)  # to start, on a busy machine
    inner = [*TOOL, "table", "serve", query(database, "name"), "--service", "domain"]
    assert main(["table", "get", f"proc:{shlex.join(inner)}", "joe"]) == 0
    assert capsys.readouterr().out.startswith("joe: found as joe (from proc, by key, ")
