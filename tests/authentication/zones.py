"""Zones that answer the questions of the engines, without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from smtpd_filters.lookups.outcome import MX, NODATA, NXDOMAIN, Found, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from smtpd_filters.authentication.inquiry import Engine, Question
    from smtpd_filters.lookups.outcome import Outcome

T = TypeVar("T")
TTL = 300
#: A look-up that fails.
TIMEOUT = "TIMEOUT"
#: CNAMEs that a resolver follows (unbound: 11).
ALIASES = 11


def solve(engine: Engine[T], answer: Callable[[Question], Outcome[Any]]) -> T:
    """Return the result of an engine whose questions a function answers."""
    return Steps(answer).solve(engine)


class Steps:
    """A driver that records the questions of each step."""

    def __init__(self, answer: Callable[[Question], Outcome[Any]]) -> None:
        self._answer = answer
        self.steps: list[list[Question]] = []

    @property
    def questions(self) -> list[Question]:
        return [question for step in self.steps for question in step]

    def solve(self, engine: Engine[T]) -> T:
        try:
            questions = next(engine)
            while True:
                self.steps.append(list(questions))
                questions = engine.send([self._answer(each) for each in questions])
        except StopIteration as end:
            result: T = end.value
            return result


class Zone:
    """Records by name and type: `{"example.com": {"TXT": ["v=spf1 -all"], "A": TIMEOUT}}`.

    With `TIMEOUT` in place of the types of a name, all look-ups of the name fail. A name without
    an entry doesn't exist unless there are names below it.
    """

    def __init__(self, names: Mapping[str, Mapping[str, Any] | str]) -> None:
        self._names = {name.lower(): types for name, types in names.items()}

    def __call__(self, question: Question) -> Outcome[Any]:
        name, rdtype = question
        name = name.lower()
        for _ in range(ALIASES):
            types = self._names.get(name)
            if types is None:
                below = any(each.endswith(f".{name}") for each in self._names)
                return NotFound(NODATA if below else NXDOMAIN, TTL)
            if isinstance(types, str):
                return Unavailable("timeout")
            if rdtype in types or "CNAME" not in types:
                return _outcome(types.get(rdtype, ()), rdtype)
            name = types["CNAME"].lower()
        return NotFound(NODATA, TTL)


def _outcome(records: Any, rdtype: str) -> Outcome[Any]:
    if isinstance(records, str):
        if records == TIMEOUT:
            return Unavailable("timeout")
        records = [records]
    if not records:
        return NotFound(NODATA, TTL)
    return Found(tuple(_record(each, rdtype) for each in records), TTL)


def _record(value: Any, rdtype: str) -> object:
    match rdtype, value:
        case "MX", (preference, exchange):
            return MX(preference, exchange)
        case "TXT", str():
            return value.encode("utf-8", "surrogateescape")
        case _:
            return value
