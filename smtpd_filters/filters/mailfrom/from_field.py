"""The `From:` field, as any reader could understand it.

**Complete**: an address that a lenient reader could take for the author's is found, whatever the
syntax: in several fields, lists, groups, comments, quotes, encoded words.

**Total**: what is too large to be read is refused, and nothing else: no field raises.

**Linear**: reading takes time in proportion to the field's length.
"""

from __future__ import annotations

import re

from smtpd_filters.addresses.domains import PREFIX
from smtpd_filters.addresses.mailbox import unquoted

from .addresses_in_text import sightings
from .candidate import Candidate
from .display_order import display_orders, is_directed
from .encoded_words import decoded, is_in_order, outside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from smtpd_filters.message import Headers

    from .addresses_in_text import Sighting

#: Characters of all `From:` fields, and addresses in them, that are looked at.  An honest one has
#: one line of at most 998 characters (RFC 5322 section 2.1.1) and an address or two.
FROM_MAX = 1 << 15
ADDRESSES_MAX = 256
#: Ways to read them: an encoded word may double their number.
READINGS_MAX = 4 * ADDRESSES_MAX
#: Encoded words. One of the 75 characters that RFC 2047 allows has room for a short name.
WORDS_MAX = 256
#: Characters of different internationalised domains: four of the longest. To convert one takes
#: some milliseconds.
INTERNATIONAL_MAX = 1024
#: Characters of texts with directional marks, in all readings. To find the order in which one is
#: shown takes about a microsecond a character.
DIRECTED_MAX = 2048

# RFC 5322 section 3.2: a quoted string, a quoted pair, a literal, words, and single specials.  A
# quote or bracket that isn't closed is a character like any other.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+"|\\.|\[[^\[\]\\"]*+\]|[^"\\()<>,;:\[]++|.', re.DOTALL)
_QUOTED_OR_PAIR = re.compile(r'\\.|"(?:[^"\\]|\\.)*+"', re.DOTALL)
_QUOTE_OR_PAIR = re.compile(r'\\(.)|"', re.DOTALL)
# RFC 5322 section 4.4: obs-route.
_ROUTE = re.compile(r"\s*+@[^\s@:,<>]++(?:\s*+,[\s,]*+@[^\s@:,<>]++)*+\s*+:")
# A field without one of these has no address with a domain.
_AT = re.compile("@|\uff20|\ufe6b|=\\?")
# Names with addresses in angle brackets, bare addresses, names of groups: of words (w), words with
# an `@` (a), literals (l).
_FORM = re.compile(r"(?:w*+(?:<[wal,:]*+>|[wa]*+(?:(?<=a)l)?)[,;]|w*+:)*+")
# Some programs show nothing for these, others end an address there. Those in the second set are
# white space for some.
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]+")
_CONTROLS_AND_SPACES = re.compile(r"[\x00-\x08\n-\x1f\x7f-\x9f\u2028\u2029]+")
_BEHIND_CR = re.compile(rb"\r[Ff][Rr][Oo][Mm][ \t]*+:((?:[^\r\n]|[\r\n]++[ \t])*+)")


class TooLargeError(ValueError):
    """A field has more in it than is looked at."""


class Author:
    """What the `From:` fields of a message say.

    `addresses` are those that they give, or that a lenient reader could take for given. `possible`
    are further ways to read these, and names with an ``@`` that has no dot at its right
    (``Bob @ Work``): no program sends mail there. So are addresses that only a reader sees, in the
    order in which directional marks have a text shown. `shown` are addresses in display names and
    comments, which some programs show instead. Each is a set in order.
    """

    __slots__ = (
        "_directed",
        "_given",
        "_international",
        "_looked_at",
        "_seen",
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
        self._directed = 0
        self._international: dict[str, int] = {}

    def count(self, sighting: Sighting, *, shown: bool) -> None:
        """Count what was found; raises TooLargeError for more than is looked at."""
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

    def count_directed(self, text: str) -> None:
        """Count a text whose order is to be found; raises TooLargeError beyond `DIRECTED_MAX`."""
        self._directed += len(text)
        if self._directed > DIRECTED_MAX:
            raise TooLargeError(
                f"From has directional marks and more than {DIRECTED_MAX} characters"
            )


def values_of_from(headers: Headers) -> list[str]:
    """Give the values of all `From:` fields of a message.

    Also of those that begin behind a bare CR: for some programs it ends a line, though RFC 5322
    section 2.3 forbids it.
    """
    values = headers.get_all("From")
    lines = headers.lines()
    if any(b"\r" in line for line in lines):
        found = _BEHIND_CR.findall(b"\n".join(lines))
        values += [value.decode("utf-8", "surrogateescape") for value in found]
    return values


def read_from(values: Sequence[str]) -> Author:
    """Read the values of all `From:` fields of a message, whatever is in them.

    Raises TooLargeError beyond `FROM_MAX` characters, `ADDRESSES_MAX` fields or addresses,
    `WORDS_MAX` encoded words, and `INTERNATIONAL_MAX` characters of internationalised domains.
    """
    if len(values) > ADDRESSES_MAX:
        raise TooLargeError(f"From has more than {ADDRESSES_MAX} fields")
    if sum(map(len, values)) > FROM_MAX:
        raise TooLargeError(f"From has more than {FROM_MAX} characters")
    if sum(value.count("=?") for value in values) > WORDS_MAX:
        raise TooLargeError(f"From has more than {WORDS_MAX} encoded words")
    author = Author()
    for value in values:
        _Field(author).read(value)
    return author


class _Field:
    """One field: name-addr or addr-spec, in a list, perhaps in a group (RFC 5322 section 3.4)."""

    __slots__ = ("_author", "_bare", "_given", "_shown")

    def __init__(self, author: Author) -> None:
        self._author = author
        self._bare = ""  # the first mailbox without a domain
        self._given: dict[Candidate, None] = {}
        self._shown: dict[Candidate, None] = {}

    def read(self, value: str) -> None:
        """Read the field's value into the author."""
        author = self._author
        tokens = _TOKENS.findall(value)
        comments = _comments(tokens)
        for plain, angle, is_name in _mailboxes(tokens, comments):
            if is_name:
                self._add_name(plain)
                self._add_address(_ROUTE.sub("", angle, 1))
            else:
                self._bare = self._bare or _without_domain(plain)
                self._add(plain)
        if comments:
            # Programs that leave comments out may join what is around them.
            rest = "".join(each for at, each in enumerate(tokens) if at not in comments)
            for sighting, _ in self._sightings(rest):
                author.possible[Candidate(sighting.local_parts, sighting.whole)] = None
        self._add_shown(value)
        if self._shown and _is_malformed(value, tokens, comments):
            # Programs that lose their way in it take for the address what others show as a name.
            author.possible.update(self._shown)
        if not self._given:
            # What the field shows is all that a reader has to go by. smtpd completes what has no
            # domain with its own name; beside an address it is a comma in a name more often than
            # not: Doe, Jane <jane@example.org>
            self._given.update(self._shown)
            if self._bare:
                self._given[Candidate((self._bare,), "")] = None
        author.addresses.update(self._given)
        author.shown.update(self._shown)

    def _add(self, text: str) -> None:
        """Add the addresses in a text where one is expected.

        RFC 2047 section 5: an encoded word "MUST NOT appear in any portion of an 'addr-spec'".
        There are programs that decode it there.
        """
        for sighting, is_plain in self._sightings(text):
            self._give(sighting, sighting.whole if is_plain else "")

    def _add_address(self, angle: str) -> None:
        """Add what is in angle brackets."""
        if name := _without_domain(angle.replace(">", " ")):
            self._given[Candidate((name,), "")] = None
        self._add(angle)

    def _add_name(self, text: str) -> None:
        """Add the addresses in a name outside of quotes.

        That is against the syntax, and there are programs that take them for the author's.
        """
        for sighting, is_plain in self._sightings(outside(text)):
            domain = sighting.domain
            if is_plain and ("." in domain or domain[0] == "["):
                self._give(sighting, domain)
            else:
                self._give(sighting, "")

    def _give(self, sighting: Sighting, domain: str) -> None:
        """Add an address; `domain` is the one that is meant, if any is."""
        if domain:
            self._given[Candidate(sighting.local_parts, domain)] = None
        for other in sighting.domains:
            if other != domain:
                self._author.possible[Candidate(sighting.local_parts, other)] = None

    def _add_shown(self, value: str) -> None:
        """Add what a reader sees: the field as it is, and without quotes and backslashes."""
        texts = [value]
        if '"' in value or "\\" in value:
            texts.append(_QUOTE_OR_PAIR.sub(lambda match: match[1] or "", value))
        for text in texts:
            for sighting, _ in self._sightings(text, quoting=False):
                if Candidate(sighting.local_parts, sighting.whole) not in self._given:
                    for domain in sighting.domains:
                        self._shown[Candidate(sighting.local_parts, domain)] = None

    def _sightings(self, text: str, *, quoting: bool = True) -> Iterator[tuple[Sighting, bool]]:
        """Find addresses in all readings of a text, and whether each is one in plain sight.

        Those that are not are in the text only as some programs show it. Raises TooLargeError.
        """
        if not _AT.search(text):
            return
        views = decoded(text)
        plain = dict.fromkeys(views)
        has_controls = any(map(_CONTROLS_AND_SPACES.search, views))
        if has_controls:
            plain.update(dict.fromkeys(_CONTROLS.sub("", view) for view in views))
        for view in plain:
            for sighting in sightings(view, quoting=quoting):
                self._author.count(sighting, shown=not quoting)
                yield sighting, True
        if not has_controls and not any(map(is_directed, views)):
            return
        for view in self._as_shown(views):
            if view not in plain:
                for sighting in sightings(view, quoting=quoting):
                    self._author.count(sighting, shown=not quoting)
                    yield sighting, False

    def _as_shown(self, views: Iterable[str]) -> dict[str, None]:
        """Return the texts that some programs show instead of these; raises TooLargeError."""
        found: dict[str, None] = {}
        for view in views:
            joined = _CONTROLS_AND_SPACES.sub("", view)
            found[joined] = None
            for text in {view: None, joined: None} if is_directed(view) else ():
                self._author.count_directed(text)
                found.update(dict.fromkeys(display_orders(text)))
        return found


def _mailboxes(tokens: Sequence[str], comments: Collection[int]) -> Iterator[tuple[str, str, bool]]:
    """Part a field into mailboxes, and these into what is in angle brackets and what isn't.

    Gives the text outside, the text inside, and whether that outside is by right a name: that of
    an address or of a group. A comment is a blank.
    """
    ends = [at for at, each in enumerate(tokens) if each == ">" and at not in comments]
    closed = ends[-1] if ends else -1
    plain: list[str] = []
    angle: list[str] = []
    inside = False
    for at, piece in enumerate((*tokens, ",")):
        if at in comments:
            (angle if inside else plain).append(" ")
        elif inside:
            # The bracket stays: what is in two pairs of them is no one address.
            inside = piece != ">"
            angle.append(piece)
        elif piece == "<" and at < closed:
            inside = True
            plain.append(" ")
        elif piece in {",", ";", ":"}:
            yield "".join(plain), "".join(angle), bool(angle) or piece == ":"
            plain.clear()
            angle.clear()
        else:
            plain.append(piece)


def _comments(tokens: Sequence[str]) -> set[int]:
    """Which tokens are in comments or begin or end one; a comment that never ends is none."""
    opened: list[int] = []
    pairs: dict[int, int] = {}
    for at, piece in enumerate(tokens):
        if piece == "(":
            opened.append(at)
        elif piece == ")" and opened:
            pairs[opened.pop()] = at
    found: set[int] = set()
    end = -1
    for begin in sorted(pairs):
        if begin > end:
            end = pairs[begin]
            found.update(range(begin, end + 1))
    return found


def _is_malformed(value: str, tokens: Sequence[str], comments: Collection[int]) -> bool:
    """Whether a field breaks the syntax: RFC 5322 section 3.4, RFC 2047 section 5 (3)."""
    shape = "".join(_shape(each) for at, each in enumerate(tokens) if at not in comments)
    return not _FORM.fullmatch(shape + ",") or not is_in_order(value)


def _shape(token: str) -> str:
    """What a token is: a word, one with an `@`, a literal, or a special character."""
    if token in ("<", ">", ",", ";", ":"):
        return token
    if token[0] == '"' and len(token) > 1:
        return "w"
    if token[0] == "[" and len(token) > 1:
        return "l"
    if token[0] in '"\\()[' or "]" in token:
        return "!"  # not closed, or out of place
    return "a" if "@" in token else "w" * (not token.isspace())


def _without_domain(text: str) -> str:
    """The local part that a text is as a whole; "" if it is none, or has an `@` outside quotes."""
    text = text.strip()
    if "@" in text and "@" in _QUOTED_OR_PAIR.sub("", text):
        return ""
    return unquoted(text)
