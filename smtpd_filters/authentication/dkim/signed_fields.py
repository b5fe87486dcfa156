"""The header fields that signatures cover, in canonical form (RFC 6376 sections 3.7 and 5.4.2).

A field is its raw lines, separated by line feeds; which lines form one is decided as in
`smtpd_filters.message.Headers`, whose objects would take most of the time of a verification.

Invariants
----------
*Once*: fields of more than `_SHORT` bytes on average are canonicalised once for each form, however
many signatures cover them.
*Few*: of a large block only fields that were asked for are kept, and of each name the lowest
`MAX_NAMES` and the topmost that were asked for: 16,000 take far more memory than their text.
*Bottom up*: a name that occurs several times in h= selects the fields of that name from the bottom;
beyond the topmost it selects nothing, which protects against added fields.
*No second one*: of the names in `SINGLE` that are in h=, no field is left unsigned in a message
whose signature is valid, also none that only some programs read as one of them (`disguised`).
"""

from __future__ import annotations

import re
from collections import deque
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from smtpd_filters.message.disguise import disguised
from smtpd_filters.message.headers import fields_in, fields_named

from .canonical import FIELD, RELAXED, relaxed_fields
from .tags import emptied

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from smtpd_filters.message import Headers

#: Bytes of a header block whose signatures are verified.
MAX_BLOCK: Final = 256 << 10
#: Names in the h= of a signature.
MAX_NAMES: Final = 256
#: Fields that mail programs show, answer to or read the body by, and of which a message has one
#: (RFC 5322 section 3.6, RFC 2045 section 3).
SINGLE: Final = (
    b"from",
    b"subject",
    b"content-type",
    b"content-transfer-encoding",
    b"to",
    b"cc",
    b"reply-to",
    b"sender",
    b"date",
)
#: Lines of a block whose fields are all found at once; honest mail has fewer.
_FEW: Final = 256
#: Bytes of a field up to which its canonical form takes more memory than it saves time.
_SHORT: Final = 512
#: All fields of a block, each with its name.
_FIELDS: Final = re.compile(rb"\n(([!-9;-~]++)[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*+)").findall


class SignedFields:
    """The fields of one header block."""

    def __init__(self, headers: Headers) -> None:
        self._text = text = headers.text()
        lines = text.count(b"\n")
        #: Whether the block is too long to be verified, or was cut.
        self.too_long = headers.cut or len(text) - lines > MAX_BLOCK
        #: The fields by name: of all names in a small block, else of those that were asked for,
        #: the lowest of each.
        self._named: dict[bytes, list[bytes]] = {}
        self._complete = lines <= _FEW
        #: All fields of a small block, with their names.
        self._every: list[tuple[bytes, bytes]] = []
        #: The topmost fields of a large block that were asked for, by their places.
        self._topmost: dict[int, bytes] = {}
        self._canonical: dict[tuple[str, bytes], bytes] = {}
        self._disguised: frozenset[bytes] | None = None
        if self._complete:
            named = self._named
            self._every = every = [(name.lower(), field) for field, name in _FIELDS(text)]
            for name, field in every:
                named.setdefault(name, []).append(field)

    def find(self, names: Iterable[bytes]) -> None:
        """Find the fields of several names in lower case in one pass, for `selected`."""
        if self._complete:
            return
        wanted = {name for name in names if name not in self._named}
        if not wanted:
            return
        found: dict[bytes, list[bytes]] = dict.fromkeys(wanted, _NONE)
        for name, field in self._fields(wanted):
            fields = found[name]
            if not fields:
                found[name] = [field]
                continue
            fields.append(field)
            if len(fields) > 2 * MAX_NAMES:
                # One more than a signature can select: it may be among them itself.
                del fields[: -MAX_NAMES - 1]
        self._named |= found

    def each(self, name: str) -> Iterator[bytes]:
        """Yield all fields of a name, from the top."""
        if self._complete:
            yield from self._named.get(name.lower().encode("ascii"), ())
            return
        topmost = self._topmost
        for match in fields_named(self._text, self._text.lower(), name):
            yield topmost.get(match.start()) or match[0][1:]

    def topmost(self, name: str, limit: int) -> tuple[list[bytes], int]:
        """Return the topmost fields of a name, at most `limit`, and the number of all."""
        if self._complete:
            found = self._named.get(name.lower().encode("ascii"), _NONE)
            return found[:limit], len(found)
        # Those that were found before are not these very objects, by which `selected` knows them.
        self._named.pop(name.lower().encode("ascii"), None)
        found, count = [], 0
        for match in fields_named(self._text, self._text.lower(), name):
            if count < limit:
                found.append(self._topmost.setdefault(match.start(), match[0][1:]))
            count += 1
        return found, count

    def lowest(self, names: Container[bytes] | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Return the fields of some names in lower case, or all, with their names.

        They are in the order from the bottom to the top, and at most `limit`.
        """
        return list(deque(self._fields(names), limit))[::-1]

    def canonical(self, field: bytes, form: str) -> bytes:
        """Return a field of this block in canonical form, with its CRLF."""
        if len(field) <= _SHORT:
            return FIELD[form](field)
        text = self._canonical.get((form, field))
        if text is None:
            text = self._canonical[form, field] = FIELD[form](field)
        return text

    def selected(self, names: Sequence[bytes], signature: bytes | None = None) -> list[bytes]:
        """Return the fields that a list of names in lower case selects, without the signature.

        In a large block, `find` first finds those of several lists at once.
        """
        self.find(names)
        named = self._named
        selected: list[bytes] = []
        left: dict[bytes, list[bytes]] = {}
        for name in names:
            stack = left.get(name)
            if stack is None:
                found = named.get(name)
                if not found:
                    continue
                stack = left[name] = [each for each in found if each is not signature]
            if stack:
                selected.append(stack.pop())
        return selected

    def added(self, names: Sequence[bytes]) -> bytes:
        """Return a name of `SINGLE` of which a list of names leaves a field unsigned, or b"".

        A name that isn't in the list at all doesn't count: there the signer allows any field.
        """
        if self._disguised is None:
            self._disguised = disguised(self._text, SINGLE)
        named = self._named
        for name in SINGLE:
            if name in names and (
                len(named.get(name, _NONE)) > names.count(name) or name in self._disguised
            ):
                return name
        return b""

    def digest(self, names: Sequence[bytes], form: str, signature: bytes) -> bytes:
        """Return the SHA-256 hash of the selected fields and the signature without its b=."""
        return self.digest_of(self.selected(names, signature), form, emptied(signature))

    def digest_of(self, fields: list[bytes], form: str, unsigned: bytes) -> bytes:
        """Return the SHA-256 hash of fields of this block and a signature with an empty b=."""
        if form == RELAXED and sum(map(len, fields)) <= _SHORT * len(fields):
            # Without the final CRLF.
            return sha256(relaxed_fields([*fields, unsigned])[:-2]).digest()
        canonical = self.canonical
        parts = [canonical(field, form) for field in fields]
        parts.append(FIELD[form](unsigned)[:-2])
        return sha256(b"".join(parts)).digest()

    def _fields(self, wanted: Container[bytes] | None = None) -> Iterable[tuple[bytes, bytes]]:
        """Return the fields of the block, from the top, with their names in lower case.

        With `wanted`, only those of these names.
        """
        if not self._complete:
            return self._search(wanted)
        if wanted is None:
            return self._every
        return [each for each in self._every if each[0] in wanted]

    def _search(self, wanted: Container[bytes] | None) -> Iterator[tuple[bytes, bytes]]:
        """Yield the fields of a large block, as `_fields` returns them."""
        topmost = self._topmost
        for match in fields_in(self._text):
            name = match[1].lower()
            if wanted is None or name in wanted:
                yield name, topmost.get(match.start()) or match[0][1:]


#: No fields; never changed.
_NONE: Final[list[bytes]] = []


def without_value(signature: bytes, form: str) -> bytes:
    """Return a raw signature as it is signed: without the value of b= and the final CRLF."""
    return FIELD[form](emptied(signature)).removesuffix(b"\r\n")
