"""Counters of messages by version of TLS, without I/O or clock."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .channel import Channel

PLAIN, OTHER = "plain", "other"
#: Versions that are counted on their own.
MAX_KINDS = 8


class Counts:
    """The messages of an interval."""

    __slots__ = ("by_kind", "exempt", "failing", "since", "users")

    def __init__(self, since: float) -> None:
        #: When the interval began, in seconds.
        self.since = since
        self.by_kind: dict[str, int] = {}
        #: Messages of authenticated clients among them.
        self.users = 0
        #: Messages that don't meet a requirement, whatever its action.
        self.failing = 0
        #: Messages of exempt clients, which aren't in any other number.
        self.exempt = 0

    def add(self, channel: Channel | None, *, user: bool) -> None:
        """Count a message."""
        kind = PLAIN if channel is None else channel.protocol
        if kind not in self.by_kind and len(self.by_kind) >= MAX_KINDS:
            kind = OTHER
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1
        self.users += user

    def values(self, now: float) -> dict[str, object]:
        """Return what to log; empty if nothing was counted."""
        total = sum(self.by_kind.values())
        if not total and not self.exempt:
            return {}
        kinds = sorted(self.by_kind.items(), key=lambda each: (each[0] != PLAIN, each[0]))
        return {
            "messages": total,
            "shares": ", ".join(f"{kind} {100 * n / total:.1f}%" for kind, n in kinds),
            **dict(kinds),
            "users": self.users,
            "failing": self.failing,
            "exempt": self.exempt,
            "hours": f"{(now - self.since) / 3600:.1f}",
        }
