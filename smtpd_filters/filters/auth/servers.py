"""The log lines about name servers of which none answers, and about their recovery.

Without them a server whose name servers are down states temperror in every message, and nothing
else shows it unless a policy depends on the results. That all look-ups for one message fail is
often the fault of its domain alone: a name that every recursive name server can look up tells.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from smtpd_filters.lookups.dns.setting import EVERYWHERE
from smtpd_filters.lookups.outcome import Unavailable

if TYPE_CHECKING:
    from smtpd_filters.lookups.dns import Resolver
    from smtpd_filters.runtime.log import FilterLog


class NameServers:
    """Whether any name server answers; nothing waits for finding it out."""

    def __init__(self, dns: Resolver, log: FilterLog) -> None:
        self._dns = dns
        self._log = log
        self._down = False
        #: The look-up that is pending.
        self.trial: asyncio.Task[None] | None = None

    def note(self, *, failed: bool) -> None:
        """Note whether all look-ups for a message have failed."""
        if failed and self.trial is None:
            loop = asyncio.get_running_loop()
            self.trial = loop.create_task(self._try(), name="try name servers")
        elif not failed and self._down:
            self._down = False
            self._log.event("name servers answer again")

    async def _try(self) -> None:
        try:
            outcome = await self._dns.query(EVERYWHERE, "NS")
        finally:
            self.trial = None
        if isinstance(outcome, Unavailable):
            self._down = True
            self._log.limited("name servers", "no name server answers", cause=outcome.cause)

    async def aclose(self) -> None:
        """End a look-up that is pending."""
        if (trial := self.trial) is not None:
            trial.cancel()
            await asyncio.wait([trial])
