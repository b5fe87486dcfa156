"""The pages: each handler reads the journal in a thread and renders a template.

Invariants
----------
*Escaped*: templates escape every value, and what outsiders wrote passes `texts.foreign` as well.
*Bounded*: queries have the journal's deadline, results a limit, and only `AT_ONCE` queries run at a
time, so that readers can't slow the machine down. A query whose client has left meanwhile isn't
begun, and those in progress end with the service.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from smtpd_filters.journal.query import RANKED, Journal, TooSlowError
from smtpd_filters.journal.records import AHEAD, NEVER, Search
from smtpd_filters.journal.stories import OUTCOMES
from smtpd_filters.journal.telling import OUTCOMES as WORDS
from smtpd_filters.journal.telling import moment

from . import texts
from .charts import number, sparkline
from .guard import HEADERS
from .live import Live
from .overview import STACKED, decisions, filters, messages
from .passwords import BusyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import TypeVar

    from smtpd_filters.journal.query import Mark
    from smtpd_filters.journal.records import Overview, Ranked
    from smtpd_filters.journal.states import States
    from smtpd_filters.journal.stories import Story

    from .guard import Guard
    from .metrics import Metrics

    T = TypeVar("T")

HERE = Path(__file__).parent
#: The types of the files that pages need.
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
#: Queries at a time; each is a thread.
AT_ONCE = 4
#: Messages of a search, and rows of a ranking.
PER_PAGE, RANKS = 50, 50
#: Characters of a search.
LONGEST = 320
#: Times that can be chosen, in seconds.
SPANS = {
    "1h": ("last hour", 3600.0),
    "1d": ("last 24 hours", 86400.0),
    "7d": ("last 7 days", 7 * 86400.0),
    "30d": ("last 30 days", 30 * 86400.0),
    "all": ("everything", 3660 * 86400.0),
}
#: Names in messages' lists, at most.
SHOWN_RECIPIENTS = 3
STEPS = 48
#: The pages that every page links to, with their names.
NAVIGATION = (
    ("/", "Overview"),
    ("/search", "Messages"),
    ("/ranked/senders", "Senders"),
    ("/ranked/clients", "Clients"),
    ("/ranked/users", "Users"),
    ("/live", "Live"),
)


class Asked(NamedTuple):
    """The search of a page's address."""

    text: str
    span: str
    outcome: str
    filter: str
    before: str

    @classmethod
    def of(cls, query: Mapping[str, str], span: str) -> Asked:
        """Return it from the query of an address; what isn't valid is left out."""
        chosen = query.get("span", span)
        outcome = query.get("outcome", "")
        return cls(
            "".join(filter(str.isprintable, query.get("q", ""))).strip()[:LONGEST],
            chosen if chosen in SPANS else span,
            outcome if outcome in OUTCOMES else "",
            query.get("filter", "")[:LONGEST],
            query.get("before", "")[:LONGEST],
        )

    def search(self, now: float) -> Search:
        """Return it as a search of the journal."""
        return Search(
            self.text,
            since=now - SPANS[self.span][1],
            until=NEVER if self.span == "all" else now + AHEAD,
            outcomes=frozenset({self.outcome} if self.outcome else ()),
            filter=self.filter,
            limit=PER_PAGE + 1,
            before=self.before,
        )

    def address(self, **changes: str) -> str:
        """Return the query of an address with changes."""
        fields = {
            "q": self.text,
            "span": self.span,
            "outcome": self.outcome,
            "filter": self.filter,
            **changes,
        }
        return urlencode({name: value for name, value in fields.items() if value})


class Pages:
    """The handlers of the pages."""

    def __init__(
        self,
        journal: Callable[[], Journal],
        guard: Guard,
        clock: Callable[[], float] = time.time,
        *,
        further: Sequence[tuple[str, str]] = (),
        tries: bool = False,
    ) -> None:
        """Make the handlers.

        `further` are paths and names of more pages for the navigation; `tries` is whether other
        settings can be tried.
        """
        self._journal = journal
        self._guard = guard
        self._clock = clock
        self._turns = asyncio.Semaphore(AT_ONCE)
        #: The journals of the queries in progress.
        self._reading: set[Journal] = set()
        self._ending = False
        self._live = Live(self._begin, self._new, self._row, guard.bounds)
        #: How far the live feed has come.
        self._marks: dict[str, Mark] = {}
        self._metrics = _metrics()
        self._static = {
            path.name: (TYPES[path.suffix], path.read_bytes())
            for path in (HERE / "static").iterdir()
            if path.suffix in TYPES
        }
        self._templates = _templates(
            prefix=guard.access.prefix, tries=tries, navigation=(*NAVIGATION, *further)
        )

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the routes."""
        prefix = self._guard.access.prefix
        pages: list[tuple[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = [
            ("/", self.overview),
            ("/search", self.search),
            ("/story/{id}", self.story),
            ("/ranked/{kind}", self.ranked),
            ("/live", self.live),
            ("/metrics", self.metrics),
            ("/login", self.login),
        ]
        return [
            *(web.get(f"{prefix}{path}", handler) for path, handler in pages),
            # A HEAD of what never ends would not end either.
            web.get(f"{prefix}/live/events", self.events, allow_head=False),
            web.post(f"{prefix}/login", self.log_in),
            web.post(f"{prefix}/logout", self.log_out),
            web.get(f"{prefix}/static/{{name}}", self.static),
        ]

    async def static(self, request: web.Request) -> web.Response:
        """Send a file that pages need.

        It is sent from memory: when a client closes its connection while aiohttp sends a file, the
        log gets a traceback.
        """
        found = self._static.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound
        content_type, body = found
        return web.Response(body=body, content_type=content_type, charset="utf-8")

    # -- reading ---------------------------------------------------------------------------

    async def _read(
        self, query: Callable[[Journal], T], request: web.Request | None = None
    ) -> tuple[T, Mapping[str, str]]:
        """Return the result of a query of a request, and the files that could not be read."""

        def read() -> tuple[T, Mapping[str, str]]:
            return query(journal), journal.unread

        async with self._turns:
            has_left = request is not None and request.transport is None
            if has_left or self._ending:
                raise web.HTTPServiceUnavailable(text="The client has left, or the page ends.\n")
            journal = self._journal()
            self._reading.add(journal)
            try:
                return await asyncio.to_thread(read)
            except TooSlowError as error:
                raise web.HTTPServiceUnavailable(
                    text=f"The journal took too long: {error}. Choose a shorter time.\n"
                ) from None
            except OSError as error:
                raise web.HTTPServiceUnavailable(
                    text=f"The journal can't be read: {error.strerror}.\n"
                ) from None
            finally:
                self._reading.discard(journal)

    def render(
        self, request: web.Request, template: str, *, status: int = 200, **values: Any
    ) -> web.Response:
        """Return a page made of a template."""
        text = self._templates.get_template(template).render(
            user=self._guard.user(request),
            form=self._guard.form(request),
            here=request.path.removeprefix(self._guard.access.prefix),
            **values,
        )
        return web.Response(text=text, status=status, content_type="text/html", charset="utf-8")

    # -- handlers --------------------------------------------------------------------------

    async def overview(self, request: web.Request) -> web.Response:
        """Show messages and decisions over time, the most frequent reasons, and the filters."""
        asked = Asked.of(request.query, "1d")
        now = self._clock()
        length = SPANS[asked.span][1]

        def read(
            journal: Journal,
        ) -> tuple[Overview, tuple[str, str, int] | None, States | None]:
            extent = journal.extent()
            since = now - length
            if extent is not None and asked.span == "all":
                since = max(since, _start(extent[0]))
            return journal.overview(since, now, steps=STEPS), extent, journal.states()

        (found, extent, states), unread = await self._read(read, request)
        return self.render(
            request,
            "overview.html",
            asked=asked,
            found=found,
            messages=messages(found),
            decisions=decisions(found),
            extent=extent,
            unread=unread,
            filters=filters(found),
            states=states if states is not None and states.is_current(now) else None,
        )

    async def search(self, request: web.Request) -> web.Response:
        """Show the messages that fit a search, newest first."""
        asked = Asked.of(request.query, "7d")
        wanted = asked.search(self._clock())
        stories, unread = await self._read(lambda journal: journal.search(wanted), request)
        more = ""
        if len(stories) > PER_PAGE:
            stories = stories[:PER_PAGE]
            more = asked.address(before=stories[-1].id)
        return self.render(
            request,
            "search.html",
            asked=asked,
            stories=stories,
            more=more,
            unread=unread,
            shown=SHOWN_RECIPIENTS,
        )

    async def story(self, request: web.Request) -> web.Response:
        """Show one message: who sent it, what each filter did, and what smtpd answered."""
        id_ = request.match_info["id"]
        found, unread = await self._read(lambda journal: _with_session(journal, id_), request)
        if found is None:
            raise web.HTTPNotFound(text="No such message, or it was purged.\n")
        story, others = found
        return self.render(request, "story.html", story=story, others=others, unread=unread)

    async def find(self, id_: str) -> Story | None:
        """Return a story by its id; None if there is none."""
        return (await self._read(lambda journal: journal.story(id_)))[0]

    async def ranked(self, request: web.Request) -> web.Response:
        """Show the most active senders, clients or users."""
        kind = request.match_info["kind"]
        if kind not in RANKED:
            raise web.HTTPNotFound(text="There are rankings of senders, clients and users.\n")
        asked = Asked.of(request.query, "7d")
        now = self._clock()
        since = now - SPANS[asked.span][1]
        ranked, unread = await self._read(
            lambda journal: journal.rankings(kind, since, now, RANKS), request
        )
        days = sorted({day for each in ranked for day in each.days})
        rows = [(each, _spark(each, days)) for each in ranked]
        return self.render(request, "ranked.html", asked=asked, kind=kind, rows=rows, unread=unread)

    async def live(self, request: web.Request) -> web.Response:
        """Show the newest messages; with JavaScript, further ones as they come."""
        wanted = Search(limit=PER_PAGE, until=self._clock() + AHEAD)
        stories, unread = await self._read(lambda journal: journal.search(wanted), request)
        return self.render(
            request, "live.html", stories=stories, unread=unread, shown=SHOWN_RECIPIENTS
        )

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Send new messages as rows of the table."""
        return await self._live.events(
            request, HEADERS, lambda: self._guard.login(request) is not None
        )

    async def _begin(self) -> None:
        self._marks = (await self._read(lambda journal: journal.marks()))[0]

    async def _new(self) -> list[Story]:
        marks = self._marks
        return (await self._read(lambda journal: journal.new(marks)))[0]

    def _row(self, story: Story) -> str:
        return self._templates.get_template("row.html").render(story=story, shown=SHOWN_RECIPIENTS)

    async def metrics(self, request: web.Request) -> web.Response:
        """Show the counters, for Prometheus."""
        metrics, accept = self._metrics, request.headers.get("Accept", "")
        if metrics is None:
            raise web.HTTPNotFound(text="The package prometheus-client is not installed.\n")
        (body, content_type), _ = await self._read(
            lambda found: metrics.scrape(found, accept), request
        )
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def started(self, _app: web.Application) -> None:
        """Begin to count."""
        if self._metrics is not None:
            try:
                await self._read(self._metrics.look)
            except web.HTTPException:  # there is no journal yet
                pass

    async def stopping(self, _app: web.Application) -> None:
        """End the live feeds and the queries in progress, which would delay the end."""
        self._ending = True
        await self._live.aclose()
        for journal in self._reading:
            journal.stop()

    # -- logging in ------------------------------------------------------------------------

    async def login(self, request: web.Request) -> web.Response:
        """Show the form to log in."""
        return self._login_form(request)

    async def log_in(self, request: web.Request) -> web.Response:
        """Log in, or show the form again."""
        if self._guard.wait(request) > 0:
            return self._too_many(request)
        fields = await request.post()
        user, password = fields.get("user", ""), fields.get("password", "")
        if isinstance(user, str) and isinstance(password, str):
            try:
                redirection = await self._guard.log_in(request, user, password)
            except BusyError:
                if self._guard.wait(request) > 0:
                    return self._too_many(request)
                return self._login_form(request, "Busy: try again in a moment.", status=503)
            if redirection is not None:
                raise redirection
        return self._login_form(request, "Wrong user or password.", status=403)

    def _too_many(self, request: web.Request) -> web.Response:
        wait = texts.duration(self._guard.wait(request))
        return self._login_form(request, f"Too many wrong passwords: wait {wait}.", status=429)

    async def log_out(self, request: web.Request) -> web.StreamResponse:
        """End the log-in."""
        raise self._guard.log_out(request)

    def _login_form(
        self, request: web.Request, error: str = "", *, status: int = 200
    ) -> web.Response:
        to = request.query.get("to", "")
        address = urlencode({"to": to}) if to else ""
        return self.render(request, "login.html", status=status, error=error, address=address)


def _templates(**of_service: Any) -> Environment:
    """Return the templates, with what they use; `of_service` differs between services."""
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals.update(
        of_service, OUTCOMES=WORDS, FATES=texts.FATES, SPANS=SPANS, stacked=STACKED
    )
    templates.filters.update(
        foreign=texts.foreign,
        moment=moment,
        machine_time=texts.machine_time,
        duration=texts.duration,
        bytes=texts.size,
        number=number,
        verdict=texts.verdict,
        cause=texts.cause,
        visible=texts.visible,
        visible_lines=texts.visible_lines,
        failures=texts.failures,
        quantile=texts.quantile,
    )
    return templates


def _metrics() -> Metrics | None:
    """Return the metrics; None without the library."""
    try:
        from .metrics import Metrics
    except ImportError:
        return None
    return Metrics()


def _with_session(journal: Journal, id_: str) -> tuple[Story, list[Story]] | None:
    """Return a story, and the others of its session."""
    story = journal.story(id_)
    if story is None:
        return None
    others = journal.search(Search(story.session, limit=20)) if story.session else []
    return story, [each for each in others[::-1] if each.id != id_]


def _start(day: str) -> float:
    """Return the beginning of a day in UTC, in seconds since 1970."""
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


def _spark(each: Ranked, days: list[str]) -> Any:
    counts = [each.days.get(day, 0) for day in days]
    words = ", ".join(f"{day}: {count}" for day, count in zip(days, counts, strict=True) if count)
    return sparkline(counts, f"messages by day: {words}")
