"""Settings that open something: a resolver, an HTTP client, a store.

A filter declares one as an attribute of its class (`dns = Resolver.setting()`). Its options become
options of the filter; what it opens is read from the instance's attribute, opened before smtpd is
told `register|ready`, and closed when the process ends.

Invariants
----------
*Shared*: filters of a process that are configured alike get the same object.
*At the start*: a mistake in the options is a ConfigError of the filter's start, not of its first
mail. A filter that never waits with its settings opens nothing that it doesn't read.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from typing import Any, Generic, Protocol, Self, TypeVar, overload

    from .declare import Option

    class Closable(Protocol):
        """What can be opened."""

        async def aclose(self) -> None:
            """Release everything; never raises."""

    T = TypeVar("T", bound=Closable)
else:
    # `typing` costs a filter's start several milliseconds; at run time nothing here needs it.
    T = None

    class Generic:
        """A base that may be subscripted."""

        def __class_getitem__(cls, _parameters: object) -> type:
            return cls


class Shared(Generic[T]):
    """A declaration; a subclass has the options and knows how to open what they describe."""

    #: Its options by the names of their attributes, which a filter's own options may not have.
    options: Mapping[str, Option]
    #: The attribute of the filter's class.
    name = ""

    def key(self, filter_: Any) -> Hashable:
        """Return what two filters that share one object have in common."""
        raise NotImplementedError

    def check(self, filter_: Any) -> None:
        """Check the settings of a filter that has it opened, or gets what another has opened."""

    def open(self, filter_: Any) -> T:
        """Open it for a filter that has its settings.  Raises ConfigError."""
        raise NotImplementedError

    def __set_name__(self, _owner: type, name: str) -> None:
        self.name = name

    if TYPE_CHECKING:

        @overload
        def __get__(self, filter_: None, _cls: type | None = None) -> Self: ...
        @overload
        def __get__(self, filter_: object, _cls: type | None = None) -> T: ...

    def __get__(self, filter_: Any, _cls: type | None = None) -> Any:
        if filter_ is None:
            return self
        # From here on the instance's own attribute is found before this descriptor.
        opened = vars(filter_)[self.name] = filter_.pool.get(self, filter_)
        return opened


class Pool:
    """What the filters of a process have opened.

    `defaults` are values of options that take the place of the built-in ones; a test gives its name
    server here (`nameserver`).
    """

    def __init__(self, **defaults: object) -> None:
        self.defaults = defaults
        self._opened: dict[tuple[type, Hashable], Closable] = {}

    def get(self, setting: Shared[T], filter_: Any) -> T:
        """Return what a setting of a filter opens, or has opened for another filter."""
        setting.check(filter_)
        key = type(setting), setting.key(filter_)
        opened: Any = self._opened.get(key)
        if opened is None:
            opened = self._opened[key] = setting.open(filter_)
        return opened  # type: ignore[no-any-return]  # a setting opens one type

    def value(self, filter_: Any, option: str) -> Any:
        """Return the value of an option of a filter, or the default of this process."""
        settings = filter_.settings
        if option in self.defaults and option not in settings.given:
            return self.defaults[option]
        return vars(settings)[option]

    def __len__(self) -> int:
        return len(self._opened)

    async def aclose(self) -> None:
        """Close everything."""
        while self._opened:
            _, opened = self._opened.popitem()
            await opened.aclose()
