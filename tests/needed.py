"""The skip or failure of a test that can't run on this machine."""

from __future__ import annotations

import os

import pytest

from tests.effort import SHARE


def need(reason: str | None) -> None:
    """Skip the test if there is a reason why it can't run here; fail if it has to run.

    `make unit` runs no test that needs a server, even on a machine that has one.
    """
    if SHARE > 1:
        pytest.fail("needs a server: mark it e2e", pytrace=False)
    if reason:
        if os.environ.get("SMTPD_FILTERS_E2E") == "required":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
