"""The waiting time of a session, and the memory, while other sessions send any kind of mail.

smtpd's side of one filter: sessions flood it with mail of one kind while a session of somebody else
asks every 50 ms.  What counts is the longest that this one waits for its answer, and the most
memory that the filter ever had.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters.testing.dns import DNSServer
from tests.bench.player import CONFIG, PATIENCE, ROOT, MisbehaviourError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Self

#: Seconds between two requests of the measured session.
BEAT = 0.05
#: As much as a stream socket takes at a time.
PIECE = 1 << 17
TOKEN = b"7c0ffee5ca1ab1e5"
CLEAN = b"00000000deadbeef"
#: The phases of the requests to a filter, and their arguments.
QUESTIONS = (("noop", b""), ("mail-from", b"alice@example.net"), ("commit", b""))
HEAD = [b"Received: from x", b"From: alice@example.net", b"Subject: x"]
#: Bytes that smtpd reads back in a second: a real one reads 65,000 lines of any length.
SLOW = 15_000_000


@dataclass(frozen=True)
class Kind:
    """A kind of mail: the lines before the end of the header, and after it."""

    header: bytes | None = None
    body: bytes | None = None
    #: Bytes that are read in a second; 0 for as many as there are.
    rate: int = 0


KINDS = {
    "empty lines": Kind(body=b""),
    "lines of a byte": Kind(body=b"x"),
    "lines of dots": Kind(body=b".." * 30),
    "lines of 64 KiB": Kind(body=b"x" * 65_000),
    "ordinary lines": Kind(body=b"x" * 70),
    "empty fields": Kind(header=b"a:"),
    "long fields": Kind(header=b"X: " + b"word " * 190),
    "edited headers": Kind(header=b"X-SenderScore: 1"),
    "a slow reader": Kind(body=b"x" * 998, rate=SLOW),
}


class Flood:
    """One running filter, and smtpd's end of its socket."""

    def __init__(self, command: Sequence[str], log: int = subprocess.DEVNULL) -> None:
        """Start the filter; `log` is the descriptor that it logs to."""
        self._socket, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            command,
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=log,
            cwd=ROOT,
        )
        theirs.close()
        self._socket.settimeout(0)
        self._out: deque[bytes] = deque()
        self._tail = b""
        self._asked = self._next = 0.0
        self._question: tuple[str, bytes] | None = None
        self.registered: set[str] = set()
        #: The longest wait so far, in seconds.
        self.longest = 0.0
        #: How often the session was answered, and messages came back.
        self.answered = self.returned = 0
        self._began = time.monotonic()
        self._taken = 0
        self._clock = itertools.count(1_700_000_000_000_000)

    def __enter__(self) -> Self:
        """Shake hands."""
        self._out.append(CONFIG)
        self._until(lambda: "ready" in self.registered)
        self._question = next(each for each in QUESTIONS if each[0] in self.registered)
        self.connect(CLEAN)
        return self

    def __exit__(self, *_: object) -> None:
        """End the filter."""
        self._socket.close()
        if self._process.wait(PATIENCE):
            raise MisbehaviourError(f"exit status {self._process.returncode}")

    def memory(self) -> float:
        """The peak memory of the filter, in MiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text("ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def connect(self, session: bytes) -> None:
        """Begin another session."""
        where = b"mail.example.net|pass|203.0.113.9:4711|192.0.2.1:25"
        self._out.append(self._event(b"report", b"link-connect", session, where))

    def send(self, sessions: Sequence[bytes], lines: Iterable[bytes], *, rate: int = 0) -> None:
        """Send a line of each session in turns, as fast as the filter takes them.

        `rate` is the number of bytes read in a second; 0 for no limit.
        """
        heads = [self._event(b"filter", b"data-line", each, TOKEN) for each in sessions]
        heads = [head[:-1] + b"|" for head in heads]
        for piece in _pieces(heads, lines):
            self._out.append(piece)
            while len(self._out) > 2:
                self._pump(rate)

    def flush(self, messages: int, *, rate: int = 0) -> None:
        """Continue until everything is sent and this many messages have been returned."""
        self._until(lambda: not self._out and self.returned >= messages, rate)

    def hang_up(self) -> None:
        """Have it reload its tables."""
        self._process.send_signal(signal.SIGHUP)

    def serve_until(self, done: Callable[[], object]) -> None:
        """Send requests of the measured session until a condition holds."""
        while not done():
            self._pump()
            if time.monotonic() - self._asked > PATIENCE and self._asked:
                raise MisbehaviourError(f"no answer for {PATIENCE:.0f} s")

    def _until(self, done: object, rate: int = 0) -> None:
        quiet = time.monotonic() + PATIENCE
        while not done():  # type: ignore[operator]
            if self._pump(rate):
                quiet = time.monotonic() + PATIENCE
            elif time.monotonic() > quiet:
                raise MisbehaviourError(f"nothing moves for {PATIENCE:.0f} s")

    def _pump(self, rate: int = 0) -> bool:
        """Write and read as much as possible now; return whether anything was moved."""
        now = time.monotonic()
        if self._question and not self._asked and now >= self._next:
            phase, argument = self._question
            said = b"%b|%b" % (TOKEN, argument)
            self._out.append(self._event(b"filter", phase.encode(), CLEAN, said))
            self._asked, self._next = now, now + BEAT
        held = rate and self._taken > rate * (now - self._began)
        sources = [] if held else [self._socket]
        ready = select.select(sources, [self._socket] if self._out else [], [], 0.005)
        if ready[1]:
            data = self._out.popleft()
            sent = self._socket.send(data[:PIECE])
            if sent < len(data):
                self._out.appendleft(data[sent:])
        if ready[0]:
            self._read()
        return bool(ready[0] or ready[1])

    def _read(self) -> None:
        data = self._socket.recv(1 << 18)
        if not data:
            raise MisbehaviourError("the filter has ended")
        self._taken += len(data)
        data = self._tail + data
        cut = data.rfind(b"\n") + 1
        self._tail = data[cut:]
        if self._question is None:
            self.registered |= {row.rpartition("|")[2] for row in data.decode().splitlines()}
            return
        if data.find(CLEAN, 0, cut) >= 0:
            self.longest = max(self.longest, time.monotonic() - self._asked)
            self._asked = 0.0
            self.answered += 1
        self.returned += data.count(b"|.\n", 0, cut)

    def restart_clock(self) -> None:
        """Begin to read at a rate."""
        self._began, self._taken = time.monotonic(), 0

    def _event(self, word: bytes, name: bytes, session: bytes, rest: bytes) -> bytes:
        stamp = b"%d.%06d" % divmod(next(self._clock), 1_000_000)
        return b"|".join((word, b"0.7", stamp, b"smtp-in", name, session, rest)) + b"\n"


def _pieces(heads: Sequence[bytes], lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of several sessions, in pieces of about `PIECE` bytes."""
    rows: list[bytes] = []
    size = 0
    for line in lines:
        for head in heads:
            rows.append(head + line)
            size += len(head) + len(line) + 1
            if size >= PIECE:
                yield b"\n".join([*rows, b""])
                rows, size = [], 0
    if rows:
        yield b"\n".join([*rows, b""])


def measure(command: Sequence[str], kind: Kind, sessions: int, size: int) -> dict[str, float]:
    """Send messages of this kind and size in this many sessions at once."""
    with Flood(command) as flood:
        keys = [b"%016x" % (0x1000 + number) for number in range(sessions)]
        for key in keys:
            flood.connect(key)
        flood.send(keys, HEAD)
        # smtpd counts a line with the two bytes of its end.
        if kind.header is not None:
            flood.send(keys, itertools.repeat(kind.header, size // (len(kind.header) + 2)))
            flood.flush(0)
        flood.restart_clock()
        flood.send(keys, [b""], rate=kind.rate)
        if kind.body is not None:
            body = itertools.repeat(kind.body, size // (len(kind.body) + 2))
            flood.send(keys, body, rate=kind.rate)
            flood.flush(0, rate=kind.rate)
        flood.send(keys, [b"."], rate=kind.rate)
        flood.flush(sessions, rate=kind.rate)
        return {
            "longest wait, ms": flood.longest * 1000,
            "peak RSS MiB": flood.memory(),
            "answers": flood.answered,
        }


def reload(entries: int, times: int) -> dict[str, float]:
    """Reload a table of this many domains while a session is served."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        # Written beforehand: answers are not read while a file is written.
        table, *others = (Path(folder, f"table{number}") for number in range(times + 1))
        for path in (table, *others):
            names = (f"n{each}.{path.name}.example\n" for each in range(entries))
            path.write_text("".join(names), "ascii")
        run = "import sys; from smtpd_filters.filters.mailfrom import main; sys.exit(main())"
        command = [sys.executable, "-c", run, "--domains", f"file:{table}"]
        with log.open("wb") as sink, Flood(command, sink.fileno()) as flood:
            for number, other in enumerate(others, 1):
                other.replace(table)
                flood.hang_up()
                flood.serve_until(lambda number=number: _reloads(log) == number)  # type: ignore[misc]
            return {
                "longest wait, ms": flood.longest * 1000,
                "peak RSS MiB": flood.memory(),
                "answers": flood.answered,
            }


def _reloads(log: Path) -> int:
    return log.read_bytes().count(b"reload table=domains result=ok ")


#: Scores that are forgotten soon: a header that takes longer to come waits for its score.
ZONE = {"*.score.example": {"A": ["127.0.4.50"], "ttl": 0}}


def commands(url: str, nameserver: str) -> dict[str, tuple[list[str], float]]:
    """Return the filters to flood, with the memory limit of each in MiB.

    `url` is that of a daemon with Rspamd's interface, `nameserver` serves `ZONE`.
    """
    run = "import sys; from smtpd_filters.filters.{} import main; sys.exit(main())"
    mailfrom = ["--domains", "example.org", "--check-header", "--check-display"]
    score = ["-scoreHeader", "--zone", "score.example", "--nameserver", nameserver]
    return {
        "mailfrom": ([sys.executable, "-c", run.format("mailfrom"), *mailfrom], 128),
        "senderscore": ([sys.executable, "-c", run.format("senderscore"), *score], 128),
        "rspamd": ([sys.executable, "-c", run.format("rspamd"), "-url", url], 192),
    }


if __name__ == "__main__":
    # By hand: FILTER KIND SESSIONS BYTES, with a daemon of rspamd's kind at URL.
    name, kind_name, count, bytes_ = sys.argv[1:5]
    url = os.environ.get("URL", "http://127.0.0.1:11333")
    with DNSServer(ZONE) as server:
        command, _ = commands(url, f"{server.address}:{server.port}")[name]
        print(measure(command, KINDS[kind_name], int(count), int(bytes_)))
