"""The servers of filter-policy: their notation, and the client that asks them."""

from __future__ import annotations

import shlex
from functools import partial

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.failover.group import SHARE
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.lookups.stream import Address
from smtpd_filters.scanning.servers import ServersSetting
from smtpd_filters.settings import Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from smtpd_filters.lookups.stream.client import Server as Place
    from smtpd_filters.runtime.probes import Probe
    from smtpd_filters.sandbox import Needs
    from smtpd_filters.scanning.servers import Scanner

    from .client import PolicyClient
    from .policy import Policy

EXEC = "exec:"
_INET, _LOOPBACK = "inet:", "127.0.0.1"


class Program:
    """A program that speaks the protocol on stdin and stdout: its words, the first one its path."""

    __slots__ = ("command",)

    def __init__(self, command: str) -> None:
        """Raises ValueError for a command without an absolute path."""
        try:
            self.command = tuple(shlex.split(command))
        except ValueError as error:
            raise ValueError(f"{EXEC}{command[:80]}: {error}") from None
        if not self.command or not self.command[0].startswith("/"):
            raise ValueError(f"expected {EXEC}/PATH ARGUMENTS, not {EXEC}{command[:80]}")

    @property
    def label(self) -> str:
        """The program in logs, without its arguments."""
        return self.command[0]

    def declare(self, needs: Needs) -> None:
        """Declare that a process with all rights, which starts it, sends a socket (`Children`)."""
        needs.to_receive_descriptors()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.command == other.command

    def __hash__(self) -> int:
        return hash(self.command)

    def __str__(self) -> str:
        return f"{EXEC}{shlex.join(self.command)}"


Server: TypeAlias = "Address | Program"


class _Server(Kind["Server"]):
    """A server in Postfix's notation, `inet:HOST:PORT` and `unix:/PATH`, or without its prefix."""

    metavar = "HOST:PORT|PATH|exec:COMMAND"
    noun = "HOST:PORT, [IPV6]:PORT, the path of a socket or exec:COMMAND"

    def parse(self, text: str) -> Server:
        """Parse an operator's notation."""
        if text.startswith(EXEC):
            return Program(text.removeprefix(EXEC))
        place = text.removeprefix(_INET)
        if place is not text and place.isascii() and place.isdigit():
            place = f"{_LOOPBACK}:{place}"  # as Postfix: "the local host"
        return Address.parse(place)

    def check(self, value: Server) -> None:
        """Raise ValueError for anything else."""
        if not isinstance(value, Address | Program):
            raise ValueError("expected an Address or a Program")  # noqa: TRY004  # as every kind does

    def declare(self, value: Server, needs: Needs) -> None:
        """Declare that a process connects to this server."""
        value.declare(needs)


SERVER = _Server()


async def _ask(server: Place, context: str, seconds: float) -> str:
    """Ask a server about a connection from this machine; return why that fails, or ""."""
    from smtpd_filters.lookups.stream.client import Client

    from .client import probe

    client = Client((server,), timeout=seconds, deadline=seconds)
    try:
        result = await client.ask(probe(context))
    finally:
        await client.aclose()
    return result.cause if isinstance(result, Unavailable) else ""


class ClientSetting(ServersSetting["PolicyClient"]):
    """The client, shared by the filters of a process that ask the same servers alike."""

    def key(self, filter_: Scanner) -> tuple[object, ...]:
        """Return what makes two clients alike; the probe has the context."""
        return (*super().key(filter_), filter_.settings.context)

    def open(self, filter_: Policy) -> PolicyClient:
        """Return a client; it connects when it is asked. Raises ConfigError."""
        from .client import PolicyClient  # imports asyncio

        settings = filter_.settings
        try:
            return PolicyClient(
                filter_.servers,
                timeout=settings.timeout,
                deadline=filter_.deadline * SHARE,
                connections=settings.connections,
                context=settings.context,
                note=filter_.log.event,
            )
        except ConfigError as error:
            raise ConfigError(f"--server: {error}") from None

    def probes(self, filter_: Policy) -> Iterator[Probe]:
        """Yield a probe of each server: a request that it has no reason to remember."""
        from smtpd_filters.runtime.probes import Probe

        settings = filter_.settings
        for server in filter_._client.servers:  # noqa: SLF001  # one package
            ask = partial(_ask, server, settings.context, settings.timeout)
            yield Probe(f"policy server {server.label}", ask)
