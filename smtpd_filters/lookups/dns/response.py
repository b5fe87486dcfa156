"""A parser of DNS responses with bounded work (RFC 1035 section 4): header, question and records.

Strangers choose the content of a response, and its size hardly bounds the cost of parsing it: a
name can be a chain of thousands of pointers, a TXT record 65,000 empty strings. So each record,
label, pointer and string counts as a unit of work, and a response gets at most `MAX_WORK` of them.

Invariants
----------
*Bounded*: `work` never exceeds `MAX_WORK`, and no section is read beyond its maximum of records.
*Incomplete is known*: `complete` is False if a record of the answer section was not read.
*Malformed*: a malformed message raises MalformedError; no other exception is raised.

Only records of class IN and of the requested types are kept, each as an offset into the message;
their content is parsed on demand. docs/decisions/dns-responses.md explains why dnspython does not
parse responses.
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

# More than a datagram holds: 1,232 bytes (`message.UDP_PAYLOAD`) hold 75 address records of the
# minimum size, 16 bytes. So only answers over TCP exceed it.
MAX_RECORDS = 128
# Of the authority and additional sections together. An answer of the root servers has 40: 13 names
# with two addresses each, and OPT.
MAX_OTHER_RECORDS = 64
# Enough for 128 records with names of a dozen labels. A unit takes 0.3 to 2 microseconds.
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
    """A malformed DNS message."""


class _SpentError(Exception):
    """The work for a response has reached MAX_WORK."""


class Record:
    """A record: its TTL in seconds, and the offset and size of its content in the message."""

    __slots__ = ("at", "size", "ttl")

    def __init__(self, ttl: int, at: int, size: int) -> None:
        # RFC 2181 section 8: a TTL with the most significant bit set is 0.
        self.ttl = 0 if ttl >> 31 else ttl
        self.at = at
        self.size = size


class Response:
    """A response; the constructor parses header and question, `read_records` the rest.

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
        #: The names that were targets of pointers, by offset.
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
        """Read the sections; keep records of type `rdtype`, CNAME and SOA.

        `rcode` gets its upper bits (RFC 6891 section 6.1.3). Raises MalformedError.
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
        """Return each record's content, parsed by `read`, until MAX_WORK is reached (`complete`).

        `read` calls `name` or `text`, or slices `data`. Raises MalformedError.
        """
        values: list[T] = []
        try:
            for record in records:
                values.append(read(self, record))  # noqa: PERF401  # keep the values before an exception
        except _SpentError:
            self.complete = False
        except (IndexError, error):
            raise MalformedError from None
        return values

    def name(self, record: Record, skip: int = 0) -> Labels:
        """Read the domain name in a record's content, after `skip` bytes of it."""
        self._at = record.at + skip
        name = self._name()
        if self._at != record.at + record.size:
            raise MalformedError
        return name

    def text(self, record: Record) -> bytes:
        """Read the strings of a record's content, and join them."""
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
        """Return a record's content; raise MalformedError if its size is not `size`."""
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
        """Read a record: owner, type, class, TTL, and the offset and size of its content."""
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
        """Read the name at `_at`, and set `_at` to its end."""
        data = self.data
        at = start = self._at
        labels: list[bytes] = []
        rest: Labels = ()
        # The offset of the name's end in place, the target of its first pointer, and the number of
        # labels before that pointer.
        end = first = behind = 0
        while length := data[at]:
            self._spend()
            kind = length & _POINTER
            if kind == _LABEL:
                at += 1 + length
                labels.append(data[at - length : at].lower())
            elif kind == _POINTER:
                # RFC 1035 section 4.1.4: "a prior occurance of the same name", so no loops.
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
