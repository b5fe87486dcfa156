"""Fixtures of the tests of `smtpd-filters learn`: a daemon that answers, and the command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.rspamd.stub import RspamdStub
from tests.cli.learning import LEARNED, Learn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.learning import Capture


@pytest.fixture
def rspamd() -> Iterator[RspamdStub]:
    with RspamdStub(LEARNED) as stub:
        yield stub


@pytest.fixture
def call(rspamd: RspamdStub, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Learn:
    return Learn(rspamd, capsys, monkeypatch)
