"""The texts that programs show of HTML, without its tags, comments, styles and scripts.

Styles aren't applied: a text that they hide is in it. Elements within a line are joined, as a
program shows them, and others separated.

Invariants
----------
*Nothing shown is left out*: the first reading is that of the standard (WHATWG, HTML). Where others
may differ, as within a comment for Outlook, in SVG, or behind a quote without an end, there is a
second one, which leaves out the tags only.
*Linear*: what is looked for and isn't there isn't looked for again.
"""

from __future__ import annotations

import re
from html import unescape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

#: Elements that begin a line of their own; and those that stand beside each other.
_LINE_TAGS = (
    "address article aside blockquote body br button caption center dd details dialog dir div dl "
    "dt fieldset figcaption figure footer form frameset h1 h2 h3 h4 h5 h6 head header hr html "
    "legend li listing main menu nav ol optgroup option p plaintext pre search section select "
    "summary table tbody textarea tfoot thead title tr ul xmp"
)
_LINES = frozenset(_LINE_TAGS.split())
_CELLS = frozenset({"td", "th", "img", "input", "object", "video", "audio", "iframe"})
#: Elements whose content is not shown; and those whose content has no tags.
_HIDDEN = frozenset({"script", "style"})
_RAW = frozenset({"title", "textarea", "xmp", "iframe", "noembed", "noframes"})
_PLAIN = "plaintext"
# Section "tag open state": only these begin a tag.
_TAG = re.compile(r"<(/?[a-zA-Z][^\s/>]{0,40})|<(!--)|<(!\[CDATA\[)|<[!?/]")
# Section "before attribute name state": a quote without an equal sign is a name.
_ATTRIBUTE = re.compile(r"[\s/]*+(?:(>)|=?[^\s/>=]*+(?:\s*+=\s*+(?:([\"'])|[^\s>\"'][^\s>]*+)?)?)")
#: Attributes that are shown, and elements that have them.
_SHOWN = re.compile(r"""(?i)[\s/"'](?:alt|value)\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s>]++))""")
_WITH_SHOWN = frozenset({"img", "image", "input"})
# By some programs the content of a style or script may have tags, but in old ones a comment.
_MARKUP = "<(?!!--)"
_REFERENCE = re.compile(r"&(?:#([0-9]++|[xX][0-9a-fA-F]++)|[a-zA-Z][a-zA-Z0-9]{1,31});?")
#: Digits of a number with leading zeros; one that is longer is beyond Unicode.
_DIGITS = 32
#: Units of work for a tag or a quote, and characters that are searched for a tag in a step.
_STEP, PIECE = 3, 1 << 12
#: Units of work of a step of text, which may consist of character references.
_TEXT = 1 << 10
#: Characters of a reference and of the beginning of a tag, at most.
_LONGEST = 64
#: Characters that are searched for an end tag in a step, and in a unit of work.
_WINDOW, _SEARCHED = 1 << 15, 64
#: Attributes of a tag after which others have their turn, and the units of each.
_ATTRIBUTES, _ATTRIBUTE_WORK = 300, 3


def without_markup(text: str) -> Generator[int, None, tuple[str, ...]]:
    """Return the readings of HTML, one or two; yield units of work (`runtime.pace`)."""
    standard = _Reader(text)
    found = yield from standard.read()
    if not standard.differs:
        return (found,)
    return (found, (yield from _Reader(text, hides=False).read()))


class _Reader:
    """A reader of a text; `hides` whether it leaves out more than tags."""

    __slots__ = ("_found", "_hides", "_text", "differs")

    def __init__(self, text: str, *, hides: bool = True) -> None:
        self._text = text
        self._hides = hides
        #: Where each text was found that was looked for; -1 for nowhere.
        self._found: dict[str, int] = {}
        #: Whether some program may show what isn't in this reading.
        self.differs = False

    def read(self) -> Generator[int, None, str]:
        """Return the reading; yield units of work."""
        text = self._text
        found: list[str] = []
        # The pieces of this step, which are joined at its end: a million of them take 0.2 s.
        step: list[str] = []
        at = work = 0
        while at < len(text):
            # In steps: a text may be one that has no tag, or consist of them.
            limit = at + PIECE
            match = _TAG.search(text, at, limit + _LONGEST)
            if work > _TEXT or match is None or match.start() >= limit:
                found.append("".join(step))
                step.clear()
                yield work + _TEXT
                work = 0
            if match is None or match.start() >= limit:
                limit = _whole(text, at, limit)
                step.append(_resolved(text[at:limit]))
                at = limit
                continue
            step.append(_resolved(text[at : match.start()]))
            work += _STEP + (match.start() - at) // _STEP
            at, shown = yield from self._tag(match)
            step.append(shown)
            if match[1] and self._hides and at < len(text):
                name = match[1].lower()
                if name in _HIDDEN:
                    at = yield from self._content(name, at, _MARKUP)
                elif name in _RAW:
                    end = yield from self._content(name, at, "<")
                    while at < end:
                        limit = _whole(text, at, min(at + PIECE, end))
                        yield _TEXT
                        step.append(_resolved(text[at:limit]))
                        at = limit
                elif name == _PLAIN:
                    self.differs = True
                    step.append(text[at:])
                    at = len(text)
        return "".join((*found, *step))

    def _tag(self, match: re.Match[str]) -> Generator[int, None, tuple[int, str]]:
        """Read a tag or a comment; return where it ends, and what is shown of it."""
        end = match.end()
        if match[2] and not self._hides:
            return end, ""
        if match[3]:
            # A comment up to the next tag, and in SVG a text.
            self.differs = True
            behind = self._find(">" if self._hides else "]]>", end) or len(self._text)
            return behind, "" if self._hides else self._text[end:behind]
        if match[2]:
            self.differs = self.differs or self._text[end : end + 1] == "["  # Outlook's
            # As "<!-->" it ends in itself.
            ends = (self._find("-->", end - 2), self._find("--!>", end))
            behind = min(filter(None, ends), default=0)
            name = ""
        else:
            name = (match[1] or "").lower()
            if name and self._hides:
                behind = yield from self._end_of_tag(end)
            else:
                behind = self._find(">", end)
        if not behind:
            self.differs = True
            return (len(self._text), "") if self._hides else (end, match[0])
        if name in _WITH_SHOWN:
            return behind, f" {self._attributes(end - 1, behind)} "
        if name == "select" or (name in _HIDDEN and self._text[behind - 2] == "/"):
            self.differs = True  # in a list no style begins, and in SVG it ends here
        name = name.removeprefix("/")
        return behind, "\n" if name in _LINES else " " if name in _CELLS else ""

    def _find(self, wanted: str, at: int) -> int:
        """Return where the text behind the next one of these begins; 0 if there is none."""
        found = self._found.get(wanted, 0)
        if 0 <= found < at or wanted not in self._found:
            found = self._found[wanted] = self._text.find(wanted, at)
        return found + len(wanted) if found >= 0 else 0

    def _end_of_tag(self, at: int) -> Generator[int, None, int]:
        """Return where the text behind a tag begins, whose quotes may hold a `>`; 0 for nowhere."""
        count = 0
        while at < len(self._text):
            match = _ATTRIBUTE.match(self._text, at)
            assert match is not None  # noqa: S101  # it matches anything
            at = match.end()
            if match[1]:
                return at
            if quote := match[2]:
                at = self._text.find(quote, at) + 1
                if not at:
                    return 0
            count += 1
            if count % _ATTRIBUTES == 0:
                yield _ATTRIBUTES * _ATTRIBUTE_WORK
        return 0

    def _content(self, name: str, at: int, other: str) -> Generator[int, None, int]:
        """Return where the content of an element ends.

        It may be read in other ways if it matches `other`.
        """
        end = re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE)
        begin = at
        while begin < len(self._text):
            limit = begin + _WINDOW
            match = end.search(self._text, begin, limit + _LONGEST)
            stop = match.start() if match else limit
            if not self.differs and re.compile(other).search(self._text, begin, stop):
                self.differs = True
            if match:
                return stop
            yield _WINDOW // _SEARCHED
            begin = limit
        self.differs = True
        return len(self._text)

    def _attributes(self, at: int, end: int) -> str:
        """Return what programs show of a tag, such as a text in place of an image."""
        if end - at > PIECE:  # no program writes such a tag
            return self._text[at:end]
        every = _SHOWN.finditer(self._text, at, end)
        return _resolved(" ".join(next(filter(None, each.groups()), "") for each in every))


def _whole(text: str, at: int, limit: int) -> int:
    """Return the end of a piece that doesn't end within a character reference."""
    if limit >= len(text):
        return len(text)
    cut = text.rfind("&", max(at + 1, limit - _LONGEST), limit)
    return cut if cut > 0 else limit


def _resolved(text: str) -> str:
    """Return a text with characters in place of its character references."""
    return _REFERENCE.sub(_character, text) if "&" in text else text


def _character(match: re.Match[str]) -> str:
    return unescape(match[0]) if len(match[1] or "") <= _DIGITS else "\ufffd"
