"""The header fields that signatures cover, in canonical form (RFC 6376 sections 3.7 and 5.4.2).

A field is the list of its raw lines; which lines form one is decided as in
`smtpd_filters.message.Headers`, whose objects would take most of the time of a verification.

Invariants
----------
*Once*: a field is canonicalised once for each form, however many signatures cover it.
*Asked for*: of a large block only the fields that were asked for are kept while the DNS is waited
for: 16,000 take far more memory than their text.
*Bottom up*: a name that occurs several times in h= selects the fields of that name from the bottom;
beyond the topmost it selects nothing, which protects against added fields.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

from .canonical import FIELD
from .tags import emptied

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator
    from typing import TypeAlias

    from smtpd_filters.message import Headers

    #: The raw lines of a field, without line ends.
    Lines: TypeAlias = list[bytes]

#: Bytes of a header block whose signatures are verified.
MAX_BLOCK: Final = 256 << 10
_WHITE: Final = (b" ", b"\t")
#: Lines of a block whose fields are all found at once; honest mail has fewer.
_FEW: Final = 256


class SignedFields:
    """The fields of one header block."""

    def __init__(self, headers: Headers) -> None:
        lines = headers.lines()
        #: Whether the block is too long to be verified, or was cut.
        self.too_long = headers.cut or sum(map(len, lines)) > MAX_BLOCK
        self._lines = lines
        #: All fields, if they were asked for.
        self._every: list[tuple[bytes, Lines]] | None = None
        #: The fields by name: of all names in a small block, else of those that were asked for.
        self._named: dict[bytes, list[Lines]] = {}
        self._complete = len(lines) <= _FEW
        self._canonical: dict[tuple[str, int], bytes] = {}
        if self._complete:
            for name, field in _split(lines):
                self._named.setdefault(name, []).append(field)

    def find(self, names: Iterable[bytes]) -> None:
        """Find the fields of several names in lower case in one pass, for `named`."""
        if self._complete:
            return
        wanted: dict[bytes, list[Lines]] = {name: [] for name in names if name not in self._named}
        if wanted:
            for name, field in _split(self._lines, wanted):
                wanted[name].append(field)
            self._named |= wanted

    def named(self, key: bytes) -> list[Lines]:
        """Return the fields of a name in lower case, from the top."""
        self.find((key,))
        return self._named.get(key, [])

    def from_the_bottom(self) -> list[tuple[bytes, Lines]]:
        """Return all fields from the bottom to the top, with their names in lower case."""
        if self._every is None:
            self._every = list(_split(self._lines))
        return self._every[::-1]

    def canonical(self, field: Lines, form: str) -> bytes:
        """Return a field of this block in canonical form, with its CRLF."""
        key = form, id(field)
        text = self._canonical.get(key)
        if text is None:
            text = self._canonical[key] = FIELD[form](field)
        return text

    def selected(self, names: Iterable[bytes], signature: Lines | None = None) -> Iterator[Lines]:
        """Yield the fields that a list of names in lower case selects, without the signature.

        In a large block, `find` first finds those of several lists at once.
        """
        left: dict[bytes, list[Lines]] = {}
        for name in names:
            stack = left.get(name)
            if stack is None:
                stack = left[name] = [each for each in self.named(name) if each is not signature]
            if stack:
                yield stack.pop()

    def digest(self, names: Iterable[bytes], form: str, signature: Lines) -> bytes:
        """Return the SHA-256 hash of the selected fields and the signature without its b=."""
        canonical = self.canonical
        parts = [canonical(field, form) for field in self.selected(names, signature)]
        parts.append(without_value(signature, form))
        return sha256(b"".join(parts)).digest()


def without_value(signature: Lines, form: str) -> bytes:
    """Return a signature as it is signed: without the value of b= and the final CRLF."""
    lines = emptied(b"\n".join(signature)).split(b"\n")
    return FIELD[form](lines).removesuffix(b"\r\n")


def _split(
    lines: Iterable[bytes], wanted: Container[bytes] | None = None
) -> Iterator[tuple[bytes, Lines]]:
    """Yield the fields of a block, from the top, with their names in lower case.

    With `wanted`, only those of these names.
    """
    field: Lines | None = None
    for line in lines:
        if line.startswith(_WHITE):
            if field is not None:
                field.append(line)
            continue
        name, colon, _ = line.partition(b":")
        name = name.rstrip(b" \t").lower()
        field = None
        if colon and (wanted is None or name in wanted):
            # Continuation lines follow. A name that is invalid is in no h=.
            field = [line]
            yield name, field
