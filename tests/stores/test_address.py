"""Addresses of stores as operators write them, and the setting that takes them."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING

import pytest

from smtpd_filters import PROCEED, ConfigError, Filter, Proceed, Session
from smtpd_filters.main import set_up
from smtpd_filters.settings import Pool, from_mapping
from smtpd_filters.stores import Put, Store, join
from smtpd_filters.stores.address import Address, parse
from smtpd_filters.stores.memory import MemoryStore
from smtpd_filters.stores.redis_store import RedisStore
from smtpd_filters.stores.setting import STATE, STORE
from smtpd_filters.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Logbook

ADDRESSES = {
    "memory:": Address("memory"),
    "sqlite:/var/x y.db": Address("sqlite", "/var/x y.db"),
    "redis://localhost:6379": Address("redis", hosts=(("localhost", 6379),)),
    "redis://[::1]:7000/3": Address("redis", hosts=(("::1", 7000),), db=3),
    "rediss://mail%40x@h:1": Address("redis", hosts=(("h", 1),), tls=True, username="mail@x"),
    "unix:///run/redis.sock": Address("unix", "/run/redis.sock"),
    "unix://me@/run/a%20b?db=2": Address("unix", "/run/a b", username="me", db=2),
    "redis+sentinel://a:26379,b:5/mymaster": Address(
        "sentinel", hosts=(("a", 26379), ("b", 5)), master="mymaster"
    ),
    "rediss+sentinel://a:26379/m/1": Address(
        "sentinel", hosts=(("a", 26379),), tls=True, db=1, master="m"
    ),
    "rediss+sentinel://a:26379/m?sentinel-tls=no": Address(
        "sentinel", hosts=(("a", 26379),), tls=True, master="m", plain_sentinels=True
    ),
    "redis+cluster://a:6379,b:6379": Address("cluster", hosts=(("a", 6379), ("b", 6379))),
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_each_form_is_parsed_and_shown_again(text: str) -> None:
    assert parse(text) == ADDRESSES[text]
    assert STORE.show(parse(text)) == text


def test_ports_have_defaults() -> None:
    assert parse("redis://a").hosts == (("a", 6379),)
    assert parse("redis+sentinel://a,[::1]/m").hosts == (("a", 26379), ("::1", 26379))


def test_the_label_has_no_user() -> None:
    assert parse("redis://me@h").label == "redis://h:6379"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "expected sqlite:PATH"),
        ("/var/db", "expected sqlite:PATH"),
        ("http://x", "expected sqlite:PATH"),
        ("sqlite:x.db", "must be absolute"),
        ("unix://run/x", "must be absolute"),
        ("redis://", r'expected HOST\[:PORT\] .*, not ""'),
        ("redis://h:0", 'expected a port from 1 to 65535, not "h:0"'),
        ("redis://h:99999", "expected a port from 1 to 65535"),
        ("redis://[::1", r"expected HOST\[:PORT\]"),
        ("redis://[::zz]", r"expected HOST\[:PORT\]"),
        ("redis://a b", r'expected HOST\[:PORT\] .*, not "a b"'),
        ("redis://h/x", "'x' is not the number of a database"),
        ("redis://u:secret@h", "a password here could be read by others"),
        ("redis://a,b", "use redis\\+sentinel or redis\\+cluster"),
        ("redis://a?x=1", "has no parameters"),
        ("unix:///run/x?y=1", "no other parameter than db"),
        ("redis+sentinel://a", "needs the name of the master"),
        ("redis+sentinel://a/m?sentinel-tls=no", "has no parameters"),
        ("rediss+sentinel://a/m?sentinel-tls=yes", "no other parameter than sentinel-tls=no"),
        ("redis+cluster://a/1", "no other database than 0"),
    ],
)
def test_a_mistake_is_named(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse(text)
    assert "secret" not in str(caught.value)


class Remembers(Filter):
    """Has a store."""

    name = "remembers"
    store = Store.setting()

    async def connect(self, session: Session) -> Proceed:
        await self.store.ask(Put(join("test", session.id.encode()), b"seen", ttl=9))
        return PROCEED


def made(log: Logbook, **options: object) -> Remembers:
    own = from_mapping(Remembers.Options, options, "test")
    filter_ = Remembers(own)
    set_up(filter_, log.log, None, Pool())
    return filter_


def closed(filter_: Remembers) -> None:
    asyncio.run(filter_.pool.aclose())


def test_a_filter_gets_the_store_of_its_flags(tmp_path: Path, logbook: Logbook) -> None:
    for address, kind in (
        ("memory:", MemoryStore),
        (f"sqlite:{tmp_path}/x", SQLiteStore),
        ("redis://localhost", RedisStore),
    ):
        filter_ = made(logbook, store=address)
        assert type(filter_.store) is kind
        closed(filter_)


def test_a_python_without_sqlite_is_named(
    tmp_path: Path, logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    for name in ("sqlite", "sqlite_file"):
        monkeypatch.delitem(sys.modules, f"smtpd_filters.stores.{name}", raising=False)
    with pytest.raises(ConfigError, match=r"^--store: sqlite: requires Python's sqlite3: "):
        made(logbook, store=f"sqlite:{tmp_path}/x")


def test_a_python_without_redis_is_named(logbook: Logbook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "smtpd_filters.stores.redis_client", raising=False)
    monkeypatch.delattr("smtpd_filters.stores.redis_client", raising=False)
    expected = r"^--store: redis://localhost:6379: requires redis-py: "
    with pytest.raises(ConfigError, match=expected):
        made(logbook, store="redis://localhost")


def test_by_default_it_is_a_file_with_the_filters_name(logbook: Logbook) -> None:
    with pytest.raises(ConfigError, match=f"^--store: sqlite:{STATE}/remembers.sqlite: "):
        made(logbook)


def test_a_password_is_read_from_a_file(tmp_path: Path, logbook: Logbook) -> None:
    file = tmp_path / "password"
    with pytest.raises(
        ConfigError, match=f"^--store-password-file: {re.escape(str(file))}: No such file"
    ):
        made(logbook, store="redis://h", **{"store-password-file": str(file)})
    file.write_text("\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match=f"others may read this file .chmod o= {file}.$"):
        made(logbook, store="redis://h", **{"store-password-file": str(file)})
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="no password in the first line"):
        made(logbook, store="redis://h", **{"store-password-file": str(file)})


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"store": "memory:", "store-prefix": "x:"}, "--store-prefix requires a --store of Redis"),
        (
            {"store": "redis://h", "store-ca-file": "/x"},
            "--store-ca-file requires a --store with TLS",
        ),
    ],
)
def test_an_option_without_effect_is_a_mistake(
    options: dict[str, str], why: str, logbook: Logbook
) -> None:
    with pytest.raises(ConfigError, match=why):
        made(logbook, **options)
