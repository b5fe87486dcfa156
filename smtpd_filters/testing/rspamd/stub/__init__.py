"""An Rspamd stub on loopback with preset answers, for tests, benchmarks and demonstrations.

It is the HTTP server of `smtpd_filters.testing.http`, and scans nothing. `GET /ping` gets `pong`,
as from the daemon; every other request gets the current `Answer`, that for a clean message by
default, whatever the path.

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

from typing import TYPE_CHECKING, Any

from smtpd_filters.testing.http import BEHAVIOURS, KEEP, Answer, HTTPStub, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["BEHAVIOURS", "CLEAN", "KEEP", "Answer", "Request", "RspamdStub"]

#: The reply for a clean message.
CLEAN: dict[str, Any] = {
    "is_skipped": False,
    "score": 0.0,
    "required_score": 15.0,
    "action": "no action",
    "symbols": {},
    "messages": {},
    "message-id": "stub@example.org",
    "time_real": 0.001,
}


class RspamdStub(HTTPStub):
    """An `HTTPStub` that finds every message clean, unless given another answer."""

    def __init__(
        self,
        answer: Mapping[str, Any]
        | Answer
        | Callable[[Request], Mapping[str, Any] | Answer] = CLEAN,
        *,
        listen: str = "127.0.0.1:0",
        keep: int = KEEP,
    ) -> None:
        super().__init__(answer, listen=listen, keep=keep)
