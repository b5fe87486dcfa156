"""A parser of the `From:` field that covers all readings by lenient programs.

Invariants
----------
*Complete*: every address that a lenient program could take for the author's is found, whatever the
syntax: several fields, lists, groups, comments, quotes, encoded words.
*Total*: a field that is too large raises TooLargeError; no field raises anything else.
*Linear*: the time is proportional to the field's length.
"""

from __future__ import annotations

import re
from array import array
from itertools import chain

from smtpd_filters.addresses.domains import PREFIX
from smtpd_filters.addresses.mailbox import unquoted
from smtpd_filters.message.disguise import Name

from .addresses_in_text import sightings as _sightings_in
from .candidate import Candidate
from .display_order import display_orders, is_directed
from .encoded_words import decoded, is_in_order, outside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from smtpd_filters.message import Headers

    from .addresses_in_text import Sighting

#: The maximum of characters in all `From:` fields, and of addresses in them. An honest field has
#: one line of at most 998 characters (RFC 5322 section 2.1.1) and an address or two.
FROM_MAX = 1 << 15
ADDRESSES_MAX = 256
#: The maximum of readings of these: an encoded word may double their number.
READINGS_MAX = 4 * ADDRESSES_MAX
#: The maximum of `@` in all readings, with an address or without.
SIGNS_MAX = 4 * READINGS_MAX
#: The maximum of encoded words. One of 75 characters, the limit of RFC 2047, holds a short name.
WORDS_MAX = 256
#: The maximum of characters in distinct internationalised domains: four of the longest. Converting
#: one takes some milliseconds.
INTERNATIONAL_MAX = 1024
#: The maximum of characters in texts with directional marks, in all readings. Finding the display
#: order takes about a microsecond a character.
DIRECTED_MAX = 2048

# RFC 5322 section 3.2: a quoted string, a quoted pair, a literal, words, and single specials. An
# unclosed quote or bracket is an ordinary character.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+"|\\.|\[[^\[\]\\"]*+\]|[^"\\()<>,;:\[]++|.', re.DOTALL)
_QUOTED_OR_PAIR = re.compile(r'\\.|"(?:[^"\\]|\\.)*+"', re.DOTALL)
_QUOTE_OR_PAIR = re.compile(r'\\(.)|"', re.DOTALL)
# RFC 5322 section 4.4: obs-route, at the beginning of what is in a pair of brackets.
_ROUTE = re.compile(r"(?<![^>])[\s,]*+@[^\s@:,<>]++(?:\s*+,[\s,]*+(?:@[^\s@:,<>]++)?)*\s*+:")
#: The signs between local part and domain. A field without one of them, or an encoded word, has no
#: address with a domain.
_SIGNS = ("@", "\uff20", "\ufe6b")
_AT = re.compile("@|\uff20|\ufe6b|=\\?")
# Names with addresses in angle brackets, bare addresses, names of groups: of words (w), words with
# an `@` (a), literals (l).
_FORM = re.compile(r"(?:w*+(?:<[wal,:]*+>|[wa]*+(?:(?<=a)l)?)[,;]|w*+:)*")
# In such a field, a group in a group.
_NESTED = re.compile(r":(?:<[^>]*+>|[^;:<])*:")
# Some programs don't display these, others end an address there. Some treat those in the second set
# as white space.
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]+")
_CONTROLS_AND_SPACES = re.compile(r"[\x00-\x08\n-\x1f\x7f-\x9f\u2028\u2029]+")
# Bytes that aren't UTF-8. Programs display them as Windows-1252, as a mark, or not at all.
_INVALID = re.compile("[\udc80-\udcff]")
_BY_WINDOWS = {0xDC00 + byte: bytes([byte]).decode("cp1252", "ignore") for byte in range(128, 256)}
_FROM = Name("From")


class TooLargeError(ValueError):
    """The fields exceed one of the limits of this module."""


class Author:
    """The addresses in the `From:` fields of a message, each attribute an ordered set.

    `addresses` are the authors, including those that only a lenient program would find. `possible`
    are further readings of these, names with an `@` that has no dot to its right (`Bob @ Work`),
    where no program sends mail, and addresses that exist only in display order. `shown` are
    addresses in display names and comments, which some programs display instead.
    """

    __slots__ = (
        "_directed",
        "_given",
        "_international",
        "_looked_at",
        "_seen",
        "_signs",
        "addresses",
        "possible",
        "shown",
    )

    def __init__(self) -> None:
        self.addresses: dict[Candidate, None] = {}
        self.possible: dict[Candidate, None] = {}
        self.shown: dict[Candidate, None] = {}
        self._given: set[tuple[str, str]] = set()
        self._seen: set[tuple[str, str]] = set()
        self._looked_at = 0
        self._signs = 0
        self._directed = 0
        self._international: dict[str, int] = {}

    def read(self, value: str) -> None:
        """Add the addresses of one field; raise TooLargeError beyond a limit, as `read_from`."""
        _Field(self).read(value)

    def count(self, sighting: Sighting, *, shown: bool) -> None:
        """Count an address; raise TooLargeError if a limit is exceeded."""
        self._looked_at += 1
        found = self._seen if shown else self._given
        found.add((sighting.local_parts[0], sighting.whole))
        if len(found) > ADDRESSES_MAX or self._looked_at > READINGS_MAX:
            raise TooLargeError(f"From has more than {ADDRESSES_MAX} addresses")
        for domain in sighting.domains:
            if not domain.isascii() or PREFIX in domain.lower():
                self._international[domain] = len(domain)
                if sum(self._international.values()) > INTERNATIONAL_MAX:
                    raise TooLargeError(
                        f"From has internationalised domains of more than {INTERNATIONAL_MAX} "
                        "characters"
                    )

    def count_signs(self, text: str) -> None:
        """Count each `@` of a text to be searched; raise TooLargeError beyond `SIGNS_MAX`."""
        self._signs += sum(map(text.count, _SIGNS))
        if self._signs > SIGNS_MAX:
            raise TooLargeError(f"From has more than {ADDRESSES_MAX} addresses")

    def count_directed(self, text: str) -> None:
        """Count a text to be put in display order; raise TooLargeError beyond `DIRECTED_MAX`."""
        self._directed += len(text)
        if self._directed > DIRECTED_MAX:
            raise TooLargeError(
                f"From has directional marks and more than {DIRECTED_MAX} characters"
            )

    def sightings(self, text: str, *, quoting: bool = True) -> Iterator[tuple[Sighting, bool]]:
        """Find addresses in all readings of a text, and whether each is in the text itself.

        The others exist only in the text as some programs display it. Raises TooLargeError.
        """
        if not _AT.search(text):
            return
        views = decoded(text)
        plain = dict.fromkeys(views)
        has_controls = any(map(_CONTROLS_AND_SPACES.search, views))
        if has_controls:
            plain.update(dict.fromkeys(_CONTROLS.sub("", view) for view in views))
        for view in plain:
            self.count_signs(view)
            for sighting in _sightings_in(view, quoting=quoting):
                self.count(sighting, shown=not quoting)
                yield sighting, True
        lenient = [each for view in views if _INVALID.search(view) for each in _by_bytes(view)]
        if not has_controls and not lenient and not any(map(is_directed, views)):
            return
        for view in self._as_shown([*views, *lenient]):
            if view not in plain:
                self.count_signs(view)
                for sighting in _sightings_in(view, quoting=quoting):
                    self.count(sighting, shown=not quoting)
                    yield sighting, False

    def _as_shown(self, views: Iterable[str]) -> dict[str, None]:
        """Return the texts that some programs display for these; raise TooLargeError."""
        found: dict[str, None] = {}
        for view in views:
            joined = _CONTROLS_AND_SPACES.sub("", view)
            found[joined] = None
            for text in {view: None, joined: None} if is_directed(view) else ():
                self.count_directed(text)
                found.update(dict.fromkeys(display_orders(text)))
        return found


def values_of_from(headers: Headers) -> list[str]:
    """Return the values of all `From:` fields of a message."""
    return values_of(headers, "From", _FROM)[0]


def values_of(headers: Headers, name: str, read: Name) -> tuple[list[str], bool]:
    """Return the values of all fields of a name, and whether only some programs see one of them.

    They include fields that only some programs read as such: those behind a bare CR, which RFC 5322
    section 2.3 forbids, and those with a folded name, or with invalid characters in it. Beyond
    `FROM_MAX` characters or `ADDRESSES_MAX` fields, where `read_from` fails, no further ones are
    added.
    """
    values: list[str] = []
    length = 0
    disguised = False
    hidden = (each.decode("utf-8", "surrogateescape") for each in read.hidden_values(headers))
    both = (((each, False) for each in headers.values(name)), ((each, True) for each in hidden))
    for value, is_hidden in chain.from_iterable(both):
        values.append(value)
        length += len(value)
        disguised |= is_hidden
        if length > FROM_MAX or len(values) > ADDRESSES_MAX:
            break
    return values, disguised


def read_from(values: Sequence[str]) -> Author:
    """Parse the values of all `From:` fields of a message.

    Raises TooLargeError beyond `FROM_MAX` characters, `ADDRESSES_MAX` fields or addresses,
    `WORDS_MAX` encoded words, and `INTERNATIONAL_MAX` characters of internationalised domains.
    """
    check_size(values)
    author = Author()
    for value in values:
        author.read(value)
    return author


def check_size(values: Sequence[str]) -> None:
    """Raise TooLargeError for fields that `read_from` doesn't read because of their size."""
    if len(values) > ADDRESSES_MAX:
        raise TooLargeError(f"From has more than {ADDRESSES_MAX} fields")
    if sum(map(len, values)) > FROM_MAX:
        raise TooLargeError(f"From has more than {FROM_MAX} characters")
    if sum(value.count("=?") for value in values) > WORDS_MAX:
        raise TooLargeError(f"From has more than {WORDS_MAX} encoded words")


class _Field:
    """One field: name-addr or addr-spec, in a list, perhaps in a group (RFC 5322 section 3.4)."""

    __slots__ = ("_author", "_bare", "_given", "_shown")

    def __init__(self, author: Author) -> None:
        self._author = author
        self._bare = ""  # the first mailbox without a domain
        self._given: dict[Candidate, None] = {}
        self._shown: dict[Candidate, None] = {}

    def read(self, value: str) -> None:
        """Parse the field's value into the author."""
        author = self._author
        tokens = tokens_of(value)
        comments = comments_of(tokens)
        for plain, angle, _, is_name in elements(tokens, comments):
            if is_name:
                self._add_name(plain)
                self._add_address(without_route(angle))
            else:
                self._bare = self._bare or without_domain(plain)
                self._add(plain)
        if comments:
            # Programs that drop comments may join the text around them.
            rest = "".join(_outside(tokens, comments))
            for sighting, _ in self._author.sightings(rest):
                author.possible[Candidate(sighting.local_parts, sighting.whole)] = None
        self._add_shown(value)
        if self._shown and is_malformed(value, tokens, comments):
            # Programs confused by it use as the address what others display as a name.
            author.possible.update(self._shown)
        if not self._given:
            # Without an address, judge what the field displays. smtpd completes an address without
            # a domain; beside another address it is mostly part of a name with a comma: Doe, Jane
            # <jane@example.org>
            self._given.update(self._shown)
            if self._bare:
                self._given[Candidate((self._bare,), "")] = None
        author.addresses.update(self._given)
        author.shown.update(self._shown)

    def _add(self, text: str) -> None:
        """Add the addresses in a text where one is expected.

        RFC 2047 section 5: an encoded word "MUST NOT appear in any portion of an 'addr-spec'", but
        some programs decode it there.
        """
        for sighting, is_plain in self._author.sightings(text):
            self._give(sighting, sighting.whole if is_plain else "")

    def _add_address(self, angle: str) -> None:
        """Add the addresses in angle brackets."""
        if name := without_domain(angle.replace(">", " ")):
            self._given[Candidate((name,), "")] = None
        self._add(angle)

    def _add_name(self, text: str) -> None:
        """Add the addresses in a name outside quotes.

        The syntax forbids them, but some programs take them for the author's.
        """
        for sighting, is_plain in self._author.sightings(outside(text)):
            domain = sighting.domain
            if is_plain and ("." in domain or domain[0] == "["):
                self._give(sighting, domain)
            else:
                self._give(sighting, "")

    def _give(self, sighting: Sighting, domain: str) -> None:
        """Add an address; `domain` is its most likely reading, "" if none is."""
        if domain:
            self._given[Candidate(sighting.local_parts, domain)] = None
        for other in sighting.domains:
            if other != domain:
                self._author.possible[Candidate(sighting.local_parts, other)] = None

    def _add_shown(self, value: str) -> None:
        """Add what programs display: the field itself, also without quotes and backslashes."""
        texts = [value]
        if '"' in value or "\\" in value:
            texts.append(as_displayed(value))
        for text in texts:
            for sighting, _ in self._author.sightings(text, quoting=False):
                if Candidate(sighting.local_parts, sighting.whole) not in self._given:
                    for domain in sighting.domains:
                        self._shown[Candidate(sighting.local_parts, domain)] = None


def _by_bytes(view: str) -> tuple[str, ...]:
    """Return what programs display for a text with bytes that aren't UTF-8."""
    return view.translate(_BY_WINDOWS), _INVALID.sub(" ", view), _INVALID.sub("", view)


def _outside(tokens: Sequence[str], comments: bytes) -> Iterable[str]:
    """Return the tokens that aren't in comments."""
    return (
        (each for each, is_in in zip(tokens, comments, strict=True) if not is_in)
        if comments
        else tokens
    )


def tokens_of(value: str) -> list[str]:
    """Return the tokens of a field: quoted strings, quoted pairs, literals, words and specials."""
    return _TOKENS.findall(value)


def elements(tokens: Sequence[str], comments: bytes) -> Iterator[tuple[str, str, list[str], bool]]:
    """Split a field into mailboxes, and these into the text outside and inside angle brackets.

    Yield both, the tokens of the comments, and whether the text outside is the name of an address
    or a group. In the texts a comment becomes a blank.
    """
    closed = len(tokens) - 1
    while closed >= 0 and (tokens[closed] != ">" or (comments and comments[closed])):
        closed -= 1
    plain: list[str] = []
    angle: list[str] = []
    aside: list[str] = []
    inside = False
    for at, piece in enumerate(chain(tokens, ",")):
        if comments and at < len(comments) and comments[at]:
            (angle if inside else plain).append(" ")
            aside.append(piece)
        elif inside:
            # Keep the bracket: two pairs of them don't make one address.
            inside = piece != ">"
            angle.append(piece)
        elif piece == "<" and at < closed:
            inside = True
            plain.append(" ")
        elif piece in {",", ";", ":"}:
            yield "".join(plain), "".join(angle), aside, bool(angle) or piece == ":"
            plain, angle, aside = [], [], []
        else:
            plain.append(piece)


def comments_of(tokens: Sequence[str]) -> bytes:
    """Return for each token 1 if it is in a comment or delimits one, else 0; b"" without any.

    Unclosed comments are ignored.
    """
    opened = array("L")
    ends = array("L")  # for each token, where the comment ends that it begins, or 0
    for at, piece in enumerate(tokens):
        if piece == "(":
            opened.append(at)
        elif piece == ")" and opened:
            ends = ends or array("L", [0]) * len(tokens)
            ends[opened.pop()] = at
    found = bytearray(len(ends))
    behind = 0
    for begin, end in enumerate(ends):
        if end and begin >= behind:
            behind = end + 1
            found[begin:behind] = b"\1" * (behind - begin)
    return bytes(found)


def is_malformed(value: str, tokens: Sequence[str], comments: bytes) -> bool:
    """Return whether a field breaks the syntax: RFC 5322 section 3.4, RFC 2047 section 5 (3)."""
    shape = "".join(map(_shape, _outside(tokens, comments)))
    if not _FORM.fullmatch(shape + ",") or _NESTED.search(shape):
        return True
    return not is_in_order(value)


def _shape(token: str) -> str:
    """Return the class of a token: a word, one with an `@`, a literal, or a special character."""
    if token in ("<", ">", ",", ";", ":"):
        return token
    if token[0] == '"' and len(token) > 1:
        return "w"
    if token[0] == "[" and len(token) > 1:
        return "l"
    if token[0] in '"\\()[' or "]" in token:
        return "!"  # not closed, or out of place
    return "a" if "@" in token else "w" * (not token.isspace())


def as_displayed(text: str) -> str:
    """Return a text without its quotes and the backslashes of its quoted pairs."""
    return _QUOTE_OR_PAIR.sub(lambda match: match[1] or "", text)


def without_route(angle: str) -> str:
    """Return what is in angle brackets without source routes (RFC 5322 section 4.4)."""
    return _ROUTE.sub("", angle)


def without_domain(text: str) -> str:
    """Return the local part if a text is nothing else; "" if it has an `@` outside quotes."""
    text = text.strip()
    if "@" in text and "@" in _QUOTED_OR_PAIR.sub("", text):
        return ""
    return unquoted(text)
