"""An Rspamd on loopback that answers what it is told to: for tests, measurements, demonstrations.

It is a real HTTP server, over TCP or a unix socket, that scans nothing. The law:

1. Every POST gets the `Answer` that is set, whatever it asks for; ``GET /ping`` gets ``pong``, as
   of the daemon. An answer can be a function of the `Request`.
2. An answer says how it fails as well: see `BEHAVIOURS`. What it does not say is as HTTP has it:
   connections are kept alive, bodies may be chunked, several requests may come at once.
3. `requests` is what was asked, in order, as it came: names, values and bodies byte for byte.
4. It never becomes what is measured: a request costs tens of microseconds, and with ``keep=0``
   bodies are counted and not held.

Example::

    with RspamdStub({"action": "reject", "score": 20, "required_score": 15}) as rspamd:
        ...  # filter-rspamd -url {rspamd.url}
        assert rspamd.requests[0].get("IP") == "192.0.2.1"
        rspamd.answer = Answer(b"{}", status=500)
        rspamd.answer = Answer.of({"action": "no action"}, delay=0.5)

Run as a program, it gives one answer until SIGTERM or the end of its input, and writes
``ready URL`` as soon as it can be asked::

    python -m smtpd_filters.testing.rspamd.stub --listen 127.0.0.1:0 --reply FILE
"""

from __future__ import annotations

from .answers import BEHAVIOURS, CLEAN, Answer, Request
from .server import KEEP, RspamdStub

__all__ = ["BEHAVIOURS", "CLEAN", "KEEP", "Answer", "Request", "RspamdStub"]
