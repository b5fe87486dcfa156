"""The cost of filter-supervise: a filter alone and supervised, in turns, and two workers of one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tests.bench import compiled
from tests.bench.player import Player
from tests.bench.workloads import Lines, Sessions, lines_of, message, sessions

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Sessions at a time.
CONCURRENT = 50
ALONE, SUPERVISED, TWO = "alone", "supervised", "two workers"
#: Behind a process in C that only copies bytes: what any process in between costs.
COPIED = "copied"


def supervised(command: Sequence[str], *flags: str) -> list[str]:
    """The command, supervised."""
    start = "from smtpd_filters.supervise.program import main; main()"
    return [sys.executable, "-c", start, *flags, *command]


def contestants(command: Sequence[str]) -> dict[str, list[str]]:
    """A command alone, supervised, and with a C compiler behind a process that copies bytes."""
    copied = {COPIED: [compiled.program("relay"), *command]} if compiled.compiler() else {}
    return {ALONE: list(command), SUPERVISED: supervised(command), **copied}


def measure_lines(command: Sequence[str], messages: int, lines: int) -> dict[str, Lines]:
    """Play messages to the filter and to what stands before it."""
    text = message(lines)
    found = {}
    for name, words in contestants(command).items():
        with Player(words) as player:
            lines_of(player, CONCURRENT, CONCURRENT, text)  # warm
            found[name] = lines_of(player, messages, CONCURRENT, text)
    return found


def measure_sessions(command: Sequence[str], count: int) -> dict[str, Sessions]:
    """Play sessions to the filter and to what stands before it."""
    text = message(12)
    found = {}
    for name, words in contestants(command).items():
        with Player(words) as player:
            sessions(player, count // 10, CONCURRENT, text)  # warm
            found[name] = sessions(player, count, CONCURRENT, text)
    return found


def measure_workers(command: Sequence[str], count: int) -> dict[str, Sessions]:
    """Play sessions to a command that spends processor time: alone, to one worker, and to two."""
    text = message(12)
    found = {}
    playing = {
        ALONE: list(command),
        SUPERVISED: supervised(command),
        TWO: supervised(command, "--workers", "2"),
    }
    for name, words in playing.items():
        ready = {ALONE: 0, SUPERVISED: 1, TWO: 2}[name]
        with Player(words) as player:
            while player.logged("supervise ready") < ready:
                sessions(player, CONCURRENT, CONCURRENT, text)
            sessions(player, count // 2, CONCURRENT, text)  # warm
            found[name] = sessions(player, count, CONCURRENT, text)
    return found


def memory(command: Sequence[str]) -> tuple[int, int]:
    """Bytes of memory of the supervisor itself, after some sessions: its own, and all."""
    with Player(supervised(command)) as player:
        sessions(player, 500, CONCURRENT, message(12))
        return player.memory()
