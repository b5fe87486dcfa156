"""Tests of the completion of From, To and Cc, which must equal that of each smtpd."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from smtpd_filters.message.completion import completed
from smtpd_filters.oracle.completion import completed as by_smtpd
from tests.e2e.sending import ZONE, attempt

if TYPE_CHECKING:
    from tests.e2e.conftest import Start

FIELDS = [
    b"To: root",
    b"to:root",
    b"To : root",
    b"Reply-To: root",
    b"To: Doe, Alice <a@b.example>",
    b"To: root (Charlie Root)",
    b"To: Charlie <root >",
    b"To: Charlie <root (him) >",
    b"To: <a> <b>",
    b"To: <>",
    b"To: < >",
    b"To: undisclosed-recipients:;",
    b"To: friends: a, b@c.example;",
    b"Cc: a, b@c.example,\n\td ,\n e",
    b"Cc: a\n\t(b, c)\n d, e",
    b"Cc: a\n\t,b\n ,",
    b'To: "a, b" <c>',
    b'To: "a@b"',
    b'To: "a\\"b, c',
    b"To: a (b (c) d) e",
    b"To: a (b, c",
    b"To: <a, b",
    b"To: a\\(b",
    b"To: a\\\\(b)",
    b"To: a\\,b@c.example",
    b"To: a\\, b\\ , c",
    b"To: J\xf6rg, \xff",
    b"To:)",
    b"To:(a)",
    b"To: ,a,, b,",
    b"To: " + b"a" * 1990 + b",\n " + b"b" * 1990 + b"\n c",
    b'To: "a\\"b", c',
    b'To: "a\\"b, c',
    b'To: "a\\\\"b, c',
]
PIECES = [
    b"a",
    b"b",
    b"@",
    b'\\"',
    b":",
    b";",
    b",",
    b"<",
    b">",
    b"(",
    b")",
    b'"',
    b"\\",
    b" ",
    b"\t",
]
PIECES += [b"\n x", b"a, ", b'"x" ', b"<a>", b"\xe9", b"a@b,"]


def texts() -> list[bytes]:
    """Any texts, the same in each run."""
    made = random.Random(5322)  # noqa: S311  # for nothing secret
    return [b"To:" + b"".join(made.choices(PIECES, k=made.randint(1, 14))) for _ in range(600)]


def test_the_rule_is_that_of_the_server(start: Start, version: str) -> None:
    server = start(zone=ZONE)
    lines = [line for field in FIELDS + texts() for line in field.split(b"\n")]
    message = b"\r\n".join([b"Subject: x", *lines, b"X-End: x", b"", b"body", b""])
    assert attempt(server, message=message).code == 250
    [delivered] = server.maildir("alice")
    host = re.search(rb"\n\s+by (\S+)", delivered.content)
    assert host
    after = delivered.content.partition(b"\nSubject: x\n")[2].partition(b"\nX-End: x\n")[0]
    assert after.split(b"\n") == by_smtpd(lines, host[1], old=version.startswith("6."))


def test_nothing_is_left_to_the_server(start: Start) -> None:
    server = start(zone=ZONE)
    left = {b"To:(a)", b'To: "a\\"b", c', b'To: "a\\"b, c'}
    lines = [line for field in FIELDS if field not in left for line in field.split(b"\n")]
    ready = completed(lines, "mail.local.example") or []
    message = b"\r\n".join([b"Subject: x", *ready, b"X-End: x", b"", b"body", b""])
    assert attempt(server, message=message).code == 250
    [delivered] = server.maildir("alice")
    after = delivered.content.partition(b"\nSubject: x\n")[2].partition(b"\nX-End: x\n")[0]
    assert after.split(b"\n") == ready
