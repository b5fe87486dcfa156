"""The client of scanners' servers, shared by the filters of a process that ask them alike."""

from __future__ import annotations

from functools import partial

from smtpd_filters.checks.hosts import address_of, plain_address
from smtpd_filters.lookups.failover.group import SHARE
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.settings import Shared
from smtpd_filters.tables.networks import network_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from typing import Any, Protocol, TypeVar

    from smtpd_filters.lookups.stream import Address, Client
    from smtpd_filters.lookups.stream.connection import Connection
    from smtpd_filters.runtime.log import FilterLog
    from smtpd_filters.runtime.probes import Probe
    from smtpd_filters.sandbox import Needs
    from smtpd_filters.session import Session
    from smtpd_filters.settings.shared import Closable

    T = TypeVar("T", bound=Closable)

    class Scanner(Protocol):
        """What a filter has whose client is shared."""

        #: The settings, with `timeout` and `connections`.
        settings: Any
        log: FilterLog
        deadline: float

        @property
        def servers(self) -> Sequence[Any]:
            """The addresses of the servers, after `setup`."""

else:  # the same name without the cost of importing typing
    T = None

#: The prefix lengths of the networks that count as one client, as for greylisting.
_PREFIX4, _PREFIX6 = 24, 64


def client_of(session: Session) -> str:
    """Return the client for which servers are asked: they are shared by clients (`Turns`).

    It is the network of its address; "" for clients on this machine, which aren't limited, and for
    those whose address is not known.
    """
    address = plain_address(session.address or "")
    if session.local or address_of(address) is None:
        return ""
    return network_of(address, _PREFIX4, _PREFIX6)


class ServersSetting(Shared[T]):
    """A client that is opened for `filter.servers`; a subclass makes it."""

    def key(self, filter_: Scanner) -> tuple[object, ...]:
        """Return the servers, the times and the number of connections."""
        settings = filter_.settings
        servers = tuple(filter_.servers)
        return servers, settings.timeout, filter_.deadline, settings.connections

    def declare(self, filter_: Scanner, needs: Needs) -> None:
        """Declare a descriptor for each connection; the option of the servers declares them."""
        needs.to_open(filter_.settings.connections * len(filter_.servers))


class StreamSetting(ServersSetting["Client"]):
    """A client of `smtpd_filters.lookups.stream`; its parameters are those of `Client`."""

    def __init__(self, *, ping: Callable[[Connection], Awaitable[Any]], kind: str) -> None:
        self._ping = ping
        self._kind = kind

    def key(self, filter_: Scanner) -> tuple[object, ...]:
        """Return what makes two clients alike."""
        return (*super().key(filter_), self._ping)

    def open(self, filter_: Scanner) -> Client:
        """Return a client; it connects when it is asked."""
        from smtpd_filters.lookups.stream.client import SharedClient  # start-up time

        servers: Sequence[Address] = filter_.servers
        return SharedClient(
            servers,
            timeout=filter_.settings.timeout,
            deadline=filter_.deadline * SHARE,
            connections=filter_.settings.connections,
            ping=self._ping,
            note=filter_.log.event,
            kind=self._kind,
        )

    def probes(self, filter_: Scanner) -> Iterator[Probe]:
        """Yield a probe for each server: a ping."""
        from smtpd_filters.runtime.probes import Probe

        for server in filter_.servers:
            ask = partial(_exchange, server, self._ping, filter_.settings.timeout)
            yield Probe(f"daemon {server.label}", ask)


async def _exchange(
    server: Address, exchange: Callable[[Connection], Awaitable[Any]], seconds: float
) -> str:
    """Have an exchange with one server; return why it fails, or ""."""
    from smtpd_filters.lookups.stream.client import Client

    client = Client((server,), timeout=seconds, deadline=seconds)
    try:
        result = await client.ask(exchange)
    finally:
        await client.aclose()
    return result.cause if isinstance(result, Unavailable) else ""
