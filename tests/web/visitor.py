"""A page on a journal of some stories, and a visitor that reads it."""

from __future__ import annotations

import asyncio
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from aiohttp import ClientSession, CookieJar, UnixConnector, web

from smtpd_filters.journal.archive import Archive
from smtpd_filters.journal.privacy import Privacy
from smtpd_filters.journal.query import Journal
from smtpd_filters.web.application import application
from smtpd_filters.web.bounds import DEFAULT
from smtpd_filters.web.guard import HEADERS, Access
from smtpd_filters.web.memory import Stores

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from smtpd_filters.web.bounds import Bounds
    from smtpd_filters.web.trials import Setup

#: Elements and attributes that load or run something, or are blocked by the policy.
ACTIVE = {"script", "iframe", "object", "embed", "img", "base", "style", "svg:script"}


class Document(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def links(self) -> list[str]:
        """The addresses of its links."""
        return [str(attrs["href"]) for tag, attrs in self.tags if tag == "a"]

    @property
    def active(self) -> list[object]:
        """What could run, or load from elsewhere."""
        found: list[object] = []
        for tag, attrs in self.tags:
            if tag in ACTIVE and not (tag == "script" and str(attrs.get("src")).startswith("/")):
                found.append(tag)
            for name, value in attrs.items():
                if name.startswith("on") or name == "style":
                    found.append((tag, name))
                if name in {"href", "src", "action"} and not str(value).startswith(("/", "#")):
                    found.append((tag, name, value))
        return found


def written(directory: Path, stories: Sequence[dict[str, Any]], now: float) -> None:
    """Write stories into a journal of today."""
    archive = Archive(
        str(directory),
        Privacy("plain"),
        days=3660,
        size=1 << 30,
        floor=0,
        subjects=True,
        note=lambda _text: None,
    )
    archive.open(now)
    assert archive.write(stories, now)
    archive.close()


class Visitor:
    """A browser without JavaScript."""

    def __init__(self, session: ClientSession, base: str) -> None:
        self.session = session
        self.base = base

    async def get(self, path: str, status: int = 200) -> Document:
        """Return a page, which must have the headers of the guard and nothing active."""
        async with self.session.get(self.base + path, allow_redirects=False) as response:
            assert response.status == status, (path, response.status, await response.text())
            assert HEADERS.items() <= dict(response.headers).items()
            page = Document(await response.text())
            assert page.active == []
            return page


def visit(  # noqa: PLR0913  # what a page may have
    directory: Path,
    visiting: Callable[[Visitor], Awaitable[None]],
    access: Access = Access(),  # noqa: B008  # immutable
    stores: Stores = Stores(),  # noqa: B008  # immutable
    trials: Setup | None = None,
    *,
    bounds: Bounds = DEFAULT,
    user: str = "",
    socket: Path | None = None,
) -> None:
    """Serve the page of a journal, of stores and of trials, for a visit.

    The visitor is a user that a proxy names, and connects to a unix socket, if there is one.
    """
    headers = {}
    if user:
        access = access._replace(user_header="X-Remote-User", proxies=("127.0.0.1", "unix"))
        headers["X-Remote-User"] = user

    async def run() -> None:
        app = application(lambda: Journal(str(directory)), access, stores, trials, bounds)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            connector = None
            if socket is None:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                host = f"127.0.0.1:{runner.addresses[0][1]}"
            else:
                await web.UnixSite(runner, socket).start()
                connector, host = UnixConnector(str(socket)), "localhost"
            async with ClientSession(
                cookie_jar=CookieJar(unsafe=True), connector=connector, headers=headers
            ) as session:
                await visiting(Visitor(session, f"http://{host}{access.prefix}"))
        finally:
            await runner.cleanup()

    asyncio.run(run())
