"""All input and output with smtpd: descriptors, loops, deadlines, the log.

Invariants
----------
The three promises of docs/architecture.md, which comments of this package cite by name.

*Never exits*: a filter does not exit while smtpd runs, whatever a policy or our own code raises.
*Valid lines*: a filter never writes a line that smtpd doesn't accept.
*Always answers*: every request is answered, once and in time.
"""

from __future__ import annotations

import os
import signal
import sys

from smtpd_filters.errors import not_started

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .channel import Ends
    from .interfaces import Service
    from .log import Log
    from .watchdog import Watchdog
    from .wiretap import Tap


def serve(  # noqa: PLR0913  # what a process has once
    service: Service,
    log: Log,
    watchdog: Watchdog,
    *,
    refuse_long_lines: bool = False,
    taps: Sequence[Tap] = (),
    ends: Ends | None = None,
    confine: Callable[[], None] | None = None,
) -> int:
    """Serve the smtpd at the other end of stdin and stdout until it ends; return the exit status.

    `taps` get a copy of all input and output. `ends` are stdin and stdout if they were taken over
    already. `confine` is called once everything is loaded, before the first input, to give up what
    the process does not need. Raise ConfigError, before `register|ready`, if it does, or if the
    server's protocol is not supported.
    """
    sys.unraisablehook = log.unraisable
    threads = sys.modules.get("threading")
    if threads is not None:
        threads.excepthook = log.unraisable  # type: ignore[attr-defined]
    try:
        from .channel import Channel, Ends  # not needed by users of the log alone
        from .engine import Engine

        engine = Engine(service, log, refuse_long_lines=refuse_long_lines)
        ends = ends or Ends()
        if taps:
            from .wiretap import TappedChannel  # only for tracing

            channel: Channel = TappedChannel(ends.source, ends.sink, taps, log)
        else:
            channel = Channel(ends.source, ends.sink)
    except (OSError, ImportError, MemoryError) as error:
        raise not_started(error) from None
    try:
        if service.waits:
            from .asyncio_loop import run  # asyncio costs more than all the rest
        else:
            from .poll_loop import run
        if confine is not None:
            confine()
        status = run(engine, channel, service, log, watchdog)
    except (OSError, ImportError) as error:
        if engine.ready:
            raise
        raise not_started(error) from None
    _leave(status)
    return status


def _leave(status: int) -> None:
    """Exit even if the interpreter would wait for threads or child processes of a policy."""
    from .channel import CLOSING  # loaded by now

    signal.signal(signal.SIGALRM, lambda *_: os._exit(status))
    signal.setitimer(signal.ITIMER_REAL, CLOSING)
