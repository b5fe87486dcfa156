"""Bytes that come back: what is read of them, what isn't, and that nothing raises."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from smtpd_filters.lookups.dns.message import MAX_ALIASES, UDP_PAYLOAD, Question, Stray, Trouble
from smtpd_filters.lookups.outcome import MX, NODATA, NXDOMAIN, Found, NotFound
from smtpd_filters.lookups.retry import Failure
from tests.lookups.dns import dnspython_reading

if TYPE_CHECKING:
    from collections.abc import Callable

NO_MATCH = Stray("answer that does not match")
MALFORMED = Stray("malformed answer")


def respond(
    question: Question,
    *answer: str,
    authority: tuple[str, ...] = (),
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR,
    change: Callable[[dns.message.Message], object] = lambda _: None,
) -> bytes:
    """Return a response with these records, each `OWNER TTL TYPE DATA`."""
    response = dns.message.make_response(dns.message.from_wire(question.wire))
    response.flags |= dns.flags.RA
    response.set_rcode(rcode)
    for section, records in ((response.answer, answer), (response.authority, authority)):
        for record in records:
            owner, ttl, rdtype, data = record.split(" ", 3)
            rrset = dns.rrset.from_text(owner, int(ttl), "IN", rdtype, data)
            section.append(rrset)
    change(response)
    return response.to_wire(max_size=65535)


def read(rdtype: str, *answer: str, tcp: bool = False, **options: object) -> object:
    question = Question("a.example", rdtype)
    return question.read(respond(question, *answer, **options), tcp=tcp)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rdtype", "records", "expected"),
    [
        ("A", ["192.0.2.2", "192.0.2.1"], ("192.0.2.1", "192.0.2.2")),
        ("AAAA", ["2001:DB8:0:0::1", "::192.0.2.1"], ("2001:db8::1", "::c000:201")),
        ("PTR", ["Mail.Example.", r"a\.b\032c.example."], (r"a\.b\032c.example", "mail.example")),
        ("CNAME", ["B.example."], ("b.example",)),
        ("NS", ["NS.example."], ("ns.example",)),
        ("MX", ["20 A.example.", "10 b.example."], (MX(10, "b.example"), MX(20, "a.example"))),
        ("MX", ["0 ."], (MX(0, "."),)),
        ("TXT", ['"v=spf1 " "-all"', r'"\255\000"'], (b"v=spf1 -all", b"\xff\0")),
    ],
)
def test_records(rdtype: str, records: list[str], expected: tuple[object, ...]) -> None:
    answer = [f"A.EXAMPLE. 60 {rdtype} {data}" for data in records]
    assert read(rdtype, *answer) == Found(expected, 60)


def test_aliases_are_followed_and_count_for_the_ttl() -> None:
    chain = ["a.example. 60 CNAME b.example.", "B.example. 7 CNAME c.example."]
    assert read("A", *chain, "c.example. 90 A 192.0.2.1") == Found(("192.0.2.1",), 7)
    soa = ("example. 50 SOA ns. host. 1 1 1 1 40",)
    assert read("A", *chain, authority=soa) == NotFound(NODATA, 7)
    nowhere = read("A", *chain, authority=soa, rcode=dns.rcode.NXDOMAIN)
    assert nowhere == NotFound(NXDOMAIN, 7)


def test_alias_loops_and_chains_too_long() -> None:
    loop = ["a.example. 60 CNAME b.example.", "b.example. 60 CNAME a.example."]
    assert read("A", *loop) == Trouble(Failure.BROKEN, "CNAME loop")

    def chain(length: int) -> list[str]:
        names = ["a.example.", *(f"n{n}.example." for n in range(length))]
        links = [f"{a} 60 CNAME {b}" for a, b in itertools.pairwise(names)]
        return [*links, f"{names[-1]} 60 A 192.0.2.1"]

    assert read("A", *chain(MAX_ALIASES), tcp=True) == Found(("192.0.2.1",), 60)
    too_long = read("A", *chain(MAX_ALIASES + 1), tcp=True)
    assert too_long == Trouble(Failure.BROKEN, "CNAME loop")


@pytest.mark.parametrize(
    ("soa", "ttl"),
    [
        ("example. 50 SOA ns. host. 1 1 1 1 40", 40),
        ("example. 30 SOA ns. host. 1 1 1 1 40", 30),
        (". 30 SOA ns. host. 1 1 1 1 40", 30),
        ("other. 30 SOA ns. host. 1 1 1 1 40", 0),
        ("sub.a.example. 30 SOA ns. host. 1 1 1 1 40", 0),
        ("example. 30 NS ns.example.", 0),
    ],
)
def test_negative_answers_last_as_long_as_the_soa_says(soa: str, ttl: int) -> None:
    assert read("A", authority=(soa,)) == NotFound(NODATA, ttl)
    assert read("A", authority=(soa,), rcode=dns.rcode.NXDOMAIN) == NotFound(NXDOMAIN, ttl)


@pytest.mark.parametrize(
    ("rcode", "cause"),
    [(dns.rcode.SERVFAIL, "SERVFAIL"), (dns.rcode.REFUSED, "REFUSED"), (dns.rcode.BADVERS, "BADV")],
)
def test_failures_of_the_server(rcode: dns.rcode.Rcode, cause: str) -> None:
    trouble = read("A", rcode=rcode)
    assert isinstance(trouble, Trouble)
    assert trouble.failure is Failure.BROKEN
    assert trouble.cause.startswith(cause)


def test_a_failure_may_come_without_the_question() -> None:
    trouble = read("A", rcode=dns.rcode.SERVFAIL, change=lambda r: r.question.clear())
    assert trouble == Trouble(Failure.BROKEN, "SERVFAIL")


def test_only_what_was_asked_is_taken() -> None:
    other = "b.example. 60 A 192.0.2.66"
    assert read("A", other) == Trouble(Failure.BROKEN, "answer for another name")
    assert read("A", "a.example. 60 TXT x") == Trouble(Failure.BROKEN, "answer for another name")
    assert read("A", other, "a.example. 60 A 192.0.2.1") == Found(("192.0.2.1",), 60)
    chaos = read("A", change=lambda r: r.answer.append(
        dns.rrset.from_text("a.example.", 60, "CH", "TXT", "x")
    ))  # fmt: skip
    assert chaos == NotFound(NODATA, 0)
    lie = read("A", "a.example. 60 A 192.0.2.1", rcode=dns.rcode.NXDOMAIN)
    assert lie == Trouble(Failure.BROKEN, "NXDOMAIN with records")


def test_a_referral_is_no_answer() -> None:
    def not_recursive(response: dns.message.Message) -> None:
        response.flags &= ~dns.flags.RA

    ns = ("example. 60 NS ns.example.",)
    trouble = Trouble(Failure.BROKEN, "referral: not a recursive server")
    assert read("A", authority=ns, change=not_recursive) == trouble
    assert read("A", change=not_recursive) == NotFound(NODATA, 0)


def test_strays() -> None:
    question = Question("a.example", "A")
    answer = "a.example. 60 A 192.0.2.66"

    def stray(change: Callable[[dns.message.Message], object]) -> object:
        return question.read(respond(question, answer, change=change), tcp=False)

    def other_id(response: dns.message.Message) -> None:
        response.id ^= 1

    def other_question(response: dns.message.Message) -> None:
        response.question[0].name = dns.name.from_text("b.example.")

    def no_response(response: dns.message.Message) -> None:
        response.flags &= ~dns.flags.QR

    assert stray(other_id) == NO_MATCH
    assert stray(other_question) == NO_MATCH
    assert stray(no_response) == NO_MATCH
    assert stray(lambda r: r.question.clear()) == NO_MATCH
    assert question.read(b"", tcp=False) == NO_MATCH
    assert question.read(question.wire[:11], tcp=False) == NO_MATCH
    good = respond(question, answer)
    assert question.read(good, tcp=False) == Found(("192.0.2.66",), 60)
    assert question.read(good[:-1], tcp=False) == Stray("malformed answer")
    assert question.read(good + b"x", tcp=False) == Stray("malformed answer")


def test_truncated_wherever_it_was_cut() -> None:
    question = Question("a.example", "A")

    def truncate(response: dns.message.Message) -> None:
        response.flags |= dns.flags.TC

    data = respond(question, "a.example. 60 A 192.0.2.1", change=truncate)
    for end in range(12 + 15, len(data)):
        cut = question.read(data[:end], tcp=False)
        assert cut == Trouble(Failure.USE_TCP, "truncated answer")
    assert question.read(data, tcp=True) == Trouble(Failure.BROKEN, "truncated answer")


def test_questions_differ_in_their_id() -> None:
    assert len({Question("a.example", "A").wire[:2] for _ in range(20)}) > 15
    with pytest.raises(KeyError):
        Question("a.example", "ANY")


NAMES = ("a.example.", "A.EXAMPLE.", "b.example.", "c.b.example.", "example.", ".", r"\000\".é.")
CONTENTS = {
    "A": ["192.0.2.1", "192.0.2.2", "127.0.0.2"],
    "AAAA": ["2001:db8::1", "::192.0.2.1", "::ffff:192.0.2.1"],
    **{rdtype: list(NAMES) for rdtype in ("CNAME", "NS", "PTR")},
    "MX": [f"{n} {name}" for n, name in enumerate(NAMES)],
    "TXT": ["x", '"a b" ""', r'"\255\000"'],
    "SOA": [f"{name} hm.example. 1 2 3 4 {n * 30}" for n, name in enumerate(NAMES)],
    "SRV": ["1 2 3 b.example."],
}
RECORDS = st.sampled_from(list(CONTENTS)).flatmap(
    lambda rdtype: st.builds(
        lambda owner, ttl, content: f"{owner} {ttl} {rdtype} {content}",
        st.sampled_from(NAMES),
        st.sampled_from([0, 60, 2**31 - 1]),
        st.sampled_from(CONTENTS[rdtype]),
    )
)


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[Question, bytes]:
    """A question, and an answer that need not be one to it."""
    rdtype = draw(st.sampled_from(list(CONTENTS)[:7]))
    question = Question("a.example", rdtype)
    flags = draw(st.sampled_from([0, dns.flags.RA, dns.flags.RA | dns.flags.AA, dns.flags.TC]))

    def change(response: dns.message.Message) -> None:
        response.flags = dns.flags.QR | flags
        if draw(st.sampled_from([False, False, False, False, True])):
            response.question.clear()

    asked = st.sampled_from(CONTENTS[rdtype]).map(lambda each: f"a.example. 60 {rdtype} {each}")
    answer = draw(st.lists(RECORDS | asked, max_size=6))
    # RFC 2181 section 10.1: a name has one alias.
    aliases = {each.split(" ")[0].lower(): each for each in answer if " CNAME " in each}
    rcodes = [dns.rcode.NOERROR] * 4 + [dns.rcode.NXDOMAIN, dns.rcode.REFUSED, dns.rcode.BADVERS]
    data = respond(
        question,
        *(each for each in answer if " CNAME " not in each),
        *aliases.values(),
        authority=tuple(draw(st.lists(RECORDS, max_size=3))),
        rcode=draw(st.sampled_from(rcodes)),
        change=change,
    )
    return question, data


@given(
    st.sampled_from([*CONTENTS][:7]),
    st.lists(st.from_regex(r"[a-z0-9_-]{1,63}", fullmatch=True), min_size=1, max_size=3),
)
def test_questions(rdtype: str, labels: list[str]) -> None:
    asked = Question(".".join(labels), rdtype)
    query = dns.message.make_query(
        ".".join([*labels, ""]), rdtype, use_edns=0, payload=UDP_PAYLOAD, id=asked.wire[0] << 8
    )
    assert asked.wire[2:] == query.to_wire()[2:]


def _known(said: object) -> object:
    """What a result says, without for how long: of two SOA records either may hold."""
    return said.reason if isinstance(said, NotFound) else said


@given(exchanges(), st.booleans())
def test_dnspython_reads_the_same(exchange: tuple[Question, bytes], tcp: bool) -> None:  # noqa: FBT001  # drawn
    question, data = exchange
    said = question.read(data, tcp=tcp)
    assert _known(said) == _known(dnspython_reading.read(question.wire, data, tcp=tcp))


@given(exchanges(), st.data())
def test_dnspython_reads_the_same_in_damaged_answers(
    exchange: tuple[Question, bytes], data: st.DataObject
) -> None:
    question, wire = exchange
    # Of several aliases, which damage may make, dnspython knows one.
    assume(wire[23:27] != b"\0\5\0\1")
    damaged = bytearray(wire)
    for at in data.draw(st.lists(st.integers(12, len(wire) - 1), min_size=1, max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))
    said = question.read(bytes(damaged), tcp=True)
    other = dnspython_reading.read(question.wire, bytes(damaged), tcp=True)
    # We don't parse irrelevant records; dnspython does, and so finds more damage.
    assert other == MALFORMED or _known(said) == _known(other)


@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_no_bytes_raise(data: bytes, response: bool, tcp: bool) -> None:  # noqa: FBT001  # drawn
    question = Question("a.example", "A")
    question.read(data, tcp=tcp)
    header = question.wire[:2] + (b"\x81\x80" if response else b"\x83\x80")
    question.read(header + data, tcp=tcp)
    body = b"\0\1" + (data[:1] or b"\0") * 6 + question.wire[12:27]
    question.read(header + body + data, tcp=tcp)


@given(st.data())
def test_no_damaged_answer_raises(data: st.DataObject) -> None:
    rdtype, record = data.draw(
        st.sampled_from(
            [("A", "192.0.2.1"), ("MX", "10 b.example."), ("TXT", "x y"), ("PTR", "c.")]
        )
    )
    question = Question("a.example", rdtype)
    soa = "example. 50 SOA ns. host. 1 1 1 1 40"
    wire = bytearray(respond(question, f"a.example. 60 {rdtype} {record}", authority=(soa,)))
    for at in data.draw(st.lists(st.integers(12, len(wire) - 1), min_size=1, max_size=4)):
        wire[at] = data.draw(st.integers(0, 255))
    question.read(bytes(wire), tcp=True)
