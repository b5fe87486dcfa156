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
*Recovers*: after any failure, later requests try again; nothing needs a restart.
*Damage is nothing*: an entry that no operation can have written counts as missing (`damage`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from .keys import is_key, shard_of
from .operations import Join

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from .damage import Damage
    from .operations import Entry, Operation
    from .setting import StoreSetting

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")
W = TypeVar("W")

#: Operations of a request at most: a request is one decision.
MAX_OPERATIONS = 32


class Store:
    """A store, which `Store.setting` opens for a filter."""

    #: The address for the log.
    label: str
    _damage: Damage

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
        ValueError for keys of several shards or too many operations.
        """
        if len(operations) == 1:
            return (await self._apply(operations))[0]
        if not operations or len(operations) > MAX_OPERATIONS:
            raise ValueError(f"{len(operations)} operations: must be 1 to {MAX_OPERATIONS}")
        first = operations[0].key
        head = first[: first.index(b"}") + 1]
        same = all(operation.key.startswith(head) for operation in operations)
        if not same and len({shard_of(operation.key) for operation in operations}) != 1:
            raise ValueError("the keys of one request must have the same shard")
        return tuple(await self._apply(operations))

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

        For the operator's tools, not for decisions: it reads the store in steps, and entries that
        are written meanwhile may be missing. Groups are not listed. Raises UnavailableError.
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


CLOSED = "the store is closed"
