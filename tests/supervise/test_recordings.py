"""Recordings of real servers pass through: to the program unchanged, and back unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtpd_filters.protocol.vocabulary import PHASES, REPORTS
from smtpd_filters.recording import Recording
from smtpd_filters.supervise.engine import Engine
from smtpd_filters.supervise.link import Link
from tests.effort import SHARE
from tests.supervise.hostile import Program, nowhere

FIXTURES = Path(__file__).parents[2] / "fixtures" / "protocol"
PATHS = sorted(FIXTURES.glob("*/*.session"))


def turns(rows: list[bytes]) -> list[bytes]:
    """The input, cut where smtpd waited for the filter."""
    found = [b""]
    for row in rows:
        found[-1] += row
        asked = row.startswith(b"filter|") and b"|data-line|" not in row
        if asked or row.endswith(b"|.\n") or row == b"config|ready\n":
            found.append(b"")
    return found


def by_session(data: bytes) -> dict[bytes, list[bytes]]:
    """The lines of each session, in order."""
    found: dict[bytes, list[bytes]] = {}
    for row in data.split(b"\n")[:-1]:
        fields = row.split(b"|", 6)
        found.setdefault(b"" if fields[0] == b"config" else fields[5], []).append(row)
    return found


@pytest.mark.parametrize("path", PATHS[::SHARE], ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.parametrize("size", [1, 700])
def test_a_recording_passes(path: Path, size: int) -> None:
    rows = [line + b"\n" for line in Recording.read(path).to_filter()]
    engine, link = Engine(nowhere()), Link()
    program = Program(link, lambda options: options[-1], ((*PHASES, "data-line"), tuple(REPORTS)))
    engine.attach(link)
    written = back = b""
    for data in turns(rows):
        for at in range(0, len(data), size):
            engine.from_smtpd(data[at : at + size])
            program.read()
            output, program.output = program.output, b""
            engine.from_program(link, output)
            back += output
            if link.ready and not engine.links:
                engine.admit(link)
            written += b"".join([*engine.answers, *engine.lines])
            engine.answers.clear()
            engine.lines.clear()
    assert not link.fault
    assert by_session(program.given) == by_session(b"".join(rows))
    names = [
        [row for row in data.split(b"\n") if not row.startswith(b"register|")]
        for data in (written, back)
    ]
    assert names[0] == names[1]
    connected, gone = (
        {row.split(b"|")[5].strip() for row in rows if b"|%b|" % name in row}
        for name in (b"link-connect", b"link-disconnect")
    )
    assert {*engine.sessions} == connected - gone
    assert connected - gone or not engine.transit.known
