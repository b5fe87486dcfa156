"""The negotiation: what an MTA offers, and what a milter makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from struct import Struct

from . import vocabulary as v
from .codec import MilterError, cstr, packet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

#: Macros for which a milter may ask at a stage. Sendmail, which has some 70, allows 50
#: (MAXFILTERMACROS).
MAX_MACROS = 200
#: Lists of macros. libmilter sends one for each stage, of which it knows 7 (MAX_MACROS_ENTRIES).
MAX_LISTS = 32
_THREE = Struct(">III")
_STAGE = Struct(">I")
#: The events by the number of their stage.
_EVENTS = {number: event for event, number in v.STAGES.items()}


@dataclass(frozen=True, slots=True)
class Offer:
    """The version, the actions and the protocol bits that an MTA supports."""

    version: int = v.NEWEST
    actions: int = v.ACTIONS_OF[v.NEWEST]
    protocol: int = v.PROTOCOL_OF[v.NEWEST]

    @classmethod
    def of(cls, version: int) -> Offer:
        """Return all that a version has, except for recipients that the MTA refused.

        smtpd refuses recipients after its filters have been asked.
        """
        return cls(version, v.ACTIONS_OF[version], v.PROTOCOL_OF[version] & ~v.REFUSED_RCPT)

    def encode(self) -> bytes:
        """Return the packet."""
        return packet(v.NEGOTIATE, _THREE.pack(self.version, self.actions, self.protocol))

    @classmethod
    def parse(cls, payload: bytes) -> Offer:
        """Return the offer in a packet, for a milter. Raises MilterError."""
        if len(payload) != _THREE.size:
            raise MilterError(f"an offer of {len(payload)} bytes")
        return cls(*_THREE.unpack(payload))


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a milter answered: its version, the actions that it may use, the bits that it wants.

    `macros` has the names that it asks for, by the event that they precede.
    """

    version: int = v.NEWEST
    actions: int = 0
    protocol: int = 0
    macros: Mapping[bytes, tuple[bytes, ...]] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the packet."""
        lists = b"".join(
            _STAGE.pack(v.STAGES[event]) + cstr(b" ".join(names))
            for event, names in self.macros.items()
        )
        return packet(v.NEGOTIATE, _THREE.pack(self.version, self.actions, self.protocol) + lists)

    @classmethod
    def parse(cls, payload: bytes, offer: Offer) -> Agreement:
        """Return the agreement in a packet. Raises MilterError if it goes beyond the offer."""
        if len(payload) < _THREE.size:
            raise MilterError(f"a negotiation of {len(payload)} bytes")
        version, actions, protocol = _THREE.unpack_from(payload)
        if not v.OLDEST <= version <= offer.version:
            raise MilterError(f"it speaks version {version}, offered were 2 to {offer.version}")
        if extra := actions & ~offer.actions:
            raise MilterError(f"it asks for the actions {extra:#x}, which were not offered")
        if extra := protocol & ~offer.protocol:
            raise MilterError(f"it asks for the protocol bits {extra:#x}, which were not offered")
        lists = _symbol_lists(payload[_THREE.size :]) if actions & v.SETSYMLIST else {}
        return cls(version, actions, protocol, lists)

    def wants(self, event: bytes) -> bool:
        """Whether the milter is to be sent this event."""
        return self.version >= v.SINCE.get(event, 0) and not self.protocol & v.OMITTED.get(event, 0)

    def answers(self, event: bytes) -> bool:
        """Whether the milter is sent this event and answers it."""
        return self.wants(event) and not self.protocol & v.UNANSWERED.get(event, 0)

    def events(self) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """Return the events that the milter is to be sent, and those that it answers."""
        return _events(self.version, self.protocol)

    @property
    def leading_space(self) -> bool:
        """Whether values of fields have their white space behind the colon."""
        return bool(self.protocol & v.LEADING_SPACE)


@lru_cache(maxsize=64)  # each connection has its agreement, nearly always the same
def _events(version: int, protocol: int) -> tuple[frozenset[bytes], frozenset[bytes]]:
    agreed = Agreement(version=version, protocol=protocol)
    return frozenset(filter(agreed.wants, v.EVENTS)), frozenset(filter(agreed.answers, v.EVENTS))


def _symbol_lists(data: bytes) -> dict[bytes, tuple[bytes, ...]]:
    """Parse the names of macros for each stage; a stage that doesn't exist is left out."""
    lists: dict[bytes, tuple[bytes, ...]] = {}
    left = MAX_LISTS
    while data:
        left -= 1
        if left < 0:
            raise MilterError(f"more than {MAX_LISTS} lists of macros")
        if len(data) <= _STAGE.size:
            raise MilterError("a list of macros cut short")
        (stage,) = _STAGE.unpack_from(data)
        text, null, data = data[_STAGE.size :].partition(b"\0")
        if not null:
            raise MilterError("a list of macros without its end")
        if event := _EVENTS.get(stage):
            names = text.replace(b",", b" ").split()
            if len(names) > MAX_MACROS:
                raise MilterError(f"a list of {len(names)} macros")
            lists[event] = tuple(names)
    return lists
