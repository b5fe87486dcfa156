"""The type of a setting: how a value is parsed from a flag or from TOML, and formatted.

Invariants
----------
*Round trip*: `parse(show(value)) == value` for every value of the kind (of a list, for every value
with one element: a flag has one).
*Reason only*: an invalid value raises ValueError (or ConfigError, from a table) whose text is the
reason, in one line, without the name of the flag or key, which the caller adds.
*Strict TOML*: `from_toml` is as strict about types as TOML is: a number isn't a string.
*Immutable*: a kind is immutable, and so are its values (a table reloads itself).
"""

from __future__ import annotations

from .quoting import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Generic, TypeVar

    T = TypeVar("T")

    from smtpd_filters.sandbox import Needs
else:  # the same names without the cost of importing typing
    T = None
    Generic = {None: object}


class Kind(Generic[T]):
    """The type of a setting. Subclasses define at least `noun`, `metavar` and `parse`.

    If a value isn't its text, they define `show` as well, which `parse` must take back.
    """

    #: The placeholder of the value in help; empty if the flag takes no value.
    metavar: str = ""
    #: Whether the metavar is to be typed as it is, and so is no placeholder.
    literal: bool = False
    #: Whether the flag may be given several times; the values (tuples) are joined.
    repeats = False
    #: Whether no value can name a file, a host, a command, a table or anything else outside.
    inward = False
    #: The text that completes "expected ...".
    noun: str = ""
    #: The same for a value that is given in code, if it is another.
    noun_in_code: str = ""
    #: The types of a value in a TOML file.
    toml: tuple[type, ...] = (str,)

    def __class_getitem__(cls, _item: object) -> type:
        # As Generic would: subclasses are written `Kind[str]` for the type checker.
        return cls

    def parse(self, text: str) -> T:
        """Parse a value of the command line; raise ValueError or ConfigError with the reason."""
        raise NotImplementedError

    def show(self, value: T) -> str:
        """Format a value as on the command line."""
        return str(value)

    def words(self, value: T) -> list[str]:
        """Format a value as the words of the command line, one flag for each."""
        return [self.show(value)]

    def from_toml(self, value: object) -> T:
        """Convert a value from `tomllib`; raise ValueError or ConfigError with the reason."""
        if type(value) not in self.toml:
            raise ValueError(f"expected {self.noun}, not {_toml_type(value)}")
        return self.parse(str(value))

    def to_toml(self, value: T) -> object:
        """Return what `from_toml` converts to this value."""
        return self.show(value) if str in self.toml else value

    def check(self, value: T) -> None:
        """Raise ValueError if a value given in code isn't of this kind."""
        noun = self.noun_in_code or self.noun
        try:
            text = self.show(value)
        except (ValueError, TypeError, AttributeError):
            raise ValueError(f"expected {noun}") from None
        if self.parse(text) != value:
            raise ValueError(f"expected {noun}")

    def required(self) -> Kind[T]:
        """Return the kind of an option without a default."""
        return self

    def declare(self, value: T, needs: Needs) -> None:
        """Declare what a value needs after the start: by default to reload a table's files.

        A table whose reload may find further files has `directories` of them.
        """
        for path in getattr(value, "files", ()):
            needs.to_reload(path)
        for path in getattr(value, "directories", ()):
            needs.to_read(path)
        for remote in getattr(value, "remotes", ()):
            remote.remote.declare(needs)


class Repeated(Kind[T]):
    """The kind of a flag that may be given several times, whose values are added up.

    Subclasses define `parse`, `words`, and the class of the values: called without arguments it is
    the value of an empty array.
    """

    repeats = True
    noun = "an array of strings"
    toml: tuple[type, ...] = (list,)
    value_class: type

    def empty(self) -> Any:
        """Return the value of an empty array."""
        return self.value_class()

    def show(self, value: T) -> str:
        """Format a value for an error message."""
        return ", ".join(self.words(value))

    def from_toml(self, value: object) -> T:
        """Convert an array, or a string if the kind takes one."""
        if isinstance(value, str) and str in self.toml:
            return self.parse(value)
        if not isinstance(value, list):
            raise not_an_array(self.noun, value)
        found = self.empty()
        for each in value:
            if not isinstance(each, str):
                raise ValueError(f"expected {self.noun}")  # noqa: TRY004  # Reason only
            found += self.parse(each)
        return found  # type: ignore[no-any-return]  # of `value_class`

    def check(self, value: T) -> None:
        """Raise ValueError for a value of another class."""
        if not isinstance(value, self.value_class):
            raise ValueError(f"expected {self.value_class.__name__}")  # noqa: TRY004  # Reason only


def not_an_array(noun: str, value: object) -> ValueError:
    """Return the error for a value that isn't an array; suggest the array for a string."""
    hint = f": write [{quote(value)}]" if isinstance(value, str) else ""
    return ValueError(f"expected {noun}, not {_toml_type(value)}{hint}")


def _toml_type(value: object) -> str:
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a float",
        str: "a string",
        list: "an array",
        dict: "a table",
    }
    return names.get(type(value), "a date or time")
