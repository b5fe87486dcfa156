"""What the documentation points at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, fragment = target.partition("#")
        if "://" not in target:
            assert not path or (page.parent / path).exists(), target
            assert path or fragment in headings, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_path_exists(page: Path) -> None:
    for name in NAMED.findall(page.read_text("utf-8")):
        if name not in THEIRS and not re.search("[A-Z]{4}", name):
            found = [path for base in (page.parent, *BASES) for path in base.glob(name)]
            assert found, name
