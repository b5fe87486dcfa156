"""Reloads in steps: all or nothing, whatever happens to the file meanwhile."""

from __future__ import annotations

import errno
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters import errors
from smtpd_filters.errors import ConfigError, os_reason, uncreated, unreadable
from smtpd_filters.tables import (
    AddressTable,
    DomainTable,
    HostTable,
    IPTable,
    MappingTable,
    NetworkTable,
    RegexTable,
    StringTable,
    Table,
    source,
)
from smtpd_filters.tables.index import PART, Index
from smtpd_filters.tables.table import Content, Tables
from tests.effort import SHARE
from tests.tables.steps import rejection, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: A kind of table, an entry with a number, a key that it covers, and a line that is invalid.
Kind = tuple[type[Table], str, str, str]
KINDS: list[Kind] = [
    (StringTable, "name{}", "name{}", "\0"),
    (MappingTable, "name{} value", "name{}", "name"),
    (DomainTable, "n{}.example.org", "n{}.example.org", "a b"),
    (HostTable, "*.n{}.example.org", "a.n{}.example.org", "[192.0.2.1]"),
    (AddressTable, "user@n{}.example.org", "user@n{}.example.org", "a b@example.org"),
    (AddressTable, "user{}@", "user{}@example.org", "@example..org"),
    (DomainTable, "a*n{}.b*c", "an{}.bc", "a b"),
    (NetworkTable, "2001:db8:{}::/48", "2001:db8:{}::1", "10/33"),
    (IPTable, "192.0.2.{}", "192.0.2.{}", "local"),
    (RegexTable, "^n{}$", "n{}", "(a"),
]
each_kind = pytest.mark.parametrize(("kind", "entry", "key", "wrong"), KINDS)


def lines(entry: str, numbers: range) -> str:
    return "".join(entry.format(number) + "\n" for number in numbers)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "table"


def in_steps(text: str, number: int = 1) -> str:
    """So many steps for each line: comments follow that take longer than these."""
    comment = f"# {'x' * (source.STEP // 3)}\n"
    return "".join(line + 3 * number * comment for line in text.splitlines(keepends=True))


@each_kind
def test_lookups_use_all_old_or_all_new_entries(
    file: Path, kind: type[Table], entry: str, key: str, wrong: str
) -> None:
    del wrong
    file.write_text(lines(entry, range(1, 9)))
    table = kind(f"file:{file}")
    file.write_text(in_steps(lines(entry, range(5, 13))))
    seen = [
        [number for number in range(1, 13) if key.format(number) in table] for _ in table.reload()
    ]
    assert len(seen) > 8
    assert {tuple(each) for each in seen} == {tuple(range(1, 9)), tuple(range(5, 13))}
    assert seen == sorted(seen)
    assert len(table) == 8
    assert run(table.reload()) is False


@pytest.mark.parametrize("given_kind", KINDS)
def test_a_failure_in_any_step_keeps_the_entries(
    file: Path, monkeypatch: pytest.MonkeyPatch, given_kind: Kind
) -> None:
    """A MemoryError, or any other fault, at every point of a reload."""
    kind, entry, key, _ = given_kind
    file.write_text(lines(entry, range(1, 4)))
    table = kind(f"file:{file}")
    real = kind.contents.fill
    error: Exception
    fatal = 0

    def fill(self: Content, given: source.Source) -> Iterator[None]:
        for number, _ in enumerate(real(self, given)):
            if number == fatal:
                raise error
            yield
        raise error

    for error in (MemoryError(), OSError(errno.EIO, "Input/output error"), ConfigError("wrong")):
        for fatal in range(6):
            file.write_text(in_steps(f"# {fatal} {type(error)}\n" + lines(entry, range(6, 9))))
            with monkeypatch.context() as patch:
                patch.setattr(kind.contents, "fill", fill)
                with pytest.raises(type(error)):
                    run(table.reload())
            assert [n for n in range(10) if key.format(n) in table] == [1, 2, 3]
    # The next one reads it.
    assert run(table.reload())
    assert [n for n in range(10) if key.format(n) in table] == [6, 7, 8]


def test_lines_are_whole_wherever_a_read_ends(file: Path) -> None:
    entry = "bücher"
    filling = b"#" * (source._PIECE // 4 - 1) + b"\n"
    for offset in range(len(entry.encode()) + 2):
        file.write_bytes((4 * filling)[offset:] + entry.encode() + b"\nlast\n")
        table = StringTable(str(file))
        assert (table.match(entry), table.match("last"), len(table)) == (entry, "last", 2)


@each_kind
def test_an_invalid_line_is_named(
    file: Path, kind: type[Table], entry: str, key: str, wrong: str
) -> None:
    file.write_text(lines(entry, range(1, 4)))
    table = kind(f"file:{file}")
    for number in range(1, 5):
        text = lines(entry, range(4, 7)).splitlines()
        text.insert(number - 1, wrong)
        file.write_text("\n".join(text))
        with pytest.raises(ConfigError) as caught:
            run(table.reload())
        assert str(caught.value).startswith(f"{file}:{number}: ")
        assert [n for n in range(10) if key.format(n) in table] == [1, 2, 3]


@given(st.data())
def test_a_reload_equals_a_fresh_load(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.getbasetemp() / "equal"
    kind, entry, key, _ = data.draw(st.sampled_from(KINDS))
    some = st.lists(st.integers(0, 255), min_size=1, max_size=20, unique=True)
    table = None
    for _ in range(3):
        numbers = data.draw(some)
        file.write_text("".join(entry.format(number) + "\n" for number in numbers))
        table = table or kind(str(file))
        run(table.reload())
        fresh = kind(str(file))
        keys = [key.format(number) for number in range(256)]
        assert [table.match(each) for each in keys] == [fresh.match(each) for each in keys]
        assert len(table) == len(fresh) == len(numbers)


# -- what is read again ------------------------------------------------------------------------


def counted(table: Table, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what is added to a table from here on."""
    added: list[str] = []
    real = table.contents.add

    def add(self: object, text: str) -> int:
        added.append(text)
        return real(self, text)  # type: ignore[arg-type]

    monkeypatch.setattr(table.contents, "add", add)
    return added


def rewritten(file: Path) -> None:
    file.write_text(file.read_text())


def replaced(file: Path) -> None:
    other = file.with_name("other")
    other.write_text(file.read_text())
    other.replace(file)


def linked(file: Path) -> None:
    other = file.with_name("linked")
    other.write_text(file.read_text())
    file.unlink()
    file.symlink_to(other)


def touched(file: Path) -> None:
    os.utime(file, (1, 1))


@pytest.mark.parametrize("act", [rewritten, replaced, linked, touched])
def test_an_unchanged_file_is_not_parsed(
    file: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], None]
) -> None:
    file.write_text("one\n")
    table = StringTable(f"file:{file}")
    added = counted(table, monkeypatch)
    act(file)
    assert run(table.reload()) is False
    assert not added
    assert "one" in table


def edited_in_the_same_instant(file: Path) -> None:
    before = file.stat()
    file.write_text("two\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_another(file: Path) -> None:
    other = file.with_name("other")
    other.write_text("two\n")
    other.replace(file)


def linked_elsewhere(file: Path) -> None:
    for name in ("one", "two"):
        file.with_name(name).write_text(f"{name}\n")
    file.unlink()
    file.symlink_to("two")


@pytest.mark.parametrize("act", [edited_in_the_same_instant, replaced_by_another, linked_elsewhere])
def test_any_change_is_noticed(file: Path, act: Callable[[Path], None]) -> None:
    file.write_text("one\n")
    table = StringTable(f"file:{file}")
    act(file)
    assert run(table.reload()) is True
    assert "two" in table
    assert "one" not in table


def test_a_file_that_is_written_while_it_is_read(file: Path) -> None:
    """At every point of a reload: the entries stay, and the next reload has the new ones."""
    text = "".join(f"n{number}\n" for number in range(40_000))
    other = text.replace("n7\n", "x7\n")
    done = 0
    stride = 4 * SHARE
    while True:
        file.write_text(text)
        table = StringTable(f"file:{file}")
        file.write_text("first\n" + text)
        steps = table.reload()
        for _ in range(done):
            next(steps, None)
        if len(table) > 40_000:
            break  # it has been read
        # Of the same size and time: the content alone tells.
        before = file.stat()
        file.write_text("first\n" + other)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        error = rejection(partial(run, steps))
        assert error in {None, f"{file}: changed while it was read"}
        assert len(table) == (40_000 if error else 40_001)
        assert error or ("n7" in table) is ("x7" not in table)
        # What was changed behind the reading is noticed the next time.
        run(table.reload())
        assert len(table) == 40_001
        assert "x7" in table
        done += stride
    assert done > 20


@pytest.mark.parametrize("change", ["grows", "shrinks"])
@pytest.mark.parametrize("at_start", [True, False])
def test_a_file_that_grows_or_shrinks(
    file: Path, monkeypatch: pytest.MonkeyPatch, change: str, *, at_start: bool
) -> None:
    file.write_text("one\n")
    table = StringTable(f"file:{file}")
    file.write_text("one\ntwo\n")
    real = os.fstat
    calls = 0

    def fstat(descriptor: int) -> os.stat_result:
        nonlocal calls
        calls += 1
        if not calls % 2:
            os.truncate(file, 12 if change == "grows" else 4)
        return real(descriptor)

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(ConfigError, match="changed while it was read"):
        StringTable(f"file:{file}") if at_start else run(table.reload())
    assert len(table) == 1


def truncated(file: Path) -> None:
    file.write_text("")


def replaced_by_a_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replaced_by_a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def replaced_by_a_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def replaced_by_garbage(file: Path) -> None:
    other = file.with_name("garbage")
    other.write_bytes(bytes(range(256)) * 9)
    other.replace(file)


FAULTS = {
    truncated: "changed while it was read|no entries",
    replaced_by_a_fifo: "not a regular file",
    replaced_by_a_directory: "Is a directory",
    replaced_by_a_loop: "Too many levels of symbolic links",
    replaced_by_garbage: "NUL byte|control character|changed while",
    Path.unlink: "No such file or directory",
}


@pytest.mark.parametrize(("act", "reason"), FAULTS.items())
def test_a_file_that_goes_bad_at_any_step(
    tmp_path: Path, act: Callable[[Path], None], reason: str
) -> None:
    # More than a MiB, so that there is a step in comparing it with the old file as well.
    new = in_steps(lines("new{}", range(10)), 2)
    for step in range(30):
        folder = tmp_path / str(step)
        folder.mkdir()
        file = folder / "table"
        file.write_text("old1\nold2\n")
        table = StringTable(f"file:{file}")
        file.write_text(new)
        steps = table.reload()
        for _ in range(step):
            next(steps, None)
        act(file)
        error = rejection(partial(run, steps))
        assert error is None or re.search(reason, error)
        assert len(table) == (10 if error is None else 2)
        assert ("old1" in table) is (error is not None)
        assert ("new9" in table) is (error is None)


def test_a_byte_order_mark_is_ignored(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf^one$\n^two$\n")
    table = RegexTable(str(file))
    assert "one" in table
    file.write_bytes(b"\xef\xbb\xbf# none\n")
    assert run(table.reload())
    assert len(table) == 0


# -- what is no table --------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n", " \t\n\n\r\n"])
def test_an_empty_file_without_a_comment_is_rejected(file: Path, text: str) -> None:
    reason = f"^{file}: no entries; if the file is empty on purpose, add a comment, such as # em"
    file.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        StringTable(f"file:{file}")
    file.write_text("one\n")
    table = StringTable(f"file:{file}")
    file.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        run(table.reload())
    assert "one" in table
    file.write_text(f"{text}# none at present{text}")
    assert run(table.reload())
    assert len(table) == len(StringTable(f"file:{file}")) == 0


@pytest.mark.parametrize("kind", [RegexTable, StringTable])
def test_control_characters_are_invalid(file: Path, kind: type[Table]) -> None:
    file.write_bytes(b"one\n\tt\xe9\t \nELF\x01\n")
    with pytest.raises(ConfigError, match=rf"^{file}:3: control character: 'ELF\\x01'$"):
        kind(str(file))
    file.write_bytes(b"one\ntwo\x7f\n")
    with pytest.raises(ConfigError, match=f"^{file}:2: control character"):
        kind(str(file))


def test_a_line_is_of_bounded_length(file: Path) -> None:
    longest = "k " + "v" * (source.LINE_MAX - 2)
    file.write_text(f"a b\n{longest}\nc d\n{longest}\n{longest}")
    assert len(MappingTable(str(file))) == 3
    long = "€" * (source.LINE_MAX + 1)
    texts = (f"a b\n{longest}v\nc d\n", f"a b\n{longest}v", f"a b\n{longest * 9}\n", f"a b\n{long}")
    for text in texts:
        file.write_text(text)
        with pytest.raises(ConfigError, match=f"^{file}:2: a line longer than 32768 characters$"):
            MappingTable(str(file))


def test_a_pattern_is_shown_as_it_was_written(file: Path) -> None:
    file.write_text("\\.good$\nit's(\\.bad\n")
    with pytest.raises(ConfigError) as caught:
        RegexTable(str(file))
    reason = f"""{file}:2: unmatched ( (at character 11): "it's(\\.bad\""""
    assert str(caught.value) == reason


def test_a_permission_error_names_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert os_reason(denied) == "Permission denied for user root"
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
    assert os_reason(denied) == "Permission denied for user 4000000000"
    assert os_reason(OSError("odd")) == "odd"


def test_a_permission_error_in_the_sandbox_names_it_if_the_user_may_read_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.touch()
    denied = PermissionError(errno.EACCES, "Permission denied")
    assert unreadable(denied, str(file)).startswith("Permission denied for user ")
    monkeypatch.setattr(errors, "sandboxed", {1})
    assert unreadable(denied, str(file)).startswith("Permission denied by the sandbox: ")
    missing = str(file.with_name("missing"))
    assert unreadable(denied, missing).startswith("Permission denied for user ")
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert unreadable(gone, str(file)) == "No such file or directory"


def test_what_the_sandbox_itself_refuses_is_not_the_users_permission() -> None:
    text = "--sandbox: not declared: reading '/etc/passwd'"
    assert os_reason(PermissionError(errno.EPERM, text)) == text


def test_a_file_that_cannot_be_created_in_the_sandbox(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the reason if the user may change each directory."""
    denied = errno.EACCES, "Permission denied"
    folder, missing = str(file.parent), str(file.with_name("missing"))
    create, read = PermissionError(*denied, missing), PermissionError(*denied, folder)
    rename = PermissionError(*denied, missing, None, "/proc/elsewhere")
    assert uncreated(create).startswith("Permission denied for user ")
    monkeypatch.setattr(errors, "sandboxed", {1})
    monkeypatch.setattr(os, "access", lambda path, _: path == folder)
    for error in (create, read):
        assert uncreated(error).startswith("Permission denied by the sandbox: ")
    for error in (rename, PermissionError(*denied)):
        assert uncreated(error).startswith("Permission denied for user ")
    assert uncreated(OSError(errno.ENOSPC, "full", missing)) == "full"


# -- several -----------------------------------------------------------------------------------


class Several(Tables):
    """Some tables."""

    tables: tuple[Table, ...] = ()

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tuple(tables)


def test_a_failed_reload_does_not_stop_the_others(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for each in files:
        each.write_text("one\n")
    tables = [StringTable(str(each)) for each in files]
    assert run(Several(tables).reload()) is False
    files[2].write_text("two\n")
    assert run(Several(tables).reload()) is True
    files[0].unlink()
    files[1].write_text("")
    files[2].write_text("three\n")
    with pytest.raises(ConfigError) as caught:
        run(Several(tables).reload())
    assert str(caught.value).startswith(f"{files[0]}: No such file or directory; {files[1]}: no e")
    assert "three" in tables[2]
    assert "one" in tables[0]


# -- bounded work ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (StringTable, lines("n{}", range(30_000))),
        (StringTable, "#\n" * 100_000 + "\n" * 100_000),
        (StringTable, f"{'#' * 30_000}\n" * 20),
        (DomainTable, lines("bücher{}.example", range(500))),
        (DomainTable, lines("a*b{}*c", range(20_000))),
        (RegexTable, lines("^x{}[a-z]*\\.example\\.net$", range(700))),
        (RegexTable, lines("((ab?c){{50}}x{}){{2}}", range(20))),
        (NetworkTable, lines("2001:db8::{:x}", range(20_000))),
        (MappingTable, lines("k{} " + "v" * 1000, range(3000))),
    ],
)
def test_a_step_is_bounded(
    file: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Table], text: str
) -> None:
    """Between two steps there is `STEP` of work, and one line more."""
    file.write_text("# none yet")
    table = kind(str(file))
    file.write_text(text)
    done = 0
    biggest = 0
    for name in ("texts", "pairs"):
        real = getattr(source.Source, name)

        def texts(
            self: source.Source, add: Callable[..., int], real: Callable[..., Iterator[None]] = real
        ) -> Iterator[None]:
            def adding(*words: str) -> int:
                nonlocal done
                work = add(*words)
                done += sum(map(len, words)) + work + source.LINE
                return work

            return real(self, adding)

        monkeypatch.setattr(source._File, name, texts)
    steps = table.reload()
    number = 0
    while True:
        try:
            next(steps)
        except StopIteration:
            break
        number += 1
        biggest = max(biggest, done)
        done = 0
    line = 100 * (4096 + 1023)
    assert number >= 2
    assert biggest < source.STEP + (line if kind is RegexTable else 150 * 1100)
    assert number > len(text) // source.STEP // 2


def test_old_entries_are_freed_in_steps() -> None:
    index = Index(20 * PART)
    for number in range(10_000):
        index.add(f"n{number}", "x")
        index.put(number, "x")
    assert len(index) == 20_000
    assert index.get("n77") == "x"
    steps = index.release()
    sizes = [len(index) for _ in steps]
    assert len(sizes) == 21
    freed = [before - after for before, after in zip([20_000, *sizes], sizes, strict=False)]
    assert max(freed) < 2000
    assert not index


def test_networks_that_end_in_zeros_are_spread() -> None:
    index = Index(40 * PART)
    for number in range(10_000):
        index.put(number << 16, "x")
    assert max(map(len, index._parts)) < 600
