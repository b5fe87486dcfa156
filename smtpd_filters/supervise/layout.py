"""Layout: the offsets of the fields in smtpd's lines, for reading many of them without a split.

Version and time have the same width in all lines of a server, session and token always. A line that
differs has another key, or none of the phases, and is read by its fields.
"""

from __future__ import annotations

from operator import itemgetter

from .ledger import KEPT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.protocol.vocabulary import Phase

    #: A phase, its name in the line; slices of the session, and of session and token; the offset
    #: of the bar between them and of the bar after them.
    Fields = tuple[Phase, bytes, slice, slice, int, int]
    #: The name of a report; the slices of the session, and of the byte after it.
    Named = tuple[bytes, slice, slice]

#: The reports that change the state of a session.
TRACKED = KEPT | {b"tx-reset", b"link-disconnect"}
#: Lengths of a session or a token, and of both with a bar between them.
ID = 16
PAIR = ID + 1 + ID
#: What precedes the session in a line of a message.
DATA_LINE = b"|smtp-in|data-line|"
#: What precedes the name of an event, and how many bytes from there tell the phases apart.
_SUBSYSTEM = b"|smtp-in|"
_HEAD = len(b"|smtp-in|quit|")
#: How many bytes from there tell the reports apart.
_LONG_HEAD = len(b"|smtp-in|tx-reset")
#: Bytes at the start of a line in which this is searched for.
_NEAR = 64


def offset(data: bytes) -> int:
    """Return where the subsystem is in the first line of `data`, or -1."""
    return data.find(_SUBSYSTEM, 0, _NEAR)


class Layout:
    """The offsets if the bar before the subsystem is at `at`; with -1 they fit no line.

    `phases` are those of `requests`.
    """

    def __init__(self, at: int, phases: Iterable[Phase]) -> None:
        self.at = at
        body = at + len(DATA_LINE) + PAIR + 1
        #: The function that extracts what all lines of a message have in common, and no others.
        self.key = itemgetter(slice(at, body) if at >= 0 else slice(0, 0))
        #: The length of the line of a final dot.
        self.dot_size = body + len(b".\n")
        #: The slice that is the key of `requests`.
        self.head = slice(at, at + _HEAD)
        self.requests: dict[bytes, Fields] = {}
        #: The slice that is the key of `reports`.
        self.long_head = slice(at, at + _LONG_HEAD)
        self.reports: dict[bytes, Named] = {}
        if at < 0:
            return
        for name in TRACKED:
            before = _SUBSYSTEM + name + b"|"
            start = at + len(before)
            self.reports[before[:_LONG_HEAD]] = (
                name,
                slice(start, start + ID),
                slice(start + ID, start + ID + 1),
            )
        for phase in phases:
            before = _SUBSYSTEM + phase.wire + b"|"
            start = at + len(before)
            bar = start + ID
            self.requests[before[:_HEAD]] = (
                phase,
                phase.wire,
                slice(start, bar),
                slice(start, start + PAIR),
                bar,
                start + PAIR,
            )
