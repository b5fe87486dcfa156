"""The DNS client: a caching resolver, and forward-confirmed reverse DNS on top of it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .resolver import RecordType, Resolver

__all__ = ["RecordType", "Resolver"]


def __getattr__(name: str) -> object:
    # Lazy, so that `names` and `fcrdns` can be imported without the resolver.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import resolver  # at first use

    return getattr(resolver, name)
