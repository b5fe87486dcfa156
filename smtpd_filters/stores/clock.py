"""The clock of a store in a file: steady, and the same for all processes of this machine.

Entries of a file outlive a restart of the machine, so their expiry can't be a time of the monotonic
clock. The wall clock jumps: at start on a machine without a battery, by an operator's mistake, by a
leap of NTP. If every entry expired by such a jump, an exchanger would forget all its correspondents
at once; if entries stopped expiring, a client could stay refused for years.

So the file has an `Epoch`: which boot of the machine it is for, and the difference between the
store's clock and the monotonic clock during that boot. The first process after a boot sets it from
the wall clock, but never so that the store's clock goes back, or goes on by more than `OFF`: the
wall clock may be years ahead then. During a boot jumps of the wall clock have no effect.
"""

from __future__ import annotations

import time
from functools import cache
from typing import NamedTuple

#: Linux has an identifier of the boot; elsewhere one is recognised by the monotonic clock.
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
#: The longest time, in seconds, that passes from one boot to the next; after a longer one entries
#: live longer. Without an identifier of the boot any time may pass.
OFF = 7 * 86400.0


class Times(NamedTuple):
    """The clocks of this machine, in seconds, and the identifier of its boot, "" if unknown."""

    boot: str
    monotonic: float
    wall: float


class Epoch(NamedTuple):
    """What a file knows of the time."""

    boot: str
    #: The store's clock less the monotonic clock.
    offset: float
    #: A time of the store's clock that has passed.
    passed: float

    def now(self, times: Times) -> float:
        """Return the time of the store's clock, if the epoch is of this boot."""
        return times.monotonic + self.offset


def epoch(times: Times, stored: Epoch | None) -> Epoch:
    """Return the epoch for this boot: the stored one if it is of this boot, else a new one."""
    if stored is None:
        return Epoch(times.boot, times.wall - times.monotonic, times.wall)
    now = stored.now(times)
    # Without an identifier this may be another boot, in which the monotonic clock has already come
    # further. Then the wall clock is ahead.
    same = stored.boot == times.boot and (times.boot != "" or times.wall <= now + _SLACK)
    if same and now >= stored.passed:
        return stored
    start = max(times.wall, stored.passed)
    if times.boot:
        start = min(start, stored.passed + OFF)
    return Epoch(times.boot, start - times.monotonic, start)


#: Without an identifier of the boot: seconds that the wall clock may be ahead in the same boot.
_SLACK = 300.0


def read_times() -> Times:
    """Read the clocks of this machine."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # counts while suspended
    return Times(boot_id(), time.clock_gettime(clock), time.time())


@cache
def boot_id() -> str:
    """Return the identifier of this boot, or "" if the system has none."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:  # noqa: PTH123  # one line
            return file.readline().strip()
    except (OSError, ValueError):
        return ""
