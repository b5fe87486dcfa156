"""The addresses that the policy judges."""

from __future__ import annotations


class Candidate:
    """A reading of an address: readings of its local part, and a domain ("" if it has none)."""

    __slots__ = ("domain", "local_parts")

    def __init__(self, local_parts: tuple[str, ...], domain: str) -> None:
        self.local_parts = local_parts
        self.domain = domain

    def completed(self, server_name: str | None) -> Candidate:
        """Return the address as smtpd completes it: with the server's name if it has no domain."""
        return self if self.domain else Candidate(self.local_parts, server_name or "")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Candidate) and (
            (self.local_parts, self.domain) == (other.local_parts, other.domain)
        )

    def __hash__(self) -> int:
        return hash((self.local_parts, self.domain))

    def __str__(self) -> str:
        return f"{self.local_parts[0]}@{self.domain}" if self.domain else self.local_parts[0]
