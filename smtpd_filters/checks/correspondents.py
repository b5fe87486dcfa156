"""The correspondents of our users: to whom they have written, in a store.

filter-correspondents learns them, and other filters may ask. An entry says that one of our
addresses has written to an address, a second one that any of ours has; both are in the store as
hashes, so that a look at the file shows no address. A guess can still be checked.
"""

from __future__ import annotations

from asyncio import gather
from hashlib import sha256

from smtpd_filters.addresses import canonical, folded, path
from smtpd_filters.addresses.tags import TAGS
from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import choice, option
from smtpd_filters.stores import Get, Put, join
from smtpd_filters.stores.setting import STORE, StoreSetting, open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from smtpd_filters.stores import Store

SPACE = "correspondent"
#: The name of the filter that learns, and so of its file by default.
NAME = "correspondents"
#: Whose correspondents count: those of the recipient, or those of any user.
USER, SERVER = SCOPES = ("user", "server")
SCOPE = choice(*SCOPES)
#: Bytes of a hash: two addresses of a million have the same with a probability of 10^-27.
_HASH = 16


class Correspondents:
    """The correspondents in a store; `scope` is USER or SERVER."""

    __slots__ = ("_scope", "_store")

    def __init__(self, store: Store, scope: str = USER) -> None:
        self._store, self._scope = store, scope

    async def learn(self, ours: str, theirs: Iterable[str], lifetime: float) -> None:
        """Note that one of our addresses has written to others; `lifetime` is in seconds.

        Raises UnavailableError.
        """
        owner = _hash(ours)
        await gather(
            *(
                self._store.ask(
                    Put(join(SPACE, other), b"", ttl=lifetime),
                    Put(join(SPACE, other, owner), b"", ttl=lifetime),
                )
                for other in {_hash(each) for each in theirs}
            )
        )

    async def knows(self, ours: str, theirs: str) -> bool:
        """Return whether our address, or any of ours, has written to theirs.

        Raises UnavailableError.
        """
        parts = (_hash(ours),) if self._scope == USER else ()
        return await self._store.ask(Get(join(SPACE, _hash(theirs), *parts))) is not None


class CorrespondentsSetting(StoreSetting):
    """The flag `--correspondents` of a filter that asks the store of filter-correspondents.

    Password, certificates, prefix and timeout are those of the filter's own store.
    """

    address = "correspondents"
    has_default = False

    def __init__(self) -> None:
        """Declare the flags."""
        super().__init__()
        self._servers = self.options.keys() - {"store"}
        store: Any = option(
            STORE,
            default=None,
            help="The store of filter-correspondents, as --store there: mail from those to whom "
            "the recipient has written is exempt. Its servers have the password, the "
            "certificates and the prefix of --store.",
        )
        scope: Any = option(
            SCOPE,
            default=USER,
            help="Whose correspondents count: those of the recipient (user), or of any user "
            "(server).",
        )
        self.options = {"correspondents": store, "correspondents_of": scope}

    def key(self, filter_: Any) -> tuple[object, ...]:
        """Return what the store is opened with."""
        servers = (filter_.pool.value(filter_, name) for name in sorted(self._servers))
        return (self._address(filter_), *servers)

    def check(self, filter_: Any) -> None:
        """Raise ConfigError for a store that no other process can fill."""
        if self._address(filter_).scheme == "memory":
            raise ConfigError("--correspondents: memory: is empty, since no other filter fills it")

    def open(self, filter_: Any) -> Store:
        """Open the store."""
        values = {name: filter_.pool.value(filter_, name) for name in self._servers}
        address = self._address(filter_)
        values["store"] = address
        return open_store(values, filter_.log.event, flag="--correspondents")


def _hash(text: str) -> bytes:
    """Return the hash of an address without its tag, in hexadecimal digits."""
    address = path(text)
    local = folded(address.local)
    name = f"{TAGS.without(local)}@{canonical(address.domain)}"
    return sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[: 2 * _HASH].encode()
