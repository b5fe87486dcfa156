"""What a test does where it can't run."""

from __future__ import annotations

import os

import pytest

from tests.effort import SHARE


def need(reason: str | None) -> None:
    """Skip the test if there is a reason why it can't run here; fail if it has to run.

    Whatever needs a server is not of `make unit`, even where there is one.
    """
    if SHARE > 1:
        pytest.fail("needs a server: mark it e2e", pytrace=False)
    if reason:
        if os.environ.get("SMTPD_FILTERS_E2E") == "required":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
