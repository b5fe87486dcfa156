"""A player that turns a recording into smtpd's side of a conversation with another filter.

It does no I/O: the caller moves the bytes, to a process or to an engine. `scenes` splits the
recording into events, `session` adapts a session to the filter's decisions, `replay` plays it.

Invariants
----------
*Real registration*: a filter gets the events it registered, its own tokens, and the chosen protocol
version; sessions, time stamps and texts are the recording's.
*Decisions count*: a session that the filter disconnects ends, a transaction that it refuses doesn't
continue, and smtpd's reports reflect this.
*As recorded otherwise*: if the filter accepts what was refused in the recording, the continuation
is unknown, and the rest is played as recorded.
*Comparable*: each verdict has the recorded one beside it. At a phase that the filter doesn't
register its verdict is proceed.

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

Afterwards `Replay.outcomes` has the steps with a decision, each with its `recorded` and its
`verdict`, and `Replay.oracle` has checked all of the conversation. It is possible not to wait for
each answer, but then decisions take effect too late (*Decisions count*).
"""

from .replay import Replay
from .session import Step

__all__ = ["Replay", "Step"]
