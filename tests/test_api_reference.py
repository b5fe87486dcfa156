"""docs/reference.md and smtpd_filters(3) describe the interface, all of it."""

from __future__ import annotations

import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
#: Public names that have no description yet; it only shrinks.
NOT_YET = {"smtpd_filters.Filter.settings"}
#: Methods of messages by which the framework fills, keeps and sends them.
FRAMEWORK = {
    "Headers": {
        *("differs", "of_text", "parse", "replace_lines", "replace_text", "restore", "snapshot"),
        "text",
    },
    "Message": {
        *(
            "close",
            "differs",
            "discard",
            "drain",
            "drained",
            "end_header",
            "feed",
            "header_cost",
            "header_seen",
            "release",
        ),
        *("restore", "revert", "small", "snapshot", "stored", "unmarked"),
    },
    "Resolver": {"aclose", "observer"},
    "Table": {
        "asked_keys",
        "contents",
        "files",
        "load_by_key",
        "refresher",
        "reload",
        "remote",
        "service",
        "unload",
    },
}


def load() -> Any:
    path = ROOT / "packaging" / "update_reference.py"
    loader = SourceFileLoader(path.stem, str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


MODULE = load()


@pytest.fixture(scope="module")
def reference() -> Any:
    return MODULE.Reference()


def test_the_page_is_that_of_the_code(reference: Any) -> None:
    assert MODULE.PAGE.read_text("utf-8") == reference.text, "run make reference"


def test_every_public_name_is_described(reference: Any) -> None:
    assert len(reference.names) > 200
    assert set(reference.bare) <= NOT_YET


@pytest.mark.parametrize(
    ("cls", "variable"),
    [
        ("Headers", "headers"),
        ("Message", "message"),
        ("Part", "part"),
        ("Parts", "parts"),
        ("OwnField", ""),
        ("Found", ""),
        ("NotFound", ""),
        ("Unavailable", ""),
        ("MX", ""),
        ("Table", "table"),
        ("Resolver", ""),
    ],
)
def test_the_manual_has_the_members_of(reference: Any, cls: str, variable: str) -> None:
    page = (ROOT / "docs" / "man" / "smtpd_filters.3").read_text("utf-8")
    public = {
        name.rpartition(".")[2]
        for name in reference.names
        if re.fullmatch(rf"[\w.]+\.{cls}\.\w+", name)
    }
    before = rf"(?:{variable}\.|\b)"
    missing = {name for name in public if not re.search(rf"{before}{name}\b", page)}
    assert public
    assert missing - FRAMEWORK.get(cls, set()) == set()


def test_definitions_become_a_list() -> None:
    text = "A thing.\n\nRules\n-----\nKept\n    It is ``kept``.\n\n    Always.\n\nThe end:\n    1\n"
    assert MODULE.markdown(text) == (
        "A thing.\n\n**Rules**\n\n- **Kept**: It is `kept`.\n\n  Always.\n\nThe end:\n    1"
    )
