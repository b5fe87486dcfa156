"""Hostile messages and records, properties of all, and the second opinion of dkimpy."""

from __future__ import annotations

import tracemalloc
from hashlib import sha256
from time import process_time
from typing import TYPE_CHECKING

import dkim
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.lookups.outcome import Found
from tests.authentication.signing import (
    MESSAGE,
    NAME,
    TEMPLATE,
    key_record,
    message,
    rsa_key,
    signed,
    verified,
    verified_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.lookups.outcome import Outcome

# -- hostile messages --------------------------------------------------------------------------

BLANKS = b" " * 60_000
HOSTILE: dict[str, Callable[[], bytes]] = {
    "blanks in the body": lambda: signed() + (BLANKS + b"x\r\n") * 20,
    "tabs and blanks in the body": lambda: signed() + b"a \t" * 300_000 + b"\r\n",
    "empty lines": lambda: signed() + b"\r\n" * 500_000 + b"x\r\n",
    "blanks after b=": lambda: signed(template=TEMPLATE.replace("{b}", "{b}" + "\r\n\t" * 2000)),
    "blanks and a bad character in b=": lambda: signed(template=TEMPLATE + " " * 7000 + "!"),
    "names in h=": lambda: signed(
        MESSAGE.replace(b"To:", b"A: b\r\n" * 4000 + b"To:"), TEMPLATE.replace("to:", "a:" * 250)
    ),
    "many names": lambda: signed(
        MESSAGE.replace(b"To:", b"".join(b"X%d: a\r\n" % n for n in range(16_000)) + b"To:")
    ),
    "a field of blanks": lambda: signed(MESSAGE.replace(b"To:", b"To: " + BLANKS + b"x" + BLANKS)),
    "a hundred fields": lambda: (b"DKIM-Signature: " + b";" * 2000 + b"\r\n") * 100 + MESSAGE,
    "many tags": lambda: (b"DKIM-Signature: " + b"a=;" * 2000 + b"\r\n") * 30 + MESSAGE,
}


@pytest.mark.parametrize("unsigned", [1, 5_000])
def test_the_fields_of_a_large_header_are_the_same(unsigned: int) -> None:
    head = b"".join(b"X%d: a\r\n b\r\n" % number for number in range(unsigned))
    raw = MESSAGE.replace(b"To:", b"keywords: c\r\n" + head + b"Keywords: e\r\nTo:")
    content = signed(raw, TEMPLATE.replace("from:to", "from:to:keywords"))
    above = content.replace(b"\r\nKey", b"\r\nkeywords: d\r\nKey")
    below = content.replace(b"\r\n\r\n", b"\r\n to\r\nKEYWORDS : d\r\n\r\n", 1)
    found = [verified_message(message(each), key_record())[0] for each in (content, above, below)]
    assert [each.result for each in found] == ["pass", "pass", "fail"]


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_message_costs_little(case: str) -> None:
    made = message(HOSTILE[case]())
    verified_message(made)  # loads modules, and what they cache
    size = made.stored
    tracemalloc.start()
    begun = process_time()
    results = verified_message(made)
    took = process_time() - begun
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    made.discard()
    assert results
    assert peak < 8 * max(size, 1 << 16)
    # What these tests are about took seconds; `python -m tests.bench.signatures` measures.
    assert took < 1


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_no_field_and_no_record_raises(value: bytes, record: bytes) -> None:
    raw = b"DKIM-Signature: " + value.replace(b"\n", b"\n\t") + b"\r\n" + MESSAGE
    found = verified(raw, {NAME: Found((record,), 60)})
    assert {each.result for each in found} <= {"permerror"}
    assert all(each.reason for each in found)


@given(st.data())
def test_no_change_of_a_signature_raises(data: st.DataObject) -> None:
    field, rest = signed().split(b"From:", 1)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(16, len(field) - 3))
        new = data.draw(st.sampled_from([b"", b";", b"=", b" ", b"\r\n\t", b"\xff", b"0", b"a"]))
        field = field[:at] + new + field[at + data.draw(st.integers(0, 2)) :]
    if not field.endswith(b"\r\n"):
        field += b"\r\n"
    found = verified(field + b"From:" + rest)
    assert {each.result for each in found} <= {"pass", "fail", "permerror", "policy"}
    assert all((each.result == "pass") == (not each.reason) for each in found)


# -- a second opinion --------------------------------------------------------------------------


def lookup(keys: dict[str, Outcome[bytes]]) -> Callable[..., bytes | None]:
    def get(name: bytes, timeout: int = 5) -> bytes | None:
        del timeout
        found = keys.get(name.decode().rstrip("."))
        return found.records[0] if isinstance(found, Found) else None

    return get


LINE = st.text("ab \t.é", max_size=12).map(lambda text: text.encode() + b"\r\n")


@given(
    fields=st.lists(
        st.sampled_from([b"X: y\r\n", b"To: a\r\n", b"Subject: a  b \r\n\tc\r\n"]), max_size=5
    ),
    body=st.lists(LINE, max_size=8).map(b"".join),
    form=st.sampled_from(["simple", "relaxed", "simple/relaxed", "relaxed/relaxed"]),
    changed=st.booleans(),
)
def test_dkimpy_agrees(fields: list[bytes], body: bytes, form: str, *, changed: bool) -> None:
    raw = b"".join(fields) + MESSAGE.partition(b"Hi.")[0] + body
    field = signed(raw, TEMPLATE.replace("relaxed/relaxed", form))[: -len(raw)]
    raw = field + (raw.replace(b"a", b"b") if changed else raw)
    (found,) = verified(raw)
    # A second To or Subject that isn't signed is beyond dkimpy.
    valid = found.result in {"pass", "policy"}
    assert valid == dkim.verify(raw, dnsfunc=lookup(key_record()))


@pytest.mark.parametrize("form", [b"simple", b"relaxed"])
def test_what_dkimpy_signs(form: bytes) -> None:
    from cryptography.hazmat.primitives import serialization

    pem = rsa_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    field = dkim.sign(MESSAGE, b"sel", b"example.org", pem, canonicalize=(form, form))
    (found,) = verified(field + MESSAGE, now=2e9)
    assert (found.result, found.bits) == ("pass", 2048)
    assert sha256(field).digest()
