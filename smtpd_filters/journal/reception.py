"""The journal's side of a datagram: parse it, and believe nothing that is not checked.

Invariants
----------
*Total*: any bytes are parsed to a valid part of a story, or raise `InvalidError`.
*Bounded*: texts, lists and numbers of a part have limits, and names that are counted are from small
sets: phases and verbs of the protocol, and plain names of filters.
*Clean*: texts are valid Unicode, so that they can be stored.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from smtpd_filters.protocol.vocabulary import PHASES

from .wire import (
    ARGUMENT,
    AT,
    COUNT,
    DEFAULTS,
    FILTER,
    FLAGS,
    LONGEST,
    PACKED,
    PHASE,
    POINTS,
    REASON,
    REPLY,
    ROW,
    SETTING,
    TOOK,
    VERB,
    VERSION,
    count,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Bytes of a datagram that is read; ours have at most `outbox.ROOM`.
MAX_DATAGRAM = 1 << 13
MAX_TEXT = 512
MAX_ROWS, MAX_RECIPIENTS, MAX_ANSWERS = 200, 200, 32
#: Verdicts of a part, also if one row has several.
MAX_VERDICTS = 400
_LARGEST = 1 << 48
_PHASES = frozenset({*PHASES, "headers", "message"})
_VERBS = frozenset(
    {"proceed", "junk", "reject", "disconnect", "rewrite", "edit", "points", "bypass"}
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_ID = re.compile(r"[0-9a-f]{1,16}")
_FLAGS = frozenset("dftsem")
#: Names that were checked, and how many are remembered.
_names: dict[str, str] = {}
MAX_NAMES = 1000
OTHER = "other"
#: Lists of texts, with their lengths.
_LISTS = {"c": 4, "h": 2, "u": 2}
_TEXTS = ("e", "l", "f", "i", "j")
_NUMBERS = ("t", "d", "z", "x", "y")

#: A part of a story: see `wire`. All keys are there.
Part = dict[str, Any]


class InvalidError(ValueError):
    """A datagram that is neither a part of a story nor the state of a process."""


class OtherVersionError(InvalidError):
    """An object of the format of another release."""


def decode(data: bytes) -> list[Any]:
    """Parse a datagram; return what is in it, still to be checked. Raises InvalidError."""
    try:
        found = _parse(data.decode())
    except (ValueError, RecursionError):
        raise InvalidError("not JSON") from None
    return found if isinstance(found, list) else [found]


def is_state(found: object) -> bool:
    """Return whether it is the state of a process, rather than a part of a story.

    Raises InvalidError if it is neither.
    """
    if not isinstance(found, dict):
        raise InvalidError("not an object")
    if found.get("v") != VERSION:
        raise OtherVersionError("another version")
    return found.get("k") == "state"


def part_of(found: dict[str, Any]) -> Part:
    """Return a part of a story from a datagram's object. Raises InvalidError."""
    session, msgid, kind = found.get("s"), found.get("m", ""), found.get("k")
    if not isinstance(session, str) or not _ID.fullmatch(session):
        raise InvalidError("no session")
    if not isinstance(msgid, str) or not (msgid == "" or _ID.fullmatch(msgid)):
        raise InvalidError("invalid message id")
    if kind not in ("tx", "session") or (kind == "tx") != bool(msgid):
        raise InvalidError("unknown kind")
    part: Part = {"v": VERSION, "k": kind, "s": session, "m": msgid, "p": name(found.get("p"))}
    part |= {key: number(found.get(key, 0)) for key in _NUMBERS}
    part |= {key: text(found.get(key, "")) for key in _TEXTS}
    for key, length in _LISTS.items():
        part[key] = [text(each) for each in _list(found.get(key), length)]
        part[key] += [""] * (length - len(part[key]))
    if part["e"] not in ("", "commit", "rollback"):
        raise InvalidError("unknown end")
    part["r"] = [_recipient(each) for each in _list(found.get("r"), MAX_RECIPIENTS)]
    part["a"] = [text(each) for each in _list(found.get("a"), MAX_ANSWERS)]
    part["w"] = [row for each in _list(found.get("w"), MAX_ROWS) for row in _rows(each)]
    if count(part["w"]) > MAX_VERDICTS:
        raise InvalidError("too many verdicts")
    return part


def text(value: object) -> str:
    """Return a text within its limit. Raises InvalidError."""
    if not isinstance(value, str):
        raise InvalidError("not a text")
    value = value[:MAX_TEXT]
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()


def number(value: object) -> int:
    """Return a number within its limits. Raises InvalidError."""
    if type(value) is not int or not -_LARGEST <= value <= _LARGEST:
        raise InvalidError("not a number")
    return value


def name(value: object) -> str:
    """Return the name of a filter or a process, or "other" if it is an odd one.

    Names of several filters have a blank in between.
    """
    if not isinstance(value, str):
        return OTHER
    known = _names.get(value)
    if known is None:
        if len(_names) >= MAX_NAMES:
            _names.clear()
        known = _names[value] = " ".join(
            each if _NAME.fullmatch(each) else OTHER for each in value[:MAX_TEXT].split(" ")
        )
    return known


def _refuse(_word: str) -> None:
    raise InvalidError("not a finite number")


_parse = json.JSONDecoder(parse_constant=_refuse).decode
#: The fields of a verdict to proceed after its time.
_PROCEEDED = DEFAULTS[COUNT:]


def _list(value: object, limit: int) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > limit:
        raise InvalidError("not a list, or too long")
    return value


def _recipient(value: object) -> list[Any]:
    if not isinstance(value, list) or len(value) != 2 or value[1] not in (0, 1, 2):
        raise InvalidError("invalid recipient")
    return [text(value[0]), int(value[1])]


def _rows(value: object) -> Sequence[list[Any]]:
    """Return the verdicts of a row."""
    if not isinstance(value, list) or len(value) < 3 or not isinstance(value[1], int):
        return (_row(value),)
    phase, at, *passed = value
    if not isinstance(phase, str) or phase not in _PHASES:
        raise InvalidError("unknown phase")
    if isinstance(passed[0], int):
        if len(passed) == 2 and type(passed[1]) is str:
            times = max(0, number(at)), max(0, number(passed[0]))
            return ([name(passed[1]), phase, "proceed", *times, *_PROCEEDED],)
        if len(passed) not in (2, 4) or not isinstance(passed[1], str) or len(passed[1]) > MAX_TEXT:
            raise InvalidError("invalid verdicts")
        took, names, *more = passed
        return (_row([names, phase, "proceed", at, took, *more]),)
    if len(passed) > 2 * PACKED:
        raise InvalidError("invalid verdicts")
    since = max(0, number(at))
    return [
        [name(filter_), phase, "proceed", since, max(0, number(took)), *_PROCEEDED]
        for filter_, took in zip(passed[::2], passed[1::2], strict=False)
    ]


def _row(value: object) -> list[Any]:
    if not isinstance(value, list) or not 3 <= len(value) <= len(ROW):
        raise InvalidError("invalid verdict")
    row = [*value, *DEFAULTS[len(value) :]]
    if not (isinstance(row[PHASE], str) and isinstance(row[VERB], str)):
        raise InvalidError("invalid verdict")
    if row[PHASE] not in _PHASES or row[VERB] not in _VERBS:
        raise InvalidError("unknown phase or verb")
    row[FILTER] = name(row[FILTER])
    for at in (AT, TOOK, COUNT, LONGEST):
        row[at] = max(0, number(row[at]))
    for at in (REASON, REPLY, ARGUMENT, FLAGS, SETTING):
        row[at] = text(row[at])
    number(row[POINTS])
    if not 1 <= row[COUNT] <= 1_000_000 or not _FLAGS.issuperset(row[FLAGS]):
        raise InvalidError("invalid verdict")
    return row
