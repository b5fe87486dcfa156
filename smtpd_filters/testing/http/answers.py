"""The requests to the stub, and its answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The ways in which an answer fails.
BEHAVIOURS: dict[str, str] = {
    "": "it doesn't",
    "drop": "nothing is sent; the connection stays open",
    "close": "the connection is closed without an answer",
    "reset": "the connection is reset without an answer",
    "cut": "half of the reply, then the connection is closed",
    "reset-half": "half of the reply, then the connection is reset",
    "stall": "half of the reply, then nothing more; the connection stays open",
    "trickle": "byte after byte, `delay` seconds apart",
    "endless": "a reply that never ends",
    "garbage": "bytes that are not HTTP",
    "early": "the whole reply as soon as the request begins (not of a function), then a close",
    "close-after": "the whole reply as if to be kept alive, then the connection is closed",
    "stale": "the whole reply; the connection is closed when its next request comes",
}
PARTIAL = frozenset({"drop", "cut", "reset-half", "stall", "trickle", "endless"})
#: The end of a header block.
END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the stub, with its `method`, `path` and `body`."""

    method: str
    #: As sent, with the query.
    path: str
    #: Names and values as received, in order, decoded as Latin-1.
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)
    #: Octets of the body; `body` is empty if bodies aren't kept.
    size: int
    #: The number of its connection, counted from 1.
    connection: int
    #: The whole header block.
    head: bytes = field(repr=False)

    def get(self, name: str) -> str | None:
        """Return the value of the first field of that name, or None."""
        return next(iter(self.get_all(name)), None)

    def get_all(self, name: str) -> list[str]:
        """Return the values of all fields of that name."""
        return [value for known, value in self.headers if known.lower() == name.lower()]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a request, `body` with `status` and `content_type`, and how it is sent."""

    body: bytes = b""
    status: int = 200
    #: Further header fields, such as `("Message-Offset", "120")`.
    headers: tuple[tuple[str, str], ...] = ()
    #: Seconds before it is sent.
    delay: float = 0.0
    #: One of `BEHAVIOURS`.
    behaviour: str = ""
    #: Whether the body is sent in chunks, without its length.
    chunked: bool = False
    content_type: str = "application/json"

    def __post_init__(self) -> None:
        if self.behaviour not in BEHAVIOURS:
            raise ValueError(f"{self.behaviour!r} is not one of {', '.join(BEHAVIOURS)}")

    @classmethod
    def of(cls, reply: Mapping[str, Any], new_body: bytes | None = None, **how: Any) -> Answer:
        """Return a reply as JSON, followed by the message's new body if there is one."""
        text = json.dumps(reply).encode()
        if new_body is None:
            return cls(text, **how)
        headers = (*how.pop("headers", ()), ("Message-Offset", str(len(text))))
        return cls(text + new_body, headers=headers, **how)

    def wire(self) -> bytes:
        """Return the whole response."""
        try:
            reason = HTTPStatus(self.status).phrase
        except ValueError:
            reason = "Error"
        lines = [
            f"HTTP/1.1 {self.status} {reason}",
            "Server: stub",
            f"Content-Type: {self.content_type}",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        endless = self.behaviour == "endless"
        if self.chunked or endless:
            lines.append("Transfer-Encoding: chunked")
        else:
            lines.append(f"Content-Length: {len(self.body)}")
        head = "\r\n".join(lines).encode("latin-1") + END
        if not (self.chunked or endless):
            return head + self.body
        half = len(self.body) // 2
        parts = [part for part in (self.body[:half], self.body[half:]) if part]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        return head + body + (b"" if endless else b"0\r\n\r\n")
