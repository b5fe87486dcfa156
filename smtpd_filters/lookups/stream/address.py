"""The addresses of servers: a host and port, or the path of a unix socket."""

from __future__ import annotations

import os

from smtpd_filters.lookups.failover.failures import declare_host
from smtpd_filters.lookups.outcome import Value
from smtpd_filters.settings import ENDPOINT, Kind
from smtpd_filters.settings.quoting import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.sandbox import Needs

    from .connection import Connection

#: unix(7): sun_path has 108 bytes with the final null.
LONGEST_PATH = 107
_UNIX = "unix:"


class Address(Value):
    """The address of a server: `host` and `port`, or the `path` of a unix socket."""

    __match_args__ = ("host", "port", "path")
    __slots__ = __match_args__
    #: The most connections that the server allows, 0 for any number.
    most = 0
    #: Seconds between connections while they end without a reply (`Server`): none, they are cheap.
    rest = 0.0

    def __init__(self, host: str = "", port: int = 0, *, path: str = "") -> None:
        self.host = host
        self.port = port
        self.path = path

    @classmethod
    def parse(cls, text: str, port: int | None = None) -> Address:
        """Parse HOST:PORT, [IPV6]:PORT, /PATH or unix:/PATH; `port` is the default port.

        Raises ValueError.
        """
        if text.startswith(("/", _UNIX)):
            return cls(path=checked_path(text.removeprefix(_UNIX)))
        if port is None and ":" not in text:
            raise ValueError(
                f"expected a host and a port, HOST:PORT, or PATH of a socket, not {quote(text)}"
            )
        return cls(*(ENDPOINT if port is None else ENDPOINT(port)).parse(text))

    @property
    def label(self) -> str:
        """The address in logs."""
        return self.path or ENDPOINT.show((self.host, self.port))

    async def connect(self) -> Connection:
        """Return a new connection. Raises UnconnectedError."""
        from .connection import connect  # imports asyncio

        return await connect(self)

    def declare(self, needs: Needs) -> None:
        """Declare that a process connects to this server after its start."""
        if self.path:
            needs.to_connect_unix(self.path)
        else:
            declare_host(needs, self.host, self.port)


def checked_path(path: str) -> str:
    """Return the path of a socket; raise ValueError if none can have it."""
    if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > LONGEST_PATH:
        raise ValueError(
            f"expected the absolute path of a socket, of at most {LONGEST_PATH} bytes, not "
            f"{path[:120]!r}"
        )
    return path


class _Address(Kind[Address]):
    def __init__(self, port: int | None = None, host: str = "HOST") -> None:
        self._port = port
        self.metavar = f"{host}:PORT|PATH" if port is None else f"{host}[:PORT]|PATH"
        self.noun = f"{self.metavar.replace('|', ', ')} of a socket"

    def __call__(self, port: int, host: str = "HOST") -> _Address:
        """Return the same kind with this default port; `host` is the metavar's first part."""
        return _Address(port, host)

    def parse(self, text: str) -> Address:
        return Address.parse(text, self._port)

    def show(self, value: Address) -> str:
        return value.label

    def declare(self, value: Address, needs: Needs) -> None:
        value.declare(needs)


#: The kind of a server's address; `ADDRESS(port=783)` has a default port.
ADDRESS = _Address()
