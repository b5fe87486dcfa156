"""The service of the page: its application, and the addresses that it listens on."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web

from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.settings import ENDPOINT
from smtpd_filters.startup import ignore_strays

from .bounds import DEFAULT
from .connections import Connections, Failures, LimitedRunner
from .guard import Access, Guard, check_exposure
from .memory import Memory, Stores
from .page import Pages
from .trial import TrialPages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smtpd_filters.journal.query import Journal

    from .bounds import Bounds
    from .trials import Setup

#: Bytes of a form.
MAX_FORM = 64 << 10
#: Seconds for pending responses after SIGTERM.
SHUTDOWN = 2.0
#: The mode of a unix socket: the service's group may connect, which is to be the proxy's.
MODE = 0o660


class Listening(NamedTuple):
    """An address to listen on: `host` and `port`, or the `path` of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or ENDPOINT.show((self.host, self.port))


def application(
    journal: Callable[[], Journal],
    access: Access,
    stores: Stores = Stores(),  # noqa: B008  # immutable
    trials: Setup | None = None,
    bounds: Bounds = DEFAULT,
) -> web.Application:
    """Return the application; `journal` makes a reader of the journal for each query.

    `trials` is how other settings are tried; None if they can't be.
    """
    guard = Guard(access, bounds=bounds)
    app = web.Application(middlewares=[guard.middleware], client_max_size=MAX_FORM)
    further = [("/greylist", "Greylist")] if stores.greylist else []
    further += [("/limits", "Limits")] if stores.limits else []
    further += [("/try", "Try settings")] if trials is not None else []
    pages = Pages(journal, guard, further=further, tries=trials is not None)
    app.add_routes(pages.routes())
    memory = Memory(pages, guard, stores)
    app.add_routes(memory.routes())
    app.on_startup.append(memory.started)
    app.on_cleanup.append(memory.stopped)
    if trials is not None:
        trying = TrialPages(pages, guard, trials)
        app.add_routes(trying.routes())
        app.on_shutdown.append(trying.stopping)
    app.on_startup.append(pages.started)
    app.on_shutdown.append(pages.stopping)
    if access.prefix:
        app.router.add_get(access.prefix, _to_page)
    return app


async def _to_page(request: web.Request) -> web.StreamResponse:
    raise web.HTTPMovedPermanently(f"{request.path}/")


async def serve(  # noqa: PLR0913  # what a service has
    app: web.Application,
    addresses: Sequence[Listening],
    access: Access,
    ready: Callable[[str], None],
    reload: Callable[[], object] = lambda: None,
    bounds: Bounds = DEFAULT,
) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called with each address, `reload` at SIGHUP.

    Raises ConfigError if it can't listen, or if anybody could read the page.
    """
    check_exposure([each.path or each.host for each in addresses], access)
    # Failures of handlers are logged by the guard; the rest is about requests that aren't HTTP.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    connections = Connections(bounds)
    app.middlewares.insert(0, connections.middleware)
    ends: dict[str, Any] = {"shutdown_timeout": SHUTDOWN}
    of_runner = "shutdown_timeout" in signature(web.BaseRunner.__init__).parameters
    # Before aiohttp 3.9 it is a parameter of sites, and a runner that gets it answers nobody.
    of_sites = {} if of_runner else ends
    runner = web.AppRunner(app, access_log=None, **(ends if of_runner else {}))
    await runner.setup()
    assert runner.server is not None  # noqa: S101  # it is set up
    limited: Any = LimitedRunner(runner, bounds)
    watching = asyncio.create_task(connections.watch(runner.server))
    #: The unix sockets made here, of which another process may since have made its own.
    sockets: dict[str, tuple[int, int] | None] = {}
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(Failures(bounds.idle).handle)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    ignore_strays()
    try:
        for each in addresses:
            await _listen(limited, each, of_sites)
            if each.path:
                sockets[each.path] = _identity(each.path)
        for name in runner.addresses:
            ready(str(Listening(*name[:2]) if isinstance(name, tuple) else name))
        await ending.wait()
    finally:
        watching.cancel()
        await runner.cleanup()
        for path, made in sockets.items():
            if _identity(path) == made:
                _remove(path)


async def _listen(runner: web.AppRunner, address: Listening, more: dict[str, Any]) -> None:
    """Listen on an address. Raises ConfigError."""
    try:
        if address.path:
            if await _is_served(address.path):
                raise ConfigError(f"--listen {address}: another process serves this socket")
            _remove(address.path)
            await web.UnixSite(runner, address.path, **more).start()
            os.chmod(address.path, MODE)  # noqa: PTH101  # paths as text
        else:
            await web.TCPSite(runner, address.host, address.port, **more).start()
    except OSError as error:
        raise ConfigError(f"--listen {address}: {os_reason(error)}") from None


async def _is_served(path: str) -> bool:
    """Return whether a process accepts connections at a unix socket."""
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


def _identity(path: str) -> tuple[int, int] | None:
    """Return what distinguishes a file from another one of its name; None if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  # paths as text
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _remove(path: str) -> None:
    """Remove a socket that nobody serves any more."""
    try:
        if path and stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116  # paths as text
            os.unlink(path)  # noqa: PTH108
    except OSError:
        pass
