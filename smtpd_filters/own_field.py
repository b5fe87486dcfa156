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
    """A header field in which a filter states a result; every filter that adds one declares it.

    `name` is the name of the field, such as `X-Recipients`. `Headers.remove` removes only the
    fields with exactly this name; some programs also take others for it, with blanks or control
    characters in the name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._readings: Name | None = None

    def __str__(self) -> str:
        return self.name

    def remove(self, headers: Headers) -> int:
        """Remove the fields that have the name in any program's reading; return their number.

        Those are a client's: call it before adding one.
        """
        if self._readings is None:
            # `message` is loaded for filters that read messages only, and this with it.
            from .message.disguise import Name

            self._readings = Name(self.name)
        return headers.remove(self.name) + self._readings.remove_disguised(headers)

    def prepend(self, headers: Headers, value: str) -> None:
        """Add the field at the top, where every program sees it.

        Some programs end the header block at a line that isn't a field, which a client may send.
        Raises ValueError for an invalid name.
        """
        headers.prepend(self.name, value)

    def append(self, headers: Headers, value: str) -> None:
        """Add the field at the bottom, where some programs may miss it: see `prepend`.

        Raises ValueError for an invalid name.
        """
        headers.append(self.name, value)
