from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smtpd_filters.cli.store_search import find_options, find_store, find_values
from smtpd_filters.cli.stores import TEMPFAIL, StoreOptions, with_store
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filters.greylist import Greylist
from smtpd_filters.stores import Get, Put, Store, join
from smtpd_filters.stores.setting import STORE, default_address

KEY = join("test", b"a")


def options(address: str) -> StoreOptions:
    return StoreOptions(store=STORE.parse(address))


async def write(store: Store) -> int:
    await store.ask(Put(KEY, b"x", ttl=60))
    return 0


async def read(store: Store) -> int:
    entry = await store.ask(Get(KEY))
    return 1 if entry is None else entry.value[0]


async def failing(_store: Store) -> int:
    raise UnavailableError("sqlite:/x: disk full \x1b[2J")


def test_a_verb_uses_the_file_of_a_filter(tmp_path: Path) -> None:
    path = tmp_path / "limit.sqlite"
    path.touch()
    assert with_store(options(f"sqlite:{path}"), "limit", write) == 0
    assert with_store(options(f"sqlite:{path}"), "limit", read) == ord("x")


def test_a_verb_creates_no_file(tmp_path: Path) -> None:
    path = tmp_path / "limit.sqlite"
    with pytest.raises(ConfigError, match=r"No such file or directory.*creates it when"):
        with_store(options(f"sqlite:{path}"), "limit", read)
    assert not path.exists()


@pytest.mark.parametrize("content", [b"listen on lo\n" * 400, b"SQLite format 3\0" + b"x" * 9000])
def test_a_verb_leaves_a_file_alone_that_is_no_store(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "smtpd.conf"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"--store: sqlite:{path}: .*not the file of a store"):
        with_store(options(f"sqlite:{path}"), "limit", read)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [
        ("smtpd.conf", content)
    ]


def test_a_verb_leaves_the_database_of_another_program_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (x)")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="a database of another program"):
        with_store(options(f"sqlite:{path}"), "limit", read)
    assert path.read_bytes() == before
    assert len([*tmp_path.iterdir()]) == 1


def damage(path: str) -> None:
    Path(path).write_text("damaged" * 1000)


async def replaced(store: Store) -> int:
    """Use a store whose file is removed, and then damaged, meanwhile."""
    path = store.label.removeprefix("sqlite:")
    await store.ask(Get(KEY))
    os.unlink(path)  # noqa: PTH108  # a path as text
    with pytest.raises(UnavailableError, match="No such file"):
        await store.ask(Get(KEY))
    damage(path)
    with pytest.raises(UnavailableError, match="not the file of a store"):
        await store.ask(Get(KEY))
    return 0


def test_a_verb_makes_no_file_in_place_of_one_that_disappears(tmp_path: Path) -> None:
    path = tmp_path / "limit.sqlite"
    path.touch()
    assert with_store(options(f"sqlite:{path}"), "limit", replaced) == 0
    assert not [*tmp_path.glob("*.damaged-*")]


def test_the_store_of_another_process_memory_is_out_of_reach() -> None:
    with pytest.raises(ConfigError, match="memory:"):
        with_store(options("memory:"), "limit", read)


def test_without_a_store_the_file_is_that_of_the_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_filters.stores.setting.STATE", "/nonexistent")
    with pytest.raises(ConfigError, match=r"--store: /nonexistent/greylist.sqlite: "):
        with_store(StoreOptions(), "greylist", read)


def test_a_store_that_fails_is_a_temporary_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "limit.sqlite").touch()
    assert with_store(options(f"sqlite:{tmp_path}/limit.sqlite"), "limit", failing) == TEMPFAIL
    assert capsys.readouterr().err == "smtpd-filters: sqlite:/x: disk full \\x1b[2J\n"


class Recorder:
    """The module os of root, in which changes of the user are only recorded.

    `owners` are the user and the group of each path.
    """

    path = os.path

    def __init__(self, become: list[tuple[str, Any]], owners: dict[str, tuple[int, int]]) -> None:
        self.stat = lambda path: SimpleNamespace(
            st_uid=owners[str(path)][0], st_gid=owners[str(path)][1]
        )
        self.geteuid = lambda: 0
        self._become = become

    def __getattr__(self, name: str) -> Any:
        return lambda value: self._become.append((name, value))


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ((4321, 1234), (0, 0)),
        # A link of the directory's owner, to a file of root's.
        ((0, 0), (4321, 1234)),
    ],
)
def test_root_becomes_the_owner_of_the_file(
    file: tuple[int, int], folder: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "limit.sqlite"
    path.touch()
    become: list[tuple[str, Any]] = []
    recorder = Recorder(become, {str(path): file, str(tmp_path): folder})
    monkeypatch.setattr("smtpd_filters.cli.stores.os", recorder)

    def opened(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("smtpd_filters.cli.stores.open_store", opened)
    with pytest.raises(RuntimeError):
        with_store(options(f"sqlite:{path}"), "limit", read)
    assert become == [("setgroups", [1234]), ("setgid", 1234), ("setuid", 4321)]


# -- the store in the configuration ----------------------------------------------------------


def search(tmp_path: Path, conf: str = "", chains: str = "", flag: str = "store") -> dict[str, Any]:
    (tmp_path / "smtpd.conf").write_text(conf)
    (tmp_path / "chains.toml").write_text(chains)
    return find_store(
        "limit",
        flag,
        [f"{tmp_path}/missing", f"{tmp_path}/smtpd.conf"],
        [f"{tmp_path}/missing.toml", f"{tmp_path}/chains.toml"],
    )


REDIS = STORE.parse("redis://redis.example.org")


@pytest.mark.parametrize(
    "command",
    [
        "filter-limit --store redis://redis.example.org --limit 'all messages 1/1h'",
        "/usr/local/libexec/smtpd/filter-limit --store=redis://redis.example.org",
        "filter-supervise --workers 2 -- filter-limit --store=redis://redis.example.org",
        "/etc/mail/filters/limit.py --store redis://redis.example.org",
        "filter-supervise /opt/filters/limit --store redis://redis.example.org",
    ],
)
def test_the_store_in_smtpd_conf(tmp_path: Path, command: str) -> None:
    assert search(tmp_path, f'filter limits proc-exec "{command}"\n') == {"store": REDIS}


def test_the_values_of_a_setting(tmp_path: Path) -> None:
    conf, chains = tmp_path / "smtpd.conf", tmp_path / "chains.toml"

    def values() -> list[object]:
        missing = f"{tmp_path}/missing"
        return [*find_values("limit", "limit", [missing, str(conf)], [missing, str(chains)])]

    assert values() == []
    command = "filter-limit --limit 'user messages 1/1h' --limit=x"
    conf.write_text(f'filter a proc-exec "{command}"\n')
    chains.write_text(
        'filter.limit.limit = ["y", { by = "z" }]\nfilter.b = { use = "limit", limit = 5 }\n'
    )
    assert values() == ["user messages 1/1h", "x", "y", {"by": "z"}]
    conf.write_text(f'filter a proc-exec "filter-chain --config {chains}"\n')
    chains.write_text('filter.b = { use = "limit", limit = ["v"] }\n')
    assert values() == ["v"]


GREYLIST = {name: Greylist.Options.options[name] for name in ("ipv4_prefix", "delay")}


@pytest.mark.parametrize(
    ("conf", "chains", "found"),
    [
        ("", "", {}),
        ("", "greylist = {}", {}),
        ("--ipv4-prefix 32", "", {"ipv4_prefix": 32}),
        ("--delay=1m --ipv4-prefix=28", "", {"ipv4_prefix": 28, "delay": 60.0}),
        ("", 'greylist = { ipv4-prefix = 32, delay = "1m" }', {"ipv4_prefix": 32, "delay": 60.0}),
        ("--ipv4-prefix 32", 'a = { use = "greylist", ipv4-prefix = 32 }', {"ipv4_prefix": 32}),
        ("--ipv4-prefix 32", 'a = { use = "limit", ipv4-prefix = 16 }', {"ipv4_prefix": 32}),
        ("--ipv4-prefix 24", "greylist = {}", {"ipv4_prefix": 24}),
        ("--ipv4-prefix 32", "greylist = {}", "values: --ipv4-prefix is required .24, 32.$"),
        ("--ipv4-prefix 99", "", '--ipv4-prefix of the filter: "99": must be at most 32'),
    ],
)  # fmt: skip
def test_options_as_the_filter_has_them(
    tmp_path: Path, conf: str, chains: str, found: dict[str, Any] | str
) -> None:
    places = [str(tmp_path / "smtpd.conf")], [str(tmp_path / "chains.toml")]
    if conf:
        Path(places[0][0]).write_text(f'filter g proc-exec "filter-greylist {conf}"\n')
    Path(places[1][0]).write_text(f"[filter]\n{chains}\n")
    if isinstance(found, str):
        with pytest.raises(ConfigError, match=found):
            find_options("greylist", GREYLIST, *places)
    else:
        assert find_options("greylist", GREYLIST, *places) == found


def test_all_flags_of_the_store_in_smtpd_conf(tmp_path: Path) -> None:
    command = (
        "filter-limit --store rediss://r --store-password-file /p --store-prefix=x: "
        "--store-timeout 5s"
    )
    found = search(tmp_path, f'filter limits proc-exec "{command}"\n')
    assert found == {
        "store": STORE.parse("rediss://r"),
        "store_password_file": "/p",
        "store_prefix": "x:",
        "store_timeout": 5.0,
    }


@pytest.mark.parametrize(
    "chains",
    [
        '[filter.limit]\nstore = "redis://redis.example.org"\n',
        '[filter.users]\nuse = "limit"\nstore = "redis://redis.example.org"\nlimit = ["x"]\n',
        '[filter.limit]\nuse = "/etc/mail/own.py:Own"\nstore = "redis://redis.example.org"\n',
    ],
)
def test_the_store_in_a_chain_file(tmp_path: Path, chains: str) -> None:
    assert search(tmp_path, chains=chains) == {"store": REDIS}
    other = tmp_path / "other.toml"
    other.write_text(chains)
    conf = f'filter x proc-exec "filter-chain --config {other} --supervised"\n'
    assert search(tmp_path, conf) == {"store": REDIS}


def test_a_chain_file_is_read_as_filter_chain_reads_it(tmp_path: Path) -> None:
    chains = '\ufeff[filter.limit]\nstore = "redis://redis.example.org"\n'
    assert search(tmp_path, chains=chains) == {"store": REDIS}
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # to open it would wait
    assert search(tmp_path, f'filter x proc-exec "filter-chain -f {fifo}"\n') == {}


def test_the_default_store_in_a_chain_has_the_name_of_the_filter_there(tmp_path: Path) -> None:
    chains = '[filter.users]\nuse = "limit"\nlimit = ["x"]\n'
    assert search(tmp_path, chains=chains) == {"store": default_address("users")}
    assert search(tmp_path, chains=chains, flag="report-to") == {}
    with pytest.raises(ConfigError, match=r"several stores: .*/users\.sqlite, .*/limit\.sqlite, "):
        search(tmp_path, chains=f"{chains}[filter.limit]\n")


def test_another_flag_has_the_address(tmp_path: Path) -> None:
    conf = 'filter x proc-exec "filter-limit --report-to redis://redis.example.org --store x"\n'
    assert search(tmp_path, conf, flag="report-to") == {"store": REDIS}


@pytest.mark.parametrize(
    ("conf", "chains"),
    [
        ("", ""),
        ('filter limits proc-exec "filter-limit --limit x"\n', ""),
        ('filter x proc-exec "filter-greylist --store redis://redis.example.org"\n', ""),
        ('filter limits proc-exec "filter-limit --store \'x"\n', ""),
        ('filter limits proc-exec "filter-limit"\n', ""),
        ('filter x proc-exec "filter-chain --chain limit --store redis://r"\n', ""),
        ("", '[filter.limit]\nuse = "rcpt"\nstore = "redis://redis.example.org"\n'),
        ("", "[filter\n"),
        ("", "filter = 5\n"),
        ("", "[filter.limit]\ntimeout = 5\n"),
    ],
)
def test_no_store_is_configured(tmp_path: Path, conf: str, chains: str) -> None:
    assert search(tmp_path, conf, chains) == {}


def test_several_stores_are_an_error(tmp_path: Path) -> None:
    conf = "".join(
        f'filter x{n} proc-exec "filter-limit --store redis://redis.example.org/{n % 2}"\n'
        for n in range(3)
    )
    with pytest.raises(ConfigError, match="filter-limit has several stores: --store is required"):
        search(tmp_path, conf)


@pytest.mark.parametrize("other", ["filter-limit --limit x", "filter-chain -f chains.toml"])
def test_the_default_is_one_of_several_stores(tmp_path: Path, other: str) -> None:
    conf = 'filter x proc-exec "filter-limit --store redis://redis.example.org"\n'
    chains = "[filter.limit]\ntimeout = 5\n"
    assert search(tmp_path, conf, chains) == {"store": REDIS}, "no filter of smtpd uses the chain"
    conf += f'filter y proc-exec "{other.replace("chains", f"{tmp_path}/chains")}"\n'
    with pytest.raises(ConfigError, match=r"several stores: .*/limit\.sqlite, the default"):
        search(tmp_path, conf, chains)


def test_an_invalid_store_in_the_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='--store of the filter: "x": expected sqlite:PATH'):
        search(tmp_path, 'filter x proc-exec "filter-limit --store x"\n')


def test_a_verb_uses_the_store_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "limits"
    path.touch()
    configured = {"store": STORE.parse(f"sqlite:{path}"), "store_timeout": 7.0}
    monkeypatch.setattr(
        "smtpd_filters.cli.stores.find_store", lambda name, flag: configured if name else flag
    )
    assert with_store(StoreOptions(), "limit", write) == 0
    assert with_store(options(f"sqlite:{path}"), "limit", read) == ord("x")
