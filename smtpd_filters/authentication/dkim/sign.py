"""Signatures of messages (RFC 6376 section 5), without I/O.

Invariants
----------
*What is sent is signed*: the hash is made of the very lines that are returned, folds included.
*Only what stays*: Bcc is never signed, since smtpd removes it, and Date and Message-ID are not
over-signed where they are absent, since smtpd adds them. l= is never used.
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from smtpd_filters.message.folding import field_lines

from .canonical import SIMPLE
from .signed_fields import MAX_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .private_keys import PrivateKey
    from .signed_fields import SignedFields

NAME: Final = "DKIM-Signature"
#: Columns of a line, and of a tab in it.
_WIDTH: Final = 78
_TAB: Final = 8
# RFC 6376 section 2.11: folds may be anywhere but within the code of a character.
_WHOLE_CODES = re.compile(rb"(?:=..|[^=]){1,40}|=")
_AFTER_COLON = re.compile(rb"[^:]+:?")
#: The tags that may be folded, with functions that return the pieces in between.
_BREAKABLE: Final = {b"h=": _AFTER_COLON.findall, b"z=": _WHOLE_CODES.findall}
#: Bytes of h=, and of z= together with h=: verifiers, ours as well, don't read a signature of more
#: than 8 KiB, of which folds, the other tags and a long key's value take the rest.
NAMES_MAX: Final = 5000
COPIES_MAX: Final = 4000
#: Fields that smtpd removes, and those that it adds.
REMOVED: Final = frozenset({b"bcc"})
ADDED: Final = frozenset({b"date", b"message-id"})


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key with its domain and selector."""

    domain: str
    selector: str
    key: PrivateKey


@dataclass(frozen=True, slots=True)
class Style:
    """What signatures look like.

    `names` are the fields to sign where they are present, in lower case; `oversigned` those of
    which none may be added, which are signed as well. `time` adds t=, `lifetime` x=, in seconds.
    `copies` adds z= with the signed fields, or with all of them if it is 2.
    """

    header_form: str = SIMPLE
    body_form: str = SIMPLE
    names: tuple[bytes, ...] = (b"from",)
    oversigned: tuple[bytes, ...] = (b"from",)
    time: bool = False
    lifetime: int | None = None
    copies: int = 0


class TooManyFieldsError(Exception):
    """A header block has more fields to sign than a signature should name; the text says so."""


class Unsigned:
    """A signature that lacks only its value: `digest` is to be signed."""

    def __init__(self, name: str, text: bytes, digest: bytes) -> None:
        self.name = name
        self._text = text
        self.digest = digest

    def value(self, signature: bytes) -> bytes:
        """Return the value of the field, folded."""
        return self._text + _folded_base64(self.name, self._text, b64encode(signature))


class SigningFields:
    """The fields of a header block from the bottom up, for any number of signatures."""

    def __init__(self, fields: SignedFields, style: Style) -> None:
        """Raise TooManyFieldsError if no verifier may be expected to read the signature."""
        self._fields = fields
        self._style = style
        # h= names the over-signed fields, so that a verifier hashes those that are present.
        signed = {*style.names, *style.oversigned} - REMOVED
        self._selected = fields.lowest(signed, MAX_NAMES + 1)
        names = [name for name, _ in self._selected]
        names += [
            name
            for name in style.oversigned
            if name not in REMOVED and not (name in ADDED and name not in names)
        ]
        if b"from" not in names:
            # RFC 6376 section 5.4: "The From header field MUST be signed". Verifiers reject a
            # signature without it even if the message has no From.
            names.append(b"from")
        if len(names) > MAX_NAMES:
            raise TooManyFieldsError(f"more than {MAX_NAMES} fields to sign")
        #: The value of h=.
        self.names = b":".join(names)
        if len(self.names) > NAMES_MAX:
            raise TooManyFieldsError(f"names of more than {NAMES_MAX} bytes to sign")

    def unsigned(self, signing: SigningKey, body: bytes, now: float) -> Unsigned:
        """Return a signature to be made with a key; `body` is the hash of the body."""
        style = self._style
        tags = [
            b"v=1",
            b"a=" + signing.key.algorithm.encode(),
            b"c=" + style.header_form.encode() + b"/" + style.body_form.encode(),
            b"s=" + signing.selector.encode(),
        ]
        if copies := b"|".join(self._copies()):
            tags.append(b"z=" + copies)
        if style.time:
            tags.append(b"t=%d" % now)
        if style.lifetime is not None:
            tags.append(b"x=%d" % (now + style.lifetime))
        tags += [
            b"bh=" + b64encode(body),
            b"h=" + self.names,
            b"d=" + signing.domain.encode(),
        ]
        return self.unsigned_field(NAME, tags)

    def unsigned_field(self, name: str, tags: Iterable[bytes]) -> Unsigned:
        """Return a signature with these tags, to which b= is added."""
        text = folded(name, tags)
        selected = [field for _, field in self._selected]
        form = self._style.header_form
        return Unsigned(name, text, self._fields.digest_of(selected, form, raw_field(name, text)))

    def _copies(self) -> Iterator[bytes]:
        """Yield the fields for z= (RFC 6376 section 3.5), the lowest within `COPIES_MAX` bytes."""
        copies = self._style.copies
        if not copies:
            return
        left = max(COPIES_MAX - len(self.names), 0)
        for _, field in self._fields.lowest(None, MAX_NAMES) if copies > 1 else self._selected:
            name, _, value = field.replace(b"\n", b"\r\n").partition(b":")
            copy = _quoted(name.rstrip(b" \t")) + b":" + _quoted(value[:left])
            left -= len(copy) + 1
            if left < 0:
                return
            yield copy


def raw_field(name: str, value: str | bytes) -> bytes:
    """Return a field as it is added to a header block: its lines, separated by LF."""
    return b"\n".join(field_lines(name, value))


def _quoted(value: bytes) -> bytes:
    """Return a value in the quoted-printable of DKIM (RFC 6376 section 2.11), without bars."""
    return b"".join(
        bytes((byte,)) if 0x21 <= byte <= 0x7E and byte not in b";=|" else b"=%02X" % byte
        for byte in value
    )


def folded(name: str, tags: Iterable[bytes]) -> bytes:
    """Return tags with their semicolons, up to `b=`, folded before a tag or as in `_BREAKABLE`."""
    pieces: list[bytes] = []
    for tag in tags:
        split = _BREAKABLE.get(tag[:2])
        first, *rest = split(tag + b";") if split else (tag + b";",)
        pieces += [b" " + first, *rest]
    pieces.append(b" b=")
    text, column = pieces[0][1:], len(name) + 1 + len(pieces[0])
    for piece in pieces[1:]:
        column += len(piece)
        if column > _WIDTH:
            piece = piece.lstrip(b" ")  # noqa: PLW2901  # as it is added
            text += b"\r\n\t"
            column = _TAB + len(piece)
        text += piece
    return text


def _folded_base64(name: str, text: bytes, value: bytes) -> bytes:
    """Return Base64 in lines that follow a folded text."""
    begun = text.rpartition(b"\n")[2]
    room = _WIDTH - (len(begun) + _TAB - 1 if b"\r\n" in text else len(name) + 2 + len(begun))
    pieces = [value[: max(room, 0)]]
    rest = value[max(room, 0) :]
    width = _WIDTH - _TAB
    pieces += [rest[at : at + width] for at in range(0, len(rest), width)]
    return b"\r\n\t".join(pieces)
