"""The handlers of a filter's class: what each may return, and the check of its declaration.

A handler is declared by its name, its parameters and its return annotation. `Decision`, an alias,
or the annotation of a decorator stands for every decision that the phase allows.

Invariants
----------
*Mistakes at import*: a handler with the wrong parameters, or annotated with a decision that its
phase does not allow, is a TypeError with the class's name.
"""

from __future__ import annotations

from .protocol.decisions import (
    MAX_POINTS,
    Disconnect,
    Junk,
    Marked,
    Points,
    Proceed,
    Reject,
    Rewrite,
)
from .protocol.vocabulary import HANDLERS
from .settings.declare import annotations_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, TypeAlias

    from .protocol.decisions import Decision

    Handler: TypeAlias = Callable[..., object]

_KINDS: dict[str, tuple[type[Decision], ...]] = {
    **{
        kind.__name__: (kind,)
        for kind in (Proceed, Junk, Marked, Points, Reject, Disconnect, Rewrite)
    },
    "Answer": (Proceed, Junk, Reject, Disconnect),
    "ParameterAnswer": (Proceed, Junk, Reject, Disconnect, Rewrite),
    "ContentAnswer": (Proceed, Junk, Marked, Reject, Disconnect),
    "FinalAnswer": (Proceed, Reject, Disconnect),
}
#: Annotations that are certainly a mistake; any other unknown one is left to the run-time check.
_NO_DECISION = frozenset({"", "None", "NoneType", "bool", "str", "bytes", "int", "float", "object"})
#: Handlers of messages, with their parameter. A refusal is sent at `commit`; for `JUNK` the
#: framework marks the header, for `MARKED` the handler has done so.
CONTENT = {"headers": "headers", "message": "message"}
_CONTENT_LEGAL = frozenset(_KINDS["ContentAnswer"])
#: Handlers whose points count. Later, nothing can be marked any more.
SCORED = frozenset(
    {"connect", "helo", "ehlo", "starttls", "auth", "mail_from", "rcpt_to", "data", *CONTENT}
)
#: Annotations of a handler that returns a coroutine but isn't `async def`.
_AWAITABLES = frozenset({"Awaitable", "Coroutine"})
_CO_VARARGS, _CO_COROUTINE = 0x04, 0x80
#: The type of `Proceed | Junk` as an annotation.
_UNION = type(Proceed | Junk)


def legal_decisions(handler: str) -> frozenset[type[Decision]]:
    """Return the kinds of decision that the phase of a handler allows."""
    phase = HANDLERS.get(handler)
    legal = _CONTENT_LEGAL if phase is None else phase.legal
    return legal | {Points} if handler in SCORED else legal


def is_coroutine(function: object) -> bool:
    """Return whether a function, or one that it wraps, is `async def`."""
    return any(  # without `inspect`: start-up time
        code is not None and code.co_flags & _CO_COROUTINE
        for code in (getattr(each, "__code__", None) for each in _layers(function))
    )


def unwrapped(function: object) -> Any:
    """Return the function below decorators that use `functools.wraps`."""
    *_, innermost = _layers(function)
    return innermost


def _layers(function: object) -> Iterator[object]:
    """Yield a function, the function that it wraps, and so on."""
    yield function
    while (function := getattr(function, "__wrapped__", None)) is not None:
        yield function


def check_points(points: Any, handlers: Mapping[str, Handler], where: str) -> None:
    """Raise TypeError for points that are not two numbers, and for `Points` without them."""
    if points is not None:
        check_bounds(points, where)
        return
    for name, handler in handlers.items():
        if "Points" in _annotated_names(annotations_of(unwrapped(handler)).get("return", "")):
            raise TypeError(
                f"{where}: {name} returns Points; declare the least and the most of them, such as "
                "points = (0, 5)"
            )


def check_bounds(points: Any, where: str) -> None:
    """Raise TypeError for bounds of points that are not two numbers, the lower one first."""
    try:
        low, high = points
        valid = -MAX_POINTS <= low <= high <= MAX_POINTS
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise TypeError(f"{where}: points = {points!r} is not (least, most)")


def check_handler(
    name: str, handler: Handler, where: str, *, points: bool
) -> frozenset[type[Decision]]:
    """Return the kinds of decision in a handler's annotation.

    Raises TypeError for the wrong parameters and for a kind that its phase does not allow.
    """
    phase = HANDLERS.get(name)
    argument = CONTENT[name] if phase is None else phase.argument
    legal = legal_decisions(name) if points else legal_decisions(name) - {Points}
    plain = unwrapped(handler)
    code = getattr(plain, "__code__", None)
    takes = ("self", "session", argument) if argument else ("self", "session")
    if code is None or (
        not code.co_flags & _CO_VARARGS
        and (code.co_argcount != len(takes) or code.co_kwonlyargcount)
    ):
        raise TypeError(f"{where}: {name} takes ({', '.join(takes)})")
    annotations = annotations_of(plain)
    if "return" not in annotations:
        if code.co_flags & _CO_VARARGS:
            return legal  # a decorator's
        raise TypeError(f'{where}: {name} has no return annotation; write "-> Decision"')
    words = [
        word.partition("[")[0].rpartition(".")[2]
        for word in _annotated_names(annotations["return"])
    ]
    if not _AWAITABLES.isdisjoint(words):
        raise TypeError(f'{where}: {name} may wait; write "async def {name}" and "-> Decision"')
    if not _NO_DECISION.isdisjoint(words):
        shown = " | ".join(words)
        raise TypeError(f'{where}: {name} is annotated "-> {shown}", but must return a Decision')
    kinds = [_KINDS.get(word) for word in words]
    if None in kinds:
        return legal
    returns = frozenset(kind for known in kinds if known for kind in known)
    if not returns <= legal:
        wrong = ", ".join(sorted(kind.__name__ for kind in returns - legal))
        allowed = ", ".join(sorted(kind.__name__ for kind in legal))
        raise TypeError(f"{where}: {name} may not return {wrong}, only {allowed}")
    return returns


def _annotated_names(annotation: object) -> list[str]:
    """Return the names in a return annotation, given as text or as types."""
    if isinstance(annotation, str):
        return [word.strip() for word in annotation.split("|")]
    if isinstance(annotation, _UNION):
        union: Any = annotation
        return [name for part in union.__args__ for name in _annotated_names(part)]
    return [getattr(annotation, "__name__", str(annotation))]
