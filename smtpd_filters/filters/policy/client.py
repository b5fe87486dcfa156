"""The client of filter-policy: one request at a time on each connection, which is kept.

Importing this module imports asyncio.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from smtpd_filters.lookups.programs.children import Children
from smtpd_filters.lookups.stream import BadReplyError, Client
from smtpd_filters.lookups.stream.connection import LostError

from . import request as requests
from .reply import ReplyError, ReplyParser
from .servers import Program

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from typing import Any

    from smtpd_filters.lookups.failover.breaker import Note
    from smtpd_filters.lookups.outcome import Unavailable
    from smtpd_filters.lookups.stream.connection import Connection

    from .servers import Server

#: Seconds for which an unused connection is kept: Postfix's smtpd_policy_service_max_idle.
IDLE = 300.0


def probe(context: str) -> partial[Coroutine[Any, Any, str]]:
    """Return an exchange that a server answers at once, if it answers at all (`PROBE`)."""
    return partial(exchange, requests.build(requests.PROBE | {"policy_context": context}))


async def exchange(request: bytes, connection: Connection) -> str:
    """Send a request; return the action in the reply. Raises BadReplyError and LostError."""
    parser = ReplyParser()
    if connection.unread:
        raise BadReplyError("a reply before the request")
    await connection.write(request)
    action = None
    while action is None:
        data = await connection.read()
        if not data:
            raise LostError
        try:
            action = parser.feed(data)
        except ReplyError as error:
            raise BadReplyError(str(error)) from None
    connection.keep()
    return action


class PolicyClient(Client):
    """A client for policy servers; times are in seconds, as those of its base.

    Requests of clients can take a healthy server long, such as those that policyd-spf makes of
    slow name servers. So a server that misses some is asked `probe` before the others are refused.
    """

    def __init__(  # noqa: PLR0913  # one for each limit
        self,
        servers: Sequence[Server],
        *,
        timeout: float,
        deadline: float,
        connections: int,
        context: str = "",
        note: Note | None = None,
    ) -> None:
        """Start what starts programs. Raises ConfigError."""
        self._children: list[Children] = []
        self.servers = [
            self._started(each) if isinstance(each, Program) else each for each in servers
        ]
        super().__init__(
            self.servers,
            timeout=timeout,
            deadline=deadline,
            connections=connections,
            idle=IDLE,
            ping=probe(context),
            ping_time=timeout,  # the server works for it as for any request
            note=note,
            kind="policy",
        )

    def _started(self, program: Program) -> Children:
        children = Children(program.label, program.command)
        self._children.append(children)
        return children

    async def ask_policy(self, request: bytes, client: str = "") -> str | Unavailable:
        """Return the action in the reply to a request for a client, or Unavailable."""
        return await self.ask(partial(exchange, request), client=client)

    async def aclose(self) -> None:
        """Close the connections, and end the programs."""
        await super().aclose()
        for each in self._children:
            await each.aclose()
