from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.addresses import path
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.tls.channel import is_verified, parse_channel
from smtpd_filters.filters.tls.counts import MAX_KINDS, Counts
from smtpd_filters.filters.tls.rules import REQUIREMENT, parse_rule

TLS13 = parse_channel("TLSv1.3:TLS_AES_256_GCM_SHA384:256")
TLS12 = parse_channel("TLSv1.2:ECDHE-RSA-AES128-GCM-SHA256:128")
STATIC = parse_channel("TLSv1.2:AES256-SHA:256")
OLD = parse_channel("TLSv1:ECDHE-RSA-AES256-SHA:256")
ANONYMOUS = parse_channel("TLSv1.2:AECDH-AES256-SHA:256")
SSL = parse_channel("SSLv3:DES-CBC3-SHA:112")


@pytest.mark.parametrize(
    ("rule", "met"),
    [
        ("any", [TLS13, TLS12, STATIC, OLD, ANONYMOUS, SSL]),
        ("1.0", [TLS13, TLS12, STATIC, OLD, ANONYMOUS]),
        ("1.2", [TLS13, TLS12, STATIC, ANONYMOUS]),
        ("TLSv1.3", [TLS13]),
        ("any bits=128", [TLS13, TLS12, STATIC, OLD, ANONYMOUS]),
        ("any bits=256", [TLS13, STATIC, OLD, ANONYMOUS]),
        ("1.2 forward-secrecy", [TLS13, TLS12, ANONYMOUS]),
        ("any cipher=GCM|POLY1305", [TLS13, TLS12]),
        ("any 'cipher=^ECDHE'", None),
        ("any cipher='^ECDHE-|^DHE-'", [TLS12, OLD]),
        ("any cipher=^ECDHE-", [TLS12, OLD]),
    ],
)
def test_what_a_connection_must_have(rule: str, met: list[object] | None) -> None:
    if met is None:
        with pytest.raises(ValueError, match="is not one of"):
            parse_rule(rule)
        return
    parsed = parse_rule(rule)
    assert parsed.lacks(None) == "no TLS"
    every = [TLS13, TLS12, STATIC, OLD, ANONYMOUS, SSL]
    assert [each for each in every if not parsed.lacks(each)] == met


@pytest.mark.parametrize(
    ("rule", "client", "user", "sender", "covered"),
    [
        ("any", "192.0.2.1", None, "", True),
        ("any client=192.0.2.0/24", "192.0.2.1", None, "a@x.example", True),
        ("any client=192.0.2.0/24", "198.51.100.1", None, "a@x.example", False),
        ("any client=local", "local", None, "", True),
        ("any sender=@x.example", "192.0.2.1", None, "A@X.EXAMPLE", True),
        ("any sender=@x.example", "192.0.2.1", None, "a@y.x.example", False),
        ("any sender=@x.example", "192.0.2.1", None, "", False),
        ("any sender=@", "192.0.2.1", None, "", True),
        ("any sender-domain=x.example", "192.0.2.1", None, "a@x.example.", True),
        ("any sender-domain={ *.x.example, z.example }", "1.2.3.4", None, "a@b.x.example", True),
        ("any sender-domain={ *.x.example, z.example }", "1.2.3.4", None, "a@x.example", False),
        ("any sender-domain=bücher.example", "1.2.3.4", None, "a@xn--bcher-kva.example", True),
        ("any authenticated", "192.0.2.1", None, "a@x.example", False),
        ("any authenticated", "192.0.2.1", "joe", "a@x.example", True),
        ("any user={ joe, ann }", "192.0.2.1", "Joe", "a@x.example", True),
        ("any user=joe", "192.0.2.1", "jim", "a@x.example", False),
        ("any user=joe sender=@x.example", "192.0.2.1", "joe", "a@y.example", False),
    ],
)
def test_whom_it_is_for(
    rule: str, client: str, user: str | None, sender: str, *, covered: bool
) -> None:
    assert parse_rule(rule).covers(client, user, path(sender)) is covered


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "begins with any"),
        ("1.4", "begins with any"),
        ("2", "begins with any"),
        ("certificate", "begins with any"),
        ("1.2 foo=bar", "is not one of"),
        ("1.2 bits", "is not one of"),
        ("1.2 certificate=yes", "is not one of"),
        ("1.2 sender=", "is not one of"),
        ("1.2 bits=12", "at least 40"),
        ("1.2 bits=128 bits=256", "bits is there twice"),
        ("1.2 action=refuse", "is not one of reject"),
        ("1.2 client=example.org", "client: "),
        ("1.2 sender=example.org", "did you mean"),
        ("1.2 sender={}", "no entries"),
        ("1.2 cipher=(", "cipher: "),
        ("1.2 authenticated user=joe", "no effect"),
        ("1.2 recipient=file:/nonexistent/x", "recipient: "),
    ],
)
def test_what_is_no_requirement(text: str, reason: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=reason):
        parse_rule(text)


@given(st.text())
@example("1.2 sender={ a@b.example, '@c d' } action=log")
def test_a_requirement_is_parsed_or_an_error(text: str) -> None:
    try:
        rule = parse_rule(text)
    except (ValueError, ConfigError):
        return
    assert parse_rule(rule.text) == rule


def test_several_in_toml() -> None:
    rules = REQUIREMENT.from_toml(["any action=log", "1.2 sender={ @a.example, @b.example }"])
    assert REQUIREMENT.words(rules) == ["any action=log", "1.2 sender={ @a.example, @b.example }"]
    with pytest.raises(ValueError, match="an array"):
        REQUIREMENT.from_toml("1.2")
    with pytest.raises(ValueError, match="an array of strings"):
        REQUIREMENT.from_toml([1.2])


RECEIVED = (
    "from x.example (<unknown> [192.0.2.9])\r\n\tby mx (OpenSMTPD) with ESMTPS id aade45ea "
    "(TLSv1.3:TLS_AES_256_GCM_SHA384:256:{});\r\n\tfor <a@b.example>; today"
)
CHANNEL = "TLSv1.3:TLS_AES_256_GCM_SHA384:256"


@pytest.mark.parametrize(
    ("received", "verified"),
    [
        (RECEIVED.format("YES"), True),
        (RECEIVED.format("NO"), False),
        (RECEIVED.format("FAIL"), False),
        (RECEIVED.format("YES").replace("aade45ea", "aade45eb"), None),
        (RECEIVED.format("YES").replace("1.3:", "1.2:"), None),
        ("from x by y with ESMTPS id aade45ea", None),
        ("", None),
        # What a client says of itself stands before smtpd's own words.
        (RECEIVED.format("NO").replace("x.example", f"({CHANNEL}:YES)"), False),
    ],
)
def test_the_certificate(received: str, *, verified: bool | None) -> None:
    assert is_verified(received, "aade45ea", CHANNEL) is verified


@given(st.text())
@example("TLSv1.3:")
@example("TLSv1.x:a:1")
@example("TLSv" + "9" * 10_000)
def test_any_report_of_tls_is_parsed_or_an_error(text: str) -> None:
    try:
        channel = parse_channel(text)
    except ValueError:
        return
    assert text.startswith(channel.protocol)
    assert channel.bits >= 0


def test_the_shares() -> None:
    counts = Counts(0.0)
    assert counts.values(1.0) == {}
    for channel in (TLS13, TLS13, OLD, None):
        counts.add(channel, user=channel is OLD)
    assert counts.values(3600.0) == {
        "messages": 4, "plain": 1, "TLSv1": 1, "TLSv1.3": 2, "users": 1, "failing": 0, "exempt": 0,
        "hours": "1.0", "shares": "plain 25.0%, TLSv1 25.0%, TLSv1.3 50.0%",
    }  # fmt: skip


def test_kinds_are_bounded() -> None:
    counts = Counts(0.0)
    for number in range(100):
        counts.add(parse_channel(f"TLSv1.{number}:X:1"), user=False)
    assert len(counts.by_kind) == MAX_KINDS + 1
    assert sum(counts.by_kind.values()) == 100
