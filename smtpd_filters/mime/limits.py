"""Limits of the reader: what it looks at, beyond which a message is odd."""

from __future__ import annotations

#: Levels of parts within parts and messages within messages. Mail programs nest 5 or 6.
DEPTH = 20
#: Parts of a message, those in attached messages and uuencoded ones included.
PARTS = 1_000
#: Bytes of the header block of a part.
HEADER = 1 << 16
#: Characters of the fields of a name, such as Content-Type, that are parsed of a part, and how many
#: such fields.
PARAMETERS = 1 << 12
REPEATED = 10
#: Comments of such a field.
COMMENTS = 100
#: Names of a part or a member of an archive, by all readings; and characters of a name, which are
#: the last ones of a longer name.
NAMES = 40
NAME = 255
#: Character sets of a part, by all readings.
CHARSETS = 10
#: Delimiters of a multipart, by all readings.
BOUNDARIES = 10
#: Bytes of decoded content by which a type is recognised; and those of text that are kept for it,
#: and of each text behind them.
HEAD = 1 << 12
TEXT = 1 << 16
TEXT_LEAST = 1 << 10
#: Bytes of decoded texts that are kept for a filter that asks for them.
TEXTS = 4 << 20
#: Levels of archives within archives.
ARCHIVE_LEVELS = 4
#: Members of the archives of a message, and bytes unpacked to look into them.
MEMBERS = 5_000
UNPACKED = 64 << 20
#: Bytes of an archive's own metadata that are read at a time.
READ = 1 << 16
#: Bytes given to the scanner at a time.
BLOCK = 1 << 12
