"""A DNS response, read within bounds (RFC 1035 section 4): header, question and records.

The content of a response belongs to strangers, and its size hardly bounds what reading it costs: a
name can be a chain of thousands of pointers, a TXT record 65,000 empty strings.  So each record,
label, pointer and string read is a unit of work, and no response gets more than `MAX_WORK` of them.

Invariants
----------
*Bounded*: `work` never exceeds `MAX_WORK`; what lies beyond it, or beyond `MAX_RECORDS`, is not
read.
*Incomplete is known*: `complete` is False if a record of the answer section was not read.
*Malformed*: bytes that are not a message raise MalformedError, and nothing else is raised.

Only records of class IN and of the types that the caller names are kept, each as its place in the
message; their content is parsed on demand.  docs/decisions/dns-responses.md says why dnspython does
not read responses.
"""

from __future__ import annotations

from struct import Struct, error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias, TypeVar

    T = TypeVar("T")
    #: The labels of a domain name in lower case, without the root's empty one.
    Labels: TypeAlias = tuple[bytes, ...]

# More than fits in a datagram: 1,232 bytes (`wire.UDP_PAYLOAD`) hold 75 records of 16 bytes, the
# smallest that an address record takes.  So only answers over TCP have more.
MAX_RECORDS = 128
# Of the authority and additional sections together; an answer of the root servers has 40: 13 names
# with two addresses each, and OPT.
MAX_OTHER_RECORDS = 64
# What 128 records with names of a dozen labels take.  A unit takes 0.3 to 2 microseconds.
MAX_WORK = 2000
# RFC 1035 section 2.3.4: a name has at most 255 octets, the root's length octet included.
MAX_NAME = 255

CNAME, NS, SOA, OPT = 5, 2, 6, 41
IN = 1

_HEADER = 12
_COUNTS = Struct(">4H")
_QUESTION = Struct(">2H")
_RECORD = Struct(">2HIH")
_MINIMUM = Struct(">I")
# RFC 1035 section 4.1.4: the first two bits of a length octet.
_LABEL, _POINTER = 0x00, 0xC0


class MalformedError(ValueError):
    """These bytes are not a DNS message."""


class _SpentError(Exception):
    """To read on would take more than MAX_WORK."""


class Record:
    """A record: its TTL in seconds, and the place and size of its content in the message."""

    __slots__ = ("at", "size", "ttl")

    def __init__(self, ttl: int, at: int, size: int) -> None:
        # RFC 2181 section 8: a TTL with the most significant bit set is 0.
        self.ttl = 0 if ttl >> 31 else ttl
        self.at = at
        self.size = size


class Response:
    """A response of which header and question are read; `read_records` reads the rest.

    `question` is (labels, type, class), or None if the response repeats no question.

    Raises MalformedError.
    """

    __slots__ = (
        "_at", "_counts", "_names", "_sets", "complete", "data", "has_answers", "question",
        "rcode", "refers", "soas", "work",
    )  # fmt: skip

    def __init__(self, data: bytes) -> None:
        self.data = data
        #: Units of work spent so far.
        self.work = 0
        #: Whether the answer section was read to its end.
        self.complete = False
        #: Whether the answer section has records of class IN, of whatever type.
        self.has_answers = False
        #: Whether the authority section has NS records.
        self.refers = False
        #: The SOA records of the authority section, each with the name of its zone.
        self.soas: list[tuple[Labels, Record]] = []
        self.question: tuple[Labels, int, int] | None = None
        self._sets: dict[tuple[Labels, int], list[Record]] = {}
        #: The names that pointers have led to, by their place.
        self._names: dict[int, Labels] = {}
        self._at = _HEADER
        try:
            self.rcode = data[3] & 0x0F
            questions, *self._counts = _COUNTS.unpack_from(data, 4)
            if questions > 1:
                raise MalformedError
            if questions:
                name = self._name()
                rdtype, rdclass = _QUESTION.unpack_from(data, self._at)
                self._at += _QUESTION.size
                self.question = name, rdtype, rdclass
        except (IndexError, error, _SpentError):
            raise MalformedError from None

    def read_records(self, rdtype: int) -> None:
        """Read the sections; keep records of type `rdtype`, aliases and what negative answers need.

        `rcode` gets its upper bits (RFC 6891 section 6.1.3).  Raises MalformedError.
        """
        answers, authority, additional = self._counts
        try:
            self._read_answers(min(answers, MAX_RECORDS), (rdtype, CNAME))
            if answers > MAX_RECORDS:
                return
            self.complete = True
            whole = authority + additional <= MAX_OTHER_RECORDS
            self._read_authority(min(authority, MAX_OTHER_RECORDS))
            if not whole:
                return
            self._read_additional(additional)
        except _SpentError:
            return
        except (IndexError, error):
            raise MalformedError from None
        if self._at != len(self.data):
            raise MalformedError

    def records(self, owner: Labels, rdtype: int) -> list[Record]:
        """Return the records of the answer section with this owner and type."""
        return self._sets.get((owner, rdtype), [])

    def contents(self, records: list[Record], read: Callable[[Response, Record], T]) -> list[T]:
        """Return what `read` makes of each record, as far as MAX_WORK goes (`complete`).

        `read` calls `name` or `text`, or slices `data`.  Raises MalformedError.
        """
        values: list[T] = []
        try:
            for record in records:
                values.append(read(self, record))  # noqa: PERF401 # what was read before counts
        except _SpentError:
            self.complete = False
        except (IndexError, error):
            raise MalformedError from None
        return values

    def name(self, record: Record, skip: int = 0) -> Labels:
        """Read the domain name that ends a record's content, behind `skip` bytes of it."""
        self._at = record.at + skip
        name = self._name()
        if self._at != record.at + record.size:
            raise MalformedError
        return name

    def text(self, record: Record) -> bytes:
        """Read the strings that are a record's content, and join them."""
        data = self.data
        at, end = record.at, record.at + record.size
        strings = []
        while at < end:
            self._spend()
            following = at + 1 + data[at]
            strings.append(data[at + 1 : following])
            at = following
        if at != end or not strings:
            raise MalformedError
        return b"".join(strings)

    def content(self, record: Record, size: int) -> bytes:
        """Return a record's content, which must be of this size."""
        if record.size != size:
            raise MalformedError
        return self.data[record.at : record.at + size]

    def minimum(self, soa: Record) -> int:
        """Return the last field of a SOA record, in seconds (RFC 2308 section 4)."""
        if soa.size < 2 + 5 * _MINIMUM.size:
            raise MalformedError
        (seconds,) = _MINIMUM.unpack_from(self.data, soa.at + soa.size - _MINIMUM.size)
        return 0 if seconds >> 31 else seconds

    # -- sections ------------------------------------------------------------------------------

    def _read_answers(self, count: int, kept: tuple[int, int]) -> None:
        for _ in range(count):
            owner, rdtype, rdclass, ttl, at, size = self._record()
            if rdclass == IN:
                self.has_answers = True
                if rdtype in kept:
                    self._sets.setdefault((owner, rdtype), []).append(Record(ttl, at, size))

    def _read_authority(self, count: int) -> None:
        for _ in range(count):
            owner, rdtype, rdclass, ttl, at, size = self._record()
            if rdclass == IN:
                if rdtype == SOA:
                    self.soas.append((owner, Record(ttl, at, size)))
                elif rdtype == NS:
                    self.refers = True

    def _read_additional(self, count: int) -> None:
        for _ in range(count):
            _, rdtype, _, ttl, _, _ = self._record()
            if rdtype == OPT:
                self.rcode |= ttl >> 24 << 4

    def _record(self) -> tuple[Labels, int, int, int, int, int]:
        """Read a record up to its content: owner, type, class, TTL, place and size of that."""
        self._spend()
        owner = self._name()
        rdtype, rdclass, ttl, size = _RECORD.unpack_from(self.data, self._at)
        at = self._at + _RECORD.size
        self._at = at + size
        if self._at > len(self.data):
            raise MalformedError
        return owner, rdtype, rdclass, ttl, at, size

    # -- names ---------------------------------------------------------------------------------

    def _name(self) -> Labels:
        """Read the name at `_at`, and go to its end."""
        data = self.data
        at = start = self._at
        labels: list[bytes] = []
        rest: Labels = ()
        #: Where the name ends in its place, and where its first pointer leads, behind which label.
        end = first = behind = 0
        while length := data[at]:
            self._spend()
            kind = length & _POINTER
            if kind == _LABEL:
                at += 1 + length
                labels.append(data[at - length : at].lower())
            elif kind == _POINTER:
                # RFC 1035 section 4.1.4: it leads to a *prior* occurrence, so there are no loops.
                target = (length & ~_POINTER) << 8 | data[at + 1]
                if target >= start:
                    raise MalformedError
                end = end or at + 2
                if (known := self._names.get(target)) is not None:
                    rest = known
                    break
                if not first:
                    first, behind = target, len(labels)
                at = start = target
            else:
                raise MalformedError
        else:
            end = end or at + 1
        name = rest
        if labels:
            name = (*labels, *rest)
            if sum(map(len, name)) + len(name) >= MAX_NAME:
                raise MalformedError
        if first:
            self._names[first] = name[behind:]
        self._at = end
        return name

    def _spend(self) -> None:
        if self.work >= MAX_WORK:
            raise _SpentError
        self.work += 1
