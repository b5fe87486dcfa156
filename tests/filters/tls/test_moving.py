"""The rows of docs/migrating.md on Postfix's requirements of TLS, each with mail."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

import pytest

from smtpd_filters.filters.tls import Tls
from smtpd_filters.testing import Conversation
from tests.test_moving import rows, section

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.testing import Verdict

STRONG = "TLSv1.3:TLS_AES_256_GCM_SHA384:256"
OLD = "TLSv1.1:ECDHE-RSA-AES256-SHA:256"
STATIC = "TLSv1.2:AES256-SHA:256"
ANONYMOUS = "TLSv1.2:AECDH-AES256-SHA:256"


class Mail(NamedTuple):
    """A message, by how it comes."""

    tls: str = STRONG
    sender: str = "joe@good.example"
    recipient: str = "alice@example.org"
    address: str = "203.0.113.1"


#: What Postfix accepts and what it refuses, by a word of its configuration.
EXPECTED = {
    "bank.example": (
        [Mail("", "joe@good.example"), Mail(STRONG, "joe@bank.example")],
        [Mail("", "joe@bank.example")],
    ),
    "board@example.org": (
        [Mail(""), Mail(STRONG, recipient="board@example.org")],
        [Mail("", recipient="board@example.org")],
    ),
    "192.0.2.0/24": ([Mail(""), Mail(address="192.0.2.1")], [Mail("", address="192.0.2.1")]),
    "plaintext_reject_code": ([Mail()], [Mail("")]),
    "smtpd_tls_mandatory_protocols": ([Mail(), Mail(STATIC)], [Mail(OLD), Mail("")]),
    "smtpd_tls_mandatory_ciphers": ([Mail(), Mail(OLD)], [Mail(STATIC), Mail("")]),
    "smtpd_tls_exclude_ciphers": ([Mail(), Mail(OLD)], [Mail(ANONYMOUS), Mail("")]),
    "smtpd_tls_req_ccert": (
        [Mail(), Mail("")],
        [Mail(sender="joe@branch.example"), Mail("", "joe@branch.example")],
    ),
    "warn_if_reject": ([Mail(), Mail("")], []),
}
ROWS = {
    next(word for word in EXPECTED if word in left): shlex.split(right.split("`")[1])
    for left, name, right in (row for row in rows(section("Postfix")) if len(row) == 3)
    if name == "`filter-tls`"
}


def test_each_row_is_tried() -> None:
    assert ROWS.keys() == EXPECTED.keys()


def reply(flags: list[str], mail: Mail) -> str:
    """The refusal of a message, or ""."""
    with Conversation(Tls, *(flag.replace("\\|", "|") for flag in flags)) as smtpd:
        client = smtpd.connect(address=mail.address)
        steps: list[Callable[[], Verdict]] = [
            lambda: client.ehlo("mail.good.example"),
            *((lambda: client.tls(mail.tls), lambda: client.ehlo("x.example")) if mail.tls else ()),
            lambda: client.mail_from(mail.sender),
            lambda: client.rcpt_to(mail.recipient),
            lambda: client.message(b"Subject: x\r\n\r\nx\r\n"),
        ]
        for step in steps:
            if (said := step()).refused:
                return said.reply
    return ""


@pytest.mark.parametrize("word", EXPECTED)
def test_it_refuses_what_postfix_refuses(word: str) -> None:
    accepted, refused = EXPECTED[word]
    assert [reply(ROWS[word], mail) for mail in accepted] == [""] * len(accepted)
    replies = [reply(ROWS[word], mail) for mail in refused]
    code = "450 4.7." if word == "plaintext_reject_code" else "5"
    assert all(each.startswith(code) for each in replies)
