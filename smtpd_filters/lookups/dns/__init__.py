"""The DNS client: a caching resolver, and forward-confirmed reverse DNS on top of it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .resolver import RecordType as RecordType  # exported for annotations only
    from .resolver import Resolver

__all__ = ["Resolver"]


def __dir__() -> list[str]:
    # pydoc and completion list the names that are imported at first use as well.
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    # Lazy, so that `names` and `fcrdns` can be imported without the resolver.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import resolver  # at first use

    return getattr(resolver, name)
