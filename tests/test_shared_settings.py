"""Settings that open something: declared once, shared, opened at the start, closed at the end."""

# ruff: noqa: ARG002

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters import (
    PROCEED,
    ConfigError,
    Filter,
    Proceed,
    Registration,
    Session,
    Settings,
    Unavailable,
)
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.main import make_chain, set_up
from smtpd_filters.settings import TEXT, Pool, Shared, common_options, option, parse_flags

if TYPE_CHECKING:
    from tests.conftest import Logbook

    Base = Shared["Opened"]
else:
    Base = Shared


class Opened:
    """What is opened."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.closed = 0

    async def aclose(self) -> None:
        self.closed += 1
        if self.where == "fails":
            raise SystemExit(1)


class Store(Base):
    """A declaration with one option."""

    def __init__(self, help: str = "Where it is.") -> None:  # noqa: A002  # the field's word
        made: Any = option(TEXT, default="here", help=help)
        self.options = {"store": made}

    def key(self, filter_: Any) -> str:
        where: str = filter_.pool.value(filter_, "store")
        return where

    def open(self, filter_: Any) -> Opened:
        where: str = filter_.pool.value(filter_, "store")
        if where == "nowhere":
            raise ConfigError("--store: nowhere")
        return Opened(where)


class Stores(Filter):
    """Waits for its store."""

    class Options(Settings):
        """One of its own."""

        word = option(TEXT, default="", help="A word.")

    store = Store()

    async def connect(self, session: Session) -> Proceed:
        await asyncio.sleep(0)
        return PROCEED


class Others(Filter):
    """Has one as well."""

    kept = Store()

    async def connect(self, session: Session) -> Proceed:
        await asyncio.sleep(0)
        return PROCEED


class Plain(Stores):
    """Does not wait."""

    def setup(self) -> Registration:
        return Registration(waits=False)


def made(cls: type[Filter], log: Logbook, pool: Pool | None, **options: Any) -> Any:
    filter_ = cls(cls.Options(**options))
    set_up(filter_, log.log, None, pool)
    return filter_


def test_it_declares_its_options() -> None:
    assert list(Stores.Options.options) == ["word", "store"]
    assert list(Others.Options.options) == ["store"]
    common = common_options(Stores.outcomes(), Stores.on_error, Stores.deadline)
    own, _ = parse_flags(
        Stores.Options, ["--store", "there", "--word", "x"], common=common, prog="x"
    )
    assert vars(own) == {"word": "x", "store": "there"}
    assert isinstance(Stores.store, Store)


def test_filters_that_are_configured_alike_share_one(logbook: Logbook) -> None:
    pool = Pool()
    first = made(Stores, logbook, pool, store="one", word="x")
    second = made(Others, logbook, pool, store="one")
    third = made(Others, logbook, pool, store="two")
    assert first.store is second.kept
    assert third.kept is not second.kept
    assert (first.store.where, third.kept.where) == ("one", "two")
    assert len(pool) == 2


def test_another_kind_is_not_shared(logbook: Logbook) -> None:
    class Another(Store):
        pass

    class Uses(Filter):
        store = Another()

        async def connect(self, session: Session) -> Proceed:
            return PROCEED

    pool = Pool()
    assert made(Uses, logbook, pool).store is not made(Stores, logbook, pool).store


def test_without_a_pool_nothing_is_shared(logbook: Logbook) -> None:
    assert made(Stores, logbook, None).store is not made(Stores, logbook, None).store


def test_a_default_of_the_process_gives_way_to_what_is_configured(logbook: Logbook) -> None:
    pool = Pool(store="of the process")
    assert made(Stores, logbook, pool).store.where == "of the process"
    assert made(Stores, logbook, pool, store="mine").store.where == "mine"
    assert made(Stores, logbook, pool, store="here").store.where == "here"


def test_it_is_opened_at_the_start(logbook: Logbook) -> None:
    pool = Pool()
    filter_ = made(Stores, logbook, pool)
    assert len(pool) == 1
    assert isinstance(vars(filter_)["store"], Opened)
    with pytest.raises(ConfigError, match="--store: nowhere"):
        made(Stores, logbook, pool, store="nowhere")


def test_what_does_not_wait_opens_only_what_it_reads(logbook: Logbook) -> None:
    pool = Pool()
    filter_ = made(Plain, logbook, pool, store="one")
    made(Plain, logbook, pool, store="nowhere")
    assert len(pool) == 0
    assert filter_.store.where == "one"
    assert len(pool) == 1


@pytest.mark.parametrize("where", ["here", "fails"])
def test_the_chain_closes_it_once(where: str, logbook: Logbook) -> None:
    pool = Pool()
    first, second = (made(cls, logbook, pool, store=where) for cls in (Stores, Others))
    alone = made(Plain, logbook, None)
    opened = first.store, alone.store
    chain = make_chain([(each, "proceed", 1.0) for each in (first, second, alone)], logbook.log)
    assert chain.closing
    asyncio.run(chain.close())
    asyncio.run(chain.close())
    assert [each.closed for each in opened] == [1, 1]
    assert len(pool) == 0
    assert ["SystemExit" in line for line in logbook.lines] == [True] * (where == "fails")


def test_an_option_of_the_class_of_the_same_name() -> None:
    with pytest.raises(TypeError, match=r"filter 'mine' .*: kept has an option 'store', declared"):

        class Mine(Filter):
            class Options(Settings):
                store = option(TEXT, default="", help="Its own.")

            kept = Store()

            async def connect(self, session: Session) -> Proceed:
                return PROCEED


def test_an_option_of_a_base_class_of_the_same_name() -> None:
    class Mine(Filter):
        class Options(Settings):
            store = option(TEXT, default="", help="Its own.")

        async def connect(self, session: Session) -> Proceed:
            return PROCEED

    with pytest.raises(TypeError, match="kept has an option 'store', declared twice"):

        class Derived(Mine):
            kept = Store()


def test_two_of_one_kind() -> None:
    with pytest.raises(TypeError, match="second has an option 'store', declared twice"):

        class Mine(Filter):
            first = Store()
            second = Store()


def test_a_subclass_inherits_it(logbook: Logbook) -> None:
    class Derived(Stores):
        """Adds nothing."""

    class Extended(Stores):
        class Options(Stores.Options):
            more = option(TEXT, default="", help="More.")

    class Replaced(Stores):
        class Options(Settings):
            other = option(TEXT, default="", help="Instead of them.")

    assert Derived.Options is Stores.Options
    assert list(Extended.Options.options) == ["word", "store", "more"]
    assert list(Replaced.Options.options) == ["other", "store"]
    for cls in (Derived, Extended, Replaced):
        assert made(cls, logbook, Pool(), store="one").store.where == "one"


def test_a_subclass_may_declare_it_in_its_own_way(logbook: Logbook) -> None:
    class Derived(Stores):
        store = Store(help="In its own words.")

    assert Derived.Options.options["store"].help == "In its own words."
    assert Stores.Options.options["store"].help == "Where it is."
    assert list(Derived.Options.options) == ["word", "store"]
    assert made(Derived, logbook, Pool(), store="one").store.where == "one"


def test_a_subclass_with_an_option_of_that_name() -> None:
    with pytest.raises(TypeError, match="store has an option 'store', declared twice"):

        class Derived(Stores):
            class Options(Stores.Options):
                store = option(TEXT, default="", help="Another.")


def test_a_resolver_is_shared_by_its_settings(logbook: Logbook) -> None:
    class Known(Filter):
        dns = Resolver.setting()

        async def connect(self, session: Session) -> Proceed:
            await asyncio.sleep(0)
            return PROCEED

    class Unknown(Known):
        """Another filter."""

    pool = Pool(nameserver=(("127.0.0.1", 5353),))
    first, second = made(Known, logbook, pool), made(Unknown, logbook, pool)
    assert first.dns is second.dns
    slow = made(Known, logbook, pool, timeout=5.0)
    elsewhere = made(Known, logbook, pool, nameserver=(("127.0.0.1", 5354),))
    assert len({id(each.dns) for each in (first, slow, elsewhere)}) == 3
    assert list(Known.Options.options) == ["nameserver", "timeout"]
    asyncio.run(pool.aclose())


def test_a_filter_cannot_close_the_resolver_that_others_share(logbook: Logbook) -> None:
    class Known(Filter):
        dns = Resolver.setting()

        async def connect(self, session: Session) -> Proceed:
            return PROCEED

    async def test() -> None:
        pool = Pool(nameserver=(("127.0.0.1", 5353),))
        dns: Resolver = made(Known, logbook, pool).dns
        with pytest.raises(RuntimeError, match="a filter can't close its resolver"):
            await dns.aclose()
        with pytest.raises(RuntimeError, match="a filter can't close its resolver"):
            async with dns:
                pass
        assert dns.known("x.example", "A") is None
        await pool.aclose()
        assert dns.known("x.example", "A") == Unavailable("the resolver is closed")

    asyncio.run(test())
