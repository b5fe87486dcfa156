"""Properties of the milter codec over any bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.message.folding import field_lines
from smtpd_filters.milter import (
    AddHeader,
    AddRecipient,
    Agreement,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    Edit,
    EditedHeaders,
    InsertHeader,
    MilterError,
    MilterSide,
    MtaSide,
    NewBody,
    Quarantine,
    ReplyCode,
    Verdict,
)
from smtpd_filters.milter import vocabulary as v
from tests.effort import part
from tests.fuzz.fuzz_milter import fuzz, seeds

TEXT = st.binary(max_size=40).map(lambda data: data.replace(b"\0", b"0"))
LINE = TEXT.map(lambda data: data.replace(b"\r", b"r").replace(b"\n", b"n"))
INDEX = st.integers(0, 2**32 - 1)
EDITS = st.one_of(
    st.builds(AddHeader, TEXT, TEXT),
    st.builds(InsertHeader, INDEX, TEXT, TEXT),
    st.builds(ChangeHeader, INDEX, TEXT, TEXT),
    st.builds(NewBody, st.binary(max_size=100)),
    st.builds(ChangeSender, TEXT, TEXT),
    st.builds(AddRecipient, TEXT, TEXT),
    st.builds(DeleteRecipient, TEXT),
    st.builds(Quarantine, TEXT),
    st.just(Verdict(v.PROGRESS)),
)
FINALS = st.one_of(
    st.sampled_from([Verdict(c) for c in (v.CONTINUE, v.ACCEPT, v.REJECT, v.TEMPFAIL, v.DISCARD)]),
    st.builds(
        lambda code, lines: ReplyCode(code, f"{code // 100}.7.1", tuple(lines)),
        st.integers(400, 599),
        st.lists(LINE.map(lambda line: b"x" + line), min_size=1, max_size=5),
    ),
)


def at_the_end() -> MtaSide:
    """Return a side that waits for the answers to the end of a message."""
    mta = MtaSide()
    mta.negotiate()
    mta.receive(Agreement(6, 0x1FF, 0).encode())
    mta.answer()
    mta.mail(b"<>")
    mta.receive(Verdict(v.CONTINUE).encode())
    mta.answer()
    mta.end_of_body()
    return mta


@settings(max_examples=part(200))
@given(st.lists(EDITS, max_size=8), FINALS, st.integers(1, 30))
def test_answers_survive_the_wire_however_it_is_cut(
    edits: list[Edit], final: Verdict, size: int
) -> None:
    mta = at_the_end()
    stream = b"".join(answer.encode() for answer in (*edits, final))
    found = []
    for at in range(0, len(stream), size):
        mta.receive(stream[at : at + size])
        while (answer := mta.answer()) is not None:
            found.append(answer)
    assert found == [*edits, final]
    assert not mta.waiting


@settings(max_examples=part(200))
@given(st.lists(st.tuples(TEXT, TEXT), max_size=5), TEXT, st.binary(min_size=1), st.integers(1, 30))
def test_events_survive_the_wire_however_it_is_cut(
    fields: list[tuple[bytes, bytes]], sender: bytes, body: bytes, size: int
) -> None:
    mta = MtaSide()
    stream = mta.negotiate()
    every = sum(v.UNANSWERED.values()) | v.LEADING_SPACE
    mta.receive(Agreement(6, 0, every).encode())
    mta.answer()
    stream += mta.connect(sender, b"6", 65535, b"::1", [b"j", sender])
    stream += mta.mail(sender, [sender])
    for name, value in fields:
        stream += mta.header(name, value)
    stream += mta.body(body)
    milter = MilterSide()
    events = [
        event
        for at in range(0, len(stream), size)
        for event in milter.receive(stream[at : at + size])
    ]
    found = [event.fields for event in events]
    assert found == [(), (sender, b"6", b"65535", b"::1"), (sender, sender), *fields, (body,)]
    assert events[1].macros == {b"j": sender}


@settings(max_examples=part(500))
@given(st.binary(max_size=400))
def test_any_bytes_at_any_stage(data: bytes) -> None:
    fuzz(data)


@pytest.mark.parametrize("seed", seeds())
def test_valid_bytes_with_one_changed(seed: bytes) -> None:
    for at in range(len(seed)):
        for byte in (0, 1, 0xFF, seed[at] ^ 1):
            fuzz(seed[:at] + bytes([byte]) + seed[at + 1 :])


@settings(max_examples=part(300))
@given(
    st.lists(LINE, max_size=12),
    st.lists(
        st.one_of(
            st.builds(AddHeader, st.sampled_from([b"A", b"received"]), st.binary(max_size=60)),
            st.builds(InsertHeader, st.integers(0, 6), st.just(b"B"), st.binary(max_size=60)),
            st.builds(ChangeHeader, st.integers(0, 4), st.just(b"a"), st.binary(max_size=60)),
        ),
        max_size=8,
    ),
    st.booleans(),
)
def test_a_block_stays_one_whatever_the_edits(
    lines: list[bytes], edits: list[AddHeader], lead: object
) -> None:
    text = b"\n".join([b"", b"Received: x", *filter(None, lines)])
    headers = EditedHeaders(text, field_lines)
    before = headers.rest
    for edit in edits:
        headers.apply(edit, leading_space=bool(lead))
    after = EditedHeaders(headers.text(), field_lines)
    assert after.rest == before
    assert len(after) == len(headers)


@settings(max_examples=part(200))
@given(st.binary(max_size=200))
def test_a_milter_takes_any_bytes(data: bytes) -> None:
    milter = MilterSide()
    try:
        milter.receive(MtaSide().negotiate() + data)
    except MilterError:
        pass
