"""filter-dkimsign: what it signs and how, its flags, and its keys."""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
from functools import cache
from time import time
from typing import TYPE_CHECKING

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.authentication.dkim.private_keys import parse_private_key
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.dkimsign import Dkimsign, workers
from smtpd_filters.filters.dkimsign import keys as dkimsign_keys
from smtpd_filters.filters.dkimsign.author import author_domain
from smtpd_filters.lookups.outcome import Found
from smtpd_filters.runtime.log import FilterLog, Log
from smtpd_filters.startup import STRAY
from smtpd_filters.testing import Conversation
from tests.authentication.signing import chain, ed25519_key, rsa_key, verified
from tests.stores.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from smtpd_filters.authentication.dkim.private_keys import PrivateKey
    from smtpd_filters.authentication.dkim.signatures import Signature
    from smtpd_filters.lookups.outcome import Outcome
    from smtpd_filters.testing.client import Delivery

MESSAGE = (
    b"From: Joe <joe@example.org>\r\nTo: root\r\nBcc: secret@example.net\r\n"
    b"Subject: =?utf-8?q?J=C3=B6rg?=\r\n  folded\r\n\r\n"
    b".dot\r\n\r\n8-bit \xff  \r\n..\r\n\r\n\r\n"
)


def pem(*, ed25519: bool = False, form: str = "PKCS8", bits: int = 2048) -> bytes:
    key = ed25519_key() if ed25519 else rsa_key(bits)
    pkcs1 = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8 if form == "PKCS8" else pkcs1,
        serialization.NoEncryption(),
    )


def block(label: bytes) -> bytes:
    return b"-----BEGIN %b-----\nYQ==\n-----END %b-----\n" % (label, label)


@pytest.fixture(scope="module", autouse=True)
def _each_key_is_checked_once() -> Iterator[None]:
    """OpenSSL takes some 30 ms for the check of a key's numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dkimsign_keys, "parse_private_key", cache(parse_private_key))
        yield


@pytest.fixture
def key(tmp_path: Path) -> str:
    return written(tmp_path / "rsa.key", pem())


def written(path: Path, text: bytes, mode: int = 0o640) -> str:
    path.write_bytes(text)
    path.chmod(mode)
    return str(path)


def delivered(
    *flags: str,
    raw: bytes = MESSAGE,
    smtpd_version: str = "",
    user: str = "",
    local: bool = False,
) -> tuple[Delivery, list[str]]:
    with Conversation(Dkimsign, *flags, smtpd_version=smtpd_version) as smtpd:
        client = smtpd.connect(local=local)
        client.ehlo("mail.example.net")
        if user:
            client.auth(user)
        client.mail_from("joe@example.org")
        client.rcpt_to("suzie@example.net")
        return client.message(raw), smtpd.log


def whole(mail: Delivery) -> bytes:
    """Return a delivered message with CRLF."""
    assert mail.lines is not None
    lines = [line.removeprefix(b".") for line in mail.lines]
    return b"".join(line + b"\r\n" for line in lines)


def records(
    *names: str, ed25519: tuple[str, ...] = (), domain: str = "example.org"
) -> dict[str, Outcome[bytes]]:
    found: dict[str, Outcome[bytes]] = {}
    for name in names:
        text = parse_private_key(pem(ed25519=name in ed25519)).record()
        found[f"{name}._domainkey.{domain}"] = Found((text.encode(),), 60)
    return found


def checked(mail: Delivery, keys: dict[str, Outcome[bytes]]) -> tuple[Signature, ...]:
    """Verify a delivered message with our engine and with dkimpy, which must agree."""
    raw = whole(mail)
    results = verified(raw, keys, now=time())
    verifier = dkim.DKIM(raw)

    def lookup(name: bytes, timeout: int = 5) -> bytes | None:
        del timeout
        found = keys.get(name.decode().rstrip("."))
        return found.records[0] if isinstance(found, Found) else None

    for number, result in enumerate(results):
        assert verifier.verify(idx=number, dnsfunc=lookup) == (result.result == "pass")
    return results


def field(mail: Delivery) -> str:
    """Return the signature without white space."""
    found = mail.headers.get("DKIM-Signature")
    assert found is not None
    return re.sub(r"\s", "", found)


@pytest.mark.parametrize("form", ["simple", "relaxed", "simple/relaxed", "relaxed/relaxed"])
def test_a_message_is_signed_as_it_is_delivered(key: str, form: str) -> None:
    mail, _ = delivered("-k", key, "-s", "sel", "-d", "example.org", "-c", form)
    (result,) = checked(mail, records("sel"))
    assert (result.result, result.domain, result.bits) == ("pass", "example.org", 2048)
    # Completed, as smtpd would after the filter; and at the top.
    assert mail.headers.get("To") == "root@mx.example.org"
    assert mail.headers.names()[0] == "DKIM-Signature"
    assert "h=subject:to:from:from;" in field(mail)


@pytest.mark.parametrize("form", ["simple/simple", "relaxed/relaxed"])
def test_blanks_between_a_name_and_its_colon_are_removed(key: str, form: str) -> None:
    """Otherwise Rspamd and dkimpy reject the signature, and smtpd adds a second Date."""
    flags = ("-d", "example.org", "-s", "sel", "-k", key, "-c", form)
    raw = MESSAGE.replace(b"From:", b"From \t :").replace(b"Subject:", b"Subject :")
    mail, _ = delivered(*flags, raw=b"X-Odd : a\r\n b : c\r\n" + raw)
    assert [each.result for each in checked(mail, records("sel"))] == ["pass"]
    text = whole(mail)
    for kept in (b"From: Joe <joe@example.org>", b"Subject: =?utf-8?q?J=C3=B6rg?=\r\n  folded"):
        assert b"\r\n%b\r\n" % kept in text
    assert b"\r\nX-Odd: a\r\n b : c\r\n" in text


@pytest.mark.parametrize("names", ["", "subject", "from"])
def test_a_message_without_an_author(key: str, names: str) -> None:
    raw = MESSAGE.partition(b"\r\n")[2]
    flags = ("-d", "example.org", "-s", "sel", "-k", key, "--oversign", names)
    mail, _ = delivered(*flags, raw=raw)
    assert [each.result for each in checked(mail, records("sel"))] == ["pass"]
    added = b"From: Joe <joe@example.org>\r\n" + whole(mail)
    assert [each.result for each in verified(added, records("sel"), now=time())] == ["fail"]


@pytest.mark.parametrize("form", ["simple/simple", "relaxed/relaxed"])
def test_odd_blanks_at_the_end_of_a_field_are_replaced(key: str, form: str) -> None:
    """Otherwise dkimpy rejects the relaxed signature: it takes them for white space."""
    flags = ("-d", "example.org", "-s", "sel", "-k", key, "-c", form)
    mail, _ = delivered(*flags, raw=b"Cc: a\f\r\nReply-To:\v b\r\r\n" + MESSAGE)
    assert [each.result for each in checked(mail, records("sel"))] == ["pass"]
    assert b"\r\nReply-To:  b \r\n" in whole(mail)


def test_the_tags_are_those_of_the_c_filter_in_its_order(key: str) -> None:
    flags = ("-k", key, "-s", "sel", "-d", "example.org", "-a", "rsa-sha256", "-t", "-x", "60")
    mail, _ = delivered(*flags, "-z", "-h", "Subject:from:x-absent", "--oversign", "")
    names = re.findall(r"(?:^|;)([a-z]+)=", field(mail))
    assert names == ["v", "a", "c", "s", "z", "t", "x", "bh", "h", "d", "b"]
    assert "h=subject:from;" in field(mail)
    found = re.search(r"t=(\d+);x=(\d+);", field(mail))
    assert found
    assert int(found[2]) - int(found[1]) == 60
    assert "z=Subject:=20=3D?utf-8?q?J=3DC3=3DB6rg?=3D=0D=0A=20=20folded|From:=20Joe=20<" in field(
        mail
    )
    (result,) = checked(mail, records("sel"))
    assert result.result == "pass"
    mail, _ = delivered("-k", key, "-s", "sel", "-d", "example.org", "-z", "-z")
    assert "|Bcc:=20secret@example.net" in field(mail)
    assert all(len(line) <= 85 for line in whole(mail).split(b"\r\n"))


@pytest.mark.parametrize("times", [1, 2])
def test_copies_of_large_fields_leave_a_signature_that_verifiers_read(key: str, times: int) -> None:
    """Ours and dkimpy don't read one of more than 8 KiB."""
    large = b"".join(b"X-Large: %b\r\n" % (b"\xc3\xb6" * 400) for _ in range(20))
    flags = ("-k", key, "-s", "sel", "-d", "example.org", "-h", "from:subject:x-large")
    mail, _ = delivered(*flags, *["-z"] * times, raw=large + MESSAGE)
    assert [each.result for each in checked(mail, records("sel"))] == ["pass"]
    copied = re.sub(r"\s", "", field(mail)).partition("z=")[2].partition(";")[0]
    assert 1000 < len(copied) <= 4000


@pytest.mark.parametrize("flags", [(), ("-z",), ("-z", "-z")])
def test_many_names_leave_a_signature_that_verifiers_read(key: str, flags: tuple[str, ...]) -> None:
    many = b"List-Unsubscribe: <https://lists.example.org/u?%d>\r\n"
    raw = b"".join(many % number for number in range(250)) + MESSAGE
    mail, _ = delivered("-k", key, "-s", "sel", "-d", "example.org", *flags, raw=raw)
    assert len(field(mail)) > 4000
    assert [each.result for each in checked(mail, records("sel"))] == ["pass"]


def test_names_too_long_for_a_signature(key: str) -> None:
    name = "x-" + "long" * 15
    flags = ("-k", key, "-s", "sel", "-d", "example.org", "-h", f"from:{name}")
    for count, signed in ((79, True), (80, False)):
        mail, log = delivered(*flags, raw=f"{name}: 1\r\n".encode() * count + MESSAGE)
        assert ("DKIM-Signature" in mail.headers) is signed
        assert any("names of more than 5000 bytes to sign" in line for line in log) is not signed
        if signed:
            assert [each.result for each in checked(mail, records("sel"))] == ["pass"]


def test_a_copy_that_is_too_large_is_left_out(key: str) -> None:
    references = b"References:" + b"\r\n <a@example.org>" * 300
    raw = MESSAGE.replace(b"\r\n\r\n", b"\r\n" + references + b"\r\n\r\n", 1)
    mail, _ = delivered("-k", key, "-s", "sel", "-d", "example.org", "-z", raw=raw)
    assert "z=" not in field(mail)
    assert [each.result for each in checked(mail, records("sel"))] == ["pass"]


def test_two_keys_of_a_domain_make_two_signatures(tmp_path: Path, key: str) -> None:
    other = written(tmp_path / "ed.key", pem(ed25519=True))
    table = tmp_path / "keys"
    table.write_text(f"example.org sel {key}\nExample.ORG. ed {other}\nexample.com x {key}\n")
    mail, _ = delivered("--keys", str(table))
    results = checked(mail, records("sel", "ed", ed25519=("ed",)))
    assert [(each.result, each.selector, each.algorithm) for each in results] == [
        ("pass", "sel", "rsa-sha256"),
        ("pass", "ed", "ed25519-sha256"),
    ]


@pytest.mark.parametrize(
    ("author", "domain"),
    [
        ("a@b.example", "b.example"),
        ("a@x.b.example", "b.example"),
        ("a@x.y.B.example", "b.example"),
        ("a@a.b.example", "a.b.example"),
        ("a@notb.example", "first.example"),
        ("undisclosed:;", "first.example"),
        ("", "first.example"),
        ("Joe, a@b.example", "first.example"),  # smtpd makes Joe@mx.example.org of it
        ('"x, <y@first.example>" <a@b.example>', "b.example"),
        ("a@b.example, c@a.b.example", "b.example"),
    ],
)
def test_the_domain(key: str, tmp_path: Path, author: str, domain: str) -> None:
    more = tmp_path / "domains"
    more.write_text("# ours\na.b.example\nb.example  # too\n")
    raw = f"From: {author}\r\n\r\nhello\r\n".encode()
    flags = ("-k", key, "-s", "sel", "-d", "first.example", "-D", str(more))
    mail, _ = delivered(*flags, raw=raw)
    (result,) = checked(mail, records("sel", domain=domain))
    assert (result.result, result.domain) == ("pass", domain)


@pytest.mark.parametrize(
    ("author", "signed"),
    [
        ("a@b.example", True),
        ("a@x.b.example", True),
        ("a@other.example", False),
        ("a@other.example, a@b.example", False),
        ("", False),
    ],
)
def test_mail_of_foreign_authors_is_skipped(key: str, author: str, *, signed: bool) -> None:
    raw = f"From: {author}\r\n\r\nhello\r\n".encode()
    flags = ("-k", key, "-s", "sel", "-d", "b.example", "--foreign", "skip", "-v")
    mail, log = delivered(*flags, raw=raw)
    assert ("DKIM-Signature" in mail.headers) is signed
    assert any("the author has an address elsewhere" in line for line in log) is not signed


def test_the_name_of_the_server_completes_the_author_of_mail_that_is_skipped(key: str) -> None:
    flags = ("-k", key, "-s", "sel", "-d", "example.org", "--foreign", "skip")
    assert "DKIM-Signature" in delivered(*flags, raw=b"From: root\r\n\r\nhello\r\n")[0].headers


def test_seals_are_made_for_foreign_authors_too(key: str) -> None:
    flags = ("-k", key, "-s", "sel", "-d", "example.org", "--arc-seal", "mx.example.org")
    results = b"Authentication-Results: mx.example.org; arc=none\r\n"
    raw = results + b"From: a@other.example\r\n\r\nhello\r\n"
    mail, _ = delivered(*flags, "--foreign", "skip", raw=raw)
    assert "ARC-Seal" in mail.headers


def test_switches_share_a_word_as_for_the_c_filter(key: str) -> None:
    mail, _ = delivered("-tzd", "example.org", "-k", key, "-s", "sel", "-zx", "60")
    found = field(mail)
    assert ";t=" in found
    assert ";x=" in found
    assert ";z=" in found


@pytest.mark.parametrize(
    ("value", "domain"),
    [
        ("a@b.example", "b.example"),
        ("Joe (at @ work, home) <a@b.example> (x@y)", "b.example"),
        ('"a@x" <"q@r,s"@B.example.>', "b.example"),
        ("Friends: a@b.example, c@d.example;", "b.example"),
        ("<@route.example,@r.example:a@b.example>", "b.example"),
        ("Joe <joe>, <a@b.example>", "b.example"),
        (r"a\@x@b.example", "b.example"),
        ("((a@x) <a@b.example>", ""),
        ("a@bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_the_author(value: str, domain: str) -> None:
    assert author_domain(value) == domain


@given(st.text('ab@<>(),;:"\\ .', max_size=40))
def test_any_text_has_an_author_or_none(value: str) -> None:
    assert "@" not in author_domain(value)


def test_fields_that_smtpd_adds_are_not_oversigned(key: str) -> None:
    flags = ("-k", key, "-s", "sel", "-d", "example.org", "--oversign", "from:date:subject:cc")
    mail, _ = delivered(*flags)
    assert "h=subject:to:from:from:subject:cc;" in field(mail)
    dated = MESSAGE.replace(b"To:", b"Date: Fri, 11 Jul 2003 21:00:37 -0700\r\nTo:")
    mail, _ = delivered(*flags, raw=dated)
    assert ":from:date:subject:cc;" in field(mail)


def test_oversigned_fields_are_signed_where_they_are_present(key: str) -> None:
    flags = ("-k", key, "-s", "sel", "-d", "example.org", "--oversign", "from:x-a:x-absent")
    raw = MESSAGE.replace(b"To:", b"X-A: 1\r\nX-A: 2\r\nTo:")
    mail, _ = delivered(*flags, raw=raw)
    assert "h=subject:to:x-a:x-a:from:from:x-a:x-absent;" in field(mail)
    signed = whole(mail)
    results = [
        verified(raw, records("sel"))[0].result
        for raw in (signed, b"X-A: 0\r\n" + signed, b"X-Absent: 0\r\n" + signed)
    ]
    assert results == ["pass", "fail", "fail"]


@pytest.mark.parametrize(
    ("only", "user", "local", "signed"),
    [
        ("authenticated", "joe", False, True),
        ("authenticated", "", True, False),
        ("local", "joe", False, False),
        ("local", "", True, True),
        ("authenticated,local", "", False, False),
        ("authenticated,local", "joe", False, True),
    ],
)
def test_only_mail_of_ours(key: str, only: str, user: str, local: bool, signed: bool) -> None:  # noqa: FBT001  # columns
    flags = ("-k", key, "-s", "sel", "-d", "example.org", "--only", only)
    mail, _ = delivered(*flags, user=user, local=local)
    assert (mail.headers.get("DKIM-Signature") is not None) == signed


@pytest.mark.parametrize(
    ("version", "length", "signed"),
    [("6.8.0p2", 1997, True), ("6.8.0p2", 1998, False), ("7.6.0", 1998, True)],
)
@pytest.mark.parametrize("part", ["header", "body"])
def test_a_message_with_a_line_that_smtpd_cuts(
    key: str,
    version: str,
    length: int,
    signed: bool,  # noqa: FBT001  # a column
    part: str,
) -> None:
    raw = MESSAGE
    if part == "header":
        raw = b"X-Long: ".ljust(length, b"x") + b"\r\n" + raw
    else:
        raw += b"y" * length + b"\r\n"
    flags = ("-k", key, "-s", "sel", "-d", "example.org")
    mail, log = delivered(*flags, raw=raw, smtpd_version=version)
    assert (mail.headers.get("DKIM-Signature") is not None) == signed
    assert any("not signed" in line and "too long for this smtpd" in line for line in log) != signed


def test_a_large_body(key: str) -> None:
    flags = ("-k", key, "-s", "sel", "-d", "example.org")
    mail, _ = delivered(*flags, raw=MESSAGE + b"a line of text\r\n" * 30_000)
    (result,) = checked(mail, records("sel"))
    assert result.result == "pass"


@pytest.mark.parametrize(
    ("flags", "most"),
    [((), 252), (("-z", "-z"), 252), (("--arc-seal", "mx.example.org"), 253)],
)
def test_more_fields_than_a_signature_can_name(key: str, flags: tuple[str, ...], most: int) -> None:
    # Beside From, To and Subject; and From once more, without which none is to be added.
    for count in (most, most + 1):
        raw = MESSAGE.replace(b"To:", b"Cc: a@example.org\r\n" * count + b"To:", 1)
        raw = b"Authentication-Results: mx.example.org; none\r\n" + raw
        delivery, log = delivered("-d", "example.org", "-s", "sel", "-k", key, *flags, raw=raw)
        made = "ARC-Seal" if "--arc-seal" in flags else "DKIM-Signature"
        assert (made in delivery.headers) is (count == most)
        assert any("more than 256 fields to sign" in line for line in log) is (count > most)


def test_a_message_is_sealed(key: str) -> None:
    raw = b"Authentication-Results: mx.example.org; arc=none; spf=pass\r\n" + MESSAGE
    flags = ("-k", key, "-s", "sel", "-d", "example.org", "--arc-seal")
    for authserv_id in ("mx.example.org", "admd"):
        mail, _ = delivered(*flags, authserv_id, raw=raw)
        assert mail.headers.names()[:3] == [
            "ARC-Seal",
            "ARC-Message-Signature",
            "ARC-Authentication-Results",
        ]
        assert mail.headers.get("DKIM-Signature") is None
        result = chain(whole(mail), records("sel"), now=time())
        assert (result.result, [each.domain for each in result.sets]) == ("pass", ["example.org"])
        again, _ = delivered(*flags, "other.example", raw=whole(mail))
        assert again.headers.names().count("ARC-Seal") == 1
    mail, log = delivered(*flags, "other.example", raw=raw)
    assert mail.headers.get("ARC-Seal") is None
    assert any("not sealed" in line and "no results of other.example" in line for line in log)


def test_a_chain_that_could_not_be_validated_is_not_sealed_as_failed(key: str) -> None:
    flags = ("-k", key, "-s", "sel", "-d", "example.org", "--arc-seal", "mx.example.org")
    own = b"Authentication-Results: mx.example.org; arc=none; spf=pass\r\n"
    once, _ = delivered(*flags, raw=own + MESSAGE)
    for state, sealed in ((b"pass", 2), (b"fail", 2), (b"temperror", 1)):
        raw = own.replace(b"none", state) + whole(once).replace(own, b"")
        mail, log = delivered(*flags, raw=raw)
        assert mail.headers.names().count("ARC-Seal") == sealed
        assert any("could not be validated" in line for line in log) is (sealed == 1)


def test_a_seal_in_a_name_that_needs_quotes(key: str) -> None:
    raw = b'Authentication-Results: "mail.example/1"; arc=none; spf=pass\r\n' + MESSAGE
    flags = ("-k", key, "-s", "sel", "-d", "example.org", "--arc-seal", "mail.example/1")
    mail, _ = delivered(*flags, raw=raw)
    value = mail.headers.get("ARC-Authentication-Results", "")
    assert value == 'i=1; "mail.example/1"; arc=none; spf=pass'
    assert chain(whole(mail), records("sel"), now=time()).result == "pass"


def test_sealing_needs_an_rsa_key(tmp_path: Path) -> None:
    path = written(tmp_path / "key", pem(ed25519=True))
    found = refused("-k", path, "-s", "sel", "-d", "example.org", "--arc-seal", "admd")
    assert "the first domain has no RSA key" in found


# -- flags -------------------------------------------------------------------------------------


def refused(*flags: str) -> str:
    with pytest.raises(ConfigError) as error, Conversation(Dkimsign, *flags):
        pass
    return str(error.value)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ((), "-k or --keys is required"),
        (("-d", "example.org"), "-d and -D require -k"),
        (("-s", "sel"), "-s requires -k"),
        (("-k", "KEY"), "-k requires -s"),
        (("-k", "KEY", "-s", "sel"), "-k requires -d or -D"),
        (("-k", "KEY", "-s", "s..l"), "-s: expected a selector"),
        (("-d", "org"), "-d: expected a domain"),
        (("-a", "rsa-sha1"), "-a: rsa-sha1 is obsolete"),
        (("-c", "nofws"), "-c: expected simple or relaxed"),
        (("-h", "to:subject", "-k", "KEY", "-s", "s", "-d", "example.org"), "from must be among"),
        (("--oversign", "bcc", "-k", "KEY", "-s", "s", "-d", "example.org"), "bcc can't be signed"),
        (
            ("--oversign", "from:received", "-k", "KEY", "-s", "s", "-d", "example.org"),
            "--oversign: received can't be over-signed, since servers add it",
        ),
        (("-h", "from:to;cc"), "-h: expected names of header fields"),
        (
            ("-k", "KEY", "-s", "s", "-D", "{ example.org, org }"),
            "-D: inline table: entry 2: expected a domain, not 'org'",
        ),
        (("-x", "0"), "-x: "),
        (("--only", "others"), "--only: expected authenticated or local"),
        (
            ("-k", "KEY", "-s", "s", "-d", "example.org", "-a", "ed25519-sha256"),
            "a key for rsa-sha256",
        ),
        (("-k", "KEY", "-s", "s", "-d", "example.org", "--arc-seal", ""), "--arc-seal"),
        (("-k", "KEY", "-s", "s", "-d", "example.org", "--arc-seal", "a;\nb"), "--arc-seal"),
        (("--keys", "{ example.org = sel }"), "expected DOMAIN SELECTOR KEYFILE"),
        (("--keys", "proc:/bin/true"), "--keys: the keys can't be in a database or on a server"),
    ],
)
def test_wrong_flags(key: str, flags: tuple[str, ...], text: str) -> None:
    found = refused(*(key if flag == "KEY" else flag for flag in flags))
    assert text in found
    assert found.count(", not ") <= 1


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "no private key in PEM"),
        (b"hello", "no private key in PEM"),
        (pem().replace(b"A", b"B"), "key"),
        (pem()[:700], "no private key in PEM"),
        (
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nYQ==\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "passphrase",
        ),
        (block(b"PUBLIC KEY"), "is not a private key"),
        (
            block(b"RSA PRIVATE KEY"),
            "not a valid key",
        ),
        (b"x" * 40_000, "too large"),
    ],
)
def test_a_file_that_is_not_a_key(tmp_path: Path, content: bytes, text: str) -> None:
    path = written(tmp_path / "key", content)
    found = refused("-k", path, "-s", "s", "-d", "example.org")
    assert found.count("\n") == 0
    assert f"-k: {path}: " in found
    assert text in found


def test_a_file_that_others_may_read_or_that_is_missing(tmp_path: Path) -> None:
    path = written(tmp_path / "key", pem(), 0o644)
    assert "others may read this private key" in refused("-k", path, "-s", "s", "-d", "example.org")
    table = tmp_path / "table"
    table.write_text(f"example.org s {tmp_path}/missing\n")
    found = refused("--keys", str(table))
    assert f"{table}:1: " in found
    assert "No such file" in found
    table.write_text(f"example.org s {path}\n# a comment\n")
    assert "others may read" in refused("--keys", str(table))
    (tmp_path / "key").chmod(0o600)
    table.write_text(f"example.org s {path}\nexample.org s {path}\n")
    assert "selector s of example.org twice" in refused("--keys", str(table))
    assert "Is a directory" in refused("-k", str(tmp_path), "-s", "s", "-d", "example.org")


@pytest.mark.parametrize("form", ["PKCS1", "PKCS8"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_the_forms_of_a_key(tmp_path: Path, form: str, end: bytes) -> None:
    text = b"a comment\n" + pem(form=form)
    path = written(tmp_path / "key", text.replace(b"\n", end))
    mail, _ = delivered("-k", path, "-s", "sel", "-d", "example.org")
    (result,) = checked(mail, records("sel"))
    assert result.result == "pass"


@pytest.mark.processes
def test_a_costly_key_signs_in_processes_of_its_own(tmp_path: Path) -> None:
    path = written(tmp_path / "key", pem(bits=3072))
    flags = ("-k", path, "-s", "sel", "-d", "example.org", "--workers", "2")
    with Conversation(Dkimsign, *flags) as smtpd:
        (filter_,) = smtpd.filters
        assert isinstance(filter_, Dkimsign)
        processes = [worker._process for worker in filter_._workers._workers]

        def sign() -> None:
            client = smtpd.connect()
            client.ehlo("mail.example.net")
            client.mail_from("joe@example.org")
            client.rcpt_to("suzie@example.net")
            record = parse_private_key(pem(bits=3072)).record()
            keys: dict[str, Outcome[bytes]] = {
                "sel._domainkey.example.org": Found((record.encode(),), 60)
            }
            (result,) = checked(client.message(MESSAGE), keys)
            assert (result.result, result.bits) == ("pass", 3072)

        sign()
        sign()
        assert not any("process" in line for line in smtpd.log)
        for process in processes:
            process.kill()
        sign()
        sign()
        assert any("a process for signatures has ended" in line for line in smtpd.log)
    assert all(process.returncode is not None for process in processes)
    with Conversation(Dkimsign, *flags[:-1], "0") as smtpd:
        assert "_workers" not in vars(smtpd.filters[0])
        sign()


@pytest.mark.processes
def test_requests_of_one_turn_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes are as idle at first; each request counts before the next one is given."""
    asked: list[object] = []
    ask = workers._Worker.ask

    def recorded(worker: workers._Worker, key: PrivateKey, digest: bytes) -> asyncio.Task[bytes]:
        asked.append(worker)
        return ask(worker, key, digest)

    monkeypatch.setattr(workers._Worker, "ask", recorded)
    key = parse_private_key(pem())

    async def sign_all() -> list[bytes]:
        both = workers.Workers(2, FilterLog(Log(fd=2), "dkimsign"))
        try:
            return await asyncio.gather(*(both.sign(key, b"%032d" % n) for n in range(6)))
        finally:
            await both.aclose()

    assert asyncio.run(sign_all()) == [key.sign(b"%032d" % number) for number in range(6)]
    assert len(set(asked)) == 2
    assert [asked.count(each) for each in set(asked)] == [3, 3]


@pytest.mark.processes
def test_stray_signals_end_no_process_that_signs(capfd: pytest.CaptureFixture[str]) -> None:
    key = parse_private_key(pem())

    async def sign() -> None:
        one = workers.Workers(1, FilterLog(Log(fd=2), "dkimsign"))
        try:
            await one.sign(key, bytes(32))
            for number in STRAY:
                one._workers[0]._process.send_signal(number)
            assert await one.sign(key, bytes(32)) == key.sign(bytes(32))
        finally:
            await one.aclose()

    asyncio.run(sign())
    assert capfd.readouterr().err == ""


def test_a_short_key_is_used_and_logged(tmp_path: Path) -> None:
    path = written(tmp_path / "key", pem(bits=1024))
    _, log = delivered("-k", path, "-s", "sel", "-d", "example.org")
    assert any("has 1024 bits; receivers may require 2048" in line for line in log)


def test_keys_are_reloaded(tmp_path: Path) -> None:
    path = tmp_path / "key"
    written(path, pem())
    table = tmp_path / "table"
    table.write_text(f"example.org old {path}\n")
    with Conversation(Dkimsign, "--keys", str(table)) as smtpd:

        def selectors() -> list[tuple[str, str]]:
            client = smtpd.connect()
            client.ehlo("mail.example.net")
            client.mail_from("joe@example.org")
            client.rcpt_to("suzie@example.net")
            results = checked(client.message(MESSAGE), records("old", "new", ed25519=("new",)))
            return [(each.selector, each.result) for each in results]

        assert selectors() == [("old", "pass")]
        written(path, pem(ed25519=True))
        table.write_text(f"example.org new {path}\n")
        smtpd.reload()
        assert selectors() == [("new", "pass")]
        path.write_bytes(b"")
        smtpd.reload()
        assert selectors() == [("new", "pass")]
    assert any("result=ok" in line for line in smtpd.log)
    assert any("no private key in PEM" in line and "result=kept" in line for line in smtpd.log)


def test_a_key_is_parsed_once_while_it_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []

    def noted(text: bytes) -> PrivateKey:
        parsed.append(text)
        return parse_private_key(text)

    monkeypatch.setattr(dkimsign_keys, "parse_private_key", noted)
    dkimsign_keys._IN_USE.clear()
    shared = written(tmp_path / "shared", pem(bits=1024))
    own = written(tmp_path / "own", pem(ed25519=True))
    table = tmp_path / "table"
    lines = [f"d{number}.example sel {shared}\n" for number in range(200)]
    table.write_text("".join([*lines, f"example.org sel {own}\n"]))
    with Conversation(Dkimsign, "--keys", str(table)) as smtpd:
        assert len(parsed) == 2
        smtpd.reload()
        table.write_text("".join(lines))
        smtpd.reload()
        assert len(parsed) == 2
        written(tmp_path / "shared", pem())
        smtpd.reload()
        assert len(parsed) == 3
        assert sent(smtpd).headers.get("DKIM-Signature")
    # A key that is gone is kept nowhere.
    del smtpd
    gc.collect()
    assert not dkimsign_keys._IN_USE


def sent(smtpd: Conversation, raw: bytes = MESSAGE) -> Delivery:
    client = smtpd.connect()
    client.ehlo("mail.example.net")
    client.mail_from("joe@example.org")
    client.rcpt_to("suzie@example.net")
    return client.message(raw)


@pytest.mark.parametrize("option", ["--keys", "-D"])
def test_tables_without_a_domain_sign_nothing(tmp_path: Path, option: str) -> None:
    path = written(tmp_path / "key", pem())
    table = tmp_path / "table"
    flags = (option, str(table), *(("-k", path, "-s", "sel") if option == "-D" else ()))
    none, some = "# empty on purpose\n", "example.org"
    some += f"\tsel \t{path}\n" if option == "--keys" else "\n"
    for first, second in ((none, some), (some, none)):
        table.write_text(first)
        with Conversation(Dkimsign, *flags) as smtpd:
            for text in (first, second):
                table.write_text(text)
                smtpd.reload()
                mail = sent(smtpd)
                assert mail.verb == "proceed"
                assert ("DKIM-Signature" in mail.headers) == (text == some)
        said = [line for line in smtpd.log if "no domain to sign for" in line]
        assert len(said) == (2 if first == none else 1)


def test_a_sealing_key_that_is_gone_after_a_reload(tmp_path: Path) -> None:
    path = tmp_path / "key"
    written(path, pem())
    table = tmp_path / "table"
    table.write_text(f"example.org sel {path}\n")
    raw = b"Authentication-Results: mx.example.org; arc=none; spf=pass\r\n" + MESSAGE
    with Conversation(Dkimsign, "--keys", str(table), "--arc-seal=mx.example.org") as smtpd:
        assert "ARC-Seal" in sent(smtpd, raw).headers
        written(path, pem(ed25519=True))
        smtpd.reload()
        mail = sent(smtpd, raw)
        assert mail.verb == "proceed"
        assert "ARC-Seal" not in mail.headers
    assert any('reason="the first domain has no RSA key"' in line for line in smtpd.log)


def test_the_key_of_k_is_reloaded(tmp_path: Path) -> None:
    path = tmp_path / "key"
    written(path, pem(bits=1024))
    with Conversation(Dkimsign, "-k", str(path), "-s", "sel", "-d", "example.org") as smtpd:
        smtpd.reload()
        written(path, pem())
        smtpd.reload()
        written(path, pem(ed25519=True))
        smtpd.reload()
        client = smtpd.connect()
        client.ehlo("mail.example.net")
        client.mail_from("joe@example.org")
        client.rcpt_to("suzie@example.net")
        (result,) = checked(client.message(MESSAGE), records("sel"))
        assert (result.result, result.bits) == ("pass", 2048)
    assert [
        line.partition("result=")[2].split()[0] for line in smtpd.log if " reload " in line
    ] == [
        "unchanged",
        "ok",
        "kept",
    ]


@pytest.mark.parametrize("seal", [(), ("--arc-seal", "mx.example.org")])
def test_a_server_of_domains_that_is_down_at_the_start(
    tmp_path: Path, key: str, seal: tuple[str, ...]
) -> None:
    table = tmp_path / "redis.conf"
    table.write_text(f"url redis://127.0.0.1:{free_port()}\nset domains\n")
    flags = ("-D", f"redis:{table}", "-s", "sel", "-k", key, *seal)
    with Conversation(Dkimsign, *flags) as smtpd:
        assert sent(smtpd).reply.startswith("451 4.")
        assert not any("no message is signed" in line for line in smtpd.log)
    with Conversation(Dkimsign, *flags, "--on-error", "proceed") as smtpd:
        assert sent(smtpd).headers.get("DKIM-Signature") is None


def test_files_of_other_tools(tmp_path: Path) -> None:
    made = 0
    for command in (
        ["opendkim-genkey", "-D", str(tmp_path), "-d", "example.org", "-s", "o"],
        [
            "rspamadm",
            "dkim_keygen",
            "-s",
            "r",
            "-d",
            "example.org",
            "-k",
            str(tmp_path / "r.private"),
        ],
        ["rspamadm", "dkim_keygen", "-s", "e", "-t", "ed25519", "-k", f"{tmp_path}/e.private"],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except FileNotFoundError:
            continue
        made += 1
        selector = command[command.index("-s") + 1]
        key = parse_private_key((tmp_path / f"{selector}.private").read_bytes())
        published = tmp_path / f"{selector}.txt"
        text = published.read_text() if published.exists() else done.stdout
        joined = "".join(re.findall(r'"([^"]*)"', text))
        assert key.record().partition("p=")[2] == joined.partition("p=")[2]
    assert made <= 3
