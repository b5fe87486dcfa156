"""Stories made up for tests of the archive."""

from __future__ import annotations

from typing import Any

from smtpd_filters.journal.reception import decode, is_state, part_of
from smtpd_filters.journal.wire import VERSION, encode

#: 2026-11-30 12:00:00 UTC, for tests with a time of their own.
NOON = 1796040000.0
DAY = 86400.0
REFUSED = ["dnsbl", "connect", "reject", 3, 1500, 1, 0, "listed in zen.example", "550 5.7.1 Listed"]
PASSED = ["fcrdns", "connect", "proceed", 1, 20]


def parse(data: bytes) -> dict[str, Any]:
    """Return the part of a story in a datagram that has only one."""
    [found] = parse_all(data)
    return found


def parse_all(data: bytes) -> list[dict[str, Any]]:
    """Return the parts of stories in a datagram."""
    found = decode(data)
    assert not any(map(is_state, found))
    return [part_of(each) for each in found]


def part(number: int = 1, rows: list[Any] | None = None, **facts: Any) -> dict[str, Any]:
    """Return a part of the story of transaction `number`."""
    head: dict[str, Any] = {
        "v": VERSION,
        "k": "tx",
        "p": "filter-test",
        "s": f"{number:016x}",
        "m": f"{number:08x}",
        "t": int(NOON * 1000),
        "d": 5,
        "e": "commit",
        "c": ["192.0.2.1:33174", "mx.example.org", "pass", "192.0.2.25:25"],
        "h": ["EHLO", "mx.example.org"],
        "f": "alice@example.org",
        "r": [["bob@example.net", 0]],
        "z": 1234,
        **facts,
    }
    [data] = encode(head, [PASSED] if rows is None else rows)
    return parse(data)


def stored(number: int = 1, rows: list[Any] | None = None, **facts: Any) -> dict[str, Any]:
    """Return a complete story, as a merger gives it."""
    found = part(number, rows, **facts)
    return {**found, "p": [found["p"]]}


def refused(number: int = 1, **facts: Any) -> dict[str, Any]:
    """Return the story of a refused message."""
    return stored(number, [PASSED, REFUSED], e="rollback", **facts)
