from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import sqlite3
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from threading import active_count
from time import monotonic

import pytest

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filters.mailfrom import Mailfrom
from smtpd_filters.filters.rcpt import Rcpt
from smtpd_filters.runtime.probes import ask
from smtpd_filters.sandbox import Needs
from smtpd_filters.tables import (
    AddressTable,
    DomainTable,
    MappingTable,
    NetworkTable,
    RegexTable,
)
from smtpd_filters.tables.remote.backend import BackendError
from smtpd_filters.tables.remote.source import RemoteSource
from smtpd_filters.tables.remote.sqlite import SQLite
from smtpd_filters.testing import Conversation
from tests.effort import part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from typing import Any

    from smtpd_filters.tables import Table


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "mail.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            """
            CREATE TABLE domains (name TEXT PRIMARY KEY);
            INSERT INTO domains VALUES ('example.org'), ('xn--bcher-kva.example');
            CREATE TABLE people (address TEXT PRIMARY KEY, user TEXT);
            INSERT INTO people VALUES ('anna@example.org', 'anna'), ('@example.net', NULL),
                ('sales@example.org', 'anna');
            CREATE TABLE nets (net TEXT);
            INSERT INTO nets VALUES ('192.0.2.0/24'), ('2001:db8::/32');
            """
        )
    connection.close()
    return path


def asking(database: Path, statement: str) -> str:
    return f"sqlite:{database}?query={statement}"


def listing(database: Path, statement: str) -> str:
    return f"sqlite:{database}?list={statement}"


def hasty(database: Path, use: str, condition: str) -> str:
    """Return a table whose statement never ends, with little time for it, at the start as well."""
    path = database.with_name("sqlite.conf")
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    path.write_text(f"dbpath {database}\ntimeout 0.05\n{use} {endless} WHERE {condition}\n")
    return f"sqlite:{path}"


def aside(database: Path) -> None:
    database.rename(database.with_name("aside"))


def back(database: Path) -> None:
    database.with_name("aside").rename(database)


def gone(database: Path) -> None:
    database.unlink(missing_ok=True)


def changed(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


def run(work: Coroutine[Any, Any, None], *tables: Table) -> None:
    async def main() -> None:
        try:
            await work
        finally:
            for table in tables:
                assert table.remote is not None
                await table.remote.aclose()

    asyncio.run(main())


def domains(database: Path) -> DomainTable:
    return DomainTable.load_by_key(asking(database, "SELECT 1 FROM domains WHERE name = ?"))


def test_a_domain_is_looked_up_with_those_above_it(database: Path) -> None:
    table = domains(database)

    async def main() -> None:
        assert await table.look_up_subdomain("example.org") == "example.org"
        assert await table.look_up_subdomain("a.B.example.org.") == "example.org"
        assert await table.look_up_subdomain("a." * 1000 + "example.org") == "example.org"
        assert await table.look_up_subdomain("notexample.org") is None
        assert await table.look_up_subdomain("") is None
        loaded = DomainTable.of(["example.org"])
        assert await loaded.look_up_subdomain("a.example.org") == "example.org"
        before = len(asked)
        assert await table.look_up_subdomain("x." * 100 + "example.com") is None
        assert len(asked) - before == 9

    asked: list[str] = []
    answers = table._key_lookups
    assert answers
    look_up = answers.look_up

    async def counting(key: str) -> str | None:
        asked.append(key)
        return await look_up(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "look_up", counting)
        run(main(), table)


def test_a_domain_is_looked_up_in_its_canonical_form(database: Path) -> None:
    table = domains(database)

    async def main() -> None:
        assert await table.look_up("EXAMPLE.org.") == "example.org"
        assert await table.look_up("Bücher.example") == "xn--bcher-kva.example"
        assert await table.look_up("sub.example.org") is None
        assert await table.look_up("'; DROP TABLE domains; --") is None
        with pytest.raises(RuntimeError, match="await look_up"):
            table.match("example.org")

    run(main(), table)


def test_tables_that_are_configured_alike_share_look_ups(database: Path) -> None:
    first, second = domains(database), domains(database)
    other = AddressTable.load_by_key(asking(database, "SELECT 1 FROM domains WHERE name = ?"))
    assert first.remote is not None
    assert second.remote is not None
    assert other.remote is not None
    assert first.remote.key_lookups is second.remote.key_lookups is not other.remote.key_lookups
    changed(database, "INSERT INTO domains VALUES ('new.example')")
    later = domains(database)
    assert later.remote is not None
    assert later.remote.key_lookups is not first.remote.key_lookups

    async def main() -> None:
        assert await first.look_up("example.org") == "example.org"
        assert second.remote is not None
        assert second.remote.key_lookups is not None
        assert (await second.remote.key_lookups.ask("example.org")).origin == "cache"

    run(main(), first, second)


def test_an_address_is_looked_up_with_its_tag_without_it_and_by_domain(database: Path) -> None:
    table = AddressTable.load_by_key(asking(database, "SELECT 1 FROM people WHERE address=?"))

    async def main() -> None:
        for key, entry in (
            ("Anna@Example.org", "anna@example.org"),
            ("anna+x@example.org", "anna@example.org"),
            ("who@example.net", "@example.net"),
            ("who@example.org", None),
            ("", None),
        ):
            assert await table.look_up(key) == entry

    run(main(), table)


def test_the_configuration_of_table_sqlite(database: Path, tmp_path: Path) -> None:
    file = tmp_path / "sqlite.conf"
    lines = (
        "# as of smtpd",
        f"dbpath\t{database}",
        "query_domain: SELECT name FROM domains WHERE name=?;",
        "query_mailaddrmap SELECT address FROM people WHERE user=? ORDER BY address",
        "query_mailaddrmap SELECT 'the first line counts' WHERE ?",
        "fetch_source SELECT 1",
        "cache 5m",
    )
    file.write_text("\n".join(lines))
    table = DomainTable.load_by_key(f"sqlite:{file}")
    senders = Mailfrom.Options.options["senders"].kind.parse(f"sqlite:{file}")

    async def main() -> None:
        assert await table.look_up("example.org") == "example.org"
        value = await senders.look_up_value("anna")
        assert value == "anna@example.org, sales@example.org"
        assert await senders.look_up_value("bob") is None

    run(main(), table, senders)
    needs = Needs()
    Mailfrom.Options.options["senders"].kind.declare(senders, needs)
    assert needs.read == [str(tmp_path)]


def test_a_value_of_many_rows_is_whole_or_an_error(database: Path) -> None:
    counted = (
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT {}) "
        "SELECT n FROM numbers WHERE ? = 'all'"
    )
    senders = Mailfrom.Options.options["senders"].kind
    many = senders.parse(asking(database, counted.format(1000)))
    endless = senders.parse(asking(database, counted.format(100_000)))

    async def main() -> None:
        assert await many.look_up_value("all") == ", ".join(map(str, range(1, 1001)))
        with pytest.raises(UnavailableError, match="more than 10000 rows for one key"):
            await endless.look_up_value("all")

    run(main(), many, endless)


def test_lists_are_loaded(database: Path) -> None:
    nets = NetworkTable.load(listing(database, "SELECT net FROM nets"))
    assert nets.remote is not None
    assert nets.remote.entries == 2
    needs = Needs()
    before = needs.memory
    nets.remote.declare(needs)
    assert needs.memory > before
    assert nets.match("192.0.2.77") == "192.0.2.0/24"
    pairs = MappingTable.load(listing(database, "SELECT address, user FROM people"))
    assert pairs.get("ANNA@example.org") == "anna"
    assert pairs.get("@example.net") is None  # a NULL
    names = RegexTable.load(listing(database, "SELECT name FROM domains"))
    assert names.match("www.example.org") == "example.org"
    assert active_count() == 1


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("{0}?query=SELECT a FROM missing WHERE a = ?", "{0}: no such table: missing"),
        ("{0}?query=SELECT name, 1 FROM domains WHERE name = ?", "returns 2 columns, not 1"),
        ("{0}?query=SELECT name FROM domains", "Incorrect number of bindings supplied"),
        ("{0}?query=SELECT '\udcff' WHERE ?", "{0}: the statement is not UTF-8"),
        ("{0}?query=DELETE FROM domains WHERE name = ?", "attempt to write a readonly database"),
        ("{0}?quary=SELECT 1", "expected ?query=SQL or ?list=SQL, not 'quary=SELECT 1'"),
        ("{0}.missing?query=SELECT ?", "{0}.missing: No such file or directory"),
        ("{0}.fifo?query=SELECT ?", "{0}.fifo: not a regular file"),
        ("{0}", "mail.db: not UTF-8"),
        ("{1}", "sqlite.conf:1: unknown key 'dbpaht', did you mean \"dbpath\"?"),
        ("", "sqlite: needs a path"),
    ],
)
def test_mistakes_are_found_at_start(database: Path, spec: str, error: str) -> None:
    file = database.parent / "sqlite.conf"
    file.write_text("dbpaht /x\n")
    os.mkfifo(f"{database}.fifo")  # to open it would wait
    if spec == "{0}":
        database.write_bytes(b"\xff")
    with pytest.raises(ConfigError) as raised:
        DomainTable.load_by_key("sqlite:" + spec.format(database, file))
    assert error.format(database) in str(raised.value)


def test_an_option_that_cannot_wait_requires_a_list(database: Path) -> None:
    with pytest.raises(ConfigError, match="loads all entries, which"):
        NetworkTable.load(asking(database, "SELECT net FROM nets WHERE net = ?"))


def test_a_database_that_goes_away_is_unavailable_until_it_is_back(database: Path) -> None:
    table = domains(database)

    async def main() -> None:
        assert await table.look_up("example.org")
        aside(database)
        with pytest.raises(UnavailableError, match="No such file"):
            await table.look_up("example.com")
        back(database)
        assert await table.look_up("example.com") is None
        changed(database, "DROP TABLE domains")
        with pytest.raises(UnavailableError, match="no such table"):
            await table.look_up("example.edu")

    run(main(), table)


def test_a_change_is_seen_with_the_next_query(database: Path) -> None:
    table = domains(database)

    async def main() -> None:
        assert await table.look_up("new.example") is None
        changed(database, "INSERT INTO domains VALUES ('new.example')")
        assert await table.look_up("other.example") is None  # notices the change
        assert await table.look_up("new.example") == "new.example"

    run(main(), table)


def test_a_statement_that_never_ends_is_interrupted(database: Path) -> None:
    table = DomainTable.load_by_key(hasty(database, "query", "i = ?"))

    async def main() -> None:
        with pytest.raises(UnavailableError, match=r"took too long|no answer within"):
            await table.look_up("example.org")

    run(main(), table)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_database_in_wal_mode_without_a_writer_is_unavailable() -> None:
    # Not in `tmp_path`, which other users may not enter.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wal.db"
        Path(folder).chmod(0o755)
        writer = sqlite3.connect(path)
        path.chmod(0o644)
        writer.executescript("PRAGMA journal_mode = WAL; CREATE TABLE domains (name TEXT);")
        needs = Needs()
        table = domains(path)
        assert table.remote is not None
        table.remote.declare(needs)
        assert needs.write == [folder]

        async def main() -> None:
            assert table.remote is not None
            assert await table.look_up("example.org") is None
            await table.remote.aclose()
            writer.close()
            os.seteuid(65534)
            try:
                with pytest.raises(UnavailableError, match="in WAL mode"):
                    await table.look_up("example.com")
                assert domains(path).by_key
            finally:
                os.seteuid(0)

        run(main(), table)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_database_that_the_user_may_not_read_is_an_error_at_start(mode: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mail.db"
        Path(folder).chmod(0o755)
        with closing(sqlite3.connect(path)) as writer:
            writer.executescript(f"PRAGMA journal_mode = {mode}; CREATE TABLE domains (name TEXT);")
        path.chmod(0o600)
        os.seteuid(65534)
        try:
            with pytest.raises(ConfigError, match=r"mail\.db: Permission denied for user"):
                domains(path)
        finally:
            os.seteuid(0)


@contextmanager
def no_descriptor() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_database_for_which_no_descriptor_is_left_is_unavailable(database: Path) -> None:
    """SQLite's own error is that of a database in WAL mode, for whose files there is no right."""
    domains(database)  # imports modules, which takes descriptors
    with no_descriptor():
        table = domains(database)
    away = database.with_name("away")

    async def main() -> None:
        shutil.move(database, away)  # so that there is a thread, but no open file
        with pytest.raises(UnavailableError, match="No such file"):
            await table.look_up("example.org")
        shutil.move(away, database)
        with no_descriptor(), pytest.raises(UnavailableError, match="Too many open files"):
            await table.look_up("example.org")
        assert await table.look_up("example.org") == "example.org"

    run(main(), table)


def test_a_list_that_never_ends_does_not_hold_up_the_start(database: Path) -> None:
    source = RemoteSource(hasty(database, "list", "i < 0"), "netaddr")
    started = monotonic()
    source.fetch(0.1)
    assert monotonic() - started < 10
    assert re.search(r"took too long|no list within 0\.1 s", source.down)
    assert active_count() == 1


def test_a_locked_database_is_unavailable(database: Path) -> None:
    table = domains(database)
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")

    async def main() -> None:
        with pytest.raises(UnavailableError, match="locked"):
            await table.look_up("example.org")
        other.execute("COMMIT")
        assert await table.look_up("example.org") == "example.org"

    run(main(), table)
    other.close()


# -- in filters ----------------------------------------------------------------------------


def test_a_remote_value_is_checked_when_it_arrives(database: Path) -> None:
    spec = asking(database, "SELECT user FROM people WHERE address = ?")

    def anna(text: str) -> None:
        if text != "anna":
            raise ValueError(f"{text} is not Anna")

    async def ask() -> None:
        table = MappingTable.checking(anna).load_by_key(spec)
        table.check_values(anna)  # there are none in memory
        assert await table.look_up_value("anna@example.org") == "anna"
        assert await table.look_up_value("bob@example.org") is None
        changed(database, "INSERT INTO people VALUES ('carl@example.org', 'carl')")
        with pytest.raises(UnavailableError, match="invalid value: carl is not Anna"):
            await table.look_up_value("carl@example.org")
        assert table.remote
        await table.remote.aclose()

    asyncio.run(ask())


def test_a_filter_asks_and_on_error_decides(database: Path) -> None:
    traps = asking(database, "SELECT 1 FROM people WHERE address = ?")
    flags = ("--traps", traps, "--trapped", "reject", "--on-error", "tempfail")
    with Conversation(Rcpt, *flags) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("bob@example.com")
        assert client.rcpt_to("who@example.org").verb == "proceed"
        assert client.rcpt_to("anna@example.org").refused
        database.unlink()
        late = smtpd.connect()
        late.ehlo()
        late.mail_from("bob@example.com")
        assert late.rcpt_to("late@example.org").reply.startswith("451 4.4.3 ")
        assert any("unavailable: No such file" in line for line in smtpd.log)


def test_check_online_asks_tables(database: Path) -> None:
    settings = Mailfrom.Options(
        domains=domains(database),
        trusted=NetworkTable.load(listing(database, "SELECT net FROM nets")),
    )
    filter_ = Mailfrom(settings)

    async def main() -> None:
        for fault in ("", "No such file or directory"):
            answers = await ask(filter_.all_probes())
            assert [answer.subject.partition("=")[2][:11] for answer in answers] == [
                "SELECT 1 FR", "SELECT net ",
            ]  # fmt: skip
            assert all(fault in answer.fault for answer in answers)
            assert all(bool(answer.fault) == bool(fault) for answer in answers)
            for table in filter_.remote_tables():
                await table.remote.aclose()
                if table.by_key:
                    table.remote.key_lookups._cache.clear()
            gone(database)

    asyncio.run(main())


def test_a_list_is_loaded_again(database: Path) -> None:
    trusted = listing(database, "SELECT net FROM nets")
    flags = ("--domains", "example.org", "--trusted", trusted)
    with Conversation(Mailfrom, *flags) as smtpd:

        def sends(address: str) -> bool:
            client = smtpd.connect(address=address)
            client.ehlo()
            return client.mail_from("anna@example.org").verb == "proceed"

        assert sends("192.0.2.1")
        assert not sends("198.51.100.1")
        changed(database, "INSERT INTO nets VALUES ('198.51.100.0/24')")
        smtpd.refresh()
        assert sends("198.51.100.1")
        changed(database, "INSERT INTO nets VALUES ('nonsense')")
        smtpd.refresh()
        assert sends("198.51.100.1")
        smtpd.refresh()
        assert sum("'nonsense'; the entries are kept" in line for line in smtpd.log) == 1
        assert not any("answers again" in line for line in smtpd.log)
        changed(database, "DELETE FROM nets WHERE net = 'nonsense'")
        smtpd.refresh()
        smtpd.refresh()
        assert sum("answers again" in line for line in smtpd.log) == 1


def test_a_list_that_becomes_empty_is_logged(database: Path) -> None:
    flags = ("--domains", "example.org", "--trusted", listing(database, "SELECT net FROM nets"))
    with Conversation(Mailfrom, *flags) as smtpd:

        def logged() -> int:
            smtpd.refresh()
            return sum("the list is empty now; it had " in line for line in smtpd.log)

        assert logged() == 0
        changed(database, "DELETE FROM nets")
        assert [logged(), logged()] == [1, 1]
        client = smtpd.connect(address="192.0.2.1")
        client.ehlo()
        assert client.mail_from("anna@example.org").verb == "reject"
        changed(database, "INSERT INTO nets VALUES ('192.0.2.0/24')")
        assert logged() == 1
        changed(database, "DELETE FROM nets")
        assert logged() == 2


def test_an_entry_that_is_invalid_at_start_makes_the_table_unavailable(database: Path) -> None:
    """Nobody who writes to the database can keep the server from starting."""
    changed(database, "INSERT INTO nets VALUES ('nonsense')")
    trusted = listing(database, "SELECT net FROM nets")
    flags = ("--domains", "example.org", "--trusted", trusted, "--on-error", "tempfail")
    with Conversation(Mailfrom, *flags) as smtpd:

        def reply() -> str:
            client = smtpd.connect(address="192.0.2.1")
            client.ehlo()
            return client.mail_from("anna@example.org").reply

        assert reply().startswith("451 4.4.3 ")
        assert any("unavailable: entry 3: " in line for line in smtpd.log)
        smtpd.refresh()
        assert reply().startswith("451 4.4.3 ")
        assert not any("answers again" in line or "are kept" in line for line in smtpd.log)
        changed(database, "DELETE FROM nets WHERE net = 'nonsense'")
        smtpd.refresh()
        assert reply() == ""


def test_a_hangup_reloads_files_alone(database: Path, tmp_path: Path) -> None:
    file = tmp_path / "nets"
    file.write_text("198.51.100.0/24\n")
    exempt = ("--exempt", f"file:{file}", "--exempt", listing(database, "SELECT net FROM nets"))
    with Conversation(Mailfrom, "--domains", "example.org", *exempt) as smtpd:

        def sends(address: str) -> bool:
            client = smtpd.connect(address=address)
            client.ehlo()
            return client.mail_from("anna@example.org").verb == "proceed"

        assert sends("192.0.2.1")
        file.write_text("203.0.113.0/24\n")
        smtpd.reload()
        assert sends("203.0.113.1")
        assert sends("192.0.2.1")
        assert not sends("198.51.100.1")


def test_a_list_that_fails_to_load_is_loaded_the_next_time(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = listing(database, "SELECT net FROM nets")
    with Conversation(Mailfrom, "--domains", "example.org", "--trusted", trusted) as smtpd:

        def sends(address: str) -> bool:
            client = smtpd.connect(address=address)
            client.ehlo()
            return client.mail_from("anna@example.org").verb == "proceed"

        def fail(*_: object) -> None:
            raise MemoryError

        changed(database, "INSERT INTO nets VALUES ('198.51.100.0/24')")
        with monkeypatch.context() as patch:
            patch.setattr(NetworkTable.contents, "fill", fail)
            smtpd.refresh()
        assert sends("192.0.2.1")
        assert not sends("198.51.100.1")
        assert any("MemoryError; the entries are kept" in line for line in smtpd.log)
        smtpd.refresh()
        assert sends("198.51.100.1")


def test_the_same_list_is_loaded_after_a_long_failure(database: Path) -> None:
    table = NetworkTable.load(listing(database, "SELECT net FROM nets"))
    refresher = table.refresher()
    away = database.with_suffix(".away")

    def remove() -> None:
        database.rename(away)

    def restore() -> None:
        shutil.move(away, database)

    async def main() -> None:
        await refresher.refresh()
        assert "192.0.2.1" in table
        remove()
        refresher._good = float("-inf")  # the last time that it could be listed
        await refresher.refresh()
        with pytest.raises(UnavailableError):
            table.match("192.0.2.1")
        restore()
        await refresher.refresh()
        assert "192.0.2.1" in table

    run(main(), table)


def test_a_hundred_thousand_entries(tmp_path: Path) -> None:
    count = part(100_000)
    path = tmp_path / "large.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE domains (name TEXT PRIMARY KEY)")
        names = ((f"d{number}.example",) for number in range(count))
        connection.executemany("INSERT INTO domains VALUES (?)", names)
    connection.close()
    by_key = domains(path)
    listed = DomainTable.load(listing(path, "SELECT name FROM domains"))
    assert len(listed) == count

    async def main() -> None:
        keys = [f"d{number}.example" for number in range(50)]
        assert await asyncio.gather(*map(by_key.look_up, keys)) == keys
        changed(path, "DELETE FROM domains WHERE name = 'd0.example'")
        assert listed.match("d0.example")
        turns = 0

        async def beside() -> None:
            nonlocal turns
            while listed.match("d0.example"):
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(beside())
        await listed.refresher().refresh()
        await other
        assert len(listed) == count - 1
        # One turn for each thousand entries, in reading and in checking for changes.
        assert turns > count // 1000

    run(main(), by_key, listed)


def test_a_database_in_place_of_its_configuration(database: Path) -> None:
    with pytest.raises(ConfigError, match=r"mail\.db: a database.* add \?query=SQL"):
        DomainTable.load_by_key(f"sqlite:{database}")


def test_a_statement_that_returns_other_columns_than_at_start(database: Path) -> None:
    async def work() -> None:
        lists = SQLite(str(database), "mapping", None, "SELECT * FROM people")
        by_key = SQLite(str(database), "domain", "SELECT * FROM domains WHERE name = ?", None)
        assert await by_key.look_up("example.org") == "example.org"
        with sqlite3.connect(database) as connection:
            connection.executescript(
                "ALTER TABLE people DROP COLUMN user; ALTER TABLE domains ADD COLUMN x DEFAULT 1"
            )
        connection.close()
        for wrong in (lists.entries(5), by_key.look_up("example.org")):
            with pytest.raises(BackendError, match="the statement returns"):
                await wrong
        await lists.aclose()
        await by_key.aclose()

    asyncio.run(work())


def test_a_list_that_fails_in_an_unexpected_way_is_not_empty(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def entries(_self: SQLite, _seconds: float) -> list[tuple[str, str]]:
        raise IndexError("strange")

    monkeypatch.setattr(SQLite, "entries", entries)
    table = DomainTable.load(listing(database, "SELECT name FROM domains"))
    with pytest.raises(UnavailableError, match="IndexError: strange"):
        table.match("example.org")
