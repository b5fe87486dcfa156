"""The milter's side of a connection, without I/O: for the peers of tests and benchmarks.

It is as strict as libmilter: packets that libmilter resets the connection for are errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from . import vocabulary as v
from .codec import UINT16, MilterError, Packets, shown, strings
from .negotiation import Offer

_STRINGS = frozenset({v.HELO, v.MAIL, v.RCPT, v.HEADER, v.UNKNOWN})
_EMPTY = frozenset({v.DATA, v.END_OF_HEADER, v.ABORT, v.QUIT})


@dataclass(frozen=True, slots=True)
class Event:
    """What the MTA sent: the command, the strings or bytes in it, and the macros before it.

    The fields of CONNECT are the host, the family, the port in digits, and the address.
    """

    command: bytes
    fields: tuple[bytes, ...] = ()
    macros: dict[bytes, bytes] = field(default_factory=dict)


class MilterSide:
    """The events in what an MTA sends."""

    def __init__(self) -> None:
        self._packets = Packets(v.MAX_PAYLOAD + 1)
        self._macros: dict[bytes, dict[bytes, bytes]] = {}
        #: What the MTA has offered; None before.
        self.offer: Offer | None = None

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the MTA; return the events that are complete. Raises MilterError."""
        self._packets.feed(data)
        events: list[Event] = []
        while (found := self._packets.next()) is not None:
            event = self._event(*found)
            if event is not None:
                events.append(event)
        return events

    def _event(self, command: bytes, payload: bytes) -> Event | None:
        if self.offer is None:
            if command != v.NEGOTIATE:
                raise MilterError(f"{shown(command)} before the negotiation")
            self.offer = Offer.parse(payload)
            return Event(command)
        if command == v.MACROS:
            self._macros[payload[:1]] = _pairs(payload[1:])
            return None
        return Event(command, _fields(command, payload), self._macros.pop(command, {}))


def _pairs(payload: bytes) -> dict[bytes, bytes]:
    texts = strings(payload)
    if len(texts) % 2:
        raise MilterError("a macro without its value")
    names = texts[::2]
    if not all(len(name) == 1 or (name[:1], name[-1:]) == (b"{", b"}") for name in names):
        raise MilterError(f"invalid names of macros {names}")
    return dict(zip(names, texts[1::2], strict=True))


def _fields(command: bytes, payload: bytes) -> tuple[bytes, ...]:
    if command == v.CONNECT:
        host, null, rest = payload.partition(b"\0")
        family, where = rest[:1], rest[1:]
        if not null or family not in {b"4", b"6", b"L", b"U"}:
            raise MilterError("an invalid CONNECT")
        if family == b"U":
            return host, family
        addresses = strings(where[UINT16.size :])
        if len(addresses) != 1:
            raise MilterError("an invalid CONNECT")
        (port,) = UINT16.unpack_from(where)
        return host, family, str(port).encode(), addresses[0]
    if command in _STRINGS:
        texts = tuple(strings(payload))
        if not texts or (command == v.HEADER and len(texts) != 2):
            raise MilterError(f"{shown(command)} with {len(texts)} strings")
        return texts
    if command in {v.BODY, v.END_OF_BODY}:
        return (payload,) if payload else ()
    if command in _EMPTY and not payload:
        return ()
    raise MilterError(f"an invalid packet {shown(command)}")
