"""The messages of LDAP (RFC 4511) that a client of directories needs, as bytes and as values."""

from __future__ import annotations

from .ber import (
    ENUMERATED,
    OCTETS,
    SEQUENCE,
    SET,
    BERError,
    Reader,
    boolean,
    element,
    integer,
    octets,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

BIND, BOUND, UNBIND, SEARCH, ENTRY, DONE, ABANDON, REFERENCE, EXTENDED, ANSWERED, INTERMEDIATE = (
    0x60, 0x61, 0x42, 0x63, 0x64, 0x65, 0x50, 0x73, 0x77, 0x78, 0x79,
)  # fmt: skip
_CONTROLS = 0xA0
_SIMPLE, _SASL = 0x80, 0xA3
START_TLS = b"1.3.6.1.4.1.1466.20037"
#: Attributes and values of one entry: more of them take a message too long to read at once.
ATTRIBUTES_MAX, VALUES_MAX = 1000, 50_000
#: RFC 2696.
PAGED = b"1.2.840.113556.1.4.319"
BASE, ONE, SUBTREE = 0, 1, 2
SUCCESS, TIME_LIMIT, SIZE_LIMIT, REFERRAL, NO_SUCH_OBJECT = 0, 3, 4, 10, 32
#: RFC 4511 appendix A, for the log.
CODES = {
    1: "operations error", 2: "protocol error", 3: "time limit exceeded",
    4: "size limit exceeded", 7: "authentication method not supported",
    8: "stronger authentication required", 10: "referral, which is not followed",
    11: "administrative limit exceeded", 12: "unavailable critical extension",
    13: "confidentiality required", 16: "no such attribute", 17: "undefined attribute type",
    18: "inappropriate matching", 32: "no such base", 34: "invalid DN syntax",
    48: "inappropriate authentication", 49: "invalid credentials",
    50: "insufficient access rights", 51: "busy", 52: "unavailable", 53: "unwilling to perform",
    54: "loop detected", 80: "other error",
}  # fmt: skip


def _message(number: int, operation: bytes, controls: bytes = b"") -> bytes:
    return element(SEQUENCE, integer(number), operation, controls)


def bind(number: int, name: bytes, password: bytes) -> bytes:
    """Encode a simple bind, version 3.

    Raises ValueError for a name without a password, which some servers take for an anonymous bind
    that succeeds (RFC 4513 section 5.1.2).
    """
    if name and not password:
        raise ValueError("a name without a password")
    return _message(number, element(BIND, integer(3), octets(name), octets(password, _SIMPLE)))


def bind_external(number: int) -> bytes:
    """Encode a bind by SASL EXTERNAL: the server knows the client from its connection."""
    mechanism = element(_SASL, octets(b"EXTERNAL"), octets(b""))
    return _message(number, element(BIND, integer(3), octets(b""), mechanism))


def unbind(number: int) -> bytes:
    """Encode the last request of a connection."""
    return _message(number, element(UNBIND))


def abandon(number: int, abandoned: int) -> bytes:
    """Encode that the result of a request isn't wanted any more."""
    return _message(number, integer(abandoned, ABANDON))


def start_tls(number: int) -> bytes:
    """Encode the request to begin TLS."""
    return _message(number, element(EXTENDED, octets(START_TLS, 0x80)))


class Search:
    """A search; `filter` is encoded. `size` and `seconds` are limits for the server, 0 for none."""

    __slots__ = ("attributes", "base", "filter", "scope", "seconds", "size")

    def __init__(  # noqa: PLR0913  # as the request
        self,
        base: str,
        filter: bytes,  # noqa: A002  # the field's word
        attributes: Sequence[str],
        *,
        scope: int = SUBTREE,
        size: int = 0,
        seconds: int = 0,
    ) -> None:
        self.base = base
        self.filter = filter
        self.attributes = attributes
        self.scope = scope
        self.size = size
        self.seconds = seconds

    def encode(self, number: int, page: int = 0, cookie: bytes = b"") -> bytes:
        """Encode the request; with `page`, for a page of so many entries."""
        operation = element(
            SEARCH,
            octets(self.base.encode("utf-8", "surrogateescape")),
            integer(self.scope, ENUMERATED),
            integer(0, ENUMERATED),  # aliases are never dereferenced
            integer(self.size),
            integer(self.seconds),
            boolean(value=False),
            self.filter,
            element(SEQUENCE, *(octets(each.encode()) for each in self.attributes)),
        )
        if not page:
            return _message(number, operation)
        value = element(SEQUENCE, integer(page), octets(cookie))
        control = element(SEQUENCE, octets(PAGED), boolean(value=True), octets(value))
        return _message(number, operation, element(_CONTROLS, control))


class Entry:
    """An entry that a search has found: its values by lower-case description of the attribute."""

    __slots__ = ("attributes", "number")

    def __init__(self, number: int, attributes: dict[str, list[bytes]]) -> None:
        self.number = number
        self.attributes = attributes

    def values(self, attribute: str) -> list[str]:
        """Return the values of an attribute as texts, also those with further options."""
        asked = attribute.lower()
        found: list[bytes] = []
        for description, values in self.attributes.items():
            if description == asked or _covers(asked, description):
                found += values
        return [value.decode("utf-8", "surrogateescape") for value in found]

    def others(self, attributes: Sequence[str]) -> list[str]:
        """Return the descriptions of all attributes but these."""
        asked = [each.lower() for each in attributes]
        return [each for each in self.attributes if not any(_covers(one, each) for one in asked)]


def _covers(asked: str, description: str) -> bool:
    """Whether values of a description are those of the one that was asked for.

    RFC 4512 section 2.5.2: "an attribute description with N options is a direct subtype of all
    attribute descriptions with the same attribute type and all but one of the N options".
    """
    name, *options = asked.split(";")
    other, *others = description.split(";")
    return name == other and set(options) <= set(others)


class Result:
    """The end of a request: its code, the server's text, and the cookie for the next page."""

    __slots__ = ("code", "cookie", "number", "operation", "text")

    def __init__(self, number: int, operation: int, code: int, text: str, cookie: bytes) -> None:
        self.number = number
        self.operation = operation
        self.code = code
        self.text = text
        self.cookie = cookie

    @property
    def reason(self) -> str:
        """The meaning of the code, for the log."""
        return CODES.get(self.code, f"error {self.code}")


class TooLarge:
    """A message that was not read, and the cause: its request fails, others are answered."""

    __slots__ = ("cause", "number")

    def __init__(self, number: int, cause: str) -> None:
        self.number = number
        self.cause = cause


class Reference:
    """A part of a search that another server would have to be asked for."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class _ExcessError(BERError):
    """An entry has too much in it."""


def decode(data: bytes) -> Entry | Result | Reference | TooLarge | None:
    """Decode one whole message; None for one that means nothing to us. Raises BERError."""
    outer = Reader(data)
    message = outer.inner(SEQUENCE)
    number = message.integer()
    tag = message.tag
    if number < 0:
        raise BERError("a negative message number")
    if tag == ENTRY:
        try:
            return Entry(number, _attributes(message.inner(ENTRY)))
        except _ExcessError as error:
            return TooLarge(number, str(error))
    if tag == REFERENCE:
        return Reference(number)
    if tag in {BOUND, DONE, ANSWERED}:
        operation = message.inner(tag)
        code = operation.integer(ENUMERATED)
        operation.octets()
        text = operation.octets().decode("utf-8", "replace")
        return Result(number, tag, code, text, _cookie(message))
    if tag == INTERMEDIATE:
        return None
    raise BERError(f"an unknown message, 0x{tag & 0xFF:02x}")


def _attributes(entry: Reader) -> dict[str, list[bytes]]:
    entry.octets()  # its name
    found: dict[str, list[bytes]] = {}
    left = VALUES_MAX
    attributes = entry.inner(SEQUENCE)
    while attributes:
        attribute = attributes.inner(SEQUENCE)
        values = found.setdefault(attribute.octets().decode("ascii", "replace").lower(), [])
        if len(found) > ATTRIBUTES_MAX:
            raise _ExcessError(f"an entry with more than {ATTRIBUTES_MAX} attributes")
        each = attribute.inner(SET)
        while each:
            values.append(each.octets(OCTETS))
            left -= 1
            if left < 0:
                raise _ExcessError(f"an entry with more than {VALUES_MAX} values")
    return found


def _cookie(message: Reader) -> bytes:
    """Return the cookie of a paged search's result; empty without one."""
    if message.tag != _CONTROLS:
        return b""
    controls = message.inner(_CONTROLS)
    while controls:
        control = controls.inner(SEQUENCE)
        if control.octets() != PAGED:
            continue
        if control.tag == 0x01:
            control.boolean()
        if control.tag != OCTETS:
            return b""
        value = Reader(control.octets()).inner(SEQUENCE)
        value.integer()
        return value.octets()
    return b""
