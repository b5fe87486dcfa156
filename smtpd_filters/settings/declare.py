"""Declarations of settings: classes whose attributes are options.

A setting is declared once, by `option()` in a subclass of `Settings`. Flags, TOML keys, help and
manual are derived from it, in the order of declaration, with the options of base classes first.

The attribute `junk_below` is the flag `--junk-below` and the TOML key `junk-below`; a trailing
underscore, as in `from_`, is dropped. An additional flag, `-junkBelow`, is also the key
`junkBelow`.

Invariants
----------
*Checked when defined*: a mistake in a declaration is a TypeError when the class is defined, and
the error names the attribute.
*Complete and immutable*: an instance has a value for every option and never changes.
"""

# ruff: noqa: A002  # `help` is the usual name

from __future__ import annotations

from smtpd_filters.errors import ConfigError, first_of

from .kind import Kind
from .quoting import printable, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, ClassVar, Literal, Self, TypeVar, overload

    T = TypeVar("T")
    S = TypeVar("S", bound="Settings")

_MISSING: Any = object()
#: How alike two names must be for one to be suggested (`difflib.SequenceMatcher.ratio`): a letter
#: that is missing, added or wrong in a name of four.
NEAR = 0.7
RESERVED = ("--help", "--version")


def annotations_of(declared: object) -> Mapping[str, Any]:
    """Return the annotations of a function or a class itself, as text or as types.

    Since Python 3.14 they are evaluated here (PEP 649), and are text if a name is not defined,
    such as one that is imported for type checkers only.
    """
    try:
        found: Mapping[str, Any] = getattr(declared, "__annotations__", {})
    except NameError:
        from annotationlib import (  # type: ignore[import-not-found]  # new in Python 3.14
            Format,
            get_annotations,
        )

        found = get_annotations(declared, format=Format.STRING)
    return found


class Option:
    """A declared option. `name` and `key` are set when its class is defined."""

    __slots__ = ("default", "flags", "help", "key", "kind", "name", "required", "secret")

    #: Whether it is an operand: a word of the command line without a flag.
    positional = False

    def __init__(  # noqa: PLR0913  # one for each property of an option
        self,
        kind: Kind[Any],
        *,
        default: Any,
        help: str,
        flags: tuple[str, ...],
        required: bool,
        secret: bool,
    ) -> None:
        self.name = self.key = ""
        self.kind = kind
        self.default = default
        self.help = help
        self.flags = flags
        self.required = required
        self.secret = secret

    @property
    def metavar(self) -> str:
        """The placeholder of the value in help; empty if the flag takes no value."""
        return self.kind.metavar

    @property
    def shown(self) -> str:
        """Its name in errors: the flag."""
        return self.flags[-1]

    def spellings(self) -> tuple[str, ...]:
        """Return every accepted flag: a Go-style flag also with two dashes, as in Go."""
        return self.flags + tuple(f"-{f}" for f in self.flags if len(f) > 2 and f[1] != "-")

    def toml_keys(self) -> tuple[str, ...]:
        """Return every accepted TOML key: the flags without their dashes."""
        return tuple(flag.lstrip("-") for flag in self.flags)

    def reason(self, error: Exception) -> str:
        """Return in one line why a value is invalid, without the value of a secret option."""
        return "invalid value (secret, not shown)" if self.secret else printable(str(error))

    def declare(self, name: str, where: str) -> None:
        """Set the names from the attribute; raise TypeError for an invalid declaration."""
        if self.name and self.name != name:
            raise TypeError(f"{where}: already declared as the option {self.name}")
        if name.startswith("_") or name != name.lower() or hasattr(Settings, name):
            raise TypeError(f"{where}: invalid name of an option")
        if not isinstance(self.kind, Kind):
            raise TypeError(f"{where}: {self.kind!r} isn't a kind")
        if not self.help.strip():
            raise TypeError(f"{where}: has no help text")
        if self.required == (self.default is not _MISSING):
            raise TypeError(f"{where}: needs either a default or required=True")
        if self.required:
            self.kind = self.kind.required()
        else:
            self.check(self.default, f"{where}: invalid default")
        if not self.name:
            self.name = name
            self.key = name.rstrip("_").replace("_", "-")
            self.flags += () if self.positional else (f"--{self.key}",)
        for flag in self.flags:
            body = flag[2:] if flag.startswith("--") else flag[1:]
            if (
                flag in RESERVED
                or flag[:1] != "-"
                or not body[:1].isalnum()
                or not body.replace("-", "").replace("_", "").isalnum()
            ):
                raise TypeError(f"{where}: {flag!r} is an invalid flag")

    def check(self, value: Any, where: str) -> None:
        """Raise TypeError if a value given in code is invalid."""
        if value is None and self.default is None:
            return
        try:
            self.kind.check(value)
        except (ValueError, ConfigError) as error:
            shown = "***" if self.secret else repr(value)
            raise TypeError(f"{where} {shown}: {self.reason(error)}") from None


class Operand(Option):
    """A declared operand."""

    __slots__ = ("_metavar",)

    positional = True

    def __init__(
        self, kind: Kind[Any], *, default: Any, help: str, required: bool, metavar: str
    ) -> None:
        super().__init__(
            kind, default=default, help=help, flags=(), required=required, secret=False
        )
        self._metavar = metavar

    @property
    def metavar(self) -> str:
        """The placeholder of the value in help."""
        return self._metavar or self.kind.metavar

    @property
    def shown(self) -> str:
        """Its name in errors."""
        return self.metavar


if TYPE_CHECKING:

    @overload
    def option(
        kind: Kind[T],
        *,
        required: Literal[True],
        help: str,
        flags: tuple[str, ...] = ...,
        secret: bool = ...,
    ) -> T: ...
    @overload
    def option(
        kind: Kind[T],
        *,
        default: None,
        help: str,
        flags: tuple[str, ...] = ...,
        secret: bool = ...,
    ) -> T | None: ...
    @overload
    def option(
        kind: Kind[T],
        *,
        default: T,
        help: str,
        flags: tuple[str, ...] = ...,
        secret: bool = ...,
    ) -> T: ...


def option(  # noqa: PLR0913  # one for each property of an option
    kind: Kind[Any],
    *,
    default: Any = _MISSING,
    required: bool = False,
    help: str = "",
    flags: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """Declare a setting, as an attribute of a subclass of `Settings`.

    `default` is a value of the kind, or None for "not set"; with `required=True` instead, the
    operator must give a value. `help` is one or more sentences for --help and the manual page.
    `flags` are additional flags beside the `--long-flag` derived from the attribute's name: "-v",
    or in Go's style, "-junkBelow". A `secret` value is never shown. An invalid declaration raises
    TypeError when its class is defined.
    """
    return Option(kind, default=default, help=help, flags=flags, required=required, secret=secret)


if TYPE_CHECKING:

    @overload
    def operand(kind: Kind[T], *, required: Literal[True], help: str, metavar: str = ...) -> T: ...
    @overload
    def operand(kind: Kind[T], *, default: T, help: str, metavar: str = ...) -> T: ...
    @overload
    def operand(kind: Kind[T], *, default: None, help: str, metavar: str = ...) -> T | None: ...


def operand(
    kind: Kind[Any],
    *,
    default: Any = _MISSING,
    required: bool = False,
    help: str = "",
    metavar: str = "",
) -> Any:
    """Declare an operand of a command: a word of its command line that belongs to no flag.

    As `option`, but without flags and TOML keys. Operands are parsed in the order of declaration;
    an operand of a repeating kind takes all remaining words, and must be the last. `metavar` is its
    placeholder in help, by default that of the kind.
    """
    return Operand(kind, default=default, help=help, required=required, metavar=metavar)


class Settings:
    """The settings of a filter: one attribute with a value for each option.

    `Settings(name=value, ...)` creates an instance in code, with defaults for the rest, and raises
    TypeError for an unknown or missing name and an invalid value. `vars(settings)` maps all names
    to their values; `given` has the names of the options that were set, not defaulted.
    """

    __slots__ = ("__dict__", "given")

    #: The declarations by the names of their attributes.
    options: ClassVar[dict[str, Option]] = {}
    given: frozenset[str]

    def __init_subclass__(cls) -> None:
        options: dict[str, Option] = {}
        for base in reversed(cls.__mro__[1:]):
            options.update(vars(base).get("options", {}))
        where = cls.__qualname__
        declared = vars(cls)
        for name in annotations_of(cls):
            if name not in declared and not name.startswith("_"):
                raise TypeError(f"{where}.{name}: declared without option()")
        for name, value in declared.items():
            if isinstance(value, Option):
                value.declare(name, f"{where}.{name}")
                options[name] = value
            elif name in options or not (
                name.startswith("_") or callable(value) or hasattr(value, "__get__")
            ):
                raise TypeError(f"{where}.{name}: must be declared by option()")
        spellings([options], where)
        cls.options = options

    def __init__(self, **values: Any) -> None:
        known = self.options
        where = type(self).__qualname__
        for name, value in values.items():
            if name not in known:
                raise TypeError(f"{where}: unknown option {quote(name)}{suggest(name, known)}")
            known[name].check(value, f"{where}.{name}:")
        for declared in absent(type(self), values):
            raise TypeError(f"{where}: the option {declared.name} is required")
        fill(self, values)

    def replace(self, **values: Any) -> Self:
        """Return a copy with these options changed; raise TypeError as for a new instance."""
        made = type(self)(**{**vars(self), **values})
        object.__setattr__(made, "given", self.given.union(values))
        return made

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__qualname__}.{name}: settings are immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__qualname__}.{name}: settings are immutable")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # a table among the values may be unhashable

    def __repr__(self) -> str:
        shown = (
            f"{name}={'***' if self.options[name].secret else repr(value)}"
            for name, value in vars(self).items()
        )
        return f"{type(self).__qualname__}({', '.join(shown)})"


def fill(settings: Settings, values: Mapping[str, Any]) -> None:
    """Set the values of an instance, which are checked already, and defaults for the rest."""
    object.__setattr__(settings, "given", frozenset(values))
    for name, declared in settings.options.items():
        vars(settings)[name] = values.get(name, declared.default)


def spellings(groups: Iterable[dict[str, Option]], where: str) -> dict[str, Option]:
    """Map every flag to its option; raise TypeError if two options share a flag."""
    taken: dict[str, Option] = {}
    for options in groups:
        for declared in options.values():
            for flag in declared.spellings():
                other = taken.setdefault(flag, declared)
                if other is not declared:
                    both = f"both {other.name} and {declared.name}"
                    # The options of every filter are the only ones that can have the same name.
                    whose = "every filter" if other.name == declared.name else both
                    raise TypeError(f"{where}: {flag} is a flag of {whose}")
    return taken


def suggest(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message that suggests the closest known name, or "".

    Without one that is nearly the same, it is one of which the word is the beginning, or a flag of
    one letter with its value behind it. Dashes don't count: they would make any two flags alike.
    """
    from difflib import get_close_matches  # imported for an error only: start-up time

    names = {each.lstrip("-"): each for each in reversed(list(known))}
    bare = word.lstrip("-")
    near = get_close_matches(bare, names, n=1, cutoff=NEAR)
    near = near or [name for name in names if bare and name.startswith(bare)]
    if not (near or word.startswith("--")) and bare[:1] in names:
        near = [bare[0]]
    return f", did you mean {quote(names[near[0]])}?" if near else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the closest known name, or else all of them."""
    known = list(dict.fromkeys(known))
    return suggest(word, known) or listed(known)


def listed(known: Iterable[str]) -> str:
    """Return the end of an error message that lists what is allowed, or "" for nothing."""
    names = ", ".join(map(printable, known))
    return f" (there is {names})" if names else ""


def absent(cls: type[Settings], values: Mapping[str, Any]) -> list[Option]:
    """Return the required options without a value."""
    return [o for name, o in cls.options.items() if o.required and name not in values]


def build(cls: type[S], values: Mapping[str, Any]) -> S:
    """Make an instance of values that were read; those that are required are there."""
    settings = cls.__new__(cls)
    fill(settings, values)
    return settings


def from_mapping(
    cls: type[S],
    mapping: Mapping[str, object],
    where: str,
    *,
    beside: Iterable[type[Settings]] = (),
) -> S:
    """Parse settings from a TOML table.

    `where` is the start of error messages: "chain.toml: [filter.dyndns]". `beside` are classes
    parsed from the same table: their keys aren't unknown. Raises ConfigError for an unknown key
    (suggesting the closest known one, or else listing all), an invalid value or a missing key; of
    several errors, the first with the rest in `others`.
    """
    by_key = {key: declared for declared in cls.options.values() for key in declared.toml_keys()}
    others = {
        key
        for other in beside
        for declared in other.options.values()
        for key in declared.toml_keys()
    }
    tables: list[type[Settings]] = [cls, *beside]
    values: dict[str, Any] = {}
    wrong: list[ConfigError] = []
    for key, value in mapping.items():
        declared = by_key.get(key)
        if declared is not None:
            if declared.name in values:
                both = " and ".join(each for each in mapping if by_key.get(each) is declared)
                wrong.append(ConfigError(f"{where}: {both} are the same key"))
                continue
            values[declared.name] = None  # not missing, even if invalid
            try:
                values[declared.name] = declared.kind.from_toml(value)
            except (ValueError, ConfigError) as error:
                wrong.append(ConfigError(f"{where}: {key}: {declared.reason(error)}"))
        elif key not in others:
            near = suggest(key.replace("_", "-"), (*by_key, *others))
            near = near or listed(o.key for each in tables for o in each.options.values())
            wrong.append(ConfigError(f"{where}: unknown key {quote(key)}{near}"))
    wrong += [
        ConfigError(f"{where}: {declared.key} is required") for declared in absent(cls, values)
    ]
    if wrong:
        raise first_of(wrong)
    return build(cls, values)
