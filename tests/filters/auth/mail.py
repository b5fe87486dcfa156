"""Mail that is signed, and the zone of its senders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.authentication.signing import public, rsa_key, signed

if TYPE_CHECKING:
    from smtpd_filters.testing import Client, Conversation, Delivery

PASSES, FAILS = "192.0.2.1", "203.0.113.9"
MESSAGE = (
    b"From: Ann <ann@example.org>\r\nTo: bob@example.net\r\nSubject: hello\r\n"
    b"Date: Fri, 11 Jul 2003 21:00:37 -0700\r\n\r\nHow are you?\r\n"
)
TEMPLATE = (
    "v=1; a=rsa-sha256; c=relaxed/relaxed; d={domain}; s=sel;\r\n"
    "\th=from:to:subject:date; bh={{bh}};\r\n\tb={{b}}"
)
SPF = f"v=spf1 ip4:{PASSES} -all"


def zone() -> dict[str, dict[str, object]]:
    """Return the zone; the keys are made once in a process."""
    key = f"v=DKIM1; p={public(rsa_key())}"
    return {
        "example.org": {"TXT": SPF},
        "_dmarc.example.org": {"TXT": "v=DMARC1; p=reject"},
        "sel._domainkey.example.org": {"TXT": key},
        "news.example.org": {"TXT": "v=spf1 ~all"},
        "example.com": {"TXT": SPF},
        "_dmarc.example.com": {"TXT": "v=DMARC1; p=quarantine"},
        "sel._domainkey.example.com": {"TXT": key},
        "sel._domainkey.list.example": {"TXT": key},
        "sel._domainkey.broken.example": {"servfail": True},
        "testing.example": {"TXT": SPF},
        "_dmarc.testing.example": {"TXT": "v=DMARC1; p=reject; t=y"},
        "_dmarc.slow.example": {"TXT": "v=DMARC1; p=reject"},
        "sel._domainkey.slow.example": {"drop": True},
        "sel._domainkey.silent.example": {"drop": True},
        "broken.example": {"servfail": True},
        "_dmarc.broken.example": {"servfail": True},
        "silent.example": {"drop": True},
        "_dmarc.silent.example": {"drop": True},
        "mail.example.com": {"TXT": SPF},
        "mx.example.org": {"TXT": SPF},
    }


def signed_by(domain: str, content: bytes = MESSAGE) -> bytes:
    """Return a message with a signature of a domain."""
    return signed(content, TEMPLATE.format(domain=domain))


def of(author: str, content: bytes = MESSAGE) -> bytes:
    """Return a message with another From."""
    return content.replace(b"Ann <ann@example.org>", author.encode("utf-8", "surrogateescape"))


def send(
    smtpd: Conversation,
    content: bytes = MESSAGE,
    sender: str = "ann@example.org",
    address: str = PASSES,
    *,
    client: Client | None = None,
) -> Delivery:
    """Send a message as a client at an address does."""
    if client is None:
        client = smtpd.connect(address=address)
        client.ehlo("mail.example.com")
    client.mail_from(sender)
    client.rcpt_to("bob@example.net")
    return client.message(content)
