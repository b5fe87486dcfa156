"""An Rspamd stub on loopback with preset answers, for tests, benchmarks and demonstrations.

It is a real HTTP server, over TCP or a unix socket, that scans nothing. Every POST gets the current
`Answer`, whatever the path; `GET /ping` gets `pong`, as from the daemon. An answer can be a
function of the `Request`, which returns a mapping or an `Answer`, and can fail in many ways
(`BEHAVIOURS`). Otherwise it follows HTTP: connections are kept alive, bodies may be chunked,
requests may be pipelined.

`requests` are the requests in order: names, values and bodies byte for byte. A request costs tens
of microseconds, so that the stub doesn't dominate a benchmark; with `keep=0` bodies are counted but
not kept.

Example::

    with RspamdStub({"action": "reject", "score": 20, "required_score": 15}) as rspamd:
        ...  # filter-rspamd -url {rspamd.url}
        assert rspamd.requests[0].get("IP") == "192.0.2.1"
        rspamd.answer = Answer(b"{}", status=500)
        rspamd.answer = Answer.of({"action": "no action"}, delay=0.5)

Run as a program, it returns one answer until SIGTERM or the end of its input, and writes
`ready URL` as soon as it listens::

    python -m smtpd_filters.testing.rspamd.stub --listen 127.0.0.1:0 --reply FILE
"""

from __future__ import annotations

from .answers import BEHAVIOURS, CLEAN, Answer, Request
from .server import KEEP, RspamdStub

__all__ = ["BEHAVIOURS", "CLEAN", "KEEP", "Answer", "Request", "RspamdStub"]
