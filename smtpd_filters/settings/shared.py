"""Shared settings: options that open a resource, such as a resolver, an HTTP client or a store.

A filter declares one as an attribute of its class (`dns = Resolver.setting()`). Its options become
options of the filter. The instance's attribute is the opened resource: it is opened before the
filter sends `register|ready`, and closed when the process ends.

Invariants
----------
*Shared*: filters of a process that are configured alike get the same object.
*At start*: a mistake in the options is a ConfigError when the filter starts, not at its first
mail. A filter whose registration has `waits=False` opens only the resources that it reads.
*Pool closes*: only the pool closes a resource, since other filters may use it (`PoolCloses`).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping
    from typing import Any, Generic, Protocol, Self, TypeVar, overload

    from smtpd_filters.runtime.probes import Probe
    from smtpd_filters.sandbox import Needs

    from .declare import Option

    class Closable(Protocol):
        """A resource that can be closed."""

        async def aclose(self) -> None:
            """Release everything; never raise."""

    T = TypeVar("T", bound=Closable)
else:
    # Importing `typing` adds several milliseconds to a filter's start; it isn't needed at run time.
    T = None

    class Generic:
        """A subscriptable base class."""

        def __class_getitem__(cls, _parameters: object) -> type:
            return cls


class PoolCloses:
    """A mixin for a resource that a filter can't close (*Pool closes*); `Shared.close` can."""

    #: What it is, for the error.
    resource = "resource"

    async def aclose(self) -> None:
        """Raise RuntimeError: other filters may use it."""
        raise RuntimeError(f"a filter can't close its {self.resource}: the framework does")


class Shared(Generic[T]):
    """A declaration; a subclass defines the options and opens the resource they describe."""

    #: Its options by attribute name; a filter's own options must have other names. None if the
    #: filter's own options describe the resource.
    options: Mapping[str, Option] = {}  # replaced as a whole
    #: The attribute of the filter's class.
    name = ""
    #: Whether there is a resource also if none of the options is given a value.
    has_default = False

    def key(self, filter_: Any) -> Hashable:
        """Return the key of the resource: filters with equal keys share it."""
        raise NotImplementedError

    def check(self, filter_: Any) -> None:
        """Check the settings of a filter, whether it opens the resource or shares it."""

    def open(self, filter_: Any) -> T:
        """Open the resource for a filter with its settings; raise ConfigError if that fails."""
        raise NotImplementedError

    def declare(self, filter_: Any, needs: Needs) -> None:
        """Declare what the resource needs after the start, beyond its options."""

    def probes(self, filter_: Any) -> Iterable[Probe]:  # noqa: ARG002  # an override's
        """Return the probes of the services behind the resource, for `check --online`."""
        return ()

    async def close(self, opened: T) -> None:
        """Close a resource that it opened; never raise."""
        closable: Any = super(PoolCloses, opened) if isinstance(opened, PoolCloses) else opened
        await closable.aclose()

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
        # From now on the instance's own attribute takes precedence over this descriptor.
        opened = vars(filter_)[self.name] = filter_.pool.get(self, filter_)
        return opened


class Pool:
    """The resources that the filters of a process have opened.

    `defaults` override the default values of options; a test sets its name server here
    (`nameserver`).
    """

    def __init__(self, **defaults: object) -> None:
        self.defaults = defaults
        #: Called with the outcomes of look-ups by the resources that have an `observer`.
        self._observers: list[Callable[..., None]] = []
        self._opened: dict[tuple[type, Hashable], tuple[Shared[Any], Closable]] = {}

    def get(self, setting: Shared[T], filter_: Any) -> T:
        """Return the resource of a filter's setting; open it unless another filter has."""
        setting.check(filter_)
        key = type(setting), setting.key(filter_)
        if key not in self._opened:
            self._opened[key] = setting, setting.open(filter_)
            self._tell(self._opened[key][1])
        opened: Any = self._opened[key][1]
        return opened  # type: ignore[no-any-return]  # a setting opens one type

    def value(self, filter_: Any, option: str) -> Any:
        """Return the value of an option of a filter, or the default of this process."""
        settings = filter_.settings
        if option in self.defaults and option not in settings.given:
            return self.defaults[option]
        return vars(settings)[option]

    def observe(self, observer: Callable[..., None]) -> None:
        """Have an observer called by the resources, beside others; also by those opened later."""
        self._observers.append(observer)
        for _, opened in self._opened.values():
            self._tell(opened)

    def _tell(self, opened: Any) -> None:
        if self._observers and hasattr(opened, "observer"):
            opened.observer = self._looked_up

    def _looked_up(self, *outcome: Any) -> None:
        for observer in self._observers:
            observer(*outcome)

    def __len__(self) -> int:
        return len(self._opened)

    async def aclose(self) -> None:
        """Close everything."""
        while self._opened:
            _, (setting, opened) = self._opened.popitem()
            await setting.close(opened)
