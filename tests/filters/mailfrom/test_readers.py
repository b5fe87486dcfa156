"""Mail of strangers is refused if a mail reader displays one of our addresses, and only then."""

# ruff: noqa: RUF001  # the tests are about characters that look like others

from __future__ import annotations

import pytest

from smtpd_filters.filters.mailfrom import Mailfrom
from smtpd_filters.testing import Conversation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.testing import Client, Delivery

ELSE = "<x@evil.example>"
AROUND = "'`’‘“”«»<>[](){}*_-/!?.:;,|~=…·\u200b"
BEHIND = "'-_.,:;!?/)]}>*’”…·–\u200b\u00a0\u3000"
BARE = "'`’“”«»*_-/!?{}|~…·\u200b\ufeff"
INVISIBLE = "\u00ad\u200b\u200d\u200e\u202e\u2060\ufe0f"
# Each is `boss@example.org` or `boss@bücher.example` to somebody who reads it.
SEEN = [
    *(f'"{mark}boss@example.org{mark}" {ELSE}' for mark in AROUND),
    *(f'"boss@example.org{mark} private" {ELSE}' for mark in BEHIND),
    *(f"{mark}boss@example.org{mark}" for mark in BARE),
    *(f'"bo{mark}ss@exam{mark}ple.org" {ELSE}' for mark in INVISIBLE),
    *(f'"boss@{mark}example.org" {ELSE}' for mark in "'<([_-.\u200e"),
    f'"\\"boss@example.org\\"" {ELSE}',
    f'"x\\" <boss@example.org>, \\"" {ELSE}',
    '("boss@example.org") x@evil.example',
    f"{'(' * 1000}boss@example.org{')' * 1000} x@evil.example",
    f'"boss@" example.org {ELSE}',
    f'"boss@exam""ple.org" {ELSE}',
    f'"boss @ example . org" {ELSE}',
    f'"boss @ example . org . Private" {ELSE}',
    f'"Boss [boss@example.org]" {ELSE}',
    f'"mailto:boss@example.org" {ELSE}',
    f'"boss@example.org via List" {ELSE}',
    f'"boss＠example.org" {ELSE}',
    f'"boss﹫example。org" {ELSE}',
    f'"ｂｏｓｓ＠ｅｘａｍｐｌｅ．ｏｒｇ" {ELSE}',
    "boss＠example.org",
    "boss@example.org．",
    "boss@example。org",
    "boss@exam(x)ple.org",
    "boss@example.org\x01@evil.example",
    "\x1b(Bboss@example.org",
    f'"boss@ex\x1b$B\x1b(Bample.org" {ELSE}',
    '"boss@example.org"',
    '"boss@example.org" <>',
    # encoded words
    f"=?utf-8?q?=22boss=40example.org=22?= {ELSE}",
    f"=?utf-8?q?boss=EF=BC=A0example.org?= {ELSE}",
    f"=?utf-8*en?q?boss=40example.org?= {ELSE}",
    f"=?utf-8?b?Ym9zc++8?= =?utf-8?b?oGV4YW1wbGUub3Jn?= {ELSE}",
    f"=?utf-8?b?Ym9z!c0BleGFt*cGxlLm9yZw?= {ELSE}",
    f"=?utf-8?b?Ym9zc0BleGFtcGxlLm9yZw==eHl6?= {ELSE}",
    f"=?utf-8?q?boss=40exam?==?utf-8?q?ple.org?= {ELSE}",
    f"=?utf-8?q?boss=40example.org,?= {ELSE}",
    f"=?utf-8?q?boss=40exam=08ple.org?= {ELSE}",
    f"=?iso-2022-jp?q?boss=40exam=1B(Bple.org?= {ELSE}",
    f"=?gb2312?q?boss=A3=C0example.org?= {ELSE}",
    f"=?utf-7?q?boss+AEA-example.org?= {ELSE}",
    f"=?{'x' * 60}?q?boss=40example.org?= {ELSE}",
    f"=?utf-8?q?{'x' * 2000}_boss=40example.org?= {ELSE}",
    # internationalised domains
    "boss@BÜCHER.example",
    "boss@bu\u0308cher.example",
    "boss@XN--BCHER-KVA.EXAMPLE",
    f'"“boss@bücher.example”" {ELSE}',
    f"=?iso-8859-1?q?boss=40b=FCcher.example?= {ELSE}",
    "boss@b\udcfccher.example",
    "x@evil.example\rFrom: boss@example.org",
]
# Each is somebody else's, to everybody.
OTHERS = [
    "jane@example.net",
    "O'Brien <pat.o'brien@example.net>",
    "'Jane Doe' <jane@example.net>",
    "\"'jane@example.net'\" <jane@example.net>",
    "Jane via List <list@lists.example.net>",
    "'Jane Doe' via Group <group@lists.example.net>",
    '"jane@example.net via List" <list@lists.example.net>',
    '"@jane" <jane@example.net>',
    "@jane <jane@example.net>",
    "Jane @ ACME <jane@example.net>",
    "Jane @ ACME Inc. <jane@example.net>",
    '"Jörg @ Müller GmbH" <joerg@example.net>',
    "Doe, Jane <jane@example.net>",
    "Example.org <news@example.net>",
    '"News (example.org)" <news@example.net>',
    "Your order at example.org <shop@example.net>",
    "=?utf-8?q?J=C3=B6rg?= <joerg@example.net>",
    "=?iso-2022-jp?b?GyRCOzNFRBsoQg==?= <yamada@example.net>",
    '"Jane" <jane+example.org@example.net>',
    "bounce+boss=example.org@example.net",
    "SRS0=abc=xy=example.org=boss@example.net",
    "boss%example.org@example.net",
    "Jane <jane@notexample.org>",
    '"jane@example.organic" <jane@example.organic>',
    '"jane@sub.example.org" <jane@sub.example.org>',
    # No mail program decodes these in a header.
    '"boss&#64;example.org" <x@example.net>',
    '"boss%40example.org" <x@example.net>',
    '"boss at example.org" <x@example.net>',
    'Jane "JJ" Doe <jane@example.net>',
    "Jane [Sales] <jane@example.net>",
    "Team: Jane <jane@example.net>, john@example.net;",
    "Mailer-Daemon@example.net (Mail Delivery System)",
    "jane@[192.0.2.1]",
    "jane@müller.example",
    "jane@bûcher.example",
]


@pytest.fixture(scope="module")
def guard() -> Iterator[Client]:
    """A stranger at a server whose readers' eyes are guarded."""
    flags = ("--domains", "{ example.org, bücher.example }", "--check-display")
    with Conversation(Mailfrom, *flags) as smtpd:
        client = smtpd.connect(address="192.0.2.1")
        client.ehlo()
        yield client


def shown(client: Client, value: str) -> Delivery:
    client.mail_from("x@example.net")
    client.rcpt_to("anna@example.org")
    return client.message(f"From: {value}\n\nbody\n".encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("value", SEEN)
def test_an_own_address_is_seen_in_any_spelling(guard: Client, value: str) -> None:
    assert shown(guard, value).refused


@pytest.mark.parametrize("value", OTHERS)
def test_honest_fields_of_strangers_pass(guard: Client, value: str) -> None:
    done = shown(guard, value)
    assert not done.refused
    assert done.unchanged
