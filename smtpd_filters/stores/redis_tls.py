"""Connections with TLS that share a context, in place of one each as with redis-py.

To make a context takes 80 ms of processor time, in which the loop stands still: the system's
certificates are read. The connections of a busy filter would take longer than a request may.
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis.asyncio.connection import SSLConnection


def sharing(base: type[SSLConnection], certificates: str) -> type[SSLConnection]:
    """Return a class of connections with one context, until the file of certificates changes.

    `certificates` is the path of that file; "" is the system's.
    """
    system = ssl.get_default_verify_paths()
    path = certificates or system.cafile or system.capath or ""
    known: Any = None
    shared: Any = None

    class Connection(base):  # type: ignore[misc, valid-type]
        def __init__(self, **settings: Any) -> None:
            nonlocal known, shared
            super().__init__(**settings)
            made: Any = self
            version = _version(path)
            if shared is None or version != known:
                shared, known = made.ssl_context, version  # which reads the file when it connects
            made.ssl_context = shared

    return Connection


def _version(path: str) -> object:
    """Return what changes with a file."""
    try:
        found = os.stat(path)  # noqa: PTH116  # without a Path for each connection
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
