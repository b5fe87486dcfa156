from __future__ import annotations

import asyncio
from time import thread_time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.message import Headers
from smtpd_filters.message.disguise import Name
from smtpd_filters.scanning.edits import Edits
from smtpd_filters.scanning.outcomes import LONGEST, refusal, safe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RECEIVED = b"Received: from client by mx"
SPAM = Name("X-Spam-", prefix=True)


def edited(block: list[bytes], work: Callable[[Edits], Awaitable[object]]) -> list[bytes]:
    """The lines of a header block after its edits; nothing may be left out."""

    async def edit() -> list[bytes]:
        headers = Headers(block)
        notes: list[str] = []
        await work(Edits(headers, notes.append))
        assert notes == []
        return headers.lines()

    return asyncio.run(edit())


def test_the_clients_own_fields_are_removed() -> None:
    block = [
        b"X-Spam: Yes",
        b"X-Spam-Status: Yes, by an earlier filter",
        RECEIVED,
        b"Received: from elsewhere",
        b"x-sPam-status: No",
        b"\tfolded",
        b"Subject: X-Spam-Score: 1",
        b"X-Virus-Status: Clean",
        b"X-Spammer: me",
    ]
    assert edited(block, lambda edits: edits.remove_foreign(SPAM)) == [*block[:4], *block[6:]]


@pytest.mark.parametrize(
    "name",
    [b"X-Spam-\x00Status", b"\xffX-Spam-Status", b"X-Spam\n -Status\n ", b"X-Spam- Status\t"],
)
def test_the_clients_own_fields_are_removed_under_any_reading_of_their_names(name: bytes) -> None:
    field = b"%b: No\n folded" % name
    block = [b"X-Spam-Status: Yes", RECEIVED, *field.split(b"\n"), b"Subject: x", b"X-Spammer: me"]
    assert edited(block, lambda edits: edits.remove_foreign(SPAM)) == [*block[:2], *block[-2:]]


def test_fields_of_many_names_are_removed_in_linear_time() -> None:
    """A message of 200 KB with a name for each field would otherwise take many seconds."""
    block = [RECEIVED, *(b"X-Spam-%d: forged" % number for number in range(15_000))]
    admitted = []

    async def remove(edits: Edits) -> None:
        admit = edits._admit

        async def counted(work: int) -> None:
            admitted.append(work)
            await admit(work)

        edits._admit = counted
        await edits.remove_foreign(SPAM)

    started = thread_time()
    assert edited(block, remove) == [RECEIVED]
    assert thread_time() - started < 2
    assert sum(admitted) < 200_000


def test_the_price_of_an_edit_counts_the_bytes_of_the_block() -> None:
    """Few lines may have a megabyte, through which each edit walks."""
    block = [RECEIVED, *[b"X: " + b"x" * 60_000] * 16]
    admitted = []

    async def add(edits: Edits) -> None:
        async def counted(work: int) -> None:
            admitted.append(work)

        edits._admit = counted
        await edits.add("Y", "1")

    edited(block, add)
    assert 500 < max(admitted) < 2000  # microseconds, about


def test_a_block_without_any_stays_as_it_is() -> None:
    block = [RECEIVED, b"Subject : odd", b"no field"]
    assert edited(block, lambda edits: edits.remove_foreign(SPAM)) == block


def test_without_smtpds_own_received_all_are_the_clients() -> None:
    block = [b"X-Spam-Status: No", b"Subject: x"]
    assert edited(block, lambda edits: edits.remove_foreign(SPAM)) == block[1:]


@pytest.mark.parametrize(
    ("subject", "tag", "tagged"),
    [
        ([b"Subject: hello"], "***SPAM***", b"Subject: ***SPAM*** hello"),
        ([b"Subject: ***SPAM*** hello"], "***SPAM***", b"Subject: ***SPAM*** hello"),
        ([], "***SPAM***", b"Subject: ***SPAM***"),
        ([b"Subject: h\xe9llo"], "[junk]", b"Subject: [junk] h\xe9llo"),
        ([b"Subject: x"], "Späm", b"Subject: =?utf-8?B?U3DDpG0=?= x"),
    ],
)
def test_a_subject_is_tagged(subject: list[bytes], tag: str, tagged: bytes) -> None:
    assert edited([RECEIVED, *subject], lambda edits: edits.tag_subject(tag)) == [RECEIVED, tagged]


def test_places_count_from_smtpds_own_received() -> None:
    async def add(edits: Edits) -> None:
        await edits.settle()
        for order in (1, None, -1, 2, 0):
            await edits.add(f"X-{order}", "v", order)

    assert edited([b"X-Spam: Yes", RECEIVED, b"Subject: x"], add) == [
        b"X-0: v",
        b"X-Spam: Yes",
        RECEIVED,
        b"X-1: v",
        b"X-2: v",
        b"Subject: x",
        b"X-None: v",
        b"X--1: v",
    ]


def test_a_mark_replaces_others_of_its_name() -> None:
    async def mark(edits: Edits) -> None:
        await edits.settle()
        await edits.describe(7.25, 5, [("B", 1), ("A", 6.25)])
        await edits.mark()

    assert edited([RECEIVED, b"X-Spam-Score: 0", b"X-Spam: No"], mark) == [
        b"X-Spam: Yes",
        b"X-Spam-Score: 7.25 / 5",
        b"X-Spam-Status: Yes, score=7.250 required=5.000 tests=[A=6.250, B=1.000]",
        RECEIVED,
    ]


@given(st.binary(max_size=400) | st.text(max_size=400))
def test_any_text_is_made_safe(text: bytes | str) -> None:
    shown = safe(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= LONGEST
    assert shown == shown.strip(" ")
    for outcome in ("reject", "tempfail"):
        assert len(refusal(outcome, shown).text) <= 510


def test_a_name_stays_as_it_is() -> None:
    assert safe(b"Win.Test.EICAR_HDB-1") == "Win.Test.EICAR_HDB-1"
    assert safe("a\r\n250 b\xe9") == "a 250 b?"
