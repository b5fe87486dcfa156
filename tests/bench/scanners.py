"""The bridges to scanners side by side: what each costs its process for a message and for a MB.

Behind each is a stub that answers at once, so that only the bridge is measured: processor time, not
the time until an answer, which depends on the stub. A further bridge is a further context manager
in `BRIDGES`, which yields its command.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, cast

from tests.bench import compiled, rspamd
from tests.bench.player import ROOT, Player
from tests.bench.workloads import message, sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    Figures = dict[str, float]
    Bridge = Callable[[], AbstractContextManager[list[str]]]

MIB = 1 << 20
#: What the others are compared with.
REFERENCE = "filter-rspamd"
#: Lines and their width: a short message, and one of 1 MB.
SHORT, LONG = (12, 60), (13_797, 76)
CONCURRENT = 50


def missing() -> str | None:
    """Return why this can't be measured here; None if it can."""
    return None if compiled.compiler() else "needs a C compiler"


def command(name: str, *flags: str) -> list[str]:
    """The command of one of our filters, started as an installed script would be."""
    code = f"import sys; from smtpd_filters.filters.{name} import main; sys.exit(main())"
    return [sys.executable, "-c", code, *flags]


@contextmanager
def our_rspamd() -> Iterator[list[str]]:
    """filter-rspamd and its stub."""
    with rspamd.Daemon() as daemon:
        yield command("rspamd", "-url", daemon.url)


@contextmanager
def our_clamav() -> Iterator[list[str]]:
    """filter-clamav and its stub, with as many connections as filter-rspamd."""
    with stub("clamd") as address:
        yield command("clamav", "--clamd", address, "--connections", "64")


@contextmanager
def our_spamd() -> Iterator[list[str]]:
    """filter-spamd and its stub, with as many connections, and messages of any size."""
    with stub("spamd") as address:
        flags = ("--spamd", address, "--connections", "64", "--max-size", "25M")
        yield command("spamd", *flags)


@contextmanager
def our_policy() -> Iterator[list[str]]:
    """filter-policy and its stub: a request for the recipient, and the header for a PREPEND."""
    with stub("policy") as address:
        yield command("policy", "--server", address, "--connections", "64")


BRIDGES: dict[str, Bridge] = {
    REFERENCE: our_rspamd,
    "filter-clamav": our_clamav,
    "filter-spamd": our_spamd,
    "filter-policy": our_policy,
}


@contextmanager
def stub(name: str) -> Iterator[str]:
    """Run a stub of this module as a process; yield its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.scanners", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    output = cast("IO[str]", process.stdout)
    try:
        yield output.readline().strip()
    finally:
        cast("IO[str]", process.stdin).close()
        output.close()
        process.wait()


def measure(
    rounds: int, count: int, bridges: dict[str, Bridge] = BRIDGES
) -> list[dict[str, Figures]]:
    """Let each bridge serve `count` short messages, and a few large ones, in turns."""
    short, long = message(*SHORT), message(*LONG)
    size = sum(len(line) + 2 for line in long) / MIB
    few = max(count // 100, 4)
    found = []
    with ExitStack() as stack:
        commands = {name: stack.enter_context(make()) for name, make in bridges.items()}
        for _ in range(rounds):
            figures = {}
            for name, each in commands.items():
                with Player(each) as player:
                    # Imports that wait for the first message, and the first connections.
                    sessions(player, CONCURRENT, CONCURRENT, short)
                    small = sessions(player, count, CONCURRENT, short)
                    large = sessions(player, few, min(few, 8), long)
                    figures[name] = {
                        "CPU µs/message": small.cost,
                        "CPU ms/MB": (large.cost - small.cost) / size / 1000,
                        "messages/s": small.rate,
                        "p99 µs": small.latency(0.99),
                        "peak RSS MiB": rspamd.peak(player) / MIB,
                    }
            found.append(figures)
    return found


class Clamd(asyncio.Protocol):
    """clamd's INSTREAM, without a look at the message: all bytes are counted, and found clean."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the command."""
        self._transport = cast("asyncio.Transport", transport)
        self._skip = len(b"zINSTREAM\0")
        self._head = b""

    def data_received(self, data: bytes) -> None:
        """Go from length to length; answer the empty chunk."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            head = self._head + data[at : at + 4 - len(self._head)]
            at += len(head) - len(self._head)
            self._head = head
            if len(head) == 4:
                self._skip, self._head = int.from_bytes(head, "big"), b""
                if not self._skip:
                    self._transport.write(b"stream: OK\0")
                    self._transport.close()
                    return


class Spamd(asyncio.Protocol):
    """spamd's HEADERS, without a look at the message: the end of the input is answered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with a request."""
        self._transport = cast("asyncio.Transport", transport)

    def eof_received(self) -> None:
        """Answer, and close."""
        body = b"X-Spam-Status: No, score=0.0 required=5.0 tests=NONE\n\n"
        head = b"SPAMD/1.1 0 EX_OK\r\nContent-length: %d\r\nSpam: False ; 0.0 / 5.0\r\n\r\n"
        self._transport.write(head % len(body) + body)


class Policy(asyncio.Protocol):
    """A policy server that has no objection: the empty line behind a request is answered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._end = b""

    def data_received(self, data: bytes) -> None:
        """Answer a request at its end, which may come in pieces."""
        self._end = (self._end + data)[-2:]
        if self._end == b"\n\n":
            self._transport.write(b"action=DUNNO\n\n")


STUBS: dict[str, type[asyncio.Protocol]] = {"clamd": Clamd, "spamd": Spamd, "policy": Policy}


async def serve(protocol: type[asyncio.Protocol]) -> None:
    """Serve at a free port until the input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=128)
    host, port = server.sockets[0].getsockname()
    sys.stdout.write(f"{host}:{port}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(STUBS[sys.argv[1]]))
