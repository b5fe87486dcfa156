"""The bounds of the page's service: connections, forms, listeners and entries."""

from __future__ import annotations

from typing import NamedTuple


class Bounds(NamedTuple):
    """The bounds of a service; times are in seconds."""

    #: Connections at a time, for how long one may have no request in progress, and the time between
    #: two looks.
    connections: int = 256
    idle: float = 30.0
    watch: float = 1.0
    #: Bytes that one may send, and those of its request's header among them. aiohttp takes 70 times
    #: as much memory for short fields, and 40 times for short requests behind a form.
    received: int = 64 << 10
    header: int = 16 << 10
    #: How long a client may take to send a form.
    form: float = 20.0
    #: Listeners of the live feed, and events that may wait for one.
    listeners: int = 20
    events: int = 500
    #: The time between two looks at the journal, and between two comments to a listener, and that
    #: one may take to read.
    follow: float = 1.0
    beat: float = 15.0
    unread: float = 30.0
    #: Entries of a store that a page shows, of those that are read for it.
    shown: int = 200
    scanned: int = 20_000


DEFAULT = Bounds()
