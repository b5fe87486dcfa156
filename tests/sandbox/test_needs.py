"""Tests of the needs that follow from settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtpd_filters.sandbox import Needs
from smtpd_filters.sandbox.needs import MEMORY, PER_TABLE_BYTE, around, packed_address
from smtpd_filters.settings import ENDPOINT, LIST, PATH, Pool, Settings, option, table
from smtpd_filters.stores.address import parse
from smtpd_filters.stores.setting import StoreSetting
from smtpd_filters.tables import StringTable
from smtpd_filters.tables.remote.redis import open_backend


class Options(Settings):
    """One of each kind that needs something."""

    start = option(PATH, default=None, help="Read at start only.")
    file = option(PATH("read"), default=None, help="Read later.")
    state = option(PATH("write"), default=None, help="Written to.")
    names = option(table(StringTable), default=None, help="A table.")
    servers = option(LIST(ENDPOINT), default=(), help="Servers.")


def declared(settings: Settings) -> Needs:
    needs = Needs()
    for name, value in vars(settings).items():
        if value is not None:
            settings.options[name].kind.declare(value, needs)
    return needs


def test_settings_that_are_not_set_need_nothing() -> None:
    needs, empty = declared(Options()), Needs()
    assert {name: getattr(needs, name) for name in Needs.__slots__} == {
        name: getattr(empty, name) for name in Needs.__slots__
    }


def test_each_setting_needs_what_its_value_names(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("a\n")
    needs = declared(
        Options(
            start="/etc/password",
            file="/usr/share/data",
            state="/var/db/x",
            names=StringTable.load(f"file:{tmp_path}/names"),
            servers=(("192.0.2.1", 53), ("mail.example", 80)),
        )
    )
    assert needs.read == ["/usr/share/data"]
    assert needs.write == ["/var/db/x"]
    assert needs.replaced == [f"{tmp_path}/names"]
    assert needs.memory == MEMORY + 2 * PER_TABLE_BYTE
    assert needs.tcp == [("192.0.2.1", 53), ("mail.example", 80)]
    assert needs.udp == []
    assert needs.resolves


def test_a_table_in_the_settings_themselves_needs_no_file() -> None:
    assert declared(Options(names=StringTable.load("{ a, b }"))).replaced == []


def test_a_relative_path_is_one_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    needs = Needs()
    needs.to_read("x")
    assert needs.read == [f"{tmp_path}/x"]


@pytest.mark.parametrize(
    ("host", "packed"),
    [
        ("127.0.0.1", b"\x7f\0\0\1"),
        ("::ffff:127.0.0.1", b"\x7f\0\0\1"),
        ("::1", bytes(15) + b"\1"),
        ("0:0:0:0:0:0:0:1", bytes(15) + b"\1"),
        ("fe80::1%lo", b"\xfe\x80" + bytes(13) + b"\1"),
        ("localhost", None),
        ("127.1", None),
        ("a\0b", None),
    ],
)
def test_an_address_has_one_form(host: str, packed: bytes | None) -> None:
    assert packed_address(host) == packed


def test_a_file_is_replaced_where_its_name_is_and_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_text("")
    (tmp_path / "x").symlink_to("real/x")
    assert list(around(str(tmp_path / "x"))) == [str(tmp_path), str(tmp_path / "real")]
    assert list(around("/blocked")) == ["/blocked"]


class _Filter:
    """What a store's setting reads of a filter."""

    def __init__(
        self, store: str, certificates: str | None = None, password: str | None = None
    ) -> None:
        self.name = "x"
        self.pool = Pool(
            store=parse(store), store_ca_file=certificates, store_password_file=password
        )
        self.settings = StoreSettings()


class StoreSettings(Settings):
    """The option that the pool overrides."""


def open_(descriptors: int) -> dict[str, object]:
    """Return the need of so many descriptors."""
    return {"descriptors": Needs().descriptors + descriptors}


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        ("memory:", {}),
        ("sqlite:/var/lib/x/y.sqlite", {"write": ["/var/lib/x"]}),
        ("redis://192.0.2.1", {"tcp": [("192.0.2.1", 6379)], **open_(32)}),
        ("unix:///run/redis.sock", {"sockets": ["/run/redis.sock"], **open_(32)}),
        (
            "redis+sentinel://192.0.2.1,192.0.2.2:5/main",
            {"tcp": [("192.0.2.1", 26379), ("192.0.2.2", 5)], "anywhere": True, **open_(32)},
        ),
        (
            "redis+cluster://192.0.2.1",
            {"tcp": [("192.0.2.1", 6379)], "anywhere": True, **open_(1024)},
        ),
    ],
)
def test_a_store_needs_its_file_or_its_servers(store: str, expected: dict[str, object]) -> None:
    needs, empty = Needs(), Needs()
    filter_ = _Filter(store)
    StoreSetting().declare(filter_, needs)
    assert {name: getattr(needs, name) for name in Needs.__slots__} == {
        **{name: getattr(empty, name) for name in Needs.__slots__},
        **expected,
    }


def test_a_store_reads_certificates_and_password_of_its_servers_when_it_connects() -> None:
    needs = Needs()
    filter_ = _Filter("rediss://192.0.2.1", "/srv/ca.pem", "/etc/mail/password")
    StoreSetting().declare(filter_, needs)
    assert needs.replaced == ["/srv/ca.pem", "/etc/mail/password"]


def test_a_table_reads_the_certificates_of_its_servers_when_it_connects(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    (tmp_path / "table").write_text(f"url rediss://192.0.2.1\nset a\nca_file {tmp_path}/ca.pem\n")
    needs = Needs()
    backend, _ = open_backend(str(tmp_path / "table"), "string")
    backend.declare(needs)
    assert needs.replaced == [f"{tmp_path}/ca.pem"]
