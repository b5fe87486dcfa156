"""The `From:` field, as any reader could understand it.

The law:

1. An address that a lenient reader could take for the author's is found, whatever the syntax: in
   several fields, lists, groups, comments, quotes, encoded-words.
2. What is too large to be read is refused, and nothing else: no field raises.
3. Reading takes time in proportion to the field's length.
"""

from __future__ import annotations

import re

from smtpd_filters.filters._addresses import ESCAPED, unquoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: Characters of all `From:` fields, and addresses in them, that are looked at.  An honest one has
#: one line of at most 998 characters (RFC 5322 section 2.1.1) and an address or two.
FROM_MAX = 1 << 15
ADDRESSES_MAX = 256
# RFC 5321 section 4.5.3.1.1 has 64; twice that for quotes and backslashes.
_LOCAL_MAX = 128

# RFC 5322 section 3.2: a quoted string, a quoted pair, a literal, words, and single specials.  A
# quote or bracket that isn't closed is a character like any other.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+"|\\.|\[[^\[\]\\"]*+\]|[^"\\()<>,;:\[]++|.', re.DOTALL)
# A quoted pair is taken along, so that a quote in it opens nothing.
_QUOTED_OR_PAIR = re.compile(r'\\.|"(?:[^"\\]|\\.)*+"', re.DOTALL)
# RFC 2047 section 2; section 6.2: white space between two of them is no part of the text.
_ENCODED = re.compile(r"=\?([!->@-~]{1,40})\?([bBqQ])\?([!->@-~ ]{0,998})\?=")
_BETWEEN = re.compile(r"(?<=\?=)\s++(?==\?)")
# What is at the right of an `@`: a literal, or atoms, with white space around the dots as in
# obs-domain (RFC 5322 section 4.4).
_AFTER = re.compile(
    r"""\s*+(\[[^\[\]]{0,255}\]|[^\s\x00-\x20\x7f."\\()<>,;:@\[\]]++"""
    r"""(?:\s*+\.\s*+[^\s\x00-\x20\x7f."\\()<>,;:@\[\]]++)*+)"""
)
# And at the left: a quoted string or atoms.
_BEFORE = re.compile(
    r"""("(?:[^"\\]|\\.)*+"|[^\s\x00-\x20\x7f"\\()<>,;:@\[\]]*+)\s*+\Z""", re.DOTALL
)
_SPACE = re.compile(r"\s+")


class Author:
    """What a `From:` field says.

    `addresses` are those that it gives, or that a lenient reader could take for given; `shown`
    those that stand in display names and comments, which some mail programs show instead.
    """

    __slots__ = ("addresses", "shown")

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.shown: list[str] = []


class TooLargeError(ValueError):
    """A field has more in it than is looked at."""


def read_from(values: Sequence[str]) -> Author:
    """Read the values of all `From:` fields of a message, whatever is in them.

    Raises TooLargeError beyond `FROM_MAX` characters and `ADDRESSES_MAX` addresses.
    """
    if sum(map(len, values)) > FROM_MAX:
        raise TooLargeError(f"From has more than {FROM_MAX} characters")
    author = Author()
    for value in values:
        _Mailboxes(author).read(value)
        if len(author.addresses) + len(author.shown) > ADDRESSES_MAX:
            raise TooLargeError(f"From has more than {ADDRESSES_MAX} addresses")
    return author


class _Mailboxes:
    """The mailboxes of one field: name-addr or addr-spec, in a list, perhaps in a group.

    A pass over the tokens parts what stands in angle brackets, in quotes, in comments and
    elsewhere; at the end of each mailbox it is known which of it was the address.
    """

    __slots__ = ("_angle", "_author", "_bare", "_comments", "_plain", "_quoted")

    def __init__(self, author: Author) -> None:
        self._author = author
        self._bare: list[str] = []  # mailboxes without a domain
        self._start()

    def _start(self) -> None:
        self._plain: list[str] = []  # outside of angle brackets: a name, or a bare address
        self._quoted: list[str] = []  # of that, what is in quotes
        self._comments: list[str] = []
        self._angle: list[str] = []

    def read(self, value: str) -> None:
        before = len(self._author.addresses)
        depth = 0
        comment: list[str] = []
        angle = False
        for match in _TOKENS.finditer(value):
            piece = match[0]
            if depth or piece == "(":
                depth += (piece == "(") - (piece == ")")
                comment.append(piece)
                if not depth:
                    self._comments.append("".join(comment[1:-1]))
                    self._plain.append(" ")
                    comment.clear()
            elif angle:
                # The bracket stays: what is in two pairs of them is no one address.
                angle = piece != ">"
                self._angle.append(piece)
            elif piece == "<":
                angle = True
            else:
                self._take(piece)
        self._plain += comment[1:]  # no comment after all: it never ends
        self._end()
        # smtpd completes what has no domain with its own name.  Beside an address it is a comma
        # in a name more often than not: Doe, Jane <jane@example.org>
        if len(self._author.addresses) == before:
            self._author.addresses += self._bare[:1]

    def _take(self, piece: str) -> None:
        """Take what stands neither in angle brackets nor in a comment."""
        if piece in (",", ";", ":"):
            self._end(group=piece == ":")
            return
        self._plain.append(piece)
        if piece[0] == '"' and len(piece) > 1:
            self._quoted.append(piece[1:-1])

    def _end(self, *, group: bool = False) -> None:
        """A mailbox is complete, or the name of a group."""
        found, shown = self._author.addresses, self._author.shown
        plain = "".join(self._plain)
        if self._angle or group:
            # By right a name.  An `@` in it that isn't in quotes is against the syntax; there are
            # programs that take it for the address.
            bare = _QUOTED_OR_PAIR.sub(lambda match: " " if match[0][0] == '"' else match[0], plain)
            found += _addresses(_ENCODED.sub(" ", bare))
            if "=?" in bare:
                shown += _addresses(_decoded(bare))
            angle = "".join(self._angle)
            if angle.lstrip().startswith("@") and ":" in angle:
                angle = angle.partition(":")[2]  # RFC 5322 section 4.4: obs-route
            angle = _decoded(angle)
            if "@" in angle:
                found += _addresses(angle)
            elif name := angle.replace(">", " ").strip():
                found.append(unquoted(name))
        elif "@" not in (text := _decoded(plain)):
            if name := text.strip():
                self._bare.append(unquoted(name))
        else:
            # RFC 2047 section 5: an encoded-word "MUST NOT appear in any portion of an
            # 'addr-spec'".  There are programs that decode it there.
            found += _addresses(text)
        for aside in (*self._quoted, *self._comments):
            shown += _addresses(ESCAPED.sub(r"\1", _decoded(aside)))
        self._start()


def _addresses(text: str) -> list[str]:
    """Everything in a text that looks like an address; an ``@`` in a quoted local part doesn't."""
    if "@" not in text:
        return []
    masked = _QUOTED_OR_PAIR.sub(
        lambda match: "_" * len(match[0]) if match[0][0] == '"' else match[0], text
    )
    found: list[str] = []
    at = -1
    while (at := masked.find("@", at + 1)) >= 0 and len(found) <= ADDRESSES_MAX:
        if after := _AFTER.match(text, at + 1):
            before = _BEFORE.search(text[max(0, at - _LOCAL_MAX) : at])
            local = unquoted(before[1]) if before else ""
            found.append(f"{local}@{_SPACE.sub('', after[1]).rstrip('.')}")
    return found


def _decoded(text: str) -> str:
    """A text with its encoded-words decoded, as far as addresses in ASCII or UTF-8 go."""
    return _ENCODED.sub(_decode, _BETWEEN.sub("", text)) if "=?" in text else text


def _decode(match: re.Match[str]) -> str:
    from binascii import Error, a2b_base64, a2b_qp  # only for this

    charset, encoding, body = match.groups()
    try:
        if encoding in "bB":
            data = a2b_base64(body + "=" * (-len(body) % 4))
        else:
            data = a2b_qp(body, header=True)
    except (Error, ValueError):
        return match[0]
    charset = charset.lower()
    if charset.startswith("utf-7"):
        return data.decode("utf-7", "replace")
    # The letters of an address are ASCII in every other charset that mail programs know, with
    # zeros between them in the wide ones.  No codec is looked up by a stranger's name for it.
    if charset.startswith(("utf-16", "utf-32", "utf16", "utf32", "ucs", "iso-10646")):
        data = data.replace(b"\0", b"")
    return data.decode("utf-8", "surrogateescape")
