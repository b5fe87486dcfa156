"""The base class of filters: a subclass has a handler for each phase at which it decides.

The return annotation of a handler is checked against its phase (`handlers`), so that `junk` at
`commit` is found at import.

Invariants
----------
*Registered as defined*: a filter registers the handlers that `setup` returns, by default all that
the class defines, and nothing else, since every phase costs the server a round trip per command.
*Mistakes at import*: a handler of no phase, with the wrong parameters, or annotated with a decision
that its phase does not allow is a TypeError with the class's name.
*One way to wait*: a handler is `def` if it never waits and `async def` if it may. The first step of
a coroutine is taken in the same turn; a coroutine that finishes in it needs no task.
*Always a decision*: `--on-error` decides for a handler that raises, returns anything else or misses
its deadline (`guard`).
"""

from __future__ import annotations

from time import monotonic

from . import session as reported
from .handlers import CONTENT, check_handler, check_points, is_coroutine
from .protocol.vocabulary import HANDLERS
from .runtime.log import FilterLog, Log
from .settings import MAX_DEADLINE, Pool, Settings, Shared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, ClassVar, Literal, TypeAlias

    from .message import Headers, Message
    from .own_field import OwnField
    from .protocol.decisions import Decision
    from .runtime.probes import Probe
    from .runtime.wiretap import Tap
    from .sandbox import Needs
    from .session import Session
    from .settings.declare import Option

    #: A choice of `--on-error`.
    OnError: TypeAlias = Literal["proceed", "junk", "tempfail"]
    #: The result of a handler: a decision, or a coroutine that returns one.
    Result: TypeAlias = Decision | Awaitable[Decision]

#: Events of the session and of the process; a filter that does not define the method is not called.
_EVENTS = frozenset(
    {"refresh", "link_connect", "link_identify", "link_auth", "link_disconnect", "close"}
)
#: Public methods other than handlers.
_EVENTS_AND_SETUP = _EVENTS | {"setup", "needs", "remove_forged"}

#: The reports that smtpd may have sent before a phase or an event, beyond `link-connect`.
_REPORTED_BY: dict[str, tuple[str, ...]] = {
    "connect": (),
    **dict.fromkeys(("helo", "ehlo"), ("link-greeting", "link-tls")),
    **dict.fromkeys(
        ("starttls", "auth", "mail-from"),
        ("link-greeting", "link-identify", "link-tls", "link-auth"),
    ),
}
_ALL_REPORTS = tuple(each for each in reported.FIELDS if each not in reported.NAMED_ONLY)
_REPORTED_BEFORE: dict[str, tuple[str, ...]] = {
    "link_identify": ("link-greeting", "link-identify", "link-tls"),
    "link_auth": _REPORTED_BY["auth"],
    "link_disconnect": _ALL_REPORTS,
}
#: Fields of the session that are None at a phase or an event: no client has authenticated by then,
#: greeted, or begun a transaction.
_NONE_AT = {
    "connect": frozenset({"method", "identity", "username", "failed_username", "tx"}),
    **dict.fromkeys(("helo", "ehlo"), frozenset({"username", "failed_username", "tx"})),
}
_NONE_AT.update(link_connect=_NONE_AT["connect"], link_identify=_NONE_AT["helo"])


class Registration:
    """The registrations of a filter with its settings, returned by `Filter.setup`.

    `handlers` are names of methods, by default all that the class defines. `reports` are those that
    the methods read from the session (smtpd-filters(7): `link-auth`), by default all that may
    precede the handlers' phases and the events. `events` are the names of the event methods to
    call, by default all that the class defines. With `junk=False` no handler marks, and with
    `waits=False` no handler waits: then the process needs no event loop. `opens` are the names of
    the `Shared` attributes (`dns`) to open at start, by default all of them if the filter waits.
    With `data`, messages pass through the process even without a handler for them. `points` are the
    bounds of the points that handlers give with these settings, in place of the class's. With them,
    a class whose handlers are annotated `Decision` needs no `points` of its own. `taps` and
    `outgoing` (reports of sessions in which smtpd is the client) are for tracing.
    """

    __slots__ = (
        "data", "events", "handlers", "junk", "opens", "outgoing", "points", "reports", "taps",
        "waits",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913  # one for each part of a registration
        self,
        handlers: Iterable[str] | None = None,
        *,
        reports: Iterable[str] | None = None,
        events: Iterable[str] | None = None,
        junk: bool = True,
        waits: bool = True,
        opens: Iterable[str] | None = None,
        data: bool = False,
        points: tuple[float, float] | None = None,
        taps: Iterable[Tap] = (),
        outgoing: Iterable[str] = (),
    ) -> None:
        self.handlers = None if handlers is None else frozenset(handlers)
        self.reports = None if reports is None else frozenset(reports)
        self.events = None if events is None else frozenset(events)
        self.junk = junk
        self.waits = waits
        self.opens = None if opens is None else frozenset(opens)
        self.data = data
        self.points = points
        self.taps = tuple(taps)
        self.outgoing = frozenset(outgoing)


class Filter:
    """A policy, with a handler for each phase at which it decides.

    Handlers are called with the `Session` and the client's parameter, and return a decision. Beside
    the handlers of phases there are `headers`, which may edit the header block while the body
    streams through, and `message`, which is called with the whole message.
    """

    #: The filter's name: its executable is `filter-NAME`. An instance in a chain may have another.
    name: str = ""
    #: The default of `--on-error`: the decision when a handler fails, `proceed`, `junk` or
    #: `tempfail`.
    on_error: OnError = "proceed"
    #: The default of `--deadline`: the seconds for a handler, 300 at most. On an instance, from
    #: `setup` on, the value of `--deadline`.
    deadline: float = 30.0
    #: Seconds between two calls of `refresh`.
    refresh_interval: float = 3600.0
    #: Whether, in a chain, its coroutines may be called before the filters ahead of it have
    #: decided, so that all look-ups of a phase start together. False for a filter to which it
    #: matters that it is asked, such as one that counts, and not one that only keeps answers: a
    #: filter ahead of it may refuse, or rewrite the parameter and so have it called again. Plain
    #: handlers, `headers` and `message` are always called in turn.
    early: bool = True
    #: Whether `message` waits for a scanner or another service, and edits nothing before it has
    #: awaited `smtpd_filters.runtime.coroutines.my_turn`. A chain then calls it while filters with
    #: `scans` ahead of it still wait. One that edits nothing needs no `my_turn`.
    scans: bool = False
    #: Whether it signs the header: an edit by a later filter makes the signature invalid.
    signs: bool = False
    #: Whether it edits what signatures cover: the body, a field that was there before, such as
    #: Subject, or one that it adds and that the signature should cover. A chain can't have it
    #: behind a filter that signs. `setup` may set it on the instance.
    edits_signed: bool = False
    #: The least and the most points that a handler gives (`Points`), so that a chain knows when a
    #: score is certain; None for a filter that gives none itself.
    points: ClassVar[tuple[float, float] | None] = None
    #: The header fields in which it states results; `remove_forged` removes a client's copies of
    #: them. `setup` may set it on the instance.
    own_fields: Sequence[OwnField] = ()

    #: The declarations of its settings, including those of its `Shared` attributes.
    Options: ClassVar[type[Settings]] = Settings
    settings: Settings

    #: The handlers of the class by name.
    handlers: ClassVar[dict[str, Callable[..., object]]] = {}
    #: The kinds of decision that each handler may return.
    returns: ClassVar[dict[str, frozenset[type[Decision]]]] = {}

    #: Whether its decisions are only logged; a filter that delays clients does not then.
    dry_run: bool = False
    #: The name of the file that is its store by default, if that isn't `name`.
    store_name: str = ""
    #: Seconds by which a test has advanced `now`.
    advanced: float = 0.0
    #: smtpd's configuration from its hand-shake: "admd", "smtpd-version", "smtp-session-timeout".
    smtpd: Mapping[str, str] = {}  # replaced as a whole

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = self.Options() if settings is None else settings
        #: Its log, with its name in each line. From `setup` on, that of the process.
        self.log = FilterLog(Log(), self.name)
        #: The resources of its `Shared` attributes. From `setup` on, those of the process.
        self.pool = Pool()
        #: The registrations. From `setup` on, its result.
        self.registration = Registration()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()
        where = f"filter {cls.name!r} ({cls.__module__}.{cls.__qualname__})"
        if not cls.name.replace("-", "").isalnum() or not cls.name.isascii():
            raise TypeError(f"{where}: a name consists of letters, digits and hyphens")
        _check_public(cls, where)
        _check_events(cls, where)
        for name, value in cls.__dict__.items():
            declares = isinstance(value, type) and issubclass(value, Settings)
            if declares and name != "Options":
                raise TypeError(f"{where}: settings are declared in a class Options, not {name}")
        options: Any = cls.Options
        if not (isinstance(options, type) and issubclass(options, Settings)):
            raise TypeError(f"{where}: Options is declared as class Options(Settings)")
        cls.Options = _with_shared_options(cls, where)
        cls.handlers = {
            name: getattr(cls, name) for name in (*HANDLERS, *CONTENT) if hasattr(cls, name)
        }
        check_points(cls.points, cls.handlers, where)
        cls.returns = {
            name: check_handler(name, handler, where, points=cls.points is not None)
            for name, handler in cls.handlers.items()
        }
        if not 0 < cls.deadline <= MAX_DEADLINE:
            raise TypeError(f"{where}: deadline {cls.deadline!r} is not within {MAX_DEADLINE:g} s")
        if cls.on_error not in cls.outcomes():
            raise TypeError(f"{where}: on_error {cls.on_error!r} is not one of {cls.outcomes()}")

    @classmethod
    def outcomes(cls) -> tuple[OnError, ...]:
        """Return the choices of `--on-error`: those that every handler of the class allows."""
        return legal_outcomes(cls.handlers)

    @classmethod
    def described(cls) -> str:
        """Return the first line of its docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    def now(self) -> float:
        """Return the seconds of a steady clock, for a filter's own timers.

        In a test `Conversation.advance` moves it.
        """
        return monotonic() + self.advanced

    def setup(self) -> Registration | None:
        """Prepare with the settings, before the registrations are sent to smtpd.

        Returns the registrations; None stands for `Registration()`, all that the class defines. May
        raise ConfigError.
        """

    def needs(self, needs: Needs) -> None:
        """Declare what the filter's own code needs after the start; called after `setup`.

        What its settings name is declared already: tables, paths, name servers. Everything else,
        such as a database that it reads, is out of reach with `--sandbox`.
        """

    def probes(self) -> Iterable[Probe]:
        """Return probes of services that the filter's own code asks, for `check --online`.

        Those of `Shared` attributes, such as name servers, are added by the framework.
        """
        return ()

    async def refresh(self) -> None:
        """Maintain data outside of sessions, once at start and every `refresh_interval`.

        An exception is logged; the next call follows after the interval.
        """

    def link_connect(self, session: Session) -> None:
        """Start look-ups for a client that has connected; no request is pending yet."""

    def link_identify(self, session: Session) -> None:
        """Start look-ups for a client whose greeting smtpd has accepted."""

    def link_auth(self, session: Session) -> None:
        """Note the result of an authentication: `session.username`, or a `failed_username`."""

    def link_disconnect(self, session: Session) -> None:
        """Release the data of a session that has ended."""

    def remove_forged(self, session: Session, headers: Headers) -> None:  # noqa: ARG002
        """Remove a client's copies of `own_fields` from a message that the filter hasn't judged.

        The framework calls it when `headers` or `message` has failed, its edits are undone, and
        `--on-error` lets the message pass. A filter that leaves the fields of some clients alone
        overrides it.
        """
        for field in self.own_fields:
            field.remove(headers)

    async def close(self) -> None:
        """Release what `setup` acquired, at the end of the process; `Shared` resources excepted."""

    # -- registrations -------------------------------------------------------------------

    @property
    def registered(self) -> frozenset[str]:
        """The names of the registered handlers."""
        chosen = self.registration.handlers
        return frozenset(self.handlers) if chosen is None else chosen

    @property
    def events(self) -> frozenset[str]:
        """The names of the event methods that are called."""
        chosen = self.registration.events
        return self.defined_events() if chosen is None else chosen

    def defined_events(self) -> frozenset[str]:
        """Return the names of the event methods that the class defines."""
        cls = type(self)
        return frozenset(
            each for each in _EVENTS if getattr(cls, each) is not getattr(Filter, each)
        )

    @property
    def waits(self) -> bool:
        """Whether it needs an event loop: it has `refresh`, or a registered handler may wait."""
        return self._waits or bool(self.remote_tables())

    @property
    def _waits(self) -> bool:
        """Whether it needs an event loop, remote tables aside."""
        if "refresh" in self.events:
            return True
        called = [self.handlers[name] for name in self.handlers.keys() & self.registered]
        return self.registration.waits and any(map(is_coroutine, called))

    def required_reports(self) -> frozenset[str]:
        """Return the reports that the registered handlers and the events may read."""
        if self.registration.reports is not None:
            return self.registration.reports
        known: set[str] = set()
        for name in self.registered:
            phase = HANDLERS.get(name)
            known.update(_REPORTED_BY.get(phase.name, _ALL_REPORTS) if phase else _ALL_REPORTS)
        for event in self.events:
            known.update(_REPORTED_BEFORE.get(event, ()))
        return frozenset(known)

    def fields_without_reports(self) -> frozenset[str]:
        """Return the fields of the session that its handlers read as None without a report.

        So a check that `--phase` moves, such as exemptions, reads them at every phase. There are
        none with `reports` in the registration, which name what is read.
        """
        called = self.registered | self.events - {"refresh", "close"}
        if not called or self.registration.reports is not None:
            return frozenset()
        return frozenset.intersection(*(_NONE_AT.get(each, frozenset()) for each in called))

    @property
    def opens(self) -> frozenset[str]:
        """The names of the `Shared` attributes that are opened at start."""
        chosen = self.registration.opens
        if chosen is not None:
            return chosen
        return self.defined_shared() if self._waits else frozenset()

    def remote_tables(self) -> list[Any]:
        """Return the remote tables of its settings, such as those in a database."""
        values = vars(self.settings).values()
        return [table for value in values for table in getattr(value, "remotes", ())]

    def defined_shared(self) -> frozenset[str]:
        """Return the names of the `Shared` attributes that the class defines."""
        every = {
            name: value for cls in type(self).__mro__[::-1] for name, value in vars(cls).items()
        }
        return frozenset(name for name, value in every.items() if isinstance(value, Shared))

    def declare(self, needs: Needs) -> None:
        """Declare what its settings, its `Shared` attributes and its own code need after start."""
        for name, declared in self.settings.options.items():
            value = vars(self.settings)[name]
            if value is not None:
                declared.kind.declare(value, needs)
        for name in sorted(self.opens):
            getattr(type(self), name).declare(self, needs)
        self.needs(needs)

    def all_probes(self) -> Iterator[Probe]:
        """Yield the probes of its `Shared` attributes and its own."""
        from .runtime.probes import own  # for `check --online` only

        for name in sorted(self.opens):
            yield from getattr(type(self), name).probes(self)
        for table in self.remote_tables():
            yield table.remote.probe()
        yield from own(self.name, self.probes)

    def open_shared(self) -> None:
        """Open the `Shared` attributes in `opens`. Raises ConfigError."""
        if unknown := self.opens - self.defined_shared():
            raise TypeError(f"filter {self.name!r}: nothing to open for {sorted(unknown)}")
        for name in sorted(self.opens):
            getattr(self, name)

    if TYPE_CHECKING:
        # The parameters and results of handlers, for the type checker.

        def connect(self, session: Session) -> Result: ...
        def helo(self, session: Session, identity: str, /) -> Result: ...
        def ehlo(self, session: Session, identity: str, /) -> Result: ...
        def starttls(self, session: Session) -> Result: ...
        def auth(self, session: Session, credentials: str, /) -> Result: ...
        def mail_from(self, session: Session, address: str, /) -> Result: ...
        def rcpt_to(self, session: Session, address: str, /) -> Result: ...
        def data(self, session: Session) -> Result: ...
        def headers(self, session: Session, headers: Headers) -> Result: ...
        def message(self, session: Session, message: Message) -> Result: ...
        def commit(self, session: Session) -> Result: ...
        def rset(self, session: Session) -> Result: ...
        def noop(self, session: Session, text: str, /) -> Result: ...
        def quit(self, session: Session) -> Result: ...


def legal_outcomes(handlers: Iterable[str]) -> tuple[OnError, ...]:
    """Return the choices of `--on-error` that all of these handlers allow."""
    every = [HANDLERS[name].fallbacks for name in handlers if name in HANDLERS]
    outcomes: tuple[OnError, ...] = ("proceed", "junk", "tempfail")
    return tuple(o for o in outcomes if all(o in fallbacks for fallbacks in every))


def _with_shared_options(cls: type[Filter], where: str) -> type[Settings]:
    """Return the options of a class, including those of its `Shared` attributes.

    Raises TypeError for an option declared twice.
    """
    options = cls.Options
    settings = [
        (attribute, value)
        for base in reversed(cls.__mro__)
        for attribute, value in vars(base).items()
        if isinstance(value, Shared)
    ]
    # A subclass may replace an attribute of a base class, and its options.
    replaceable = {id(option) for _, each in settings for option in each.options.values()}
    shared: dict[str, Option] = {}
    for attribute, setting in settings:
        if getattr(cls, attribute) is setting:
            for name, option in setting.options.items():
                declared = options.options.get(name)
                if name in shared or (declared and id(declared) not in replaceable):
                    raise TypeError(f"{where}: {attribute} has an option {name!r}, declared twice")
                shared[name] = option
    if all(options.options.get(name) is option for name, option in shared.items()):
        return options
    names = {"__module__": options.__module__, "__qualname__": options.__qualname__}
    return type("Options", (options,), {**names, "__doc__": options.__doc__, **shared})


def _check_public(cls: type[Filter], where: str) -> None:
    """Raise TypeError for a public method other than a handler: it may be a misspelt one."""
    known = HANDLERS.keys() | CONTENT.keys() | _EVENTS_AND_SETUP
    for name, value in cls.__dict__.items():
        plain = callable(value) and not isinstance(value, type)
        if plain and not name.startswith("_") and name not in known and not hasattr(Filter, name):
            from difflib import get_close_matches  # only for this message

            near = get_close_matches(name, known, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"{where}: {name!r} is not the handler of a phase{hint} "
                "(helpers begin with an underscore)"
            )


def _check_events(cls: type[Filter], where: str) -> None:
    """Raise TypeError for an event method that is wrongly `async def`, or wrongly isn't."""
    for name in _EVENTS_AND_SETUP & cls.__dict__.keys():
        wanted = is_coroutine(getattr(Filter, name))
        if is_coroutine(cls.__dict__[name]) is not wanted:
            raise TypeError(
                f"{where}: {name} must be {'async def' if wanted else 'a plain method'}"
            )
