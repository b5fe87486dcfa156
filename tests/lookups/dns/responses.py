"""Responses for tests: honest ones as text, and the largest and dearest that 64 KiB can hold."""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

import dns.rdatatype

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.lookups.dns.message import Question

LARGEST = 65535
#: The name that is asked for, and one of 127 labels, as long as a name can be.
NAME = "mail.example.net"
LONG = ".".join("abcdefghijklmnopqrstuvwxyz"[n % 26] for n in range(127))
#: A pointer to the question's name.
ASKED = b"\xc0\x0c"


def record(owner: bytes, rdtype: str, content: bytes, ttl: int = 60) -> bytes:
    kind = dns.rdatatype.from_text(rdtype)
    return owner + pack(">2HIH", kind, 1, ttl, len(content)) + content


def name(*labels: bytes) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def response(question: Question, counts: tuple[int, int, int], *records: bytes) -> bytes:
    """Return a response with this question, which announces so many records."""
    asked = question.wire[12 : question.wire.index(b"\0", 12) + 5]
    head = question.wire[:2] + b"\x81\x80" + pack(">4H", 1, *counts)
    return head + asked + b"".join(records)


def full(question: Question, make: Callable[[int], bytes]) -> bytes:
    """Return a response with as many of `make`'s records as fit in 64 KiB."""
    left = LARGEST - len(response(question, (0, 0, 0)))
    records: list[bytes] = []
    while left >= len(made := make(len(records))):
        records.append(made)
        left -= len(made)
    return response(question, (len(records), 0, 0), *records)


def content(rdtype: str, number: int, *, long: bool) -> bytes:
    """Return a record's content, different for each number."""
    tag = b"%04x" % number
    target = name(*(tag[at : at + 1] for at in range(4)), *[b"a"] * 123) if long else b"\4" + tag
    target = target if long else target + ASKED
    return {
        "A": pack(">I", 0x0A000000 + number),
        "AAAA": pack(">4I", 0x20010DB8, 0, 0, number),
        "MX": pack(">H", number) + target,
        "TXT": (b"\0" * 250 if long else b"") + b"\4" + tag,
    }.get(rdtype, target)


def pointers(start: int) -> tuple[bytes, bytes]:
    """Return a chain of pointers for a place in a message, and a pointer to its end.

    It is as long as can be: what a pointer leads to is in the first 16 KiB.
    """
    count = (0x3FFF - start) // 2 - 1
    chain = ASKED + b"".join(pack(">H", 0xC000 | start + 2 * at) for at in range(count))
    return chain, pack(">H", 0xC000 | start + 2 * count)


def alternating(start: int) -> tuple[bytes, bytes]:
    """Return names of one label and a pointer to the one before; and a pointer to the last."""
    names, place, before = b"\1z\0", start + 3, start
    for _ in range(120):
        names += b"\1a" + pack(">H", 0xC000 | before)
        place, before = place + 4, place
    return names, pack(">H", 0xC000 | before)
