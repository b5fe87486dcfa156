"""No bytes from clamd raise anything but an invalid reply, or count as clean but the right ones.

`python -m tests.fuzz clamd` runs it under atheris. The first byte is the size of the pieces in
which the rest arrives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from smtpd_filters.filters.clamav import exchange
from smtpd_filters.filters.clamav.protocol import LONGEST
from smtpd_filters.lookups.failover.failures import BadReplyError
from smtpd_filters.lookups.stream.connection import LostError
from smtpd_filters.scanning.outcomes import LONGEST as LONGEST_NAME

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator, Iterable
    from pathlib import Path

    from smtpd_filters.lookups.stream.connection import Connection
    from smtpd_filters.scanning.intake import Content

CLEAN = b"stream: OK\0"


class _Connection:
    """A connection of which the exchange reads pieces; `most` is what it has been given."""

    def __init__(self, stream: bytes, step: int) -> None:
        self._stream, self._step = stream, step
        self.given = 0
        self.early = False

    async def send(self, chunks: Iterable[bytes]) -> bool:
        return all(chunks)

    async def read(self, limit: int) -> bytes:
        piece = self._stream[self.given :][: min(limit, self._step)]
        self.given += len(piece)
        return piece


class _Content:
    def chunks(self) -> Iterable[bytes]:
        return iter((b"Subject: x\r\n", b"\r\n"))


def fuzz(data: bytes) -> None:
    """Read the bytes as a reply to a scan."""
    size, stream = data[:1], data[1:]
    connection = _Connection(stream, (size[0] if size else 0) or len(stream) or 1)
    scan = exchange.scan(cast("Content", _Content()))(cast("Connection", connection))
    try:
        found = _run(scan)
    except (BadReplyError, LostError):
        found = None
    assert connection.given <= 2 * LONGEST
    if found == "":
        assert stream.startswith(CLEAN)
    elif found is not None:
        assert found.isascii()
        assert found.isprintable()
        assert len(found) <= LONGEST_NAME
        assert stream.startswith(b"stream: ")


def _run(scan: Awaitable[str]) -> str:
    """Run an exchange, which never waits here."""
    steps = cast("Generator[Any, None, str]", scan.__await__())
    try:
        next(steps)
    except StopIteration as end:
        return str(end.value)
    raise AssertionError("it waits")


def seeds() -> list[bytes]:
    """Return valid inputs."""
    replies = (
        CLEAN, b"stream: Win.Test.EICAR_HDB-1 FOUND\0", b"COMMAND READ TIMED OUT\n",
        b"INSTREAM size limit exceeded. ERROR\0", b"UNKNOWN COMMAND\0",
    )  # fmt: skip
    return [b"%c%b" % (at, reply) for at, reply in enumerate(replies)]


def corpus(directory: Path) -> None:
    """Write the seeds."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (directory / f"clamd-{number}").write_bytes(seed)
