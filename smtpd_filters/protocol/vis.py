r"""Decoder and encoder for vis(3), the form of user names: `jörg s` is `j\M-C\M-6rg\040s`.

The decoder accepts every form of unvis(3) and never raises: an invalid escape is left as it is. The
encoder writes what smtpd writes (strnvis(3) with VIS_SAFE and VIS_WHITE); bars are not escaped.
"""

from __future__ import annotations

import re

_ESCAPE = re.compile(
    rb"\\(?:(?P<octal>[0-7]{1,3})|M(?:-(?P<meta>[\x21-\x7e])|\^(?P<metacontrol>[?-_]))"
    rb"|\^(?P<control>[?-_])|(?P<named>[\\nrbavtfsE])|(?P<hidden>[\n$]))",
    re.DOTALL,
)
_NAMED = dict(zip(b"\\nrbavtfsE", b"\\\n\r\b\a\v\t\f \x1b", strict=True))


def unvis(text: bytes) -> bytes:
    """Return the text without its escapes."""
    return _ESCAPE.sub(_decode, text) if b"\\" in text else text


def _decode(match: re.Match[bytes]) -> bytes:
    kind, value = match.lastgroup, match[match.lastgroup or 0]
    if kind == "octal":
        return bytes([int(value, 8) & 0xFF])
    if kind == "meta":
        return bytes([value[0] | 0x80])
    if kind == "named":
        return bytes([_NAMED[value[0]]])
    if kind == "hidden":
        return b""
    # "^?" is DEL, "^@" to "^_" are the other control characters.
    control = 0x7F if value == b"?" else value[0] & 0x1F
    return bytes([control | 0x80 if kind == "metacontrol" else control])


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
