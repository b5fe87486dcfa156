"""A look at the line itself: the bytes that pass between smtpd and the process, both ways.

A policy never sees them; tracing and recording do nothing else.  A tap hears what was read before
anybody acts upon it, and what is about to be written; it can change neither.  A process without a
tap has a plain `Channel` and pays nothing.
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
        """Who listens.  Bytes come as they were read or are written: lines may be cut anywhere."""

        #: What is to be asked of smtpd for its sake, beside what the policies ask for.
        reports: frozenset[str]
        phases: frozenset[str]

        def received(self, data: bytes) -> None:
            """Hear what smtpd wrote."""

        def sent(self, data: bytes) -> None:
            """Hear what the filter writes."""

        def close(self) -> None:
            """The conversation is over."""


class TappedChannel(Channel):
    """A channel that tells taps what passes.  One that raises is logged, and told no more."""

    direct = False

    def __init__(self, source: int, sink: int, taps: Sequence[Tap], log: Log) -> None:
        super().__init__(source, sink)
        self.taps = list(taps)
        self.log = log

    def read(self) -> bytes | None:
        """What is there, as `Channel.read` has it; taps hear it once."""
        again = self.unread
        data = super().read()
        if data and not again:
            self._tell(lambda tap: tap.received(data))
        return data

    def _keep(self, answers: bytes, lines: bytes) -> None:
        super()._keep(answers, lines)
        try:
            self._tell(lambda tap: tap.sent(answers + lines))
        except MemoryError:  # the lines are kept
            pass

    def close(self) -> None:
        """Close both."""
        self._tell(lambda tap: tap.close())
        super().close()

    def _tell(self, what: Callable[[Tap], None]) -> None:
        for tap in list(self.taps):
            try:
                what(tap)
            except Exception as error:  # noqa: BLE001  # nothing a tap does may end the process
                self.taps.remove(tap)
                self.log.event("smtpd-filters", "tap failed", error=fold_traceback(error))
