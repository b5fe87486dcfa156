"""A storm: clients that send mail, while the program of a supervised filter is made to fail."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

from tests.e2e.load import Load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.load import Result

#: What happens to a program, by signals: those of `tests/supervise/misbehaving.py` besides.
ENDS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
STOPS = (*ENDS, signal.SIGSTOP)
MISBEHAVES = (*STOPS, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


class Storm(Load):
    """`marker` is in the command line of the programs that fail, but not of their supervisor."""

    def __init__(
        self, server: Smtpd, marker: str, signals: Sequence[int], *, seed: int = 1
    ) -> None:
        super().__init__(server)
        self.marker, self.signals = marker, signals
        self._chance = random.Random(seed)  # noqa: S311  # the same storm in every run
        #: When each program fails, by its process.
        self._lives: dict[int, float] = {}

    def blow(self, faults: int, *, clients: int = 20, pause: float = 1.0) -> Result:
        """Cause so many faults under the load of clients; a program lives `pause` s on average."""
        with self.clients(clients):
            while self.result.faults < faults and self.server.alive():
                self.fail(pause)
                self._over.wait(0.05)
        return self.result

    def reload(self, times: int, *, clients: int = 20) -> Result:
        """Have the programs replaced so often under the load of clients, each time completely."""
        supervisor = next(
            process
            for process in self.server.find("filter-supervise")
            if process.arguments[:2] != ["sh", "-c"]
        )
        with self.clients(clients):
            for _ in range(times):
                lines = len(self.server.log)
                os.kill(supervisor.pid, signal.SIGHUP)
                self.server.wait_for("supervise reload result=ok", since=lines)
        return self.result

    def fail(self, pause: float) -> None:
        """Make the programs fail whose time has come: some before they are ready."""
        now = time.monotonic()
        for process in self.server.find(self.marker):
            words = process.arguments
            if "filter-supervise" in " ".join(words) or words[:2] == ["sh", "-c"]:
                continue
            life = self._lives.setdefault(process.pid, now + self._chance.uniform(0, 2 * pause))
            if now < life:
                continue
            try:
                os.kill(process.pid, self._chance.choice(self.signals))
            except ProcessLookupError:
                continue
            # One that survives it is hit again.
            self._lives[process.pid] = now + self._chance.uniform(0, 2 * pause)
            self.result.faults += 1
