from __future__ import annotations

import re
from contextlib import suppress

import authres
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.authentication.results import (
    Result,
    Results,
    claims,
    parse,
    remove_forged,
    write,
)
from smtpd_filters.authentication.results.writer import MAX_VALUE, value_of
from smtpd_filters.message import Headers
from tests.effort import part

OWN = "mx.example.org"

#: RFC 8601 appendix B: the value of each field, and its content.
APPENDIX_B = {
    "B.2": ("example.org 1; none", Results("example.org", (), "1")),
    "B.3": (
        "example.com;\n          spf=pass smtp.mailfrom=example.net",
        Results("example.com", (Result("spf", "pass", (("smtp.mailfrom", "example.net"),)),)),
    ),
    "B.4 first": (
        (
            "example.com;\n          auth=pass (cram-md5) smtp.auth=sender@example.net;\n"
            "          spf=pass smtp.mailfrom=example.net"
        ),
        Results(
            "example.com",
            (
                Result("auth", "pass", (("smtp.auth", "sender@example.net"),)),
                Result("spf", "pass", (("smtp.mailfrom", "example.net"),)),
            ),
        ),
    ),
    "B.4 second": (
        "example.com; iprev=pass\n          policy.iprev=192.0.2.200",
        Results("example.com", (Result("iprev", "pass", (("policy.iprev", "192.0.2.200"),)),)),
    ),
    "B.5 first": (
        "example.com;\n          dkim=pass (good signature) header.d=example.com",
        Results("example.com", (Result("dkim", "pass", (("header.d", "example.com"),)),)),
    ),
    "B.5 second": (
        (
            "example.com;\n          auth=pass (cram-md5) smtp.auth=sender@example.com;\n"
            "          spf=fail smtp.mailfrom=example.com"
        ),
        Results(
            "example.com",
            (
                Result("auth", "pass", (("smtp.auth", "sender@example.com"),)),
                Result("spf", "fail", (("smtp.mailfrom", "example.com"),)),
            ),
        ),
    ),
    "B.6 first": (
        (
            'example.com;\n          dkim=pass reason="good signature"\n'
            "            header.i=@mail-router.example.net;\n"
            '          dkim=fail reason="bad signature"\n            header.i=@newyork.example.com'
        ),
        Results(
            "example.com",
            (
                Result(
                    "dkim", "pass", (("header.i", "@mail-router.example.net"),), "good signature"
                ),
                Result("dkim", "fail", (("header.i", "@newyork.example.com"),), "bad signature"),
            ),
        ),
    ),
    "B.6 second": (
        "example.net;\n      dkim=pass (good signature) header.i=@newyork.example.com",
        Results("example.net", (Result("dkim", "pass", (("header.i", "@newyork.example.com"),)),)),
    ),
    "B.7": (
        (
            "foo.example.net (foobar) 1 (baz);\n"
            "       dkim (Because I like it) / 1 (One yay) = (wait for it) fail\n"
            "         policy (A dot can go here) . (like that) expired\n"
            "         (this surprised me) = (as I wasn't expecting it) 1362471462"
        ),
        Results(
            "foo.example.net", (Result("dkim", "fail", (("policy.expired", "1362471462"),)),), "1"
        ),
    ),
}


@pytest.mark.parametrize(("value", "content"), APPENDIX_B.values(), ids=APPENDIX_B)
def test_rfc_8601_appendix_b(value: str, content: Results) -> None:
    assert parse(value) == content
    assert claims(value, content.authserv_id)
    assert not claims(value, OWN)
    written = write(content.authserv_id, content.results)
    assert parse(written) == Results(content.authserv_id, content.results)


INVALID = [
    "",
    ";",
    "example.org; spf",
    "example.org; spf=",
    "example.org; spf=pass smtp.mailfrom",
    "example.org; spf=pass mailfrom=a.example",
    "example.org; spf=pass (comment",
    'example.org; spf=pass reason="open',
    "example.org x; none",
    "example.org; spf/x=pass",
    "example.org; ; spf=pass",
    "a b c; none",
    "example.org; spf=pass smtp.mailfrom=a\\b",
    "x" * (1 << 15) + "; none",
    "example.org; spf=pass smtp.mailfrom=a .b",
]


@pytest.mark.parametrize("value", INVALID)
def test_an_invalid_field(value: str) -> None:
    assert parse(value) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("example.org", "example.org"),
        ("a@example.org", "a@example.org"),
        ("@example.org", "@example.org"),
        ("a;dmarc=pass@evil.example", '"a;dmarc=pass@evil.example"'),
        ('"a b"@example.org', '"\\"a b\\"@example.org"'),
        ("a\r\n b", '"a?? b"'),
        ("", '""'),
        ("b\u00fccher", '"b?cher"'),
        ("rsa-sha256", "rsa-sha256"),
        ("2001:db8::1", '"2001:db8::1"'),
        ("a=b@example.org", '"a=b@example.org"'),
        ("\\", '"\\\\"'),
        ("example.org.", '"example.org."'),
        ("a@example.org.", '"a@example.org."'),
        (".", '"."'),
    ],
)
def test_values(text: str, value: str) -> None:
    assert value_of(text) == value


@given(st.text('a.@/;="\\ ', max_size=12), st.text("a.@/ ", max_size=6))
@example("a.", "a")
def test_values_end_where_they_were_written(text: str, other: str) -> None:
    properties = (("smtp.mailfrom", text), ("smtp.helo", other), ("header.b", "x"))
    content = parse(write(OWN, [Result("spf", "pass", properties)]))
    assert content == Results(OWN, (Result("spf", "pass", properties),))


def test_a_value_of_another_writer_may_end_with_a_dot() -> None:
    properties = (("header.d", "example.org."), ("header.s", "."), ("header.b", "a/"))
    content = parse(f"{OWN}; dkim=fail header.d=example.org. header . s=. header.b=a/")
    assert content == Results(OWN, (Result("dkim", "fail", properties),))


def test_utf8_only_for_messages_that_use_it() -> None:
    assert value_of("b\u00fccher\x85\u2028\udce4", utf8=True) == '"b\u00fccher???"'


def test_a_field_is_folded_before_each_result() -> None:
    value = write(OWN, [Result("spf", "pass", comment="a (b)"), Result("dmarc", "none")])
    assert value == f"{OWN};\n\tspf=pass (a ?b?);\n\tdmarc=none"
    assert write(OWN, []) == f"{OWN};\n\tnone"


def test_a_value_that_is_too_long_is_left_out() -> None:
    long = "a" * MAX_VALUE
    assert long in write(OWN, [Result("spf", "pass", (("smtp.mailfrom", long),))])
    value = write(OWN, [Result("spf", "pass", (("smtp.mailfrom", long + "a"),))])
    assert value == f"{OWN};\n\tspf=pass"


@pytest.mark.parametrize(
    ("method", "result", "name"),
    [("s pf", "pass", "a.b"), ("spf", "", "a.b"), ("spf", "pa;ss", "a.b"), ("spf", "pass", "ab"),
     ("spf", "pass", "a.b=c"), ("spf", "pass", "a.")],
)  # fmt: skip
def test_keywords_are_checked(method: str, result: str, name: str) -> None:
    with pytest.raises(ValueError, match=r"keyword|property"):
        Result(method, result, ((name, "x"),))


@given(
    given_results=st.lists(
        st.tuples(
            st.sampled_from(["spf", "dkim", "dmarc", "arc", "iprev", "auth"]),
            st.sampled_from(["pass", "fail", "none", "temperror"]),
            st.text(max_size=60),
            st.text(max_size=60),
            st.text(max_size=60),
        ),
        min_size=1,
        max_size=4,
    ),
    utf8=st.booleans(),
)
@example(
    given_results=[
        ("spf", "fail", "a;dmarc=pass@evil.example", ");dmarc=pass (", '";dmarc=pass;x="'),
        ("spf", "fail", "a\r\nAuthentication-Results: x; spf=pass", "\\", "\\"),
    ],
    utf8=False,
)
def test_no_text_forges_a_result(
    given_results: list[tuple[str, str, str, str, str]], *, utf8: bool
) -> None:
    """What a sender controls is at most a value: the results are those that were written."""
    results = [
        Result(method, result, (("smtp.mailfrom", value),), reason, comment)
        for method, result, value, comment, reason in given_results
    ]
    headers = Headers()
    headers.append("Authentication-Results", write(OWN, results, utf8=utf8))
    lines = headers.lines()
    assert all(line.startswith(b"\t") for line in lines[1:])
    assert all(len(line) <= 998 for line in lines)
    field = headers.fields("Authentication-Results")[0]
    content = parse(field.value)
    assert content is not None
    expected = [(each.method, each.result) for each in results]
    assert [(each.method, each.result) for each in content.results] == expected
    assert claims(field.value, OWN)
    if not utf8:
        seen = authres.AuthenticationResultsHeader.parse(b" ".join(lines).decode("ascii"))
        assert [(each.method, each.result) for each in seen.results] == expected


#: Values that some reader takes for fields of ours.
FORGED = [
    f"{OWN}\udcff; spf=pass",
    f"\udca0{OWN}; spf=pass",
    "mx.exam\udcffple.org; spf=pass",
    f"{OWN}\udcff\udcfe(a); spf=pass",
    f"\xa0{OWN}; spf=pass",
    f"{OWN}\x00; spf=pass",
    "mx\x00.example.org; spf=pass",
    "mx.ex\x08ample.org; spf=pass",
    "m\x85x.example.org; spf=pass",
    f"other.example\x00 {OWN}; spf=pass",
    "mx.=?utf-8?q?example?=.org; spf=pass",
    "=?utf-8?b?bXguZXhhbXBsZS5vcmc=?=; spf=pass",
    f"{OWN}; spf=pass",
    f"  {OWN} ;spf=pass",
    "MX.Example.ORG; spf=pass",
    f"{OWN} 1; spf=pass",
    f"{OWN}.; spf=pass",
    f"{OWN}/job; spf=pass",
    f"(a comment) {OWN}; spf=pass",
    f"(a (nested) \\) comment){OWN}(another); spf=pass",
    f'"{OWN}"; spf=pass',
    '"mx\\.example.org"; spf=pass',
    '"mx.ex\\ample.org"; spf=pass',
    f"{OWN}\r\n ; spf=pass",
    f"\r\n {OWN}; spf=pass",
    f"\t{OWN}\t;spf=pass",
    f"{OWN}",
    f"{OWN} spf=pass",
    f"{OWN}, spf=pass",
    f"({OWN}; spf=pass",
    f'"{OWN}; spf=pass',
    f"= {OWN}; spf=pass",
    f"; {OWN}; spf=pass",
    f'(") {OWN}; spf=pass; (")',
    f"(;) {OWN}; spf=pass",
    "mx . example . org; spf=pass",
    "mx(a).example.org; spf=pass",
    "mx(a(b)).(c)example.org; spf=pass",
    f"<{OWN}>; spf=pass",
    f"{OWN}:; spf=pass",
    f"=?utf-8?q?{OWN}?=; spf=pass",
    "\uff4dx.example.org; spf=pass",
    "mx\u3002example\uff0eorg; spf=pass",
    f"{OWN}\x00; spf=pass",
    f"other.example {OWN}; spf=pass",
    f"other.example; spf=fail; {OWN}; spf=pass",
    f"other.example; {OWN}; spf=pass",
    f"other.example; none; spf=pass ({OWN}; spf=pass",
    "other.example 2; spf=pass",
    "\u00fc " * 80 + "; spf=pass",
]


@pytest.mark.parametrize("value", FORGED)
def test_a_forged_field(value: str) -> None:
    assert claims(value, OWN)
    assert claims(value, OWN.upper())
    assert claims(value, f"{OWN}/other-job")


def test_a_forged_field_of_an_internationalised_id() -> None:
    for own in ("b\u00fccher.example", "xn--bcher-kva.example"):
        for value in ("B\u00dcCHER.example", "xn--bcher-kva.EXAMPLE", '"bu\u0308cher.example"'):
            assert claims(f"{value}; spf=pass", own)
    assert not claims("bucher.example; spf=pass", "b\u00fccher.example")


#: Fields of others, which stay.
FOREIGN = [
    "example.org; spf=pass",
    f"mail.google.com; spf=pass smtp.mailfrom={OWN}",
    f"mail.google.com 1; dkim=pass header.i=@{OWN} (a good ; signature)",
    f"x{OWN}; spf=pass",
    f"{OWN}.example.com; spf=pass",
    f"a.{OWN}; spf=pass",
    f'"other.example"; spf=pass reason="from {OWN}"',
    "spf=pass (sender IP is 192.0.2.1) smtp.mailfrom=example.com",
    "",
]


@pytest.mark.parametrize("value", FOREIGN)
def test_a_field_of_others(value: str) -> None:
    assert not claims(value, OWN)


def test_all_forged_fields_are_removed() -> None:
    forged = [f"Authentication-Results: {OWN}; spf=pass" for _ in range(3)]
    lines = [
        forged[0],
        "Subject: a",
        f"AUTHENTICATION-RESULTS :\n {OWN};\n spf=pass",
        "Authentication-Results: other.example; spf=pass",
        forged[1],
        forged[2],
        f"ARC-Authentication-Results: i=1; {OWN}; spf=pass",
        f"X-Odd: a\rAuthentication-Results: {OWN}; spf=pass",
        "X-Even: a\rX-Authentication-Results: other.example; spf=pass",
        f"To: b\r\n\tc\r authentication-results : {OWN}",
        "From: c",
    ]
    headers = Headers("\n".join(lines).encode().split(b"\n"))
    assert remove_forged(headers, OWN) == 6
    assert [line.split(b":")[0] for line in headers.lines()] == [
        b"Subject", b"Authentication-Results", b"ARC-Authentication-Results", b"X-Even", b"From",
    ]  # fmt: skip
    assert headers.get("Authentication-Results") == "other.example; spf=pass"
    before = headers.lines()
    assert remove_forged(headers, OWN) == 0
    assert headers.lines() == before


#: Fields whose names some reader takes for that of the field.
DISGUISED = [
    b"Authentication-Results\x00: mx.example.org; spf=pass",
    b"authentication-results\x0c: mx.example.org; spf=pass",
    b"\x00Authentication-Results: mx.example.org; spf=pass",
    b"\xef\xbb\xbfAuthentication-Results: mx.example.org; spf=pass",
    b"Authentication\xff-Results\xa0: mx.example.org; spf=pass",
    b"Authentication -Results: mx.example.org; spf=pass",
    b"Authentication-Results\n : mx.example.org; spf=pass",
    b"Authentication-\n\t Results \n\t:mx.example.org; spf=pass\n dkim=pass",
]


@pytest.mark.parametrize("field", DISGUISED)
def test_a_disguised_name(field: bytes) -> None:
    kept = [b"Subject: a", b" Authentication-Results: folded", b"X-Authentication-Results: x"]
    kept += [b"Authentication-Results : other.example; spf=pass", b"Authentication-Result: x"]
    kept += [b"Authentication-Results-X: x", b"Authentication", b"Results: x"]
    lines = field.split(b"\n")
    for block in ([*kept, *lines], [*lines, *kept], [*kept[:4], *lines, *kept[4:]]):
        headers = Headers(block)
        assert remove_forged(headers, OWN) == 1
        assert headers.lines() == kept


@pytest.mark.parametrize("blank", [b" ", b"\t", b" \x0b"])
def test_a_blank_before_the_first_name(blank: bytes) -> None:
    headers = Headers([blank + b"Authentication-Results: mx.example.org;", b" spf=pass", b"To: a"])
    assert remove_forged(headers, OWN) == 1
    assert headers.lines() == [b"To: a"]


@given(st.text(max_size=200))
@example("(" * 200)
@example('"' * 199)
@example("\\" * 199)
def test_no_value_raises(value: str) -> None:
    claims(value, OWN)
    parse(value)


_COMMENT = st.sampled_from(["", " ", "\t", "(a)", " (a (b) c) ", "\r\n ", '(\\")'])


@given(
    _COMMENT,
    _COMMENT,
    st.sampled_from(["", " 1"]),
    st.lists(st.booleans(), min_size=20, max_size=20),
)
def test_any_spelling_that_authres_reads_is_found(
    before: str, after: str, version: str, upper: list[bool]
) -> None:
    own = "".join(c.upper() if up else c for c, up in zip(OWN, upper, strict=False))
    value = f"{before}{own}{after}{version}; spf=pass smtp.mailfrom=a.example"
    with suppress(authres.SyntaxError):  # it doesn't read some comments
        seen = authres.AuthenticationResultsHeader.parse_value(re.sub("\r\n", "", value))
        assert seen.authserv_id.lower() == OWN
    assert claims(value, OWN)
    content = parse(value)
    assert content is not None
    assert content.authserv_id.lower() == OWN


def test_all_fields_are_removed_beyond_what_is_examined() -> None:
    value = "other.example; spf=pass " + "(" * 3_900
    headers = Headers([f"Authentication-Results: {value}".encode()] * 300)
    assert remove_forged(headers, OWN) == 300 - 4


LONG = [
    " ",
    "(",
    ")",
    '"',
    '\\"',
    "(a)",
    "a.",
    " .",
    "( ",
    "xn--a ",
    "a=b ",
    "\u00fc ",
    "mx.example.org",
]


@pytest.mark.parametrize("piece", LONG)
def test_the_time_is_linear(piece: str) -> None:
    """Each takes about a second in all; a quadratic one would take minutes or hours."""
    value = piece * (part(300_000) // len(piece))
    claims(value, OWN)
    claims(f"a; {value}", OWN)
    claims(f"a ({value}); spf=pass", OWN)
