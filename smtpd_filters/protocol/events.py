"""The lines of the protocol as values.

smtpd sends `Config`, `Report`, `Request` and `Lines`; a filter sends `Register`, `Result` and
`Line`. An invalid line is `Malformed`. Sessions, tokens and texts stay bytes, since mail is not
UTF-8; a field is decoded where it is interpreted.
"""

from __future__ import annotations

from operator import itemgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, Self

    from .vocabulary import Phase

    _Tuple = tuple[Any, ...]
else:
    _Tuple = tuple


#: Bytes of a line kept for the log.
SHOWN = 200


class Event:
    """A value with its fields as slots; equal if class and fields are equal."""

    __slots__ = ()
    __match_args__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        fields = zip(self.__match_args__, self._values(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in fields)})"

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)


class Config(Event):
    """`config|KEY|VALUE`; the last one has the key `ready` and no value."""

    __slots__ = __match_args__ = ("key", "value")

    def __init__(self, key: str, value: str = "") -> None:
        self.key, self.value = key, value


class _Row(_Tuple):
    """An event as a named tuple: there are many of them, and tuples are created in C."""

    __slots__ = ()
    __match_args__: tuple[str, ...] = ()

    def __repr__(self) -> str:
        fields = zip(self.__match_args__, self, strict=True)
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in fields)})"


class Report(_Row):
    """A report, created from the tuple of its fields.

    `values` are in the field order of the newest protocol.
    """

    __slots__ = ()
    __match_args__ = ("name", "subsystem", "time", "session", "values")

    if TYPE_CHECKING:
        name: str
        subsystem: bytes
        time: bytes
        session: bytes
        values: tuple[bytes, ...]

        def __new__(  # noqa: D102  # described by its class
            cls, fields: tuple[str, bytes, bytes, bytes, tuple[bytes, ...]], /
        ) -> Self: ...
    else:
        name, subsystem, time, session, values = map(property, map(itemgetter, range(5)))


class Request(_Row):
    """A request for a decision, created from the tuple of its fields.

    `phase` is None if it is unknown.
    """

    __slots__ = ()
    __match_args__ = ("phase", "time", "session", "token", "argument")

    if TYPE_CHECKING:
        phase: Phase | None
        time: bytes
        session: bytes
        token: bytes
        argument: bytes

        def __new__(  # noqa: D102  # described by its class
            cls, fields: tuple[Phase | None, bytes, bytes, bytes, bytes], /
        ) -> Self: ...
    else:
        phase, time, session, token, argument = map(property, map(itemgetter, range(5)))


class Lines(Event):
    """Dot-stuffed lines of a message; `end` if the final dot follows them."""

    __slots__ = __match_args__ = ("session", "token", "lines", "end")

    def __init__(self, session: bytes, token: bytes, lines: list[bytes], *, end: bool) -> None:
        self.session, self.token, self.lines, self.end = session, token, lines, end


class Malformed(Event):
    """An invalid line; `token` is set if it is a request that can be answered.

    `session` is set for such a request, and for a data-line.
    """

    __slots__ = __match_args__ = ("kind", "line", "session", "token")

    def __init__(self, kind: str, line: bytes, session: bytes = b"", token: bytes = b"") -> None:
        self.kind, self.line = kind, line[:SHOWN]
        self.session, self.token = session, token


class Register(Event):
    """`register|KIND|smtp-in|NAME`, of the kind `report` or `filter`.

    The last one is `register|ready`, of the kind `ready`, without subsystem and name.
    """

    __slots__ = __match_args__ = ("kind", "subsystem", "name")

    def __init__(
        self, kind: Literal["report", "filter", "ready"], subsystem: str = "", name: str = ""
    ) -> None:
        self.kind, self.subsystem, self.name = kind, subsystem, name


class Result(Event):
    """`filter-result`: the answer to a request; `argument` is None if it has none."""

    __slots__ = __match_args__ = ("session", "token", "verb", "argument")

    def __init__(self, session: bytes, token: bytes, verb: bytes, argument: bytes | None) -> None:
        self.session, self.token, self.verb, self.argument = session, token, verb, argument


class Line(Event):
    """`filter-dataline`: one line of the message as the filter returns it."""

    __slots__ = __match_args__ = ("session", "token", "line")

    def __init__(self, session: bytes, token: bytes, line: bytes) -> None:
        self.session, self.token, self.line = session, token, line
