from __future__ import annotations

import pydoc
import re
from importlib import import_module

import pytest

import smtpd_filters
from smtpd_filters import stores
from smtpd_filters.lookups.http import Service
from tests.data import ROOT
from tests.loading import loaded


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


def test_services_and_stores_are_at_the_top() -> None:
    assert smtpd_filters.Service is Service
    for name in stores.__all__:
        assert name in smtpd_filters.__all__
        assert getattr(smtpd_filters, name) is getattr(stores, name)


@pytest.mark.processes
def test_names_at_the_top_are_imported_at_first_use() -> None:
    modules = {"smtpd_filters.lookups", "smtpd_filters.lookups.http", "smtpd_filters.stores"}
    assert loaded("import smtpd_filters").isdisjoint(modules)
    # asyncio and what answers over HTTP are not for every filter.
    assert loaded("from smtpd_filters import Filter, run").isdisjoint({*modules, "asyncio"})


def test_the_tutorial_imports_services_and_stores_from_the_top() -> None:
    page = (ROOT / "docs" / "writing-a-filter.md").read_text("utf-8")
    assert (
        re.findall(r"^from (smtpd_filters\.(?:lookups|stores)\S*) import", page, re.MULTILINE) == []
    )
