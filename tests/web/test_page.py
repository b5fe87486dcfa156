"""The pages, as a browser without JavaScript reads them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from smtpd_filters.web.guard import Access
from smtpd_filters.web.page import PER_PAGE
from tests.journal.made import PASSED, refused, stored

from .visitor import Document, Visitor, visit, written

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe",
    "\x1b[31mred\x07\x00",
    "&lt;b&gt;",
    "</title></head><base href=//evil.example>",
]
FAILED = [
    "rspamd",
    "message",
    "reject",
    9,
    60_000_000,
    1,
    0,
    "timeout",
    "451 4.3.0 Later",
    "",
    0,
    "f",
]


@pytest.fixture
def now() -> float:
    return time.time()


def at(now: float) -> dict[str, Any]:
    """The time of a story, in the journal's form."""
    return {"t": int((now - 60) * 1000)}


def test_the_overview_counts_what_happened(tmp_path: Path, now: float) -> None:
    stories = [stored(n, **at(now)) for n in range(7)]
    stories += [refused(n, **at(now)) for n in range(7, 10)]
    stories.append(stored(10, [PASSED, FAILED], e="rollback", **at(now)))
    written(tmp_path, stories, now)

    async def visiting(visitor: Visitor) -> None:
        page = await visitor.get("/")
        assert "11 messages: 7 accepted, 1 refused temporarily, 3 refused" in page.text
        assert "listed in zen.example" in page.text
        assert "1.5 ms" in page.text
        rows = [attrs["class"] for tag, attrs in page.tags if tag == "rect"]
        # Messages, and below them decisions.
        assert rows == [
            *("bar accepted", "bar deferred", "bar refused"),
            *("bar refused", "bar failed"),
        ]
        text = "11 of 15 decisions let mail pass as it was; 3 refused, 1 left to --on-error"
        assert page.text.count(text) == 2
        assert (await visitor.get("/?span=1h")).text.count("11 messages") == 2

    visit(tmp_path, visiting)


def test_a_refused_mail_is_found_and_told(tmp_path: Path, now: float) -> None:
    facts = {"f": "ann@example.com", "i": "<x@mx>", "u": ["erin", ""], "a": ["550 5.7.1 Listed"]}
    written(tmp_path, [stored(1, **at(now)), refused(2, **facts, **at(now))], now)

    async def visiting(visitor: Visitor) -> None:
        for text in ("ann@example.com", "erin", "%3Cx@mx%3E", f"{2:016x}"):
            page = await visitor.get(f"/search?q={text}")
            [link] = [each for each in page.links if each.startswith("/story/")]
        assert "alice@example.org" in (await visitor.get("/search?outcome=accepted")).text
        assert "No message fits" in (await visitor.get("/search?q=nobody@example.org")).text
        story = await visitor.get(link)
        for text in (
            "dnsbl decided at connect: listed in zen.example",
            "550 5.7.1 Listed",
            "ann@example.com",
            "erin",
            "fcrdns at connect: let it pass",
        ):
            assert text in story.text

    visit(tmp_path, visiting)


def test_an_exempt_client(tmp_path: Path, now: float) -> None:
    row = ["dnsbl", "connect", "proceed", 1, 80, 1, 0, "exempt: local"]
    written(tmp_path, [stored(1, [row], **at(now))], now)

    async def visiting(visitor: Visitor) -> None:
        page = await visitor.get("/search")
        [link] = [each for each in page.links if each.startswith("/story/")]
        story = await visitor.get(link)
        assert "dnsbl at connect: exempts it (the client is on this machine) 80" in story.text

    visit(tmp_path, visiting)


def test_a_clock_that_was_a_year_ahead_hides_no_messages(tmp_path: Path, now: float) -> None:
    written(tmp_path, [stored(1, **at(now))], now)
    later = now + 365 * 86400
    written(tmp_path, [stored(2, f="early@example.org", **at(later))], later)

    async def visiting(visitor: Visitor) -> None:
        for path, is_shown in (("/search", False), ("/live", False), ("/search?span=all", True)):
            page = await visitor.get(path)
            assert "alice@example.org" in page.text
            assert ("early@example.org" in page.text) == is_shown

    visit(tmp_path, visiting)


def test_pages_of_many_messages(tmp_path: Path, now: float) -> None:
    written(tmp_path, [stored(n, **at(now)) for n in range(2 * PER_PAGE + 1)], now)

    async def visiting(visitor: Visitor) -> None:
        path, seen = "/search", []
        while path:
            page = await visitor.get(path)
            seen += [each for each in page.links if each.startswith("/story/")]
            path = next((each for each in page.links if "before=" in each), "")
        assert len(seen) == len(set(seen)) == 2 * PER_PAGE + 1

    visit(tmp_path, visiting)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_outsiders_write_is_only_text(text: str, tmp_path: Path, now: float) -> None:
    row = ["dnsbl", "connect", "reject", 3, 1500, 1, 0, text, f"550 {text}", text, 0, "", text]
    facts: dict[str, Any] = {
        "f": f"{text}@example.org", "r": [[text, 2]], "i": text, "j": text, "u": [text, text],
        "h": ["EHLO", text], "c": ["192.0.2.1:1", text, "pass", ""], "a": [f"550 {text}"],
        "l": text,
    }  # fmt: skip
    written(tmp_path, [stored(1, [row], e="rollback", **facts, **at(now))], now)

    async def visiting(visitor: Visitor) -> None:
        pages = [await visitor.get("/"), await visitor.get("/search")]
        [link] = {each for each in pages[1].links if each.startswith("/story/")}
        pages.append(await visitor.get(link))
        pages += [await visitor.get(f"/ranked/{each}") for each in ("senders", "clients", "users")]
        for each in pages:
            assert not any(char in each.text for char in "\u202e\x1b\x07\x00")
        for path in ("/search", "/", "/login"):
            query = {"q": text, "filter": text, "outcome": text, "span": text, "to": text}
            async with visitor.session.get(visitor.base + path, params=query) as response:
                assert response.status == 200
                assert Document(await response.text()).active == []

    visit(tmp_path, visiting)


def test_rankings(tmp_path: Path, now: float) -> None:
    stories = [stored(n, f="ann@example.com", u=["erin", ""], **at(now)) for n in range(3)]
    written(tmp_path, [*stories, refused(9, f="bob@example.com", **at(now))], now)

    async def visiting(visitor: Visitor) -> None:
        page = await visitor.get("/ranked/senders")
        assert page.text.index("ann@example.com") < page.text.index("bob@example.com")
        assert "erin" in (await visitor.get("/ranked/users")).text
        assert "192.0.2.1" in (await visitor.get("/ranked/clients")).text
        await visitor.get("/ranked/secrets", 404)

    visit(tmp_path, visiting)


@pytest.mark.parametrize(
    "path",
    ["/story/x", "/story/2026-11-30-999", "/story/..%2f..%2fetc%2fpasswd", "/static/../page.py",
     "/static/%2e%2e/page.py", "/static/..%2f..%2fguard.py", "/nowhere", "/static/"],
)  # fmt: skip
def test_paths_that_are_not_there(path: str, tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        # As it stands: a browser would resolve the dots itself.
        async with visitor.session.get(URL(visitor.base + path, encoded=True)) as response:
            assert response.status in {403, 404}
            assert "import" not in await response.text()

    visit(tmp_path, visiting)


def test_an_empty_journal(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        assert "The journal is empty" in (await visitor.get("/")).text
        assert "No message fits" in (await visitor.get("/search")).text

    visit(tmp_path, visiting)


def test_a_damaged_day_is_named(tmp_path: Path, now: float) -> None:
    written(tmp_path, [stored(1, **at(now))], now)
    [path] = tmp_path.glob("*.sqlite")
    path.write_bytes(b"no database" * 1000)

    async def visiting(visitor: Visitor) -> None:
        page = await visitor.get("/search")
        assert path.name in page.text
        assert "Not read" in page.text

    visit(tmp_path, visiting)


def test_links_stay_below_the_prefix(tmp_path: Path, now: float) -> None:
    written(tmp_path, [stored(1, **at(now))], now)

    async def visiting(visitor: Visitor) -> None:
        for path in ("/", "/search", "/ranked/senders"):
            links = (await visitor.get(path)).links
            assert all(each.startswith(("/filters/", "#main")) for each in links)
        async with visitor.session.get(f"{visitor.base}/static/page.css") as response:
            assert response.status == 200

    visit(tmp_path, visiting, Access(prefix="/filters"))


def test_a_search_is_shown_without_control_characters(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        page = await visitor.get("/search?q=%00a%1b%E2%80%AEb")
        [field] = [attrs for tag, attrs in page.tags if tag == "input" and attrs.get("name") == "q"]
        assert field["value"] == "ab"

    visit(tmp_path, visiting)
