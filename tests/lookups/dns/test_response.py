"""The bounds within which responses are read: what reading costs is counted, not timed."""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from struct import pack
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.lookups.dns.message import PARTIAL, UDP_PAYLOAD, Question, Stray, Trouble
from smtpd_filters.lookups.dns.response import (
    MAX_OTHER_RECORDS,
    MAX_RECORDS,
    MAX_WORK,
    MalformedError,
    Response,
)
from smtpd_filters.lookups.outcome import Found, NotFound
from smtpd_filters.lookups.retry import Failure
from tests.lookups.dns import responses
from tests.lookups.dns.responses import ASKED, LONG, NAME, full, record, response

if TYPE_CHECKING:
    from collections.abc import Callable

TYPES = ("A", "AAAA", "MX", "NS", "PTR", "TXT", "CNAME")
TOO_LARGE = Trouble(Failure.BROKEN, PARTIAL)
OPT = record(b"\0", "OPT", b"", ttl=0)


def smallest(rdtype: str) -> tuple[Question, bytes]:
    question = Question(NAME, rdtype)
    return question, full(
        question, lambda n: record(ASKED, rdtype, responses.content(rdtype, n, long=False))
    )


def longest(rdtype: str) -> tuple[Question, bytes]:
    """Names of 127 labels, each written out."""
    question = Question(LONG, rdtype)
    owner = question.wire[12:267]
    return question, full(
        question, lambda n: record(owner, rdtype, responses.content(rdtype, n, long=True))
    )


def pointing(rdtype: str, names: Callable[[int], tuple[bytes, bytes]]) -> tuple[Question, bytes]:
    """Names that are expensive to follow, in an irrelevant record, and used by the others."""
    question = Question(NAME, rdtype)
    start = len(response(question, (0, 0, 0))) + len(record(ASKED, "NULL", b""))
    hidden, pointer = names(start)

    def make(n: int) -> bytes:
        content = responses.content(rdtype, n, long=False)
        if n == 0:
            return record(ASKED, "NULL", hidden)
        return record(pointer, rdtype, content[:-7] + pointer if rdtype != "A" else content)

    return question, full(question, make)


def texts(strings: bytes) -> tuple[Question, bytes]:
    question = Question(NAME, "TXT")
    return question, response(question, (1, 0, 0), record(ASKED, "TXT", strings))


def others(*sections: int) -> tuple[Question, bytes]:
    """As many records as fit, in other sections than that of answers."""
    question = Question(NAME, "A")
    data = bytearray(full(question, lambda n: record(ASKED, "NS", b"\4%04x\0" % n)))
    count = data[6:8]
    data[6:12] = b"".join(bytes(count) if section in sections else b"\0\0" for section in range(3))
    return question, bytes(data)


def strangers() -> tuple[Question, bytes]:
    question = Question(NAME, "A")
    return question, full(question, lambda n: record(ASKED, f"TYPE{300 + n}", b""))


def options() -> tuple[Question, bytes]:
    question = Question(NAME, "A")
    return question, response(question, (0, 0, 1), record(b"\0", "OPT", b"\xff\xf0\0\0" * 16_250))


DEAREST = {
    **{f"{rdtype}, smallest": smallest(rdtype) for rdtype in TYPES},
    **{f"{rdtype}, longest": longest(rdtype) for rdtype in TYPES},
    **{
        f"{rdtype}, {names.__name__}": pointing(rdtype, names)
        for rdtype, names in product(
            ("A", "MX", "PTR"), (responses.pointers, responses.alternating)
        )
    },
    "empty strings": texts(b"\0" * 65_000),
    "short strings": texts(b"\1a" * 32_500),
    "other types": strangers(),
    "authority": others(1),
    "additional": others(2),
    "all sections": others(0, 1, 2),
    "options": options(),
}


@pytest.mark.parametrize("what", DEAREST)
def test_no_response_takes_more_work_than_it_may(what: str) -> None:
    question, data = DEAREST[what]
    assert len(data) > 16_000
    question.read(data, tcp=True)
    assert 0 < question.work <= MAX_WORK


@pytest.mark.parametrize("what", DEAREST)
def test_what_is_not_read_is_not_said_to_be_missing(what: str) -> None:
    question, data = DEAREST[what]
    result = question.read(data, tcp=True)
    if isinstance(result, Found):
        assert len(result.records) <= MAX_RECORDS
        assert result.gap == PARTIAL
    elif what in {"authority", "additional", "options"}:
        # There is no answer in these.
        assert result == NotFound("nodata", 0)
    else:
        assert result == TOO_LARGE


def test_the_types_that_are_read_are_found_in_the_largest_answers() -> None:
    for rdtype in TYPES:
        question, data = DEAREST[f"{rdtype}, smallest"]
        result = question.read(data, tcp=True)
        assert isinstance(result, Found), rdtype
        assert len(result.records) == MAX_RECORDS


def test_answers_that_fit_in_a_datagram_are_read_whole() -> None:
    for rdtype in TYPES:
        question = Question("a.example", rdtype)
        records: list[bytes] = []
        while True:
            data = response(question, (len(records), 0, 1), *records, OPT)
            if len(data) > UDP_PAYLOAD - 20:
                break
            number = len(records)
            records.append(record(ASKED, rdtype, responses.content(rdtype, number, long=False)))
        result = question.read(data, tcp=False)
        assert isinstance(result, Found)
        assert (len(result.records), result.gap) == (len(records), "")


@pytest.mark.parametrize("count", [MAX_RECORDS, MAX_RECORDS + 1])
def test_the_bound_on_records(count: int) -> None:
    question = Question("a.example", "A")
    records = [record(ASKED, "A", pack(">I", n)) for n in range(count)]
    result = question.read(response(question, (count, 0, 1), *records, OPT), tcp=True)
    assert isinstance(result, Found)
    assert len(result.records) == MAX_RECORDS
    assert result.gap == ("" if count == MAX_RECORDS else PARTIAL)


def test_an_answer_behind_the_bound_is_not_missing() -> None:
    question = Question("a.example", "A")
    alias = record(ASKED, "CNAME", b"\1b\0")
    other = [record(b"\1c\0", "A", bytes(4))] * MAX_RECORDS
    found = record(b"\1b\0", "A", bytes(4))
    for records in ([alias, *other, found], [*other, record(ASKED, "A", bytes(4))]):
        data = response(question, (len(records), 0, 0), *records)
        assert question.read(data, tcp=True) == TOO_LARGE


@pytest.mark.parametrize("count", [MAX_OTHER_RECORDS - 1, MAX_OTHER_RECORDS])
def test_the_bound_on_other_records(count: int) -> None:
    question = Question("a.example", "A")
    zone = [record(b"\0", "NS", b"\0")] * (count - 1)
    soa = record(b"\0", "SOA", b"\0\0" + pack(">5I", 1, 1, 1, 1, 30))
    data = response(question, (0, count, 1), soa, *zone, OPT)
    assert question.read(data, tcp=True) == NotFound("nodata", 30)
    # Only behind all records can there be something that does not belong there.
    whole = count + 1 <= MAX_OTHER_RECORDS
    assert isinstance(question.read(data + b"x", tcp=True), NotFound) is not whole


@pytest.mark.parametrize(
    ("ttl", "seconds"), [(0, 0), (2**31 - 1, 2**31 - 1), (2**31, 0), (2**32 - 1, 0)]
)
def test_a_negative_ttl_is_none(ttl: int, seconds: int) -> None:
    question = Question("a.example", "A")
    data = response(question, (1, 0, 0), record(ASKED, "A", b"\x7f\0\0\1", ttl))
    assert question.read(data, tcp=True) == Found(("127.0.0.1",), seconds)
    soa = b"\0\0" + pack(">5I", 1, 1, 1, 1, ttl)
    data = response(question, (0, 1, 0), record(ASKED, "SOA", soa, 2**31 - 1))
    assert question.read(data, tcp=True) == NotFound("nodata", seconds)


def test_the_upper_bits_of_the_result() -> None:
    question = Question("a.example", "A")
    badvers = record(b"\0", "OPT", b"", ttl=1 << 24)
    result = question.read(response(question, (0, 0, 1), badvers), tcp=True)
    assert result == Trouble(Failure.BROKEN, "BADVERS")


@pytest.mark.parametrize(
    "name",
    [
        b"\xc0\x80",  # to behind itself
        b"\xc0\x1b",  # to itself
        b"\x01a\xc0\x1b",  # to its own beginning
        b"\x40",  # kinds of labels that there are not
        b"\x80",
        b"\x01a\x3f",  # a label that ends behind the message
        responses.name(*[b"a" * 63] * 4),
    ],
)
def test_names_that_are_none(name: bytes) -> None:
    question = Question("a.example", "A")
    assert len(response(question, (0, 0, 0))) == 0x1B
    data = response(question, (1, 0, 0), record(name, "A", bytes(4)))
    assert question.read(data, tcp=True) == Stray("malformed answer")


def test_the_longest_name_is_one() -> None:
    question = Question("a.example", "PTR")
    for last, is_name in ((61, True), (62, False)):
        target = responses.name(*[b"a" * 63] * 3, b"b" * last)
        data = response(question, (1, 0, 0), record(ASKED, "PTR", target))
        assert isinstance(question.read(data, tcp=True), Found if is_name else Stray)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_no_bytes_raise_anything_else(data: bytes, rdtype: int) -> None:
    with suppress(MalformedError):
        result = Response(data)
        result.read_records(rdtype)
        assert result.work <= MAX_WORK
