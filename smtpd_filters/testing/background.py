"""Wait until a server of the kit, whose event loop runs in a thread, has read what it was sent."""

from __future__ import annotations

import select
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from typing import Protocol

    class HasFileno(Protocol):
        """A socket."""

        def fileno(self) -> int:
            """Return its descriptor."""


#: Seconds to wait for a server that is sent more and more, or hangs.
PATIENCE = 30.0


def catch_up(
    loop: asyncio.AbstractEventLoop,
    sockets: Callable[[], Iterable[HasFileno]],
    busy: Callable[[], object] = lambda: False,
) -> None:
    """Wait until a loop of another thread has read all that was sent to it, and isn't `busy`.

    Both functions are called in the loop.
    """
    done = threading.Event()
    until = loop.time() + PATIENCE

    def look() -> None:
        # Each round of the loop reads one datagram of a socket, or one piece of a stream.
        if loop.time() < until and (busy() or _readable(sockets())):
            loop.call_soon(look)
        else:
            loop.call_soon(done.set)  # after callbacks of the last round, such as connection_lost

    loop.call_soon_threadsafe(look)
    done.wait(PATIENCE)


def _readable(sockets: Iterable[HasFileno]) -> bool:
    poll = select.poll()
    for each in sockets:
        poll.register(each.fileno(), select.POLLIN)
    return bool(poll.poll(0))
