"""All input and output with smtpd: descriptors, loops, deadlines, the log.

The promises that comments here speak of are those of docs/architecture.md: a filter never dies,
never writes a line that smtpd does not take, and always answers, once, in time.
"""

from __future__ import annotations

import os
import signal
import sys

from smtpd_filters.errors import not_started

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

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
) -> int:
    """Be a filter of the smtpd at the other end of stdin and stdout, until that goes away.

    ``taps`` hear every byte that passes.  ``ends`` are stdin and stdout if they were taken over
    already.  Returns the exit status.  Raises ConfigError, before ``register|ready``, when
    the server is none whose filter we can be.
    """
    from .channel import Channel, Ends  # who only wants the log has no loop
    from .engine import Engine

    sys.unraisablehook = log.unraisable
    threads = sys.modules.get("threading")
    if threads is not None:
        threads.excepthook = log.unraisable  # type: ignore[attr-defined]
    engine = Engine(service, log, refuse_long_lines=refuse_long_lines)
    ends = ends or Ends()
    if taps:
        from .wiretap import TappedChannel  # only tracing has any

        channel: Channel = TappedChannel(ends.source, ends.sink, taps, log)
    else:
        channel = Channel(ends.source, ends.sink)
    try:
        if service.waits:
            from .asyncio_loop import run  # asyncio costs more than all the rest
        else:
            from .poll_loop import run
        status = run(engine, channel, service, log, watchdog)
    except (OSError, ImportError) as error:
        if engine.ready:
            raise
        raise not_started(error) from None
    _leave(status)
    return status


def _leave(status: int) -> None:
    """Do not let the threads of a policy, which the interpreter waits for, keep the process."""
    from .channel import CLOSING  # loaded by now

    threads = sys.modules.get("threading")
    if threads is not None and threads.active_count() > 1:
        signal.signal(signal.SIGALRM, lambda *_: os._exit(status))
        signal.setitimer(signal.ITIMER_REAL, CLOSING)
