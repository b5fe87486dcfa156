"""Pages on what filters remember: greylisted clients, and limits, with forms that change them.

Invariants
----------
*Bounded*: a page shows `shown` entries of at most `scanned` that are read for it (`Bounds`).
*Only by a form*: what changes a store is a POST, which passes the guard (`guard`), and comes from a
sender that the guard lets change stores.
*Failures are shown*: a store that can't be reached is status 503; other pages don't need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes, urlencode

from aiohttp import web

from smtpd_filters.errors import UnavailableError
from smtpd_filters.filters.greylist.records import Record, records
from smtpd_filters.filters.greylist.triplets import ALLOWED, client_key
from smtpd_filters.filters.limit.ledger import FOREVER
from smtpd_filters.filters.limit.subjects import BLOCK, key, read, shown
from smtpd_filters.filters.limit.uses import forget, most_used
from smtpd_filters.stores import Delete, Put

from .page import Pages

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.stores import Store

    from .guard import Guard

#: Characters of a field of a form.
_LONGEST = 4096
#: Seconds for which a client is let in: a year.
ALLOWED_FOR = 366 * 86400.0
BY_HAND = "on the page"


class Stores(NamedTuple):
    """Functions that open the stores, None if they aren't shown. They are called in the loop."""

    greylist: Callable[[], Store] | None = None
    limits: Callable[[], Store] | None = None


class Memory:
    """The handlers of these pages."""

    def __init__(self, pages: Pages, guard: Guard, stores: Stores) -> None:
        self._pages = pages
        self._guard = guard
        self._stores = stores
        self._prefix = guard.access.prefix
        self._shown, self._scanned = guard.bounds.shown, guard.bounds.scanned
        self._greylist: Store | None = None
        self._limits: Store | None = None

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the routes of the stores that there are."""
        routes: list[web.AbstractRouteDef] = []
        if self._stores.greylist is not None:
            routes += [
                web.get(f"{self._prefix}/greylist", self.greylist),
                web.post(f"{self._prefix}/greylist", self.change_greylist),
            ]
        if self._stores.limits is not None:
            routes += [
                web.get(f"{self._prefix}/limits", self.limits),
                web.post(f"{self._prefix}/limits", self.change_limits),
            ]
        return routes

    async def started(self, _app: web.Application) -> None:
        """Open the stores."""
        if self._stores.greylist is not None:
            self._greylist = self._stores.greylist()
        if self._stores.limits is not None:
            self._limits = self._stores.limits()

    async def stopped(self, _app: web.Application) -> None:
        """Close the stores."""
        for store in (self._greylist, self._limits):
            if store is not None:
                await store.aclose()

    def _render(self, request: web.Request, template: str, **values: Any) -> web.Response:
        may_change = self._guard.may_change(request)
        return self._pages.render(request, template, may_change=may_change, **values)

    # -- greylisting -------------------------------------------------------------------------

    async def greylist(self, request: web.Request) -> web.Response:
        """Show the entries of a client, or some of all."""
        text = request.query.get("q", "").strip()[:_LONGEST]
        try:
            found, complete = await self._records(text.lower())
        except UnavailableError as error:
            raise _unavailable(error) from None
        return self._render(
            request, "greylist.html", text=text, records=found, complete=complete, name=_quoted
        )

    async def _records(self, text: str) -> tuple[list[Record], bool]:
        """Return the records that a text is found in, and whether those are all."""
        store = _opened(self._greylist)
        found: list[Record] = []
        if text:
            found = [each async for each in records(store, client_key(text))]
        if found:
            return found[: self._shown], len(found) <= self._shown
        scanned = 0
        async for each in records(store):
            scanned += 1
            if len(found) >= self._shown or scanned > self._scanned:
                return found, False
            words = (each.client, each.address, each.sender or "", each.recipient or "")
            if not text or any(text in word for word in words):
                found.append(each)
        return found, True

    async def change_greylist(self, request: web.Request) -> web.StreamResponse:
        """Let a client in without waiting, or forget it with its triplets."""
        self._guard.check_change(request)
        action, name = await _fields(request, "client")
        client = unquote_to_bytes(name).decode("utf-8", "surrogateescape")
        store = _opened(self._greylist)
        try:
            if action == "allow":
                await store.ask(Put(client_key(client), ALLOWED, ALLOWED_FOR))
            elif action == "forget":
                async for each, _ in store.scan(client_key(client)):
                    await store.ask(Delete(each))
            else:
                raise web.HTTPBadRequest(text="Expected allow or forget.\n")
        except UnavailableError as error:
            raise _unavailable(error) from None
        query = urlencode({"q": client}, errors="replace")
        raise web.HTTPSeeOther(f"{self._prefix}/greylist?{query}")

    # -- limits --------------------------------------------------------------------------------

    async def limits(self, request: web.Request) -> web.Response:
        """Show who is blocked, and who has used most of a limit."""
        store = _opened(self._limits)
        try:
            uses = await most_used(store, self._shown, self._scanned)
        except UnavailableError as error:
            raise _unavailable(error) from None
        return self._render(request, "limits.html", uses=uses, name=shown)

    async def change_limits(self, request: web.Request) -> web.StreamResponse:
        """Block a subject, or release it and forget what was counted."""
        self._guard.check_change(request)
        action, name = await _fields(request, "subject")
        subject = read(name)
        store = _opened(self._limits)
        try:
            if action == "block":
                await store.ask(Put(key(subject, BLOCK), BY_HAND.encode(), FOREVER))
            elif action == "release":
                await forget(store, subject)
                await store.ask(Delete(key(subject, BLOCK)))
            else:
                raise web.HTTPBadRequest(text="Expected block or release.\n")
        except UnavailableError as error:
            raise _unavailable(error) from None
        raise web.HTTPSeeOther(f"{self._prefix}/limits")


def _opened(store: Store | None) -> Store:
    if store is None:
        raise web.HTTPServiceUnavailable(text="The page is starting or ending.\n")
    return store


def _quoted(client: str) -> str:
    """Return a client for a form: a browser changes control characters, and pages are UTF-8."""
    return quote(client, safe=":/ ", errors="surrogateescape")


def _unavailable(error: UnavailableError) -> web.HTTPException:
    return web.HTTPServiceUnavailable(text=f"The store can't be reached: {error}\n")


async def _fields(request: web.Request, name: str) -> tuple[Any, str]:
    """Return the action of a form, and its field of this name. Raises HTTPBadRequest."""
    fields = await request.post()
    value = fields.get(name, "")
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST:
        raise web.HTTPBadRequest(text=f"Expected a {name}.\n")
    return fields.get("action"), value
