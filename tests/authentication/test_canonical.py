"""Canonicalisation, compared with dkimpy's."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256

import pytest
from dkim.canonicalization import CanonicalizationPolicy
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.authentication.dkim.canonical import (
    FIELD,
    RELAXED,
    SIMPLE,
    BodyHash,
    BodyHashes,
    relaxed_field,
    relaxed_fields,
    relaxed_lines,
)
from smtpd_filters.authentication.dkim.signed_fields import _FEW as FEW
from smtpd_filters.authentication.dkim.signed_fields import SignedFields
from smtpd_filters.message import Headers

FORMS = (SIMPLE, RELAXED)
LINES = st.lists(st.text("ab \t\r.").map(str.encode), max_size=12)


def lines_of(body: bytes) -> list[bytes]:
    return body.split(b"\n")[:-1]


def digest(form: str, blocks: list[bytes], length: int | None = None) -> bytes | None:
    body = BodyHash(form, () if length is None else (length,))
    for block in blocks:
        body.update(block)
    body.finish()
    return body.digest(length)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # RFC 6376 section 3.4.5.
        (SIMPLE, (b"A: X\r\n", b"B : Y\t\r\n\tZ  \r\n")),
        (RELAXED, (b"a:X\r\n", b"b:Y Z\r\n")),
    ],
)
def test_the_fields_of_the_rfc(form: str, expected: tuple[bytes, bytes]) -> None:
    assert FIELD[form](b"A: X") == expected[0]
    assert FIELD[form](b"B : Y\t\n\tZ  ") == expected[1]


@pytest.mark.parametrize(
    ("form", "expected"),
    [(SIMPLE, b" C \r\nD \t E\r\n"), (RELAXED, b" C\r\nD E\r\n")],
)
def test_the_body_of_the_rfc(form: str, expected: bytes) -> None:
    assert digest(form, [b" C \nD \t E\n\n\n"]) == sha256(expected).digest()


@pytest.mark.parametrize("blocks", [[], [b"\n"], [b"\n\n", b"\n"]])
@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # RFC 6376 sections 3.4.3 and 3.4.4.
        (SIMPLE, "frcCV1k9oG9oKj3dpUqdJg1PxRT2RSN/XKdLCPjaYaY="),
        (RELAXED, "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
    ],
)
def test_an_empty_body(form: str, expected: str, blocks: list[bytes]) -> None:
    found = digest(form, blocks)
    assert found is not None
    assert b64encode(found).decode() == expected


@given(LINES, st.data())
def test_bodies_are_those_of_dkimpy_in_any_blocks(lines: list[bytes], data: st.DataObject) -> None:
    body = b"".join(line.rstrip(b"\r") + b"\n" for line in lines)
    rows = [row + b"\n" for row in lines_of(body)]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(rows)), max_size=4)))
    blocks = [
        b"".join(rows[begin:end]) for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True)
    ]
    for form in FORMS:
        policy = CanonicalizationPolicy.from_c_value(f"{form}/{form}".encode())
        canonical = policy.canonicalize_body(body.replace(b"\n", b"\r\n"))
        length = data.draw(st.integers(0, len(canonical)))
        assert digest(form, blocks) == sha256(canonical).digest()
        assert digest(form, blocks, length) == sha256(canonical[:length]).digest()
        assert digest(form, blocks, len(canonical) + 1) is None


@given(LINES)
def test_relaxed_lines_keep_no_double_blank(lines: list[bytes]) -> None:
    block = b"".join(line + b"\n" for line in lines)
    relaxed = relaxed_lines(block)
    assert relaxed_lines(relaxed) == relaxed
    assert not any(bad in relaxed for bad in (b"\t", b"  ", b" \n"))
    assert [row.split() for row in relaxed.split(b"\n")] == [
        row.split() for row in block.split(b"\n")
    ]


@given(st.text("ab\t ", max_size=20), st.lists(st.text("a\t ", min_size=1, max_size=9), max_size=4))
def test_fields_are_those_of_dkimpy(first: str, rest: list[str]) -> None:
    lines = [f"Subject:{first}".encode(), *(f" {line}".encode() for line in rest)]
    value = b"\r\n".join([*lines, b""]).partition(b":")[2]
    for form in FORMS:
        policy = CanonicalizationPolicy.from_c_value(f"{form}/{form}".encode())
        ((name, canonical),) = policy.canonicalize_headers([(b"Subject", value)])
        assert FIELD[form](b"\n".join(lines)) == name + b":" + canonical


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"A", b"bc \t", b"X-Y "]),
            st.lists(st.text("a:\t \r", max_size=6), min_size=1, max_size=4),
        ),
        max_size=4,
    )
)
def test_fields_together_are_those_one_by_one(fields: list[tuple[bytes, list[str]]]) -> None:
    raw = [name + b":" + "\n ".join(lines).encode() for name, lines in fields]
    assert not raw or relaxed_fields(raw) == b"".join(map(relaxed_field, raw))


def test_one_body_serves_all_forms_and_lengths() -> None:
    bodies = BodyHashes([(SIMPLE, None), (SIMPLE, 3), (RELAXED, None), (SIMPLE, 3)])
    assert bodies
    bodies.update(b"a  b\n")
    bodies.finish()
    assert bodies[SIMPLE].digest() == sha256(b"a  b\r\n").digest()
    assert bodies[SIMPLE].digest(3) == sha256(b"a  ").digest()
    assert bodies[RELAXED].digest() == sha256(b"a b\r\n").digest()
    assert not BodyHashes([])


@given(
    st.lists(
        st.sampled_from(
            [
                b"To: a",
                b"to : b",
                b" folded",
                b"\tx: y",
                b"no field",
                b": no name",
                b"T\xe9: x",
                b"Cc:",
            ]
        )
    ),
    st.sampled_from([0, FEW]),
)
def test_fields_are_those_of_the_header_parser(lines: list[bytes], others: int) -> None:
    headers = Headers(lines + [b"Subject: x"] * others)
    fields = SignedFields(headers)
    for name in ("to", "cc", "x", "absent"):
        expected = [b"\n".join(field.lines) for field in headers.fields(name)]
        key = name.encode("latin-1")
        assert list(fields.each(name)) == expected
        assert list(fields.selected([key] * 99)) == expected[::-1]
        top, count = fields.topmost(name, 2)
        assert (top, count) == (expected[:2], len(expected))
        for each in top:  # known by its object
            assert len(list(fields.selected([key] * 99, each))) == count - 1
    everything = [b"\n".join(field.lines) for field in headers if field.key in {"to", "x"}]
    assert [field for _, field in fields.lowest({b"to", b"x"}, 99)] == everything[::-1]
    assert fields.lowest(None, 2) == fields.lowest(None, 99)[:2]
