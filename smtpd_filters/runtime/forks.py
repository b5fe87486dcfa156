"""Protection against a policy that forks: the child never speaks to smtpd nor runs the loop.

A child that returns from the policy's code exits there. One that doesn't, such as a worker of
`multiprocessing`, continues without the descriptors to smtpd, which would keep the connection open
after the filter's end, and with the default action of each signal.
"""

from __future__ import annotations

import os
import signal

from .watchdog import Watchdog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .channel import Channel

_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM)


def exit_in_children(
    channel: Channel, watchdog: Watchdog, leave: Callable[[], object] | None
) -> None:
    """Have forked children exit when they return from a policy's code.

    `leave` is called in a child, to make a loop exit.
    """
    blocked: list[set[int]] = []

    def before() -> None:
        # The child is not to lose a signal before it has the default action.
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS))

    def after() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked.pop())

    def forked() -> None:
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        after()
        vars(channel).update(read=_exit, write=_exit)
        watchdog.__class__ = _Child
        channel.discard()
        if leave is not None:
            leave()

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=forked)


def _exit(*_: object) -> None:
    os._exit(0)


class _Child(Watchdog):
    """The watchdog in a child: its first use, after the policy's code, exits."""

    running = property(_exit, _exit)
