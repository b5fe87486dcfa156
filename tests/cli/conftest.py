"""Fixtures: a daemon and the command of `smtpd-filters learn`, and an installed distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.rspamd.stub import RspamdStub
from tests.cli.learning import LEARNED, Learn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.learning import Capture


@pytest.fixture
def rspamd() -> Iterator[RspamdStub]:
    with RspamdStub(LEARNED) as stub:
        yield stub


@pytest.fixture
def call(rspamd: RspamdStub, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Learn:
    return Learn(rspamd, capsys, monkeypatch)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a distribution with the filters `name=value`, or with the text of their file."""

    def make(*filters: str, name: str = "others", text: str = "") -> None:
        lines = "\n".join(filters)
        directory = tmp_path / f"{name}-1.0.dist-info"
        directory.mkdir()
        (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (directory / "entry_points.txt").write_bytes(
            (text or f"[smtpd_filters.filters]\n{lines}\n").encode("latin-1")
        )

    monkeypatch.syspath_prepend(tmp_path)
    return make
