from __future__ import annotations

import os
import subprocess
import sys

from smtpd_filters.testing.server.output import Output

# A line in two pieces; what stands between them is written when the first has been.
IN_PIECES = """
import os
os.write(1, b"in ")
os.write(2, b".")
os.read(0, 1)
os.write(1, b"pieces\\nand \\xff the rest")
"""


def test_lines_of_several_processes_are_not_mixed() -> None:
    output = Output()
    with (
        output.sink("log") as sink,
        subprocess.Popen(
            [sys.executable, "-c", IN_PIECES],
            stdin=subprocess.PIPE,
            stdout=sink.fileno(),
            stderr=subprocess.PIPE,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stderr is not None
        process.stderr.read(1)
        os.write(sink.fileno(), b"of another one\n\n")
        process.stdin.close()
    output.close()
    assert output.lines == ["of another one", "", "in pieces", "and \udcff the rest"]
    assert output.ended


def test_find_waits_for_a_line() -> None:
    output = Output()
    with output.sink("log") as sink:
        os.write(sink.fileno(), b"one\ntwo\n")
        found = output.find("t(.)o", 60)
        assert found is not None
        assert found[1] == "w"
        assert output.find("one", 0, since=1) is None
    output.close()
    assert output.find("three", 60) is None


def test_lines_are_whole() -> None:
    output = Output()
    output.sink("log").close()
    output.close()
    assert output.lines == []
