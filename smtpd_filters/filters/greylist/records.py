"""Entries of filter-greylist's store as records, in the forms of an export and of a list."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from smtpd_filters.stores import Add, Put, split
from smtpd_filters.stores.damage import MAX_COUNT
from smtpd_filters.stores.operations import MAX_TTL

from .triplets import (
    ALLOWED,
    KNOWN,
    PASSED,
    SPACE,
    WAITING,
    client_key,
    triplet_key,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from smtpd_filters.stores import Entry, Store

#: The states of a triplet, and those of a client's own entry; "counted" has a count.
TRIPLET_STATES = (WAITING.decode(), PASSED.decode())
COUNTED = "counted"
CLIENT_STATES = (COUNTED, KNOWN.decode(), ALLOWED.decode())
#: The beginning of all keys.
ALL = f"{SPACE}:{{".encode()


#: The characters of an address; IPv6 has 45 at most.
MAX_ADDRESS = 64


@dataclass(frozen=True, slots=True)
class Record:
    """A triplet, or a client's own entry, without sender and recipient.

    `age` are the seconds since it was written: since the first attempt of a triplet that waits.
    `left` are those until it expires. `address` is the client's last one, of a triplet. `count` is
    the number of a client's messages, unless it is known.
    """

    client: str
    state: str
    left: float
    age: float = 0.0
    sender: str | None = None
    recipient: str | None = None
    address: str = ""
    count: int | None = None

    @property
    def is_triplet(self) -> bool:
        """Whether this is a triplet."""
        return self.recipient is not None

    @property
    def shown(self) -> dict[str, Any]:
        """The record in an export or a list."""
        fields = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        if self.is_triplet:
            fields["sender"] = self.sender
        return {**fields, "left": round(self.left), "age": round(self.age)}

    @property
    def operation(self) -> Add | Put:
        """What writes the record; a triplet that waits begins to wait, unless it is there."""
        ttl = min(max(self.left, 1.0), MAX_TTL)
        if self.recipient is None:
            value = b"%d" % self.count if self.count is not None else self.state.encode()
            return Put(client_key(self.client), value, ttl)
        key = triplet_key(self.client, self.sender or "", self.recipient)
        value = f"{self.state} {self.address}".strip().encode("ascii")
        return (Put if self.state == PASSED.decode() else Add)(key, value, ttl)


def of_entry(key: bytes, entry: Entry) -> Record | None:
    """Return the record of an entry; None for one of another kind."""
    parts = [part.decode("utf-8", "surrogateescape") for part in split(key)]
    state, _, address = entry.value.decode("utf-8", "surrogateescape").partition(" ")
    client, *rest = parts
    if not rest:
        count = entry.number
        state = COUNTED if count else state
        if state not in CLIENT_STATES or (state == COUNTED) is not bool(count):
            return None
        return Record(client, state, entry.left, entry.age, count=count)
    if len(rest) != 2 or state not in TRIPLET_STATES or not _is_address(address):
        return None
    sender, recipient = rest
    return Record(client, state, entry.left, entry.age, sender, recipient, address)


async def records(store: Store, prefix: bytes = ALL) -> AsyncIterator[Record]:
    """Iterate over the records of a store whose keys begin with a prefix.

    Raises UnavailableError.
    """
    async for key, entry in store.scan(prefix):
        if (record := of_entry(key, entry)) is not None:
            yield record
        else:
            store.damaged(key)


def of_json(fields: Mapping[str, Any]) -> Record:
    """Return the record of an export; raise ValueError if it isn't one."""
    try:
        record = Record(**fields)
    except TypeError:
        raise ValueError("not a record of an export") from None
    texts: list[object] = [record.client, record.sender, record.recipient, record.address]
    states = TRIPLET_STATES if record.is_triplet else CLIENT_STATES
    valid = (
        all(each is None or _is_text(each) for each in texts)
        and record.client
        and _is_address(record.address)
        and record.state in states
        and all(type(each) in (int, float) and each >= 0 for each in (record.left, record.age))
        and (record.count is None or (type(record.count) is int and 0 < record.count <= MAX_COUNT))
        and (record.state == COUNTED) is (record.count is not None)
    )
    if not valid:
        raise ValueError("not a record of an export")
    return record


def _is_address(text: str) -> bool:
    """Return whether a text may be an address; "" is none."""
    return text.isascii() and text.isprintable() and len(text) <= MAX_ADDRESS


def _is_text(text: object) -> bool:
    if not isinstance(text, str):
        return False
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeError:
        return False
    return True
