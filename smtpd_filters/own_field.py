"""Header fields in which a filter states its own results.

A client may send such a field too, to pass for one that has been examined. Each filter removes
those copies before it adds its own, by the tolerant reading of `message.disguise`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .message import Headers
    from .message.disguise import Name


class OwnField:
    """A header field of a filter's own; every filter that adds one declares it so."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._readings: Name | None = None

    def __str__(self) -> str:
        return self.name

    def remove(self, headers: Headers) -> int:
        """Remove all fields that have the name in any reading; return their number."""
        if self._readings is None:
            # `message` is loaded for filters that read messages only, and this with it.
            from .message.disguise import Name

            self._readings = Name(self.name)
        return headers.remove(self.name) + self._readings.remove_disguised(headers)

    def prepend(self, headers: Headers, value: str) -> None:
        """Add the field at the top. Raises ValueError for an invalid name."""
        headers.prepend(self.name, value)

    def append(self, headers: Headers, value: str) -> None:
        """Add the field at the bottom. Raises ValueError for an invalid name."""
        headers.append(self.name, value)
