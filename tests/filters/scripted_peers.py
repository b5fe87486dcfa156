"""Scripted peers of filters, in a process of their own: their memory isn't the filter's.

Run as a program with the name of a filter, it writes the peer's address to its output, and ends
with its input.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from smtpd_filters.milter import AddHeader, ChangeHeader, InsertHeader, Verdict
from smtpd_filters.milter import vocabulary as v
from smtpd_filters.testing.rspamd.stub import CLEAN, RspamdStub
from tests.filters.clamav.stub import FOUND, Clamd
from tests.filters.milter.stub import milter
from tests.filters.spamd import stub as spamd
from tests.filters.spamd.stub import Answer, SpamdStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

#: Edits of each kind, of fields that hostile messages have many of.
SPAM = {
    **CLEAN,
    "action": "add header",
    "milter": {
        "remove_headers": {"A": 2, "To": [1, -1], "Received": -1, "X-Spam": 0, "Subject": 3},
        "add_headers": {
            "X-Top": {"value": "a", "order": 1},
            "X-Last": {"value": "b", "order": -2},
            "X-Bottom": "c",
        },
    },
}
EDITS = (
    AddHeader(b"X-Bottom", b"a"),
    InsertHeader(1, b"X-Top", b"b"),
    InsertHeader(9_000, b"X-Middle", b"c"),
    ChangeHeader(2, b"A", b""),
    ChangeHeader(9_000, b"To", b"d"),
    ChangeHeader(1, b"Subject", b"e"),
)


@contextmanager
def _rspamd() -> Iterator[str]:
    with RspamdStub(SPAM) as server:
        yield server.url


@contextmanager
def _clamd() -> Iterator[str]:
    with Clamd(FOUND) as server:
        yield server.address


@contextmanager
def _spamd() -> Iterator[str]:
    with SpamdStub(Answer(spamd.spam)) as server:
        yield server.server


@contextmanager
def _milter() -> Iterator[str]:
    said = b"".join(each.encode() for each in (*EDITS, Verdict(v.CONTINUE)))
    with milter(answers={v.END_OF_BODY: said}) as server:
        yield server.address


PEERS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "clamav": _clamd,
    "milter": _milter,
    "rspamd": _rspamd,
    "spamd": _spamd,
}


@contextmanager
def peer(name: str) -> Iterator[str]:
    """Run the peer of a filter; yield its address."""
    command = [sys.executable, "-m", __name__, name]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
    assert not process.returncode


if __name__ == "__main__":
    with PEERS[sys.argv[1]]() as address:
        sys.stdout.write(f"{address}\n")
        sys.stdout.flush()
        sys.stdin.read()
