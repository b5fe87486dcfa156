"""Verification of DKIM signatures: the vectors of the RFCs, and the cases of a verifier."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.authentication.dkim import signatures as engine
from smtpd_filters.authentication.dkim.field import MAX_FIELD, SKEW
from smtpd_filters.authentication.dkim.keys import MAX_RECORD
from smtpd_filters.authentication.dkim.signed_fields import MAX_BLOCK, MAX_NAMES, SignedFields
from smtpd_filters.lookups.outcome import Found, NotFound, Unavailable
from smtpd_filters.message import Headers
from tests.authentication.signing import (
    MESSAGE,
    NAME,
    NOW,
    TEMPLATE,
    ed25519_key,
    key_record,
    message,
    public,
    records,
    rsa_key,
    signed,
    verified,
    verified_message,
)

if TYPE_CHECKING:
    from smtpd_filters.lookups.outcome import Outcome

# -- the cases of a verifier ------------------------------------------------------------------

#: The size of the body in relaxed form.
SIZE = len(b"Hi.\r\n\r\nWe lost the game. Are you hungry yet?\r\n\r\nJoe.\r\n")
#: A signature's text, and its result and reason; the record is a plain one.
CASES = {
    "plain": (TEMPLATE, "pass", ""),
    "simple": (TEMPLATE.replace("relaxed/relaxed", "simple/simple"), "pass", ""),
    "simple header": (TEMPLATE.replace("relaxed/relaxed", "simple/relaxed"), "pass", ""),
    "simple body": (TEMPLATE.replace("relaxed/relaxed", "relaxed/simple"), "pass", ""),
    "half a c=": (TEMPLATE.replace("relaxed/relaxed", "relaxed"), "pass", ""),
    "no c=": (TEMPLATE.replace("c=relaxed/relaxed; ", ""), "pass", ""),
    "capitals in a= and c=": (
        TEMPLATE.replace("rsa-sha256", "RSA-SHA256").replace("relaxed/relaxed", "Relaxed/RELAXED"),
        "pass",
        "",
    ),
    "unknown c=": (
        TEMPLATE.replace("relaxed/relaxed", "nofws"),
        "permerror",
        "unknown canonicalization",
    ),
    "tag twice": (TEMPLATE + "; s=sel", "permerror", "tag s= twice"),
    "unknown tag twice": (TEMPLATE + "; u=1; u=2", "permerror", "tag u= twice"),
    "tag in capitals": (TEMPLATE.replace(" d=", " D="), "permerror", "no d="),
    "unknown tag": (TEMPLATE + "; unknown=1; _x=1", "permerror", "invalid tag"),
    "unknown tags": (TEMPLATE + "; unknown=1; D=other; r=y", "pass", ""),
    "final semicolon": (TEMPLATE + ";", "pass", ""),
    "two final semicolons": (TEMPLATE + ";;", "permerror", "invalid tag"),
    "no value": (TEMPLATE + "; flag", "permerror", "invalid tag"),
    "v=2": (TEMPLATE.replace("v=1", "v=2"), "permerror", "unknown version"),
    "v= not first": (TEMPLATE.replace("v=1; ", "") + "; v=1", "pass", ""),
    "no i=": (TEMPLATE, "pass", ""),
    "i= of the domain": (TEMPLATE + "; i=@example.org", "pass", ""),
    "i= of a subdomain": (TEMPLATE + "; i=joe@a.EXAMPLE.org", "pass", ""),
    "i= quoted": (TEMPLATE + "; i=a=40b=3B@example.org", "pass", ""),
    "i= of the parent": (
        TEMPLATE.replace("example.org", "a.example.org") + "; i=@example.org",
        "permerror",
        "i= is outside d=",
    ),
    "i= of a name with the same end": (
        TEMPLATE + "; i=@badexample.org",
        "permerror",
        "i= is outside d=",
    ),
    "i= without @": (TEMPLATE + "; i=example.org", "permerror", "invalid i="),
    "i= empty": (TEMPLATE + "; i=", "permerror", "invalid i="),
    "From not in h=": (TEMPLATE.replace("from:", ""), "permerror", "From not signed"),
    "h= empty": (TEMPLATE.replace("from:to:subject:date", ""), "permerror", "invalid h="),
    "h= with an empty name": (TEMPLATE.replace("from:to", "from::to"), "permerror", "invalid h="),
    "h= with blanks": (TEMPLATE.replace("from:to", "From :\r\n\t TO "), "pass", ""),
    "h= with absent fields": (TEMPLATE.replace("from:to", "from:cc:reply-to:to"), "pass", ""),
    "h= with more names than fields": (
        TEMPLATE.replace("from:to", "from:from:from:to:to"),
        "pass",
        "",
    ),
    "h= with a control": (TEMPLATE.replace("from:to", "from:t\x01o"), "permerror", "invalid h="),
    "h= with too many names": (
        TEMPLATE.replace("from:", "from:" + "a:" * MAX_NAMES),
        "permerror",
        "too many names in h=",
    ),
    "bh= of another hash": (TEMPLATE.replace("{bh}", "AAAA"), "permerror", "bh= of the wrong size"),
    "bh= undecodable": (TEMPLATE.replace("{bh}", "{bh}!"), "permerror", "invalid bh="),
    "bh= empty": (TEMPLATE.replace("{bh}", ""), "permerror", "invalid bh="),
    "b= undecodable": (TEMPLATE.replace("{b}", "{b}!"), "permerror", "invalid b="),
    "b= empty": (TEMPLATE.replace("{b}", "") + "; y={b}", "permerror", "invalid b="),
    "l= of the whole body": (TEMPLATE + f"; l={SIZE}", "pass", ""),
    "l= of nothing": (TEMPLATE + "; l=0", "policy", "part of the body is not signed"),
    "l= of a part": (TEMPLATE + "; l=10", "policy", "part of the body is not signed"),
    "l= beyond the body": (TEMPLATE + f"; l={SIZE + 1}", "fail", "body shorter than l="),
    "l= of many digits": (TEMPLATE + f"; l={'9' * 76}", "fail", "body shorter than l="),
    "l= of 77 digits": (TEMPLATE + f"; l={'9' * 77}", "permerror", "invalid l="),
    "l= negative": (TEMPLATE + "; l=-1", "permerror", "invalid l="),
    "l= empty": (TEMPLATE + "; l=", "permerror", "invalid l="),
    "q=": (TEMPLATE + "; q=dns/txt", "pass", ""),
    "q= in capitals": (TEMPLATE + "; q=DNS/TXT", "pass", ""),
    "q= with others": (TEMPLATE + "; q=x/y:dns/txt", "pass", ""),
    "q= with an argument": (TEMPLATE + "; q=dns/txt:x", "pass", ""),
    "q= unknown": (TEMPLATE + "; q=x/y", "permerror", "unknown query method"),
    "t= and x=": (TEMPLATE + f"; t={int(NOW)}; x={int(NOW) + 9}", "pass", ""),
    "x= without t=": (TEMPLATE + f"; x={int(NOW)}", "pass", ""),
    "x= just past": (TEMPLATE + f"; x={int(NOW) - SKEW}", "pass", ""),
    "x= past": (TEMPLATE + f"; x={int(NOW) - SKEW - 1}", "permerror", "signature expired"),
    "x= before t=": (
        TEMPLATE + f"; t={int(NOW)}; x={int(NOW) - 1}",
        "permerror",
        "x= is not after t=",
    ),
    "t= in the future": (TEMPLATE + f"; t={int(NOW) + SKEW + 1}", "policy", "signed in the future"),
    "t= of many digits": (TEMPLATE + f"; t={'1' * 4301}", "permerror", "invalid t="),
    "x= of many digits": (TEMPLATE + f"; x={'1' * 4301}", "permerror", "invalid x="),
    "z= with anything": (TEMPLATE + "; z=From:a=3Bb@example.net|To:\xc3", "pass", ""),
    "rsa-sha1": (TEMPLATE.replace("rsa-sha256", "rsa-sha1"), "permerror", "rsa-sha1 is obsolete"),
    "unknown algorithm": (
        TEMPLATE.replace("rsa-sha256", "rsa-sha512"),
        "permerror",
        "unknown algorithm",
    ),
    "a= of another type": (
        TEMPLATE.replace("rsa-sha256", "ed25519-sha256"),
        "permerror",
        "key of another type",
    ),
    "d= of one label": (TEMPLATE.replace("example.org", "org"), "permerror", "invalid d="),
    "d= with a final dot": (
        TEMPLATE.replace("example.org", "example.org."),
        "permerror",
        "invalid d=",
    ),
    "d= invalid": (TEMPLATE.replace("example.org", "exa mple.org"), "permerror", "invalid d="),
    "d= in capitals": (TEMPLATE.replace("example.org", "Example.ORG"), "pass", ""),
    "d= without a key": (TEMPLATE.replace("example.org", "example.com"), "permerror", "no key"),
    "s= invalid": (TEMPLATE.replace("s=sel", "s=s..l"), "permerror", "invalid s="),
    "s= without a key": (TEMPLATE.replace("s=sel", "s=other"), "permerror", "no key"),
    "folded anywhere": (
        TEMPLATE.replace("bh={bh}", "bh=\r\n\t {bh}").replace("b={b}", "b\r\n =\r\n {b}\r\n\t"),
        "pass",
        "",
    ),
    "too long": (TEMPLATE + "; z=" + "x" * MAX_FIELD, "permerror", "signature too long"),
    "too many tags": (
        TEMPLATE + "".join(f"; x{n}=1" for n in range(99)),
        "permerror",
        "too many tags",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_signature(case: str) -> None:
    template, result, reason = CASES[case]
    (found,) = verified(signed(template=template))
    assert (found.result, found.reason) == (result, reason)


@pytest.mark.parametrize("missing", ["v", "a", "b", "bh", "d", "h", "s"])
def test_a_missing_tag(missing: str) -> None:
    tags = TEMPLATE.replace("b={b}", "b=YQ==").replace("{bh}", "YQ==").replace("\r\n\t", " ")
    kept = [tag for tag in tags.split("; ") if not tag.startswith(f"{missing}=")]
    (found,) = verified(b"DKIM-Signature: " + "; ".join(kept).encode() + b"\r\n" + MESSAGE)
    assert (found.result, found.reason) == ("permerror", f"no {missing}=")


#: A record before its p=, and the result and reason.
RECORDS = {
    "plain": ("", "pass", ""),
    "v=": ("v=DKIM1; ", "pass", ""),
    "k=": ("v=DKIM1; k=rsa; ", "pass", ""),
    "k= in capitals": ("k=RSA; ", "pass", ""),
    "v= not first": ("k=rsa; v=DKIM1; ", "permerror", "key record of another version"),
    "another version": ("v=DKIM2; ", "permerror", "key record of another version"),
    "v=DKIM1.0": ("v=DKIM1.0; ", "permerror", "key record of another version"),
    "v= in lower case": ("v=dkim1; ", "permerror", "key record of another version"),
    "unknown k=": ("k=dsa; ", "permerror", "key of another type"),
    "h= with sha256": ("h=sha1:sha256; ", "pass", ""),
    "h=sha1": ("h=sha1; ", "permerror", "key not for this hash"),
    "s=email": ("s=email; ", "pass", ""),
    "s=*": ("s=*; ", "pass", ""),
    "s= with others": ("s=other : email; ", "pass", ""),
    "s= of others": ("s=tlsrpt; ", "permerror", "key not for mail"),
    "unknown tags": ("n=a note; g=*; x=1; ", "pass", ""),
    "tag twice": ("k=rsa; k=rsa; ", "permerror", "invalid key record"),
    "blanks in p=": ("p=", "pass", ""),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_record(case: str) -> None:
    tags, result, reason = RECORDS[case]
    text = f"{tags}p={public(rsa_key())}"
    if tags == "p=":
        text = "p=" + " \t\r\n ".join(public(rsa_key()).partition("A"))
    (found,) = verified(signed(), records(**{NAME: text}))
    assert (found.result, found.reason, found.testing) == (result, reason, False)


@pytest.mark.parametrize(
    ("outcome", "result", "reason"),
    [
        (NotFound("nxdomain"), "permerror", "no key"),
        (NotFound("nodata"), "permerror", "no key"),
        (Unavailable("SERVFAIL"), "temperror", "key: SERVFAIL"),
        (Found((b"p=",), 60), "permerror", "key revoked"),
        (Found((b"v=DKIM1; k=rsa",), 60), "permerror", "no key in the record"),
        (Found((b"p=!",), 60), "permerror", "invalid key record"),
        (Found((b"p=YWJj",), 60), "permerror", "invalid key"),
        (Found((b"v=spf1 -all",), 60), "permerror", "key record of another version"),
        (Found((b"",), 60), "permerror", "no key in the record"),
        (Found((b"v=spf1 -all",), 60, "cut off"), "temperror", "key: cut off"),
        (Found((b"p=" + b"A" * MAX_RECORD,), 60), "permerror", "key record too long"),
        (
            Found((b"v=DKIM1; k=ed25519; p=" + b64encode(b"x" * 31),), 60),
            "permerror",
            "key of another type",
        ),
    ],
)
def test_an_outcome_of_the_look_up(outcome: Outcome[bytes], result: str, reason: str) -> None:
    (found,) = verified(signed(), {NAME: outcome})
    assert (found.result, found.reason) == (result, reason)


def test_each_of_several_records_is_tried() -> None:
    right, other = (f"p={public(rsa_key(number=number))}" for number in (0, 1))
    for texts, result, reason in (
        (["v=spf1 -all", other, right], "pass", ""),
        ([other, "p="], "fail", "signature mismatch"),
        (["p=", "junk"], "permerror", "key revoked"),
        ([other] * 4 + [right], "fail", "signature mismatch"),
    ):
        (found,) = verified(signed(), records(**{NAME: texts}))
        assert (found.result, found.reason) == (result, reason)


def test_the_flags_of_a_record() -> None:
    below = signed(template=TEMPLATE + "; i=@a.example.org")
    (found,) = verified(below, key_record("t=y; "))
    assert (found.result, found.testing) == ("pass", True)
    (found,) = verified(below.replace(b"Joe.", b"Jim."), key_record("t=y:s:x; "))
    assert (found.result, found.reason, found.testing) == (
        "permerror",
        "key not for subdomains",
        True,
    )
    (found,) = verified(signed(), key_record("t=s; "))
    assert found.result == "pass"


@pytest.mark.parametrize("bits", [512, 1023, 4097, 8192])
def test_a_key_of_a_size_that_is_not_accepted(bits: int) -> None:
    (found,) = verified(signed(), records(**{NAME: f"p={rsa_record((1 << bits - 1) + 1, 65537)}"}))
    assert (found.result, found.reason) == ("policy", f"key of {bits} bits")


@pytest.mark.parametrize("exponent", [0, 1, 2, 65536, (1 << 64) + 1, (1 << 2047) + 1])
def test_a_key_with_an_exponent_that_is_not_accepted(exponent: int) -> None:
    (found,) = verified(signed(), records(**{NAME: f"p={rsa_record((1 << 2047) + 1, exponent)}"}))
    assert (found.result, found.reason) == ("permerror", "invalid key")


def rsa_record(modulus: int, exponent: int) -> str:
    from smtpd_filters.authentication.dkim.der import rsa_public_info

    return b64encode(rsa_public_info(modulus, exponent)).decode()


def test_the_largest_key() -> None:
    key = rsa_key(4096)
    (found,) = verified(signed(key=key), key_record(key=key))
    assert (found.result, found.bits) == ("pass", 4096)


def test_ed25519() -> None:
    template = TEMPLATE.replace("rsa-sha256", "ed25519-sha256")
    raw = signed(template=template, key=ed25519_key())
    (found,) = verified(raw, key_record("k=ed25519; ", ed25519_key()))
    assert (found.result, found.bits) == ("pass", 256)
    (found,) = verified(raw.replace(b"Joe.", b"Jim."), key_record("k=ed25519; ", ed25519_key()))
    assert (found.result, found.reason) == ("fail", "body hash mismatch")
    short = b64encode(b"x" * 63).decode()
    raw = signed(template=template.replace("{b}", short) + "; y={b}", key=ed25519_key())
    (found,) = verified(raw, key_record("k=ed25519; ", ed25519_key()))
    assert (found.result, found.reason) == ("fail", "signature mismatch")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"dinner", b"supper", "signature mismatch"),
        (b"joe@", b"jim@", "signature mismatch"),
        (b"Hi.", b"Ho.", "body hash mismatch"),
        (b"Subject: ", b"Subject:\t", ""),
        (b"We lost  the", b"We lost the", ""),
        (b"We lost  the", b"We lostthe", "body hash mismatch"),
    ],
)
def test_a_changed_message(old: bytes, new: bytes, reason: str) -> None:
    (found,) = verified(signed().replace(old, new))
    assert (found.result, found.reason) == ("fail" if reason else "pass", reason)


def test_over_signing_protects_against_a_field_added() -> None:
    raw = signed(template=TEMPLATE.replace("from:to", "from:from:to"))
    (found,) = verified(raw.replace(b"From:", b"From: eve@example.com\r\nFrom:"))
    assert (found.result, found.reason) == ("fail", "signature mismatch")


def test_fields_of_one_name_are_signed_from_the_bottom() -> None:
    added = MESSAGE.replace(b"To:", b"X-To: a\r\nx-tO: b\r\nX-TO: c\r\nTo:")
    raw = signed(added, TEMPLATE.replace("from:to", "from:x-to:X-To"))
    (found,) = verified(raw)
    assert found.result == "pass"
    (found,) = verified(raw.replace(b"X-To: a", b"X-To: d"))
    assert found.result == "pass"
    (found,) = verified(raw.replace(b"x-tO: b", b"x-tO: d"))
    assert found.result == "fail"


#: A field that is added to a signed message, and the name of which there are two then.
ADDED = {
    "From": (b"From: eve@example.com", "From"),
    "Subject": (b"sUBJECT: y", "Subject"),
    "Content-Type": (b"Content-Type: text/html", "Content-Type"),
    "To, with blanks": (b"To \t: y", "To"),
    "Date, with a control": (b"Date\x0b: y", "Date"),
    "To, folded": (b"To\r\n : y", "To"),
    "To, with a byte": (b"T\xc2\xa0o: y", "To"),
    "Subject, behind a bare CR": (b"X: y\rSubject: y", "Subject"),
    "a name that isn't signed": (b"Reply-To: eve@example.com", ""),
    "another name": (b"X-Subject: y", ""),
    "a word of a value": (b"X: y\r\n Subject: y", ""),
    "a line that isn't a field": (b"Subject", ""),
}


@pytest.mark.parametrize("place", ["above", "below", "above many"])
@pytest.mark.parametrize(("field", "name"), ADDED.values(), ids=ADDED)
def test_a_second_field_that_is_not_signed(field: bytes, name: str, place: str) -> None:
    raw = MESSAGE.replace(b"To:", b"Content-Type: text/plain\r\nTo:")
    content = signed(raw, TEMPLATE.replace("from:to", "content-type:from:to"))
    if place == "below":
        # The one that is signed is the lowest.
        content = content.replace(b"\r\nFrom: Joe", b"\r\n%b\r\nFrom: Joe" % field)
    else:
        many = b"X: y\r\n" * (1000 if place == "above many" else 1)
        content = b"%b\r\n%b%b" % (field, many, content)
    (found,) = verified(content)
    reason = f"a second {name} is not signed" if name else ""
    assert (found.result, found.reason) == ("policy" if name else "pass", reason)


def test_two_fields_that_are_signed() -> None:
    raw = MESSAGE.replace(b"Subject:", b"Subject: x\r\nSubject:")
    (found,) = verified(signed(raw, TEMPLATE.replace("subject", "subject:subject")))
    assert found.result == "pass"


def test_no_second_field_makes_a_wrong_signature_better() -> None:
    added = b"Subject: y\r\n" + signed()
    (found,) = verified(added.replace(b"Joe <", b"Eve <"))
    assert found.result == "fail"
    (found,) = verified(added.replace(b"Hi.", b"Ho."))
    assert found.result == "fail"


@pytest.mark.parametrize("body", [b"", b"\r\n", b"\r\n\r\n", b"x", b"x\r\n\r\n", b".x\r\n..\r\n"])
@pytest.mark.parametrize("form", ["simple/simple", "relaxed/relaxed"])
def test_bodies(body: bytes, form: str) -> None:
    head = MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    (found,) = verified(signed(head + body, TEMPLATE.replace("relaxed/relaxed", form)))
    assert found.result == "pass"


def test_a_body_with_a_tail_that_is_not_signed() -> None:
    raw = signed(template=TEMPLATE + "; l=0").replace(b"Hi.", b"Buy this.")
    (found,) = verified(raw)
    assert (found.result, found.reason) == ("policy", "part of the body is not signed")


def test_8_bit_text_and_lines_that_are_not_fields() -> None:
    raw = MESSAGE.replace(
        b"Is dinner", "Wann gibt es Abendbrot, J\udcf6rg".encode(errors="surrogateescape")
    )
    (found,) = verified(signed(raw))
    assert found.result == "pass"
    # Obsolete syntax (RFC 5322 section 4.5), as in the example of RFC 6376, and a line of text.
    odd = signed(MESSAGE.replace(b"Subject:", b"Subject :"))
    (found,) = verified(odd.replace(b"To: Suzie", b"no field at all\r\nTo: Suzie"))
    assert found.result == "pass"
    (found,) = verified_message(message(b" folded\r\n" + signed()))
    assert found.result == "pass"


def test_a_domain_and_a_selector_in_unicode() -> None:
    template = TEMPLATE.replace("example.org", "bücher.example").replace("s=sel", "s=größe")
    keys = {"xn--gre-6ka8i._domainkey.xn--bcher-kva.example": key_record()[NAME]}
    (found,) = verified(signed(template=template + "; i=jörg@bücher.example"), keys)
    assert (found.result, found.domain) == ("pass", "xn--bcher-kva.example")
    assert found.identity == "jörg@xn--bcher-kva.example"


# -- several signatures ------------------------------------------------------------------------


def domain(name: str) -> str:
    return TEMPLATE.replace("example.org", name)


def test_one_good_signature_is_enough_for_itself() -> None:
    raw = b"DKIM-Signature: v=1\r\nDKIM-Signature: \xff\r\n" + signed() + b""
    results = verified(signed(raw, domain("example.com")))
    assert sorted((each.result, each.domain) for each in results) == [
        ("pass", "example.org"),
        ("permerror", ""),
        ("permerror", ""),
        ("permerror", "example.com"),
    ]


def test_those_of_the_author_are_verified_first() -> None:
    raw = MESSAGE
    names = ["a.example.org", "org.example", "example.org", *(f"n{n}.example" for n in range(9))]
    for name in names:
        raw = signed(raw, domain(name))
    signatures = engine.Signatures(
        SignedFields(message(raw).headers), NOW, authors=["b.example.org", "a.example.org"]
    )
    assert signatures.names[:2] == ("sel._domainkey.a.example.org", NAME)
    assert len(signatures.names) == engine.LIMIT
    assert signatures.left_out == len(names) - engine.LIMIT


def test_keys_are_named_once() -> None:
    signatures = engine.Signatures(SignedFields(message(signed(signed())).headers), NOW)
    assert signatures
    assert signatures.names == (NAME,)
    assert not engine.Signatures(SignedFields(message(MESSAGE).headers), NOW)


def test_a_header_that_is_too_long() -> None:
    raw = signed().replace(b"To:", b"X: " + b"x" * MAX_BLOCK + b"\r\nTo:")
    (found,) = verified(raw)
    assert (found.result, found.reason) == ("permerror", "header too long")
    headers = Headers(message(signed()).headers.lines(), cut=True)
    assert SignedFields(headers).too_long
