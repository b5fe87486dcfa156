"""Table specifications (inline, files, single entries) and the errors of invalid ones."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.errors import ConfigError
from smtpd_filters.tables import (
    AddressTable,
    DomainTable,
    MappingTable,
    NetworkTable,
    RegexTable,
    StringTable,
    Table,
    parse,
)
from smtpd_filters.tables.table import Content
from tests.tables.steps import rejection, run

if TYPE_CHECKING:
    from pathlib import Path

KINDS: list[type[Table]] = [AddressTable, DomainTable, NetworkTable, RegexTable, StringTable]


def entries(spec: str) -> list[str]:
    found: list[str] = []

    def add(text: str) -> int:
        found.append(text)
        return 0

    run(parse(spec).texts(add))
    return found


def pairs(spec: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []

    def add(key: str, value: str) -> int:
        found.append((key, value))
        return 0

    run(parse(spec).pairs(add))
    return found


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{ a, b }", ["a", "b"]),
        ("{a,b}", ["a", "b"]),
        ("  {a b\n\tc,}\n", ["a", "b", "c"]),
        ("{}", []),
        ("{ , }", []),
        ("{ \"a, b\", 'c d' }", ["a, b", "c d"]),
        (r'{ "a\"b" }', ['a"b']),
        (r'{ "\"" "\"\"x" }', ['"', '""x']),
        (r'{ "a\.b" }', [r"a\.b"]),
        (r"{ '\'', '\"' }", ["'", r"\""]),
        (r"{ ^[0-9]{1,3}\. x{2} }", [r"^[0-9]{1,3}\.", "x{2}"]),
        ("{ k=v }", ["k=v"]),
        ("{ it's }", ["it's"]),
        ("one", ["one"]),
        (" one two ", ["one two"]),
        ("ipv6:::1", ["ipv6:::1"]),
    ],
)
def test_inline_list(spec: str, expected: list[str]) -> None:
    assert entries(spec) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{ a = b }", [("a", "b")]),
        ("{a=b,c=d}", [("a", "b"), ("c", "d")]),
        ("{ a = b\n c = d }", [("a", "b"), ("c", "d")]),
        ('{ "a = b" = "c, d" }', [("a = b", "c, d")]),
        ('{ a = "=" }', [("a", "=")]),
        ('{ "=" = b }', [("=", "b")]),
        ("a b", [("a", "b")]),
        ("{}", []),
    ],
)
def test_inline_mapping(spec: str, expected: list[tuple[str, str]]) -> None:
    assert pairs(spec) == expected


@pytest.mark.parametrize(
    "spec",
    ["{ a }", "{ a = }", "{ = b }", "{ a b }", "{ a = b, c }", "{ a b = c }", '{ a "=" b }', "a"],
)
def test_incomplete_inline_mapping(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"^(inline table: entry \d: )?expected"):
        MappingTable(spec)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("", "an empty text is not a table"),
        (" \n", "an empty text is not a table"),
        ("{ a, b", "inline table: no closing brace in '{ a, b'"),
        ("{", "inline table: no closing brace in '{'"),
        ('{ "a }', r"""inline table: no closing quote in '"a '"""),
        ("{ a{1,2 }", "inline table: an entry with unbalanced braces needs quotes: 'a{1,2'"),
        ("{ a} }", "inline table: an entry with unbalanced braces needs quotes: 'a}'"),
        ("{ a, '' }", "inline table: entry 2: empty entry: ''"),
        ("{ a\0b }", r"inline table: entry 1: NUL byte: 'a\\x00b'"),
        ("file:", "file: needs a path"),
        ("db:/etc/mail/x.db", "'db:/etc/mail/x.db': tables of type \"db\" are not supported"),
        ("sqlit:/x", '\'sqlit:/x\': there are no tables of type "sqlit", did you mean "sqlite"?'),
        ("fiel:/x", '\'fiel:/x\': there are no tables of type "fiel", did you mean "file"?'),
        ("FOLDER/missing/file", "FOLDER/missing/file: No such file or directory"),
        ("file:FOLDER/missing/file", "FOLDER/missing/file: No such file or directory"),
        ("file:/etc", "/etc: Is a directory"),
        ("/dev/null", "/dev/null: not a regular file"),
        ("/a\0b", r"'/a\\x00b': embedded null byte"),
    ],
)
def test_unusable(spec: str, reason: str, tmp_path: Path) -> None:
    spec, reason = (text.replace("FOLDER", str(tmp_path)) for text in (spec, reason))
    with pytest.raises(ConfigError) as caught:
        StringTable(spec)
    assert reason.replace("\\\\", "\\") in str(caught.value)


def test_file_list(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(
        b"# @list\n\n one \n\ttwo # said of two\nthree#not a comment\r\n#\n   # x\nfo\xffur  \n"
        b"a#b # c # d\nlast"
    )
    expected = ["one", "two", "three#not a comment", "fo\udcffur", "a#b", "last"]
    assert entries(f"file:{path}") == expected
    assert entries(str(path)) == expected


def test_invalid_utf_8_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"example.org\nb\xfccher.example\n")
    with pytest.raises(ConfigError) as failure:
        DomainTable(f"file:{path}")
    assert str(failure.value) == f"{path}:2: not UTF-8: 'b\\xfccher.example'"


@pytest.mark.parametrize("spec", ["<domains>", " <own-domains> ", "<own_1>"])
def test_a_table_of_smtpd_conf_is_rejected(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"tables of smtpd[.]conf can't be used here; use file:"):
        StringTable(spec)


@pytest.mark.parametrize("spec", ["<>", "<a@example.org>", "<a b>", "<a"])
def test_a_similar_text_is_an_entry(spec: str) -> None:
    assert spec in StringTable(spec)


def test_file_mapping(tmp_path: Path) -> None:
    path = tmp_path / "mapping"
    path.write_text(
        "user1   otheruser\nuser2:\ta, b # two\n[::1] localhost\nUser3 : x\n@example.org y:z\n"
    )
    assert pairs(f"file:{path}") == [
        ("user1", "otheruser"),
        ("user2", "a, b"),
        ("[::1]", "localhost"),
        ("User3", ": x"),
        ("@example.org", "y:z"),
    ]


@pytest.mark.parametrize(
    "line", ["key", "key:", ": value", "[::1 value", "[::1]", "key =", "key =\tvalue"]
)
def test_bad_mapping_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mapping"
    path.write_text(f"a b\n# c\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        MappingTable(f"file:{path}")
    reason = f'expected a key and a value, such as "alice 5", not {line!r}'
    assert str(caught.value) == f"{path}:3: {reason}"


@pytest.mark.parametrize("value", ["\u00a0", "\x85", "\u2003 x"])
def test_only_ascii_blanks_separate_a_key_from_its_value(tmp_path: Path, value: str) -> None:
    """As with isspace(3) in the C locale; str.split has others."""
    path = tmp_path / "mapping"
    path.write_text(f"alice {value}\n")
    assert pairs(f"file:{path}") == [("alice", value)]


def test_the_form_of_an_inline_mapping_is_an_error_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "mapping"
    path.write_text("bob 4\nalice = 5\n")
    reason = """expected a key and a value, such as "alice 5", not 'alice = 5'"""
    with pytest.raises(ConfigError) as caught:
        MappingTable(f"file:{path}")
    assert str(caught.value) == f"{path}:2: {reason}"
    with pytest.raises(ConfigError) as caught:
        MappingTable.of(["bob 4", "alice = 5"])
    assert str(caught.value) == f"built-in table: entry 2: {reason}"
    with pytest.raises(ConfigError) as caught:
        MappingTable("alice = 5")
    shown = "; write key = value in braces and quotes: '{ k = v }'"
    assert str(caught.value) == f"{reason}{shown}"


def test_several_inline_entries_belong_in_braces() -> None:
    with pytest.raises(ConfigError) as caught:
        DomainTable("a.example,b.example")
    assert str(caught.value).endswith("; write several entries in braces and quotes: '{ a, b }'")


def test_values_that_begin_with_an_equals_sign(tmp_path: Path) -> None:
    path = tmp_path / "mapping"
    path.write_text("alice =?utf-8?q?=C3=89?=\nbob ==\n")
    assert pairs(str(path)) == [("alice", "=?utf-8?q?=C3=89?="), ("bob", "==")]


def test_long_entries(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("a\n" + "x" * 1024)
    reason = f"^{path}:2: longer than 1023 bytes: '{'x' * 80}\\.\\.\\.'$"
    for kind in KINDS:
        if kind is NetworkTable:
            continue
        with pytest.raises(ConfigError, match=reason):
            kind(str(path))
    path.write_text("é" * 600)  # bytes count
    with pytest.raises(ConfigError, match="longer"):
        StringTable(str(path))
    path.write_text("x" * 1024 + " value")
    with pytest.raises(ConfigError, match="longer"):
        MappingTable(str(path))
    path.write_text("x" * 1023)
    assert len(StringTable(str(path))) == 1


def test_bad_entry_is_shown_in_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        NetworkTable('{ 10.0.0.1, "a\nb\x1b[31m\udcff" }')
    shown = r"'a\nb\x1b[31m\xff'"
    assert str(caught.value) == f"inline table: entry 2: not UTF-8: {shown}"


def test_fifo_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="not a regular file"):
        StringTable(str(path))


def test_strings() -> None:
    table = StringTable.load("{ Mail.Example.ORG, x, X }")
    assert table.match("mail.EXAMPLE.org") == "Mail.Example.ORG"
    assert table.match("mail.example.com") is None
    assert "X" in table
    assert "y" not in table
    assert len(table) == 2
    assert table.source == "{ Mail.Example.ORG, x, X }"
    assert repr(table) == "<StringTable { Mail.Example.ORG, x, X }: 2 entries>"


def test_only_ascii_letters_are_lowered() -> None:
    table = StringTable("{ ÉX, \N{KELVIN SIGN} }")
    assert table.match("Éx") == "ÉX"
    assert table.match("éx") is None
    assert table.match("k") is None


def test_mapping() -> None:
    table = MappingTable("{ User = Value, user = Last, other = x }")
    assert table.get("USER") == "Last"
    assert table.match("USER") == "user"
    assert table.get("nobody") is None
    assert table.match("nobody") is None
    assert len(table) == 2


def number(text: str) -> None:
    if not text.isdigit():
        raise ValueError("not a number")


def test_checked_values(tmp_path: Path) -> None:
    checked = MappingTable.checking(number)
    assert checked("{ a = 1 }").get("a") == "1"
    assert asyncio.run(checked("{ a = 1 }").look_up_value("A")) == "1"
    with pytest.raises(ConfigError) as caught:
        checked("{ a = 1, b = many }")
    assert str(caught.value) == "inline table: entry 2: invalid value: not a number: 'b'"
    path = tmp_path / "mapping"
    path.write_text("a 1\nb 2\n")
    table = checked.load_by_key(str(path))
    path.write_text("a 2\nb many\n")
    assert (
        rejection(lambda: run(table.reload())) == f"{path}:2: invalid value: not a number: 'b many'"
    )
    assert table.get("a") == "1"
    assert MappingTable("{ a = many }").get("a") == "many"  # other tables are as before


def test_checked_entries(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("1\n2\n")
    table = StringTable.checking(number)(str(path))
    path.write_text("1\nmany\n")
    assert rejection(lambda: run(table.reload())) == f"{path}:2: not a number: 'many'"
    assert table.match("2") == "2"
    path.write_text("3\n")
    run(table.reload())
    assert (table.match("3"), table.match("1")) == ("3", None)
    assert StringTable("{ many }").match("many") == "many"


def test_empty_table_is_true() -> None:
    # `if settings.allow` asks whether there is a table.
    table = StringTable("{}")
    assert len(table) == 0
    assert table


def test_built_in_entries() -> None:
    assert StringTable.of(["a, b"]).match("a, b") == "a, b"
    assert StringTable.of(["a"]).source == "built-in"
    with pytest.raises(ConfigError, match=r"^suffixes table: entry 2: empty entry: ''"):
        StringTable.of(["a", ""], "suffixes")


@pytest.mark.parametrize("missing", ["add", "find", "release", "__len__"])
def test_a_kind_of_content_defines_all(missing: str) -> None:
    with pytest.raises(NotImplementedError):
        getattr(Content(0), missing)(*[""][: missing in {"add", "find"}])


@pytest.mark.parametrize(
    ("kind", "good", "bad", "key"),
    [
        (NetworkTable, "10.0.0.0/8", "10.0.0.0/33", "10.1.2.3"),
        (DomainTable, "*.example.org", "example org", "a.example.org"),
        (AddressTable, "@example.org", "@example org", "a@example.org"),
        (RegexTable, "^a+$", "(a", "aaa"),
        (StringTable, "a", "\0", "a"),
        (MappingTable, "a b", "a", "a"),
    ],
)
def test_reload_is_atomic(tmp_path: Path, kind: type[Table], good: str, bad: str, key: str) -> None:
    path = tmp_path / "table"
    path.write_text("# empty\n")
    table = kind(f"file:{path}")
    assert table.match(key) is None
    path.write_text(good)
    assert run(table.reload())
    assert key in table
    path.write_text(f"# new\n{bad}\n")
    with pytest.raises(ConfigError) as caught:
        run(table.reload())
    assert str(caught.value).startswith(f"{path}:2: ")
    assert key in table
    assert len(table) == 1
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        run(table.reload())
    assert key in table
    path.write_text("")
    with pytest.raises(ConfigError, match="no entries"):
        run(table.reload())
    assert key in table
    path.write_text("# empty")
    assert run(table.reload())
    assert key not in table
    assert len(table) == 0


def test_reload_of_an_inline_table() -> None:
    table = StringTable("{ a }")
    assert not run(table.reload())
    assert not table.is_file
    assert "a" in table


@given(st.lists(st.binary(max_size=60)), st.lists(st.binary(max_size=60)))
def test_hostile_files(
    tmp_path_factory: pytest.TempPathFactory, first: list[bytes], second: list[bytes]
) -> None:
    """Any file loads, or is rejected with its name and a line and changes nothing."""
    path = tmp_path_factory.getbasetemp() / "hostile"
    assert KINDS
    for kind in [*KINDS, MappingTable]:
        path.write_bytes(b"#")
        table = kind(str(path))
        for lines in first, second:
            path.write_bytes(b"\n".join(lines))
            before = len(table), [table.match(line.decode("latin-1")) for line in lines]
            refusal = rejection(partial(run, table.reload()))
            if refusal is not None:
                assert refusal.startswith(f"{path}:")
                assert "\n" not in refusal
                after = len(table), [table.match(line.decode("latin-1")) for line in lines]
                assert after == before


def test_a_word_with_a_path_that_is_like_no_type_is_an_entry() -> None:
    assert StringTable("xyzzyx:/path").match("xyzzyx:/path") == "xyzzyx:/path"


@given(st.text())
def test_hostile_specs(spec: str) -> None:
    if spec.lstrip().startswith(("/", "file:")):
        return
    for kind in [*KINDS, MappingTable]:
        assert "\n" not in (rejection(partial(kind, spec)) or "")


@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters='\0"\\'), min_size=1)))
def test_quoted_entries_are_kept(texts: list[str]) -> None:
    assert entries("{" + ", ".join(f'"{text}"' for text in texts) + "}") == texts


@given(st.text(max_size=1100))
def test_lookups_never_raise(key: str) -> None:
    tables = [kind("{}") for kind in [*KINDS, MappingTable]]
    tables += NetworkTable("{ ::/0 }"), DomainTable("{ *, a*b }"), RegexTable("{ a.b }")
    for table in tables:
        table.match(key)


def test_a_remote_source_is_asked_for_the_key_in_lower_case() -> None:
    assert StringTable.load("{ a }").asked_keys("User") == ("user",)
