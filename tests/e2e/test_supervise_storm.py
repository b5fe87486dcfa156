"""Storms on real servers: programs of a supervised filter fail at random under load.

`make storm` makes each last for 1,000 failures.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.e2e.storm import (
    INSIDE,
    LIBEXEC,
    PROGRAMS,
    Storm,
    arguments,
    rspamd,
    supervised,
)
from tests.needed import need

if TYPE_CHECKING:
    from tests.e2e.conftest import Start

FAULTS = 8


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_storm(start: Start, name: str) -> None:
    program = PROGRAMS[name]
    if program.marker.startswith(INSIDE):
        debian = program.marker.rpartition("/")[2]
        if shutil.which(debian, path=LIBEXEC) is None:
            need(debian)
    server = start(**arguments(supervised(program, "--deadline", "10s", "--workers", "2")))
    with rspamd(server.lab):
        storm = Storm(server, program)
        result = storm.blow(FAULTS, clients=10, pause=0.5)
        storm.check()
    assert result.faults >= FAULTS
