"""The DNS: a resolver with its cache, messages, transport, names, forward-confirmed names."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .resolver import RecordType, Resolver

__all__ = ["RecordType", "Resolver"]


def __getattr__(name: str) -> object:
    # Only when asked for: `names` and `fcrdns` are imported without the resolver.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import resolver  # at the first name

    return getattr(resolver, name)
