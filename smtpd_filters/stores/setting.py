"""The setting that declares a filter's store and its flags."""

from __future__ import annotations

import sys
from time import monotonic

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.settings import PATH, SECONDS, TEXT, Kind, Shared, option
from smtpd_filters.settings.files import read_file
from smtpd_filters.settings.flags import is_check
from smtpd_filters.settings.secrets import Secret

from .address import Address, parse
from .keys import join
from .operations import Get

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from smtpd_filters.runtime.probes import Probe
    from smtpd_filters.sandbox import Needs

    from .sqlite import SQLiteStore
    from .store import Store

#: The folder of the packages for files of filters, writable to smtpd's unprivileged user.
STATE = "/var/lib/smtpd-filters" if sys.platform.startswith("linux") else "/var/db/smtpd-filters"
#: Bytes of a file of certificates: Mozilla's have 0.2 MiB.
MAX_CERTIFICATES = 4 << 20
#: A key that no filter writes.
_PROBED = join("probe", b"probe")
#: The first part of all keys on a server.
PREFIX = "smtpd-filters:"


class _StoreKind(Kind[Address]):
    metavar = "STORE"
    noun = "a store: sqlite:PATH, redis://HOST[:PORT][/DB] or another form of it"

    def parse(self, text: str) -> Address:
        return parse(text)

    def show(self, value: Address) -> str:
        return value.text


#: The address of a store.
STORE = _StoreKind()


class StoreSetting(Shared["Store"]):
    """The flags `--store` and those of its servers, and the store that they configure."""

    #: The option with the address.
    address = "store"
    has_default = True

    def __init__(self) -> None:
        """See `Store.setting`."""
        store: Any = option(
            STORE,
            default=None,
            help="Where the filter keeps what it has to remember: sqlite:PATH, a file; or servers "
            "of Redis or Valkey that several exchangers share: redis://[USER@]HOST[:PORT][/DB], "
            "the same with rediss:// for TLS, unix://PATH, "
            "redis+sentinel://HOST[:PORT],HOST.../MASTER, redis+cluster://HOST[:PORT],HOST...; or "
            "memory:, which is forgotten when the filter ends. By default the file NAME.sqlite, "
            "with the name of the filter, in /var/lib/smtpd-filters, on BSD systems in "
            "/var/db/smtpd-filters.",
        )
        password: Any = option(
            PATH,
            default=None,
            help="A file whose first line is the password of the store's servers, and of sentinels "
            "that require one. It is read at the start, and again when a connection fails.",
        )
        certificates: Any = option(
            PATH,
            default=None,
            help="A file with the certificates that the store's servers must present or be signed "
            "by. By default the system's. With rediss+sentinel:// the sentinels have TLS as well; "
            "if they have none, add ?sentinel-tls=no to the address. Servers must not require "
            "certificates of clients (tls-auth-clients no).",
        )
        prefix: Any = option(
            TEXT,
            default=PREFIX,
            help="The beginning of all keys on the store's servers. Filters with the same prefix "
            "share what they remember.",
        )
        timeout: Any = option(
            SECONDS(low=0.05, high=60),
            default=2.0,
            help="How long to wait for the store; after that a filter's --on-error decides.",
        )
        self.options = {
            "store": store,
            "store_password_file": password,
            "store_ca_file": certificates,
            "store_prefix": prefix,
            "store_timeout": timeout,
        }

    def key(self, filter_: Any) -> tuple[object, ...]:
        """Return all options: filters share a store that they configure alike."""
        values = (filter_.pool.value(filter_, name) for name in self.options)
        return (self._address(filter_), *values)

    def check(self, filter_: Any) -> None:
        """Raise ConfigError for an option that has no effect."""
        if self._address(filter_).scheme in {"sqlite", "memory"}:
            for name in ("store_password_file", "store_ca_file", "store_prefix"):
                if name in filter_.settings.given:
                    required = f"{_flag(self.address)} of Redis or Valkey"
                    raise ConfigError(f"{_flag(name)} requires a {required}")

    def open(self, filter_: Any) -> Store:
        """Open the store."""
        values = {name: filter_.pool.value(filter_, name) for name in self.options}
        address = self._address(filter_)
        return open_store(
            {**values, "store": address}, filter_.log.event, filter_.now, flag=_flag(self.address)
        )

    def declare(self, filter_: Any, needs: Needs) -> None:
        """Declare the directory of a file, or the servers with what connections to them read."""
        address = self._address(filter_)
        address.declare(needs)
        if address.scheme not in {"sqlite", "memory"}:
            from .redis_store import CONNECTIONS

            for name in ("store_ca_file", "store_password_file"):
                if (path := filter_.pool.value(filter_, name)) is not None:
                    needs.to_reload(path)  # when it connects

            needs.to_open(CONNECTIONS * (_NODES if address.scheme == "cluster" else 1))

    def probes(self, filter_: Any) -> Iterator[Probe]:
        """Yield a probe that reads from the store."""
        from smtpd_filters.runtime.probes import Probe

        store: Store = getattr(filter_, self.name)

        async def read() -> str:
            if is_check() and store.kind == "sqlite":
                file: SQLiteStore = getattr(filter_, self.name)
                return file.fault()
            try:
                await store.ask(Get(_PROBED))
            except UnavailableError as error:
                return str(error)
            return ""

        yield Probe(f"store {self._address(filter_).label}", read)

    def _address(self, filter_: Any) -> Address:
        """Return the store's address; by default a file with the filter's name."""
        given: Address | None = filter_.pool.value(filter_, self.address)
        return default_address(filter_.store_name or filter_.name) if given is None else given


#: Nodes of a cluster to which all connections may be open: they are kept for each node.
_NODES = 32


def default_address(name: str) -> Address:
    """Return the address of a filter's store if none is given: a file with the filter's name."""
    return Address("sqlite", f"{STATE}/{name}.sqlite")


def open_store(
    values: Mapping[str, Any],
    note: Callable[[str], object],
    clock: Callable[[], float] = monotonic,
    *,
    flag: str = "--store",
    guest: bool = False,
) -> Store:
    """Open the store that the values of `StoreSetting.options` describe.

    `note` takes a text for the log. `clock` is that of a store in memory, `Filter.now` for a
    filter, which a test advances. `flag` is the one that gave the store's address. A `guest` uses
    the file of a filter: it neither creates it nor renames a damaged one. Raises ConfigError.
    """
    address: Address = values["store"]
    timeout: float = values["store_timeout"]
    try:
        if address.scheme == "memory":
            from .memory import MemoryStore

            return MemoryStore(clock=clock, note=note)
        if address.scheme == "sqlite":
            from .sqlite import SQLiteStore

            return SQLiteStore(
                address.path, timeout=timeout, note=note, guest=guest, check=is_check()
            )
    except ImportError as error:  # a package of its own on FreeBSD
        raise ConfigError(f"{flag}: sqlite: requires Python's sqlite3: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None
    return _open_redis(values, note, flag)


def _open_redis(values: Mapping[str, Any], note: Callable[[str], object], flag: str) -> Store:
    from .redis_store import RedisStore

    address: Address = values["store"]
    if values["store_ca_file"] is not None:
        if not address.tls:
            raise ConfigError(f"--store-ca-file requires a {flag} with TLS, such as rediss://HOST")
        try:
            read_file(values["store_ca_file"], MAX_CERTIFICATES)
        except ConfigError as error:
            raise ConfigError(f"--store-ca-file: {error}") from None
    password = Secret(values["store_password_file"], "--store-password-file")
    try:
        return RedisStore(
            address,
            timeout=values["store_timeout"],
            note=note,
            password=password.value,
            read_password=password.read_again,
            prefix=values["store_prefix"],
            certificates=values["store_ca_file"] or "",
        )
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
