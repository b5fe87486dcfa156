"""The interface of stores: what filters remember, in this process, in a file or on a server.

    triplet = join("greylist", client, sender, recipient)
    known = await self.store.ask(Add(triplet, b"waiting", ttl=DAY))

Invariants
----------
*Never waits long*: a request ends within the store's timeout.
*Unavailable raises*: a request that fails raises UnavailableError, so that the filter's
`--on-error` decides. Its text names the store and the cause, without details that differ between
requests, since the log writes each cause once per interval.
*All or nothing*: of a request that failed, either everything was applied or nothing. Which of the
two is unknown after a timeout.
*Recovers*: after any failure, later requests try again; nothing needs a restart. The log has a line
at the end of it (`trouble`).
*Damage is nothing*: an entry that no operation can have written counts as missing (`damage`).
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, overload

from smtpd_filters.errors import UnavailableError
from smtpd_filters.runtime.counters import COUNTERS, INVALID

from .keys import is_key, shard_of
from .operations import Join

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from .damage import Damage
    from .operations import Entry, Operation
    from .setting import StoreSetting
    from .trouble import Trouble

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")
W = TypeVar("W")

#: Operations of a request at most: a request is one decision.
MAX_OPERATIONS = 32


class StoreUnavailableError(UnavailableError):
    """A request that failed; `failure` is how it is counted: one of `counters.FAILURES`."""

    def __init__(self, cause: str, failure: str = INVALID) -> None:
        super().__init__(cause)
        self.failure = failure


def may_be_read(error: UnavailableError) -> bool:
    """Return whether a store that failed a request to write may still be read.

    It has replied: its disk or its memory is full, say, or it is a read-only replica. One that is
    silent isn't asked again for the same decision.
    """
    return isinstance(error, StoreUnavailableError) and error.failure == INVALID


class Store:
    """What a filter remembers beyond a session, in a file, in memory, or on servers.

    `Store.setting` declares and opens it. `ask` applies operations, such as `Count` and `Get`, to
    keys that `join` makes; every entry ends by itself. Raises UnavailableError if the store fails.
    """

    #: The address for the log.
    label: str
    #: Whether all shards are in one place, as in a file or on one server.
    one_place: bool = False
    _damage: Damage
    #: None in a cluster, whose nodes fail alone.
    _trouble: Trouble | None = None
    #: How its requests are counted (`runtime.counters`); "" for not at all.
    kind = ""

    @staticmethod
    def setting() -> StoreSetting:
        """Declare a store, as an attribute of a filter: `store = Store.setting()`.

        This declares the flags `--store`, `--store-password-file`, `--store-ca-file`,
        `--store-prefix` and `--store-timeout`. The attribute is a store that filters of the process
        share if they are configured alike.
        """
        from .setting import StoreSetting  # used by filters only

        return StoreSetting()

    @overload
    async def ask(self, first: Operation[T], /) -> T: ...
    @overload
    async def ask(self, first: Operation[T], second: Operation[U], /) -> tuple[T, U]: ...
    @overload
    async def ask(
        self, first: Operation[T], second: Operation[U], third: Operation[V], /
    ) -> tuple[T, U, V]: ...
    @overload
    async def ask(
        self,
        first: Operation[T],
        second: Operation[U],
        third: Operation[V],
        fourth: Operation[W],
        /,
    ) -> tuple[T, U, V, W]: ...
    @overload
    async def ask(self, *operations: Operation[Any]) -> Any: ...

    async def ask(self, *operations: Operation[Any]) -> Any:
        """Apply operations atomically, in their order; return the result, or the tuple of several.

        All keys must have the same shard. Raises UnavailableError if the store fails, and
        ValueError for keys of several shards or more than 32 operations.
        """
        if len(operations) == 1:
            return (await self._counted(operations))[0]
        if not operations or len(operations) > MAX_OPERATIONS:
            raise ValueError(f"{len(operations)} operations: must be 1 to {MAX_OPERATIONS}")
        first = operations[0].key
        head = first[: first.index(b"}") + 1]
        same = all(operation.key.startswith(head) for operation in operations)
        if not same and len({shard_of(operation.key) for operation in operations}) != 1:
            raise ValueError("the keys of one request must have the same shard")
        return tuple(await self._counted(operations))

    async def _counted(self, operations: Sequence[Operation[Any]]) -> Sequence[Any]:
        """Apply operations, and count the request."""
        if not self.kind:
            return await self._apply(operations)
        counts = COUNTERS.of(self.kind)
        began = monotonic()
        try:
            results = await self._apply(operations)
        except UnavailableError as error:
            counts.ended_since(began, getattr(error, "failure", INVALID))
            if self._trouble is not None:
                self._trouble.failed(operations)
            raise
        counts.ended_since(began)
        if self._trouble is not None and self._trouble.is_on:
            self._trouble.succeeded(operations)
        return results

    async def ask_together(self, requests: Sequence[Sequence[Operation[Any]]]) -> list[Any]:
        """Make several requests at the same time; return the results of each, or its exception.

        In a store in one place they are a single request, which succeeds or fails as a whole.
        """
        operations = [operation for request in requests for operation in request]
        if not self.one_place or len(operations) > MAX_OPERATIONS:
            return await gather_results(self, requests)
        try:
            results = iter(await self._counted(operations))
        except UnavailableError as error:
            return [error] * len(requests)
        return [[next(results) for _ in request] for request in requests]

    async def _apply(self, operations: Sequence[Operation[Any]]) -> Sequence[Any]:
        """Do what `ask` does; return the results."""
        raise NotImplementedError

    def damaged(self, key: bytes) -> None:
        """Note that the value of an entry has no meaning for its owner, which takes it as missing.

        The log has one line for a space and a minute.
        """
        self._damage.found(key)

    def _is_key(self, key: bytes) -> bool:
        """Return whether a stored key was made by `join`; note if not."""
        if is_key(key):
            return True
        self.damaged(key)
        return False

    def scan(self, prefix: bytes) -> AsyncIterator[tuple[bytes, Entry]]:
        """Iterate over the entries whose keys have a prefix, in no particular order.

        A prefix is the beginning of a key of `join`: `b"recipients:"` is that of a space, and an
        empty one that of all keys. For the operator's tools, not for decisions: it reads the store
        in steps, and entries that are written meanwhile may be missing. Groups are not listed.
        Raises UnavailableError.
        """
        raise NotImplementedError

    async def groups(self, prefix: bytes) -> AsyncIterator[tuple[bytes, int]]:
        """Iterate over the groups whose keys have a prefix, with the numbers of their members.

        As `scan`, for the operator's tools.
        """
        async for key in self._group_keys(prefix):
            if not self._is_key(key):
                continue
            # Nobody joins a group of at most none: it is counted.
            if members := (await self.ask(Join(key, b"", 0, ttl=1))).members:
                yield key, members

    def _group_keys(self, prefix: bytes) -> AsyncIterator[bytes]:
        """Iterate over the keys of groups with a prefix."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Release everything; never raise.  Later requests raise UnavailableError."""
        raise NotImplementedError


async def gather_results(store: Store, requests: Sequence[Sequence[Operation[Any]]]) -> list[Any]:
    """Make requests of their own; return the results of each, or its exception."""
    from asyncio import gather  # the loop is running

    async def asked(request: Sequence[Operation[Any]]) -> Sequence[Any]:
        found = await store.ask(*request)
        return found if len(request) > 1 else (found,)

    results: list[Any] = await gather(*map(asked, requests), return_exceptions=True)
    return results


CLOSED = "the store is closed"
