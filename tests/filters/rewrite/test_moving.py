"""The rows of docs/migrating.md on Postfix's canonical tables, each with addresses."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

import pytest

from smtpd_filters.filters.rewrite import Rewriter
from smtpd_filters.testing import Conversation
from tests.test_moving import rows, section

if TYPE_CHECKING:
    from pathlib import Path

FILES = {
    "sender_canonical": "/(.*)@(.*)\\.domainelocal/   ${1}-${2}.domainelocal@example.org\n",
    "recipient_canonical": "joe.doe@example.org joe@example.org\n",
    "canonical": "/^(\\w+)@old\\.example$/ $1@example.org\n",
    "header_canonical": "joe@pc.example.org joe.doe@example.org\n",
    "mailboxes": "joe@example.org\n",
}


class Case(NamedTuple):
    """A message, and what becomes of its addresses: those that Postfix makes of them."""

    sender: str
    recipient: str
    header: str
    becomes: tuple[str, str, str]
    user: str = ""


CASES = {
    "sender_canonical_classes": Case(
        "root@serveur.domainelocal", "root@serveur.domainelocal", "root@serveur.domainelocal",
        ("root-serveur.domainelocal@example.org", "root@serveur.domainelocal",
         "root@serveur.domainelocal"), "joe",
    ),
    "recipient_canonical_maps": Case(
        "joe.doe@example.org", "joe.doe+x@example.org", "joe.doe@example.org",
        ("joe.doe@example.org", "joe+x@example.org", "joe.doe@example.org"), "joe",
    ),
    "canonical_maps = pcre": Case(
        "joe@old.example", "ann@old.example", "Joe@OLD.example",
        ("joe@example.org", "ann@example.org", "Joe@example.org"), "joe",
    ),
    "canonical_classes = header": Case(
        "joe@pc.example.org", "joe@pc.example.org", "joe@pc.example.org",
        ("joe@pc.example.org", "joe@pc.example.org", "joe.doe@example.org"), "joe",
    ),
    "local_header_rewrite_clients": Case(
        "joe@pc.example.org", "joe@pc.example.org", "joe@pc.example.org",
        ("joe.doe@example.org", "joe.doe@example.org", "joe.doe@example.org"),
    ),
    "masquerade_domains": Case(
        "joe@a.pc.example.org", "joe@pc.example.org", "joe@x.lab.example.org",
        ("joe@example.org", "joe@pc.example.org", "joe@x.lab.example.org"), "joe",
    ),
    "recipient_delimiter": Case(
        "joe-list@example.org", "joe-list@example.org", "joe-list@example.org",
        ("joe-list@example.org", "joe+list@example.org", "joe-list@example.org"),
    ),
}  # fmt: skip
ROWS = {
    next(word for word in CASES if word in left): shlex.split(right.strip("`"))
    for left, name, right in (row for row in rows(section("Postfix")) if len(row) == 3)
    if name == "`filter-rewrite`"
}


def test_each_row_is_tried() -> None:
    assert ROWS.keys() == CASES.keys()


@pytest.mark.parametrize("word", CASES)
def test_it_makes_of_addresses_what_postfix_makes(word: str, tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    flags = [flag.replace("/etc/postfix", str(tmp_path)) for flag in ROWS[word]]
    case = CASES[word]
    with Conversation(Rewriter, *flags) as smtpd:
        client = smtpd.connect(address="203.0.113.1")
        client.ehlo("mail.example.net")
        if case.user:
            client.auth(case.user, "secret")
        sender = client.mail_from(case.sender).parameter.strip("<>")
        recipient = client.rcpt_to(case.recipient).parameter.strip("<>")
        mail = client.message(f"From: Joe <{case.header}>\r\n\r\nx\r\n".encode())
    assert (sender, recipient, mail.headers.get("From")) == (
        *case.becomes[:2], f"Joe <{case.becomes[2]}>"
    )  # fmt: skip
