from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import textwrap
from importlib import metadata
from shutil import which
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import (
    ENDPOINT,
    INTEGER,
    LIST,
    NUMBER,
    PATH,
    SECONDS,
    SIZE,
    SWITCH,
    TEXT,
    CommonSettings,
    Kind,
    PolicySettings,
    ProcessSettings,
    Settings,
    choice,
    common_options,
    die,
    from_mapping,
    operand,
    option,
    parse_command,
    parse_flags,
    policy_options,
    table,
)
from smtpd_filters.settings.declare import annotations_of
from smtpd_filters.settings.files import read_file
from smtpd_filters.settings.manual import (
    command_text,
    describe,
    help_text,
    mdoc_options,
    mdoc_synopsis,
)
from smtpd_filters.tables import DomainTable, MappingTable, NetworkTable, StringTable
from tests.loading import loaded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Words:
    """A table of words: only inline, and none of them bad."""

    def __init__(self, source: str) -> None:
        self.source = source

    @classmethod
    def load(cls, spec: str) -> Words:
        if "bad" in spec:
            raise ConfigError("/etc/mail/words:3: bad\nword")
        return cls(spec)


#: The ends of errors about names that are like none.
_OWN = (
    "junk-below, action, weight, timeout, limit, check-header, key, nameserver, ours, "
    "password, from"
)
EVERY_KEY = f" (there is {_OWN})"
EVERY_FLAG = (
    " (there is --verbose, --long-lines, --journal, --sandbox, --sub-addr-delim, --on-error, "
    "--deadline, --dry-run, --filter-name, --supervised, "
    f"--{_OWN.replace(', ', ', --')}, --help, --version)"
)


class Example(Settings):
    junk_below = option(INTEGER(0, 100), default=5, flags=("-junkBelow",), help="Junk below it.")
    action = option(choice("junk", "reject"), default="junk", help="What to do")
    weight = option(NUMBER, default=0.5, help="How much it counts.")
    timeout = option(SECONDS(high=60), default=5, flags=("-t",), help="How long to wait.")
    limit = option(SIZE, default=10240, help="At most so many bytes.")
    check_header = option(SWITCH, default=True, help="Look at the header as well.")
    key = option(PATH, default=None, help="A file.")
    nameserver = option(LIST(ENDPOINT(port=53)), default=(), help="Ask this server.")
    ours = option(table(Words), default=Words("{ a, b }"), help="Our domains.")
    password = option(TEXT, default="swordfish", secret=True, help="Never shown.")
    from_ = option(TEXT, default="", help="A keyword as a name.")


class Needy(Settings):
    domain = option(TEXT, required=True, help="Sign for it. This can't be guessed.")


def read(*argv: str, own: type[Any] = Example) -> Any:
    return parse_flags(own, argv, common=CommonSettings, prog="filter-example")[0]


def refused(*argv: str, own: type[Settings] = Example) -> str:
    """Give the error without the program's name; it is one line."""
    with pytest.raises(ConfigError) as caught:
        read(*argv, own=own)
    text = str(caught.value)
    assert text.isprintable()
    start, colon, rest = text.partition(": ")
    assert (start, colon) == ("filter-example", ": ")
    return rest


# Kinds

EXAMPLES: list[tuple[Kind[Any], str, Any]] = [
    (TEXT, "", ""),
    (TEXT, "-x y|z", "-x y|z"),
    (PATH, "/etc/mail/aliases", "/etc/mail/aliases"),
    (INTEGER, "-7", -7),
    (INTEGER, "+7", 7),
    (INTEGER(low=1), "1", 1),
    (INTEGER(1, 5), "5", 5),
    (NUMBER, "1e3", 1000.0),
    (NUMBER(high=0), "-.5", -0.5),
    (SECONDS, "30", 30.0),
    (SECONDS, "0", 0.0),
    (SECONDS, "30s", 30.0),
    (SECONDS, "1.5s", 1.5),
    (SECONDS, "500ms", 0.5),
    (SECONDS, "7ms", 0.007),
    (SECONDS, "5m", 300.0),
    (SECONDS, "1h", 3600.0),
    (SECONDS, "1.5d", 129600.0),
    (SIZE, "512", 512),
    (SIZE, "10k", 10240),
    (SIZE, "10K", 10240),
    (SIZE, "20M", 20 * 1024**2),
    (SIZE, "1g", 1024**3),
    (SIZE, "2T", 2 * 1024**4),
    (SWITCH, "true", True),
    (SWITCH, "T", True),
    (SWITCH, "1", True),
    (SWITCH, "FALSE", False),
    (SWITCH, "f", False),
    (SWITCH, "0", False),
    (choice("a", "b"), "b", "b"),
    (ENDPOINT, "mx_1.example.org:8080", ("mx_1.example.org", 8080)),
    (ENDPOINT, f"{'a' * 63}.example.:25", (f"{'a' * 63}.example.", 25)),
    (ENDPOINT, "192.0.2.1:65535", ("192.0.2.1", 65535)),
    (ENDPOINT, "[2001:db8::1]:25", ("2001:db8::1", 25)),
    (ENDPOINT(port=53), "192.0.2.1", ("192.0.2.1", 53)),
    (ENDPOINT(port=53), "::1", ("::1", 53)),
    (ENDPOINT(port=53), "[::1]", ("::1", 53)),
    (ENDPOINT(53), "ns:5353", ("ns", 5353)),
    (LIST(SECONDS), "1m", (60.0,)),
]

BAD: list[tuple[Kind[Any], str, str]] = [
    (PATH, "", 'expected a path, as a string, not ""'),
    (PATH, "a\0b", 'expected a path, as a string, not "a\\x00b"'),
    (INTEGER, "", 'expected a whole number, not ""'),
    (INTEGER, "1.0", 'expected a whole number, not "1.0"'),
    (INTEGER, "1_000", 'expected a whole number, not "1_000"'),
    (INTEGER, " 1", 'expected a whole number, not " 1"'),
    (INTEGER, "1\n", 'expected a whole number, not "1\\n"'),
    (INTEGER, "\u0663", 'expected a whole number, not "\u0663"'),  # a digit in Arabic script
    (INTEGER, "9" * 5000, f'expected a whole number, not "{"9" * 60}..."'),
    (INTEGER(low=1), "0", 'must be at least 1, not "0"'),
    (INTEGER(high=9), "10", 'must be at most 9, not "10"'),
    (INTEGER(1, 9), "10", 'must be at most 9, not "10"'),
    (NUMBER, "nan", 'expected a number, not "nan"'),
    (NUMBER, "1e999", 'expected a number, not "1e999"'),
    (SECONDS, "-1", 'must be at least 0s, not "-1"'),
    (SECONDS(high=90), "2m", 'must be at most 90s, not "2m"'),
    (SECONDS, "5 m", f'expected {SECONDS.noun}, not "5 m"'),
    (SECONDS, "m", f'expected {SECONDS.noun}, not "m"'),
    (SECONDS, "1e308d", f'expected {SECONDS.noun}, not "1e308d"'),
    (SECONDS, "5w", f'expected {SECONDS.noun}, not "5w"'),
    (SIZE, "1.5k", f'expected {SIZE.noun}, not "1.5k"'),
    (SIZE, "k", f'expected {SIZE.noun}, not "k"'),
    (SIZE(high=2048), "3k", 'must be at most 2k, not "3k"'),
    (SWITCH, "yes", 'expected true or false, not "yes"'),
    (choice("a", "b"), "x", 'invalid choice "x" (choose from a, b)'),
    (ENDPOINT, "a..b:1", 'expected HOST:PORT ([ADDRESS]:PORT for IPv6), not "a..b:1"'),
    (ENDPOINT, ".a:1", 'expected HOST:PORT ([ADDRESS]:PORT for IPv6), not ".a:1"'),
    (ENDPOINT, "..:1", 'expected HOST:PORT ([ADDRESS]:PORT for IPv6), not "..:1"'),
    (ENDPOINT, "host", 'expected a port from 1 to 65535, not "host"'),
    (ENDPOINT, "::1", 'expected a port from 1 to 65535, not "::1"'),
    (ENDPOINT(53), "host:", 'expected a port from 1 to 65535, not "host:"'),
    (ENDPOINT, "host:0", 'expected a port from 1 to 65535, not "host:0"'),
    (ENDPOINT, "host:65536", 'expected a port from 1 to 65535, not "host:65536"'),
    (ENDPOINT, "host:000025", 'expected a port from 1 to 65535, not "host:000025"'),
    (ENDPOINT, "host:\u0662", 'expected a port from 1 to 65535, not "host:\u0662"'),
    (ENDPOINT, ":53", 'expected HOST:PORT ([ADDRESS]:PORT for IPv6), not ":53"'),
    (ENDPOINT, "a b:53", 'expected HOST:PORT ([ADDRESS]:PORT for IPv6), not "a b:53"'),
    (ENDPOINT, "[::1", 'expected HOST:PORT ([ADDRESS]:PORT for IPv6), not "[::1"'),
    (ENDPOINT, "[::1]25", 'expected HOST:PORT ([ADDRESS]:PORT for IPv6), not "[::1]25"'),
    (ENDPOINT, "[mx]:25", 'expected HOST:PORT ([ADDRESS]:PORT for IPv6), not "[mx]:25"'),
    (ENDPOINT(1), "1:2:3", 'expected HOST[:PORT] ([ADDRESS]:PORT for IPv6), not "1:2:3"'),
]


@pytest.mark.parametrize(("kind", "text", "value"), EXAMPLES)
def test_kind_reads(kind: Kind[Any], text: str, value: object) -> None:
    read_value = kind.parse(text)
    assert read_value == value
    assert type(read_value) is type(value)
    kind.check(read_value)
    assert kind.parse(kind.show(read_value)) == read_value


@pytest.mark.parametrize(("kind", "text", "reason"), BAD)
def test_kind_refuses(kind: Kind[Any], text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}\\Z"):
        kind.parse(text)


@pytest.mark.parametrize("host", [f"{'a' * 64}.example", f"www.{'a' * 64}", "a..b", "."])
def test_a_host_that_no_resolver_takes(host: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        ENDPOINT.parse(f"{host}:25")


HOSTS = st.from_regex(
    r"[a-z0-9_-]{1,9}(\.[a-z0-9_-]{1,9}){0,2}", fullmatch=True
) | st.ip_addresses().map(str)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES: list[tuple[Kind[Any], st.SearchStrategy[Any]]] = [
    (TEXT, st.text()),
    (PATH, st.text(st.characters(exclude_characters="\0"), min_size=1)),
    (INTEGER, st.integers()),
    (NUMBER, FINITE),
    (SECONDS, FINITE.map(abs) | st.integers(0, 10**7).map(float)),
    (SECONDS, st.integers(0, 1000).map(lambda n: n / 1000)),
    (SIZE, st.integers(min_value=0) | st.integers(0, 2000).map(lambda n: n << 20)),
    (SWITCH, st.booleans()),
    (choice("a", "b b", "ü"), st.sampled_from(["a", "b b", "ü"])),
    (ENDPOINT, st.tuples(HOSTS, st.integers(1, 65535))),
    (ENDPOINT(53), st.tuples(HOSTS, st.integers(1, 65535))),
    (LIST(SIZE), st.tuples(st.integers(0))),
]


@pytest.mark.parametrize(("kind", "values"), VALUES)
def test_what_is_shown_reads_back(kind: Kind[Any], values: st.SearchStrategy[Any]) -> None:
    @given(values)
    def check(value: object) -> None:
        assert kind.parse(kind.show(value)) == value
        kind.check(value)

    check()


@given(st.text(), st.sampled_from([kind for kind, _, _ in EXAMPLES]))
def test_any_text_gives_a_value_or_one_line(text: str, kind: Kind[Any]) -> None:
    refusal = ""
    try:
        value = kind.parse(text)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert refusal.isprintable()
    else:
        assert kind.parse(kind.show(value)) == value


def test_times_and_sizes_are_shown_as_people_write_them() -> None:
    assert [SECONDS.show(v) for v in (0, 0.25, 1.5, 30, 300, 5400, 86400, 1e-7)] == [
        "0s", "250ms", "1.5s", "30s", "5m", "90m", "1d", "1e-07s",
    ]  # fmt: skip
    assert [SIZE.show(v) for v in (0, 1000, 2048, 20 << 20)] == ["0", "1000", "2k", "20M"]


def test_narrowing_makes_a_new_kind() -> None:
    assert INTEGER(low=3).low == 3
    assert INTEGER.low is None
    assert SECONDS(high=3).low == 0
    assert SECONDS(low=-1).parse("-1") == -1
    assert (ENDPOINT.metavar, ENDPOINT(1).metavar) == ("HOST:PORT", "HOST[:PORT]")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (choice, "choice"),
        (lambda: choice("a", ""), "choice"),
        (lambda: choice(["a", "b"]), "each argument is a word"),  # type: ignore[type-var]
        (lambda: LIST(SWITCH), "LIST"),
        (lambda: LIST(LIST(TEXT)), "LIST"),
    ],
)
def test_impossible_kinds(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_a_kind_must_read() -> None:
    with pytest.raises(NotImplementedError):
        Kind().parse("")
    with pytest.raises(NotImplementedError):
        type(INTEGER).__mro__[1](0, 1).read("1")


# TOML


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (TEXT, "x", "x"),
        (INTEGER, 5, 5),
        (NUMBER, 5, 5.0),
        (NUMBER, 0.1, 0.1),
        (SECONDS, 5, 5.0),
        (SECONDS, 1e-9, 1e-9),
        (SECONDS, "5m", 300.0),
        (SIZE, 5, 5),
        (SIZE, "5k", 5120),
        (SWITCH, True, True),
        (ENDPOINT(53), "::1", ("::1", 53)),
        (LIST(INTEGER), [], ()),
        (LIST(INTEGER), [1, 2], (1, 2)),
    ],
)
def test_toml(kind: Kind[Any], value: object, expected: object) -> None:
    assert kind.from_toml(value) == expected


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (TEXT, 5, "expected a string, not an integer"),
        (INTEGER, "5", "expected a whole number, not a string"),
        (INTEGER, True, "expected a whole number, not a boolean"),
        (INTEGER, 5.0, "expected a whole number, not a float"),
        (NUMBER, math.inf, 'expected a number, not "inf"'),
        (SIZE, {}, f"expected {SIZE.noun}, not a table"),
        (SWITCH, "true", "expected true or false, not a string"),
        (choice("a"), None, "expected one of the choices, as a string, not a date or time"),
        (LIST(INTEGER), 5, "expected an array, not an integer"),
        (LIST(INTEGER), [5, "x"], "expected a whole number, not a string"),
        (table(Words), ["a"], f"expected {table(Words).noun}, not an array"),
    ],
)
def test_toml_is_strict(kind: Kind[Any], value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}\\Z"):
        kind.from_toml(value)


def test_from_mapping() -> None:
    settings = from_mapping(
        Example, {"junk-below": 7, "nameserver": ["::1"], "from": "x"}, "f.toml: [filter.example]"
    )
    assert settings == Example(
        junk_below=7, nameserver=(("::1", 53),), from_="x", ours=settings.ours
    )
    assert settings.ours is Example().ours


@pytest.mark.parametrize(
    ("mapping", "line"),
    [
        ({"junk_below": 7}, 'unknown key "junk_below", did you mean "junk-below"?'),
        ({"acton": "junk"}, 'unknown key "acton", did you mean "action"?'),
        ({"x\ny": "junk"}, f'unknown key "x\\ny"{EVERY_KEY}'),
        ({"junk-below": 101}, 'junk-below: must be at most 100, not "101"'),
        ({"ours": "bad"}, "ours: /etc/mail/words:3: bad\\nword"),
        ({"password": 5}, "password: invalid value (secret, not shown)"),
    ],
)
def test_from_mapping_refuses(mapping: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Example, mapping, "{f}.toml: [filter.example]")
    assert str(caught.value) == f"{{f}}.toml: [filter.example]: {line}"


def test_a_relative_path_is_shown_with_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    for read_it in (read_file, lambda path: StringTable.load(f"file:{path}")):
        with pytest.raises(ConfigError) as caught:
            read_it("words")
        assert str(caught.value) == f"words: No such file or directory ({gone}/words)"
    gone.rmdir()
    with pytest.raises(ConfigError, match=r"^words: .* \(the current directory is deleted\)$"):
        read_file("words")


def test_a_required_key() -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Needy, {}, "f.toml: [x]")
    assert str(caught.value) == "f.toml: [x]: domain is required"


def test_a_required_table_has_entries(tmp_path: Path) -> None:
    class Listed(Settings):
        ours = option(table(DomainTable), required=True, help="Domains.")
        more = option(table(DomainTable), default=None, help="Domains.")

    for empty in ("{ }", "{,}"):
        wrong = re.escape(f"x: ours: no entries in {empty}")
        with pytest.raises(ConfigError, match=f"^{wrong}$"):
            from_mapping(Listed, {"ours": empty, "more": empty}, "x")
    on_purpose = tmp_path / "ours"
    on_purpose.write_text("# none\n")
    for good in (f"{on_purpose}", "{ example.org }"):
        assert from_mapping(Listed, {"ours": good, "more": "{ }"}, "x").more is not None
    assert Listed(ours=DomainTable.of([])).more is None


def test_the_values_of_a_mapping_are_checked() -> None:
    kind = table(MappingTable, values=INTEGER(low=0))
    assert kind.parse("{ a = 3 }").get("a") == "3"
    reason = "^inline table: entry 1: invalid value: expected a whole number, not \"many\": 'a'$"
    with pytest.raises(ConfigError, match=reason):
        kind.parse("{ a = many }")
    kind.check(MappingTable.of(["a 3"]))
    with pytest.raises(ValueError, match=r"^invalid value: must be at least 0"):
        kind.check(MappingTable.of(["a -3"]))
    with pytest.raises(TypeError, match="only mappings and lists of words"):
        table(NetworkTable, values=INTEGER)


def test_the_entries_of_a_list_of_words_are_checked() -> None:
    kind = table(StringTable, values=INTEGER(low=0))
    assert kind.parse("{ 3 }").match("3") == "3"
    with pytest.raises(ConfigError, match=r"^inline table: entry 2: expected a whole number, "):
        kind.parse("{ 3, many }")
    kind.check(StringTable.of(["3"]))
    with pytest.raises(ValueError, match=r"^must be at least 0"):
        kind.check(StringTable.of(["-3"]))


def test_two_classes_read_one_table() -> None:
    mapping: dict[str, object] = {"domain": "x", "on-error": "tempfail"}
    policy = policy_options(("proceed", "tempfail"))
    assert from_mapping(Needy, mapping, "f", beside=(policy,)).domain == "x"
    assert from_mapping(policy, mapping, "f", beside=(Needy,)).on_error == "tempfail"
    with pytest.raises(ConfigError, match='did you mean "on-error"'):
        from_mapping(Needy, {"onerror": "junk"}, "f", beside=(policy,))


# Flags


@pytest.mark.parametrize(
    "argv",
    [
        ("-junkBelow", "10"),
        ("-junkBelow=10",),
        ("--junkBelow", "10"),
        ("--junk-below", "10"),
        ("--junk-below=10",),
        ("--junk-below=10", "-junkBelow=10"),
    ],
)
def test_both_styles_of_flags(argv: tuple[str, ...]) -> None:
    assert read(*argv).junk_below == 10


def test_a_flag_has_one_value() -> None:
    with pytest.raises(ConfigError) as raised:
        read("--junk-below=9", "-junkBelow=10")
    assert str(raised.value) == (
        'filter-example: -junkBelow: given twice with different values, "9" and "10"; it takes one'
    )
    with pytest.raises(ConfigError, match="--check-header: given twice"):
        read("--check-header", "--check-header=false")
    assert read("--check-header", "--check-header").check_header is True


def test_defaults_hold() -> None:
    assert read() == Example()


def test_switches() -> None:
    assert read("--check-header").check_header is True
    assert read("--check-header=false").check_header is False
    _, common = parse_flags(Example, ["-v", "-t", "1"], common=CommonSettings, prog="x")
    assert common == CommonSettings(verbose=True)


def test_values_may_begin_with_a_dash_or_hold_an_equals_sign() -> None:
    assert read("--from=-t").from_ == "-t"
    assert read("--from", "-5").from_ == "-5"
    assert read("--from", "a=b=c").from_ == "a=b=c"
    assert read("--from=").from_ == ""
    assert read("--from", "").from_ == ""


def test_a_list_grows_and_replaces_its_default() -> None:
    class Listed(Settings):
        server = option(LIST(TEXT), default=("default",), help="Ask it.")

    assert read(own=Listed).server == ("default",)
    assert read("--server", "a", "--server=b", own=Listed).server == ("a", "b")


def test_a_required_flag() -> None:
    assert read("--domain", "x", own=Needy).domain == "x"
    assert refused(own=Needy) == "--domain is required"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--action", "x"], '--action: invalid choice "x" (choose from junk, reject)'),
        (["-junkBelow=x"], '-junkBelow: expected a whole number, not "x"'),
        (["--ours", "bad"], "--ours: /etc/mail/words:3: bad\\nword"),
        (["--check-header=maybe"], '--check-header: expected true or false, not "maybe"'),
        (["--password"], "--password needs a value (TEXT)"),
        (["--action", "--password=x"], "--action needs a value (junk|reject)"),
        (["--action", "--help"], "--action needs a value (junk|reject)"),
        (["-junk", "5"], 'unknown flag -junk, did you mean "-junkBelow"?'),
        (["-timeout", "5"], 'unknown flag -timeout, did you mean "--timeout"?'),
        (["-t5"], 'unknown flag -t5, did you mean "-t"?'),
        (["-tv"], "unknown flag -tv: write -t -v"),
        (["-vt"], "-t needs a value (SECONDS)"),
        (["-vx"], 'unknown flag -vx, did you mean "-v"?'),
        (["--acton=junk"], 'unknown flag --acton, did you mean "--action"?'),
        (["--zzz\n"], f"unknown flag --zzz\\n{EVERY_FLAG}"),
        # Only the dashes are alike, or a few letters.
        (["--motion=junk"], f"unknown flag --motion{EVERY_FLAG}"),
        (["--help=1"], 'unknown flag --help, did you mean "--help"?'),
        (["stray"], 'unexpected argument "stray"'),
        (
            ["--from", "a", "b"],
            'unexpected argument "b" (put quotes around the value of --from if this is part of it)',
        ),
        (["-v", "true"], 'unexpected argument "true"'),
        (["--"], 'unexpected argument "--"'),
        (["-"], 'unexpected argument "-"'),
        ([""], 'unexpected argument ""'),
        (["--from=\udcff", "\udcff"], 'unexpected argument "\\xff"'),
    ],
)
def test_what_is_wrong_is_one_line(argv: list[str], line: str) -> None:
    assert refused(*argv) == line


def test_an_unreadable_table_names_the_file_and_the_line(tmp_path: Path) -> None:
    class Trusting(Settings):
        trusted = option(table(NetworkTable), default=None, help="Never asked.")

    path = tmp_path / "networks"
    assert refused("--trusted", f"file:{path}", own=Trusting).startswith(f"--trusted: {path}: ")
    path.write_text("192.0.2.0/24\nnonsense/99\n")
    assert refused("--trusted", str(path), own=Trusting).startswith(f"--trusted: {path}:2: ")
    path.write_text("192.0.2.0/24\n")
    assert read("--trusted", str(path), own=Trusting).trusted.match("192.0.2.1") == "192.0.2.0/24"


def test_a_bad_secret_is_not_repeated() -> None:
    class Hidden(Settings):
        pin = option(INTEGER, default=None, secret=True, help="Keep it.")

    assert refused("--pin", "12a4", own=Hidden) == "--pin: invalid value (secret, not shown)"


def test_both_classes_want_a_flag() -> None:
    class Greedy(Settings):
        volume = option(INTEGER, default=0, flags=("-v",), help="How loud.")

    with pytest.raises(TypeError, match=r"Greedy: -v is a flag of both verbose and volume$"):
        read(own=Greedy)

    class Late(Settings):
        deadline = option(SECONDS, default=5, help="How long.")

    with pytest.raises(TypeError, match=r"Late: --deadline is a flag of every filter$"):
        read(own=Late)


def test_die(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (ConfigError("filter-x: a\nb"), ConfigError("a\nb"), "a\nb"):
        with pytest.raises(SystemExit) as caught:
            die(error, "filter-x")
        assert caught.value.code == 2
        assert capsys.readouterr() == ("", "filter-x: a\\nb\n")


@pytest.mark.parametrize("flag", ["--help", "-help", "-h"])
def test_help(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_flags(
            Needy,
            ["-v", flag, "--unknown"],
            common=CommonSettings,
            prog="filter-needy",
            description="Needs\na domain.",
        )
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(
        "usage: filter-needy --domain TEXT [option ...]\n\nNeeds a domain.\n\nOptions:\n"
        "  --domain TEXT\n        Sign for it. This can't be guessed. Required.\n\nOptions of"
    )


def test_h_can_be_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    class Signed(Settings):
        headers = option(TEXT, default="", flags=("-h",), help="Sign these.")

    assert read("-h", "from", own=Signed).headers == "from"
    with pytest.raises(SystemExit):
        read("-help", own=Signed)
    assert "-h, --headers TEXT" in capsys.readouterr().out


@pytest.mark.parametrize("installed", [True, False])
def test_version(
    installed: bool,  # noqa: FBT001  # a parameter of the test
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        if not installed:
            raise metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(SystemExit) as caught:
        read("--version")
    assert caught.value.code == 0
    expected = "smtpd-filters 1.2.3" if installed else "smtpd-filters, not installed"
    assert capsys.readouterr().out == f"filter-example ({expected})\n"


# Declarations


def test_attributes_are_values() -> None:
    below: int = Example().junk_below
    key: str | None = Example().key
    assert (below, key) == (5, None)


def test_code_can_give_values() -> None:
    settings = Example(junk_below=7, key="/k").replace(action="reject")
    assert (settings.junk_below, settings.key, settings.action) == (7, "/k", "reject")
    assert settings == Example(junk_below=7, key="/k", action="reject")
    assert settings != Example()
    assert settings != 5
    assert CommonSettings() != common_options()()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"junkbelow": 1}, 'Example: unknown option "junkbelow", did you mean "junk_below"?'),
        ({"junk_below": 101}, "Example.junk_below: 101: must be at most 100"),
        ({"junk_below": None}, "Example.junk_below: None: expected a whole number"),
        ({"junk_below": True}, "Example.junk_below: True: expected a whole number"),
        ({"timeout": "5m"}, "Example.timeout: '5m': expected a number of seconds, such as 300"),
        ({"nameserver": ["::1"]}, "Example.nameserver: ['::1']: expected a tuple"),
        ({"nameserver": ("::1",)}, "Example.nameserver: ('::1',): expected HOST[:PORT]"),
        ({"ours": "{ a }"}, "Example.ours: '{ a }': expected a Words"),
        ({"password": 5}, "Example.password: ***: invalid value (secret, not shown)"),
    ],
)
def test_code_cannot_give_bad_values(values: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        Example(**values)
    assert str(caught.value).startswith(message)


def test_code_must_give_what_is_required() -> None:
    with pytest.raises(TypeError, match=r"^Needy: the option domain is required$"):
        Needy()
    assert Needy(domain="x").domain == "x"


def test_instances_do_not_change() -> None:
    settings = Example()
    with pytest.raises(AttributeError, match=r"Example\.action: settings are immutable"):
        settings.action = "reject"
    with pytest.raises(AttributeError, match=r"Example\.action: settings are immutable"):
        del settings.action
    with pytest.raises(TypeError, match="unhashable"):
        hash(settings)


def test_repr_hides_secrets() -> None:
    text = repr(Example())
    assert text.startswith("Example(junk_below=5, action='junk', weight=0.5, timeout=5, ")
    assert "password=***" in text
    assert "swordfish" not in text


def test_order_and_inheritance() -> None:
    class Base(Settings):
        first = option(TEXT, default="", help="First.")
        second = option(TEXT, default="", help="Second.")

        @property
        def both(self) -> str:
            return self.first + self.second

    class Derived(Base):
        third = option(TEXT, default="", help="Third.")
        first = option(TEXT, default="new", flags=("-f",), help="Changed.")

    assert list(Derived.options) == ["first", "second", "third"]
    assert list(vars(Derived())) == ["first", "second", "third"]
    assert Derived(second="!").both == "new!"
    assert Base().first == ""


def test_an_option_can_be_shared() -> None:
    shared = option(TEXT, default="", flags=("-s",), help="Shared.")

    class One(Settings):
        same = shared

    class Two(Settings):
        same = shared

    assert One.options == Two.options
    assert describe(Two)[0].flags == ("-s", "--same")
    with pytest.raises(TypeError, match=r"Three.other: already declared as the option same"):
        type("Three", (Settings,), {"other": shared})


def declared(name: str = "x", **changes: Any) -> type[Settings]:
    arguments = {"kind": TEXT, "default": "", "help": "Help.", **changes}
    return type("Bad", (Settings,), {name: option(**arguments)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: declared(help=" "), "Bad.x: has no help text"),
        (lambda: declared(kind=str), "Bad.x: <class 'str'> isn't a kind"),
        (lambda: declared(required=True), "Bad.x: needs either a default or required=True"),
        (
            lambda: type("Bad", (Settings,), {"x": option(TEXT, help="Help.")}),  # type: ignore[call-overload]
            "Bad.x: needs either a default or required=True",
        ),
        (lambda: declared(default=5), "Bad.x: invalid default 5: expected a string"),
        (
            lambda: declared(kind=SECONDS(high=1), default=2),
            'Bad.x: invalid default 2: must be at most 1s, not "2s"',
        ),
        (
            lambda: declared(kind=SECONDS, default="5m"),
            "Bad.x: invalid default '5m': expected a number of seconds, such as 300",
        ),
        (
            lambda: declared(kind=SIZE, default="1G"),
            "Bad.x: invalid default '1G': expected a number of bytes, such as 1024",
        ),
        (lambda: declared("_x"), "Bad._x: invalid name of an option"),
        (lambda: declared("camelCase"), "Bad.camelCase: invalid name of an option"),
        (lambda: declared("replace"), "Bad.replace: invalid name of an option"),
        (lambda: declared("options"), "Bad.options: invalid name of an option"),
        (lambda: declared("help"), "Bad.help: '--help' is an invalid flag"),
        (lambda: declared("version"), "Bad.version: '--version' is an invalid flag"),
        (lambda: declared(flags=("x",)), "Bad.x: 'x' is an invalid flag"),
        (lambda: declared(flags=("-",)), "Bad.x: '-' is an invalid flag"),
        (lambda: declared(flags=("---x",)), "Bad.x: '---x' is an invalid flag"),
        (lambda: declared(flags=("-a=b",)), "Bad.x: '-a=b' is an invalid flag"),
        (lambda: declared(flags=("-a b",)), "Bad.x: '-a b' is an invalid flag"),
        (
            lambda: type(
                "Bad",
                (Settings,),
                {
                    "x": option(TEXT, default="", help="Help.", flags=("-both",)),
                    "both": option(TEXT, default="", help="Help."),
                },
            ),
            "Bad: --both is a flag of both x and both",
        ),
        (lambda: type("Bad", (Settings,), {"x": 5}), "Bad.x: must be declared by option()"),
        (
            lambda: type("Bad", (Needy,), {"domain": len}),
            "Bad.domain: must be declared by option()",
        ),
        (
            lambda: type("Bad", (Settings,), {"__annotations__": {"x": int}}),
            "Bad.x: declared without option()",
        ),
    ],
)
def test_bad_declarations(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        make()
    assert str(caught.value) == message


def test_private_names_are_free() -> None:
    class Free(Settings):
        _cache: int
        _other = 5

        @staticmethod
        def helper() -> int:
            return 7

    assert not Free.options
    assert Free.helper() == 7


def test_common_options() -> None:
    common = common_options(("proceed", "tempfail"), "tempfail", 5)
    assert list(common.options) == [
        *("verbose", "long_lines", "journal", "sandbox", "sub_addr_delim"),
        *("on_error", "deadline", "dry_run", "filter_name", "supervised"),
    ]
    assert vars(common()) == {
        "verbose": False,
        "long_lines": "split",
        "journal": None,
        "sandbox": "on",
        "sub_addr_delim": "+",
        "on_error": "tempfail",
        "deadline": 5,
        "dry_run": False,
        "filter_name": None,
        "supervised": False,
    }
    assert issubclass(common, CommonSettings)
    assert issubclass(policy_options(), PolicySettings)
    assert issubclass(CommonSettings, ProcessSettings)
    with pytest.raises(ConfigError, match=r"^x: --on-error: invalid choice \"junk\""):
        parse_flags(Needy, ["--domain=d", "--on-error=junk"], common=common, prog="x")
    with pytest.raises(ConfigError, match=r"^x: --deadline: must be at least 1ms, not \"0\"$"):
        parse_flags(Needy, ["--deadline=0"], common=common, prog="x")
    with pytest.raises(TypeError, match="on_error: invalid default 'junk'"):
        common_options(("proceed",), "junk")


# Texts


class Odd(Settings):
    """What roff, mdoc and Markdown could take for their own."""

    path = option(
        TEXT,
        default='a "b" \\c',
        flags=("-Ar", "-x"),
        help=".Sh is no request, 'nor is this; \\fB isn't bold. Use --path=x, e.g. *this*, `that` "
        + "long " * 40,
    )
    no = option(choice("No", "|", "."), default=".", help="'Quote")
    fl = option(TEXT, default="Fl", help="Really? Yes! (No.) Äpfel")
    bars = option(TEXT, default="a`b", help="a_b <c> [d]")
    long = option(TEXT, default="x" * 1000, help="Long.")
    zero = option(INTEGER, default=0, help="Zero is a default worth showing.")


CLASSES = [Example, Needy, Odd, CommonSettings]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_text_has_every_option(cls: type[Settings]) -> None:
    shown = help_text(cls, ProcessSettings, prog="x")
    assert all(len(line) <= 79 for line in shown.splitlines())
    for text in (shown, mdoc_options(cls).replace("\\-", "-")):
        for described in describe(cls):
            for flag in described.flags:
                assert flag.removeprefix("-") in text
            assert described.help.split()[-1] in text.replace("\\", "")
    assert "swordfish" not in shown + mdoc_options(cls)


def test_describe() -> None:
    described = {d.key: d for d in describe(Example)}
    assert described["junk-below"] == (
        ("-junkBelow", "--junk-below"), "N", False, "5", "5", False, False, "Junk below it.",
        "junk-below",
    )  # fmt: skip
    assert described["action"].help == "What to do."
    assert described["action"].literal
    assert described["timeout"].default == "5s"
    assert described["limit"].default == "10k"
    assert described["ours"].default == "{ a, b }"
    assert described["nameserver"].repeats
    assert [key for key, d in described.items() if not d.default] == [
        "key", "nameserver", "password", "from",
    ]  # fmt: skip
    assert describe(Odd)[4].default == "x" * 61 + "..."
    assert describe(Odd)[5].default == "0"


def test_help_without_options_of_its_own() -> None:
    assert help_text(Settings, ProcessSettings, prog="x").startswith(
        "usage: x [option ...]\n\nOptions of every filter:\n  -v, --verbose\n"
    )


def test_mdoc() -> None:
    assert mdoc_options(Example).startswith(
        ".Bl -tag -width Ds\n"
        ".It Fl junkBelow Ar \\&N , Fl \\-junk\\-below Ar \\&N\n"
        "Junk below it.\nThe default is\n.Ql 5 .\n"
        ".It Fl \\-action Cm junk | reject\n"
        "What to do.\nThe default is\n.Ql junk .\n"
    )


def test_mdoc_of_a_synopsis() -> None:
    class Both(Settings):
        loud = option(SWITCH, default=False, help="Loud.")
        domain = option(TEXT, required=True, help="Domain.")

    assert mdoc_synopsis(Both) == ".Fl \\-domain Ar TEXT\n.Op Fl \\-loud\n"


def test_an_option_that_fills_a_line_may_be_broken_in_the_synopsis() -> None:
    words = [f"word-number-{n}" for n in range(6)]

    class Choosy(Settings):
        which = option(choice(*words), default=words[0], help="Which.")

    assert mdoc_synopsis(Choosy) == f".Oo\n.Fl \\-which Cm {' | '.join(words)}\n.Oc\n"


class Command(Settings):
    """A command that is typed."""

    kind = operand(choice("ham", "spam"), required=True, help="What they are.")
    files = operand(LIST(PATH), default=(), metavar="FILE", help="Where they are.")
    jobs = option(INTEGER(low=1), default=4, help="How many at a time.", flags=("-j",))
    loud = option(SWITCH, default=False, help="Say more.")


def command(*words: str) -> Command:
    return parse_command(Command, words, prog="x", shown=lambda: "help\n")


@pytest.mark.parametrize(
    "words",
    [
        ["spam", "--jobs", "2", "a", "--loud", "-", "b"],
        ["--loud", "-j=2", "spam", "a", "-", "b"],
        ["--jobs", "9", "spam", "a", "-", "-j", "2", "b", "--loud"],  # the last one counts
    ],
)
def test_operands_stand_anywhere_between_flags(words: list[str]) -> None:
    read = command(*words)
    assert read == Command(kind="spam", files=("a", "-", "b"), jobs=2, loud=True)
    assert read.given == {"kind", "files", "jobs", "loud"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "ham|spam is required"),
        (["eggs"], 'ham|spam: invalid choice "eggs" (choose from ham, spam)'),
        (["ham", "--jbos", "2"], 'unknown flag --jbos, did you mean "--jobs"?'),
        (["ham", ""], 'FILE: expected a path, as a string, not ""'),
        (["--jobs", "0", "ham"], '--jobs: must be at least 1, not "0"'),
    ],
)
def test_wrong_words_of_a_command(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        command(*words)
    assert str(raised.value) == f"x: {line}"


def test_more_operands_than_there_are() -> None:
    class One(Settings):
        name = operand(TEXT, default="", help="Name.")

    with pytest.raises(ConfigError, match=r'^x: unexpected argument "b"$'):
        parse_command(One, ["a", "b"], prog="x", shown=str)


@pytest.mark.parametrize(
    ("word", "said"), [("--help", "help"), ("-h", "help"), ("--version", "x (smtpd-filters")]
)
def test_a_command_has_help(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command("ham", word)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(said)


def test_an_operand_is_no_flag_and_no_key() -> None:
    assert Command.options["files"].spellings() == ()
    with pytest.raises(ConfigError, match="unknown key"):
        from_mapping(Command, {"files": ["a"]}, "f")


def test_the_help_of_a_command() -> None:
    shown = command_text(
        Command, prog="x y", description="Do it.", behind="FILE ...", ending="End."
    )
    assert shown == textwrap.dedent(
        """\
        usage: x y [option ...] ham|spam [FILE ...] [-- FILE ...]

        Do it.

        Operands:
          ham|spam
                What they are.
          FILE
                Where they are.

        Options:
          -j, --jobs N
                How many at a time. Default: 4.
          --loud
                Say more.
          --help
                Print this text and exit.
          --version
                Print the version and exit.

        End.
        """
    )


def test_mdoc_of_operands() -> None:
    assert mdoc_synopsis(Command) == (
        ".Op Fl \\-jobs Ar \\&N\n.Op Fl \\-loud\n.Cm \\&ham | spam\n.Op Ar FILE ...\n"
    )
    assert "FILE" not in mdoc_options(Command)


def mandoc(*options: str, page: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["mandoc", *options, str(page)],  # noqa: S607  # from PATH
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )


@pytest.mark.skipif(which("mandoc") is None, reason="mandoc isn't installed")
@pytest.mark.parametrize("cls", CLASSES)
def test_mandoc_has_no_complaint(cls: type[Settings], tmp_path: Path) -> None:
    page = tmp_path / "filter-example.8"
    page.write_text(
        ".Dd January 1, 2020\n.Dt FILTER-EXAMPLE 8\n.Os\n.Sh NAME\n.Nm filter-example\n"
        ".Nd an example\n.Sh DESCRIPTION\nThe options are:\n" + mdoc_options(cls),
        "utf-8",
    )
    lint = mandoc("-T", "lint", "-W", "style", page=page)
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")
    shown = mandoc("-T", "utf8", "-O", "width=900", page=page).stdout
    # Bold and underlined text is struck twice; the second strike shows.
    text = " ".join(re.sub(".\b", "", shown).split())
    for described in describe(cls):
        for word in described.help.split():
            assert word in text
        assert described.default in text


# Cost


def test_nothing_costly_is_imported() -> None:
    costly = (
        "argparse dataclasses inspect typing asyncio ssl tempfile ipaddress pathlib logging json "
        "urllib socket tomllib subprocess difflib textwrap smtpd_filters.settings.manual"
    )
    code = (
        "from smtpd_filters.settings import *\n"
        "class S(Settings):\n"
        "    x = option(SECONDS, default=5, help='X.')\n"
        "parse_flags(S, ['--x=5m', '-v'], common=common_options(), prog='x')\n"
    )
    assert loaded(code).isdisjoint(costly.split())


def test_annotations_of_names_for_type_checkers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.14 evaluates annotations when they are asked for."""

    class Late:
        def __getattribute__(self, name: str) -> object:
            raise NameError("Decision")

    def get_annotations(declared: object, *, format: int) -> dict[str, str]:  # noqa: A002
        assert (type(declared), format) == (Late, 4)
        return {"return": "Decision"}

    module: Any = ModuleType("annotationlib")
    module.Format, module.get_annotations = SimpleNamespace(STRING=4), get_annotations
    monkeypatch.setitem(sys.modules, "annotationlib", module)
    assert annotations_of(Late()) == {"return": "Decision"}
