"""filter-rspamd beside Debian's filter of that name, in front of the same daemon.

The daemon is `daemon.c`, which reads what it is asked and always answers the same: what is measured
is the bridge. Its share of a core is one of the figures, so that one can see that it isn't what
limits; so is that of the player.  `measure_real` puts Rspamd itself behind both, which limits.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, cast

from smtpd_filters.testing.rspamd.daemon import Rspamd, unavailable
from tests.bench import compiled
from tests.bench.player import Player
from tests.bench.workloads import lines_of, message, sessions

if TYPE_CHECKING:
    from collections.abc import Callable

    Figures = dict[str, float]

MIB = 1 << 20
CONCURRENT = 50
# As the packages of Debian and OpenBSD have it.
THEIRS = ("/usr/libexec/opensmtpd/filter-rspamd", "/usr/local/libexec/smtpd/filter-rspamd")
# Lines and their width: as little as a message can be, and 20 KB, as mail with a bit of HTML is.
SIZES = {"0.8 KB": (12, 60), "20 KB": (280, 72)}
# 1 MB.
LONG = (13_797, 76)

# What the daemon of Debian 12 says of an unremarkable message, with the default modules.
SYMBOLS = {
    "ARC_NA": 0.0,
    "ASN": 0.0,
    "DMARC_POLICY_ALLOW": -0.5,
    "FROM_HAS_DN": 0.0,
    "MIME_GOOD": -0.1,
    "MIME_TRACE": 0.0,
    "MID_RHS_MATCH_FROM": 0.0,
    "RCPT_COUNT_ONE": 0.0,
    "RCVD_COUNT_TWO": 0.0,
    "RCVD_TLS_ALL": 0.0,
    "R_DKIM_ALLOW": -0.2,
    "R_SPF_ALLOW": -0.2,
    "TO_DN_ALL": 0.0,
    "TO_MATCH_ENVRCPT_ALL": 0.0,
}
# Whatever the real one makes of the workload's message, which is bare, it is accepted.
LENIENT = {
    "actions.conf": "reject = 1000; add_header = 900; greylist = 800;",
    "greylist.conf": "enabled = false;",
    "ratelimit.conf": "enabled = false;",
}
REPLY: dict[str, Any] = {
    "is_skipped": False,
    "score": -1.0,
    "required_score": 15.0,
    "action": "no action",
    "thresholds": {"reject": 15.0, "add header": 6.0, "greylist": 4.0},
    "symbols": {
        name: {
            "name": name,
            "score": score,
            "metric_score": score,
            "description": f"what {name} stands for",
            "options": ["mail.example.net", "example.net"],
        }
        for name, score in SYMBOLS.items()
    },
    "messages": {},
    "message-id": "1@example.net",
    "time_real": 0.012,
    "milter": {"remove_headers": {"X-Spam": 0}},
}


def theirs() -> str | None:
    """Debian's filter-rspamd."""
    return next((path for path in THEIRS if Path(path).exists()), None)


def missing() -> str | None:
    """Return why this can't be measured here; None if it can."""
    if theirs() is None:
        return "needs Debian's opensmtpd-filter-rspamd"
    if compiled.compiler() is None:
        return "needs a C compiler"
    return None


def missing_daemon() -> str | None:
    """Return why the real daemon can't be used here; None if it can."""
    return missing() or unavailable()


def commands(url: str) -> dict[str, list[str]]:
    """The contestants."""
    ours = "import sys; from smtpd_filters.filters.rspamd import main; sys.exit(main())"
    return {
        "ours": [sys.executable, "-c", ours, "-url", url],
        "filter-rspamd": [cast("str", theirs()), "-url", url],
    }


class Daemon:
    """The daemon; a context manager. `url` is the URL for scans."""

    def __enter__(self) -> Self:
        """Build it if need be, and start it."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as reply:
            json.dump(REPLY, reply)
            reply.flush()
            self._process = subprocess.Popen(
                [compiled.program("daemon"), reply.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._output = cast("IO[str]", self._process.stdout)
            self.url = f"http://127.0.0.1:{int(self._output.readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        cast("IO[str]", self._process.stdin).close()
        self._output.close()
        self._process.wait()

    def cpu(self) -> float:
        """CPU seconds that it has used so far."""
        schedstat = Path(f"/proc/{self._process.pid}/schedstat").read_text("ascii")
        return int(schedstat.split()[0]) / 1e9


def measure_sessions(rounds: int, count: int, size: str) -> list[dict[str, Figures]]:
    """Let both filters serve `count` sessions with a message each, 50 at a time, in turns."""
    lines, width = SIZES[size]
    text = message(lines, width)

    def measure(player: Player, daemon: Daemon) -> Figures:
        asked, played, start = daemon.cpu(), time.process_time(), time.perf_counter()
        run = sessions(player, count, CONCURRENT, text)
        seconds = time.perf_counter() - start
        return {
            "sessions/s": run.rate,
            "CPU µs/session": run.cost,
            "p50 µs": run.latency(0.5),
            "p99 µs": run.latency(0.99),
            "daemon's core": (daemon.cpu() - asked) / seconds,
            "player's core": (time.process_time() - played) / seconds,
        }

    return _rounds(rounds, measure)


def measure_real(rounds: int, count: int, size: str) -> list[dict[str, Figures]]:
    """Let both filters serve `count` sessions in front of the real daemon, in turns."""
    text = message(*SIZES[size])
    found = []
    with Rspamd(zone={}, override=LENIENT) as daemon:
        for _ in range(rounds):
            figures = {}
            for name, command in commands(daemon.url).items():
                with Player(command) as player:
                    sessions(player, CONCURRENT, CONCURRENT, message(12))
                    run = sessions(player, count, CONCURRENT, text)
                    figures[name] = {
                        "sessions/s": run.rate,
                        "CPU µs/session": run.cost,
                        "p99 µs": run.latency(0.99),
                    }
            found.append(figures)
    return found


def measure_memory(rounds: int) -> list[dict[str, Figures]]:
    """Let both filters hold 50 messages of 1 MB whose lines take turns."""
    count, width = LONG
    text = message(count, width)

    def measure(player: Player, _daemon: Daemon) -> Figures:
        run = lines_of(player, CONCURRENT, CONCURRENT, text)
        return {
            "peak RSS MiB": peak(player) / MIB,
            "lines/s": run.rate,
            "CPU ns/line": run.cost,
        }

    return _rounds(rounds, measure)


def _rounds(rounds: int, measure: Callable[[Player, Daemon], Figures]) -> list[dict[str, Figures]]:
    found = []
    with Daemon() as daemon:
        for _ in range(rounds):
            figures = {}
            for name, command in commands(daemon.url).items():
                with Player(command) as player:
                    # Imports that wait for the first message, and the first connection.
                    sessions(player, CONCURRENT, CONCURRENT, message(12))
                    figures[name] = measure(player, daemon)
            found.append(figures)
    return found


def peak(player: Player) -> int:
    """Bytes of memory that the filter has had mapped at most."""
    status = Path(f"/proc/{player.pid}/status").read_text("utf-8")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise player.error("no VmHWM in its status")
    return 1024 * int(found[1])
