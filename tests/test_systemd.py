"""The units of the Debian package, and the drop-in for smtpd's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DROP_IN = ROOT / "docs/examples/systemd-restart"
JOURNAL, PAGE = (
    ROOT / f"packaging/debian/smtpd-filters.smtpd-filters-{name}.service"
    for name in ("journal", "web")
)


def settings(unit: Path) -> set[tuple[str, str]]:
    """Return the settings of the section Service, with their values."""
    service = unit.read_text("utf-8").partition("[Service]\n")[2].partition("\n[")[0]
    return set(re.findall(r"^(\w+)=(.*)$", service, re.MULTILINE))


@pytest.mark.parametrize("unit", [DROP_IN, PAGE], ids=lambda unit: unit.name)
def test_the_kill_of_one_process_does_not_stop_all(unit: Path) -> None:
    """It does by default (OOMPolicy=stop) when memory is short: of filters, and of trials."""
    assert ("OOMPolicy", "continue") in settings(unit)


def test_a_server_that_ended_is_started_again() -> None:
    """smtpd exits with status 0 after one of its filters has ended."""
    assert settings(DROP_IN) >= {("Restart", "always"), ("RestartSec", "2")}
    assert all(("Restart", "on-failure") in settings(unit) for unit in (JOURNAL, PAGE))
