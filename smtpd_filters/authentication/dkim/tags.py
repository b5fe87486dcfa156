"""Tag lists, the syntax of signatures and key records (RFC 6376 section 3.2)."""

from __future__ import annotations

import re
from binascii import a2b_base64
from typing import Final

#: Tags in a list. A signature has 15 different ones.
MAX_TAGS: Final = 64
_WHITE: Final = b" \t\r\n"
#: A tag and its semicolon, which the last may lack.
_SPEC = re.compile(
    rb"[ \t\r\n]*+([A-Za-z][A-Za-z0-9_]*+)[ \t\r\n]*+=[ \t\r\n]*+([^;]*+)(?:;|\Z)", re.DOTALL
)


class TagError(Exception):
    """A text is not a valid tag list; the text of the exception is the reason."""


class Problem(Exception):  # noqa: N818  # of the message, not of ours
    """A signature can't be verified: `result` is a result of RFC 8601, the text is the reason."""

    def __init__(self, result: str, reason: str) -> None:
        super().__init__(reason)
        self.result = result


def parse_tags(text: bytes) -> dict[str, bytes]:
    """Parse a tag list; white space around names and values is removed. Raises TagError.

    Folding white space inside a value stays. A name that occurs twice makes the list invalid.
    """
    tags: dict[str, bytes] = {}
    at = 0
    while found := _SPEC.match(text, at):
        key, value = found.groups()
        name = key.decode("ascii")
        if name in tags:
            raise TagError(f"tag {name}= twice")
        if len(tags) == MAX_TAGS:
            raise TagError("too many tags")
        tags[name] = value.rstrip(_WHITE)
        at = found.end()
    if text[at:].strip(_WHITE):
        raise TagError("invalid tag")
    return tags


def base64_value(value: bytes) -> bytes:
    """Decode a value in Base64 with folding white space in it. Raises binascii.Error."""
    return a2b_base64(value.translate(None, _WHITE), strict_mode=True)


def emptied(field: bytes) -> bytes:
    """Return a raw field without the value of its tag `b` and the white space around it.

    RFC 6376 section 3.7: everything else, folding included, stays.
    """
    colon = field.index(b":") + 1
    specs = field[colon:].split(b";")
    for at, spec in enumerate(specs):
        name, equals, _ = spec.partition(b"=")
        if equals and name.strip(_WHITE) == b"b":
            specs[at] = name + equals
    return field[:colon] + b";".join(specs)
