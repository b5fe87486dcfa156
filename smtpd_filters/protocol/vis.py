r"""Decoder and encoder for vis(3), the form of user names: `jörg s` is `j\M-C\M-6rg\040s`.

The decoder accepts every form of unvis(3) and never raises: an invalid escape is left as it is. The
encoder writes what smtpd writes (strnvis(3) with VIS_SAFE and VIS_WHITE); bars are not escaped.
"""

from __future__ import annotations

# Without `re`, which takes a tenth of the start and of the memory: every filter loads this module,
# and few decode a name.
_OCTAL = b"01234567"
_NAMED = {
    b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"b": b"\b", b"a": b"\a", b"v": b"\v",
    b"t": b"\t", b"f": b"\f", b"s": b" ", b"E": b"\x1b", b"\n": b"", b"$": b"",
}  # fmt: skip


def unvis(text: bytes) -> bytes:
    """Return the text without its escapes."""
    if b"\\" not in text:
        return text
    pieces: list[bytes] = []
    at = 0
    while (found := text.find(b"\\", at)) >= 0:
        decoded, size = _decoded(text[found + 1 : found + 4])
        pieces += (text[at:found], decoded)
        at = found + 1 + size
    return b"".join([*pieces, text[at:]])


def _decoded(escape: bytes) -> tuple[bytes, int]:
    """Return what the bytes after a backslash stand for, and how many of them belong to it."""
    digits = len(escape) - len(escape.lstrip(_OCTAL))
    if digits:
        return bytes([int(escape[:digits], 8) & 0xFF]), digits
    if escape[:1] in _NAMED:
        return _NAMED[escape[:1]], 1
    if escape[:2] == b"M-" and b"!" <= escape[2:] <= b"~":
        return bytes([escape[2] | 0x80]), 3
    meta = escape[:2] == b"M^"
    control = escape[meta : meta + 2]
    if control[:1] == b"^" and b"?" <= control[1:] <= b"_":
        # "^?" is DEL, "^@" to "^_" are the other control characters.
        byte = 0x7F if control[1:] == b"?" else control[1] & 0x1F
        return bytes([byte | meta << 7]), 2 + meta
    return b"\\", 0


def vis(text: bytes) -> bytes:
    """Return the text with escapes."""
    return b"".join(map(_encoded, text))


def _encoded(byte: int) -> bytes:
    low = byte & 0x7F
    if byte == 0x5C:
        return b"\\\\"
    if low == 0x20:
        return b"\\%03o" % byte
    meta = b"M" if byte & 0x80 else b""
    if low < 0x20 or low == 0x7F:
        return b"\\%b^%c" % (meta, low ^ 0x40)
    return b"\\M-%c" % low if meta else bytes([byte])
