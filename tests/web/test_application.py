"""The service of the page, with each release of aiohttp that it may have."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientSession, web

from smtpd_filters.journal.query import Journal
from smtpd_filters.web.application import Listening, application, serve
from smtpd_filters.web.guard import Access

if TYPE_CHECKING:
    from pathlib import Path


class OldRunner(web.AppRunner):
    """The runner of aiohttp 3.8: what it doesn't know goes to each connection, which fails."""

    def __init__(self, app: web.Application, *, access_log: None, **unknown: Any) -> None:
        assert not unknown
        super().__init__(app, access_log=access_log)


class OldBase:
    """Its base class."""

    def __init__(self, *, handle_signals: bool = False) -> None:
        pass


class OldSite(web.TCPSite):
    """A site of aiohttp 3.8."""

    given: float = 0.0

    def __init__(self, runner: web.AppRunner, host: str, port: int, **more: Any) -> None:
        type(self).given = more["shutdown_timeout"]
        super().__init__(runner, host, port)


@pytest.mark.parametrize("old", [False, True])
def test_it_answers_until_sigterm(
    *, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        monkeypatch.setattr(web, "AppRunner", OldRunner)
        monkeypatch.setattr(web, "BaseRunner", OldBase)
        monkeypatch.setattr(web, "TCPSite", OldSite)

    async def run() -> None:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        access = Access()
        app = application(lambda: Journal(str(tmp_path)), access)
        addresses = [Listening("127.0.0.1", 0)]
        service = asyncio.create_task(serve(app, addresses, access, ready.set_result))
        async with ClientSession() as session, session.get(f"http://{await ready}/") as response:
            assert response.status == 200
        os.kill(os.getpid(), signal.SIGTERM)
        await service

    asyncio.run(run())
    assert OldSite.given == (2.0 if old else 0.0)
