from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.filters.rspamd.request import (
    MAX_RECIPIENTS,
    MAX_VALUE,
    Facts,
    fields,
    path,
    safe,
)
from smtpd_filters.session import Session, Transaction

CLIENT: dict[str, Any] = {
    "rdns": b"mail.example.com",
    "fcrdns": b"pass",
    "src": b"192.0.2.1:33174",
    "dest": b"198.51.100.25:25",
}


def session(
    *,
    sender: str | None = "bob@example.net",
    recipients: tuple[str, ...] = ("anna@example.org",),
    identity: str | None = "helo.example.com",
    tls: str | None = None,
    username: str | None = None,
    **client: bytes,
) -> Session:
    made = Session(b"7641df9771b4ed00")
    made.apply("link-connect", tuple({**CLIENT, **client}.values()))
    made.server_name = None
    made.method, made.identity, made.tls, made.username = "EHLO", identity, tls, username
    made.tx = Transaction("1ef1c203")
    made.tx.sender = sender
    made.tx.recipients = list(recipients)
    return made


def told(of: Session, admd: str = "mx.example.org", **facts: Any) -> dict[str, list[str]]:
    """The values of each field."""
    found: dict[str, list[str]] = {}
    for name, value in fields(of, Facts(**facts), admd)[0]:
        found.setdefault(name, []).append(value)
    return found


def test_every_known_fact_is_sent() -> None:
    client = session(
        tls="TLSv1.3:TLS_AES_256_GCM_SHA384:256",
        username="anna",
        recipients=("a@example.org", "b@example.org"),
    )
    assert told(client, settings_id="out", mta_tag="mx1", pass_all=True) == {
        "Flags": ["milter,body_block"],
        "Pass": ["all"],
        "Settings-ID": ["out"],
        "MTA-Tag": ["mx1"],
        "IP": ["192.0.2.1"],
        "Hostname": ["mail.example.com"],
        "Helo": ["helo.example.com"],
        "User": ["anna"],
        "MTA-Name": ["mx.example.org"],
        "TLS-Version": ["TLSv1.3"],
        "TLS-Cipher": ["TLS_AES_256_GCM_SHA384"],
        "Queue-Id": ["1ef1c203"],
        "From": ["<bob@example.net>"],
        "Rcpt": ["<a@example.org>", "<b@example.org>"],
    }


def test_what_is_not_known_is_left_out() -> None:
    client = session(identity=None, rdns=b"<unknown>", fcrdns=b"fail")
    assert told(client, admd="") == {
        "Flags": ["milter,body_block"],
        "IP": ["192.0.2.1"],
        "Queue-Id": ["1ef1c203"],
        "From": ["<bob@example.net>"],
        "Rcpt": ["<anna@example.org>"],
    }


def test_a_session_of_which_nothing_is_known() -> None:
    unknown = Session(b"7641df9771b4ed00").expect(
        ("server_name", "identity", "tls", "username", "tx")
    )
    assert told(unknown, admd="") == {"Flags": ["milter,body_block"]}


@pytest.mark.parametrize(
    ("rdns", "fcrdns", "name"),
    [
        (b"mail.example.com", b"pass", ["mail.example.com"]),
        (b"mail.example.com", b"fail", None),
        (b"mail.example.com", b"error", None),
        (b"<unknown>", b"fail", None),
        (b"", b"pass", None),
    ],
)
def test_only_a_verified_name_is_sent(rdns: bytes, fcrdns: bytes, name: list[str] | None) -> None:
    assert told(session(rdns=rdns, fcrdns=fcrdns)).get("Hostname") == name


@pytest.mark.parametrize(
    ("src", "address"),
    [
        (b"[2001:db8::1]:25", "2001:db8::1"),
        (b"[fe80::1%em0]:25", "fe80::1"),
        (b"[::ffff:192.0.2.1]:25", "192.0.2.1"),
        (b"unix:/var/run/smtpd.sock", "127.0.0.1"),
    ],
)
def test_addresses_are_plain(src: bytes, address: str) -> None:
    assert told(session(src=src))["IP"] == [address]


def test_mail_by_the_socket_is_this_machines() -> None:
    client = session(
        rdns=b"local", src=b"unix:/var/run/smtpd.sock", dest=b"unix:/var/run/smtpd.sock"
    )
    assert told(client)["Hostname"] == ["localhost"]


def test_the_null_sender_and_no_sender() -> None:
    assert told(session(sender=""))["From"] == ["<>"]
    assert "From" not in told(session(sender=None))


def test_an_address_without_a_domain_is_of_smtpds_own() -> None:
    client = session(sender="root", recipients=("postmaster", "anna@example.org"))
    assert told(client)["From"] == ["<root@mx.example.org>"]
    assert told(client)["Rcpt"] == ["<postmaster@mx.example.org>", "<anna@example.org>"]
    assert told(client, admd="")["From"] == ["<root>"]
    client = session(sender="", recipients=("postmaster",))
    assert told(client, deliver_to=True)["Deliver-To"] == ["postmaster@mx.example.org"]
    assert told(client)["From"] == ["<>"]


def test_the_authserv_id_may_be_chosen() -> None:
    assert told(session(), authserv_id="mx")["MTA-Name"] == ["mx"]


def test_the_mailbox_of_a_single_recipient_is_sent() -> None:
    assert "Deliver-To" not in told(session())
    assert told(session(), deliver_to=True)["Deliver-To"] == ["anna@example.org"]
    routed = session(recipients=("@relay.example:anna@example.org",))
    assert told(routed, deliver_to=True)["Deliver-To"] == ["anna@example.org"]
    both = session(recipients=("a@example.org", "b@example.org"))
    assert "Deliver-To" not in told(both, deliver_to=True)


def test_a_password_is_sent() -> None:
    assert told(session(), password="q1")["Password"] == ["q1"]  # noqa: S106


def test_compression_is_sent() -> None:
    assert told(session(), compressed=True)["Compression"] == ["zstd"]


def test_there_is_room_for_the_recipients_that_smtpd_takes() -> None:
    many = tuple(f"recipient{n}@mailing-list.example.org" for n in range(1000))
    said, left_out = fields(session(recipients=many), Facts())
    assert left_out == 0
    assert [value for name, value in said if name == "Rcpt"] == [f"<{each}>" for each in many]


def test_more_recipients_than_the_daemon_reads_are_left_out() -> None:
    many = tuple(f"{'x' * 200}{n}@example.org" for n in range(1000))
    said, left_out = fields(session(recipients=many), Facts())
    sent = [value for name, value in said if name == "Rcpt"]
    assert left_out == 1000 - len(sent) > 0
    assert sent == [f"<{each}>" for each in many[: len(sent)]]
    # The daemon's HTTP parser gives up at 80 KiB.
    assert sum(len(f"{name}: {value}\r\n") for name, value in said) < 80 << 10
    assert sum(len(f"Rcpt: {value}\r\n") for value in sent) > MAX_RECIPIENTS - 300


# -- hostile text --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("", ""),
        (" padded ", "padded"),
        ("\r\nPass: all", "??Pass: all"),
        ("a\0b\tc\x7f", "a?b?c?"),
        ("a\x85b\u2028c", "a?b?c"),
        ("b\u00fccher", "b\u00fccher"),
        ("b\udcfccher", "b\ufffdcher"),
        ("b\udcc3\udcbccher", "b\u00fccher"),  # UTF-8 that came as bytes
        ("x" * 5000, "x" * MAX_VALUE),
        ("\ud800a", "?a"),
    ],
)
def test_any_text_is_one_line(text: str, shown: str) -> None:
    assert safe(text) == shown


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("", "<>"),
        ("bob@example.net", "<bob@example.net>"),
        ("a><b@x", "<a??b@x>"),
        ("a,b@example.org", '<"a,b"@example.org>'),
        ('"a,b"@example.org', '<"a,b"@example.org>'),
        ('a",b@example.org', '<"a\\",b"@example.org>'),
        ('"a",b@example.org', '<"\\"a\\",b"@example.org>'),
        ("a@b,c@d,e", '<"a@b,c"@d?e>'),
        ("a\\,b@x", '<"a\\\\,b"@x>'),
        ("a,b", '<"a,b">'),
        ("a:b@example.org", '<"a:b"@example.org>'),
        ("a b@example.org", '<"a b"@example.org>'),
        ("a\\b@example.org", '<"a\\\\b"@example.org>'),
        ('"a:b"@example.org', '<"a:b"@example.org>'),
        ("postmaster", "<postmaster>"),
        ("@relay.example:bob@example.net", "<bob@example.net>"),
        ("@one.example,@two.example:bob@example.net", "<bob@example.net>"),
        ("@example.net", "<@example.net>"),
        ("@relay.example:", "<@relay.example:>"),
        ("b\u00fc@example.org", "<b\u00fc@example.org>"),
    ],
)
def test_an_address_is_one_address(address: str, shown: str) -> None:
    assert path(address) == shown


TEXT = st.text(st.characters() | st.sampled_from('\r\n\0,<>"\\@ \udcff'), max_size=40)


@given(TEXT, TEXT, TEXT, TEXT, TEXT)
def test_no_value_leaves_its_line(
    identity: str, username: str, sender: str, recipient: str, option: str
) -> None:
    client = session(
        identity=identity, username=username, sender=sender, recipients=(recipient,), tls=option
    )
    facts = Facts(settings_id=option, mta_tag=option, authserv_id=option, deliver_to=True)
    header = fields(client, facts, option)[0]
    assert header
    for name, value in header:
        assert value
        assert value == value.strip(" ")
        assert len(value) <= 2 * MAX_VALUE + 4
        value.encode()  # it is UTF-8
        assert not any(c < " " or "\x7f" <= c <= "\x9f" for c in value), name


@given(TEXT)
def test_no_comma_stands_outside_of_quotes(address: str) -> None:
    quoted = escaped = False
    written = path(address)
    assert (written[0], written[-1]) == ("<", ">")
    for char in written[1:-1]:
        if quoted and not escaped and char == "\\":
            escaped = True
            continue
        if char == '"' and not escaped:
            quoted = not quoted
        escaped = False
        assert char not in "<>"
        assert quoted or char != ","
