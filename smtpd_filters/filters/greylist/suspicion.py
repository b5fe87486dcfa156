"""The suspicious clients by `--only-if`, and the lists of good ones.

A look-up that fails says nothing about a client, nor does an answer by which a list refuses us. No
key that is part of a list's name is logged (`checks.zone_names`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.addresses import canonical
from smtpd_filters.checks.listings import sort
from smtpd_filters.checks.zone_names import shown
from smtpd_filters.lookups.dns.names import reverse
from smtpd_filters.lookups.outcome import Found

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from smtpd_filters.checks.dynamic import DynamicNames
    from smtpd_filters.lookups.dns import Resolver
    from smtpd_filters.session import Session


class Suspicion:
    """The conditions of `--only-if`, and the DNS lists of `listed` and of `allowed` clients.

    `note` takes the name of a zone, and the trouble with an answer of it, for the log.
    """

    def __init__(  # noqa: PLR0913  # given by name
        self,
        conditions: Sequence[str],
        dynamic: DynamicNames | None,
        *,
        listed: Sequence[str],
        allowed: Sequence[str],
        dns: Resolver | None,
        note: Callable[[str, str], object],
    ) -> None:
        self._conditions = frozenset(conditions)
        self._dynamic = dynamic
        self._lists = tuple(listed)
        self._allows = tuple(allowed)
        self._dns = dns
        self._note = note

    def start(self, address: str) -> None:
        """Start the look-ups in the lists."""
        if self._dns is not None:
            for zone in (*self._lists, *self._allows):
                self._dns.start(reverse(address, zone=zone), "A")

    async def innocence(self, session: Session, address: str) -> str:
        """Return why a client doesn't wait; "" if it has to."""
        suspicious = (
            not self._conditions
            or self._looks_bad(session, address)
            or await self._listed(address, self._lists)
        )
        if not suspicious:
            return "not suspicious"
        if zone := await self._listed(address, self._allows):
            return f"listed by {shown(zone)}"
        return ""

    def _looks_bad(self, session: Session, address: str) -> bool:
        """Return whether a condition holds that needs no look-up.

        Where smtpd's own look-up failed, it is not known whether the name is missing or false.
        """
        conditions, name = self._conditions, session.rdns
        failed = session.fcrdns == "error"
        if not name:
            return not failed and bool(conditions & {"no-rdns", "unconfirmed"})
        if "unconfirmed" in conditions and session.fcrdns != "pass" and not failed:
            return True
        dynamic = self._dynamic if "dynamic" in conditions else None
        return dynamic is not None and dynamic.reason(canonical(name), address) is not None

    async def _listed(self, address: str, zones: Iterable[str]) -> str:
        """Return the first zone that has the address, or ""."""
        zones = tuple(zones)
        if self._dns is None or not zones:
            return ""
        outcomes = await self._dns.query_all([(reverse(address, zone=each), "A") for each in zones])
        listing = ""
        for zone, outcome in zip(zones, outcomes, strict=True):
            if isinstance(outcome, Found):
                answers, outside, refused = sort(zone, outcome.records)
                if refused or (outside and not answers):
                    self._note(shown(zone), refused or outside)
                elif answers:
                    listing = listing or zone
        return listing
