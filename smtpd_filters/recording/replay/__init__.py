"""A recording turned into what smtpd would send to another filter.

It is pure: who plays it moves the bytes, to a process or to an engine.

Law
---
1. A filter gets what it registered, its own tokens, and the protocol version that it is to speak;
   sessions, time stamps and texts are the recording's.
2. What the filter decides counts.  A session that it disconnects is over, a transaction that it
   refuses does not go on, and smtpd's reports say so.
3. Where it lets through what was refused when it was recorded, nobody can know how it would have
   gone on: what follows is played as recorded.
4. A verdict stands beside the one recorded.  A phase that a filter does not ask for is one at which
   it proceeds.

Use::

    replay = Replay(recording)
    write(replay.handshake())
    while not replay.ready:
        replay.receive(read())
    for step in replay.steps():
        write(step.data)
        while step.waiting:
            replay.receive(read())
    replay.finish()

Afterwards `Replay.outcomes` are the steps at which there was something to decide, each with its
``recorded`` and ``verdict``, and `Replay.oracle` has seen all of it.  To play without waiting for
each answer is allowed, but then law 2 comes too late.

Inside: `scenes` takes the recording apart, `session` says how a session goes now, `replay` plays.
"""

from .replay import Replay
from .session import Step

__all__ = ["Replay", "Step"]
