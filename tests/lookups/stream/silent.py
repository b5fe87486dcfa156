"""A host name with chosen addresses, and an address of loopback that is silent, as a black hole."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

_real = socket.getaddrinfo


@contextmanager
def silent_address(port: int = 0) -> Iterator[tuple[str, int]]:
    """Yield an address whose SYNs the kernel drops, since the queue of its listener is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.77", port))
        listener.listen(0)
        place = listener.getsockname()
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)  # noqa: FBT003  # its only parameter
            filler.connect_ex(place)
        yield place


def names(monkeypatch: pytest.MonkeyPatch, *hosts: Any, port: int) -> None:
    """Let `mail.example` have these addresses, in this order."""
    found = []
    for host in hosts:
        text = host if isinstance(host, str) else host[0]
        found += _real(text, port, type=socket.SOCK_STREAM)

    def getaddrinfo(name: str, *rest: Any, **more: Any) -> Any:
        return found if name == "mail.example" else _real(name, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
