"""The MTA's side of the milter protocol, spoken with the milter's side."""

from __future__ import annotations

from struct import pack

import pytest

from smtpd_filters.milter import (
    AddHeader,
    Agreement,
    Answer,
    Limits,
    MilterError,
    MilterSide,
    MtaSide,
    NewBody,
    Offer,
    Quarantine,
    ReplyCode,
    Verdict,
)
from smtpd_filters.milter import vocabulary as v
from smtpd_filters.milter.codec import packet
from smtpd_filters.milter.negotiation import MAX_LISTS

CONTINUE, ACCEPT = Verdict(v.CONTINUE), Verdict(v.ACCEPT)


def agreed(
    protocol: int = 0, *, version: int = 6, limits: Limits | None = None, actions: int = 0x1FF
) -> MtaSide:
    """Return a side that has negotiated."""
    mta = MtaSide(limits=limits)
    mta.negotiate()
    mta.receive(Agreement(version, actions & v.ACTIONS_OF[version], protocol).encode())
    assert isinstance(mta.answer(), Agreement)
    return mta


def say(mta: MtaSide, *answers: Answer) -> None:
    """Have the milter answer."""
    for answer in answers:
        mta.receive(answer.encode())
    for answer in answers:
        assert mta.answer() == answer


def to_message(mta: MtaSide) -> None:
    """Get to the end of a message without a field."""
    mta.connect(b"localhost", b"4", 0, b"127.0.0.1")
    say(mta, CONTINUE)
    mta.helo(b"x")
    say(mta, CONTINUE)
    assert mta.mail(b"<>")
    say(mta, CONTINUE)
    assert mta.rcpt(b"<a@b>")
    say(mta, CONTINUE)
    assert mta.data()
    say(mta, CONTINUE)
    assert mta.end_of_header()
    say(mta, CONTINUE)


def test_a_session_packet_by_packet() -> None:
    mta, milter = MtaSide(), MilterSide()
    assert mta.negotiate() == b"\0\0\0\x0dO" + pack(">III", 6, 0x1FF, 0x1FF7FF)
    milter.receive(Offer().encode())
    mta.receive(Agreement(6, 0x11, v.LEADING_SPACE).encode())
    assert mta.answer() == Agreement(6, 0x11, v.LEADING_SPACE)
    sent = mta.connect(b"mail.example", b"4", 4711, b"192.0.2.1", [b"j", b"mx", b"{v}", b""])
    assert sent == (
        b"\0\0\0\x0bDCj\0mx\0{v}\0\0" + b"\0\0\0\x1bCmail.example\x004\x12\x67192.0.2.1\0"
    ).replace(b"\0\0\0\x0b", b"\0\0\0\x0c")
    (event,) = milter.receive(sent)
    assert event.fields == (b"mail.example", b"4", b"4711", b"192.0.2.1")
    assert event.macros == {b"j": b"mx", b"{v}": b""}
    say(mta, CONTINUE)
    assert mta.helo(b"x") == b"\0\0\0\x03Hx\0"
    say(mta, CONTINUE)
    assert mta.mail(b"<a@b>", [b"SIZE=3"]) == b"\0\0\0\x0eM<a@b>\0SIZE=3\0"
    say(mta, CONTINUE)
    assert mta.rcpt(b"<c@d>") == b"\0\0\0\x07R<c@d>\0"
    say(mta, CONTINUE)
    assert mta.data() == b"\0\0\0\x01T"
    say(mta, CONTINUE)
    assert mta.header(b"Subject", b" x\n\ty") == b"\0\0\0\x0fLSubject\0 x\n\ty\0"
    say(mta, CONTINUE)
    assert mta.header(b"Empty", b"") == b"\0\0\0\x08LEmpty\0\0"
    say(mta, CONTINUE)
    assert mta.end_of_header() == b"\0\0\0\x01N"
    say(mta, CONTINUE)
    assert mta.body(b"\r\n") == b"\0\0\0\x03B\r\n"
    say(mta, CONTINUE)
    assert mta.end_of_body() == b"\0\0\0\x01E"
    say(mta, AddHeader(b"A", b" b"), Verdict(v.PROGRESS), Quarantine(b"why"), NewBody(b"z"))
    assert mta.waiting
    say(mta, ACCEPT)
    assert mta.abort() == b"\0\0\0\x01A"
    assert mta.abort() == b""
    assert mta.mail(b"<>") == b"\0\0\0\x04M<>\0"
    say(mta, CONTINUE)
    assert mta.quit() == b"\0\0\0\x01Q"


def test_one_space_is_left_out_without_the_wish_for_it() -> None:
    mta = agreed()
    to_message(mta)
    mta.abort()
    mta.mail(b"<>")
    say(mta, CONTINUE)
    for value, sent in ((b" x", b"x"), (b"x", b"x"), (b"  x", b" x"), (b"\tx", b"\tx")):
        assert mta.header(b"A", value) == packet(b"L", b"A\0" + sent + b"\0")
        say(mta, CONTINUE)


@pytest.mark.parametrize(("event", "bit"), v.OMITTED.items())
def test_an_event_that_is_not_wanted(event: bytes, bit: int) -> None:
    mta = agreed(bit)
    assert not mta.wants(event)
    others = set(v.OMITTED) - {event}
    assert all(mta.wants(other) for other in others)


def test_macros_of_an_event_that_is_not_wanted() -> None:
    mta = agreed(v.NO_HELO | v.NO_MAIL)
    assert mta.helo(b"x", [b"i", b"1"]) == b"\0\0\0\x06DHi\x001\0"
    assert mta.helo(b"x") == b""
    assert not mta.waiting
    assert mta.mail(b"<>", (), [b"i", b"1"]) == b"\0\0\0\x06DMi\x001\0"
    assert mta.abort()


@pytest.mark.parametrize(("event", "bit"), v.UNANSWERED.items())
def test_an_event_without_an_answer(event: bytes, bit: int) -> None:
    mta = agreed(bit)
    assert mta.wants(event)
    assert mta.agreed is not None
    assert not mta.agreed.answers(event)


@pytest.mark.parametrize("space", [0, v.LEADING_SPACE])
@pytest.mark.parametrize("bits", [v.NR_HEADERS, v.NO_HEADERS])
def test_fields_together_are_those_one_by_one(bits: int, space: int) -> None:
    fields = [(b"A", b" x"), (b"B", b"y\n\tz"), (b"C", b"")]
    one, other = agreed(bits | space), agreed(bits | space)
    sides = (one, other)
    for mta in sides:
        mta.mail(b"<>")
        say(mta, CONTINUE)
    assert one.headers(fields) == b"".join(other.header(*field) for field in fields)
    for mta in sides:
        assert not mta.waiting
        assert mta.end_of_header() == packet(v.END_OF_HEADER)


def test_fields_together_are_for_a_milter_that_answers_none() -> None:
    mta = agreed()
    to_message(mta)
    with pytest.raises(MilterError, match="one by one"):
        mta.headers([(b"A", b"x")])
    mta = agreed(v.NR_HEADERS)
    mta.mail(b"<>")
    say(mta, CONTINUE)
    with pytest.raises(MilterError, match="a null"):
        mta.headers([(b"A", b"x\0")])


def test_nothing_is_waited_for_without_an_answer_and_one_is_out_of_step() -> None:
    mta = agreed(v.NR_CONNECT)
    assert mta.connect(b"x", b"U", 0, b"") == b"\0\0\0\x04Cx\0U"
    assert not mta.waiting
    mta.receive(CONTINUE.encode())
    with pytest.raises(MilterError, match="an answer to nothing"):
        mta.answer()
    assert mta.quit() == b""
    with pytest.raises(MilterError, match="out of order"):
        mta.helo(b"x")


def test_an_older_version_has_fewer_events() -> None:
    assert not agreed(version=2).wants(v.DATA)
    assert not agreed(version=3).wants(v.DATA)
    assert agreed(version=4).wants(v.DATA)
    mta = MtaSide(Offer.of(2))
    assert mta.negotiate() == packet(b"O", pack(">III", 2, 0x3F, 0x7F))


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Agreement(7), "it speaks version 7"),
        (Agreement(1), "it speaks version 1"),
        (Agreement(6, 0x200), "the actions 0x200"),
        (Agreement(6, 0, 0x10000000), "the protocol bits 0x10000000"),
        (Verdict(b"c"), 'not a negotiation, but "c"'),
        (Agreement(6, 0x100, 0, {v.RCPT: (b"x",) * 201}), "a list of 201 macros"),
    ],
)
def test_a_bad_negotiation(reply: Agreement | Verdict, error: str) -> None:
    mta = MtaSide()
    mta.negotiate()
    mta.receive(reply.encode())
    with pytest.raises(MilterError, match=error):
        mta.answer()


def test_another_protocol_is_named() -> None:
    mta = MtaSide()
    mta.negotiate()
    mta.receive(b"UNKNOWN COMMAND\n")
    with pytest.raises(MilterError, match='not a milter: it sends "UNKN"'):
        mta.answer()


def test_lists_of_macros() -> None:
    lists = {v.CONNECT: (b"j", b"{x}"), v.END_OF_BODY: (b"i",), v.END_OF_HEADER: ()}
    mta = MtaSide()
    mta.negotiate()
    mta.receive(Agreement(6, 0x100, 0, lists).encode())
    found = mta.answer()
    assert isinstance(found, Agreement)
    assert found.macros == lists


def test_a_packet_of_nothing_but_lists_of_macros() -> None:
    # The rest of the packet would be copied for each of 13,000 lists, while all sessions wait.
    mta = MtaSide()
    mta.negotiate()
    empty = pack(">I", 1) + b"\0"
    lists = empty * ((v.MAX_PAYLOAD - 12) // len(empty))
    mta.receive(packet(b"O", pack(">III", 6, 0x100, 0) + lists))
    with pytest.raises(MilterError, match="more than 32 lists of macros"):
        mta.answer()


def test_lists_for_stages_that_do_not_exist() -> None:
    mta = MtaSide()
    mta.negotiate()
    lists = b"".join(pack(">I", stage) + b"i j\0" for stage in range(MAX_LISTS))
    mta.receive(packet(b"O", pack(">III", 6, 0x100, 0) + lists))
    found = mta.answer()
    assert isinstance(found, Agreement)
    assert found.macros == dict.fromkeys(v.STAGES, (b"i", b"j"))


def test_what_ends_a_message_and_what_a_session() -> None:
    mta = agreed()
    mta.connect(b"x", b"U", 0, b"")
    say(mta, ACCEPT)
    assert mta.finished
    assert mta.mail(b"<>") == b""
    mta = agreed()
    to_message(mta)
    assert mta.body(b"x")
    say(mta, ACCEPT)
    assert mta.done
    assert mta.end_of_body() == b""
    assert mta.abort()
    assert mta.mail(b"<>")


def test_a_refused_recipient_is_not_the_end() -> None:
    mta = agreed()
    mta.mail(b"<>")
    say(mta, CONTINUE)
    for refusal in (Verdict(v.REJECT), Verdict(v.TEMPFAIL), ReplyCode(550, "", (b"no",))):
        assert mta.rcpt(b"<a>")
        say(mta, refusal)
        assert not mta.done
    assert mta.rcpt(b"<a>")
    say(mta, Verdict(v.DISCARD))
    assert mta.done


def test_skip() -> None:
    mta = agreed()
    to_message(mta)
    assert mta.body(b"x")
    say(mta, Verdict(v.SKIP))
    assert mta.body(b"x") == b""
    assert mta.end_of_body()
    say(mta, CONTINUE)
    mta.abort()
    mta.mail(b"<>")
    say(mta, CONTINUE)
    assert mta.body(b"x")


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([Verdict(v.SKIP)], '"s" is no answer'),
        ([AddHeader(b"a", b"b")] * 4, "more than 3 edits"),
        ([AddHeader(b"a", b"b" * 60)] * 2, "more than 100 bytes of edits"),
        ([NewBody(b"b" * 60)] * 2, "more than 100 bytes of a new body"),
        ([NewBody(b"")] * 5, "more than 4 pieces"),
        ([Verdict(v.PROGRESS)] * 3, "more than 2 reports of progress"),
        ([CONTINUE, CONTINUE], "a second answer"),
        ([CONTINUE, AddHeader(b"a", b"b")], "a second answer"),
        ([NewBody(b"b" * 300)], "a packet of 301 bytes"),
    ],
)
def test_limits_at_the_end(answers: list[AddHeader], error: str) -> None:
    limits = Limits(packet=200, edits=3, edited=100, body=100, pieces=4, progress=2)
    mta = agreed(limits=limits)
    to_message(mta)
    assert mta.end_of_body()
    mta.receive(b"".join(answer.encode() for answer in answers))
    with pytest.raises(MilterError, match=error):
        all(mta.answer() for _ in answers)


@pytest.mark.parametrize("command", [v.REPLY_CODE, v.ADD_HEADER, v.INSERT_HEADER, v.QUARANTINE])
def test_an_answer_has_the_length_of_a_packet_that_milters_take(command: bytes) -> None:
    """Whatever its parts: folding a megabyte, or making a reply of it, would delay all sessions."""
    mta = agreed()
    to_message(mta)
    mta.end_of_body()
    payload = b"550 5.7.1 ".ljust(65_535, b"x") + b"\0"
    mta.receive(len(command + payload).to_bytes(4, "big") + command + payload)
    with pytest.raises(MilterError, match="an answer of 65536 bytes"):
        mta.answer()


def test_an_edit_before_the_end() -> None:
    mta = agreed()
    mta.mail(b"<>")
    mta.receive(AddHeader(b"a", b"b").encode())
    with pytest.raises(MilterError, match="an edit before the end"):
        mta.answer()


def test_a_discarded_session() -> None:
    mta = agreed()
    mta.helo(b"x")
    mta.receive(Verdict(v.DISCARD).encode())
    with pytest.raises(MilterError, match="discards a session"):
        mta.answer()


def test_what_libmilter_would_reset_the_connection_for_is_not_written() -> None:
    mta = agreed()
    with pytest.raises(MilterError, match="a null"):
        mta.mail(b"<a\0>")
    to_message(mta)
    with pytest.raises(MilterError, match="out of order"):
        mta.data()
    with pytest.raises(MilterError, match="65536 bytes"):
        mta.body(b"x" * 65536)
    assert len(mta.body(b"x" * 65535)) == 4 + 65536
    with pytest.raises(MilterError, match="out of order"):
        mta.body(b"y")  # an answer is due
    with pytest.raises(MilterError, match="out of order"):
        MtaSide().helo(b"x")
