"""What a filter's author writes: a subclass of `Filter` with a handler per phase.

Law
---
1. The handlers that a class defines are what is asked of smtpd: nothing is registered that
   is not used, for every phase costs the server a round trip per command.
2. What is wrong with a class is said when it is defined, with its name: a handler that
   belongs to no phase, one with the wrong parameters, one that may return what its phase does
   not allow, an outcome for failures that a phase does not have.
3. A handler is a plain method, answered in the same turn, or a coroutine, or a plain method
   that returns a coroutine when it has to wait (``Proceed | Junk | Awaitable[Proceed | Junk]``):
   what is known at once then costs no task.  It comes to a decision; one that raises, returns
   anything else or takes too long is answered for, as ``--on-error`` says.

The return annotation of a handler is what it may answer, and is checked against its phase
(`protocol.vocabulary`): ``junk`` at ``commit`` is then a mistake that is found at import.
"""

from __future__ import annotations

from . import session as reported
from .protocol.decisions import Disconnect, Junk, Marked, Proceed, Reject, Rewrite
from .protocol.vocabulary import HANDLERS
from .runtime.log import FilterLog, Log
from .settings import MAX_DEADLINE, Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import ClassVar, Literal

    from .message import Headers, Message
    from .protocol.decisions import Answer, ContentAnswer, Decision, FinalAnswer, ParameterAnswer
    from .runtime.wiretap import Tap
    from .session import Session

    Outcome = Literal["proceed", "junk", "tempfail"]

_KINDS: dict[str, tuple[type[Decision], ...]] = {
    **{kind.__name__: (kind,) for kind in (Proceed, Junk, Marked, Reject, Disconnect, Rewrite)},
    "Answer": (Proceed, Junk, Reject, Disconnect),
    "ParameterAnswer": (Proceed, Junk, Reject, Disconnect, Rewrite),
    "ContentAnswer": (Proceed, Junk, Marked, Reject, Disconnect),
    "FinalAnswer": (Proceed, Reject, Disconnect),
}
#: Handlers that see a message; what they refuse is refused at ``commit``, and what they call
#: junk is marked in the header, unless they say that they have marked it themselves.
CONTENT = {"headers": "headers", "message": "message"}
_CONTENT_LEGAL = frozenset(_KINDS["ContentAnswer"])
#: What a filter is told of in its life; one that does not define a method is not called for it.
_EVENTS = frozenset({"refresh", "arrived", "identified", "gone", "close"})
#: Public methods that are no handlers.
_LIFE = _EVENTS | {"setup"}
#: What a handler that may have to wait says it returns.
_AWAITABLE = "Awaitable["

#: What smtpd can have reported by the time of a phase, beyond ``link-connect``.
_KNOWN_BY: dict[str, tuple[str, ...]] = {
    "connect": (),
    **dict.fromkeys(("helo", "ehlo", "starttls"), ("link-greeting", "link-tls")),
    **dict.fromkeys(
        ("auth", "mail-from"), ("link-greeting", "link-identify", "link-tls", "link-auth")
    ),
}
_ALL_KNOWN = tuple(reported.FIELDS)


class Filter:
    """A policy: asked at the phases for which it has a handler.

    Handlers get the `Session` and what the client said, and return a decision.  Beside those
    of the phases there are ``headers``, which may edit the header block while the body streams
    through, and ``message``, which sees the whole message.
    """

    #: The filter's name: its executable is ``filter-NAME``.  In a chain of several an instance may
    #: have another.
    name: str = ""
    #: What becomes of a request when a handler fails, unless ``--on-error`` says otherwise.
    on_error: Outcome = "proceed"
    #: Seconds that a handler may take, 300 at most.  That of an instance is what ``--deadline``
    #: says, from `setup` on.
    deadline: float = 30.0
    #: Reports that its handlers read from the session; by default all that can be there.
    needs: ClassVar[frozenset[str] | None] = None

    #: Reports of the sessions in which smtpd is the client; only a tap sees them.
    outgoing: frozenset[str] = frozenset()
    #: Whether a handler may say junk with these settings.
    marks: bool = True
    #: Whether messages come by even when no handler looks at them.
    passes_data: bool = False
    #: Who is to hear every byte that passes, for tracing; `setup` makes them.  No policy needs one.
    taps: tuple[Tap, ...] = ()

    #: The declarations of its settings.
    Options: ClassVar[type[Settings]] = Settings
    settings: Settings

    #: The handlers of the class, by their names.
    handlers: ClassVar[dict[str, Callable[..., object]]] = {}
    #: What each of them may return.
    returns: ClassVar[dict[str, frozenset[type[Decision]]]] = {}
    #: Handlers that may be or return a coroutine.  `setup` empties it when none will with these
    #: settings: then it takes no event loop to run the filter.
    later: frozenset[str] = frozenset()

    #: Whether what it decides is only logged; a filter that waits on purpose does not then.
    dry_run: bool = False
    #: Seconds between two calls of `refresh`.
    refresh_interval: float = 3600.0
    #: What smtpd said of itself: "admd", "smtpd-version", "smtp-session-timeout".
    smtpd: Mapping[str, str] = {}  # replaced as a whole

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = self.Options() if settings is None else settings
        #: Its lines of the log, under its name.  That of the process from `setup` on.
        self.log = FilterLog(Log(), self.name)
        #: The handlers in use; `setup` may take some away.
        self.phases = set(self.handlers)
        #: The events of its life that it wants to be told of; likewise.
        self.events = {
            event for event in _EVENTS if getattr(type(self), event) is not getattr(Filter, event)
        }

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()
        where = f"filter {cls.name!r} ({cls.__module__}.{cls.__qualname__})"
        if not cls.name.replace("-", "").isalnum() or not cls.name.isascii():
            raise TypeError(f"{where}: a name is made of letters, digits and hyphens")
        _check_public(cls, where)
        _check_events(cls, where)
        for name, value in cls.__dict__.items():
            declares = isinstance(value, type) and issubclass(value, Settings)
            if declares and name != "Options":
                raise TypeError(f"{where}: settings are declared in a class Options, not {name}")
        cls.handlers = {
            name: getattr(cls, name) for name in (*HANDLERS, *CONTENT) if hasattr(cls, name)
        }
        cls.returns = {
            name: _check_handler(name, handler, where) for name, handler in cls.handlers.items()
        }
        cls.later = frozenset(name for name, code in cls.handlers.items() if _may_wait(code))
        if not 0 < cls.deadline <= MAX_DEADLINE:
            raise TypeError(f"{where}: deadline {cls.deadline!r} is not within {MAX_DEADLINE:g} s")
        if cls.on_error not in cls.outcomes():
            raise TypeError(f"{where}: on_error {cls.on_error!r} is not one of {cls.outcomes()}")
        unknown = (cls.needs or frozenset()) - reported.FIELDS.keys()
        if unknown:
            raise TypeError(f"{where}: needs {sorted(unknown)}, of {sorted(reported.FIELDS)}")

    @classmethod
    def outcomes(cls) -> tuple[Outcome, ...]:
        """The outcomes for failures that every phase of this filter has."""
        every = [HANDLERS[name].fallbacks for name in cls.handlers if name in HANDLERS]
        outcomes: tuple[Outcome, ...] = ("proceed", "junk", "tempfail")
        return tuple(o for o in outcomes if all(o in fallbacks for fallbacks in every))

    @classmethod
    def described(cls) -> str:
        """The first line of its docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    def setup(self) -> None:
        """Get ready, once the settings are known and before smtpd is told so.

        May raise ConfigError.
        """

    async def refresh(self) -> None:
        """Look after what is not of a session, once at the start and every `refresh_interval`.

        What it raises is logged, and it is called again in its time.
        """

    def arrived(self, session: Session) -> None:
        """The client is known, and nobody waits yet: the time to start look-ups."""

    def identified(self, session: Session) -> None:
        """The client has greeted, and smtpd has taken its greeting."""

    def gone(self, session: Session) -> None:
        """The session is over."""

    async def close(self) -> None:
        """Let go of what `setup` took; the process ends."""

    def required_reports(self) -> frozenset[str]:
        """The reports that its handlers in use may read."""
        if self.needs is not None:
            return self.needs
        known: set[str] = set()
        for name in self.phases:
            phase = HANDLERS.get(name)
            known.update(_KNOWN_BY.get(phase.name, _ALL_KNOWN) if phase else _ALL_KNOWN)
        return frozenset(known)

    if TYPE_CHECKING:
        # What a handler gets and may return, for the type checker.

        def connect(self, session: Session) -> Answer | Awaitable[Answer]: ...
        def helo(
            self, session: Session, identity: str, /
        ) -> ParameterAnswer | Awaitable[ParameterAnswer]: ...
        def ehlo(
            self, session: Session, identity: str, /
        ) -> ParameterAnswer | Awaitable[ParameterAnswer]: ...
        def starttls(self, session: Session) -> Answer | Awaitable[Answer]: ...
        def auth(
            self, session: Session, credentials: str, /
        ) -> ParameterAnswer | Awaitable[ParameterAnswer]: ...
        def mail_from(
            self, session: Session, address: str, /
        ) -> ParameterAnswer | Awaitable[ParameterAnswer]: ...
        def rcpt_to(
            self, session: Session, address: str, /
        ) -> ParameterAnswer | Awaitable[ParameterAnswer]: ...
        def data(self, session: Session) -> Answer | Awaitable[Answer]: ...
        def headers(
            self, session: Session, headers: Headers
        ) -> ContentAnswer | Awaitable[ContentAnswer]: ...
        def message(
            self, session: Session, message: Message
        ) -> ContentAnswer | Awaitable[ContentAnswer]: ...
        def commit(self, session: Session) -> FinalAnswer | Awaitable[FinalAnswer]: ...
        def rset(self, session: Session) -> FinalAnswer | Awaitable[FinalAnswer]: ...
        def noop(self, session: Session, text: str, /) -> Answer | Awaitable[Answer]: ...
        def quit(
            self, session: Session
        ) -> Proceed | Disconnect | Awaitable[Proceed | Disconnect]: ...


def _check_public(cls: type[Filter], where: str) -> None:
    """Every public method of a filter is a handler: a misspelt one would never be called."""
    known = HANDLERS.keys() | CONTENT.keys() | _LIFE
    for name, value in cls.__dict__.items():
        plain = callable(value) and not isinstance(value, type)
        if plain and not name.startswith("_") and name not in known and not hasattr(Filter, name):
            from difflib import get_close_matches  # only for this message

            near = get_close_matches(name, known, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"{where}: {name!r} is no phase's handler{hint} (helpers begin with an underscore)"
            )


def _check_events(cls: type[Filter], where: str) -> None:
    """What is called must not be a coroutine that nobody awaits, nor the other way round."""
    for name in _LIFE & cls.__dict__.keys():
        wanted = _is_coroutine(getattr(Filter, name))
        if _is_coroutine(cls.__dict__[name]) is not wanted:
            raise TypeError(f"{where}: {name} is {'async def' if wanted else 'a plain method'}")


def _check_handler(
    name: str, handler: Callable[..., object], where: str
) -> frozenset[type[Decision]]:
    """The kinds of decision that a handler says it returns; TypeError if its phase has not all."""
    phase = HANDLERS.get(name)
    argument = CONTENT[name] if phase is None else phase.argument
    legal = _CONTENT_LEGAL if phase is None else phase.legal
    code = getattr(handler, "__code__", None)
    takes = ("self", "session", argument) if argument else ("self", "session")
    if code is None or code.co_argcount != len(takes) or code.co_kwonlyargcount:
        raise TypeError(f"{where}: {name} takes ({', '.join(takes)})")
    said = getattr(handler, "__annotations__", {}).get("return")
    if "return" not in getattr(handler, "__annotations__", {}):
        refusal = "Reject" if Reject in legal else "Disconnect"
        raise TypeError(
            f'{where}: {name} has no annotation of what it returns; write "-> Proceed | {refusal}"'
        )
    kinds = [_KINDS.get(word.rpartition(".")[2]) for word in _named(said)]
    if not kinds or None in kinds:
        raise TypeError(f"{where}: {name} says that it returns {said!r}, which is no decision")
    returns = frozenset(kind for known in kinds if known for kind in known)
    if not returns <= legal:
        wrong = ", ".join(sorted(kind.__name__ for kind in returns - legal))
        raise TypeError(f"{where}: {name} may not answer {wrong}")
    return returns


def _named(said: object) -> list[str]:
    """The names in a return annotation, be it text or types; what is awaited counts as itself."""
    if isinstance(said, str):
        return [word.strip() for word in said.replace(_AWAITABLE, "").replace("]", "").split("|")]
    parts = getattr(said, "__args__", ())
    if parts:
        return [name for part in parts for name in _named(part)]
    return [getattr(said, "__name__", "")]


def _may_wait(handler: Callable[..., object]) -> bool:
    """Whether a handler is written ``async def``, or says that it may return an awaitable."""
    said = getattr(handler, "__annotations__", {}).get("return")
    return _is_coroutine(handler) or _AWAITABLE in str(said)


def _is_coroutine(function: object) -> bool:
    """Whether a function is written ``async def``; `inspect` would cost start-up."""
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & 0x80)  # CO_COROUTINE
