"""The kinds of settings: texts, numbers, times, choices, lists, tables and others.

`INTEGER`, `NUMBER`, `SECONDS`, `SIZE` and `ENDPOINT` can be used as they are or called to narrow
them: `INTEGER(low=0, high=100)`, `ENDPOINT(port=53)`.

The invariants of all kinds are in `kind`.
"""

from __future__ import annotations

from math import isfinite

from smtpd_filters.protocol.decisions import check_reply

from .kind import Kind, not_an_array
from .quoting import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, Protocol, Self, TypeVar

    T = TypeVar("T")
    N = TypeVar("N", int, float)
    W = TypeVar("W", bound=str)

    from smtpd_filters.sandbox import Needs

    class Loadable(Protocol):
        """A table class: loaded from a spec as in table(5), which it keeps."""

        @property
        def source(self) -> str:
            """The spec it was loaded from."""
            ...

        @classmethod
        def load(cls, spec: str) -> Self:
            """Load it; raise ConfigError if that fails."""
            ...

    L = TypeVar("L", bound=Loadable)
else:  # the same names without the cost of importing typing
    T = N = W = L = None
    Loadable = object

_LONGEST_NAME = 64
_PORT_MAX = 65535
_CODE_DIGITS = 3  # RFC 5321 section 4.2
_LABEL_MAX = 63  # RFC 1035 section 2.3.1
_HOST_MAX = 253  # RFC 1035 section 2.3.4: 255 with the first length byte and the root's

# As Go's flag package parses them (strconv.ParseBool).
_BOOLEANS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}
_TIMES = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
# Powers of 1024, as in smtpd.conf(5), by scan_scaled(3).
_SIZES = (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("k", 1 << 10))


class _Text(Kind[str]):
    metavar = "TEXT"
    noun = "a string"

    def parse(self, text: str) -> str:
        return text


class _FilterName(_Text):
    metavar = "NAME"
    inward = True
    noun = "a name of at most 64 letters, digits and ._+-, the first a letter or digit"

    def parse(self, text: str) -> str:
        plain = text.isascii() and all(each.isalnum() or each in "._+-" for each in text)
        if not (plain and text[:1].isalnum() and len(text) <= _LONGEST_NAME):
            raise ValueError(f"expected {self.noun}, not {quote(text)}")
        return text


class _Delimiter(_Text):
    metavar = "CHARACTER"
    inward = True
    noun = "a printable character of ASCII, but not @"

    def parse(self, text: str) -> str:
        if len(text) != 1 or not "!" <= text <= "~" or text == "@":  # as smtpd's parse.y
            raise ValueError(f"expected {self.noun}, not {quote(text)}")
        return text


class _Reply(_Text):
    inward = True
    noun = 'a reply with its codes, such as "550 5.7.1 Not from here"'

    def parse(self, text: str) -> str:
        if text.isdigit() and len(text) == _CODE_DIGITS:
            raise ValueError(f"a code without a text, {quote(text)}: quote the whole reply")
        check_reply(text)
        return text


class _Path(Kind[str]):
    metavar = "PATH"
    noun = "a path, as a string"

    def __init__(self, access: Literal["start", "read", "write"] = "start") -> None:
        self._access = access

    def __call__(self, access: Literal["start", "read", "write"]) -> _Path:
        """Return the same kind with another use of the path after the start."""
        return type(self)(access)

    def declare(self, value: str, needs: Needs) -> None:
        if self._access == "read":
            needs.to_read(value)
        elif self._access == "write":
            needs.to_write(value)

    def parse(self, text: str) -> str:
        if not text or "\0" in text:
            raise ValueError(f"expected {self.noun}, not {quote(text)}")
        return text


class _Switch(Kind[bool]):
    inward = True
    noun = "true or false"
    toml = (bool,)

    def parse(self, text: str) -> bool:
        try:
            return _BOOLEANS[text.lower()]
        except KeyError:
            raise ValueError(f"expected {self.noun}, not {quote(text)}") from None

    def show(self, value: bool) -> str:  # noqa: FBT001  # the value itself, not an option
        return str(value).lower()


class _Choice(Kind[W]):
    inward = True
    literal = True
    noun = "one of the choices, as a string"

    def __init__(self, choices: tuple[W, ...]) -> None:
        if not choices or not all(word and isinstance(word, str) for word in choices):
            raise TypeError(
                f"choice{choices!r}: each argument is a word, not empty, as in "
                'choice("junk", "reject")'
            )
        self.choices = choices
        self.metavar = "|".join(choices)

    def parse(self, text: str) -> W:
        for word in self.choices:
            if word == text:
                return word
        allowed = ", ".join(self.choices)
        raise ValueError(f"invalid choice {quote(text)} (choose from {allowed})")


class _Ranged(Kind[N]):
    """A quantity with optional bounds, both inclusive."""

    inward = True
    lowest: N | None = None  # the default lower bound

    def __init__(self, low: N | None = None, high: N | None = None) -> None:
        self.low: N | None = self.lowest if low is None else low
        self.high: N | None = high

    def __call__(self, low: N | None = None, high: N | None = None) -> Self:
        """Return the same kind with these bounds."""
        return type(self)(low, high)

    def parse(self, text: str) -> N:
        # int() and float() would accept "1_000", " 1 " and the digits of other scripts.
        plain = text.isascii() and "_" not in text and text == "".join(text.split())
        try:
            value = self.read(text if plain else "")
        except ValueError:
            raise ValueError(f"expected {self.noun}, not {quote(text)}") from None
        if self.low is not None and value < self.low:
            raise ValueError(f"must be at least {self.show(self.low)}, not {quote(text)}")
        if self.high is not None and value > self.high:
            raise ValueError(f"must be at most {self.show(self.high)}, not {quote(text)}")
        return value

    def read(self, text: str) -> N:
        """Parse text without checking the bounds; raise ValueError if it is invalid."""
        raise NotImplementedError


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(text)
    return number


class _Integer(_Ranged[int]):
    metavar = "N"
    noun = "a whole number"
    toml = (int,)

    def read(self, text: str) -> int:
        return int(text)


class _Number(_Ranged[float]):
    metavar = "NUMBER"
    noun = "a number"
    toml = (int, float)

    def read(self, text: str) -> float:
        return _finite(text)


class _Seconds(_Ranged[float]):
    metavar = "SECONDS"
    noun = "a time such as 30, 1.5s, 500ms, 5m, 1h or 1d"
    noun_in_code = "a number of seconds, such as 300"
    toml = (int, float, str)
    lowest = 0

    def read(self, text: str) -> float:
        if text.endswith("ms"):
            # Divide, since 0.001 isn't exact: "7ms" must be the same float as 0.007.
            return _finite(text[:-2]) / 1000
        for unit, factor in _TIMES:
            if text.endswith(unit):
                return _finite(repr(_finite(text[:-1]) * factor))
        return _finite(text)

    def show(self, value: float) -> str:
        if value % 1 == 0:
            for unit, factor in _TIMES:
                if value and value % factor == 0:
                    return f"{int(value) // factor}{unit}"
            return "0s"
        milliseconds = round(value * 1000)
        if value < 1 and milliseconds / 1000 == value:
            return f"{milliseconds}ms"
        return f"{value!r}s"


class _Size(_Ranged[int]):
    metavar = "SIZE"
    noun = "a size in bytes such as 512, 10k, 20M or 1G"
    noun_in_code = "a number of bytes, such as 1024"
    toml = (int, str)
    lowest = 0

    def read(self, text: str) -> int:
        for unit, factor in _SIZES:
            if text[-1:].lower() == unit.lower():
                return int(text[:-1]) * factor
        return int(text)

    def show(self, value: int) -> str:
        for unit, factor in _SIZES:
            if value and value % factor == 0:
                return f"{value // factor}{unit}"
        return str(value)


class _Endpoint(Kind[tuple[str, int]]):
    def __init__(self, port: int | None = None, host: str = "HOST") -> None:
        self.port = port
        self.metavar = f"{host}:PORT" if port is None else f"{host}[:PORT]"
        self.noun = f"{self.metavar} ([ADDRESS]:PORT for IPv6)"

    def __call__(self, port: int, host: str = "HOST") -> _Endpoint:
        """Return the same kind with this default port; `host` is the metavar's first part."""
        return _Endpoint(port, host)

    def parse(self, text: str) -> tuple[str, int]:
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            colon, port = rest[:1], rest[1:]
            valid = bracket and colon in ("", ":") and _is_v6(host)
        elif text.count(":") > 1:  # without brackets, the whole text is the address
            host, colon, port = text, "", ""
            valid = _is_v6(host)
        else:
            host, colon, port = text.partition(":")
            valid = _is_host(host)
        if not valid:
            raise ValueError(f"expected {self.noun}, not {quote(text)}")
        if not colon and self.port is not None:
            return host, self.port
        if not (port.isascii() and port.isdigit() and len(port) <= len("65535")) or not (
            1 <= int(port) <= _PORT_MAX
        ):
            raise ValueError(f"expected a port from 1 to {_PORT_MAX}, not {quote(text)}")
        return host, int(port)

    def declare(self, value: tuple[str, int], needs: Needs) -> None:
        needs.to_connect(*value)

    def show(self, value: tuple[str, int]) -> str:
        host, port = value
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_v6(host: str) -> bool:
    from ipaddress import IPv6Address  # start-up time

    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True


def _is_host(host: str) -> bool:
    # The underscore isn't allowed in host names, but container networks use it.
    labels = host.removesuffix(".").split(".")
    return len(host) <= _HOST_MAX and all(
        0 < len(label) <= _LABEL_MAX
        and all(c.isascii() and (c.isalnum() or c in "-_") for c in label)
        for label in labels
    )


class _List(Kind[tuple[T, ...]]):
    repeats = True
    noun = "an array"
    toml = (list,)

    def __init__(self, element: Kind[T]) -> None:
        if element.repeats or not element.metavar:
            raise TypeError(f"LIST({type(element).__name__}): its elements need one value each")
        self.element = element
        self.metavar = element.metavar
        self.literal = element.literal

    def parse(self, text: str) -> tuple[T, ...]:
        """Parse one element: any separator may occur in regular expressions or paths."""
        return (self.element.parse(text),)

    def show(self, value: tuple[T, ...]) -> str:
        return ", ".join(self.words(value))

    def words(self, value: tuple[T, ...]) -> list[str]:
        return [self.element.show(each) for each in value]

    def from_toml(self, value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise not_an_array(self.noun, value)
        return tuple(map(self.element.from_toml, value))

    def check(self, value: tuple[T, ...]) -> None:
        if not isinstance(value, tuple):
            raise ValueError("expected a tuple")  # noqa: TRY004  # Reason only
        for element in value:
            self.element.check(element)

    def declare(self, value: tuple[T, ...], needs: Needs) -> None:
        for element in value:
            self.element.declare(element, needs)


class _Table(Kind[L]):
    metavar = "TABLE"
    noun = 'a table: "{ a, b }", "file:PATH", "sqlite:PATH" and the like, or one entry'

    def __init__(
        self, table_class: type[L], *, by_key: bool = False, values: Kind[Any] | None = None
    ) -> None:
        if values is not None and not hasattr(table_class, "checking"):
            raise TypeError(
                f"table({table_class.__name__}, values=...): only mappings and lists of words"
            )
        self.table_class = table_class
        self.by_key = by_key
        self.values = values
        #: Whether a list in the flag itself may be empty.
        self._optional = True

    def required(self) -> _Table[L]:
        """Return a kind without empty lists: like an empty file, they are a mistake."""
        kind = _Table(self.table_class, by_key=self.by_key, values=self.values)
        kind._optional = False
        return kind

    def parse(self, text: str) -> L:
        cls: Any = self.table_class
        if self.values is not None:
            cls = cls.checking(self.values.parse)
        loaded: L = cls.load_by_key(text) if self.by_key else cls.load(text)
        if not self._optional and _is_empty_list(loaded):
            raise ValueError(f"no entries in {loaded.source}")
        return loaded

    def show(self, value: L) -> str:
        return value.source

    def check(self, value: L) -> None:
        """Check the type and the values only: loading a table again costs too much."""
        if not isinstance(value, self.table_class):
            raise ValueError(f"expected a {self.table_class.__name__}")  # noqa: TRY004  # Reason only
        if self.values is not None:
            checked: Any = value
            checked.check_values(self.values.parse)


def _is_empty_list(loaded: Any) -> bool:
    """Return whether a table is a list in the flag itself without an entry."""
    elsewhere = getattr(loaded, "is_file", False) or getattr(loaded, "remotes", ())
    return hasattr(loaded, "__len__") and not (elsewhere or len(loaded))


#: Any text.
TEXT = _Text()
#: The name of a filter in the log and the journal, which replaces others (`journal.reception`).
FILTER_NAME = _FilterName()
#: A character between a user and a tag.
DELIMITER = _Delimiter()
#: An SMTP reply with its codes, "550 5.7.1 Text"; an error if the two codes disagree.
REPLY = _Reply()
#: A path, which is neither opened nor checked for existence. It is used at start only, unless it is
#: `PATH("read")`, a file or directory that is read later, or `PATH("write")`, a directory in which
#: files are written.
PATH = _Path()
#: Off unless the flag is given: a bool.
SWITCH = _Switch()
#: A whole number; `INTEGER(low=0, high=100)` bounds it, both ends included.
INTEGER = _Integer()
#: A number as a float; `NUMBER(low=0.0, high=1.0)` bounds it, both ends included.
NUMBER = _Number()
#: A time such as 1.5s, 500ms, 5m, 1h or 1d, in seconds, as a float.
SECONDS = _Seconds()
#: A size such as 512, 10k, 20M or 1G, in bytes.
SIZE = _Size()
#: A host and a port to connect to, HOST:PORT, as a pair; `ENDPOINT(port=53)` has a default port.
ENDPOINT = _Endpoint()
#: `LIST(kind)`: values of a kind, each by a flag of its own; a tuple.
LIST = _List


def choice(*choices: W) -> Kind[W]:
    """Return the kind whose values are these words, exactly as written."""
    return _Choice(choices)


def table(
    table_class: type[L], *, by_key: bool = False, values: Kind[Any] | None = None
) -> Kind[L]:
    """Return the kind that loads a table of this class: an inline list, a file or one entry.

    Of a remote table all entries are loaded. With `by_key` its keys are looked up one by one where
    its source can answer so; the filter then calls `look_up` and its like, which wait, in place of
    `match`, `find` and `get`.

    The values of a mapping are texts; with `values=INTEGER(low=0)` each must be of that kind, and
    so must the entries of a StringTable. An invalid one is an error at start, a reload with one
    keeps the table, and a look-up that finds one in a remote source raises UnavailableError.

    An option that is required doesn't accept a list without entries, as no table accepts a file
    with neither entries nor comments.
    """
    return _Table(table_class, by_key=by_key, values=values)
