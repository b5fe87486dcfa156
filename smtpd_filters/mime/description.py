"""The description of a part by its fields, by all readings: types, boundaries, encoding, names."""

from __future__ import annotations

import re

from .comments import has_too_many
from .leaf import ENCODINGS
from .limits import BOUNDARIES, CHARSETS, PARAMETERS, REPEATED
from .names import all_readings, cost, extension
from .parameters import (
    boundaries,
    charsets,
    count_boundaries,
    first,
    is_behind_comment,
    is_container,
    media_types,
    names,
    tokens,
    unfolded,
    words,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .content import Content, Part

# RFC 5322 section 2.2; section 4.5 for white space before the colon.
FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:[ \t]*+")
#: The beginning of the names of Content fields, and the names of those that are parsed.
CONTENT = b"content-"
PARSED = TYPE, ENCODING, DISPOSITION = (
    b"content-type",
    b"content-transfer-encoding",
    b"content-disposition",
)
_PARTIAL = "message/partial"


class Description:
    """What the fields of a part say of it; oddities and work are noted in `content`.

    `fields` are its Content fields, raw. `certain` is whether all programs read the same type.
    """

    __slots__ = ("_content", "_type_fields", "certain", "encoding", "fields", "types")

    def __init__(self, content: Content, fields: list[bytes]) -> None:
        self._content = content
        self.fields = [each for each in fields if each[:8].lower() == CONTENT]
        self._type_fields = self._values(TYPE)
        readings = list(map(media_types, self._type_fields))
        self.types = tuple(dict.fromkeys(each for one in readings for each in one.types))
        for one in readings:
            if one.odd:
                content.odd(one.odd)
        if _PARTIAL in self.types:
            content.cut_off("a piece of a message")
        if len(self.types) > 1:
            content.odd("two types")
        self.certain = len(self.types) == 1 and all(one.certain for one in readings)
        self.encoding = self._encoding()

    @property
    def is_multipart(self) -> bool:
        """Whether one of the types is that of a multipart."""
        return any(each.startswith("multipart/") for each in self.types)

    @property
    def is_message(self) -> bool:
        """Whether one of the types is that of a message."""
        return any(is_container(each) and each[:10] != "multipart/" for each in self.types)

    def boundaries(self) -> list[bytes]:
        """Return the boundaries of a multipart, at most `limits.BOUNDARIES`."""
        readings = list(map(boundaries, self._type_fields))
        every = dict.fromkeys(each for one in readings for each in one.values)
        found = [each.encode("utf-8", "surrogateescape").rstrip() for each in every]
        found = [each for each in found if each]
        if len(found) > BOUNDARIES or not all(one.complete for one in readings):
            self._content.cut_off("too many boundaries")
            del found[BOUNDARIES:]
        if not found:
            self._content.odd("multipart without a boundary")
        elif sum(map(count_boundaries, self._type_fields)) > 1:
            self._content.odd("two boundaries")
        return found

    def fill_in(self, part: Part) -> None:
        """Set the types, names, encoding, disposition and character set of a part."""
        dispositions = self._values(DISPOSITION)
        fields = (*dispositions, *self._type_fields)
        readings = list(map(names, fields))
        raw = [each for one in readings for each in one.values]
        part.names, more = all_readings(raw)
        self._content.work += sum(map(cost, raw))
        if more or not all(one.complete for one in readings):
            self._content.cut_off("too many names of a part")
        # The name of a multipart is no matter unless something else is odd.
        if not self.is_multipart and (
            len(dispositions) > 1 or len(set(map(extension, part.names))) > 1
        ):
            self._content.odd("several names of a part")
        if any(map(is_behind_comment, fields)):
            self._content.odd("comment in a parameter")
        first_words = [tokens(each) for each in dispositions]
        if any(len(each) > 1 for each in first_words):
            self._content.odd("comment in a disposition")
        part.types = self.types
        part.type = first(self.types)
        part.encoding = self.encoding
        every = [each for one in first_words for each in one]
        part.disposition = "attachment" if "attachment" in every else first(every)
        declared = dict.fromkeys(each for one in self._type_fields for each in charsets(one))
        if len(declared) > CHARSETS:
            self._content.cut_off("too many character sets of a part")
        part.charsets = tuple(declared)[:CHARSETS]
        part.charset = first(part.charsets)

    def _values(self, wanted: bytes) -> list[str]:
        """Return the values of the fields of a name (in lower case), unfolded."""
        found: list[str] = []
        room = PARAMETERS
        for raw in self.fields:
            match = FIELD.match(raw)
            if match and match[1].lower() == wanted:
                value = unfolded(raw[match.end() :])
                if len(value) > room or len(found) == REPEATED:
                    self._content.cut_off("parameters of a part too long")
                    found.append(value[:room])
                    break
                if has_too_many(value):
                    self._content.cut_off("too many comments in a field")
                found.append(value)
                room -= len(value)
        return found

    def _encoding(self) -> str:
        values: list[str] = []
        odd = False
        for field in self._values(ENCODING):
            found = tokens(field)
            values += found
            if len(found) > 1 or (field.strip() and not found[0]):
                odd = True
                values += (each for each in words(field) if each in ENCODINGS)
        known = list(dict.fromkeys(ENCODINGS.get(each, "") for each in values))
        if odd or len(known) > 1 or any(each not in ENCODINGS for each in values):
            self._content.odd("unknown or several encodings")
        if len(set(known) - {""}) > 1:
            self._content.cut_off("several encodings")
        return first(known)
