r"""Search filters (RFC 4515): from text to BER, with the places of keys.

A template is a filter with `%u` or `%s` for the key, `%h` for the table's name and `%%`. A key is
escaped before it is put in: `\ * ( ) NUL` become `\5c \2a \28 \29 \00`, so that no key can change
what is searched for.
"""

from __future__ import annotations

import re

from .ber import boolean, element, octets

AND, OR, NOT = 0xA0, 0xA1, 0xA2
EQUALITY, SUBSTRINGS, GREATER, LESS, PRESENT, APPROXIMATE, EXTENSIBLE = (
    0xA3, 0xA4, 0xA5, 0xA6, 0x87, 0xA8, 0xA9,
)  # fmt: skip
_INITIAL, _ANY, _FINAL = 0x80, 0x81, 0x82
_RULE, _TYPE, _VALUE, _DN_ATTRIBUTES = 0x81, 0x82, 0x83, 0x84
_SPECIAL = {"\\": "\\5c", "*": "\\2a", "(": "\\28", ")": "\\29", "\0": "\\00"}
_ESCAPES = str.maketrans(_SPECIAL)
#: Nested filters.
DEPTH_MAX = 20
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.;")


def escape(text: str) -> str:
    """Escape a value for a filter."""
    return text.translate(_ESCAPES)


def fill(template: str, key: str, name: str = "") -> str:
    """Return the filter of a template for an escaped key. Raises ValueError for an unknown `%`."""
    parts = template.split("%")
    text = parts[0]
    rest = iter(parts[1:])
    for part in rest:
        if part[:1] in {"u", "s"}:
            text += key + part[1:]
        elif part[:1] == "h":
            text += name + part[1:]
        elif not part:
            text += "%" + next(rest, "")
        else:
            raise ValueError(f"%{part[:1]} in a filter (expected %u, %h or %%)")
    return text


def encode(text: str) -> bytes:
    """Encode a filter. Raises ValueError if it is invalid."""
    parser = _Parser(text.strip())
    encoded = parser.filter(0)
    if parser.at != len(parser.text):
        raise ValueError(f"text after the filter: {parser.text[parser.at :][:40]!r}")
    return encoded


def attributes_of(text: str) -> list[str]:
    """Return the attributes that a filter compares, without options. Raises ValueError."""
    parser = _Parser(text.strip())
    parser.filter(0)
    names = (re.match("[A-Za-z0-9.-]*", item.lstrip(" ")) for item in parser.items)
    return [name[0] for name in names if name and name[0]]


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        #: The comparisons that were parsed.
        self.items: list[str] = []

    def filter(self, depth: int) -> bytes:
        if depth > DEPTH_MAX:
            raise ValueError(f"filters nested more than {DEPTH_MAX} deep")
        self._expect("(")
        kind = self.text[self.at : self.at + 1]
        if kind in {"&", "|"}:
            self.at += 1
            parts = []
            while self.text[self.at : self.at + 1] == "(":
                parts.append(self.filter(depth + 1))
            encoded = element(AND if kind == "&" else OR, *parts)
        elif kind == "!":
            self.at += 1
            encoded = element(NOT, self.filter(depth + 1))
        else:
            end = self.text.find(")", self.at)
            if end < 0:
                raise ValueError("a filter without its closing parenthesis")
            item = self.text[self.at : end]
            encoded = _item(item)
            self.items.append(item)
            self.at = end
        self._expect(")")
        return encoded

    def _expect(self, char: str) -> None:
        if self.text[self.at : self.at + 1] != char:
            found = self.text[self.at :][:20]
            raise ValueError(f"expected {char!r} in a filter, not {found!r}")
        self.at += 1


def _item(text: str) -> bytes:
    name, equals, value = text.partition("=")
    if not equals or "(" in text:
        raise ValueError(f"expected attribute=value in a filter, not {text[:40]!r}")
    kind = EQUALITY
    if name[-1:] in {">", "<", "~"}:
        kind = {">": GREATER, "<": LESS, "~": APPROXIMATE}[name[-1]]
        name = name[:-1]
    elif name[-1:] == ":":
        return _extensible(name[:-1], value)
    attribute = octets(_name(name))
    if kind == EQUALITY and "*" in value:
        return _substrings(name, attribute, value)
    return element(kind, attribute, octets(_value(value)))


def _substrings(name: str, attribute: bytes, value: str) -> bytes:
    first, *between, last = value.split("*")
    parts = [octets(_value(first), _INITIAL)] if first else []
    parts += [octets(_value(part), _ANY) for part in between if part]
    parts += [octets(_value(last), _FINAL)] if last else []
    if not parts:
        return octets(_name(name), PRESENT)
    return element(SUBSTRINGS, attribute, element(0x30, *parts))


def _extensible(name: str, value: str) -> bytes:
    words = name.split(":")
    kind, rest = words[0], words[1:]
    dn = bool(rest) and rest[0].lower() == "dn"
    rule = rest[dn:]
    if len(rule) > 1 or not (kind or rule):
        raise ValueError(f"an invalid matching rule in a filter: {name[:40]!r}")
    return element(
        EXTENSIBLE,
        octets(_name(rule[0]), _RULE) if rule else b"",
        octets(_name(kind), _TYPE) if kind else b"",
        octets(_value(value), _VALUE),
        boolean(value=True, tag=_DN_ATTRIBUTES) if dn else b"",
    )


def _name(text: str) -> bytes:
    text = text.strip(" ")
    if not text or not _NAME.issuperset(text):
        raise ValueError(f"an invalid attribute in a filter: {text[:40]!r}")
    return text.encode()


def _value(text: str) -> bytes:
    first, *escaped = text.split("\\")
    value = first.encode("utf-8", "surrogateescape")
    for part in escaped:
        try:
            value += bytes.fromhex(part[:2] if part[:2].isalnum() and part[:2].isascii() else "x")
        except ValueError:
            raise ValueError(f"an invalid escape in a filter: {part[:2]!r}") from None
        if len(part) < 2:
            raise ValueError(f"an invalid escape in a filter: {part[:2]!r}")
        value += part[2:].encode("utf-8", "surrogateescape")
    return value
