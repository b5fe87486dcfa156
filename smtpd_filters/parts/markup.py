"""The text that programs show of HTML, without its tags, comments, styles and scripts.

Styles aren't applied: a text that they hide is in it. Elements within a line are joined, as a
program shows them, and others separated.

Invariants
----------
*Nothing shown is left out*: where a stranger may make programs disagree about what is a comment or
a style, the text is kept: one without an end, one within an element whose content is text, and all
behind a style with what looks like a tag.
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
#: Elements whose content is not shown; and those whose content is a text for programs.
_HIDDEN = frozenset({"script", "style"})
_RAW = frozenset({"title", "textarea", "xmp", "iframe", "noembed", "noframes", "plaintext"})
# WHATWG, HTML, section "tag open state": only these begin a tag. The content of a comment such as
# `<!--[if mso]>` is shown by Outlook; that of CDATA is shown in SVG.
_TAG = re.compile(r"<(/?[a-zA-Z][^\s/><\"']{0,40})|<(!--)(?!\[[iI][fF])|<(!\[CDATA\[)|<[!?/]")
# The same, section "before attribute name state": a quote without an equal sign is a name.
_ATTRIBUTE = re.compile(r"[\s/]*+(?:(>)|=?[^\s/>=]*+(?:\s*+=\s*+(?:([\"'])|[^\s>\"'][^\s>]*+)?)?)")
_ALT = re.compile(r"""(?i)[\s/"']alt\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s>]++))""")
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


class _Rest:
    """What is behind some place in a text; it knows what isn't there, and what was found."""

    __slots__ = ("_found", "_missing", "_text", "_whole_tags")

    def __init__(self, text: str) -> None:
        self._text = text
        self._missing: set[str] = set()
        self._found: dict[str, int] = {}
        #: Whether all tags so far had an end outside of quotes.
        self._whole_tags = True

    def find(self, wanted: str, at: int) -> int:
        """Return where the text behind the next one of these begins; 0 if there is none."""
        if wanted in self._missing:
            return 0
        found = self._found.get(wanted, -1)
        if found < at:
            found = self._found[wanted] = self._text.find(wanted, at)
        if found < 0:
            self._missing.add(wanted)
            return 0
        return found + len(wanted)

    def find_end_of_comment(self, begin: int) -> int:
        """Do so for the end of a comment, which some programs take to end early."""
        # As "<!-->" it ends in itself.
        ends = (self.find("-->", begin + 2), self.find("--!>", begin + 4))
        return min(filter(None, ends), default=0)

    def find_end_of_tag(self, at: int) -> Generator[int, None, int]:
        """Do so for the end of a tag, whose quotes may hold a `>`."""
        plain = self.find(">", at)
        if not plain or not self._whole_tags:
            return plain
        count = 0
        while at < len(self._text):
            match = _ATTRIBUTE.match(self._text, at)
            if match is None or match[1]:
                return match.end() if match else plain
            at = match.end()
            if quote := match[2]:
                at = self._text.find(quote, at) + 1
                if not at:
                    break
            count += 1
            if count % _ATTRIBUTES == 0:
                yield _ATTRIBUTES * _ATTRIBUTE_WORK
        # It may be so for all tags behind this one.
        self._whole_tags = False
        return plain

    def find_end_tag(self, name: str, at: int) -> Generator[int, None, int]:
        """Return where the end tag of an element begins; 0 if a tag is in it, or it has none."""
        pattern = re.compile(f"<(/{name})|<[a-z/]", re.IGNORECASE)
        for begin in range(at, len(self._text), _WINDOW):
            if match := pattern.search(self._text, begin, begin + _WINDOW + _LONGEST):
                return match.start() if match[1] else 0
            yield _WINDOW // _SEARCHED
        return 0


class _Reader:
    """A reader of one text."""

    __slots__ = ("_hides", "_raw", "_rest", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._rest = _Rest(text)
        #: Whether comments, styles and scripts are left out.
        self._hides = True
        #: The element around whose content is text; "" for none.
        self._raw = ""

    def read(self) -> Generator[int, None, str]:
        """Return what programs show; yield units of work."""
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
        return "".join((*found, *step))

    def _tag(self, match: re.Match[str]) -> Generator[int, None, tuple[int, str]]:
        """Read a tag, with the element if that is hidden; return where it ends, and its text."""
        begin, end = match.span()
        if match[2]:
            behind = self._rest.find_end_of_comment(begin) if self._hides and not self._raw else 0
            return (behind, "") if behind else (end, match[0])
        if match[3]:
            return end, ""
        name = (match[1] or "").lower()
        if name:
            behind = yield from self._rest.find_end_of_tag(end)
        else:
            behind = self._rest.find(">", end)
        if not behind:
            return end, match[0]
        if name == f"/{self._raw}" and name != "/plaintext":
            self._raw = ""
        elif name in _RAW and not self._raw:
            self._raw = name
        shown = "\n" if name.lstrip("/") in _LINES else " " if name.lstrip("/") in _CELLS else ""
        if name == "img":
            shown = f" {self._alternative(end - 1, behind)} "
        if name in _HIDDEN and self._hides and not self._raw and self._text[behind - 2] != "/":
            hidden = yield from self._rest.find_end_tag(name, behind)
            self._hides = bool(hidden)
            behind = hidden or behind
        return behind, shown

    def _alternative(self, at: int, end: int) -> str:
        """Return what programs show in place of an image."""
        if end - at > PIECE:  # no program writes such a tag
            return self._text[at:end]
        alt = _ALT.search(self._text, at, end)
        return _resolved(next(filter(None, alt.groups()), "")) if alt else ""


def without_markup(text: str) -> Generator[int, None, str]:
    """Return what programs show of HTML; yield units of work (`runtime.pace`)."""
    return _Reader(text).read()


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
