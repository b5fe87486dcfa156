"""Without memory, or without room in the spool, every request is answered and no message cut."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.message.spool import Spool
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.supervise.engine import Engine
from smtpd_filters.supervise.transit import SMALL
from tests.effort import part
from tests.runtime.process import ROOT, TOKENS, sid
from tests.supervise.hostile import nowhere

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.allocations
@pytest.mark.parametrize(
    ("kind", "width"), [("Lines", "1"), ("Whole", "1"), ("Late", "1"), ("Lines", "20")]
)
def test_any_allocation_may_fail(kind: str, width: str) -> None:
    if importlib.util.find_spec("_testcapi") is None:
        pytest.skip("this Python lacks _testcapi")
    done = subprocess.run(
        [sys.executable, "-m", "tests.supervise.no_memory", kind, width],
        capture_output=True,
        cwd=ROOT,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    *wrong, tried = done.stdout.decode().splitlines()
    assert wrong == []
    assert int(tried.split()[0]) > part(500)


def test_a_message_whose_end_does_not_fit_into_the_spool_gets_one_dot(tmp_path: Path) -> None:
    """No program runs, so the message is kept; smtpd would exit on a second dot."""
    spool = Spool(memory=0, directories=(str(tmp_path / "missing"),))
    engine, smtpd, session = Engine(nowhere(), spool=spool), SmtpdConnection(), sid(1)
    engine.from_smtpd(smtpd.configure())
    engine.handshake.register_all()
    engine.answers.clear()
    engine.expecting = True
    token = TOKENS["data-line"]
    engine.from_smtpd(smtpd.lines(session, token, [b"", b"x" * SMALL], end=True))
    assert engine.lines == [b"filter-dataline|%b|%b|.\n" % (session, token)]
    engine.from_smtpd(smtpd.request("commit", session, TOKENS["commit"]))
    assert engine.answers[0].split(b"|")[3:4] == [b"reject"]
