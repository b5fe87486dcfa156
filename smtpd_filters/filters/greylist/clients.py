"""The client of a triplet: a network, or a domain whose senders retry from a pool of addresses.

Large senders retry from another address, often of another network, so that their mail would wait
for hours. By SPF a domain's owner says which addresses send for it; by a confirmed reverse name the
owner of an address says whose it is. Either makes the domain the client:

- the sender's domain, if SPF passes, unless by a term that most clients match, as `all`; with the
   null sender the Organizational Domain of HELO, since many servers have a record for the name of
   each host;
- else the Organizational Domain of the client's reverse name, if that is confirmed and doesn't look
   dynamically assigned: the customers of a provider are no pool. DMARC's tree walk (RFC 9989
   section 4.10) finds it, which needs no list of public suffixes. It is used only if a DMARC record
   says so: without one the walk returns the whole name;
- else the network of the client's address.

A look-up that fails leads to the next of them, so that a failure never refuses a client for good.
"""

from __future__ import annotations

import asyncio
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from smtpd_filters.addresses import canonical
from smtpd_filters.authentication import dmarc, spf
from smtpd_filters.authentication.inquiry import at_once, settle
from smtpd_filters.lookups.cache import Cache
from smtpd_filters.tables.networks import network_of

if TYPE_CHECKING:
    from smtpd_filters.authentication.inquiry import Engine
    from smtpd_filters.checks.dynamic import DynamicNames
    from smtpd_filters.lookups.dns import Resolver
    from smtpd_filters.session import Session

#: An evaluation of SPF costs as much as ten decisions: seconds for which its result is kept, and
#: the number of clients.
KEPT = 60.0
CLIENTS = 4096
NETWORK, SPF, DOMAIN = "network", "spf", "domain"


def load(by: str) -> None:
    """Import what evaluates now, rather than with the first client. Raises ImportError."""
    if by != NETWORK:
        spf.load()


class Clients:
    """How to identify clients: `by` is NETWORK, SPF or DOMAIN, the last for all three ways.

    `prefixes` are the prefix lengths of networks, for IPv4 and IPv6. `seconds` is the time for
    look-ups, after which the network is the client.
    """

    def __init__(
        self,
        by: str,
        prefixes: tuple[int, int],
        *,
        dns: Resolver | None,
        dynamic: DynamicNames | None,
        seconds: float,
    ) -> None:
        self._by = by
        self._prefixes = prefixes
        self._dns = dns
        self._dynamic = dynamic
        self._seconds = seconds
        self._found: Cache[str] = Cache(CLIENTS)

    def network(self, address: str) -> str:
        """Return the network of a client's address."""
        return network_of(address, *self._prefixes)

    async def domain(self, session: Session, address: str, sender: str) -> str:
        """Return the domain that is the client, or ""; `sender` is that of the envelope."""
        if self._dns is None:
            return ""
        # Macros of SPF may look at the local part, but a domain is one client all the same.
        key = address, sender.rpartition("@")[2].lower() or f"helo {session.identity}"
        now = monotonic()
        known = self._found.get(key, now)
        if known is None:
            engine = self._domain(session, address, sender)
            known = await _within(self._seconds, engine, self._dns)
            self._found.put(key, known, now + KEPT)
        return known

    def _domain(self, session: Session, address: str, sender: str) -> Engine[str]:
        """Find the domain that the client sends for; "" if nothing says so."""
        verdict = yield from spf.check(
            address,
            session.identity or "",
            sender,
            now=time(),
            cached=None if self._dns is None else self._dns.known,
        )
        if verdict.result == "pass" and not verdict.broad:
            return verdict.domain if sender else (yield from _organization(verdict.domain))
        name = canonical(session.rdns or "")
        if self._by != DOMAIN or session.fcrdns != "pass" or not name:
            return ""
        if self._dynamic is not None and self._dynamic.reason(name, address):
            return ""
        organization = yield from dmarc.organization(name)
        return organization if "." in organization else ""


def _organization(name: str) -> Engine[str]:
    """Find the Organizational Domain of HELO; without a record it is HELO."""
    organization = yield from dmarc.organization(canonical(name))
    return organization if "." in organization else name


async def _within(seconds: float, engine: Engine[str], dns: Resolver) -> str:
    """Return the result of an engine, or "" after a time."""
    result, questions = at_once(engine, dns)
    if questions is None:
        return result or ""
    task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(
        settle(engine, dns, questions), name="look up"
    )
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        return str(task.result()) if done else ""
    finally:
        task.cancel()
