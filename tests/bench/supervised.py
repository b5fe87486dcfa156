"""The cost of filter-supervise: a filter alone and supervised, in turns, and two workers of one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tests.bench.player import Player
from tests.bench.workloads import Lines, Sessions, lines_of, message, sessions

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Sessions at a time.
CONCURRENT = 50
ALONE, SUPERVISED, TWO = "alone", "supervised", "two workers"


def supervised(command: Sequence[str], *flags: str) -> list[str]:
    """The command, supervised."""
    start = "from smtpd_filters.supervise.program import main; main()"
    return [sys.executable, "-c", start, *flags, *command]


def pair(command: Sequence[str]) -> dict[str, list[str]]:
    """The contestants: a command alone and supervised."""
    return {ALONE: list(command), SUPERVISED: supervised(command)}


def measure_lines(command: Sequence[str], messages: int, lines: int) -> dict[str, Lines]:
    """Play messages to the filter alone and supervised."""
    text = message(lines)
    found = {}
    for name, words in pair(command).items():
        with Player(words) as player:
            lines_of(player, CONCURRENT, CONCURRENT, text)  # warm
            found[name] = lines_of(player, messages, CONCURRENT, text)
    return found


def measure_sessions(command: Sequence[str], count: int) -> dict[str, Sessions]:
    """Play sessions to the filter alone and supervised."""
    text = message(12)
    found = {}
    for name, words in pair(command).items():
        with Player(words) as player:
            sessions(player, count // 10, CONCURRENT, text)  # warm
            found[name] = sessions(player, count, CONCURRENT, text)
    return found


def measure_workers(command: Sequence[str], count: int) -> dict[str, Sessions]:
    """Play sessions to one worker and to two; the command spends processor time."""
    text = message(12)
    found = {}
    contestants = {
        SUPERVISED: supervised(command),
        TWO: supervised(command, "--workers", "2"),
    }
    for name, words in contestants.items():
        with Player(words) as player:
            while player.logged("supervise ready") < (2 if name == TWO else 1):
                sessions(player, CONCURRENT, CONCURRENT, text)
            sessions(player, count // 2, CONCURRENT, text)  # warm
            found[name] = sessions(player, count, CONCURRENT, text)
    return found


def memory(command: Sequence[str]) -> tuple[int, int]:
    """Bytes of memory of the supervisor itself, after some sessions: its own, and all."""
    with Player(supervised(command)) as player:
        sessions(player, 500, CONCURRENT, message(12))
        return player.memory()
