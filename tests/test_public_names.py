from __future__ import annotations

import pydoc
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "smtpd_filters",
        "smtpd_filters.lookups.dns",
        "smtpd_filters.lookups.http",
        "smtpd_filters.testing",
    ],
)
def test_names_that_are_imported_at_first_use_are_listed(module: str) -> None:
    package = import_module(module)
    assert set(package.__all__) <= set(dir(package))
    shown = pydoc.plain(pydoc.render_doc(package))
    for name in package.__all__:
        if isinstance(getattr(package, name), type):
            assert f"    class {name}" in shown
