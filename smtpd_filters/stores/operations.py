"""The operations of a store, and their meaning.

Each operation has a method `apply`, which carries it out on `Rows`: the memory and SQLite stores
run it as it stands, the Redis store has the same rules in Lua (`redis_script`), and the same tests
hold for all three.

Invariants
----------
*Expires*: whatever an operation writes has an expiry. An entry is absent from its expiry on,
whether or not the store has deleted it by then.
*Atomic*: the operations of one request are applied together, and between them no other request is,
of whatever process or machine.
*Ages, not dates*: results contain durations. The store's own clock measures them (`clock`), so
that machines whose clocks differ can share a store.

Durations are in seconds. A duration, a cost or a rate that is not a positive finite number is a
ValueError when the operation is made, as is a key that `keys.join` did not make.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

from .keys import shard_of

T_co = TypeVar("T_co", covariant=True)

#: The size of a value in bytes. A value is a state and a few facts, not a document.
MAX_VALUE = 4096
#: The longest duration, ten years: sums with it stay exact in a float.
MAX_TTL = 10 * 366 * 86400.0


class Entry(NamedTuple):
    """An entry that has not expired."""

    #: Its bytes; the digits of a counter.
    value: bytes
    #: Seconds since it was written.
    age: float
    #: Seconds until it expires.
    left: float

    @property
    def number(self) -> int | None:
        """The number of a counter that isn't negative; None if the value isn't one."""
        digits = self.value
        return int(digits) if digits.isdigit() and len(digits) <= _DIGITS else None


#: Digits of a 64-bit integer, beyond which a store has no counter.
_DIGITS = 19


class Joined(NamedTuple):
    """The result of `Join`."""

    #: Whether the member is in the group now.
    joined: bool
    #: The number of members now.
    members: int


class Row(NamedTuple):
    """A stored entry; times are those of the store's clock."""

    #: Bytes of an entry, the number of a counter, the time of a bucket.
    value: bytes | int | float
    written: float
    expires: float


class Rows(Protocol):
    """What `apply` reads and writes: `now` is the time of the request."""

    now: float

    def get(self, key: bytes) -> Row | None:
        """Return the row of a key unless it has expired."""

    def put(self, key: bytes, row: Row) -> None:
        """Write the row of a key."""

    def delete(self, key: bytes) -> bool:
        """Delete a key; return whether it was there and had not expired."""

    def members(self, key: bytes, at_most: int) -> int:
        """Return the number of members of a group that have not expired, counted to a bound."""

    def is_member(self, key: bytes, member: bytes) -> bool:
        """Return whether a member of a group is there and has not expired."""

    def join(self, key: bytes, member: bytes, expires: float) -> None:
        """Write a member of a group."""

    def leave(self, key: bytes, member: bytes) -> bool:
        """Delete a member of a group; return whether it was there and had not expired."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[T_co]):
    """A step of a request, on one key."""

    #: Whether it may write.
    writes: ClassVar[bool] = True

    #: The key, made by `join`.
    key: bytes

    def __post_init__(self) -> None:
        shard_of(self.key)
        self.check()

    def check(self) -> None:
        """Raise ValueError for an invalid operand."""

    def apply(self, rows: Rows) -> T_co:
        """Carry it out and return its result."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Get(Operation[Entry | None]):
    """Return the entry of a key, or None."""

    writes: ClassVar[bool] = False

    def apply(self, rows: Rows) -> Entry | None:
        """Carry it out."""
        row = rows.get(self.key)
        return None if row is None else entry_of(row, rows.now)


@dataclass(frozen=True, slots=True)
class _Write(Operation[T_co]):
    #: The bytes to write, at most 4,096.
    value: bytes
    #: Seconds until the entry expires.
    ttl: float

    def check(self) -> None:
        """Raise ValueError for an invalid value or duration."""
        check_value(self.value)
        check_seconds("ttl", self.ttl)

    def _write(self, rows: Rows) -> None:
        rows.put(self.key, Row(self.value, rows.now, rows.now + self.ttl))


@dataclass(frozen=True, slots=True)
class Put(_Write[None]):
    """Write an entry that expires after `ttl` seconds, in place of what was there."""

    def apply(self, rows: Rows) -> None:
        """Carry it out."""
        self._write(rows)


@dataclass(frozen=True, slots=True)
class Add(_Write[Entry | None]):
    """Write an entry unless the key has one; return the one it has, or None if it was written."""

    def apply(self, rows: Rows) -> Entry | None:
        """Carry it out."""
        if (row := rows.get(self.key)) is not None:
            return entry_of(row, rows.now)
        self._write(rows)
        return None


@dataclass(frozen=True, slots=True)
class Replace(_Write[bool]):
    """Write an entry if the key has one with the value `expected`; return whether it was written.

    Of several processes that replace the same value, one succeeds.
    """

    #: The value that the entry must have.
    expected: bytes

    def apply(self, rows: Rows) -> bool:
        """Carry it out."""
        row = rows.get(self.key)
        if row is None or row.value != self.expected:
            return False
        self._write(rows)
        return True


@dataclass(frozen=True, slots=True)
class Delete(Operation[bool]):
    """Delete what the key has, of whatever kind; return whether there was something."""

    def apply(self, rows: Rows) -> bool:
        """Carry it out."""
        return rows.delete(self.key)


@dataclass(frozen=True, slots=True)
class Count(Operation[int]):
    """Add `by` to a counter and return its value.

    The counter begins with the first addition and expires `window` seconds after that. `by` may be
    0, which only reads it, or negative.
    """

    #: Seconds from the first addition until the counter expires.
    window: float
    #: What to add.
    by: int = 1

    def check(self) -> None:
        """Raise ValueError for an invalid window."""
        check_seconds("window", self.window)
        if type(self.by) is not int or abs(self.by) > 1 << 31:
            raise ValueError(f"by {self.by!r}: must be an integer of at most 32 bits")

    def apply(self, rows: Rows) -> int:
        """Carry it out."""
        row = rows.get(self.key)
        if row is not None and type(row.value) is not int:
            row = None  # of another kind, as after a change of the code
        count = int(row.value) if row is not None else 0
        if self.by:
            count += self.by
            written, expires = (
                (row.written, row.expires)
                if row is not None
                else (rows.now, rows.now + self.window)
            )
            rows.put(self.key, Row(count, written, expires))
        return count


@dataclass(frozen=True, slots=True)
class Take(Operation[float]):
    """Take `cost` tokens from a bucket; return 0, or the seconds until it has as many.

    A bucket has `burst` tokens at first and at most, and gets `rate` of them each second. If it has
    too few, nothing is taken. A `cost` of 0 returns the seconds until the bucket has one token; a
    negative one puts tokens back.
    """

    # The generic cell rate algorithm: a bucket is one number, the time at which it is full again.
    #: Tokens that the bucket gets each second.
    rate: float
    #: Tokens that it has at first and at most.
    burst: float
    #: Tokens to take.
    cost: float = 1

    def check(self) -> None:
        """Raise ValueError for a rate, a burst or a cost without a meaning."""
        check_positive("rate", self.rate)
        check_positive("burst", self.burst)
        check_seconds("burst / rate", self.burst / self.rate)
        if not isfinite(self.cost) or abs(self.cost) > self.burst:
            raise ValueError(f"cost {self.cost!r}: must be at most the burst, {self.burst!r}")

    def apply(self, rows: Rows) -> float:
        """Carry it out."""
        now = rows.now
        row = rows.get(self.key)
        # A row of another kind is a full bucket, as after a change of the code.
        full = max(float(row.value), now) if row and type(row.value) is float else now
        cost = self.cost / self.rate
        wait = full + (cost or 1 / self.rate) - now - self.burst / self.rate
        if cost >= 0 and wait > _EXACT:
            return wait
        if cost:
            full = max(full + cost, now)
            rows.put(self.key, Row(full, now, full))
        return 0.0


#: Differences of times below this are errors of rounding: a float keeps microseconds of a date.
_EXACT = 1e-6


@dataclass(frozen=True, slots=True)
class Join(Operation[Joined]):
    """Add a member to a group of at most `limit`, or renew it; a member expires after `ttl`.

    A member that is in the group stays in it, even if the group exceeds its limit. A `limit` of 0
    adds none and only counts. All members of a group have the same `ttl`: a server takes one that
    expires later for one from before its clock was set back, and shortens its time.

    A group is a set of leases, such as the sessions of a client: a process that is killed can't
    leave, but its leases expire.
    """

    #: The member's name, at most 4,096 bytes.
    member: bytes
    #: The number of members above which none is added.
    limit: int
    #: Seconds until the member expires.
    ttl: float

    def check(self) -> None:
        """Raise ValueError for an invalid member, limit or duration."""
        check_value(self.member)
        check_seconds("ttl", self.ttl)
        if type(self.limit) is not int or not 0 <= self.limit <= MAX_MEMBERS:
            raise ValueError(f"limit {self.limit!r}: must be 0 to {MAX_MEMBERS}")

    def apply(self, rows: Rows) -> Joined:
        """Carry it out."""
        key, member = self.key, self.member
        members = rows.members(key, MAX_MEMBERS)
        here = rows.is_member(key, member)
        if here or members < self.limit:
            rows.join(key, member, rows.now + self.ttl)
            return Joined(joined=True, members=members + (not here))
        return Joined(joined=False, members=members)


#: The members of a group are counted up to this number.
MAX_MEMBERS = 10_000


@dataclass(frozen=True, slots=True)
class Leave(Operation[bool]):
    """Remove a member from a group; return whether it was there."""

    #: The member's name.
    member: bytes

    def check(self) -> None:
        """Raise ValueError for an invalid member."""
        check_value(self.member)

    def apply(self, rows: Rows) -> bool:
        """Carry it out."""
        return rows.leave(self.key, self.member)


def entry_of(row: Row, now: float) -> Entry:
    """Return the entry of a row; of a counter or a bucket it has the number in digits."""
    value = row.value if isinstance(row.value, bytes) else b"%r" % row.value
    return Entry(value, max(now - row.written, 0.0), row.expires - now)


def check_seconds(name: str, seconds: float) -> None:
    """Raise ValueError unless a duration is positive and at most MAX_TTL."""
    check_positive(name, seconds)
    if seconds > MAX_TTL:
        raise ValueError(f"{name} {seconds!r}: must be at most {MAX_TTL:.0f} s")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless a number is positive and finite."""
    if not (isfinite(value) and value > 0):
        raise ValueError(f"{name} {value!r}: must be positive")


def check_value(value: bytes) -> None:
    """Raise ValueError unless a value is bytes of at most MAX_VALUE."""
    if type(value) is not bytes or len(value) > MAX_VALUE:
        raise ValueError(f"value {value[:40]!r}: must be bytes, at most {MAX_VALUE}")
