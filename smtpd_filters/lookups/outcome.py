"""What a look-up comes to: found, not found, or unavailable.

1. The three are a closed union, `Outcome`: a policy that forgets the third is told so by the type
   checker (`match` with `assert_never`).
2. `NotFound` is a statement of the DNS. Whatever is not known (time-outs, SERVFAIL, lies, a broken
   network) is `Unavailable`, never `NotFound`: mail is refused for the first and not the second.
3. Outcomes are shared between everyone who asked, so nobody changes one.
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
INVALID: Final = "invalid"  # no such name can exist: it was never asked for


class Value:
    """A record that is equal to another by its fields, in the order of `__match_args__`."""

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
    """There are records; never an empty set.

    `records` are text: addresses, or names in lower case without the final dot; of MX they are
    `MX`, of TXT bytes. `ttl` is how long they were good for when the answer came, in seconds.
    `gap` is "" if these are all records. Otherwise it is the cause, for the log, that others are
    missing: the answer was too large to be read whole, or one of the look-ups that it was put
    together from was unavailable. That a record is absent says nothing then: treat it as
    `Unavailable(gap)`.
    """

    __match_args__ = ("records", "ttl", "gap")
    __slots__ = __match_args__

    def __init__(self, records: tuple[T_co, ...], ttl: float, gap: str = "") -> None:
        self.records = records
        self.ttl = ttl
        self.gap = gap


class NotFound(Value):
    """There are none: `reason` is one of NXDOMAIN, NODATA and INVALID; `ttl` in seconds.

    A `ttl` of 0 is that of an answer that didn't say for how long it holds (it had no SOA).
    """

    __match_args__ = ("reason", "ttl")
    __slots__ = __match_args__

    def __init__(self, reason: str, ttl: float = 0) -> None:
        self.reason = reason
        self.ttl = ttl


class Unavailable(Value):
    """The look-up failed; `cause` is for the log and holds nothing of the name asked for."""

    __match_args__ = ("cause",)
    __slots__ = __match_args__

    def __init__(self, cause: str) -> None:
        self.cause = cause

    def error(self) -> UnavailableError:
        """Return the exception for a handler to raise, so that `--on-error` decides.

        Its status is that of a DNS which does not answer.
        """
        return UnavailableError(self.cause, DNS_FAILURE)


if TYPE_CHECKING:
    Outcome: TypeAlias = Found[T_co] | NotFound | Unavailable
else:

    class Outcome(Generic):
        """Any of the three, for annotations that are evaluated; no value is one of these."""


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
