"""Tables of regular expressions: many patterns, hostile patterns, hostile keys."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.errors import ConfigError
from smtpd_filters.tables import RegexTable, automaton
from smtpd_filters.tables.patterns import _Patterns
from tests.loading import loaded

if TYPE_CHECKING:
    from pathlib import Path

# What stalls an engine that backtracks, for minutes to ages, on 255 bytes.
EXPLOSIVE = [
    "(a+)+$",
    "(a+)+b$",
    "^(a|a)*$b",
    "(a|aa)+x$",
    "(a|b|ab)*bc$",
    "([a-z]+)*[0-9]$",
    "(.*)*(.*)*(.*)*x",
    ".*a.*b.*c.*d.*e.*f",
    "^[^.]*[0-9]+-[0-9]+.*[0-9]+.*\\.dyn\\.",
    "a*a*a*a*a*a*a*a*a*a*b",
    "(a?){100}a{100}x",
    "(a{0,30}){0,30}b",
    "(([a-z0-9]+-?)+\\.)+example$",
    "[ab]*a[ab]{250}$",
    "([a-z]{1,63}\\.){1,60}x",
    "(a*b*c*){60}x",
    "((a|b)*c|(a|b)*d)*e$",
]
HOSTILE = [
    "a" * 255,
    "a" * 254 + "!",
    "ab" * 127,
    "abcdef" * 42,
    "1-" * 127,
    "a." * 127,
    ("a" * 62 + ".") * 4,
    "".join(chr(97 + (n * n + n // 3) % 3) for n in range(255)),
]


def operations(table: RegexTable) -> int:
    """Count the rules that are evaluated for keys without cached states."""
    count = 0

    class Counted(list[tuple[int, int]]):
        def __iter__(self):  # type: ignore[no-untyped-def]  # noqa: ANN204  # the list's own type
            nonlocal count
            for rule in super().__iter__():
                count += 1
                yield rule

    for _, group in table._content._groups:
        group._rules = Counted(group._rules)
    worst = 0
    for key in HOSTILE:
        for _, group in table._content._groups:
            group._forget()
        count = 0
        table.match(key)
        worst = max(worst, count)
    return worst


@pytest.mark.parametrize("pattern", EXPLOSIVE)
def test_work_is_bounded(pattern: str) -> None:
    """The documented bound: at most `COST_MAX` operations a byte, whatever the key."""
    table = RegexTable.of([pattern])
    assert operations(table) <= 256 * automaton.COST_MAX


def test_hostile_names_do_not_stall() -> None:
    """All of the above in a process of its own, which a timer kills if a match hangs."""
    code = (
        "import signal, sys\n"
        "from smtpd_filters.tables import RegexTable\n"
        "signal.setitimer(signal.ITIMER_VIRTUAL, 20)\n"
        f"tables = [RegexTable.of([p]) for p in {EXPLOSIVE!r}] + [RegexTable.of({EXPLOSIVE!r})]\n"
        f"print(sum(t.match(k) is not None for t in tables for k in {HOSTILE!r}))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert int(run.stdout) > 0


def test_hostile_answers() -> None:
    assert RegexTable.of(["(a+)+b$"]).match("a" * 255) is None
    assert RegexTable.of(["(a+)+b$"]).match("a" * 254 + "b")
    assert RegexTable.of([".*a.*b.*c.*d.*e.*f"]).match("abcdef")
    assert RegexTable.of(["[ab]*a[ab]{250}$"]).match("b" * 4 + "a" + "b" * 250)
    assert RegexTable.of(["[ab]*a[ab]{250}$"]).match("b" * 255) is None


def test_first_entry_of_the_table() -> None:
    table = RegexTable.of(["x", "b$", "^a", "."])
    assert table.match("ab") == "b$"
    assert table.match("ax") == "x"
    assert table.match("ac") == "^a"
    assert table.match("c") == "."
    assert table.match("") is None
    assert RegexTable.of(["x", "y*", "z"]).match("z") == "y*"
    assert RegexTable.of(["z", "y*"]).match("z") == "z"
    assert RegexTable.of(["z", "^$"]).match("") == "^$"
    assert RegexTable("{}").match("x") is None


def test_key_length() -> None:
    table = RegexTable.of(["a$"])
    assert table.match("a" * 1023)
    assert table.match("a" * 1024) is None
    assert table.match("é" * 511 + "a")
    assert table.match("é" * 512 + "a") is None


def test_key_that_is_not_encodable() -> None:
    """UTF-7 can write such keys: they are no way round a table."""
    table = RegexTable.of([r"\.exe$"])
    assert table.match("a\ud800.EXE")
    assert table.match("\ud800" * 1019 + ".exe")
    assert table.match("\ud800\udcff") is None


def test_bad_pattern_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "patterns"
    path.write_text("# good\n^ok$\n\n(a\n")
    with pytest.raises(ConfigError) as caught:
        RegexTable(f"file:{path}")
    assert str(caught.value) == f"{path}:4: unmatched ( (at character 3): '(a'"


def test_total_cost_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "patterns"
    path.write_text("(a*b*c*){60}\n" * 100)
    with pytest.raises(ConfigError, match=f"^{path}:[0-9]+: table takes more than 8000 oper"):
        RegexTable(str(path))


def test_many_patterns_share_automata() -> None:
    table = RegexTable.of([rf"\.dyn{n}\.example$" for n in range(2000)])
    assert len(table) == 2000
    assert table.match("a.dyn1999.example") == r"\.dyn1999\.example$"
    assert table.match("a.dyn7.example") == r"\.dyn7\.example$"
    assert table.match("a.dyn2000.example") is None
    assert 20 < len(table._content._groups) < 50
    assert sum(group.size for _, group in table._content._groups) > 2000 * 14


def test_pattern_larger_than_a_group() -> None:
    table = RegexTable.of(["a", "(b{100}){20}", "c"])
    assert [group.size for _, group in table._content._groups] == [1, 2000, 1]
    assert table.match("c") == "c"


def held(table: RegexTable) -> int:
    """Count the reachable states, which take memory."""
    waiting = [group._start for _, group in table._content._groups]
    seen: set[int] = set()
    while waiting:
        state = waiting.pop()
        if id(state) not in seen:
            seen.add(id(state))
            waiting += state.values()
    return len(seen)


def test_memory_is_bounded() -> None:
    class Forgetful(_Patterns):
        memory = 10

    class Small(RegexTable):
        contents = Forgetful

    small = Small.of(["a[ab]{5}c", "b[ab]{4}$"])
    large = RegexTable.of(["a[ab]{5}c", "b[ab]{4}$"])
    for number in range(512):
        key = f"{number:09b}c".translate({48: "a", 49: "b"})[number % 3 :]
        for text in key, key[:-1]:
            assert small.match(text) == large.match(text)
            assert held(small) <= 10 + len(text)
    assert held(large) > 30


# Where Python's syntax and POSIX's agree; without line breaks, so does the meaning of $.
alike = st.lists(
    st.builds(
        "{}{}".format,
        st.sampled_from(["a", "b", ".", "[ab]", "[^b]", "(a|b)", "(ab)", "(^|a)", "(b|$)"]),
        st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,3}"]),
    ).filter(lambda text: "^|" not in text or text.endswith(")")),
    min_size=1,
    max_size=5,
).map("".join)


@given(st.lists(alike, min_size=1, max_size=6), st.lists(st.text("abc", max_size=8), max_size=4))
def test_same_as_re(entries: list[str], keys: list[str]) -> None:
    table = RegexTable.of(entries)
    for key in ("", *keys):
        expected = next((e for e in entries if re.search(e, key)), None)
        assert table.match(key) == expected


def test_an_empty_table_loads_at_once_what_its_first_entry_needs() -> None:
    empty = loaded("from smtpd_filters.tables import RegexTable; RegexTable.of([])")
    assert empty == loaded("from smtpd_filters.tables import RegexTable; RegexTable.of(['^a'])")
