"""`smtpd-filters web`: what it says at its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smtpd_filters.cli import main
from smtpd_filters.web import application
from smtpd_filters.web.passwords import with_user

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(*_: object) -> None:
        pass

    monkeypatch.setattr(application, "serve", serve)


@pytest.mark.parametrize(
    ("flags", "noted"),
    [
        ((), "on 127.0.0.1:8026 the stores of --greylist and --limits can't be changed"),
        (("--listen", "{}/socket", "--listen", "[::1]:80"), "on [::1]:80 the stores"),
        (("--listen", "{}/socket"), ""),
        (("--passwords", "{}/users"), ""),
        (("--user-header", "X-Remote-User", "--proxy", "127.0.0.1"), ""),
    ],
)
def test_the_log_says_that_stores_cant_be_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], noted: str
) -> None:
    with_user(str(tmp_path / "users"), "ann", "correct horse")
    (tmp_path / "store").touch()
    words = [each.format(tmp_path) for each in flags]
    assert main(["web", "--directory", str(tmp_path), *words]) == 0
    assert capsys.readouterr().err == ""
    assert main(["web", "--limits", f"sqlite:{tmp_path}/store", *words]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"smtpd-filters web: {noted}") if noted else said == ""
