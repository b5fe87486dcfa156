"""filter-milter beside filter-rspamd, each in front of a daemon that answers at once.

The milter is `milter.c`. It either wants replies to nothing but the end of a message, as Rspamd's
own milter does, or to everything, as most others do: then each field of the header costs a round
trip. `measure_opendkim` measures how long a message takes with and without the bridge in front of
OpenDKIM.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from smtpd_filters.milter import MtaSide, Verdict
from smtpd_filters.milter import vocabulary as v
from tests.bench import compiled, rspamd
from tests.bench.player import Player
from tests.bench.workloads import lines_of, message, sessions

if TYPE_CHECKING:
    from collections.abc import Iterator

    Figures = dict[str, float]

CONCURRENT = 50
#: The protocol bits of the milter: no reply but to the end, or to everything.
SILENT, ANSWERING = 0xFF080, 0x0
#: Lines and their width: a short message, and one of 1 MB.
SHORT, LONG = (12, 60), (13_797, 76)
MB = 1e6


def missing() -> str | None:
    """Return why this can't be measured here; None if it can."""
    return None if compiled.compiler() else "needs a C compiler"


def missing_opendkim() -> str | None:
    """Return why OpenDKIM can't be used here; None if it can."""
    return None if shutil.which("opendkim") else "needs OpenDKIM"


@contextmanager
def milter(bits: int) -> Iterator[str]:
    """Run the milter; yield its address."""
    program = compiled.program("milter")
    with subprocess.Popen(
        [program, f"{bits:x}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        output = cast("IO[str]", process.stdout)
        yield f"inet:{int(output.readline())}@127.0.0.1"
        cast("IO[str]", process.stdin).close()


def command(name: str, *flags: str) -> list[str]:
    """Return the command of a filter."""
    code = f"import sys; from smtpd_filters.filters.{name} import main; sys.exit(main())"
    return [sys.executable, "-c", code, *flags]


def measure_bridge(rounds: int, count: int) -> list[dict[str, Figures]]:
    """Let both filters, and filter-milter with both milters, serve sessions in turns."""
    with milter(SILENT) as silent, milter(ANSWERING) as answering, rspamd.Daemon() as daemon:
        contestants = {
            "filter-rspamd": command("rspamd", "-url", daemon.url),
            "filter-milter": command("milter", "--milter", silent),
            "filter-milter, all answered": command("milter", "--milter", answering),
        }
        return [
            {name: _measured(words, count) for name, words in contestants.items()}
            for _ in range(rounds)
        ]


def _measured(words: list[str], count: int) -> Figures:
    with Player(words) as player:
        sessions(player, CONCURRENT, CONCURRENT, message(12))
        short = sessions(player, count, CONCURRENT, message(*SHORT))
        size = sum(map(len, message(*LONG)))
        long = sessions(player, max(count // 100, 5), 5, message(*LONG))
    return {
        "sessions/s": short.rate,
        "CPU µs/message": short.cost,
        "p99 µs": short.latency(0.99),
        "CPU µs/MB": (long.cost - short.cost) * MB / size,
    }


def measure_memory() -> dict[str, float]:
    """Let the filter hold 50 messages of 1 MB whose lines take turns."""
    with milter(ANSWERING) as address, Player(command("milter", "--milter", address)) as player:
        lines_of(player, CONCURRENT, CONCURRENT, message(*LONG))
        return {"peak RSS MiB": rspamd.peak(player) / rspamd.MIB}


@contextmanager
def _opendkim() -> Iterator[Path]:
    """Run OpenDKIM as a verifier of mail without signatures; yield its socket."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "socket"
        conf = Path(name) / "conf"
        conf.write_text(
            f"Mode v\nSyslog no\nBackground no\nUserID root\nSocket local:{path}\n"
            f"TestPublicKeys {conf}\n"
        )
        process = subprocess.Popen([str(shutil.which("opendkim")), "-f", "-x", conf])
        try:
            while not _accepts(path):
                time.sleep(0.01)
            yield path
        finally:
            process.kill()
            process.wait()


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as link:
        return link.connect_ex(str(path)) == 0


def measure_opendkim(rounds: int, count: int) -> list[dict[str, Figures]]:
    """Send messages one at a time, through the bridge and straight to OpenDKIM."""
    lines = list(message(*SHORT))
    found = []
    with _opendkim() as path:
        for _ in range(rounds):
            with Player(command("milter", "--milter", f"unix:{path}")) as player:
                sessions(player, 5, 1, message(12))
                start = time.perf_counter()
                sessions(player, count, 1, message(*SHORT))
                bridged = (time.perf_counter() - start) / count
            with Player(command("trace", "--detail", "headers")) as player:
                sessions(player, 5, 1, message(12))
                start = time.perf_counter()
                sessions(player, count, 1, message(*SHORT))
                without = (time.perf_counter() - start) / count
            start = time.perf_counter()
            for _ in range(count):
                _talk(path, lines)
            direct = (time.perf_counter() - start) / count
            added = bridged - without - direct
            found.append(
                {
                    "OpenDKIM": {
                        "bridged ms": 1000 * bridged,
                        "direct ms": 1000 * direct,
                        "without ms": 1000 * without,
                        "added ms": 1000 * added,
                    }
                }
            )
    return found


def _talk(path: Path, lines: list[bytes]) -> None:
    """Send a message to a milter as directly as possible."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(path))
        mta = MtaSide()
        end = lines.index(b"")
        fields: list[list[bytes]] = []
        for line in lines[:end]:
            if line.startswith((b" ", b"\t")):
                fields[-1].append(line)
            else:
                fields.append([line])
        _ask(link, mta, mta.negotiate())
        _ask(link, mta, mta.connect(b"mail.example.net", b"4", 25, b"192.0.2.9"))
        _ask(link, mta, mta.helo(b"mail.example.net"))
        _ask(link, mta, mta.mail(b"<alice@example.net>"))
        _ask(link, mta, mta.rcpt(b"<bob@example.org>"))
        _ask(link, mta, mta.data())
        for name, _, value in (b"\n".join(field).partition(b":") for field in fields[1:]):
            _ask(link, mta, mta.header(name, value))
        _ask(link, mta, mta.end_of_header())
        _ask(link, mta, mta.body(b"\r\n".join([*lines[end + 1 :], b""])))
        _ask(link, mta, mta.end_of_body())
        link.sendall(mta.abort() + mta.quit())


def _ask(link: socket.socket, mta: MtaSide, sent: bytes) -> None:
    if sent:
        link.sendall(sent)
    while mta.waiting:
        answer = mta.answer()
        if answer is None:
            mta.receive(link.recv(1 << 16))
        elif isinstance(answer, Verdict):
            assert answer.command in {v.CONTINUE, v.ACCEPT, v.SKIP}
