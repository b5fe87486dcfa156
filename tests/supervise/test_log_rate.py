"""The log of a supervised program: how much of it is logged, and what says that some is not."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.runtime.log import MAX_LINE, Log
from smtpd_filters.supervise.process import BURST, LAST, RATE, STDERR, LogRate, Process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOTE = re.compile("filter-x log lines dropped lines=([0-9]+)")


class Written:
    """A log on a file, and what is in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.log = Log(fd=self._fd)
        self.rate = LogRate(self.log, "filter-x")

    def close(self) -> None:
        os.close(self._fd)

    def all(self) -> list[str]:
        return self._path.read_text().splitlines()

    def notes(self) -> list[int]:
        return [int(found[1]) for line in self.all() if (found := NOTE.fullmatch(line))]

    def lines(self) -> list[str]:
        return [line for line in self.all() if not NOTE.fullmatch(line)]


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    found = Written(tmp_path / "log")
    yield found
    found.close()


@pytest.mark.parametrize("reads", [1, 100])
def test_dropped_lines_are_noted_once_a_second(written: Written, reads: int) -> None:
    """A program that writes 2,000 lines a second, which are read at once or in many reads."""
    count = 0
    for step in range(10 * reads):
        lines = [b"line %d" % number for number in range(count, count + 2000 // reads)]
        written.rate.write(lines, 5.0 + step / reads)
        count += len(lines)
    written.rate.finish()
    logged = written.lines()
    assert BURST + 9 * RATE <= len(logged) <= BURST + 10 * RATE + LAST
    assert logged[-1] == f"line {count - 1}"
    notes = written.notes()
    assert 9 <= len(notes) <= 11
    assert sum(notes) + len(logged) == count


def test_the_first_gap_is_noted_with_the_next_line(written: Written) -> None:
    written.rate.write([b"first"] * (BURST + 3), 5.0)
    written.rate.write([b"second"], 5.1)
    assert written.all()[BURST:] == ["filter-x log lines dropped lines=3", "second"]


def test_a_count_held_back_is_noted_at_the_end(written: Written) -> None:
    written.rate.write([b"x"] * (BURST + 3), 5.0)
    written.rate.write([b"x"] * 7, 5.125)
    written.rate.write([b"last"], 5.25)
    assert written.notes() == [3]
    written.rate.finish()
    assert written.notes() == [3, 1]
    assert written.lines()[-1] == "last"


def test_a_quiet_program_gets_no_note(written: Written) -> None:
    for second in range(100):
        written.rate.write([b"x"] * RATE, float(second))
    written.rate.finish()
    assert written.all() == ["x"] * 100 * RATE


@pytest.mark.processes
@pytest.mark.parametrize("text", [b"x", b"\\377", b"\\000"])
def test_a_line_of_any_length_is_logged_in_bounded_ones(written: Written, text: bytes) -> None:
    """smtpd stops reading a filter's log for good at a line of 64 KiB."""
    program = Process(f'sh -c \'head -c 200000 /dev/zero | tr "\\0" "{text.decode()}" >&2\'')
    try:
        os.set_blocking(program.stderr, True)
        while (lines := program.log_lines()) is not None:
            assert all(len(line) <= 2 * STDERR for line in lines)
            written.rate.write(lines, 5.0)
    finally:
        program.hang_up()
        program.close_log()
        os.waitpid(program.pid, 0)
    assert written.lines()
    assert all(len(line) <= MAX_LINE for line in written.lines())
