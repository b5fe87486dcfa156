from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.cli.stores import TEMPFAIL, StoreOptions, with_store
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.stores import Get, Put, Store, join
from smtpd_filters.stores.setting import STORE

if TYPE_CHECKING:
    from pathlib import Path

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
    raise UnavailableError("sqlite:/x: disk full")


def test_a_verb_uses_the_file_of_a_filter(tmp_path: Path) -> None:
    path = tmp_path / "limit.sqlite"
    path.touch()
    assert with_store(options(f"sqlite:{path}"), "limit", write) == 0
    assert with_store(options(f"sqlite:{path}"), "limit", read) == ord("x")


def test_a_verb_creates_no_file(tmp_path: Path) -> None:
    path = tmp_path / "limit.sqlite"
    with pytest.raises(ConfigError, match=r"No such file or directory.*create it when"):
        with_store(options(f"sqlite:{path}"), "limit", read)
    assert not path.exists()


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
    assert capsys.readouterr().err == "sqlite:/x: disk full\n"


class Recorder:
    """The module os of root, in which changes of the user are only recorded."""

    def __init__(self, become: list[tuple[str, Any]], status: object) -> None:
        self.stat = lambda _path: status
        self.geteuid = lambda: 0
        self._become = become

    def __getattr__(self, name: str) -> Any:
        return lambda value: self._become.append((name, value))


def test_root_becomes_the_owner_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "limit.sqlite"
    path.touch()
    become: list[tuple[str, Any]] = []
    owned = SimpleNamespace(st_uid=4321, st_gid=1234)
    monkeypatch.setattr("smtpd_filters.cli.stores.os", Recorder(become, owned))

    def opened(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("smtpd_filters.cli.stores.open_store", opened)
    with pytest.raises(RuntimeError):
        with_store(options(f"sqlite:{path}"), "limit", read)
    assert become == [("setgroups", [1234]), ("setgid", 1234), ("setuid", 4321)]
