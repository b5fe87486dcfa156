"""The state of a process that decides, as the journal gets it every few seconds.

A datagram is a JSON object with short keys, as those of `wire`. Numbers are sums since the start of
the process, so that one that is lost costs nothing.

| key | value |
| --- | --- |
| v, k, p | version of the format; "state"; the process's name |
| n, a | a random number of the process, in hexadecimal; seconds since its start |
| o, r, x | open sessions; ends of supervised programs; events that it could not send |
| q | by kind of look-up: microseconds, the numbers of each bucket, and by cause those that failed |
| b | servers: kind, label, and 1 if the server is passed over for its failures |

A state that would be longer than `wire.LIMIT` is sent in several datagrams, each with some of the
look-ups and servers.
"""

from __future__ import annotations

import os
from json import JSONEncoder
from time import monotonic

from smtpd_filters.runtime.counters import COUNTERS, Counters

from .wire import LIMIT, VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .sender import Sender

#: Seconds between two datagrams: less than between two looks of Prometheus.
INTERVAL = 10.0

_encode = JSONEncoder(separators=(",", ":"), check_circular=False).encode


class ProcessState:
    """Sends the state of the process `who`; the first time is due at once."""

    def __init__(self, sender: Sender, who: str, counters: Counters = COUNTERS) -> None:
        self._sender, self._who, self._counters = sender, who, counters
        self._number = os.urandom(8).hex()
        self._began = monotonic()

    def send(self, sessions: int, ends: int = 0) -> None:
        """Send it; a datagram that can't be sent is not missed. Raises whatever goes wrong."""
        head = {
            "v": VERSION,
            "k": "state",
            "p": self._who,
            "n": self._number,
            "a": int(monotonic() - self._began),
            "o": sessions,
            "r": ends,
            "x": self._sender.dropped,
        }
        for data in self._datagrams(head):
            self._sender.send(data, stories=0)

    def _datagrams(self, head: dict[str, Any]) -> list[bytes]:
        lookups = {
            kind: [int(each.seconds * 1e6), each.buckets, each.failures]
            for kind, each in self._counters.lookups.items()
        }
        circuits = [
            [kind, label, int(is_open)] for kind, label, is_open in self._counters.circuits()
        ]
        whole = _encode({**head, "q": lookups, "b": circuits}).encode()
        if len(whole) <= LIMIT:
            return [whole]
        pieces: list[tuple[str, str]] = [
            ("q", f"{_encode(kind)}:{_encode(each)}") for kind, each in lookups.items()
        ]
        pieces += [("b", _encode(each)) for each in circuits]
        start = _encode(head)[:-1]
        room = LIMIT - len(start) - len(',"q":{},"b":[]}')
        parts: list[list[tuple[str, str]]] = [[]]
        taken = 0
        for piece in pieces:
            size = len(piece[1]) + 1
            if taken + size > room and parts[-1]:
                parts.append([])
                taken = 0
            parts[-1].append(piece)
            taken += size
        return [
            f'{start},"q":{{{_joined(part, "q")}}},"b":[{_joined(part, "b")}]}}'.encode()
            for part in parts
        ]


def _joined(pieces: list[tuple[str, str]], key: str) -> str:
    return ",".join(text for name, text in pieces if name == key)
