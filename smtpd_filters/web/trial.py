"""The page that tries other settings on the recorded sessions of the last day.

Invariants
----------
*Only by a form*: a trial begins and ends by a POST, which passes the guard (`guard`).
*Own only*: a user sees the trials that are the user's own.
*Checked there*: fields of forms are passed on as texts; the trial's process checks them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from .trials import Trial, TrialError, Trials

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .guard import Guard
    from .page import Pages
    from .trials import Setup

#: The start of the names of fields that are settings; and how many there may be.
SETTING, MAX_SETTINGS = "set.", 100
#: Characters of a field.
_LONGEST = 400
#: Seconds after which the page of a running trial is loaded again, without JavaScript.
AGAIN = 2


class TrialPages:
    """The handlers of trials."""

    def __init__(self, pages: Pages, guard: Guard, setup: Setup) -> None:
        self._pages = pages
        self._guard = guard
        self._prefix = guard.access.prefix
        self._trials = Trials(setup, time.monotonic)

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the routes."""
        return [
            web.get(f"{self._prefix}/try", self.form),
            web.post(f"{self._prefix}/try", self.begin),
            web.get(f"{self._prefix}/try/{{id}}", self.trial),
            web.post(f"{self._prefix}/try/{{id}}/cancel", self.cancel),
        ]

    async def stopping(self, _app: web.Application) -> None:
        """End all trials."""
        await self._trials.aclose()

    # -- handlers ----------------------------------------------------------------------------

    async def form(self, request: web.Request) -> web.Response:
        """Show the settings that can be tried."""
        id_ = request.query.get("story", "")[:_LONGEST]
        story = await self._pages.find(id_) if id_ else None
        try:
            found = await self._trials.describe()
        except TrialError as error:
            return self._pages.render(request, "try_error.html", status=503, error=str(error))
        deciding = story.deciding.filter if story is not None and story.deciding else ""
        return self._pages.render(
            request,
            "try.html",
            story=story,
            deciding=deciding,
            sections=found["sections"],
            running=self._trials.running(self._guard.user(request)),
            SETTING=SETTING,
        )

    async def begin(self, request: web.Request) -> web.StreamResponse:
        """Begin a trial of the settings of a form."""
        fields = await request.post()
        kind, section = _text(fields, "kind"), _text(fields, "section")
        names = [name for name in fields if name.startswith(SETTING)]
        if len(names) > MAX_SETTINGS or len(set(names)) != len(names):
            raise web.HTTPBadRequest(text="Too many settings.\n")
        id_ = _text(fields, "story")
        story = await self._pages.find(id_) if id_ else None
        chosen = {
            "kind": kind,
            "section": section,
            "values": {name.removeprefix(SETTING): _text(fields, name) for name in names},
            "session": story.session if story is not None else "",
        }
        try:
            trial = self._trials.begin(self._guard.user(request), id_ if story else "", chosen)
        except TrialError as error:
            return self._pages.render(request, "try_error.html", status=429, error=str(error))
        raise web.HTTPSeeOther(f"{self._prefix}/try/{trial.id}")

    async def trial(self, request: web.Request) -> web.Response:
        """Show how far a trial is, or what it found."""
        trial = self._of(request)
        return self._pages.render(
            request,
            "tried.html",
            status=200 if not trial.error else 422,
            trial=trial,
            found=trial.result,
            again=AGAIN,
        )

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """End a trial."""
        trial = self._of(request)
        await self._trials.cancel(trial)
        raise web.HTTPSeeOther(f"{self._prefix}/try/{trial.id}")

    def _of(self, request: web.Request) -> Trial:
        """Return the trial of an address. Raises HTTPNotFound."""
        found = self._trials.find(request.match_info["id"], self._guard.user(request))
        if found is None:
            raise web.HTTPNotFound(text="No such trial of yours, or it was forgotten.\n")
        return found


def _text(fields: Mapping[str, Any], name: str) -> str:
    """Return a field of a form. Raises HTTPBadRequest."""
    value = fields.get(name, "")
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise web.HTTPBadRequest(text="Expected shorter texts.\n")
    return value
