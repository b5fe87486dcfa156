from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.filters.greylist.senders import recipient, sender
from tests.effort import part

SAME = [
    ("Anna@EXAMPLE.org", "anna@example.org"),
    ("<anna@example.org.>", "anna@example.org"),
    ('"anna"@example.org', "anna@example.org"),
    ("@relay.example:anna@example.org", "anna@example.org"),
    ("anna@bücher.example", "anna@xn--bcher-kva.example"),
    ("anna+shop@example.org", "anna@example.org"),
    ("+shop@example.org", "+shop@example.org"),
    ("jane.doe@example.org", "jane.doe@example.org"),
    ("user1@example.org", "user1@example.org"),
    ("", ""),
    ("anna", "anna@"),
    ("anna@[192.0.2.1]", "anna@[192.0.2.1]"),
    # Lists and large senders.
    ("list-return-4711-you=example.net@x.example", "list-return-#-*@x.example"),
    ("list-return-4712-me-too=mail.example.net@x.example", "list-return-#-me-*@x.example"),
    ("bounces+4711-1a2b-you=example.net@x.example", "bounces@x.example"),
    ("bounce-mc.us1_1234.5678-90@x.example", "bounce-mc.us1_#.#-#@x.example"),
    ("0100018c2f3e4d5a-1b2c3d4e-5f60-7a8b-000000@x.example", "#-#-5f60-7a8b-#@x.example"),
    ("deadbeef@x.example", "deadbeef@x.example"),
    ("v-abcdefgh0ijklmnop_q@x.example", "v-#_q@x.example"),
    # BATV: four digits and six hexadecimal digits, on either side; and two of the like.
    ("prvs=0123abcdef=anna@example.org", "anna@example.org"),
    ("PRVS=0123ABCDEF=Anna@example.org", "anna@example.org"),
    ("prvs=anna=0123abcdef@example.org", "anna@example.org"),
    ("msprvs1=19000abcDEF=bounces-17@example.org", "bounces-#@example.org"),
    ("btv1==1234567890a==anna@example.org", "anna@example.org"),
    ("prvs=anna@example.org", "prvs=anna@example.org"),
    # SRS.
    ("SRS0=ab1c=TT=example.org=anna@fwd.example", "srs0=example.org=anna@fwd.example"),
    ("SRS0+xy2z=TU=example.org=anna@fwd.example", "srs0=example.org=anna@fwd.example"),
    (
        "SRS1=ab1c=fwd.example==xy2z=TT=example.org=anna@second.example",
        "srs1=fwd.example=example.org=anna@second.example",
    ),
    ("srs0@example.org", "srs0@example.org"),
]


@pytest.mark.parametrize(("text", "same"), SAME)
def test_what_of_a_sender_stays(text: str, same: str) -> None:
    assert sender(text) == same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("prvs=0123abcdef=anna@example.org", "prvs=4567fedcba=anna@example.org"),
        ("SRS0=ab1c=TT=example.org=a@f.example", "SRS0=9Xyz=AB=example.org=a@f.example"),
        ("list-return-4711-a=b.example@x.example", "list-return-5000-c=d.example@x.example"),
        ("bounce-9f8e7d6c5b4a@x.example", "bounce-1f2e3d4c5b6a@x.example"),
    ],
)
def test_messages_of_one_sender_have_one_triplet(one: str, other: str) -> None:
    assert sender(one) == sender(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("anna@example.org", "anna@example.net"),
        ("anna@example.org", "bert@example.org"),
        ("SRS0=ab1c=TT=example.org=a@f.example", "SRS0=ab1c=TT=example.net=a@f.example"),
        ("prvs=0123abcdef=anna@example.org", "prvs=0123abcdef=bert@example.org"),
        ("", "anna@example.org"),
    ],
)
def test_others_have_another(one: str, other: str) -> None:
    assert sender(one) != sender(other)


def test_of_a_recipient_everything_stays() -> None:
    assert recipient("Anna+Tag-4711@EXAMPLE.org") == "anna+tag-4711@example.org"
    assert recipient("postmaster") == "postmaster@"


@given(st.text() | st.text("prvs=0123456789abcdef+-.@s", max_size=400))
@settings(max_examples=part(200))
def test_whatever_the_client_writes(text: str) -> None:
    once = sender(text)
    assert once == sender(text.upper().lower()) or not text.isascii()
    assert len(once) <= max(len(text) + 1, len(once) if not text.isascii() else 0)
    recipient(text)


def test_no_address_takes_long() -> None:
    for text in ("a=" * 2000, "prvs=" * 900, "a-" * 2000, "srs1=" * 900, "1" * 5000, "a." * 3000):
        assert sender(f"{text}@example.org")
