"""The datagrams that processes send to the journal: JSON objects with short keys.

An object is the story of one transaction, or of a session as far as it belongs to none. One that
would be longer than `LIMIT` is split: each part names the session and the transaction, and the
journal joins them, as it joins the stories of several processes. A datagram has one object, or
several in an array (`outbox`).

| key | value |
| --- | --- |
| v, k, p | version of the format; "tx" or "session"; the sending process's name |
| s, m | smtpd's ids of the session and the message |
| t, d | start in milliseconds since 1970, and duration in milliseconds |
| e | end of a transaction: "commit" or "rollback" |
| c | client: endpoint, reverse name, fcrdns, the server's endpoint |
| h, l, u | greeting; TLS; names of the user, and of one whose authentication failed |
| f, r, z | sender; recipients, each with 0 (accepted), 1 (temporarily) or 2 (refused); size |
| i, j | the message's Message-ID and Subject, if a filter reads headers |
| a | smtpd's replies with 4xx and 5xx |
| w | verdicts: see `ROW` and `PACKED` |
| x, y | events lost before in this process; verdicts and recipients left out here |
"""

from __future__ import annotations

from json import JSONEncoder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Row = list[Any]

VERSION = 1
#: How each object begins; within texts, quotation marks are escaped.
BEGINNING = b'{"v":'
#: Bytes of a datagram: older OpenBSD and FreeBSD have 2,048 as their largest.
LIMIT = 2000
#: Parts that a story is sent in at most.
MAX_PARTS = 8
#: The fields of a verdict; those at the end may be missing if they are 0 or empty. Times are in
#: milliseconds since the start and in microseconds, points in thousandths. `flags` are letters:
#: d, a dry run; f, the filter failed and --on-error decided; t, temporary points; s, the score; e,
#: the filter has changed the message as well; m, a mark of the session, made before this message.
#: Of a rewritten parameter `reply` is the new one.
ROW = (
    "filter", "phase", "verb", "at", "took", "count", "longest", "reason", "reply", "argument",
    "points", "flags", "setting",
)  # fmt: skip
#: Their places in a row.
(
    FILTER, PHASE, VERB, AT, TOOK, COUNT, LONGEST, REASON, REPLY, ARGUMENT,
    POINTS, FLAGS, SETTING,
) = range(len(ROW))  # fmt: skip
#: Verdicts to proceed, which most are, are packed: a row `[phase, at, filter, took, filter, took,
#: ...]` has up to so many of one phase. Those of filters that were called together, with their
#: names in one text, are a row `[phase, at, took, filters]`, and `count, longest` if it is several
#: times.
PACKED = 12
#: The default of each field.
DEFAULTS: tuple[Any, ...] = ("", "", "", 0, 0, 1, 0, "", "", "", 0, "", "")

_encode = JSONEncoder(separators=(",", ":"), check_circular=False).encode


def trimmed(row: Row) -> Row:
    """Return a verdict without the fields at its end that have their defaults."""
    end = len(row)
    while end > 3 and row[end - 1] == DEFAULTS[end - 1]:
        end -= 1
    return row[:end]


def packed(rows: list[Row]) -> list[Row]:
    """Return complete rows in the form of a datagram: trimmed, and verdicts to proceed packed."""
    found: list[Row] = []
    last: Row = []
    for row in rows:
        short = trimmed(row)
        if short[VERB] != "proceed" or len(short) > 5:
            found.append(short)
            continue
        at, took = row[AT], row[TOOK]
        if last[:2] != [row[PHASE], at] or len(last) > 2 * PACKED:
            last = [row[PHASE], at]
            found.append(last)
        last += row[FILTER], took
    return found


def unpacked(rows: list[Row]) -> list[Row]:
    """Return complete rows from those that `packed` has returned."""
    found: list[Row] = []
    for row in rows:
        if len(row) > 1 and type(row[1]) is int:
            phase, at, *passed = row
            for filter_, took in zip(passed[::2], passed[1::2], strict=True):
                found.append([filter_, phase, "proceed", at, took, *DEFAULTS[COUNT:]])
        else:
            found.append([*row, *DEFAULTS[len(row) :]])
    return found


def count(rows: list[Row]) -> int:
    """Return the number of verdicts in complete rows, some of which are of several filters."""
    return sum(row[FILTER].count(" ") + 1 for row in rows)


def alone(row: Row) -> list[Row]:
    """Return the rows of filters whose names a row has together: equal shares of its time."""
    names = row[FILTER].split(" ")
    if len(names) == 1:
        return [row]
    shares = row[TOOK] // len(names), row[COUNT], row[LONGEST] // len(names)
    return [[name, *row[PHASE:TOOK], *shares, *row[REASON:]] for name in names]


def encode(head: dict[str, Any], rows: list[Row], limit: int = LIMIT) -> list[bytes]:
    """Return the datagrams of a story: its facts, and its verdicts.

    Recipients, texts and finally verdicts that have no room are left out, and counted in `y`.
    """
    whole = _encode({**head, "w": rows}).encode()
    return [whole] if len(whole) <= limit else _split(head, rows, limit)


def _split(head: dict[str, Any], rows: list[Row], limit: int) -> list[bytes]:
    """Return the datagrams of a story that is too long for one."""
    head = dict(head)
    left_out = 0
    while (size := _size(head)) > limit:
        left_out += _shorten(head)
    again = {key: head[key] for key in "vkpsmtde" if key in head}
    beginning = _size({**again, "y": 99999})
    parts: list[tuple[dict[str, Any], list[Row]]] = [(head, [])]
    for row in rows:
        kept, taken = _fitting(row, limit // 2)
        if size + taken > limit:
            if len(parts) == MAX_PARTS:
                left_out += 1 if type(row[1]) is str else len(row) // 2 - 1
                continue
            parts.append((dict(again), []))
            size = beginning
        parts[-1][1].append(kept)
        size += taken
    if left_out:
        if len(parts) == 1:
            parts.append((dict(again), []))
        parts[-1][0]["y"] = left_out + parts[-1][0].get("y", 0)
    return [_encode({**facts, "w": some}).encode() for facts, some in parts]


def _size(head: dict[str, Any]) -> int:
    return len(_encode({**head, "w": []}))


def _shorten(head: dict[str, Any]) -> int:
    """Shorten the facts of a story; return how much was left out that is to be counted."""
    if recipients := head.get("r"):
        kept = len(recipients) // 2
        head["r"] = recipients[:kept]
        return len(recipients) - kept
    if answers := head.get("a"):
        head["a"] = answers[1:]
        return 1
    for key, value in head.items():
        if key not in "vkpsme" and isinstance(value, str):
            head[key] = value[: len(value) // 2]
        elif isinstance(value, list):
            head[key] = [each[: len(each) // 2] for each in value]
    return 0


def _fitting(row: Row, limit: int) -> tuple[Row, int]:
    """Return a verdict, with shorter texts if it is long, and the bytes that it takes."""
    taken = len(_encode(row)) + 1
    shown = 120
    while taken > limit:
        shown //= 2
        row = [each[:shown] if isinstance(each, str) else each for each in row]
        taken = len(_encode(row)) + 1
    return row, taken
