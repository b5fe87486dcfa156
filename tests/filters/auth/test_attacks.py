"""Known attacks on the composition of SPF, DKIM and DMARC: none ends in an aligned pass.

They are those of "Composition Kills: A Case Study of Email Sender Authentication" (Chen, Paxson
and Jiang, 2020), with `bank.example` in place of the sender that is imitated. A number such as A5
is that of the attack in the authors' tool, espoofer, whose 19 attacks on servers are all here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smtpd_filters.authentication.results import parse
from smtpd_filters.filters.auth import Auth
from smtpd_filters.testing import Conversation, DNSServer
from tests.authentication.signing import public, rsa_key, signed
from tests.filters.auth.mail import PASSES, TEMPLATE, send

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smtpd_filters.testing import Delivery

STRICT = ("--dmarc", "honour", "--dmarc-reject", "reject", "--bad-from", "reject")
SPF = f"v=spf1 ip4:{PASSES} -all"
BANK = b"<admin@bank.example>"
REST = b"To: victim@example.net\r\nSubject: x\r\nDate: Fri, 11 Jul 2003 21:00:37 -0700\r\n\r\nx\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[DNSServer]:
    key = f"v=DKIM1; p={public(rsa_key())}"
    with DNSServer(
        {
            "bank.example": {"TXT": "v=spf1 -all"},
            "sel._domainkey.bank.example": {"TXT": key},
            "_dmarc.bank.example": {"TXT": "v=DMARC1; p=reject"},
            "evil.example": {"TXT": SPF},
            "_dmarc.xn--bnk-qla.example": {"TXT": "v=DMARC1; p=reject"},
            "_dmarc.evil.example": {"TXT": "v=DMARC1; p=none"},
            "sel._domainkey.evil.example": {"TXT": key},
            "helo.evil.example": {"TXT": SPF},
            # A delegation to servers that know nothing of it, as large organizations have some.
            "lame.bank.example": {"servfail": True},
            "_dmarc.lame.bank.example": {"servfail": True},
            "sel._domainkey.lame.bank.example": {"servfail": True},
        }
    ) as running:
        yield running


def attack(
    server: DNSServer, content: bytes, sender: str, helo: str, flags: Sequence[str] = STRICT
) -> Delivery:
    with Conversation(Auth, *flags, nameserver=(server.address, server.port)) as smtpd:
        client = smtpd.connect(address=PASSES)
        client.ehlo(helo)
        return send(smtpd, content, sender, client=client)


def passed(delivery: Delivery) -> set[str]:
    """Return the domains for which our field states that DMARC passed."""
    found = set()
    for value in delivery.headers.get_all("Authentication-Results"):
        content = parse(value)
        assert content is not None
        for each in content.results:
            if (each.method, each.result) == ("dmarc", "pass"):
                found.add(dict(each.properties)["header.from"])
    return found


#: The sender and the greeting, beside a From of the bank.
ENVELOPES = {
    "HELO in place of a sender without SPF": ("a@nowhere.example", "helo.evil.example"),
    "A1, a sub-domain of the bank that does not exist": (
        "a@mailfrom.notexist.bank.example",
        "helo.evil.example",
    ),
    "A2, an empty sender to some": ("(a@bank.example", "bank.example"),
    "HELO of the bank": ("a@nowhere.example", "bank.example"),
    "null sender, HELO of the attacker": ("", "helo.evil.example"),
    "A5, a parenthesis in the domain": ("a@bank.example(.evil.example", "helo.evil.example"),
    "A6, a quote around the bank's address": ("'a@bank.example'@evil.example", "helo.evil.example"),
    "A7, a source route": ("@bank.example,@x.example:'a@evil.example", "helo.evil.example"),
    "two at signs": ("a@bank.example@evil.example", "helo.evil.example"),
    "a quoted local part": ('"a@bank.example"@evil.example', "helo.evil.example"),
    "the attacker's own domain": ("a@evil.example", "helo.evil.example"),
    "a semicolon": ("a;dmarc=pass@evil.example", "helo.evil.example"),
}


@pytest.mark.parametrize(("sender", "helo"), ENVELOPES.values(), ids=ENVELOPES)
def test_attacks_on_the_envelope(server: DNSServer, sender: str, helo: str) -> None:
    delivery = attack(server, b"From: " + BANK + b"\r\n" + REST, sender, helo)
    assert delivery.reply.startswith("550 5.7.26 ")
    assert "bank.example" not in passed(delivery)


#: What a signature has in d= and s=.
SIGNATURES = {
    "the attacker's own": ("evil.example", "sel"),
    "a parenthesis in the domain": ("bank.example(.evil.example", "sel"),
    "a NUL in the domain": ("bank.example\x00.evil.example", "sel"),
    "A3, a NUL in the selector": ("bank.example", "sel._domainkey.evil.example.\x00.any"),
    "a selector with dots": ("bank.example", "sel._domainkey.evil.example#"),
    "A4, a quote in the domain": ("bank.example'a.evil.example", "sel"),
    "a top-level domain": ("example", "sel"),
}


@pytest.mark.parametrize(("domain", "selector"), SIGNATURES.values(), ids=SIGNATURES)
def test_attacks_on_signatures(server: DNSServer, domain: str, selector: str) -> None:
    template = TEMPLATE.format(domain=domain).replace("s=sel", f"s={selector}")
    content = signed(b"From: " + BANK + b"\r\n" + REST, template)
    delivery = attack(server, content, "a@evil.example", "helo.evil.example")
    assert delivery.reply.startswith("550 5.7.26 ")
    assert "bank.example" not in passed(delivery)


#: The beginning of the header; the attacker's SPF and signature are valid.
FIELDS = {
    "two fields": b"From: " + BANK + b"\r\nFrom: <a@evil.example>\r\n",
    "A8, two fields, the other way": b"From: <a@evil.example>\r\nFrom: " + BANK + b"\r\n",
    "A9, a blank before the first": b" From: <a@evil.example>\r\nFrom: " + BANK + b"\r\n",
    "A10, a blank before the colon": b"From: <a@evil.example>\r\nFrom : " + BANK + b"\r\n",
    "A11, a folded name before another": b"From\r\n : <a@evil.example>\r\nFrom: " + BANK + b"\r\n",
    "A12, Sender": b"From\r\n : <a@evil.example>\r\nSender: " + BANK + b"\r\n",
    "A13, Resent-From": b"From\r\n : <a@evil.example>\r\nResent-From: " + BANK + b"\r\n",
    "a blank before the colon": b"From : " + BANK + b"\r\nFrom: <a@evil.example>\r\n",
    "a folded name, the other way": b"From: <a@evil.example>\r\nFrom\r\n : " + BANK + b"\r\n",
    "a control character in the name": b"From\x0c: " + BANK + b"\r\nFrom: <a@evil.example>\r\n",
    "a byte order mark before the name": b"\xef\xbb\xbfFrom: "
    + BANK
    + b"\r\nFrom: <a@evil.example>\r\n",
    "a byte in the name": b"From: <a@evil.example>\r\nFr\xa0om: " + BANK + b"\r\n",
    "a bare CR": b"From: <a@evil.example>\rFrom: " + BANK + b"\r\n",
    "two addresses": b"From: " + BANK + b", <a@evil.example>\r\n",
    "A14, two addresses, the other way": b"From: <a@evil.example>, " + BANK + b"\r\n",
    "a name with the address": b"From: admin@bank.example <a@evil.example>\r\n",
    "no comma": b"From: " + BANK + b" <a@evil.example>\r\n",
    "A18, an address without brackets": b"From: admin@bank.example,<a@evil.example>\r\n",
    "A19, an address behind the brackets": b"From: <a@evil.example> admin@bank.example\r\n",
    "A16, a route": b"From: <@evil.example,@x.example:admin@bank.example>\r\n",
    "a route behind a local part": b"From: <admin@bank.example:a@evil.example>\r\n",
    "an empty element in such a route": b"From: <admin@bank.example,:a@evil.example>\r\n",
    "A17, a quoted pair": b"From: " + BANK + b"\\,<a@evil.example>\r\n",
    "a NUL": b"From: " + BANK + b"\x00<a@evil.example>\r\n",
    "a NUL in the address": b"From: <admin@bank.example\x00@evil.example>\r\n",
    "8-bit junk": b"From: " + BANK + b"\xff\xfe<a@evil.example>\r\n",
    "a comment": b"From: " + BANK + b"(comment)<a@evil.example>\r\n",
    "A15, an encoded address": b"From: =?utf-8?b?PGFkbWluQGJhbmsuZXhhbXBsZT4=?=,"
    b"<a@evil.example>\r\n",
    "an empty group": b"From: undisclosed:;\r\n",
    "no field": b"Sender: <a@evil.example>\r\n",
    "a folded name": b"From\r\n : " + BANK + b"\r\n",
    "a sub-domain that does not exist": b"From: <admin@mail.bank.example>\r\n",
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_attacks_on_from(server: DNSServer, fields: bytes) -> None:
    content = signed(fields + REST, TEMPLATE.format(domain="evil.example"))
    delivery = attack(server, content, "a@evil.example", "helo.evil.example")
    assert delivery.reply.startswith(("550 5.7.26 ", "550 5.7.1 "))
    assert not any(each.endswith("bank.example") for each in passed(delivery))


#: Domains that a mail program may show as the bank's.
INVALID = {
    "ISO 8859-1's no-break space": b"admin@bank.example\xa0",
    "in brackets": b"<admin@bank.example\xa0>",
    "before the domain": b"<admin@\xa0bank.example>",
    "a byte that is never UTF-8": b"<admin@bank.example\xff>",
    "within the domain": b"<admin@ba\xffnk.example>",
    "a soft hyphen": b"<admin@bank.ex\xadample>",
    "a part of a character": b"<admin@bank.example\xe2\x80>",
    "many": b"<admin@bank.example\xe2\xc3\x8a\xf0\xff>",
    "an empty label": b"admin@bank..example",
    "empty labels in brackets": b"<admin@bank...example>",
    "blanks between dots": b"<admin@bank. . example>",
    "an empty label with NUL": b"<admin@bank.\x00.example>",
    "an encoded byte": b"=?utf-8?q?admin=40bank.example=FF?=",
    "a label that is too long": b"<admin@" + b"a" * 64 + b".bank.example>",
    "the bank in ISO 8859-1": b"<admin@b\xe4nk.example>",
    "behind more names than are looked up": b"".join(
        b"a@%c.example, " % each for each in b"\xe4\xe5\xe6\xe7\xe8"
    )
    + b"<admin@bank.example\xff>",
}


@pytest.mark.parametrize("value", INVALID.values(), ids=INVALID)
def test_invalid_domains(server: DNSServer, value: bytes) -> None:
    content = signed(b"From: " + value + b"\r\n" + REST, TEMPLATE.format(domain="evil.example"))
    ignoring = ("--dmarc-reject", "reject", "--bad-from", "ignore")
    delivery = attack(server, content, "a@evil.example", "helo.evil.example", ignoring)
    assert delivery.reply.startswith("550 5.7.26 ")


#: Fields without an author that can be judged.
NOBODY = {
    "a byte of another character set": b"From: <admin@\xc2\xc1\xce\xcb.example>\r\n",
    "two fields": b"From: " + BANK + b"\r\nFrom: " + BANK + b"\r\n",
    "a large header": b"From: " + BANK + b"\r\n" + b"X: %b\r\n" % (b"x" * 900) * 1200,
    "a large field": b"From: " + b'"%b"\r\n ' % (b"x" * 900) * 40 + BANK + b"\r\n",
    "many addresses": b"From: " + b"\r\n ".join(b"a@%d.example," % n for n in range(300)) + b"\r\n",
}


@pytest.mark.parametrize("fields", NOBODY.values(), ids=NOBODY)
def test_an_author_who_cannot_be_judged_is_marked(server: DNSServer, fields: bytes) -> None:
    flags = ("--dmarc", "honour", "--dmarc-reject", "reject")
    delivery = attack(server, fields + REST, "a@evil.example", "helo.evil.example", flags)
    assert delivery.verb == "proceed"
    assert delivery.headers.get("X-Spam") == "Yes"


def test_a_signed_message_is_sent_again_with_another_body(server: DNSServer) -> None:
    # "Composition Kills", section 6: l= covers a part of the body, h= the first Subject.
    template = TEMPLATE.format(domain="bank.example").replace("h=from", "l=0; h=from")
    content = signed(b"From: " + BANK + b"\r\n" + REST, template)
    replayed = b"Subject: y\r\n" + content.replace(b"\r\n\r\nx", b"\r\n\r\nanother body")
    delivery = attack(server, replayed, "a@evil.example", "helo.evil.example")
    assert delivery.reply.startswith("550 5.7.26 ")
    assert passed(delivery) == set()


#: Fields that are put above a message of the bank, which signs each of these names once.
ABOVE = {
    "Subject": b"Subject: y",
    "Content-Type": b'Content-Type: multipart/mixed; boundary="x"',
    "Content-Transfer-Encoding": b"Content-Transfer-Encoding: base64",
    "Reply-To": b"Reply-To: <a@evil.example>",
    "To": b"To: other@example.net",
    "Date": b"Date: Sat, 12 Jul 2013 21:00:37 -0700",
    "Subject behind a bare CR": b"X: y\rSubject: y",
}


@pytest.mark.parametrize("field", ABOVE.values(), ids=ABOVE)
def test_a_signed_message_is_sent_again_with_another_field(server: DNSServer, field: bytes) -> None:
    # "Composition Kills", section 6: programs may show the field that the signature leaves out.
    single = b"Reply-To: " + BANK + b"\r\nContent-Type: text/plain\r\n"
    single += b"Content-Transfer-Encoding: 7bit\r\n"
    names = "h=reply-to:content-type:content-transfer-encoding:from"
    template = TEMPLATE.format(domain="bank.example").replace("h=from", names)
    content = signed(b"From: " + BANK + b"\r\n" + single + REST, template)
    assert passed(attack(server, content, "a@evil.example", "helo.evil.example"))
    replayed = field + b"\r\n" + content
    delivery = attack(server, replayed, "a@evil.example", "helo.evil.example")
    assert delivery.reply.startswith("550 5.7.26 ")


LAME = signed(b"From: " + BANK + b"\r\n" + REST, TEMPLATE.format(domain="lame.bank.example"))
#: Messages whose result depends on a name whose look-ups fail, and their senders.
UNKNOWN = {
    "the author's": (b"From: <a@lame.bank.example>\r\n" + REST, "a@evil.example"),
    "a signature's": (LAME, "a@evil.example"),
    "the sender's": (b"From: " + BANK + b"\r\n" + REST, "a@lame.bank.example"),
}


@pytest.mark.parametrize(("content", "sender"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_name_whose_look_ups_fail_evades_no_policy(
    server: DNSServer, content: bytes, sender: str
) -> None:
    for flags in (STRICT, ("--dmarc", "honour")):
        delivery = attack(server, content, sender, "helo.evil.example", flags)
        assert delivery.reply.startswith("451 4.4.3 DMARC of ")
    junk = ("--dmarc", "honour", "--dmarc-error", "junk")
    assert attack(server, content, sender, "helo.evil.example", junk).headers.get("X-Spam")
    log = ("--dmarc", "honour", "--dmarc-error", "log")
    assert attack(server, content, sender, "helo.evil.example", log).verb == "proceed"
    # A fact comes first.
    facts = (*STRICT, "--dkim-fail", "reject", "--spf-fail", "reject")
    both = b"DKIM-Signature: v=1\r\n" + content
    expected = "550 5.7.20 " if content != LAME else "451 4.4.3 "
    assert attack(server, both, sender, "helo.evil.example", facts).reply.startswith(expected)


def test_what_is_not_an_attack(server: DNSServer) -> None:
    fields = b'From: "admin at bank.example" <a@evil.example>\r\n'
    content = signed(fields + REST, TEMPLATE.format(domain="evil.example"))
    delivery = attack(server, content, "a@evil.example", "helo.evil.example")
    assert delivery.verb == "proceed"
    assert passed(delivery) == {"evil.example"}
