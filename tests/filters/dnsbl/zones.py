"""Zones of DNS lists for tests: with their entries for testing, and what they list."""

from __future__ import annotations

import ipaddress
from typing import Any

LISTED, UNLISTED = "127.0.0.2", "127.0.0.1"
LISTED6, UNLISTED6 = "::ffff:7f00:2", "::ffff:7f00:1"


def under(zone: str, subject: str) -> str:
    """The name under which a list has an address or a name."""
    try:
        address = ipaddress.ip_address(subject)
    except ValueError:
        return f"{subject}.{zone}"
    pointer = address.reverse_pointer
    return pointer.removesuffix("in-addr.arpa").removesuffix("ip6.arpa") + zone


def addresses(zone: str, listed: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """A list of addresses, IPv4 and IPv6; what it lists as answers, or as an entry of a zone."""
    return _entries(zone, {LISTED: "127.0.0.2", LISTED6: "127.0.0.2", **(listed or {})})


def domains(zone: str, listed: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """A list of names."""
    return _entries(zone, {"test": "127.0.0.2", **(listed or {})})


def _entries(zone: str, listed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        under(zone, subject): entry if isinstance(entry, dict) else {"A": entry}
        for subject, entry in listed.items()
    }
