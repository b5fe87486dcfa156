"""Lines of the protocol: splitting bytes into lines, and smtpd's ids, requests and versions."""

from __future__ import annotations

import re
from typing import Final

#: smtpd never accepts a line of this many bytes or more.
LINE_LIMIT: Final = 65_536

#: A session or a token as smtpd parses it: strtoull(3) in base 16, without its leniency.
HEX: Final = re.compile(rb"[0-9a-fA-F]{1,16}")
#: A request in smtpd's form, up to its parameter.
WELL_FORMED: Final = re.compile(
    rb"filter\|[0-9]+\.[0-9]+\|[0-9]+(\.[0-9]+)?\|smtp-in\|[a-z-]+"
    rb"\|[0-9a-f]{16}\|[0-9a-f]{16}\|"
)
_NUMBERS: Final = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")


class Lines:
    """A splitter of bytes into whole lines."""

    __slots__ = ("rest",)

    def __init__(self) -> None:
        self.rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add a chunk; return the lines that are complete, without their LF."""
        if b"\n" not in data:
            self.rest += data
            return []
        lines = (bytes(self.rest) + data).split(b"\n")
        self.rest = bytearray(lines.pop())
        return lines


def numbers(version: str, unknown: tuple[int, int] = (99, 0)) -> tuple[int, int]:
    """Return major and minor of the first version in the text."""
    found = _NUMBERS.search(version)
    return (int(found[1]), int(found[2])) if found else unknown
