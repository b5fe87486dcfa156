"""The links and names in the documentation exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "reference.md"),
    ROOT / "packaging" / "README.md",
    *sorted((ROOT / "fixtures").rglob("README.md")),
]
#: Where a path that a page names may begin.
BASES = (ROOT, ROOT / "smtpd_filters", ROOT / "tests", ROOT / "packaging")
NAMED = re.compile(r"`((?:[\w.-]+/)+[\w.*-]*|[\w-]+\.(?:py|md|toml|session))`")
#: Files of readers' and of others, and what verbs of make will have made.
THEIRS = {
    *("smtpd-filters.toml", "known.py", "quiet.py", "tag.py", "local.d/dkim_signing.conf"),
    *("lang/python", "mail/py-spf"),
    *("dist/", "ports/freebsd", "ports/openbsd"),
}


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))


def paths(page: Path) -> list[str]:
    named = NAMED.findall(page.read_text("utf-8"))
    return [name for name in named if name not in THEIRS and not re.search("[A-Z]{4}", name)]


@pytest.mark.parametrize("found", [links, paths])
def test_there_are_such(found: Callable[[Path], list[str]]) -> None:
    assert sum(len(found(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    ours = [target.partition("#") for target in links(page) if "://" not in target]
    assert [path for path, _, _ in ours if path and not (page.parent / path).exists()] == []
    assert {fragment for path, _, fragment in ours if not path} <= headings


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_path_exists(page: Path) -> None:
    bases = (page.parent, *BASES)
    missing = [name for name in paths(page) if not any(any(base.glob(name)) for base in bases)]
    assert missing == []
