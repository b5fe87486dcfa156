"""An HTTP server on loopback with preset answers, for tests of filters that ask a service.

It is a real server, over TCP or a unix socket. Every request gets the current `Answer`, whatever
the method and the path; only `GET /ping`, by which the framework finds out whether a server is
alive again, gets `pong` and isn't recorded. An answer can be a function of the `Request`, which
returns a mapping or an `Answer`, and can fail in many ways (`BEHAVIOURS`). Otherwise it follows
HTTP: connections are kept alive, bodies may be chunked, requests may be pipelined.

`requests` are the requests in order: paths, names, values and bodies byte for byte. A request costs
tens of microseconds, so that the stub doesn't dominate a benchmark; with `keep=0` bodies are
counted but not kept.

Example::

    with HTTPStub({"full": False}) as service:
        ...  # --service {service.url}
        assert service.requests[0].path == "/quota/bob@example.org"
        service.answer = lambda request: {"full": request.path.startswith("/quota/eve@")}
        service.answer = Answer(b"{}", status=500)
        service.answer = Answer.of({"full": True}, behaviour="stall")
"""

from __future__ import annotations

from .answers import BEHAVIOURS, Answer, Request
from .server import KEEP, HTTPStub

__all__ = ["BEHAVIOURS", "KEEP", "Answer", "HTTPStub", "Request"]
