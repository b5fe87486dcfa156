"""The trusted certificates of connections with TLS, loaded only if there is such a server.

aiohttp loads them twice while it is imported: 40 ms of processor time, and 2 MiB.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

#: The file of trusted certificates for OpenSSL (SSL_CTX_load_verify_locations(3)).
_FILE = "SSL_CERT_FILE"


@contextmanager
def without_certificates() -> Iterator[None]:
    """Have the code of a `with` statement find no file of trusted certificates.

    A context that it creates still finds those that OpenSSL looks up in a directory.
    """
    before = os.environ.get(_FILE)
    os.environ[_FILE] = os.devnull
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FILE]
        else:
            os.environ[_FILE] = before


@cache
def context() -> ssl.SSLContext:
    """Return the process's context, which verifies servers, as aiohttp's own would."""
    import ssl  # aiohttp is already loaded

    made = ssl.create_default_context()
    made.set_alpn_protocols(("http/1.1",))
    return made
