"""A store in a file: several processes, faults of the file, and what is left after a kill."""

from __future__ import annotations

import asyncio
import os
import pwd
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.stores import Add, Count, Get, Put, join
from smtpd_filters.stores.clock import OFF, Epoch, Times, epoch
from smtpd_filters.stores.sqlite import BATCH, MAX_QUEUED, SQLiteStore
from smtpd_filters.stores.sqlite_file import MIGRATIONS
from tests.stores.conftest import PATIENCE, Clock, open_sqlite
from tests.stores.test_operations import A, B, patiently, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from smtpd_filters.stores import Store
    from smtpd_filters.stores.operations import Operation


def empty(folder: Path) -> None:
    for each in folder.iterdir():
        each.unlink()


def path_of(folder: Path) -> Path:
    return folder / "store.sqlite"


@pytest.fixture
def usual_umask() -> Iterator[None]:
    """Others may read new files, whatever the umask of the run is."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_entries_outlive_the_process(tmp_path: Path, clock: Clock, notes: list[str]) -> None:
    async def write(store: Store) -> None:
        await store.ask(Put(A, b"v", ttl=100))

    run(open_sqlite(tmp_path, clock, notes), write)
    clock.advance(10)
    assert run(open_sqlite(tmp_path, clock, notes), lambda store: store.ask(Get(A))) == (
        *(b"v", 10, 90),
    )


def test_a_check_writes_nothing(tmp_path: Path, notes: list[str]) -> None:
    def look(path: Path) -> SQLiteStore:
        return SQLiteStore(str(path), timeout=PATIENCE, note=notes.append, check=True)

    def found() -> dict[str, bytes]:
        return {each.name: each.read_bytes() for each in tmp_path.iterdir()}

    path = tmp_path / "a %?#b.sqlite"
    assert look(path).fault() == ""
    assert found() == {}
    with pytest.raises(ConfigError, match=r"directory .*/no is missing"):
        look(tmp_path / "no" / "x.sqlite")
    store = SQLiteStore(str(path), timeout=PATIENCE, note=notes.append)
    run(store, lambda store: store.ask(Put(A, b"x", ttl=1000)))
    before = found()
    assert look(path).fault() == ""
    assert found() == before
    with closing(sqlite3.connect(path)) as writer:  # its log is there
        writer.execute("PRAGMA user_version").fetchone()
        writer.execute("UPDATE epoch SET passed = passed")
        writer.commit()
        before = found()
        assert {each.rpartition("-")[2] for each in before if "-" in each} == {"wal", "shm"}
        assert look(path).fault() == ""
        assert found().keys() == before.keys()
    path.write_bytes(b"no database" * 1000)
    damaged = found()
    store = look(path)
    assert store.fault() == notes[0].partition(": ")[2]
    assert "file is not a database: the filter will rename the file" in notes.pop()
    assert found() == damaged
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as other:
        other.execute("CREATE TABLE x (y)")
    with pytest.raises(ConfigError, match="a database of another program"):
        look(tmp_path / "other.sqlite")


@pytest.mark.usefixtures("usual_umask")
def test_a_file_that_root_creates_belongs_to_the_owner_of_its_directory(
    tmp_path: Path, clock: Clock, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda _, *owner: given.append(owner))
    for _ in range(2):
        run(open_sqlite(tmp_path, clock, notes), lambda store: store.ask(Put(A, b"v", ttl=100)))
    assert given == [(tmp_path.stat().st_uid, tmp_path.stat().st_gid)]
    assert path_of(tmp_path).stat().st_mode & 0o777 == 0o640


@pytest.mark.usefixtures("usual_umask")
@pytest.mark.parametrize("user", [0, 1000])
def test_others_may_not_read_a_file(
    tmp_path: Path, clock: Clock, notes: list[str], monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)

    def modes() -> dict[str, int]:
        return {each.name: each.stat().st_mode & 0o777 for each in tmp_path.iterdir()}

    async def written(store: Store) -> None:
        await store.ask(Put(A, b"v", ttl=100))
        assert modes() == {f"store.sqlite{suffix}": 0o640 for suffix in ("", "-wal", "-shm")}

    run(open_sqlite(tmp_path, clock, notes), written)


@pytest.mark.parametrize(
    "change",
    ["offset = 'abc'", "offset = NULL, passed = NULL", "passed = 9e999", "boot = x'00'"],
)
def test_a_time_in_the_file_that_is_none_is_ignored(
    tmp_path: Path, clock: Clock, notes: list[str], change: str
) -> None:
    run(open_sqlite(tmp_path, clock, notes), lambda store: store.ask(Put(A, b"v", ttl=100)))
    with closing(sqlite3.connect(path_of(tmp_path))) as connection, connection:
        connection.execute(f"UPDATE epoch SET {change}")  # noqa: S608  # of this test
    entry = run(open_sqlite(tmp_path, clock, notes), lambda store: store.ask(Get(A)))
    assert entry is not None
    assert entry.value == b"v"


def test_a_jump_of_the_wall_clock_ages_nothing(
    tmp_path: Path, clock: Clock, notes: list[str]
) -> None:
    year = 366 * 86400.0

    async def steps(store: Store) -> None:
        await store.ask(Put(A, b"v", ttl=100))
        for jump in (year, -2 * year):
            clock.wall += jump
            assert await store.ask(Get(A)) == (b"v", 0, 100)
            # A process that starts now shares the file's clock.
            other = open_sqlite(tmp_path, clock, notes)
            assert await other.ask(Get(A)) == (b"v", 0, 100)
            await other.aclose()

    run(open_sqlite(tmp_path, clock, notes), steps)


def test_after_a_restart_of_the_machine_time_has_passed(
    tmp_path: Path, clock: Clock, notes: list[str]
) -> None:
    def found() -> Any:
        return run(open_sqlite(tmp_path, clock, notes), lambda store: store.ask(Get(A)))

    run(open_sqlite(tmp_path, clock, notes), lambda store: store.ask(Put(A, b"v", ttl=1000)))
    clock.boot, clock.monotonic = "second", 5.0
    clock.wall += 300
    assert found() == (b"v", 300, 700)
    # A clock that was reset doesn't turn the time back.
    clock.boot, clock.monotonic, clock.wall = "third", 5.0, 0.0
    _, age, left = found()
    assert 0 <= age <= 300
    assert 700 <= left <= 1000


def test_a_clock_that_is_years_ahead_at_a_start_forgets_nothing(
    tmp_path: Path, clock: Clock, notes: list[str]
) -> None:
    def ask(operation: Operation[Any]) -> Any:
        return run(open_sqlite(tmp_path, clock, notes), lambda store: store.ask(operation))

    ask(Put(A, b"v", ttl=30 * 86400))
    clock.boot, clock.monotonic = "second", 5.0
    clock.wall += 30 * 366 * 86400
    ask(Put(B, b"w", ttl=1000))  # expired entries are deleted
    assert ask(Get(A)) == (b"v", OFF, 30 * 86400 - OFF)


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.floats(0, 4e9), st.booleans()), min_size=1, max_size=20
    )
)
def test_the_clock_of_a_file_never_goes_back(steps: list[tuple[float, float, bool]]) -> None:
    stored: Epoch | None = None
    latest, boot, monotonic = 0.0, 0, 0.0
    for pause, wall, restart in steps:
        boot += restart
        monotonic = 1.0 if restart else monotonic + pause
        times = Times(str(boot), monotonic, wall)
        found = epoch(times, stored)
        now = found.now(times)
        assert now >= latest - 1e-3
        latest = now
        stored = found._replace(passed=max(found.passed, now))
    assert stored is not None


def test_without_an_identifier_a_boot_is_told_by_the_clocks() -> None:
    first = epoch(Times("", 1000, 50_000), None)
    assert epoch(Times("", 1010, 50_010), first) == first
    # The monotonic clock began at zero again.
    again = epoch(Times("", 5, 50_600), first)
    assert again.now(Times("", 5, 50_600)) == 50_600
    # It did, and has come further than at the last note.
    late = epoch(Times("", 2000, 90_000), first)
    assert late.now(Times("", 2000, 90_000)) == 90_000


COUNTING = """
import asyncio, sys
from smtpd_filters.stores import Add, Count, join
from smtpd_filters.stores.sqlite import SQLiteStore

def key(*parts):
    return join("t", b"s", *parts)

async def main(path, own):
    store = SQLiteStore(path, timeout=60, note=print)
    sys.stdin.readline()
    new = 0
    for number in range(0, 300, 10):
        results = await asyncio.gather(*(
            store.ask(Add(key(b"%d" % each), own, ttl=1000), Count(key(), 1000))
            for each in range(number, number + 10)))
        new += sum(before is None for before, _ in results)
    await store.aclose()
    print(new)

asyncio.run(main(sys.argv[1], sys.argv[2].encode()))
"""


def test_of_several_processes_one_adds_an_entry_and_no_count_is_lost(
    tmp_path: Path, notes: list[str]
) -> None:
    path = str(path_of(tmp_path))
    several = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTING, path, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for process in several:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    new = [int(process.communicate()[0]) for process in several]
    assert sum(new) == 300
    store = SQLiteStore(path, timeout=PATIENCE, note=notes.append)
    assert run(store, lambda store: store.ask(Count(join("t", b"s"), 1000, by=0))) == 900


def test_a_killed_process_loses_nothing_that_was_answered(tmp_path: Path, notes: list[str]) -> None:
    path = str(path_of(tmp_path))
    code = COUNTING.replace("new += ", "print(number, flush=True); new += ")
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", code, path, "x"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            for line in process.stdout:
                if int(line) == 50:
                    break
            process.kill()

    async def steps(store: Store) -> None:
        for number in range(60):
            assert await store.ask(Get(join("t", b"s", b"%d" % number))) is not None
        assert await store.ask(Count(join("t", b"s"), 1000, by=0)) >= 180

    run(SQLiteStore(path, timeout=PATIENCE, note=notes.append), steps)
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


# -- a file that can't be used ----------------------------------------------------------------


def opened(path: Path | str, notes: list[str]) -> SQLiteStore:
    return SQLiteStore(str(path), timeout=PATIENCE, note=notes.append)


@pytest.mark.parametrize(
    ("number", "how"),
    [
        (12345678, "-o 12345678 -m 700 {}"),
        (0, "-o USER -m 700 {} with the user that smtpd runs filters as"),
    ],
    ids=["smtpd's user", "root, by hand"],
)
def test_a_missing_folder_is_an_error_at_the_start(
    tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch, number: int, how: str
) -> None:
    missing = tmp_path / "missing"
    monkeypatch.setattr(os, "geteuid", lambda: number)
    with pytest.raises(ConfigError) as raised:
        opened(missing / "x", notes)
    assert str(raised.value) == (
        f"sqlite:{missing}/x: the directory {missing} is missing; create it as root: "
        f"install -d {how.format(missing)}"
    )


@pytest.mark.parametrize(
    ("closed", "reason"),
    [(".", "write in the directory"), ("x", "read and write the file")],
    ids=["directory", "file"],
)
def test_the_error_says_what_the_user_may_not_do(
    tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch, closed: str, reason: str
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"")
    forbidden = str(tmp_path / closed)
    monkeypatch.setattr(os, "access", lambda asked, _: str(asked) != forbidden)

    def refuse(*_: object, **__: object) -> None:
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        raise error

    monkeypatch.setattr(sqlite3, "connect", refuse)
    user = pwd.getpwuid(os.geteuid()).pw_name
    with pytest.raises(
        ConfigError, match=f"^sqlite:{re.escape(str(path))}: user {user} may not {reason}"
    ):
        opened(path, notes)


@pytest.mark.parametrize(
    ("make", "end", "reason"),
    [
        (os.mkdir, "", "Is a directory"),
        (os.mkdir, "-wal", "its -wal file is not a regular file"),
        (os.mkfifo, "", "not a regular file"),
        (os.mkfifo, "-journal", "its -journal file is not a regular file"),
    ],
)
def test_other_kinds_of_files_are_refused(
    tmp_path: Path, notes: list[str], make: Callable[[str], None], end: str, reason: str
) -> None:
    path = path_of(tmp_path)
    make(f"{path}{end}")  # to open a FIFO would wait
    with pytest.raises(ConfigError, match=f"^sqlite:{path}: {reason}$"):
        opened(path_of(tmp_path), notes)
    assert notes == []


def test_a_store_that_is_replaced_by_a_fifo_is_unavailable(
    tmp_path: Path, clock: Clock, notes: list[str]
) -> None:
    path = path_of(tmp_path)

    async def main(store: Store) -> None:
        await store.ask(Put(A, b"v", ttl=100))
        empty(tmp_path)
        os.mkfifo(path)
        with pytest.raises(UnavailableError, match="not a regular file"):
            await store.ask(Get(A))
        path.unlink()
        assert await store.ask(Get(A)) is None

    run(open_sqlite(tmp_path, clock, notes), main)


def test_a_database_of_another_program_is_left_alone(tmp_path: Path, notes: list[str]) -> None:
    with closing(sqlite3.connect(path_of(tmp_path))) as connection, connection:
        connection.execute("CREATE TABLE mail (x)")
    with pytest.raises(ConfigError, match="a database of another program"):
        opened(path_of(tmp_path), notes)


def test_a_file_of_a_newer_release_is_left_alone(
    tmp_path: Path, clock: Clock, notes: list[str]
) -> None:
    run(open_sqlite(tmp_path, clock, notes), lambda store: store.ask(Put(A, b"v", ttl=9)))
    with closing(sqlite3.connect(path_of(tmp_path))) as connection, connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(ConfigError, match="written by a newer release"):
        opened(path_of(tmp_path), notes)


def test_a_file_without_a_store_is_set_aside(tmp_path: Path, notes: list[str]) -> None:
    path_of(tmp_path).write_bytes(b"no database, but text that somebody wrote" * 500)
    run(opened(path_of(tmp_path), notes), lambda store: store.ask(Put(A, b"v", ttl=9)))
    assert len(notes) == 1
    assert notes.pop().endswith("store.sqlite.damaged-1, and a new one begun")
    assert Path(f"{path_of(tmp_path)}.damaged-1").read_bytes().startswith(b"no database")


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_file_is_set_aside_and_the_request_answered(
    tmp_path: Path, clock: Clock, notes: list[str], seed: int
) -> None:
    """Random bytes over all pages but those of the schema, while the store is open."""
    choose = random.Random(seed)  # noqa: S311  # not for a secret
    path = path_of(tmp_path)

    async def steps(store: Store) -> None:
        for number in range(20):
            await asyncio.gather(
                *(
                    store.ask(Put(join("t", b"%d" % each), b"v" * 100, ttl=900))
                    for each in range(number * 50, number * 50 + 50)
                )
            )

    run(open_sqlite(tmp_path, clock, notes), steps)
    size = path.stat().st_size
    with path.open("r+b") as file:
        for at in range(4096, size - 64, 64):
            file.seek(at)
            file.write(choose.randbytes(64))

    async def after(store: Store) -> None:
        for number in range(200):
            await store.ask(Put(join("t", b"%d" % number), b"new", ttl=900))
            found = await store.ask(Get(join("t", b"%d" % number)))
            assert found is not None
            assert found.value == b"new"

    run(open_sqlite(tmp_path, clock, notes), after)
    assert len(notes) == 1
    assert "is damaged" in notes.pop()
    assert len(list(tmp_path.glob("store.sqlite.damaged-*"))) >= 1


def test_a_deleted_file_is_begun_anew(tmp_path: Path, clock: Clock, notes: list[str]) -> None:
    async def steps(store: Store) -> None:
        await store.ask(Put(A, b"v", ttl=9))
        empty(tmp_path)
        assert await store.ask(Get(A)) is None
        await store.ask(Put(A, b"w", ttl=9))

    run(open_sqlite(tmp_path, clock, notes), steps)
    assert path_of(tmp_path).exists()


def test_a_log_that_is_deleted_is_named(tmp_path: Path, clock: Clock, notes: list[str]) -> None:
    async def steps(store: Store) -> None:
        await store.ask(Put(A, b"v", ttl=60))
        path_of(tmp_path).with_name("store.sqlite-wal").unlink()
        other = open_sqlite(tmp_path, clock, notes)
        reason = "its log (-wal) was deleted: restart the programs that have the file open"
        assert notes.pop() == f"{other.label}: {reason}"
        await other.aclose()
        await store.ask(Put(B, b"v", ttl=60))

    run(open_sqlite(tmp_path, clock, notes), steps)
    run(open_sqlite(tmp_path, clock, notes), lambda store: store.ask(Get(A), Get(B)))


def test_a_lock_of_another_program_costs_the_timeout_and_then_nothing(
    tmp_path: Path, notes: list[str]
) -> None:
    path = path_of(tmp_path)
    store = SQLiteStore(str(path), timeout=0.2, note=notes.append)

    async def steps(store: Store) -> None:
        await patiently(store, Put(A, b"v", ttl=900))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match=r"no answer within 0\.2 s|locked by another"):
            await store.ask(Put(A, b"w", ttl=900))
        other.execute("ROLLBACK")
        other.close()
        await patiently(store, Put(A, b"x", ttl=900))
        found = await patiently(store, Get(A))
        assert found is not None
        assert found.value == b"x"

    run(store, steps)


def test_a_thread_that_is_stuck_costs_one_timeout_not_one_for_each(
    tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(str(path_of(tmp_path)), timeout=0.1, note=notes.append)
    gate = threading.Event()
    monkeypatch.setattr(store._file, "apply", lambda _: gate.wait(PATIENCE) and [[None]])

    async def steps(store: Store) -> None:
        loop = asyncio.get_running_loop()
        try:
            with pytest.raises(UnavailableError, match="no answer"):
                await store.ask(Get(A))
            began = loop.time()
            for _ in range(1000):
                with pytest.raises(UnavailableError, match=r"does not respond|no answer"):
                    await store.ask(Get(A))
            assert loop.time() - began < 50  # not 1,000 timeouts
        finally:
            gate.set()

    run(store, steps)


def test_the_queue_is_bounded(
    tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(str(path_of(tmp_path)), timeout=PATIENCE, note=notes.append)
    gate = threading.Event()
    monkeypatch.setattr(
        store._file, "apply", lambda batch: gate.wait(PATIENCE) and [[None] for _ in batch]
    )

    async def steps(store: Store) -> None:
        several = [asyncio.ensure_future(store.ask(Get(A))) for _ in range(MAX_QUEUED + 500)]
        refused = 0
        while refused == 0:
            await asyncio.sleep(0)
            refused = sum(each.done() for each in several)
        gate.set()
        results = await asyncio.gather(*several, return_exceptions=True)
        assert {str(each) for each in results if each} == {
            f"{store.label}: too many requests are pending"
        }
        assert 0 < sum(each is not None for each in results) <= 500

    run(store, steps)


def test_a_full_file_drops_what_expires_first(
    tmp_path: Path, clock: Clock, notes: list[str]
) -> None:
    store = SQLiteStore(
        str(path_of(tmp_path)),
        timeout=PATIENCE,
        note=notes.append,
        max_size=400_000,
        times=clock.times,
    )

    async def steps(store: Store) -> None:
        long = [join("t", b"long%d" % number) for number in range(300)]
        for key in long:
            await store.ask(Put(key, b"v" * 200, ttl=90_000))
        for number in range(40):
            await asyncio.gather(
                *(
                    store.ask(Put(join("t", b"%d %d" % (number, each)), b"v" * 200, ttl=1000))
                    for each in range(100)
                )
            )
            clock.advance(1)
        left = {key async for key, _ in store.scan(b"t:")}
        assert left.issuperset(long)
        assert 300 < len(left) < 2500

    run(store, steps)
    assert path_of(tmp_path).stat().st_size < 1_000_000


def test_expired_rows_are_deleted(tmp_path: Path, clock: Clock, notes: list[str]) -> None:
    async def steps(store: Store) -> None:
        for number in range(300):
            await store.ask(Add(join("t", b"%d" % number), b"v", ttl=100))
        clock.advance(200)
        for _ in range(3):
            clock.advance(1)
            await store.ask(Put(A, b"v", ttl=1000))

    run(open_sqlite(tmp_path, clock, notes), steps)
    with closing(sqlite3.connect(path_of(tmp_path))) as connection, connection:
        assert connection.execute("SELECT count(*) FROM entries").fetchone() == (1,)
    connection.close()


def test_signals_are_left_to_the_filter(tmp_path: Path, clock: Clock, notes: list[str]) -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: caught.append(number))
    try:

        async def steps(store: Store) -> None:
            for _ in range(100):
                os.kill(os.getpid(), signal.SIGUSR1)
                await store.ask(Put(A, b"v", ttl=9))

        run(open_sqlite(tmp_path, clock, notes), steps)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert caught


def test_the_requests_of_a_turn_are_one_transaction(
    tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(str(path_of(tmp_path)), timeout=PATIENCE, note=notes.append)
    apply = store._file.apply
    sizes: list[int] = []

    def counted(requests: Sequence[Any]) -> Any:
        sizes.append(len(requests))
        return apply(requests)

    monkeypatch.setattr(store._file, "apply", counted)

    async def steps(store: Store) -> None:
        keys = [join("t", b"%d" % number) for number in range(BATCH + 1)]
        assert [*await asyncio.gather(*(store.ask(Count(key, 9)) for key in keys))] == [1] * len(
            keys
        )
        assert sizes == [BATCH, 1]

    run(store, steps)
    assert not store._ends


def test_what_was_asked_before_the_end_is_done(tmp_path: Path, notes: list[str]) -> None:
    store = SQLiteStore(str(path_of(tmp_path)), timeout=PATIENCE, note=notes.append)

    async def steps() -> None:
        asked = [asyncio.ensure_future(store.ask(Count(A, 9))) for _ in range(3)]
        await asyncio.sleep(0)  # they are handed over in the next turn
        await store.aclose()
        assert [*await asyncio.gather(*asked)] == [1, 2, 3]

    asyncio.run(steps())


def test_each_request_has_its_own_end(
    tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(str(path_of(tmp_path)), timeout=0.3, note=notes.append)
    gate = threading.Event()
    monkeypatch.setattr(
        store._file, "apply", lambda batch: gate.wait(PATIENCE) and [[None] for _ in batch]
    )

    async def steps(store: Store) -> None:
        loop = asyncio.get_running_loop()

        async def waited() -> float:
            began = loop.time()
            with pytest.raises(UnavailableError, match="no answer"):
                await store.ask(Get(A))
            return loop.time() - began

        try:
            first = asyncio.ensure_future(waited())
            await asyncio.sleep(0)
            second = await waited()
            assert min(await first, second) >= 0.29
        finally:
            gate.set()

    run(store, steps)
