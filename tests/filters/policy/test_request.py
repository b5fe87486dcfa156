"""The request: every attribute, in every request, and none that a client has written."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.filters.policy.request import (
    ATTRIBUTES,
    MAX_VALUE,
    address,
    build,
    declared_size,
    of_session,
)
from smtpd_filters.session import FIELDS, Session
from tests.effort import part

#: As in SMTPD_POLICY_README of Postfix 3.7.
POSTFIX = """\
request=smtpd_access_policy
protocol_state=RCPT
protocol_name=SMTP
helo_name=some.domain.tld
queue_id=8045F2AB23
sender=foo@bar.tld
recipient=bar@foo.tld
recipient_count=0
client_address=1.2.3.4
client_name=another.domain.tld
reverse_client_name=another.domain.tld
instance=123.456.7
sasl_method=plain
sasl_username=you
sasl_sender=
size=12345
ccert_subject=solaris9.porcupine.org
ccert_issuer=Wietse+20Venema
ccert_fingerprint=C2:9D:F4:87:71:73:73:D9:18:E7:C2:F3:C1:DA:6E:04
encryption_protocol=TLSv1/SSLv3
encryption_cipher=DHE-RSA-AES256-SHA
encryption_keysize=256
etrn_domain=
stress=
ccert_pubkey_fingerprint=68:B3:29:DA:98:93:E3:40:99:C7:D8:AD:5C:B9:C9:40
client_port=1234
policy_context=submission
server_address=10.3.2.1
server_port=54321
tls_sni=
"""


def parsed(request: bytes) -> dict[str, bytes]:
    """Parse a request as a server does: lines of name=value up to the first empty line."""
    assert request.endswith(b"\n\n")
    head, _, rest = request.partition(b"\n\n")
    assert not rest
    lines = [line.partition(b"=") for line in head.split(b"\n")]
    return {name.decode(): value for name, _, value in lines}


def session(*reports: tuple[str, tuple[bytes, ...]], src: bytes = b"192.0.2.1:33174") -> Session:
    made = Session(b"7641df9771b4ed00").expect(each for row in FIELDS.values() for each in row)
    made.apply("link-connect", (b"mail.example.net", b"pass", src, b"[2001:db8::1]:25"))
    for name, values in reports:
        made.apply(name, values)
    return made


def test_the_attributes_are_those_of_postfix() -> None:
    assert set(ATTRIBUTES) == set(parsed(POSTFIX.encode() + b"\n"))


def test_every_attribute_is_in_every_request() -> None:
    assert list(parsed(build({}))) == list(ATTRIBUTES)
    assert set(parsed(build({})).values()) == {b""}
    assert parsed(build({"size": "1"}))["size"] == b"1"


def test_an_attribute_that_postfix_does_not_have_is_a_mistake() -> None:
    with pytest.raises(KeyError, match="recipients"):
        build({"recipients": "x"})


def test_no_client_writes_attributes() -> None:
    request = build({"helo_name": "x\nsasl_username=boss\r\n\n\0", "sender": "\udcff\xfc@b"})
    assert list(parsed(request)) == list(ATTRIBUTES)
    assert parsed(request)["helo_name"] == b"xsasl_username=boss"
    assert parsed(request)["sasl_username"] == b""
    assert parsed(request)["sender"] == b"\xff\xc3\xbc@b"  # the bytes that the client sent


@settings(max_examples=part(400))
@given(st.dictionaries(st.sampled_from(ATTRIBUTES), st.text(max_size=50) | st.just("=\n\n=")))
def test_a_request_has_one_line_for_each_attribute(values: dict[str, str]) -> None:
    values = {name: value.encode("utf-8", "replace").decode() for name, value in values.items()}
    request = build(values)
    assert request.count(b"\n") == len(ATTRIBUTES) + 1
    for name, value in parsed(request).items():
        assert value == values.get(name, "").translate(dict.fromkeys(b"\0\r\n")).encode()


def test_a_long_value_is_cut() -> None:
    assert len(parsed(build({"sasl_username": "x" * 100_000}))["sasl_username"]) == MAX_VALUE


def test_what_is_known_of_a_client() -> None:
    made = session(
        ("link-identify", (b"EHLO", b"mail.example.net")),
        ("link-tls", (b"TLSv1.3:TLS_AES_256_GCM_SHA384:256",)),
        ("link-auth", (b"pass", b"alice")),
    )
    assert of_session(made) == {
        "request": "smtpd_access_policy",
        "protocol_name": "ESMTP",
        "helo_name": "mail.example.net",
        "client_address": "192.0.2.1",
        "client_name": "mail.example.net",
        "client_port": "33174",
        "reverse_client_name": "mail.example.net",
        "server_address": "2001:db8::1",
        "server_port": "25",
        "sasl_username": "alice",
        "encryption_protocol": "TLSv1.3",
        "encryption_cipher": "TLS_AES_256_GCM_SHA384",
        "encryption_keysize": "256",
    }


def test_a_reverse_name_that_is_not_verified_is_not_the_name_of_the_client() -> None:
    made = session()
    made.apply("link-connect", (b"liar.example", b"fail", b"[2001:db8::9]:25", b"192.0.2.2:587"))
    values = of_session(made)
    assert (values["client_name"], values["reverse_client_name"]) == ("unknown", "liar.example")
    assert (values["client_address"], values["server_port"]) == ("2001:db8::9", "587")
    made.apply("link-connect", (b"<unknown>", b"fail", b"192.0.2.1:1", b"192.0.2.2:25"))
    assert of_session(made)["reverse_client_name"] == "unknown"


def test_an_address_has_no_zone() -> None:
    made = session()
    made.apply("link-connect", (b"<unknown>", b"fail", b"[fe80::9%em0]:1", b"[fe80::1%em0]:25"))
    values = of_session(made)
    assert (values["client_address"], values["client_port"]) == ("fe80::9", "1")
    assert (values["server_address"], values["server_port"]) == ("fe80::1", "25")


def test_an_ipv4_mapped_address_is_the_ipv4_address() -> None:
    made = session()
    ends = (b"[::ffff:192.0.2.9]:1", b"[::ffff:192.0.2.1]:25")
    made.apply("link-connect", (b"<unknown>", b"fail", *ends))
    values = of_session(made)
    assert (values["client_address"], values["client_port"]) == ("192.0.2.9", "1")
    assert (values["server_address"], values["server_port"]) == ("192.0.2.1", "25")


def test_a_client_on_the_socket_has_an_address() -> None:
    values = of_session(session(src=b"unix:/run/smtpd.sock"))
    assert values["client_address"] == "127.0.0.1"
    assert values["client_name"] == values["reverse_client_name"] == "localhost"
    assert values["client_port"] == ""


@pytest.mark.parametrize(
    ("command", "size"),
    [
        (None, 0),
        ("MAIL FROM:<a@b>", 0),
        ("MAIL FROM:<a@b> SIZE=1000", 1000),
        ("mail from:<a@b> BODY=8BITMIME size=20 RET=HDRS", 20),
        ("MAIL FROM:<a@b> SIZE=1000 AUTH=<>", 1000),
        ("MAIL FROM:<SIZE=5@b>", 0),
        ("MAIL FROM:<> SIZE=-1", 0),
        ("MAIL FROM:<> SIZE=", 0),
        ("MAIL FROM:<> SIZE=\u0661", 0),
        ("MAIL FROM:<> SIZE=" + "9" * 5000, 0),
    ],
)
def test_the_size_that_a_client_declares(command: str | None, size: int) -> None:
    assert declared_size(command) == size


def test_addresses_are_as_postfix_has_them() -> None:
    assert address("@relay.example:alice@example.org", None) == "alice@example.org"
    assert address('"alice"@example.org.', "mx.example.org") == "alice@example.org"
    assert address("alice", "mx.example.org") == "alice@mx.example.org"
    assert address("", "mx.example.org") == ""
