"""The outcomes of a look-up: found, not found, or unavailable.

Invariants
----------
*Closed*: an `Outcome` is one of the three, so that the type checker reports a policy that forgets
`Unavailable` (`match` with `assert_never`).
*Not found is known*: `NotFound` means that the DNS has stated it. A timeout, SERVFAIL, a forged
answer or a network failure is `Unavailable`: policies refuse mail for the former only.
*Immutable*: an outcome is shared by all its callers and never modified.
"""

from __future__ import annotations

from smtpd_filters.errors import UnavailableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Generic, TypeAlias, TypeVar

    T_co = TypeVar("T_co", covariant=True)
else:
    # `typing` costs a filter's start several milliseconds; at run time nothing here needs it.
    T_co = None

    class Generic:
        """A base that may be subscripted."""

        __slots__ = ()

        def __class_getitem__(cls, _parameters: object) -> type:
            return cls


# RFC 3463 section 3.5, X.4.3, "Directory server failure": "The inability to connect to an Internet
# DNS server is one example of the directory server failure error."
DNS_FAILURE: Final = "4.4.3"

# Why a name was not found. RFC 2308 section 1 has the first two.
NXDOMAIN: Final = "nxdomain"  # the name does not exist, for any type
NODATA: Final = "nodata"  # the name exists, without records of this type
INVALID: Final = "invalid"  # not a valid name: no query was sent


class Value:
    """A base of records that compare equal if their fields, `__match_args__`, do."""

    __slots__ = ()
    __match_args__: tuple[str, ...] = ()

    def _fields(self) -> tuple[object, ...]:
        return tuple(getattr(self, field) for field in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value) or type(other) is not type(self):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), self._fields()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{field}={getattr(self, field)!r}" for field in self.__match_args__)
        return f"{type(self).__name__}({shown})"


class Found(Value, Generic[T_co]):
    """The records of a name, at least one.

    `records` are text: addresses, or names in lower case without the final dot; of MX they are
    `MX`, of TXT bytes. `ttl` is their TTL at the time of the answer, in seconds. `gap` is "" if
    these are all records. Otherwise it is the reason, for the log, why some are missing: the answer
    was too large to be read whole, or one of the look-ups that were combined was unavailable. The
    absence of a record then proves nothing: treat it as `Unavailable(gap)`.
    """

    __match_args__ = ("records", "ttl", "gap")
    __slots__ = __match_args__

    def __init__(self, records: tuple[T_co, ...], ttl: float, gap: str = "") -> None:
        self.records = records
        self.ttl = ttl
        self.gap = gap


class NotFound(Value):
    """The DNS has no such record: `reason` is NXDOMAIN, NODATA or INVALID; `ttl` is in seconds.

    `ttl` is 0 if the answer had no SOA record to take it from.
    """

    __match_args__ = ("reason", "ttl")
    __slots__ = __match_args__

    def __init__(self, reason: str, ttl: float = 0) -> None:
        self.reason = reason
        self.ttl = ttl


class Unavailable(Value):
    """A failed look-up; `cause` is for the log and does not contain the name."""

    __match_args__ = ("cause",)
    __slots__ = __match_args__

    def __init__(self, cause: str) -> None:
        self.cause = cause

    def error(self) -> UnavailableError:
        """Return the exception for a handler to raise, so that `--on-error` decides.

        Its status is `DNS_FAILURE`.
        """
        return UnavailableError(self.cause, DNS_FAILURE)


if TYPE_CHECKING:
    Outcome: TypeAlias = Found[T_co] | NotFound | Unavailable
else:

    class Outcome(Generic):
        """The outcome of a look-up: `Found`, `NotFound` or `Unavailable`.

        For annotations; it has no instances.
        """


class MX(Value):
    """A mail exchanger (RFC 1035 section 3.3.9).

    `preference` is its rank, the lowest first. `exchange` is its host name, in lower case and
    without the final dot; "." is a Null MX (RFC 7505).
    """

    __match_args__ = ("preference", "exchange")
    __slots__ = __match_args__

    def __init__(self, preference: int, exchange: str) -> None:
        self.preference = preference
        self.exchange = exchange
