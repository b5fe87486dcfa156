"""Wiretaps, which get a copy of the bytes between smtpd and the process, in both directions.

They serve tracing and recording; policies don't need them. A tap gets input before it is processed,
and output before it is written, and can change neither. A process without taps has a plain
`Channel`, without any cost.
"""

from __future__ import annotations

from .channel import Channel
from .log import fold_traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from .log import Log

    class Tap(Protocol):
        """Gets a copy of input and output, as read and as written: not split at line ends."""

        #: Reports and phases to register for it, beside those of the policies.
        reports: frozenset[str]
        phases: frozenset[str]

        def received(self, data: bytes) -> None:
            """Handle input, before it is processed."""

        def sent(self, data: bytes) -> None:
            """Handle output, before it is written."""

        def close(self) -> None:
            """Release resources at the end of the conversation."""


class TappedChannel(Channel):
    """A channel with taps.  A tap that raises is logged and removed."""

    direct = False

    def __init__(self, source: int, sink: int, taps: Sequence[Tap], log: Log) -> None:
        super().__init__(source, sink)
        self.taps = list(taps)
        self.log = log

    def read(self) -> bytes | None:
        """Read as `Channel.read` does, and give new input to the taps."""
        again = self.unread
        data = super().read()
        if data and not again:
            self._notify(lambda tap: tap.received(data))
        return data

    def _keep(self, answers: bytes, lines: bytes) -> None:
        super()._keep(answers, lines)
        try:
            self._notify(lambda tap: tap.sent(answers + lines))
        except MemoryError:  # the lines are kept
            pass

    def close(self) -> None:
        """Close the taps and both descriptors."""
        self._notify(lambda tap: tap.close())
        super().close()

    def _notify(self, what: Callable[[Tap], None]) -> None:
        for tap in list(self.taps):
            try:
                what(tap)
            except BaseException as error:  # noqa: BLE001  # never exits
                self.taps.remove(tap)
                self.log.event("smtpd-filters", "tap failed", error=fold_traceback(error))
