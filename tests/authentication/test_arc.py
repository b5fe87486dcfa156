"""Validation of ARC chains: the suite of ARC, and chains of our own."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.authentication.dkim import seal as seal_module
from smtpd_filters.authentication.dkim.arc import MAX_OLDER, MAX_SETS, ArcResult, ArcSet
from smtpd_filters.authentication.dkim.canonical import relaxed_field
from smtpd_filters.authentication.dkim.private_keys import parse_private_key
from smtpd_filters.authentication.dkim.seal import (
    MAX_RESULTS,
    RESULTS,
    SEAL,
    NewSet,
    NotSealedError,
)
from smtpd_filters.authentication.dkim.seal import MESSAGE as MESSAGE_SIGNATURE
from smtpd_filters.authentication.dkim.sign import SigningKey
from smtpd_filters.authentication.dkim.signed_fields import SignedFields
from smtpd_filters.authentication.dkim.tags import base64_value, parse_tags
from smtpd_filters.authentication.results import parse
from smtpd_filters.lookups.outcome import Found, NotFound, Unavailable
from tests.authentication.signing import (
    MESSAGE,
    NAME,
    NOW,
    chain,
    hashed,
    key_record,
    message,
    rsa_key,
    signature_of,
    signed,
)
from tests.data import data_file, need_data

if TYPE_CHECKING:
    from smtpd_filters.authentication.results import Results
    from smtpd_filters.lookups.outcome import Outcome

#: Sealed as failed: RFC 8617 section 5.2, step 2, says fail, and the suite nothing.
DIFFERENT = {"cv_fail_i1_as_cv_fail", "cv_fail_i2_as2_fail", "cv_fail_i2_as1_fail"}
SUITE = "arc/arc-draft-validation-tests.yml"
#: The groups of the suite, and the cases in each: 171.
GROUPS = {
    "Chain Validation": 29,
    "AMS Set Structure": 6,
    "Arc Message Signature Format": 10,
    "Arc Message Signature Fields": 60,
    "Arc Seal Set Structure": 6,
    "Arc Seal Format": 10,
    "Arc Seal Fields": 35,
    "AAR Set Structure": 6,
    "Arc Authentication Results": 6,
    "Public Key": 3,
}


@cache
def scenarios() -> list[dict[str, Any]]:
    path = need_data(data_file(SUITE), SUITE)
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


@pytest.mark.parametrize("group", GROUPS)
def test_the_suite(group: str) -> None:
    (scenario,) = (each for each in scenarios() if each["description"] == group)
    assert len(scenario["tests"]) == GROUPS[group]
    keys: dict[str, Outcome[bytes]] = {
        name.lower(): Found(((text or "").encode(),), 60)
        for name, text in scenario["txt-records"].items()
    }
    for name, case in scenario["tests"].items():
        found = chain((case["message"] or "").encode(), keys, now=12345.0)
        expected = "fail" if name in DIFFERENT else case["cv"].lower()
        assert (name, found.result) == (name, expected), found.reason
        assert bool(found.reason) == (expected == "fail")


# -- our own -----------------------------------------------------------------------------------

AMS = (
    "i={i}; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=sel; h=from:to:subject:date;\r\n"
    "\tbh={{bh}}; b={{b}}"
)
AS = "i={i}; a=rsa-sha256; cv={cv}; d=example.org; s=sel; t=1000000000; b="


def sealed(raw: bytes = MESSAGE, **changes: str) -> bytes:
    """Return a message with one more set; `changes` are those of a field's text."""
    number = len(re.findall(rb"(?mi)^ARC-Seal:", raw)) + 1
    old, new = changes.pop("old", ""), changes.pop("new", "")
    values = {"i": str(number), "cv": "none" if number == 1 else "pass", **changes}
    results = f"ARC-Authentication-Results: i={number}; example.org; spf=pass\r\n"
    raw = signed(raw, AMS.format(**values).replace(old or "\0", new), name="ARC-Message-Signature")
    raw = results.replace(old or "\0", new).encode() + raw
    seal = ("ARC-Seal: " + AS.format(**values)).replace(old or "\0", new).encode()
    by_instance: dict[int, dict[bytes, bytes]] = {}
    for field in re.findall(
        rb"(?mis)^(?:ARC-[a-z-]+:.*?)(?=\r\n(?![ \t]))", raw.partition(b"\r\n\r\n")[0] + b"\r\n."
    ):
        found = re.search(rb"i=([0-9]+);", field)
        assert found
        kind = field.partition(b":")[0].lower()
        by_instance.setdefault(int(found[1]), {})[kind] = field
    data = b""
    for instance in sorted(by_instance):
        for kind in (b"arc-authentication-results", b"arc-message-signature", b"arc-seal"):
            if kind in by_instance[instance]:
                data += relaxed_field(by_instance[instance][kind].replace(b"\r\n", b"\n"))
    data += relaxed_field(seal).removesuffix(b"\r\n")
    return seal + signature_of(rsa_key(), data).encode() + b"\r\n" + raw


SET = ArcSet(1, "example.org", "sel", "example.org; spf=pass")


def test_a_chain_of_two() -> None:
    once = sealed()
    assert chain(once, key_record()) == ArcResult("pass", sets=(SET,), oldest=0)
    twice = sealed(once)
    second = ArcSet(2, "example.org", "sel", "example.org; spf=pass")
    assert chain(twice, key_record()) == ArcResult("pass", sets=(SET, second), oldest=0)
    # The order of the fields doesn't matter (RFC 8617 section 5.1.1), other fields neither.
    fields = twice.partition(b"From:")[0]
    seals = re.findall(rb"(?s)ARC-Seal:.*?\r\n(?![ \t])", fields)
    for seal in seals:
        fields = fields.replace(seal, b"")
    moved = b"Received: x\r\n" + fields + b"".join(reversed(seals)) + twice[twice.index(b"From:") :]
    assert chain(moved, key_record()).result == "pass"


def test_a_key_that_is_not_for_subdomains() -> None:
    # ARC has no i=, so nothing in a chain is signed for a subdomain.
    assert chain(sealed(), key_record("t=s; ")).result == "pass"


def test_no_chain() -> None:
    assert chain(MESSAGE, {}) == ArcResult("none")


def test_a_changed_message() -> None:
    changed = chain(sealed().replace(b"dinner", b"supper"), key_record())
    assert changed == ArcResult("fail", "message signature: signature mismatch", (SET,))
    changed = chain(sealed().replace(b"Joe.", b"Jim."), key_record())
    assert changed.reason == "message signature: body hash mismatch"
    changed = chain(sealed().replace(b"spf=pass", b"spf=fail"), key_record())
    assert changed.reason == "seal 1: signature mismatch"
    # Only the newest signature of the message is required (RFC 8617 section 5.2, step 4).
    twice = sealed(sealed().replace(b"dinner", b"supper"))
    assert chain(twice, key_record()) == replace(chain(twice, key_record()), oldest=2)


def test_a_second_field_that_the_newest_message_signature_leaves_out() -> None:
    # A trusted sealer's word would count for a text that it has not seen.
    found = chain(b"Subject: y\r\n" + sealed(), key_record())
    assert found == ArcResult("fail", "message signature: a second Subject is not signed", (SET,))


def test_the_oldest_valid_message_signature() -> None:
    # RFC 8617 section 5.2, step 5: a change below instance 3 of 4; an invalid one; another key.
    changed = sealed(sealed(sealed(sealed()).replace(b"dinner", b"supper")))
    assert chain(changed, key_record()).oldest == 3
    assert chain(sealed(sealed(sealed(sealed()))), key_record()).oldest == 0
    odd = chain(sealed(sealed(sealed(old="h=from:to", new="l=x; h=from:to"))), key_record())
    assert (odd.result, odd.oldest) == ("pass", 2)


def test_of_a_long_chain_only_the_newest_message_signatures_are_verified() -> None:
    content = MESSAGE
    for _ in range(1 + MAX_OLDER):
        content = sealed(content)
    assert chain(content, key_record()).oldest == 0
    assert chain(sealed(content), key_record()).oldest == 2


@pytest.mark.parametrize(
    ("outcome", "reason", "temporary"),
    [
        (Unavailable("timeout"), "message signature: key: timeout", True),
        (NotFound("nxdomain"), "message signature: no key", False),
    ],
)
def test_a_key_that_is_not_found(
    outcome: Outcome[bytes],
    reason: str,
    temporary: bool,  # noqa: FBT001  # a column
) -> None:
    found = chain(sealed(), {NAME: outcome})
    assert found == ArcResult("fail", reason, (SET,), temporary)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"i=1; example", b"i=2; example", "incomplete sets"),
        (b"i=1; example", b"i=0; example", "invalid instance"),
        (b"i=1; example", b"i=51; example", "invalid instance"),
        (b"i=1; example", b"i=001; example", "invalid instance"),
        (b"i=1; example", b"example", "invalid instance"),
        (b"i=1; a=rsa-sha256; cv", b"i=2; a=rsa-sha256; cv", "incomplete sets"),
        (b"i=1; a=rsa-sha256; cv", b"i=one; a=rsa-sha256; cv", "invalid instance"),
        (b"i=1; a=rsa-sha256; cv", b"i = 1; a=rsa-sha256; cv", "signature mismatch"),
        (b"cv=none", b"cv=pass", "cv= of instance 1"),
        (b"cv=none", b"cv=fail", "sealed as failed"),
        (b"cv=none; ", b"", "no cv="),
        (b"cv=none", b"cv=none; h=from", "seal with h= or bh="),
        (b"h=from", b"h=arc-seal:from", "ARC-Seal signed"),
        (b"ARC-Seal:", b"X:", "incomplete sets"),
        (b"From:", b"ARC-Seal: i=1; cv=none\r\nFrom:", "an instance twice"),
        (b"From:", b"ARC-Seal: i=2; cv=none\r\n" * (MAX_SETS + 1) + b"From:", "more than 50 sets"),
    ],
)
def test_the_structure(old: bytes, new: bytes, reason: str) -> None:
    found = chain(sealed().replace(old, new, 1), key_record())
    assert found.result == "fail"
    assert reason in found.reason


@given(st.binary(max_size=99), st.binary(max_size=99))
def test_no_chain_raises(seal: bytes, results: bytes) -> None:
    raw = sealed()
    odd = b"ARC-Seal: " + seal.replace(b"\n", b"\n\t") + b"\r\n"
    odd += b"ARC-Authentication-Results: " + results.replace(b"\n", b"\n\t") + b"\r\n"
    assert chain(odd + raw, key_record(), NOW).result == "fail"
    assert b64encode(raw)


# -- sealing -----------------------------------------------------------------------------------

SIGNING = "arc/arc-draft-sign-tests.yml"
#: The cases of the suite: 17, of which one is not sealed.
SEALED = {"Canonicalization": 9, "Existant Seal Headers": 8}


@pytest.mark.parametrize("group", SEALED)
def test_the_suite_of_sealing(group: str) -> None:
    path = need_data(data_file(SIGNING), SIGNING)
    scenarios = [each for each in yaml.safe_load_all(path.read_text()) if each]
    (scenario,) = (each for each in scenarios if each["description"] == group)
    assert len(scenario["tests"]) == SEALED[group]
    key = SigningKey(
        scenario["domain"], scenario["sel"], parse_private_key(scenario["privatekey"].encode())
    )
    keys: dict[str, Outcome[bytes]] = {
        name: Found((text.encode(),), 60) for name, text in scenario["txt-records"].items()
    }
    for name, case in scenario["tests"].items():
        raw = case["message"].encode()
        names = tuple(case["sig-headers"].encode().split(b":"))
        if not case["AS"]:
            with pytest.raises(NotSealedError, match="sealed as failed"):
                seal(raw, key, case["srv-id"], names, case["t"])
            continue
        results, ams, last, whole = seal(raw, key, case["srv-id"], names, case["t"])
        assert " ".join(results.split()) == " ".join(case["AAR"].split()), name
        for ours, theirs in ((ams, case["AMS"]), (last, case["AS"])):
            expected, found = parse_tags(theirs.encode()), parse_tags(ours)
            assert expected.keys() == found.keys(), name
            for tag in expected.keys() - {"b", "bh", "h"}:
                assert found[tag] == expected[tag], (name, tag)
        assert base64_value(parse_tags(ams)["bh"]) == base64_value(
            parse_tags(case["AMS"].encode())["bh"]
        )
        failed = b"cv=fail" in last
        assert chain(whole, keys, now=case["t"]).result == ("fail" if failed else "pass"), name


def seal(
    raw: bytes, key: SigningKey, authserv_id: str, names: tuple[bytes, ...], now: float
) -> tuple[str, bytes, bytes, bytes]:
    """Return the three values of a new set, and the message with it."""
    made = message(raw)
    new = NewSet(SignedFields(made.headers), authserv_id, names, key, now)
    body = hashed(made, [("relaxed", None)])["relaxed"].digest()
    assert body is not None
    unsigned = new.message(body)
    ams = unsigned.value(key.key.sign(unsigned.digest))
    unsigned = new.seal(ams)
    last = unsigned.value(key.key.sign(unsigned.digest))
    for name, value in ((RESULTS, new.results), (MESSAGE_SIGNATURE, ams), (SEAL, last)):
        made.headers.prepend(name, value)
    head = b"\r\n".join([*made.headers.lines(), b"", b""])
    whole = head + b"".join(made.body(crlf=True))
    made.discard()
    return new.results, ams, last, whole


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"Authentication-Results: example.org", b"Authentication-Results: other", "no results of"),
        (b"arc=pass", b"x=pass", "no arc= in the results"),
        (b"arc=pass", b"arc=temperror", "could not be validated by example.org: temperror"),
        (b"ARC-Seal:", b"X:", "its chain is broken: incomplete sets"),
        (b"i=1; a=rsa-sha256; cv=none", b"i=1; a=rsa-sha256; cv=fail", "sealed as failed"),
    ],
)
def test_a_message_that_is_not_sealed(old: bytes, new: bytes, reason: str) -> None:
    own = SigningKey("example.org", "sel", parse_private_key(rsa_pem()))
    raw = b"Authentication-Results: example.org; arc=pass; spf=pass\r\n" + sealed()
    names = (b"from", b"to")
    assert chain(seal(raw, own, "Example.ORG", names, NOW)[3], key_record()).result == "pass"
    with pytest.raises(NotSealedError, match=reason):
        seal(raw.replace(old, new), own, "example.org", names, NOW)


def test_what_is_wrong_for_certain_comes_before_what_is_unknown() -> None:
    twice = sealed(sealed()).replace(b"s=sel; h=", b"s=slow; h=", 1)
    keys = key_record() | {"slow._domainkey.example.org": Unavailable("timeout")}
    found = chain(twice, keys)
    assert (found.reason, found.temporary) == ("seal 2: signature mismatch", False)
    slow = {name: Unavailable("timeout") for name in keys}
    found = chain(twice, slow)
    assert (found.result, found.reason, found.temporary) == (
        "fail", "message signature: key: timeout", True,
    )  # fmt: skip


def test_results_of_others_are_parsed_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []

    def noted(value: str) -> Results | None:
        parsed.append(len(value))
        return parse(value)

    monkeypatch.setattr(seal_module, "parse", noted)
    own = SigningKey("example.org", "sel", parse_private_key(rsa_pem()))
    result = b"Authentication-Results: example.org; spf=pass\r\n"
    others = (b"Authentication-Results: other" + b"; a=b" * 1000 + b"\r\n") * 100
    results = seal(result + others + result + MESSAGE, own, "example.org", (b"from",), NOW)[0]
    assert results == "i=1; example.org; spf=pass"
    assert 2 < len(parsed) < 10
    assert sum(parsed) <= MAX_RESULTS


def rsa_pem() -> bytes:
    return rsa_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
