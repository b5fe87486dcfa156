"""The memory of filter-greylist: clients, and triplets of client, sender and recipient.

All entries of a client have its shard. A triplet is `waiting` from its first attempt on, for the
retry window, and `passed` for the lifetime after its last use. The client's own entry is the number
of its messages that have passed, then `known`; or `allowed`, by the operator.

Invariants
----------
*One first attempt*: of several processes that see a triplet at the same time, one begins its wait
(`Add`); the others see it waiting.
*Counted once*: an hour's messages of a client count as one, however many processes count
(`Replace` expects the number that was read). A count is never more than the hours in which the
client has passed.
*One round trip*: a decision is one request. A second one follows when a triplet passes for the
first time, and then once an hour; and if a domain would have to wait, about its client's network.
*Read is enough*: what is known lets a message in, also if the store takes no writes.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_filters.errors import UnavailableError
from smtpd_filters.stores import Add, Get, Put, Replace, join
from smtpd_filters.stores.store import MAX_OPERATIONS, may_be_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from smtpd_filters.stores import Entry, Store
    from smtpd_filters.stores.operations import Operation

#: The space of the keys.
SPACE = "greylist"
WAITING, PASSED = b"waiting", b"passed"
STATES = frozenset({WAITING, PASSED})
KNOWN, ALLOWED = b"known", b"allowed"
#: Seconds after which an entry in use is renewed, and after which a client's next message counts.
#: Postgrey counts a client's messages once an hour as well.
RENEW = 3600.0
#: Clients of which the process remembers that they were known: their triplets aren't written.
MAX_KNOWN = 10_000


class Terms(NamedTuple):
    """The times in seconds, and after how many messages a client is known, 0 for never."""

    delay: float
    window: float
    lifetime: float
    known_after: int


class Attempt(NamedTuple):
    """An attempt of a client to send a message; sender and recipients are those of `senders`.

    `network` is that of a client which is a domain: what is known of it counts as well. `address`
    is that of the client, to be shown. `retried` is whether another recipient of the message has
    passed.
    """

    client: str
    sender: str
    recipients: Sequence[str]
    network: str = ""
    address: str = ""
    retried: bool = False

    def keys(self, client: str) -> list[bytes]:
        """Return the keys of its triplets with a client."""
        return [triplet_key(client, self.sender, each) for each in dict.fromkeys(self.recipients)]


class Standing(NamedTuple):
    """The standing of an attempt.

    `state` is "known" for a client that needs no triplet, "passed" for one that had passed before,
    "waited" for one that has now waited long enough, `seconds` in all, "waiting" for one that waits
    for `seconds` more, and "new" for a first attempt.
    """

    state: str
    seconds: float = 0.0

    @property
    def passes(self) -> bool:
        """Whether the message is accepted."""
        return self.state not in {"new", "waiting"}

    @property
    def wait(self) -> int:
        """The whole seconds to wait."""
        return max(1, ceil(self.seconds))


class Triplets:
    """The triplets in a store; `note` takes why something could not be written, for the log."""

    def __init__(self, store: Store, terms: Terms, note: Callable[[str], object] = str) -> None:
        self._store = store
        self._terms = terms
        self._note = note
        self._known: dict[str, None] = {}

    async def judge(self, attempt: Attempt) -> Standing:
        """Return the standing of an attempt, and begin or end the wait of its triplets.

        One recipient that has waited is enough: it shows that the client retries. Raises
        UnavailableError.
        """
        try:
            return await self._judge(attempt)
        except UnavailableError as error:
            if not may_be_read(error):
                raise
            for client in dict.fromkeys((attempt.client, attempt.network or attempt.client)):
                standing = await self._read(attempt, client)
                if standing.passes:
                    self._note(str(error))
                    return standing
            raise

    async def _judge(self, attempt: Attempt) -> Standing:
        client = attempt.client
        own = client_key(client)
        if client in self._known:
            entry = await self._store.ask(Get(own))
            if is_known(entry):
                return await self._welcome(client, own, entry)
            self._known.pop(client, None)  # another message may have done so
        new = _value(WAITING, attempt.address)
        found: dict[bytes, Entry | None] = {}
        entry = None
        for some in _chunks(attempt.keys(client)):
            adds = [Add(key, new, self._terms.window) for key in some]
            entry, *entries = await self._store.ask(Get(own), *adds)
            if is_known(entry):
                return await self._welcome(client, own, entry)
            found |= zip(some, entries, strict=True)
        await self._begin_damaged(found, new)
        standing = self._standing(found.values())
        if attempt.retried:
            standing = Standing("passed")
        elif not standing.passes and attempt.network not in {"", client}:
            standing = await self._by_network(standing, attempt)
        if standing.passes and standing.state != "known":
            await self._pass(own, entry, found, attempt.address)
        return standing

    async def _begin_damaged(self, found: dict[bytes, Entry | None], new: bytes) -> None:
        """Begin the wait of triplets whose entries are neither waiting nor passed."""
        for key, entry in found.items():
            if entry is not None and state_of(entry) not in STATES:
                self._store.damaged(key)
                await self._store.ask(Replace(key, new, self._terms.window, entry.value))
                found[key] = None

    async def _by_network(self, standing: Standing, attempt: Attempt) -> Standing:
        """Return the standing of an attempt by its client's network, if that is better.

        The operator may have allowed the network, or imported it, or it has waited while the
        client's domain could not be looked up.
        """
        other = await self._read(attempt, attempt.network)
        better = other.passes or (other.state == "waiting" and other.seconds < standing.seconds)
        return other if better else standing

    async def _read(self, attempt: Attempt, client: str) -> Standing:
        """Return the standing of an attempt by what is known of a client, and write nothing."""
        own = Get(client_key(client))
        found: list[Entry | None] = []
        for some in _chunks([Get(key) for key in attempt.keys(client)]):
            known, *entries = await self._store.ask(own, *some)
            if is_known(known):
                return Standing("known")
            found += entries
        return self._standing(found)

    def _standing(self, entries: Iterable[Entry | None]) -> Standing:
        longest = -1.0
        for entry in entries:
            if entry is None or (state := state_of(entry)) not in STATES:
                continue
            if state == PASSED:
                return Standing("passed")
            longest = max(longest, entry.age)
        delay = self._terms.delay
        if longest < 0:
            return Standing("new", delay)
        if longest >= delay:
            return Standing("waited", longest)
        return Standing("waiting", delay - longest)

    async def _welcome(self, client: str, own: bytes, entry: Entry | None) -> Standing:
        """Let a known client in, and renew its entry; that of the operator isn't renewed."""
        self._known.pop(client, None)
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[client] = None
        if entry is not None and entry.value == KNOWN and entry.age >= RENEW:
            await self._write([Replace(own, KNOWN, self._terms.lifetime, KNOWN)])
        return Standing("known")

    async def _pass(
        self, own: bytes, entry: Entry | None, found: dict[bytes, Entry | None], address: str
    ) -> None:
        """Note that triplets have passed, and count the message for the client."""
        lifetime = self._terms.lifetime
        value = _value(PASSED, address)
        operations: list[Operation[Any]] = [
            Put(key, value, lifetime)
            for key, known in found.items()
            if known is None or state_of(known) != PASSED or known.age >= RENEW
        ]
        operations += self._counted(own, entry)
        await self._write(operations)

    async def _write(self, operations: Sequence[Operation[Any]]) -> None:
        """Note what a message that passes has changed (*Read is enough*)."""
        try:
            for some in _chunks(operations):
                await self._store.ask(*some)
        except UnavailableError as error:
            self._note(str(error))

    def _counted(self, own: bytes, entry: Entry | None) -> list[Operation[Any]]:
        after, lifetime = self._terms.known_after, self._terms.lifetime
        if not after:
            return []
        first = KNOWN if after == 1 else b"1"
        if entry is None:
            return [Add(own, first, lifetime)]
        if entry.number is None:
            self._store.damaged(own)
            return [Replace(own, first, lifetime, entry.value)]
        if entry.age < RENEW:
            return []
        count = entry.number + 1
        value = KNOWN if count >= after else b"%d" % count
        return [Replace(own, value, lifetime, entry.value)]


def client_key(client: str) -> bytes:
    """Return the key of a client's own entry."""
    return join(SPACE, _bytes(client))


def triplet_key(client: str, sender: str, recipient: str) -> bytes:
    """Return the key of a triplet."""
    return join(SPACE, _bytes(client), _bytes(sender), _bytes(recipient))


def is_known(entry: Entry | None) -> bool:
    """Return whether a client's own entry lets it in."""
    return entry is not None and entry.value in {KNOWN, ALLOWED}


def state_of(entry: Entry) -> bytes:
    """Return the state of a triplet."""
    return entry.value.partition(b" ")[0]


def _value(state: bytes, address: str) -> bytes:
    return b"%b %b" % (state, _bytes(address)) if address else state


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """Split into parts for one request each, with room for one operation more."""
    size = MAX_OPERATIONS - 1
    return (items[at : at + size] for at in range(0, len(items), size))
