"""Key records, keys in DER, and the two arithmetics, compared with each other."""

from __future__ import annotations

import sys
from base64 import b64decode
from functools import partial
from hashlib import sha256
from math import gcd
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.authentication.dkim import arithmetic, der, keys
from smtpd_filters.authentication.dkim.arithmetic import (
    Cryptography,
    Dkimpy,
    KeyNumbersError,
    MissingError,
    RSANumbers,
)
from smtpd_filters.authentication.dkim.keys import check_signature
from smtpd_filters.authentication.dkim.tags import (
    Problem,
    TagError,
    base64_value,
    emptied,
    parse_tags,
)
from smtpd_filters.lookups.outcome import Found
from tests.authentication.signing import (
    ed25519_key,
    key_record,
    public,
    records,
    rsa_key,
    signed,
    verified,
)
from tests.authentication.test_vectors import FOOTBALL, FOOTBALL_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator


DIGEST = sha256(b"data").digest()
ARITHMETICS: list[type[Cryptography | Dkimpy]] = [Cryptography, Dkimpy]


def numbers() -> RSANumbers:
    n, e, d, p, q, dp, dq, inverse = der.rsa_private(private(TRADITIONAL))
    return RSANumbers((n, e, d, p, q, dp, dq, inverse))


TRADITIONAL = serialization.PrivateFormat.TraditionalOpenSSL
PKCS8 = serialization.PrivateFormat.PKCS8


def private(form: serialization.PrivateFormat, *, ed25519: bool = False) -> bytes:
    return (ed25519_key() if ed25519 else rsa_key()).private_bytes(
        serialization.Encoding.DER, form, serialization.NoEncryption()
    )


def seed() -> bytes:
    return ed25519_key().private_bytes(
        serialization.Encoding.Raw,
        serialization.PrivateFormat.Raw,
        serialization.NoEncryption(),
    )


@pytest.mark.parametrize("make", ARITHMETICS)
@pytest.mark.parametrize("other", ARITHMETICS)
def test_each_verifies_what_each_signs(
    make: type[Cryptography | Dkimpy], other: type[Cryptography | Dkimpy]
) -> None:
    signing, verifying = make(), other()
    assert numbers().consistent()
    signature = signing.rsa_sign(numbers())(DIGEST)
    verify = verifying.rsa_verify(numbers().n, numbers().e)
    assert verify(DIGEST, signature)
    assert not verify(sha256(b"other").digest(), signature)
    signature = signing.ed25519_sign(seed())(DIGEST)
    verify = verifying.ed25519_verify(signing.ed25519_public(seed()))
    assert verify(DIGEST, signature)
    assert not verify(sha256(b"other").digest(), signature)
    assert signing.ed25519_public(seed()) == b64decode(public(ed25519_key()))


def test_a_key_whose_primes_are_none() -> None:
    own = numbers()
    p, e = own.p * 3, own.e
    n = p * own.q
    d = pow(e, -1, (p - 1) * (own.q - 1) // gcd(p - 1, own.q - 1))
    wrong = RSANumbers((n, e, d, p, own.q, d % (p - 1), d % (own.q - 1), pow(own.q, -1, p)))
    assert wrong.consistent()
    with pytest.raises(KeyNumbersError):
        Cryptography().rsa_sign(wrong)
    n = 2 * own.q
    d = pow(e, -1, own.q - 1)
    even = RSANumbers((n, e, d, 2, own.q, d % 1, d % (own.q - 1), 1))
    assert not even.consistent()


def test_the_primes_of_a_key_are_not_tested() -> None:
    """That takes 0.5 s for 4,096 bits, in which no session is served."""
    told: list[bool] = []

    class Recent:
        def private_key(self, *, unsafe_skip_rsa_key_validation: bool = False) -> None:
            told.append(unsafe_skip_rsa_key_validation)

    class Old:
        def private_key(self) -> None:
            told.append(False)

    numbers: Any
    for numbers in (Recent(), Old()):
        arithmetic._untested(numbers)
    assert told == [True, False]


@given(st.binary(max_size=300))
def test_they_agree_about_any_signature(data: bytes) -> None:
    n, e = numbers().n, numbers().e
    right = Cryptography().rsa_sign(numbers())(DIGEST)
    value = int.from_bytes(right, "big")
    for signature in (data, right + data, right[: len(data)], (value + n).to_bytes(257, "big")):
        found = {make.name: make().rsa_verify(n, e)(DIGEST, signature) for make in ARITHMETICS}
        assert len(set(found.values())) == 1
        assert found["dkimpy"] == (signature == right)


@pytest.fixture
def without_cryptography(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    for clear in (arithmetic.arithmetic.cache_clear, keys._key.cache_clear):
        clear()
    yield
    for clear in (arithmetic.arithmetic.cache_clear, keys._key.cache_clear):
        clear()


@pytest.mark.usefixtures("without_cryptography")
def test_the_engine_without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arithmetic.arithmetic().name == "dkimpy"
    assert keys.price() == keys.SLOW
    results = verified(FOOTBALL, records(**FOOTBALL_KEYS), now=1528637909.0)
    assert [each.result for each in results] == ["pass", "pass"]
    (result,) = verified(signed().replace(b"dinner", b"supper"))
    assert (result.result, result.reason) == ("fail", "signature mismatch")
    keys._key.cache_clear()
    monkeypatch.setitem(sys.modules, "nacl", None)
    results = verified(FOOTBALL, records(**FOOTBALL_KEYS), now=1528637909.0)
    assert [(each.result, each.reason) for each in results] == [
        ("neutral", "Ed25519 needs the package cryptography or PyNaCl"),
        ("pass", ""),
    ]
    with pytest.raises(MissingError):
        Dkimpy().ed25519_sign(seed())


@pytest.mark.usefixtures("without_cryptography")
def test_a_signature_of_another_length_without_cryptography() -> None:
    signature = Dkimpy().ed25519_sign(seed())(DIGEST)
    key = keys.parse_record(b"k=ed25519; p=" + public(ed25519_key()).encode()).key()
    assert key.verify(DIGEST, signature)
    assert not key.verify(DIGEST, signature[:-1])
    assert not key.verify(DIGEST, signature + b"\0")


def test_public_keys_in_der() -> None:
    info = b64decode(public(rsa_key()))
    n, e = der.rsa_public(info)
    assert (n, e) == (numbers().n, numbers().e)
    assert der.rsa_public_info(n, e) == info
    bare = (
        rsa_key()
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
    )
    assert der.rsa_public(bare) == (n, e)
    for bad in (info + b"\0", info[:-1], bare + b"\0", b"", b"\x30", info[:30], b"\x30\x80" + info):
        with pytest.raises(der.DERError):
            der.rsa_public(bad)


def test_private_keys_in_der() -> None:
    bare = private(TRADITIONAL)
    assert der.private_info(private(PKCS8)) == ("rsa", bare)
    info = private(PKCS8, ed25519=True)
    assert der.private_info(info) == ("ed25519", seed())
    assert der.ed25519_private_info(seed()) == info
    for bad in (bare, info + b"\0", info[:-1], b""):
        with pytest.raises(der.DERError):
            der.private_info(bad)
    with pytest.raises(der.DERError):
        der.rsa_private(private(PKCS8))


@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for read in (der.rsa_public, der.rsa_private, der.private_info):
        for each in (data, private(PKCS8)[: len(data)] + data):
            try:
                read(each)
            except der.DERError:
                continue


def test_a_point_that_is_not_on_the_curve() -> None:
    record = b"k=ed25519; p=" + b"AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    result = check_signature(Found((record,), 60), "ed25519-sha256", DIGEST, b"x" * 64)
    assert result.result in {"fail", "permerror"}


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        (b"a=1", {"a": b"1"}),
        (b" a = 1 2 ;\r\n\tb_3=x=y; ", {"a": b"1 2", "b_3": b"x=y"}),
        (b"a=;A=2", {"a": b"", "A": b"2"}),
        (b"", {}),
        (b" \r\n ", {}),
    ],
)
def test_a_tag_list(text: bytes, tags: dict[str, bytes]) -> None:
    assert parse_tags(text) == tags


@pytest.mark.parametrize(
    "text", [b"a", b"=1", b"a=1;;b=2", b"1a=1", b"a-b=1", b"a b=1", b"a=1; a=1"]
)
def test_a_text_that_is_not_a_tag_list(text: bytes) -> None:
    with pytest.raises(TagError):
        parse_tags(text)


def test_base64() -> None:
    assert base64_value(b" Y W\r\n\tJ j ") == b"abc"
    for bad in (b"YWJj!", b"YW=Jj", b"YWI", b"\xff"):
        with pytest.raises(ValueError, match=r"."):
            base64_value(bad)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (b"S: a=1; b=x\n\ty ; c=2", b"S: a=1; b=; c=2"),
        (b"S: b = x", b"S: b ="),
        (b"S:b=x;bh=y; B=z", b"S:b=;bh=y; B=z"),
        (b"S: bh=b=x;\n b\n =\n x\n", b"S: bh=b=x;\n b\n ="),
        (b"S: a=1", b"S: a=1"),
    ],
)
def test_a_signature_without_its_value(field: bytes, expected: bytes) -> None:
    assert emptied(field) == expected


def test_a_record_and_its_key_are_kept() -> None:
    (outcome,) = key_record().values()
    assert isinstance(outcome, Found)
    first = keys.parse_record(outcome.records[0])
    assert keys.parse_record(outcome.records[0]) is first
    assert first.key() is first.key()
    check = partial(first.check, "rsa-sha256", subdomain=False)
    check()
    with pytest.raises(Problem, match="key of another type"):
        first.check("ed25519-sha256", subdomain=False)
